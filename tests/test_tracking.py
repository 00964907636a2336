import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
import yaml
from cases import OBSERVATION, mask_of, solve
from matplotlib.figure import Figure
from mlflow import MlflowClient
from test_config import composed

import mfgd
from mfgd import artifacts, plan, problem, runner
from mfgd.config import Component
from mfgd.given import load_problem
from mfgd.types import Refused

SERIES = {
    "loss",
    "relative_error",
    "gradient_norm",
    "balance",
    "effective_rank",
    "nuclear_norm",
    "sigma.1",
    "sigma.2",
}
SINGLE = {"final_loss", "final_relative_error", "best_loss", "steps_run", "solve_seconds"}


@pytest.fixture
def runs(store) -> pandas.DataFrame:
    return mfgd.load_runs(experiment="demo").dropna(subset="parent")


def track(*overrides: str, **changes):
    """Solves and writes one run; its point, row and id."""
    point = replace(composed(*overrides), **changes)
    (row,) = solve([point])
    tracker = point.tracking()
    tracker.open(None)
    tracker.expect(1)
    return point, row, tracker.write(point, row, load_problem(point.problem))


def one(runs, **params):
    for name, value in params.items():
        runs = runs[runs[f"params.{name}"] == value]
    assert len(runs) == 1
    return runs.iloc[0]


def test_a_sweep_is_one_parent_with_every_point_as_a_child(store, runs):
    assert len(runs) == 16
    (parent,) = set(runs["parent"])
    assert MlflowClient(store).get_run(parent).info.status == "FINISHED"
    assert (
        runs[["params.rank", "params.lr", "params.loss", "params.init"]].value_counts().eq(1).all()
    )
    counts = runs["tags.outcome"].value_counts()
    assert counts["diverged"] == 4
    logged = MlflowClient(store).get_run(parent).data.metrics
    assert {name: logged[f"runs.{name}"] for name in counts.index} == counts.to_dict()


def test_parent_carries_the_summary_and_the_overview(store, runs):
    client, parent = MlflowClient(store), runs["parent"].iloc[0]
    summary = pandas.read_csv(client.download_artifacts(parent, "summary.csv"))
    assert set(summary["run_id"]) == set(runs["run_id"])
    assert [file.path for file in client.list_artifacts(parent, "figures")] == [
        "figures/overview.png"
    ]


def test_names_of_a_run(store, runs):
    run = one(runs, rank="3", lr="0.0004", loss="squared", init="spectral")
    data = MlflowClient(store).get_run(run["run_id"]).data
    assert set(data.metrics) >= SERIES | SINGLE | {"sigma.3", "excess_loss", "loss_gap"}
    assert data.params["loss"] == "squared"
    assert data.params["loss.scale"] == "0.5"
    assert data.params["problem"] == "digits"
    assert {"outcome", "fingerprint", "git_commit", "overrides"} <= set(data.tags)
    assert "rank=3" in data.tags["overrides"].split()


def test_metrics_are_those_of_the_matrices(store, runs):
    run = one(runs, rank="3", lr="0.0004", loss="huber", init="normal")
    _, _, matrices = mfgd.load_run(run["run_id"])
    C, F, D = matrices["C"].numpy(), matrices["F"].numpy(), problem.digits(**OBSERVATION).D.numpy()
    residual = C @ F - D
    inner = np.minimum(np.abs(residual), 1)
    sigma = np.linalg.svd(C @ F, compute_uv=False)[:3]
    share = sigma / sigma.sum()
    expected = {
        "final_loss": 0.5 * (inner * (np.abs(residual) - inner / 2)).sum(),
        "final_relative_error": np.linalg.norm(residual) / np.linalg.norm(D),
        "balance": np.linalg.norm(C.T @ C - F @ F.T),
        "nuclear_norm": sigma.sum(),
        "effective_rank": np.exp(-(share * np.log(share)).sum()),
        "sigma.3": sigma[2],
        "steps_run": 60,
    }
    assert {name: run[f"metrics.{name}"] for name in expected} == pytest.approx(expected, rel=1e-9)


