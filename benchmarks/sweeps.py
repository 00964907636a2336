"""The cost of records and of diagnostics in a sweep."""

from dataclasses import replace

from benchmarks import core
from benchmarks.timing import Comparison, clock, compare
from mfgd.config import Point

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
