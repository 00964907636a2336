"""The command line, in this process or as a process of its own."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from urllib.parse import parse_qsl

import numpy as np
import pandas
import pytest
from conftest import mfgd
from mlflow import MlflowClient

import mfgd as package

LOSSES = {
    1: 1.8741,
    1000: 0.0223,
    2000: 0.0060,
    3000: 0.0028,
    4000: 0.0020,
    5000: 0.0017,
    6000: 0.0016,
}
LOSSES |= {7000: 0.0015, 8000: 0.0015, 9000: 0.0014, 10000: 0.0014}
FINAL = [
    [0.0497, 0.1423, 0.0869, 0.1019],
    [0.2768, 0.4008, 0.4364, 0.5000],
    [0.4724, 0.7316, 0.7508, 0.8618],
]


def statuses(folder) -> list[str]:
    with sqlite3.connect(folder / "mlflow.db") as connection:
        return [status for (status,) in connection.execute("SELECT status FROM runs")]


def test_notebook_experiment_reproduces_what_the_notebook_printed(here):
    done = here("experiment=notebook")
    assert (done.returncode, done.stderr) == (0, "")
    run_id = re.search(r"\b[0-9a-f]{32}\b", done.stdout)[0]
    config, trajectory, matrices = package.load_run(run_id)
    assert config.problem._target_ == "mfgd.problem.notebook"
    loss = dict(zip(trajectory["step"], trajectory["loss"], strict=True))
    assert loss[0] == pytest.approx(2.0110, abs=1e-4)
    assert {step: loss[step] for step in LOSSES} == pytest.approx(LOSSES, abs=1e-4)
    np.testing.assert_allclose(matrices["C"] @ matrices["F"], FINAL, atol=3e-4)


def test_sweep_ends_with_the_best_runs_and_the_way_to_the_ui(demo):
    title, *lines, last = (demo / "stdout.txt").read_text().splitlines()
    assert re.split(r"\s{2,}", title) == (
        ["rank", "lr", "loss", "init", "relative error", "to optimum", "steps", "outcome", "run id"]
    )
    assert len(lines) == 10
    errors = [float(re.split(r"\s{2,}", line)[4]) for line in lines]
    assert errors == sorted(errors)
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in last
    runs = package.load_runs(experiment="demo", uri=f"sqlite:///{demo}/mlflow.db")
    (parent,) = set(runs["parent"].dropna())
    _, query = last.split("http://127.0.0.1:5000/#/experiments/1/runs?")
    assert dict(parse_qsl(query)) == {
        "viewStateShareKey": parent,
        "compareRunsMode": "CHART",
        "workflowType": "machine_learning",
    }
    assert "16/16" in (demo / "stderr.txt").read_text()
    assert set(statuses(demo)) == {"FINISHED"}


@pytest.mark.slow
def test_what_was_read_is_printed_before_a_run_and_kept_with_it(here, tmp_path):
    D = np.random.default_rng(0).normal(size=(40, 6))
    pandas.DataFrame(D).to_csv(tmp_path / "D.csv")
    read = (
        "D.csv: 40×6 matrix, 240 entries observed, header skipped, first column taken as row names"
    )
    line = ("problem=file", "problem.path=D.csv", "steps=2000", "lr=0.5", "lr_unit=sigma1")
    done = here(*line, "init=spectral")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == read
    run = package.load_runs().iloc[0]
    sizes = run[["params.data.rows", "params.data.columns", "params.data.observed"]]
    assert list(sizes) == ["40", "6", "240"]
    # The relative error at rank 2 is that of the truncated singular value decomposition.
    sigma = np.linalg.svd(D, compute_uv=False)
    expected = np.linalg.norm(sigma[2:]) / np.linalg.norm(sigma)
    assert run["metrics.final_relative_error"] == pytest.approx(expected, rel=1e-6)
    swept = here("--multirun", *line, "rank=1,2", "problem.observed=0.5,200")
    assert swept.stdout.count(read) == 1
    (dataset,) = MlflowClient().get_run(run["run_id"]).inputs.dataset_inputs
    assert dataset.dataset.name == "D.csv"
    assert json.loads(dataset.dataset.profile) == {"read": read}
    # In a large sweep, as in one without figures, the sweep's own run has the dataset.
    here("--multirun", *line, "rank=1,2", "tracking.figures=0", "tracking.experiment=large")
    runs = package.load_runs(experiment="large").set_index("run_id")["parent"]
    logged = {run_id: MlflowClient().get_run(run_id).inputs.dataset_inputs for run_id in runs.index}
    assert {run_id for run_id, inputs in logged.items() if inputs} == set(runs.dropna())
    np.save(tmp_path / "D.npy", D)
    here("problem=file", "problem.path=D.npy", "steps=2")
    again = MlflowClient().get_run(package.load_runs().iloc[0]["run_id"])
    # The digest is that of the matrix, whatever file it is in.
    assert again.inputs.dataset_inputs[0].dataset.digest == dataset.dataset.digest


def test_matrices_of_the_shell_line_are_solved_and_tracked(here, tmp_path):
    start, matrix = "init.factors=[[[2]],[[1]]]", "problem.matrix=[[6]],[[-6]]"
    line = ("problem=explicit", matrix, "init=explicit", start, "rank=1", "steps=1", "lr=0.1")
    assert here("--multirun", *line).returncode == 0
    runs = package.load_runs().dropna(subset="parent").set_index("params.problem.matrix")
    for d in (6.0, -6.0):
        run = package.load_run(runs.loc[f"[[{d}]]", "run_id"])
        # One step of (c f − d)² from c = 2, f = 1.
        slope = 2 * (2 - d)
        assert float(run.matrices["C"]) == pytest.approx(2 - 0.1 * slope * 1, rel=1e-15)
        assert float(run.matrices["F"]) == pytest.approx(1 - 0.1 * slope * 2, rel=1e-15)


def test_a_mask_does_not_make_placeholders_the_truth(here, tmp_path):
    (tmp_path / "z.csv").write_text("1,2\n3,0\n")
    line = ("problem=file", "problem.path=z.csv", "problem.mask=z.csv", "rank=1", "lr=0.02")
    done = here(*line, "steps=2000", "tolerance=1e-6")
    assert done.returncode == 0, done.stderr
    run = package.load_runs().iloc[0]
    assert run["tags.outcome"] == "converged"
    assert run["metrics.final_relative_error"] < 1e-6
    here(*line, "steps=2000", "problem.truth=true")
    # Rank 1 through 1, 2 and 3 has 6 where the file has 0.
    expected = 6 / np.sqrt(14)
    error = package.load_runs().iloc[0]["metrics.final_relative_error"]
    assert error == pytest.approx(expected, rel=1e-3)


def children(experiment) -> pandas.DataFrame:
    (parent,) = package.load_runs(experiment=experiment)["parent"].dropna().unique()
    return package.load_runs(experiment=experiment, parent=parent)


@pytest.mark.slow
def test_launchers_lots_and_trackers_give_the_same_results(here, tmp_path):
    line = ("--multirun", "steps=50", "rank=1,2", "init=normal,uniform")
    # Several processes side by side: the numbers do not depend on how many there are.
    done = mfgd(*line, "tracking.figures=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tables = [children("mfgd")]
    store = ("workers=1", "tracking.figures=0", "tracking.experiment=lots")
    memory = ("tracking=memory",)
    for way in (
        ("hydra.sweeper.max_batch_size=3", *store),
        ("hydra.sweeper.max_batch_size=3", *memory),
        ("hydra/launcher=basic", *memory),
        ("hydra/launcher=batch", *memory),
    ):
        done = here(*line, *way)
        assert done.returncode == 0, done.stderr
        tracker = here.session.tracker
        if way[-1] == "tracking=memory":
            tables.append(tracker.finish("FINISHED", [], []))
        else:
            tables.append(children("lots"))
    first, *others = (table.sort_values(["params.rank", "params.init"]) for table in tables)
    values = []
    for name in first:
        group, _, key = name.partition(".")
        apart = key.startswith("tracking") or key in ("workers", "overrides")
        if group in ("params", "metrics", "tags") and not apart and "seconds" not in key:
            values.append(name)
    assert len(values) > 45
    for runs in others:
        assert runs["parent"].nunique() == 1
        assert len(runs) == 4
        assert {name for name in runs if "tracking." not in name} == {
            name for name in first if "tracking." not in name
        }
        left, right = (table[values].reset_index(drop=True) for table in (first, runs))
        pandas.testing.assert_frame_equal(left, right, check_exact=True)


def test_the_memory_tracker_prints_the_best_runs_and_writes_nothing(here, tmp_path):
    done = here("--multirun", "steps=20", "rank=1,2,3", "workers=2", "tracking=memory")
    assert done.returncode == 0
    title, *lines, last = (re.split(r"\s{2,}", line) for line in done.stdout.splitlines())
    assert title[4] == "relative error"
    errors = [float(line[4]) for line in lines]
    assert len(errors) == 3
    assert errors == sorted(errors)
    assert last == ["kept in memory, gone with this process"]
    assert list(tmp_path.iterdir()) == []
    assert [point.rank for point, _ in here.session.tracker.runs] == [1, 2, 3]


TRACKER = """
class Printer:
    shared, parent = False, None

    def __init__(self, prefix):
        self.prefix, self.lines = prefix, []

    def open(self, sweep):
        self.lines.append(" ".join(sweep))

    def expect(self, runs):
        self.lines.append(f"{runs} runs")

    def write(self, point, result, problem):
        self.lines.append(f"rank {point.rank}: {result.outcome}, {problem.shape}")
        return str(len(self.lines))

    def finish(self, status, run_ids, unfinished):
        import pandas
        self.lines.append(f"{status} {len(run_ids)} {len(unfinished)}")
        return pandas.DataFrame()

    def location(self):
        return "\\n".join(self.prefix + line for line in self.lines)


