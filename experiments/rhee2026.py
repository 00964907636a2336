"""Rhee, Simon, Karkada 2026, Muon learns balanced solutions in matrix factorization without slow
saddle-to-saddle dynamics.

Muon learns all modes at one rate, the small ones first, and its rate need not heed the condition
number.

Muon without momentum moves each factor by lr times the polar factor of its gradient. Once the
factors are aligned with each other and with D, each of their singular values grows by lr a step, so
that a mode s is half learnt at √(s/2)/lr; under gradient descent the largest mode comes first. The
difference √(CᵀC) − √(FFᵀ) is conserved, by steps of finite length up to one step once modes are
learnt and alternate about their ends; CᵀC − FFᵀ is not. Beyond the limit of stability of
gradient descent Muon stays where no singular value of a factor is farther than a step from its end:
the loss is at most Σ ½ (2 √s lr + lr²)². With a rate that falls by a factor a step, the error falls
by that factor at any condition number (for the linear convergence see also Ma, Huang, Chi, Chen
2026, Preconditioning benefits of spectral orthogonalization in Muon).

Start, target, rates and the form of Muon are those of figure 1 in the authors' notebook
(dkarkada/muon-mfac on GitHub): D = diag(10/i), 32 × 32, k = 32, ½‖D − CF‖². Of the text only
abstract and introduction were at hand; times, bound and the end of CᵀC − FFᵀ are worked out here
from its growth by lr a step. Five steps of Newton and Schulz instead of the polar factor give
singular values from 0.7 to 1.3, and so does the growth (Jordan and others 2024, Muon: an optimizer
for hidden layers in neural networks).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Generator, Tensor

from experiments import THEORY, Claim, between, loaded, step_at, within
from mfgd.init import Init
from mfgd.palette import BLUE, VERMILLION, mode_colours
from mfgd.problem import Problem
from mfgd.tracking import Run
from mfgd.types import Factors, Positive

FEWER = (
    "steps=500",
    "record.steps=[10,20,30,40,60,80,100,125,150,175,200,250,300,350,400,450]",
)
SWEEPS = {
    "rhee2026": FEWER,
    "rhee2026_gd": FEWER,
    "rhee2026_rates": ("lr=0.2,0.5", "steps=100", "record.points=5"),
    "rhee2026_annealed": ("problem.condition=1,100",),
    "rhee2026_aligned": ("steps=250,1600", "record.points=5"),
}
SHOWN = 8
"""How many singular values are tracked."""
LIMIT = 0.1
"""The limit of stability of gradient descent, 1/σ₁."""


def along_modes(*, left: Positive, right: Positive) -> Init:
    """C = left U and F = right Vᵀ with the leading singular vectors of D."""

    def start(problem: Problem, widths: tuple[int, ...], generator: Generator) -> Factors:
        assert problem.triplets is not None
        U, _, V = problem.triplets
        return left * U[:, : widths[1]], right * V[:, : widths[1]].mT

    return start


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    muon, schulz = by_polar(runs)
    lr, spectrum = muon.config.lr, muon.config.problem.spectrum
    worst = float(np.abs(growth(muon) - 1).max())
    yield between("largest |growth of √σ_i(CF) a step/lr − 1|, i ≤ 8", worst, high=0.05)
    halves = half_times(runs, "rhee2026")
    for i in (0, 1, 3, 7):
        expected = math.sqrt(spectrum[i] / 2) / lr
        text = f"s = {spectrum[i]:g}: half learnt at step, ± 5 %"
        yield within(text, halves[i], expected, 0.05 * expected)
    later = int((np.diff(halves) < 0).sum())
    yield between("Muon: of 7 modes learnt after the next smaller one", later, low=7)
    earlier = int((np.diff(half_times(runs, "rhee2026_gd")) > 0).sum())
    yield between("gradient descent: of 7 modes learnt before the next smaller one", earlier, low=7)
    yield between("Newton–Schulz: least growth/lr", growth(schulz).min(), low=0.7)
    yield between("Newton–Schulz: largest growth/lr", growth(schulz).max(), high=1.3)
    aligned = loaded(runs[runs["sweep"] == "rhee2026_aligned"])
    yield from conservation(*sorted(aligned, key=lambda run: run.config.steps))
    beyond = runs[(runs["sweep"] == "rhee2026_gd") & (runs["params.lr"] == "0.2")]
    (outcome,) = beyond["tags.outcome"]
    text = "gradient descent at twice its limit of stability"
    yield Claim(text, "diverged", outcome, outcome == "diverged")
    for run in by_rate(runs):
        if run.config.lr >= LIMIT:
            text = f"Muon at {run.config.lr / LIMIT:g} times that limit: final loss"
            yield between(text, run.trajectory["loss"].iloc[-1], high=bound(run))
    for kappa, run in annealed(runs).items():
        text = f"κ = {kappa:g}, rate falling by 0.97 a step: contraction of the error"
        yield within(text, contraction(run), run.config.schedule.decay, 2e-3)
    steps = [step_at(run.trajectory, "relative_error", 1e-6) for run in annealed(runs).values()]
    text = "steps to a relative error of 1e-6, most over fewest of any κ"
    yield between(text, max(steps) / min(steps), high=1.15)


def conservation(early: Run, late: Run) -> Iterator[Claim]:
    """What becomes of √(CᵀC) − √(FFᵀ) and of CᵀC − FFᵀ, which start at d and d (left + right)."""
    d, lr = late.config.init.left - late.config.init.right, late.config.lr
    for run, allowed in ((early, 1e-12), (late, lr)):
        C, F = run.matrices["C"], run.matrices["F"]
        change = root(C.mT @ C) - root(F @ F.mT) - d * torch.eye(len(F), dtype=C.dtype)
        text = f"‖√(CᵀC) − √(FFᵀ) − its start‖ after {run.config.steps} steps"
        yield between(text, float(torch.linalg.norm(change)), high=allowed)
    ends, s = torch.linalg.eigvalsh(C.mT @ C - F @ F.mT).flip(0), late.config.problem.spectrum
    for mode in (0, len(s) - 1):
        expected = d * math.sqrt(d**2 + 4 * s[mode])
        text = f"s = {s[mode]:g}: eigenvalue of CᵀC − FFᵀ in the end, within two steps"
        yield within(text, float(ends[mode]), expected, 2 * d * lr)


def root(X: Tensor) -> Tensor:
    """The square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(X)
    return vectors * values.clamp(min=0).sqrt() @ vectors.mT


