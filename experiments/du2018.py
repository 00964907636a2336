"""Du, Hu, Lee 2018, Algorithmic regularization in learning deep homogeneous models: layers are
automatically balanced.

Gradient descent keeps the balance CᵀC − FFᵀ of its start, up to a drift that is proportional to the
rate.

Along gradient flow CᵀC − FFᵀ is constant (theorem 2.2). Because CᵀG_C = G_F Fᵀ, a step W ← W − lr G
changes CᵀC − FFᵀ by exactly lr² (G_CᵀG_C − G_F G_Fᵀ), and 1/lr steps by an amount in proportion to
lr.

Start: entries of standard deviation ½ in C and 0.1 in F; D is 40 × 30 of rank 5, κ = 5, and k = 5.
The drift is the change of the norm ‖CᵀC − FFᵀ‖ at lr · step = 40, relative to the norm at the
start. The published numbers are numbers of another draw.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pandas
import torch
from matplotlib.figure import Figure

from experiments import THEORY, Claim, between, loaded
from mfgd.init import Init, normal
from mfgd.palette import BLUE, mode_colours
from mfgd.problem import Problem
from mfgd.tracking import Run
from mfgd.types import Factors, Positive

SWEEPS = {"du2018": ("steps=8000", "lr=0.02,0.01,0.005"), "du2018_step": ("steps=1,2,1000,1001",)}
PUBLISHED = {0.04: 7.85e-3, 0.02: 3.27e-3, 0.01: 1.51e-3, 0.005: 7.29e-4, 0.0025: 3.58e-4}
"""Rate → drift."""
TIME = 40.0
"""lr · step at which the drift is measured."""


def unbalanced(*, left: Positive, right: Positive) -> Init:
    """Independent Gaussian entries, of standard deviation ``left`` in C and ``right`` in F."""
    draw = normal(scale=1.0, ratio=1.0)

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        C, F = draw(problem, widths, generator)
        return left * C, right * F

    return start


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    drifts = {lr: drift(run) for lr, run in by_rate(runs).items()}
    for fast, slow in pairwise(drifts):
        if fast <= 0.02:
            yield between(
                f"drift at lr = {fast:g} over that at {slow:g}",
                drifts[fast] / drifts[slow],
                1.9,
                2.3,
            )
    stopped = sorted(loaded(runs[runs["sweep"] == "du2018_step"]), key=lambda run: run.config.steps)
    for before, after in zip(stopped[::2], stopped[1::2], strict=True):
        changed, predicted = change_by_step(before, after)
        where = f"step {after.config.steps}"
        size, residual = (float(torch.linalg.norm(X)) for X in (changed, changed - predicted))
        text = f"{where}: ‖change − lr² (G_CᵀG_C − G_F G_Fᵀ)‖, of a change of {size:.1g}"
        yield between(text, residual, high=1e-12)


def by_rate(runs: pandas.DataFrame) -> dict[float, Run]:
    """Rate → run, the largest first."""
    tracked = loaded(runs[runs["sweep"] == "du2018"])
    return {run.config.lr: run for run in sorted(tracked, key=lambda run: -run.config.lr)}


def find_drifts(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """lr · step of each record, and the drift at the record."""
    balance = run.trajectory["balance"].to_numpy()
    return run.config.lr * run.trajectory["step"].to_numpy(), np.abs(balance / balance[0] - 1)


def drift(run: Run) -> float:
    """The drift at the record at lr · step = 40."""
    times, drifts = find_drifts(run)
    (at,) = np.flatnonzero(np.isclose(times, TIME))
    return float(drifts[at])


def change_by_step(before: Run, after: Run) -> tuple[torch.Tensor, torch.Tensor]:
    """The change of CᵀC − FFᵀ by a step, and the change that theory predicts."""
    C, F, D = (before.matrices[name] for name in ("C", "F", "D"))
    residual = C @ F - D
    G_C, G_F = residual @ F.mT, C.mT @ residual
    predicted = before.config.lr**2 * (G_C.mT @ G_C - G_F @ G_F.mT)
    return invariant(after.matrices["C"], after.matrices["F"]) - invariant(C, F), predicted


def invariant(C: torch.Tensor, F: torch.Tensor) -> torch.Tensor:
    """CᵀC − FFᵀ, which gradient flow does not change."""
    return C.mT @ C - F @ F.mT


def figure(runs: pandas.DataFrame) -> Figure:
    canvas = Figure(figsize=(10, 3.9), layout="constrained", dpi=110)
    left, right = canvas.subplots(1, 2)
    tracked = by_rate(runs)
    looks = zip(tracked.items(), mode_colours(len(tracked)), "os^Dv", strict=False)
    for (lr, run), colour, marker in looks:
        times, drifts = find_drifts(run)
        left.plot(
            times[1:],
            drifts[1:],
            f"{marker}-",
            color=colour,
            markersize=3,
            linewidth=1,
            label=f"lr = {lr:g}",
        )
    left.axvline(TIME, **THEORY)
    left.set(xscale="log", yscale="log", xlabel="t = lr · step", ylabel="drift")
    left.set_title("‖CᵀC − FFᵀ‖, change relative to the start")
    rates = np.array(list(tracked))
    ends = [drift(run) for run in tracked.values()]
    right.loglog(rates, ends, "o", color=BLUE, markersize=7, label="measured")
    right.loglog(
        list(PUBLISHED),
        list(PUBLISHED.values()),
        "kx",
        markersize=8,
        label="published, another draw",
    )
    line = np.array([rates.min() / 1.3, rates.max() * 1.3])
    right.loglog(line, line * ends[-1] / rates[-1], **THEORY, label="proportional to lr")
    right.set(xlabel="lr", ylabel="drift at t = 40", title="The drift is proportional to the rate")
    right.set(xticks=rates, xticklabels=[f"{lr:g}" for lr in rates])
    right.set(yticks=ends, yticklabels=[f"{value:.2g}" for value in ends])
    right.minorticks_off()
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return canvas
