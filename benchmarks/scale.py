"""Large sweeps: what a further run costs, what an engine costs, what a search saves."""

import sqlite3
import tempfile
from pathlib import Path

from benchmarks.command import GRID, run_module, run_sweep
from benchmarks.timing import Comparison, compare

SHORT = (*GRID[:-1], "steps=1000")
"""40 runs a seed."""
ENGINES = ("joblib", "submitit_local")
CELLS = (
    *("problem=synthetic", "problem.n=10", "problem.m=8", "problem.rank=3", "lr_unit=sigma1"),
    *("rank=1,2,3,4", "init.scale=0.1,0.3", "steps=1000"),
)
"""Eight cells, in each of which gradient descent diverges beyond some rate."""
LOW, WIDTH, COUNT = 0.5, 0.01, 128
"""The least rate, the resolution, and how many steps of that width the rates have."""


def compare_growth() -> list[Comparison]:
    """Milliseconds a run beyond the first 40, of a sweep of 4,000 and of one of 1,000."""
    start = 0.0  # seconds that 40 runs take, in each turn anew

    def per_run(seeds: int) -> float:
        return (run_sweep(*SHORT, f"seed=range({seeds})") - start) / (40 * (seeds - 1)) * 1000

    def ours() -> float:
        nonlocal start
        start = run_sweep(*SHORT, "seed=0")
        return per_run(100)

    return [
        compare(
            "a run of a sweep of 4,000, its first 40 not counted",
            ours,
            lambda: per_run(25),
            against="of 1,000",
            target="≤ 1.1",
            unit="ms",
            inverse=True,
            repeats=2,
            warm_up=False,
        )
    ]


def compare_engines() -> list[Comparison]:
    """Seconds of a sweep of 480 runs on engines, against processes of mfgd."""
    line = (*SHORT, "seed=range(12)", "workers=2")

    def compare_engine(name: str) -> Comparison:
        return compare(
            f"480 × 3×4, 1,000 steps, end to end, hydra/launcher={name}",
            lambda: run_sweep(*line, f"hydra/launcher={name}"),
            lambda: run_sweep(*line),
            against="batch",
            unit="s",
            inverse=True,
            repeats=2,
            warm_up=False,
        )

    return [compare_engine(name) for name in ENGINES]


def compare_frontier() -> list[Comparison]:
    """Runs and seconds to find the largest stable rate of eight cells, against the whole grid."""
    high = LOW + WIDTH * COUNT
    search = ("hydra/sweeper=frontier", f"lr=interval({LOW},{high})")
    search = (*search, f"hydra.sweeper.resolution={WIDTH}")
    runs: dict[str, float] = {}

    def sweep(name: str, *line: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            seconds = run_module("mfgd", [*CELLS, *line], folder)
            with sqlite3.connect(Path(folder, "mlflow.db")) as store:
                ((count,),) = store.execute("select count(*) from runs")
        runs[name] = count - 1  # the sweep's own
        return seconds

    seconds = compare(
        f"frontier of lr in 8 cells, to {WIDTH:g} of {high - LOW:g}",
        lambda: sweep("frontier", *search),
        lambda: sweep("grid", f"lr=range({LOW},{high + WIDTH / 2},{WIDTH})"),
        against="the grid",
        unit="s",
        repeats=2,
        warm_up=False,
    )
    ratio = runs["grid"] / runs["frontier"]
    counted = seconds._replace(
        unit="runs",
        ours=runs["frontier"],
        baseline=runs["grid"],
        ratio=ratio,
        low=ratio,
        high=ratio,
    )
    return [counted, seconds]
