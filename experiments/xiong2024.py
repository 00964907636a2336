"""Xiong, Ding, Du 2024, How over-parameterization slows down gradient descent in matrix sensing:
the curses of symmetry and initialization.

Above the rank of D descent on D ≈ U Uᵀ converges like 1/T²; at that rank, or on D ≈ C F, it
converges exponentially.

D is 50 × 50, symmetric, of rank r = 3 with σ = 1, ¾, ½, and all of it is observed; f(U) = ¼‖UUᵀ −
D‖², whose gradient is (UUᵀ − D)U, and lr = 0.2/σ₁. Only the abstract of the paper was at hand, and
the sizes are ours; the paper measures D through linear maps.

At k = r the residual shrinks by 1 − lr σ_r a step. At k > r there are k − r eigenvalues a of UUᵀ
beyond those of D. A step makes a (1 − lr a)² of a, so that a → 1/(2 lr T) and f → (k − r)/(4 lr
T)²: this is the constant of the paper's Ω(1/T²). The pair (C, F) starts at independent Gaussian
numbers, and moves at the same speed with twice the rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas
from matplotlib.figure import Figure

from experiments import THEORY, Claim, between, loaded, within
from mfgd.palette import mode_colours
from mfgd.tracking import Run

SWEEPS = {"xiong2024": ("steps=10000", "rank=3,4,6")}


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    for run in by_rank(runs):
        k, r, lr = run.config.rank, run.config.problem.rank, run.config.lr
        step, loss = (run.trajectory[name].to_numpy() for name in ("step", "loss"))
        if not run.config.symmetric:
            if k > r:
                yield between(f"D ≈ C F, k = {k}: f at the end", loss[-1], high=1e-15)
            continue
        if k == r:
            (falling,) = np.nonzero((loss < 1e-6) & (loss > 1e-24))
            first, last = falling[0], falling[-1]
            fall = math.log(loss[last] / loss[first]) / (step[last] - step[first])
            name = f"D ≈ U Uᵀ, k = {k}: residual after a step over that before"
            yield within(name, math.exp(fall / 2), 1 - lr / run.config.problem.condition, 2e-3)
            continue
        at = int(np.searchsorted(step, step[-1] / 10))
        exponent = math.log(loss[-1] / loss[at]) / math.log(step[-1] / step[at])
        yield within(f"D ≈ U Uᵀ, k = {k}: exponent of T over the last decade", exponent, -2, 0.04)
        constant = loss[-1] * (4 * lr * step[-1]) ** 2 / (k - r)
        yield within(f"D ≈ U Uᵀ, k = {k}: f (4 lr T)²/(k − r) at the end", constant, 1, 0.02)


def by_rank(runs: pandas.DataFrame) -> list[Run]:
    """The tied runs first, by rank."""
    return sorted(loaded(runs), key=lambda run: (not run.config.symmetric, run.config.rank))


def figure(runs: pandas.DataFrame) -> Figure:
    canvas = Figure(figsize=(10, 3.9), layout="constrained", dpi=110)
    tied, pair = canvas.subplots(1, 2, sharey=True)
    tracked = by_rank(runs)
    ranks = sorted({run.config.rank for run in tracked})
    colours = dict(zip(ranks, mode_colours(len(ranks)), strict=True))
    markers = dict(zip(ranks, "os^D", strict=False))
    for run in tracked:
        k, r, lr = run.config.rank, run.config.problem.rank, run.config.lr
        axes = tied if run.config.symmetric else pair
        step, loss = (run.trajectory[name].to_numpy()[1:] for name in ("step", "loss"))
        axes.loglog(
            step, loss, f"{markers[k]}-", color=colours[k], markersize=3, linewidth=1,
            label=f"k = {k}",
        )  # fmt: skip
        if run.config.symmetric and k > r:
            late = step[step >= 100]
            tied.loglog(late, (k - r) / (4 * lr * late) ** 2, **THEORY)
    tied.set(title="D ≈ U Uᵀ, and (k − r)/(4 lr T)² (dashed)", ylabel="f", ylim=(1e-32, 10))
    pair.set(title="D ≈ C F")
    for axes in (tied, pair):
        axes.set(xlabel="T, steps")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower left")
    return canvas
