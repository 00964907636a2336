"""How fast mfgd is, as ratios to how it is done without it. `make bench` runs all, `python tests/bench.py NAME…` some.

Ours and the baseline alternate in one process, at least five times after a warm-up; a ratio is the median of theirs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from mfgd import loss, optimizer
from mfgd.descent import Objective, descent, interleaved, interleaves
from mfgd.problem import Problem

REPEATS = 5


class Line(NamedTuple):
    """One comparison."""

    what: str
    ours: float
    baseline: float
    unit: str
    against: str
    ratio: float
    """Of the baseline to ours, or of what is measured to its limit."""
    low: float
    high: float
    target: str


def compare(
    what: str,
    ours: Callable[[], float],
    baseline: Callable[[], float],
    *,
    against: str,
    target: str,
    unit: str = "µs",
    inverse: bool = False,
) -> Line:
    """Median of the ratios of what the two report, in turns."""
    ours(), baseline()
    pairs = [(ours(), baseline()) for _ in range(REPEATS)]
    ratios = [a / b if inverse else b / a for a, b in pairs]
    mine, theirs = (median(column) for column in zip(*pairs, strict=True))
    return Line(what, mine, theirs, unit, against, median(ratios), min(ratios), max(ratios), target)


def clock(work: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def draw(n: int, m: int, rank: int, runs: int, dtype: torch.dtype, observed: float = 1.0):
    """Targets of that rank with a largest singular value near 1, masks and starts, one of each a run."""
    generator = torch.Generator().manual_seed(0)

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    D = gaussian(runs, n, rank) @ gaussian(runs, rank, m) / (n * m) ** 0.5
    mask = None
    if observed < 1:
        mask = (torch.rand((runs, n, m), generator=generator) < observed).to(dtype)
    C, F = 0.3 * gaussian(runs, n, rank) / n**0.5, 0.3 * gaussian(runs, rank, m) / m**0.5
    D = D.to(dtype)
    return D if mask is None else D * mask, mask, (C.to(dtype), F.to(dtype))


def notebook(D: Tensor, mask: Tensor | None, factors: tuple[Tensor, Tensor], steps: int, lr: float) -> list[float]:
    """The founding notebook's loop, with its autograd and its loss of every step."""
    C, F = (W.clone().requires_grad_() for W in factors)
    losses = []
    for _ in range(steps):
        R = D - C @ F if mask is None else mask * (D - C @ F)
        total = (R**2).sum()
        losses.append(total.item())
        total.backward()
        with torch.no_grad():
            C -= lr * C.grad
            F -= lr * F.grad
        C.grad.zero_()
        F.grad.zero_()
    return losses


def solved(D: Tensor, mask: Tensor | None, factors: tuple[Tensor, ...], steps: int, lr: float, bytes_: int) -> None:
    """The same of a batch of runs, in pieces of so many bytes."""
    n, m = D.shape[-2:]
    size = max(1, bytes_ // (D[0].nbytes * (2 if mask is None else 3) + 3 * sum(W[0].nbytes for W in factors)))
    squared = loss.squared(scale=1.0, reduction="sum", penalty=0.0)
    stack = interleaved if interleaves(n, factors[0].shape[-1], m, min(size, len(D)), "cpu") else torch.stack
    for start in range(0, len(D), size):
        D_, mask_, *factors_ = (
            None if X is None else stack(list(X[start : start + size])) for X in (D, mask, *factors)
        )
        objective = Objective(Problem(D_, mask_), squared)
        rates = torch.full((len(D_), 1, 1), lr, dtype=D.dtype)
        for _ in descent(objective, optimizer.gd(), tuple(factors_), lr=rates, records=[steps]):
            pass


def solver(n: int, m: int, rank: int, runs: int, dtype: torch.dtype, steps: int, base: int, target: str, **how) -> Line:
    """Microseconds per run and step, one thread, against the notebook's loop."""
    observed, threads = how.get("observed", 1.0), how.get("threads", 1)
    torch.set_num_threads(threads)
    D, mask, factors = draw(n, m, rank, runs, dtype, observed)
    one = (D[0], None if mask is None else mask[0], tuple(W[0] for W in factors))
    try:
        return compare(
            f"{runs:,} × {n}×{m} rank {rank}"
            + (f", {observed:.0%} observed" if mask is not None else "")
            + f", {str(dtype)[6:]}"
            + (f", {threads} threads" if threads > 1 else ""),
            lambda: clock(lambda: solved(D, mask, factors, steps, 0.05, 2_000_000)) / runs / steps * 1e6,
            lambda: clock(lambda: notebook(*one, base, 0.05)) / base * 1e6,
            against="notebook loop",
            target=target,
        )
    finally:
        torch.set_num_threads(1)


BENCHES: dict[str, Callable[[], Line | list[Line]]] = {
    "tiny": lambda: solver(3, 4, 2, 1000, torch.float64, 10_000, 10_000, "≥ 450"),
    "medium": lambda: solver(100, 80, 10, 256, torch.float32, 500, 3000, "≥ 8"),
    "masked": lambda: solver(60, 60, 5, 1000, torch.float64, 400, 3000, "≥ 13", observed=0.3),
    "large": lambda: solver(2000, 2000, 50, 1, torch.float32, 400, 60, "≥ 4", threads=2),
}


def main() -> None:
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    lines: list[Line] = []
    for name in sys.argv[1:] or BENCHES:
        made = BENCHES[name]()
        for line in made if isinstance(made, list) else [made]:
            lines.append(line)
            print(
                f"{line.what:<48} {line.ours:10.4g} {line.baseline:10.4g} {line.unit:<3} {line.ratio:8.3g} "
                f"({line.low:.3g} to {line.high:.3g})  {line.target:<8} {line.against}",
                flush=True,
            )
    machine = {"cores": os.cpu_count(), "torch": torch.__version__}
    Path("bench.json").write_text(
        json.dumps({"machine": machine, "lines": [line._asdict() for line in lines]}, indent=2)
    )


if __name__ == "__main__":
    main()
