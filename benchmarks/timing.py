"""Compares what two ways of doing the same work cost."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple

import torch

REPEATS = 5
REST = 0.2
"""Seconds. The threads of an OpenBLAS wait for more work so long without leaving their cores."""

Work = Callable[[], float]
"""Does the work once and returns its cost."""


class Comparison(NamedTuple):
    """One row of the table: the costs of ours and of the baseline, and their ratio."""

    what: str
    unit: str
    ours: float
    baseline: float
    against: str
    ratio: float
    low: float
    high: float
    target: str

    def as_row(self) -> str:
        costs = f"{self.ours:.3g} | {self.baseline:.3g} {self.unit} | {self.against}"
        ratio = f"{self.ratio:.3g} ({self.low:.3g} to {self.high:.3g})"
        return f"| {self.what} | {costs} | {ratio} | {self.target} |"


def compare(
    what: str,
    ours: Work,
    baseline: Work,
    *,
    against: str,
    target: str = "–",
    unit: str = "µs",
    inverse: bool = False,
    repeats: int = REPEATS,
    warm_up: bool = True,
) -> Comparison:
    """Measures the two in turns, five times after a warm-up; all numbers are medians.

    The ratio is baseline/ours. `inverse` makes it ours/baseline, for a cost that has a limit. A
    command that takes long starts cold each time: it has fewer repeats and no warm-up.
    """
    if warm_up:
        ours()
        baseline()
    costs, limits, ratios = [], [], []
    for _ in range(repeats):
        time.sleep(REST)
        cost = ours()
        time.sleep(REST)
        limit = baseline()
        costs.append(cost)
        limits.append(limit)
        ratios.append(cost / limit if inverse else limit / cost)
    middle = median(ratios), min(ratios), max(ratios)
    return Comparison(what, unit, median(costs), median(limits), against, *middle, target)


def compare_memory(what: str, ours: float, data: float, *, against: str, target: str) -> Comparison:
    """A peak of memory over the size of the data, both in MiB; measured once."""
    ratio = ours / data
    return Comparison(what, "MiB", ours, data, against, ratio, ratio, ratio, target)


def clock(work: Callable[[], object]) -> float:
    """Seconds that the work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Gives torch that many threads, and one again afterwards."""
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(1)
