"""The command line, as a process."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pandas
import pytest
from conftest import mfgd

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
    assert last.endswith("http://127.0.0.1:5000/#/experiments/1/runs")
    assert "16/16" in (demo / "stderr.txt").read_text()
    assert set(statuses(demo)) == {"FINISHED"}


def test_other_launchers_and_lots_give_the_same_results(here, tmp_path):
    line = ("--multirun", "steps=50", "rank=1,2", "init=normal,uniform", "tracking.figures=0")
    ways = {
        "batch": "hydra/launcher=batch",
        "basic": "hydra/launcher=basic",
        "lots": "hydra.sweeper.max_batch_size=3",
    }
    ways["alone"] = "hydra/launcher=batch"
    for name, way in ways.items():
        line_of = (*line, way, f"tracking.experiment={name}")
        # Several processes side by side for the first, whose numbers do not depend on how many there are.
        done = mfgd(*line_of, cwd=tmp_path) if name == "batch" else here(*line_of, "workers=1")
        assert done.returncode == 0, done.stderr
    ours, *others = (package.load_runs(experiment=name).dropna(subset="parent") for name in ways)
    kept = [
        name
        for name in ours
        if name.startswith(("params", "metrics", "tags")) and "seconds" not in name
    ]
    kept = [
        name
        for name in kept
        if name not in ("tags.overrides", "params.tracking.experiment", "params.workers")
    ]
    key = ["params.rank", "params.init"]
    for runs in others:
        assert runs["parent"].nunique() == 1
        assert len(runs) == 4
        pandas.testing.assert_frame_equal(
            *(r.sort_values(key, ignore_index=True)[kept] for r in (ours, runs))
        )


COMPONENTS = """
import os
import torch
import mfgd


def cauchy(*, width, **objective):
    return mfgd.loss.Loss(lambda r: torch.log1p((r / width).square()), **objective)


def deadly(*, width, **objective):
    if (torch.as_tensor(width) == 2).any():
        os._exit(7)
    return mfgd.loss.Loss(torch.square, **objective)


def broken(*, width, **objective):
    def value(r):
        if (torch.as_tensor(width) == 2).any():
            raise ArithmeticError("the width is two")
        return r.square() * width
    return mfgd.loss.Loss(value, **objective)
"""


def test_a_users_own_loss_from_the_shell(here, tmp_path):
    (tmp_path / "losses.py").write_text(COMPONENTS)
    line = (
        "loss._target_=losses.cauchy",
        "+loss.width=2.0",
        "loss.scale=4",
        "steps=200",
        "tracking.figures=0",
    )
    done = here(*line)
    assert (done.returncode, done.stderr) == (0, "")
    run = package.load_runs().iloc[0]
    assert (run["params.loss"], run["params.loss.width"]) == ("losses.cauchy", "2.0")
    _, trajectory, matrices = package.load_run(run["run_id"])
    residual = (matrices["C"] @ matrices["F"] - matrices["D"]).numpy()
    assert trajectory["loss"].iloc[-1] == pytest.approx(
        4 * np.log1p((residual / 2) ** 2).sum(), rel=1e-12
    )


def test_a_run_that_raises_fails_alone(here, tmp_path):
    (tmp_path / "losses.py").write_text(COMPONENTS)
    line = (
        "--multirun",
        "loss._target_=losses.broken",
        "+loss.width=1.0,2.0,3.0",
        "steps=9",
        "tracking.figures=0",
    )
    done = here(*line)
    assert done.returncode == 1
    assert "1 of 3 runs FAILED" in done.stdout
    assert "Traceback" not in done.stderr
    assert sorted(statuses(tmp_path)) == ["FAILED", "FAILED", "FINISHED", "FINISHED"]
    runs = package.load_runs().dropna(subset="parent").set_index("params.loss.width")
    assert runs["tags.outcome"].to_dict() == {"1.0": "budget", "2.0": "error", "3.0": "budget"}
    (traceback,) = tmp_path.rglob(f"{runs.loc['2.0', 'run_id']}/artifacts/traceback.txt")
    assert "ArithmeticError: the width is two" in traceback.read_text()


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
    assert "loss: absolute, huber, logcosh, squared" in done.stdout
    assert "rank: 2" in done.stdout