def tracker(*, prefix, **keys):
    return Printer(prefix)
"""


@pytest.mark.parametrize("option", ["store", "memory"])
def test_a_users_own_tracker_from_the_shell(here, tmp_path, option):
    (tmp_path / "trackers.py").write_text(TRACKER)
    done = here(
        "--multirun",
        "tracking._target_=trackers.tracker",
        "+tracking.prefix='> '",
        f"tracking={option}",
        "rank=1,2",
        "steps=9",
    )
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first.startswith("> --multirun tracking._target_=trackers.tracker")
    assert lines == [
        "> 2 runs",
        "> rank 1: budget, (3, 4)",
        "> rank 2: budget, (3, 4)",
        "> FINISHED 2 0",
    ]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["trackers.py"]


COMPONENTS = """
import os
import torch
import mfgd


def cauchy(*, width, **objective):
    return mfgd.loss.residual_loss(lambda r: torch.log1p((r / width).square()), **objective)


def deadly(*, width, **objective):
    if (torch.as_tensor(width) == 2).any():
        os._exit(7)
    return mfgd.loss.residual_loss(torch.square, **objective)


def broken(*, width, **objective):
    def value(r):
        if (torch.as_tensor(width) == 2).any():
            raise ArithmeticError("the width is two")
        return r.square() * width
    return mfgd.loss.residual_loss(value, **objective)
