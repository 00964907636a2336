"""Ghosh, Kwon, Wang, Ravishankar, Qu 2025, Learning dynamics of deep matrix factorization beyond
the edge of stability.

Beyond the edge of stability only the modes above it oscillate, with period 2, and their factors
become balanced.

A mode s of L balanced factors w follows w ← w − η w^{L−1}(w^L − s), whose answer is stable for
η < 2/(L s^{2−2/L}). For rates between these limits of the p-th and the next mode p modes oscillate.
Their orbit is a solution of w = f(f(w)); at L = 2 it is w² = (t ± √(t² − 4))/(2η), t = 1 + ηs, and
stable until t² = 5, ηs = √5 − 1, from where on the period doubles. A step multiplies the imbalance
c² − f² of a mode of two factors by 1 − η²(cf − s)², so that it decays in a mode that oscillates, by
the product of this factor over the orbit, and stays in a mode that has converged.

Two modes that oscillate keep to themselves only near the edge: with s = 1 and 0.97 the entries of
UᵀCFV off the diagonal, rounding at first, grow at lr = 1.1, and the run diverges after some hundred
steps. So does a separate program in NumPy, from entries of 1e-12. One mode that oscillates beside
s = 0.5 stays alone.

Starts are along the modes of D. lr is in units of the first mode's limit. Of the text abstract and
summaries were at hand; orbit, doubling and decay are worked out here from the step. The orbits of
three factors are those that SciPy finds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas
import torch
from matplotlib.figure import Figure
from scipy.optimize import brentq

from experiments import THEORY, Claim, between, loaded, within
from mfgd.init import Init
from mfgd.palette import BLUE, GREEN, VERMILLION
from mfgd.problem import Problem
from mfgd.tracking import Run
from mfgd.types import Factors, Positive

FEWER = "record.steps=[1,2,3,4,5,3990,3991,3992,3993,3994,3995,3996,3997,3998,3999]"
SWEEPS = {
    "ghosh2025": ("lr=0.95,1.1,1.25", FEWER),
    "ghosh2025_two": ("lr=1.02,1.05", FEWER),
    "ghosh2025_depth3": ("lr=0.95,1.1", FEWER),
    "ghosh2025_balance": (),
}
DOUBLING = math.sqrt(5) - 1
"""ηs at which the period doubles, at depth 2."""


def along_modes(*, scale: Positive, first: Positive) -> Init:
    """Factors along the singular vectors of D, times ``first`` in the first one and ``scale`` in
    the others."""

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        assert problem.triplets is not None
        U, _, V = problem.triplets
        k = widths[1]
        between = (scale * torch.eye(k, dtype=U.dtype) for _ in widths[2:-1])
        return first * U[:, :k], *between, scale * V[:, :k].mT

    return start


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    for sweep in ("ghosh2025", "ghosh2025_two", "ghosh2025_depth3"):
        for run in by_rate(runs, sweep):
            depth, spectrum = run.config.depth, run.config.problem.spectrum
            modes = ", ".join(f"{s:g}" for s in spectrum)
            where = f"L = {depth}, s = {modes}, lr = {run.config.lr:g}"
            power = 2 - 2 / depth
            above = [s for s in spectrum if run.config.lr * s**power > 1]
            moving = sum(np.ptp(values(run, i)) > 1e-6 for i in range(len(spectrum)))
            yield Claim(
                f"{where}: modes that oscillate", f"{len(above)}", f"{moving}", moving == len(above)
            )
            for i, s in enumerate(above):
                if moving == len(above) and (depth == 3 or run.config.lr * s < DOUBLING):
                    yield orbit_claim(run, i, s, where)
            if depth == 2 and DOUBLING < run.config.lr < 1.28:
                yield from doubled(run, where)
    yield from decay(*sorted(loaded(runs[runs["sweep"] == "ghosh2025_balance"]), key=by_steps))


def orbit_claim(run: Run, i: int, s: float, where: str) -> Claim:
    """The two values of a mode that oscillates, against those of its orbit."""
    low, high = orbit(run, s)
    found = np.sort(values(run, i)[-2:])
    deviation = float(np.abs(found - [low, high]).max())
    text = f"{where}: deviation of s = {s:g} from the orbit {low:.4f}, {high:.4f}"
    return between(text, deviation, high=1e-9)


def doubled(run: Run, where: str) -> Iterator[Claim]:
    """That the first mode has period 4 and not 2."""
    first = values(run, 0)
    yield between(
        f"{where}: first mode after two steps differs by", abs(first[-1] - first[-3]), low=1e-3
    )
    yield between(
        f"{where}: first mode after four steps differs by", abs(first[-1] - first[-5]), high=1e-9
    )


def decay(early: Run, late: Run) -> Iterator[Claim]:
    """By how much the imbalance of each mode changes over ten periods."""
    eta, (first, second) = early.config.lr, early.config.problem.spectrum
    ratio = imbalance(late) / imbalance(early)
    expected = math.prod((1 - eta**2 * (mode - first) ** 2) ** 10 for mode in orbit(early, first))
    text = f"s = {first:g}, oscillates: imbalance after 120 steps over that after 100"
    yield within(text, ratio[0], expected, 1e-2 * expected)
    text = f"s = {second:g}, has converged: imbalance after 120 steps over that after 100"
    yield within(text, ratio[1], 1.0, 1e-9)


def by_rate(runs: pandas.DataFrame, sweep: str) -> list[Run]:
    """The runs of a sweep, the smallest rate first."""
    return sorted(loaded(runs[runs["sweep"] == sweep]), key=lambda run: run.config.lr)


def by_steps(run: Run) -> int:
    return run.config.steps


def values(run: Run, i: int) -> np.ndarray:
    """A mode at the last 10 steps (10,)."""
    return run.trajectory[f"mode.{i + 1}"].to_numpy()[-10:]


def imbalance(run: Run) -> np.ndarray:
    """c² − f² of each mode (k,)."""
    C, F = run.matrices["C"], run.matrices["F"]
    return torch.diagonal(C.mT @ C - F @ F.mT).numpy()


def absolute_rate(run: Run) -> float:
    """η; σ₁ = 1, and the unit is 2/L."""
    return run.config.lr * 2 / run.config.depth


def orbit(run: Run, s: float) -> tuple[float, float]:
    """The two products w^L of the orbit of period 2, in closed form at L = 2."""
    eta, depth = absolute_rate(run), run.config.depth
    if depth == 2:
        t = 1 + eta * s
        root = math.sqrt(t**2 - 4)
        return (t - root) / (2 * eta), (t + root) / (2 * eta)

    def step(w: float) -> float:
        return w - eta * w ** (depth - 1) * (w**depth - s)

    answer = s ** (1 / depth)
    low = brentq(lambda w: step(step(w)) - w, 0.75 * answer, (1 - 1e-4) * answer, xtol=1e-15)
    return low**depth, step(low) ** depth


def figure(runs: pandas.DataFrame) -> Figure:
    canvas = Figure(figsize=(11, 7.4), layout="constrained", dpi=110)
    (first, second), (third, last) = canvas.subplots(2, 2)
    for axes, sweep, title in (
        (first, "ghosh2025", "Two factors"),
        (second, "ghosh2025_two", "Two factors, two modes beyond the edge"),
        (third, "ghosh2025_depth3", "Three factors"),
    ):
        for run in by_rate(runs, sweep):
            depth = run.config.depth
            for i, (s, colour) in enumerate(
                zip(run.config.problem.spectrum, (BLUE, VERMILLION, GREEN), strict=False)
            ):
                found = values(run, i)[-8:]
                if not np.isfinite(found).all():
                    axes.plot(run.config.lr, 1.0, "x", color="0.4", markersize=9)
                    continue
                axes.plot([run.config.lr] * 8, found, ".", color=colour, markersize=6)
                low, high = 1 / s ** (2 - 2 / depth), DOUBLING / s if depth == 2 else math.inf
                if low < run.config.lr < high:
                    look = {"color": "black", "fillstyle": "none", "markersize": 8}
                    axes.plot([run.config.lr] * 2, orbit(run, s), "o", **look)
        for s, colour in zip(run.config.problem.spectrum, (BLUE, VERMILLION, GREEN), strict=False):
            axes.plot([], [], "o", color=colour, label=f"s = {s:g}")
        axes.plot([], [], "o", color="black", fillstyle="none", label="orbit of period 2")
        if sweep == "ghosh2025_two":
            axes.plot([], [], "x", color="0.4", markersize=8, label="diverges")
        axes.axvline(1, **THEORY, label="edge of stability of s = 1")
        axes.set(xlabel="lr in units of the limit", ylabel="mode at the last 8 steps", title=title)
    early, late = sorted(loaded(runs[runs["sweep"] == "ghosh2025_balance"]), key=by_steps)
    balance = late.trajectory["balance"]
    last.plot(late.trajectory["step"], balance, color=BLUE, label="‖CᵀC − FFᵀ‖, lr = 1.1")
    last.axhline(abs(imbalance(early)[1]), **THEORY, label="of the converged mode s = 0.5")
    last.set(xlabel="step", ylabel="‖CᵀC − FFᵀ‖", title="Only the mode that oscillates is balanced")
    for axes in (first, second, third, last):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return canvas
