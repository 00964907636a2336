"""Saxe, McClelland, Ganguli 2014, Exact solutions to the nonlinear dynamics of learning in deep
linear neural networks.

From a small start along D's singular vectors each singular value is learnt by itself, along a
sigmoid.

Gradient flow on ½‖D − CF‖² from C₀ = √a₀ U, F₀ = √a₀ Vᵀ has CF = U diag(a) Vᵀ with a_i(t) = s_i
e^{2 s_i t} / (e^{2 s_i t} − 1 + s_i/a₀) (section 1.1, eq. 6); t = lr · step. a_i is half of s_i at
t = ln(s_i/a₀ − 1)/(2 s_i). Steps of finite length leave the flow by an amount proportional to lr.
Here s = 4, 2, 1, ½ and a₀ = 10⁻³, 30 × 20.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pandas
from matplotlib.figure import Figure
from torch import Generator

from experiments import THEORY, Claim, between, loaded, within
from mfgd.init import Init
from mfgd.palette import BLUE, GREEN, PURPLE, VERMILLION
from mfgd.problem import Problem
from mfgd.tracking import Run
from mfgd.types import Factors, Positive

SWEEPS = {"saxe2014": ("steps=7000", "record.points=120")}
PUBLISHED = {0.01: 3.125e-2, 0.005: 1.562e-2, 0.0025: 7.81e-3, 0.001: 3.12e-3}
"""Rate → the largest deviation from the flow, in units of s."""


def along_modes(*, a0: Positive) -> Init:
    """C = √a0 U and F = √a0 Vᵀ with the leading singular vectors of D: CF has every mode at a0, and
    nothing else."""

    def start(problem: Problem, widths: tuple[int, ...], generator: Generator) -> Factors:
        assert problem.triplets is not None
        U, _, V = problem.triplets
        k, root = widths[1], math.sqrt(a0)
        return root * U[:, :k], root * V[:, :k].mT

    return start


def flow(t: np.ndarray, s: float, a0: float) -> np.ndarray:
    """a(t); numerator and denominator are divided by e^{2st}, which would overflow."""
    return s / (1 + (s / a0 - 1) * np.exp(-2 * s * t))


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    tracked = by_rate(runs)
    deviations = {lr: deviation(run) for lr, run in tracked.items()}
    for fast, slow in pairwise(deviations):
        if fast / slow == 2:
            ratio = deviations[fast] / deviations[slow]
            yield within(
                f"largest deviation/s at lr = {fast:g} over that at {slow:g}", ratio, 2.0, 0.05
            )
    least, run = list(tracked.items())[-1]
    yield between(f"largest deviation/s at lr = {least:g}", deviations[least], high=5e-3)
    halves = runs.set_index("params.lr").loc[str(least)].to_dict()
    for i, s in enumerate(run.config.problem.spectrum, 1):
        half = math.log(s / run.config.init.a0 - 1) / (2 * s)
        yield within(
            f"s = {s:g}: half learnt at t", least * halves[f"metrics.half_time.{i}"], half, 3e-3
        )
    worst = max(off_modes(run) for run in tracked.values())
    yield between("largest entry of UᵀCFV off its diagonal in the end", worst, high=1e-12)
    angles = max(
        run.trajectory[["angle.left", "angle.right"]].to_numpy().max() for run in tracked.values()
    )
    yield between("largest angle to D's singular subspaces at any record", angles, high=1e-12)


def by_rate(runs: pandas.DataFrame) -> dict[float, Run]:
    """Rate → run, the largest first."""
    return {run.config.lr: run for run in sorted(loaded(runs), key=lambda run: -run.config.lr)}


def deviation(run: Run) -> float:
    """The largest |mode − flow|/s over modes and records."""
    t = run.config.lr * run.trajectory["step"].to_numpy()
    modes = enumerate(run.config.problem.spectrum, 1)
    return max(
        float(np.abs(run.trajectory[f"mode.{i}"] - flow(t, s, run.config.init.a0)).max()) / s
        for i, s in modes
    )


def off_modes(run: Run) -> float:
    """The largest entry of UᵀCFV off the diagonal, with all singular vectors of D, those of its
    null spaces included."""
    U, _, Vh = np.linalg.svd(run.matrices["D"].numpy())
    X = U.T @ (run.matrices["C"] @ run.matrices["F"]).numpy() @ Vh.T
    np.fill_diagonal(X, 0)
    return float(np.abs(X).max())


def figure(runs: pandas.DataFrame) -> Figure:
    tracked = by_rate(runs)
    canvas = Figure(figsize=(11, 3.9), layout="constrained", dpi=110)
    left, right = canvas.subplots(1, 2, width_ratios=(1.5, 1))
    run = list(tracked.values())[-1]
    t, a0 = run.config.lr * run.trajectory["step"], run.config.init.a0
    fine = np.linspace(0, 11, 500)
    colours, spectrum = (BLUE, VERMILLION, GREEN, PURPLE), run.config.problem.spectrum
    looks = zip(spectrum, colours, "os^v", strict=True)
    for i, (s, colour, marker) in enumerate(looks, 1):
        shown = t <= fine[-1]
        left.plot(
            t[shown],
            run.trajectory[f"mode.{i}"][shown],
            marker,
            markersize=3.5,
            color=colour,
            label=f"s = {s:g}",
        )
        left.plot(fine, flow(fine, s, a0), **THEORY)
        half = math.log(s / a0 - 1) / (2 * s)
        left.plot(half, s / 2, "D", color="black", fillstyle="none", markersize=7)
    left.plot([], [], **THEORY, label="gradient flow")
    left.plot([], [], "D", color="black", fillstyle="none", label="half learnt")
    left.set(xlabel="t = lr · step", ylabel=r"mode $u_i^T CF v_i$", xlim=(0, fine[-1]))
    left.set_title(f"Each singular value along its sigmoid (lr = {run.config.lr:g})")
    rates = list(tracked)
    right.loglog(
        rates, [deviation(run) for run in tracked.values()], "o", color=BLUE, label="measured"
    )
    right.plot(list(PUBLISHED), list(PUBLISHED.values()), "kx", markersize=9, label="published")
    line = np.array([min(rates) / 1.3, max(rates) * 1.3])
    right.plot(line, line * PUBLISHED[0.01] / 0.01, **THEORY, label="proportional to lr")
    right.set(
        xlabel="lr",
        ylabel="largest |mode − flow| / s",
        title="Steps of finite length leave the flow by O(lr)",
    )
    right.set(xticks=rates, xticklabels=[f"{lr:g}" for lr in rates])
    right.set(
        yticks=list(PUBLISHED.values()),
        yticklabels=[f"{value:.2g}" for value in PUBLISHED.values()],
    )
    right.minorticks_off()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.95))
    right.legend(fontsize=8)
    return canvas