"""


def test_a_users_own_loss_from_the_shell(here, tmp_path):
    (tmp_path / "losses.py").write_text(COMPONENTS)
    own = ("loss._target_=losses.cauchy", "+loss.width=2.0", "loss.scale=4")
    done = here(*own, "steps=200", "tracking=memory")
    assert (done.returncode, done.stderr) == (0, "")
    ((point, row),) = here.session.tracker.runs
    params = point.params()
    assert (params["loss"], params["loss.width"]) == ("losses.cauchy", 2.0)
    C, F = row.factors
    residual = (C @ F - package.problem.notebook().D).numpy()
    expected = 4 * np.log1p((residual / 2) ** 2).sum()
    assert row.trajectory["loss"][-1] == pytest.approx(expected, rel=1e-12)


def test_a_run_that_raises_fails_alone(here, tmp_path):
    (tmp_path / "losses.py").write_text(COMPONENTS)
    line = ("--multirun", "loss._target_=losses.broken", "+loss.width=1.0,2.0,3.0", "steps=9")
    done = here(*line, "tracking.figures=0")
    assert done.returncode == 1
    assert "1 of 3 runs FAILED" in done.stdout
    assert "Traceback" not in done.stderr
    assert sorted(statuses(tmp_path)) == ["FAILED", "FAILED", "FINISHED", "FINISHED"]
    runs = package.load_runs().dropna(subset="parent").set_index("params.loss.width")
    assert runs["tags.outcome"].to_dict() == {"1.0": "budget", "2.0": "error", "3.0": "budget"}
    (traceback,) = tmp_path.rglob(f"{runs.loc['2.0', 'run_id']}/artifacts/traceback.txt")
    assert "ArithmeticError: the width is two" in traceback.read_text()
    done = here(*line, "tracking=memory")
    assert done.returncode == 1
    assert "1 of 3 runs FAILED" in done.stdout
    assert "ArithmeticError: the width is two" in done.stderr
    (error,) = (
        result for point, result in here.session.tracker.runs if point.loss.arguments["width"] == 2
    )
    assert isinstance(error, ArithmeticError)


@pytest.mark.slow
def test_a_run_that_takes_its_process_down_fails_alone(tmp_path, monkeypatch):
    (tmp_path / "losses.py").write_text(COMPONENTS)
    widths = ",".join(f"{width}.0" for width in range(1, 41))
    line = (
        "--multirun",
        "loss._target_=losses.deadly",
        f"+loss.width={widths}",
        "steps=9",
        "tracking.figures=0",
    )
    done = mfgd(*line, cwd=tmp_path)
    assert done.returncode == 1
    assert "1 of 40 runs FAILED" in done.stdout
    monkeypatch.chdir(tmp_path)
    runs = package.load_runs().dropna(subset="parent").set_index("params.loss.width")
    assert len(runs) == 40
    assert runs.index[runs["status"] != "FINISHED"].tolist() == ["2.0"]
    (traceback,) = tmp_path.rglob(f"{runs.loc['2.0', 'run_id']}/artifacts/traceback.txt")
    assert "died with exit code 7" in traceback.read_text()


@pytest.mark.slow
def test_interruption_leaves_nothing_running(tmp_path):
    line = ("--multirun", "seed=range(40)", "batch_bytes=1", "steps=20000", "tracking.figures=0")
    process = subprocess.Popen(
        [sys.executable, "-m", "mfgd", *line],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
        if list(tmp_path.glob("mlartifacts/*/*/artifacts/config.yaml")):
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    found = statuses(tmp_path)
    assert found.count("KILLED") == 1  # the parent; what was solved is written whole
    assert found.count("FINISHED") == len(found) - 1
    assert 2 <= len(found) < 40
    (rest,) = tmp_path.glob("mlartifacts/*/*/artifacts/unfinished.txt")
    assert len(rest.read_text().splitlines()) == 40 - (len(found) - 1)


def test_help_names_the_vocabulary(here):
    done = here("--help")
    assert done.returncode == 0
    losses = (
        "absolute, beta, huber, kullback_leibler, logcosh, logistic, poisson, quantile, squared"
    )
    assert f"loss: {losses}" in done.stdout
    assert "rank: 2" in done.stdout