def test_history_has_the_steps_of_the_trajectory(store, runs):
    run_id = one(runs, rank="2", lr="0.0004", loss="squared", init="normal")["run_id"]
    history = MlflowClient(store).get_metric_history(run_id, "relative_error")
    trajectory = mfgd.load_run(run_id).trajectory
    assert [point.step for point in history] == trajectory["step"].tolist()
    assert [point.value for point in history] == trajectory["relative_error"].tolist()


def test_a_large_sweep_logs_within_its_budget_of_points(store):
    point = composed(
        "steps=500", "tracking.experiment=many", "tracking.points=4000", "tracking.figures=50"
    )
    (row,) = solve([point])
    tracker = point.tracking()
    tracker.open(None)
    tracker.expect(100)
    run_id = tracker.write(point, row, load_problem(point.problem))
    client = MlflowClient(store)
    names, curves = SERIES | {"excess_loss"}, {"loss", "relative_error", "excess_loss"}
    steps = {name: [p.step for p in client.get_metric_history(run_id, name)] for name in names}
    assert {len(steps[name]) for name in names - curves} == {1}
    assert steps["loss"] == steps["relative_error"] == steps["excess_loss"]
    assert (steps["loss"][0], steps["loss"][-1]) == (0, 500)
    assert 5 <= len(steps["loss"]) <= 13
    assert sum(map(len, steps.values())) <= 40
    assert {steps[name][-1] for name in SERIES} == {500}
    assert not client.list_artifacts(run_id, "figures")
    assert len(mfgd.load_run(run_id).trajectory) == len(row.trajectory["step"])


def test_diverged_runs_are_results(store, runs):
    run = one(runs, rank="3", lr="0.001", loss="squared", init="normal")
    assert (run["tags.outcome"], run["status"]) == ("diverged", "FINISHED")
    assert run["metrics.steps_run"] < 60


def test_artifacts(store, runs):
    client, run_id = MlflowClient(store), runs["run_id"].iloc[0]
    names = {file.path for file in client.list_artifacts(run_id)}
    assert names >= {
        "config.yaml",
        "matrices.safetensors",
        "trajectory.parquet",
        "figures",
        "images",
    }
    figures = {file.path for file in client.list_artifacts(run_id, "figures")}
    assert figures == {"figures/curves.png", "figures/matrices.png", "figures/spectrum.png"}
    images = [file.path for file in client.list_artifacts(run_id, "images")]
    assert {name.split("/")[1].split("+")[0] for name in images} == {"D_hat", "residual"}


def test_matrices_come_back_bit_for_bit(store):
    line = ("problem=synthetic", "problem.observed=0.5", "steps=20", "dtype=float32")
    point, row, run_id = track(*line, "tracking.experiment=bits")
    config, trajectory, matrices = mfgd.load_run(run_id)
    assert torch.equal(matrices["C"], row.factors[0])
    assert torch.equal(matrices["F"], row.factors[1])
    assert matrices["C"].dtype == torch.float32
    solved = load_problem(point.problem)
    assert torch.equal(matrices["D"].isnan(), mask_of(solved) == 0)
    assert torch.equal(matrices["D"].nan_to_num(), solved.D.float())
    for name, values in row.trajectory.items():
        assert trajectory[name].to_numpy().astype(float).tobytes() == values.tobytes()
    assert json.dumps(dict(config.problem), default=list) == json.dumps(point.resolved["problem"])


def test_a_deep_run_comes_back_and_goes_on(store):
    line = (
        "problem=synthetic",
        "depth=3",
        "init.scale=0.5",
        "lr=0.01",
        "steps=20",
        "tracking.experiment=deep",
    )
    *_, run_id = track(*line)
    matrices = mfgd.load_run(run_id).matrices
    assert {name for name in matrices if name != "D"} == {"W1", "W2", "W3"}
    (path,) = Path().glob(f"mlartifacts/*/{run_id}/artifacts/matrices.safetensors")
    (further,) = solve([composed(*line, "init=file", f"init.path={path}", "init.scale=1.0")])
    (whole,) = solve([composed(*line, "steps=40")])
    assert all(torch.equal(W, V) for W, V in zip(further.factors, whole.factors, strict=True))
    with pytest.raises(Refused, match=f"^init.path={path}: no array C in it; allowed are C, F"):
        plan.group_points([composed(*line, "depth=2", "init=file", f"init.path={path}")])


