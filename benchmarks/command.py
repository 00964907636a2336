"""The cost around the solver: composing jobs, tracking runs, the whole command."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra

from benchmarks import core
from benchmarks.timing import Comparison, clock, compare
from mfgd import config

ROOT = Path(__file__).parents[1]
GRID = (
    "rank=1,2",
    "lr=1e-3,2e-3,3e-3,4e-3,5e-3",
    "loss=squared,huber",
    "init=uniform,normal",
    "seed=range(25)",
)
"""1,000 runs of the notebook's problem: mixed ranks, rates, losses, initializations and seeds."""
FEW = (*GRID[:-2], "init=uniform")
"""20 of them."""


def compare_composition() -> list[Comparison]:
    """Milliseconds a job until its task has a checked point, against Hydra's with an empty task."""

    def multirun(task: Callable[[Any], Any], *line: str) -> None:
        sys.argv[1:] = ["--multirun", *line]
        hydra.main(version_base="1.3", config_path=str(config.CONF), config_name="config")(task)()

    def ours() -> float:
        def task(jobs: Any) -> list[float]:
            return [config.read_job(job).lr[0] for job in jobs]

        return clock(lambda: multirun(task, *GRID))  # seconds for 1,000 jobs

    def theirs() -> float:
        return clock(lambda: multirun(lambda job: 0.0, *FEW, "hydra/launcher=basic")) / 20 * 1000

    arguments = sys.argv[1:]
    try:
        return [
            compare(
                "composing a job, of 1,000",
                ours,
                theirs,
                against="Hydra's own",
                target="≤ 3 ms",
                unit="ms",
            )
        ]
    finally:
        sys.argv[1:] = arguments


def compare_tracking() -> list[Comparison]:
    """Milliseconds a run of a sweep of 1,000, against bare MLflow calls for the same content."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    first = core.point("rank=2", "lr=0.005", "steps=1000")
    points = [replace(first, seed=seed) for seed in range(50)]
    rows = core.solve(points)
    tracker = core.open_tracker(first, runs=1000)
    problem = core.load(first)
    client = MlflowClient(tracker.uri)
    written = client.get_run(tracker.write(first, rows[0], problem))
    artifacts = written.info.artifact_uri.removeprefix("file://")
    tags = {key: value for key, value in written.data.tags.items() if key != "mlflow.runName"}
    contents = []
    for point, row in zip(points, rows, strict=True):
        logged = core.logged_metrics(point, row, most=tracker.points // 1000)
        metrics = [Metric(*values) for values in logged]
        params = [Param(*pair) for pair in written.data.params.items()]
        contents.append((metrics, params))

    def track() -> None:
        tracker.write_together([(*pair, problem) for pair in zip(points, rows, strict=True)])

    def call_mlflow() -> None:
        for metrics, params in contents:
            run = client.create_run(tracker.sender.experiment_id, tags=tags, run_name="bare")
            run_id = run.info.run_id
            client.log_batch(run_id, metrics=metrics, params=params)
            client.log_artifacts(run_id, artifacts)
            client.set_terminated(run_id)

    return [
        compare(
            "tracking a run, of 1,000",
            lambda: clock(track) / len(points) * 1000,
            lambda: clock(call_mlflow) / len(points) * 1000,
            against="bare MLflow calls",
            target="≤ .25",
            unit="ms",
            inverse=True,
        )
    ]


def run_module(module: str, line: Sequence[str], folder: str) -> float:
    """Seconds of a multirun of a module, as a command in a folder."""
    command = [sys.executable, "-m", module, "--multirun", *line]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    return clock(
        lambda: subprocess.run(
            command, cwd=folder, check=True, capture_output=True, env=environment
        )
    )


def run_sweep(*line: str, module: str = "mfgd") -> float:
    """Seconds of a multirun in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return run_module(module, line, folder)


def compare_command() -> list[Comparison]:
    """Milliseconds a run of the whole command, against a program by hand, timed on 20 runs."""

    def by_hand(*line: str) -> float:
        return run_sweep("hydra/launcher=basic", *line, module="benchmarks.by_hand")

    # Imports and the new database are paid once for a thousand runs, so they are left out.
    start = by_hand("rank=1,2")
    return [
        compare(
            "1,000 × 3×4, 10,000 steps, end to end",
            lambda: run_sweep(*GRID),  # seconds for 1,000 runs are milliseconds a run
            lambda: (by_hand(*FEW) - start) / 18 * 1000,
            against="Hydra's basic launcher, notebook loop, MLflow's fluent API",
            target="≥ 200, ≤ 8 ms",
            unit="ms",
        )
    ]
