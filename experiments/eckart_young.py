"""Eckart, Young 1936, The approximation of one matrix by another of lower rank.

From any small random start gradient descent reaches the best matrix of rank k: no bad local minimum
holds it.

No CF of width k has a loss ½‖D − CF‖² below ½ Σ_{i>k} σ_i(D)², the loss of the truncated singular
value decomposition (Eckart, Young 1936), and every local minimum is this global minimum (Baldi,
Hornik 1989, Neural networks and principal component analysis, fact 4). The excess is loss/optimum −
1. Synthetic D: σ_i = 10·0.8^i, i = 0, 1, …
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from experiments import THEORY, Claim, between, loaded, over_steps, step_at, within
from mfgd.dense import AllEntries
from mfgd.draws import orthonormal, stream
from mfgd.palette import BLUE, GREEN, PURPLE, VERMILLION, mode_colours
from mfgd.problem import Problem
from mfgd.tracking import Run
from mfgd.types import Count, Positive, Seed

SWEEPS = {
    "eckart_young": ("steps=500", "seed=0"),
    "eckart_young_optimizers": ("steps=500", "optimizer=momentum", "lr=0.02"),
    "eckart_young_digits": ("steps=700", "record.points=50", "seed=range(4)"),
}
OPTIMIZERS = {"momentum": (0.02, 254), "adam": (0.01, 272)}
"""Rate, and the published number of steps to an excess of 1e-10."""
DIGITS = 317
"""The published number of steps to an excess of 1e-6."""


def decaying(*, n: Count, m: Count, first: Positive, ratio: Positive, seed: Seed) -> Problem:
    """D of full rank with singular values first · ratio^i, i = 0, 1, …, and random singular
    vectors."""
    r, generator = min(n, m), stream("problem data", seed)
    U, V = orthonormal(n, r, generator), orthonormal(m, r, generator)
    D = AllEntries((U * (first * ratio ** torch.arange(r, dtype=torch.float64))) @ V.mT)
    return Problem(D, truth=D, rank=r, generated=True)


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    synthetic, optimizers, digits = (loaded(runs[runs["sweep"] == sweep]) for sweep in SWEEPS)
    for scale in sorted({run.config.init.scale for run in synthetic}):
        for lr in sorted({run.config.lr for run in synthetic}):
            same = [
                run for run in synthetic if (run.config.init.scale, run.config.lr) == (scale, lr)
            ]
            yield between(
                f"start of scale {scale:g}, lr σ₁ = {lr:g}: largest final excess",
                _worst(same),
                high=1e-8,
            )
    least = min(run.trajectory["excess_loss"].min() for run in [*synthetic, *optimizers, *digits])
    yield between("least excess at any record of any run", least, low=-1e-12)
    for name, same in _by_optimizer(optimizers).items():
        lr, published = OPTIMIZERS[name]
        yield _same_number(
            f"{name}, lr = {lr:g}: steps to an excess of 1e-10", same, 1e-10, published
        )
    yield between("digits: largest final excess", _worst(digits), high=1e-8)
    yield _same_number("digits: steps to an excess of 1e-6", digits, 1e-6, DIGITS)
    errors = [run.trajectory["relative_error"].iloc[-1] for run in digits]
    yield within("digits: relative error in the end", max(errors), 0.28922, 5e-6)


def _worst(runs: Sequence[Run]) -> float:
    return float(max(run.trajectory["excess_loss"].iloc[-1] for run in runs))


def _by_optimizer(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs at the rate for which a number is published."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        name = run.config.optimizer._target_.rpartition(".")[2]
        if run.config.lr == OPTIMIZERS[name][0]:
            found.setdefault(name, []).append(run)
    return found


def _same_number(text: str, runs: Sequence[Run], excess: float, published: float) -> Claim:
    """Claims that the published number of steps, a number of another draw, is among the numbers of
    our draws."""
    steps = [step_at(run.trajectory, "excess_loss", excess) for run in runs]
    got = f"{min(steps):.0f} to {max(steps):.0f}, {len(steps)} draws"
    return Claim(text, f"{published:g} among", got, min(steps) <= published <= max(steps))


def figure(runs: pandas.DataFrame) -> Figure:
    synthetic, optimizers, digits = (loaded(runs[runs["sweep"] == sweep]) for sweep in SWEEPS)
    canvas = Figure(figsize=(12, 3.9), layout="constrained", dpi=110)
    left, middle, right = canvas.subplots(1, 3)

    colours, dashes = (
        {1e-1: BLUE, 1e-3: VERMILLION, 1e-6: GREEN},
        {0.9: "-", 0.5: ":"},
    )
    for run in synthetic:
        scale, lr = run.config.init.scale, run.config.lr
        left.plot(*_curve(run), color=colours[scale], linestyle=dashes[lr], linewidth=1)
    for scale, colour in colours.items():
        left.plot([], [], color=colour, label=f"start of scale {scale:g}")
    for lr, dash in dashes.items():
        left.plot([], [], color="0.4", linestyle=dash, label=f"lr σ₁ = {lr}")
    left.axhline(1e-8, **THEORY, label="claimed")
    left.set(title="100 × 80, rank 5: gradient descent", xlim=(0, 500))

    series = [
        (same, f"{name}, lr = {OPTIMIZERS[name][0]}")
        for name, same in _by_optimizer(optimizers).items()
    ]
    for (same, label), colour in zip(
        [*series, (digits, "digits, rank 10, gd")], (PURPLE, BLUE, VERMILLION), strict=False
    ):
        for run in same:
            middle.plot(*_curve(run), color=colour, linewidth=0.7)
        middle.plot([], [], color=colour, label=label)
    published = [*((steps, 1e-10) for _, steps in OPTIMIZERS.values()), (DIGITS, 1e-6)]
    middle.plot(*zip(*published, strict=True), "kx", label="published")
    middle.set(title="Other optimizers, other data", xlim=(0, 700))
    for axes in (left, middle):
        axes.set(xlabel="step", ylabel="loss / optimum − 1", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)

    run = digits[0]
    largest = np.linalg.svd(load_digits().data, compute_uv=False)[:8]
    for i, (value, colour) in enumerate(zip(largest, mode_colours(8), strict=True), 1):
        right.plot(
            run.trajectory["step"],
            run.trajectory[f"sigma.{i}"],
            color=colour,
            linewidth=1,
            label=f"$\\sigma_{i}$",
        )
        right.axhline(value, **THEORY)
    right.set(title="digits: σ of CF, and of D (dashed)", ylabel="singular value", yscale="log")
    over_steps(right)
    right.legend(fontsize=7, ncols=2)
    return canvas


def _curve(run: Run) -> tuple[pandas.Series, pandas.Series]:
    """Step and excess; an excess below 1e-16 is rounding."""
    return run.trajectory["step"], run.trajectory["excess_loss"].clip(lower=1e-16)