def test_heldout_error_and_steps_to_tolerance(store):
    line = ("problem=synthetic", "problem.observed=0.6", "steps=3000", "lr=0.2", "rank=5")
    keys = ("init.scale=0.1", "tolerance=1e-2", "tracking.experiment=heldout", "tracking.figures=0")
    _, row, _ = track(*line, *keys)
    assert row.outcome == "converged"
    run = mfgd.load_runs(experiment="heldout").iloc[0]
    assert run["metrics.steps_to_tolerance"] == run["metrics.steps_run"] < 3000
    assert run["metrics.heldout_error"] == row.trajectory["heldout_error"][-1]


def test_verdicts_are_tags_and_theory_stands_beside_the_measures(store):
    line = ("problem=synthetic", "problem.noise=0.1", "steps=30", "tracking.experiment=theory")
    _, row, run_id = track(*line)
    run = mfgd.load_runs(experiment="theory").iloc[0]
    assert run["tags.oracle.eckart_young"] == "deviates"
    assert "tags.oracle.saxe" not in run
    assert run["metrics.deviation.eckart_young"] == row.values["deviation.eckart_young"] > 0.1
    line = MlflowClient(store).get_metric_history(run_id, "theory.loss")
    assert [(point.step, point.value) for point in line] == [
        (step, row.trajectory["theory.loss"][0]) for step in (0, 30)
    ]


def residuals(row, problem, *, width):
    figure = Figure()
    figure.subplots().hist((row.factors[0] @ row.factors[1] - problem.D).flatten(), width)
    return figure


def unreadable(row, problem):
    figure = Figure()
    figure.suptitle("$\\nosuchsymbol$")  # raises when the figure is saved
    return figure


def test_a_users_own_figure_is_drawn_beside_the_others(store):
    own = (("spread", Component("spread", "f.residuals", residuals, (("width", 4),))),)
    *_, run_id = track("steps=9", "tracking.experiment=figures", figures=own)
    names = [file.path for file in MlflowClient(store).list_artifacts(run_id, "figures")]
    assert {"figures/spread.png", "figures/curves.png"} <= set(names)
    *_, run_id = track("steps=9", "tracking.experiment=figures", "tracking.figures=0", figures=own)
    assert MlflowClient(store).list_artifacts(run_id, "figures") == []


def test_a_figure_that_raises_fails_its_run_alone(store):
    line = ("steps=9", "tracking.experiment=raises")
    broken = (("bad", Component("bad", "f.unreadable", unreadable, ())),)
    points = [composed(*line, "seed=1"), replace(composed(*line, "seed=2"), figures=broken)]
    tracker = points[0].tracking()
    tracker.open(None)
    finished = []
    runner.run_batch(list(enumerate(points)), tracker, finished.append)
    assert [isinstance(run.result, float) for run in finished] == [True, False]
    runs = mfgd.load_runs(experiment="raises").set_index("params.seed")
    assert runs["status"].to_dict() == {"1": "FINISHED", "2": "FAILED"}
    assert runs["tags.outcome"].to_dict() == {"1": "budget", "2": "error"}
    (path,) = Path().glob(f"mlartifacts/*/{finished[1].run_id}/artifacts/traceback.txt")
    text = path.read_text()
    assert "nosuchsymbol" in text
    assert "DrawingError: figures.bad=f.unreadable" in text


def test_missing_runs_and_experiments_are_refused(store):
    with pytest.raises(Refused, match="run nothing"):
        mfgd.load_run("nothing")
    with pytest.raises(Refused, match="experiment nowhere: none of that name"):
        mfgd.load_runs(experiment="nowhere")


def test_the_config_is_written_as_yaml_writes_it(tmp_path):
    """Entries of runs that were written before are not written anew."""
    line = ("problem=synthetic", "problem.spectrum=[3,.5,1e-9]", "init.scale=1e300", "steps=1")
    for seed in (1, 2):
        one = composed(*line, "rank=2", f"seed={seed}", f"lr={seed}e-5")
        artifacts.write_config(tmp_path, one)
        expected = yaml.safe_dump(one.resolved, sort_keys=False, allow_unicode=True)
        assert (tmp_path / "config.yaml").read_text() == expected
