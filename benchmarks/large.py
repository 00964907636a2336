"""Large matrices, full or with few observed entries: peak memory, and the cost of a step.

Run as a script this module measures the memory of its own process: `measure_peak` starts it.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import core
from benchmarks.timing import Comparison, Work, clock, compare, compare_memory, threads
from mfgd.problem import Problem

ROOT = Path(__file__).parents[1]
MIB = 2**20
STEPS = 20
RANK = 10
MOVIELENS = {
    "943×1682, 100,000 ratings": (943, 1682, 100_000),
    "10,000×5,000, 1,000,000": (10_000, 5_000, 1_000_000),
}
"""Numbers of users, items and ratings."""


def read_peak() -> int:
    """The peak memory of this process so far, in bytes (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) * 1024


def measure_peak(small: Sequence[str], large: Sequence[str]) -> float:
    """MiB by which a large run raises the peak memory of a process that has solved a small run."""
    command = [sys.executable, "-m", "benchmarks.large", *small, "--", *large]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout) / MIB


def compare_memory_of_full() -> list[Comparison]:
    """Peak memory of one run with a large full matrix, over the size of the matrix."""
    size = 4000
    line = ("problem=synthetic", "problem.rank=20", "rank=20", f"steps={STEPS}", "init=normal")
    small = (*line, "problem.n=300", "problem.m=300")
    large = (*line, f"problem.n={size}", f"problem.m={size}")
    what = f"peak memory of 1 × {size}×{size} rank 20, float64"
    D = size * size * 8 / MIB
    return [compare_memory(what, measure_peak(small, large), D, against="D", target="≤ 3")]


def write_ratings(users: int, items: int, count: int) -> Path:
    """Writes ratings in MovieLens' format, at least one of each user and of each item."""
    generator = np.random.default_rng(0)
    each_user = np.arange(users) * items + np.arange(users) % items
    each_item = np.arange(items) + (np.arange(items) % users) * items
    ends = np.union1d(each_user, each_item)
    others = np.setdiff1d(generator.integers(0, users * items, 2 * count), ends)
    flat = np.sort(np.r_[ends, generator.choice(others, count - len(ends), replace=False)])
    columns = (flat // items, flat % items, generator.integers(1, 6, count), np.zeros(count, int))
    path = Path(f"{count}.data").resolve()
    np.savetxt(path, np.column_stack(columns), fmt="%d", delimiter="\t")
    return path


def time_step(problem: Problem) -> Work:
    """Milliseconds of a step of gradient descent."""
    n, m = problem.shape
    start = [0.1 * torch.randn(1, *shape, dtype=torch.float64) for shape in ((n, RANK), (RANK, m))]

    def work() -> float:
        seconds = clock(lambda: list(core.descend(problem, start, lr=1e-5, records=[STEPS])))
        return seconds / STEPS * 1000

    return work


def compare_ratings() -> list[Comparison]:
    """Steps on ratings: the smaller set against a dense matrix under a mask, the larger against it.

    Each set has a row for its peak memory as well.
    """
    rows: list[Comparison] = []
    settings = (f"rank={RANK}", f"steps={STEPS}", "init=normal")
    few = ("problem=ratings", f"problem.path={write_ratings(30, 20, 100)}", *settings)
    baseline, against = None, "dense under a mask"
    with threads(2):
        for name, size in MOVIELENS.items():
            line = ("problem=ratings", f"problem.path={write_ratings(*size)}", *settings)
            problem = core.load(core.point(*line))
            step = time_step(problem)
            if baseline is None:
                D, mask = core.dense_pair(problem)
                baseline = time_step(core.observe(D[None], mask[None]))
            what = f"a step of {name}, rank {RANK}, 2 threads"
            rows.append(compare(what, step, baseline, against=against, unit="ms"))
            baseline, against = step, name
            what = f"peak memory of {name}, rank {RANK}, reading them included"
            data = size[2] * 12 / MIB  # a rating and its column
            peak = measure_peak(few, line)
            rows.append(compare_memory(what, peak, data, against="ratings and columns", target="–"))
    return rows


if __name__ == "__main__":
    arguments = sys.argv[1:]
    middle = arguments.index("--")
    core.solve([core.point(*arguments[:middle])])
    before = read_peak()
    core.solve([core.point(*arguments[middle + 1 :])])
    print(read_peak() - before)
