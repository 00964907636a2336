import json
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from cases import OBSERVATION
from mlflow import MlflowClient
from test_config import composed

import mfgd
from mfgd import problem, sweep, tracking
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


def test_a_large_sweep_logs_what_its_budget_of_points_allows(store):
    point = composed(
        "steps=500", "tracking.experiment=many", "tracking.points=4000", "tracking.figures=50"
    )
    (row,) = sweep.solve([point])
    place = point.tracking()
    place.open()
    place.expected = 100
    run_id = place.write(point, row, sweep.problem_of(point.problem))
    client = MlflowClient(store)
    steps = {name: [p.step for p in client.get_metric_history(run_id, name)] for name in SERIES}
    assert {len(steps[name]) for name in SERIES - {"loss", "relative_error"}} == {1}
    assert steps["loss"] == steps["relative_error"]
    assert (steps["loss"][0], steps["loss"][-1]) == (0, 500)
    assert 10 <= len(steps["loss"]) <= 20
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
    point = composed(
        "problem=synthetic",
        "problem.observed=0.5",
        "steps=20",
        "tracking.experiment=bits",
        "dtype=float32",
    )
    (row,) = sweep.solve([point])
    place = point.tracking()
    place.open()
    run_id = place.write(point, row, sweep.problem_of(point.problem))
    config, trajectory, matrices = mfgd.load_run(run_id)
    assert torch.equal(matrices["C"], row.factors[0])
    assert torch.equal(matrices["F"], row.factors[1])
    assert matrices["C"].dtype == torch.float32
    solved = sweep.problem_of(point.problem)
    assert torch.equal(matrices["D"].isnan(), solved.mask == 0)
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
    first = composed(*line)
    (row,) = sweep.solve([first])
    place = first.tracking()
    place.open()
    run_id = place.write(first, row, sweep.problem_of(first.problem))
    matrices = mfgd.load_run(run_id).matrices
    assert {name for name in matrices if name != "D"} == {"W1", "W2", "W3"}
    (path,) = Path().glob(f"mlartifacts/*/{run_id}/artifacts/matrices.safetensors")
    (further,) = sweep.solve([composed(*line, "init=file", f"init.path={path}", "init.scale=1.0")])
    (whole,) = sweep.solve([composed(*line, "steps=40")])
    assert all(torch.equal(W, V) for W, V in zip(further.factors, whole.factors, strict=True))
    with pytest.raises(Refused, match=f"^init.path={path}: no array C in it; allowed are C, F"):
        sweep.batches([composed(*line, "depth=2", "init=file", f"init.path={path}")])


def test_heldout_error_and_steps_to_tolerance(store):
    line = (
        "problem=synthetic",
        "problem.observed=0.6",
        "steps=3000",
        "lr=0.2",
        "tolerance=1e-2",
        "rank=5",
    )
    point = composed(*line, "init.scale=0.1", "tracking.experiment=heldout", "tracking.figures=0")
    (row,) = sweep.solve([point])
    assert row.outcome == "converged"
    place = point.tracking()
    place.open()
    place.write(point, row, sweep.problem_of(point.problem))
    run = mfgd.load_runs(experiment="heldout").iloc[0]
    assert run["metrics.steps_to_tolerance"] == run["metrics.steps_run"] < 3000
    assert run["metrics.heldout_error"] == row.trajectory["heldout_error"][-1]


def test_verdicts_are_tags_and_theory_stands_beside_the_measures(store):
    point = composed(
        "problem=synthetic", "problem.noise=0.1", "steps=30", "tracking.experiment=theory"
    )
    (row,) = sweep.solve([point])
    place = point.tracking()
    place.open()
    run_id = place.write(point, row, sweep.problem_of(point.problem))
    run = mfgd.load_runs(experiment="theory").iloc[0]
    assert run["tags.oracle.eckart_young"] == "deviates"
    assert run["tags.oracle.saxe"] == "not applicable"
    assert run["metrics.deviation.eckart_young"] == row.values["deviation.eckart_young"] > 0.1
    line = MlflowClient(store).get_metric_history(run_id, "theory.loss")
    assert [(point.step, point.value) for point in line] == [
        (step, row.trajectory["theory.loss"][0]) for step in (0, 30)
    ]


def test_reading_what_is_not_there(store):
    with pytest.raises(Refused, match="run nothing"):
        mfgd.load_run("nothing")
    with pytest.raises(Refused, match="experiment nowhere: none of that name"):
        mfgd.load_runs(experiment="nowhere")


def test_passwords_are_not_printed():
    assert tracking._public("https://me:secret@example.org/x") == "https://me:***@example.org/x"