def by_polar(runs: pandas.DataFrame) -> tuple[Run, Run]:
    """The runs with the polar factor and with that of Newton and Schulz."""
    tracked = {run.config.optimizer.polar: run for run in loaded(runs[runs["sweep"] == "rhee2026"])}
    return tracked["svd"], tracked["newton_schulz"]


def by_rate(runs: pandas.DataFrame) -> list[Run]:
    """The runs at constant rates, the smallest first."""
    return sorted(loaded(runs[runs["sweep"] == "rhee2026_rates"]), key=lambda run: run.config.lr)


def annealed(runs: pandas.DataFrame) -> dict[float, Run]:
    """Condition number → its run at a falling rate."""
    tracked = loaded(runs[runs["sweep"] == "rhee2026_annealed"])
    by_condition = {run.config.problem.condition: run for run in tracked}
    return dict(sorted(by_condition.items()))


def growth(run: Run) -> np.ndarray:
    """By how much √σ_i(CF) grows a step, in units of lr, between steps 100 and 200 (8,)."""
    at = run.trajectory.set_index("step")
    roots = np.sqrt(at[[f"sigma.{i + 1}" for i in range(SHOWN)]].loc[[100, 200]].to_numpy())
    return (roots[1] - roots[0]) / (100 * run.config.lr)


def half_times(runs: pandas.DataFrame, sweep: str) -> list[float]:
    """The steps at which the modes are half learnt, with the exact polar factor or at gradient
    descent's own rate."""
    row = runs[(runs["sweep"] == sweep) & runs["params.lr"].isin(("0.005", "0.015"))]
    if sweep == "rhee2026":
        row = row[row["params.optimizer.polar"] == "svd"]
    return [float(row[f"metrics.half_time.{i + 1}"].iloc[0]) for i in range(SHOWN)]


def bound(run: Run) -> float:
    """Σ ½ (2 √s lr + lr²)²: each singular value of each factor a step from √s."""
    lr = run.config.lr
    return sum((2 * math.sqrt(s) * lr + lr**2) ** 2 / 2 for s in run.config.problem.spectrum)


def contraction(run: Run) -> float:
    """The factor a step of the relative error between steps 200 and 500."""
    error = run.trajectory.set_index("step")["relative_error"]
    return float((error.loc[500] / error.loc[200]) ** (1 / 300))


def figure(runs: pandas.DataFrame) -> Figure:
    canvas = Figure(figsize=(12.5, 3.9), layout="constrained", dpi=110)
    left, middle, right = canvas.subplots(1, 3, width_ratios=(1.3, 1, 1))
    _draw_modes(left, runs)
    tracked = by_rate(runs)
    rates = [run.config.lr for run in tracked]
    ends = [run.trajectory["loss"].iloc[-1] for run in tracked]
    middle.loglog(rates, ends, "o", color=BLUE, label="Muon, measured")
    middle.plot(rates, [bound(run) for run in tracked], **THEORY, label="a step from the answer")
    middle.axvline(LIMIT, color=VERMILLION, linestyle=":", label="limit of gradient descent")
    middle.set(xlabel="lr", ylabel="final loss", title="Stable at any constant rate")
    conditions = annealed(runs)
    for (kappa, run), colour in zip(conditions.items(), mode_colours(len(conditions)), strict=True):
        error = run.trajectory["relative_error"]
        right.plot(run.trajectory["step"], error, color=colour, label=f"κ = {kappa:g}")
    steps = np.array([60, 600])
    right.plot(steps, 0.1 * 0.97**steps, **THEORY, label="0.97 to the step")
    right.set(yscale="log", xlabel="step", ylabel="relative error")
    right.set_title("At a falling rate, any condition number")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return canvas


def _draw_modes(axes: Axes, runs: pandas.DataFrame) -> None:
    """The roots of four modes over lr · step, with Muon and with gradient descent."""
    muon, _ = by_polar(runs)
    tracked = loaded(runs[(runs["sweep"] == "rhee2026_gd") & (runs["params.lr"] == "0.015")])
    shown = (1, 2, 4, 8)
    for run, line in ((muon, "-"), *((run, ":") for run in tracked)):
        for i, colour in zip(shown, mode_colours(len(shown)), strict=True):
            s = run.config.problem.spectrum[i - 1]
            curve = np.sqrt(run.trajectory[f"sigma.{i}"]), line
            label = f"s = {s:g}" if line == "-" else None
            axes.plot(run.trajectory["step"], *curve, color=colour, label=label)
    axes.plot([], [], ":", color="0.4", label="gradient descent, 3 lr")
    steps = np.array([0, 700])
    axes.plot(steps, steps * muon.config.lr, **THEORY, label="lr · step")
    axes.set(xlabel="step", ylabel=r"$\sqrt{\sigma_i(CF)}$", ylim=(0, 3.6), xlim=(0, 1000))
    axes.set_title("Muon learns all modes at one rate")
