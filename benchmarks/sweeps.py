"""The cost of records, of diagnostics and of replicates in a sweep."""

from dataclasses import replace

from benchmarks import core
from benchmarks.timing import Comparison, clock, compare
from mfgd.point import Point

ENDS_ONLY = "record.steps=[]"
"""Records at the first and the last step only."""
DIAGNOSTICS = ("basic", "dynamics", "full")


def seeds(count: int, *line: str) -> list[Point]:
    """The same run at that many seeds."""
    first = core.point(*line)
    return [replace(first, seed=seed) for seed in range(count)]


def compare_records() -> list[Comparison]:
    """A batch with the default's 40 records, all measures taken, and with two records."""
    line = ("rank=2", "lr=0.005", "steps=10000")
    many, two = seeds(1000, *line), seeds(1000, *line, ENDS_ONLY)
    return [
        compare(
            "1,000 × 3×4, 10,000 steps, with 40 records",
            lambda: clock(lambda: core.solve(many)),
            lambda: clock(lambda: core.solve(two)),
            against="with 2",
            target="≤ 1.1",
            unit="s",
            inverse=True,
        )
    ]


def compare_replicates() -> list[Comparison]:
    """A cell of a phase diagram, each trial another matrix, against its descents alone."""
    line = ("problem=synthetic", "problem.n=20", "problem.m=20", "problem.rank=2", "rank=5")
    line = (*line, "problem.observed=0.4", "steps=1000", "lr=0.3", "lr_unit=sigma1", ENDS_ONLY)
    cell = core.point(*line, "replicates=100", "problem.seed=${seed}")
    problem, batch = core.prepare(core.list_replicates(cell))

    def descend() -> None:
        for _ in core.descend(problem, batch, lr=0.1, records=[0, 1000]):
            pass

    return [
        compare(
            "a trial of 20×20 rank 5, 40% observed, 1,000 steps, of 100 replicates",
            lambda: clock(lambda: core.solve_replicates(cell)) * 10,  # milliseconds a trial
            lambda: clock(descend) * 10,
            against="its steps alone",
            unit="ms",
            inverse=True,
        )
    ]


def compare_diagnostics() -> list[Comparison]:
    """Each level of diagnostics at the default's 40 records, against the basic one with two."""
    problem = ("problem=synthetic", "problem.rank=10", "problem.condition=5")
    line = (*problem, "rank=10", "init=normal", "init.scale=0.1", "lr=0.1", "steps=2000")
    two = seeds(16, *line, ENDS_ONLY)

    def compare_level(level: str) -> Comparison:
        points = seeds(16, *line, f"diagnostics={level}")
        return compare(
            f"16 × 100×80 rank 10, 2,000 steps, 40 records, diagnostics={level}",
            lambda: clock(lambda: core.solve(points)),
            lambda: clock(lambda: core.solve(two)),
            against="basic, 2 records",
            unit="s",
            inverse=True,
        )

    return [compare_level(level) for level in DIAGNOSTICS]
