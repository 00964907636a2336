"""Xu, Wang, Zhao, Ward, Tao 2024, Provable acceleration of Nesterov's accelerated gradient for
rectangular matrix factorization and linear neural networks.

From a large C and F = 0 gradient descent takes O(κ²) steps, Nesterov's acceleration O(κ).

The start is C = cDΦ with a large c, and F = 0; the rate is 1/L, L the sharpness at the start. C
hardly moves, and descent is that of least squares for F, with the curvatures σ_i(C)² + σ_j(F)²,
i, j ≤ r. Gradient descent shrinks the error by 1 − ηλ a step, with λ the least of them, and
acceleration by the larger root of z² − (1 + β)(1 − ηλ) z + β(1 − ηλ). With the best β the steps
grow like √(L/λ), the root of what gradient descent takes.

Of the text the abstract was at hand: rate, β and sizes are chosen here (60 × 60 of rank 5, k = 10,
c = 20), and the contractions follow from the step, linearized at the answer. The best β is that of
a grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas
import torch
from matplotlib.figure import Figure

from experiments import THEORY, Claim, between, loaded, step_at, within
from mfgd.palette import BLUE, VERMILLION, mode_colours
from mfgd.tracking import Run

SWEEPS = {
    "xu2024": ("problem.condition=2,8",),
}
REAL = (0.0, 0.5)
"""The β at which both roots are real at any of these condition numbers, so that the error falls
without oscillating."""


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    tracked, rates = by_condition(runs), absolute_rates(runs)
    for kappa, by_beta in tracked.items():
        for beta in REAL:
            run = by_beta[beta]
            expected = 1 - contraction_in_theory(run, rates[kappa])
            text = f"κ = {kappa:g}, β = {beta:g}: 1 − contraction of the error, ± 3 %"
            yield within(text, 1 - contraction(run), expected, 0.03 * expected)
    low, high = min(tracked), max(tracked)
    plain, best = (
        {k: pick(by_beta) for k, by_beta in tracked.items()} for pick in (descent, fewest)
    )
    slope = math.log(plain[high] / plain[low]) / math.log(high / low)
    yield between(
        f"gradient descent: slope of log steps over log κ, {low:g} to {high:g}", slope, 1.2, 2.0
    )
    slope = math.log(best[high] / best[low]) / math.log(high / low)
    yield between(
        f"acceleration: slope of log steps over log κ, {low:g} to {high:g}", slope, high=1.0
    )
    expected, got = (
        math.sqrt(
            stiffness(tracked[high][0.0], rates[high]) / stiffness(tracked[low][0.0], rates[low])
        ),
        plain[high] / best[high] / (plain[low] / best[low]),
    )
    text = f"speed-up at κ = {high:g} over that at κ = {low:g}, as √(L/λ), ± 15 %"
    yield within(text, got, expected, 0.15 * expected)


def by_condition(runs: pandas.DataFrame) -> dict[float, dict[float, Run]]:
    """κ → β → run, both ascending."""
    found: dict[float, dict[float, Run]] = {}
    tracked = loaded(runs)
    for run in sorted(
        tracked, key=lambda run: (run.config.problem.condition, run.config.optimizer.beta)
    ):
        found.setdefault(float(run.config.problem.condition), {})[run.config.optimizer.beta] = run
    return found


def absolute_rates(runs: pandas.DataFrame) -> dict[float, float]:
    """κ → η = 1/L."""
    kappas = runs["params.problem.condition"].astype(float)
    return dict(zip(kappas, runs["metrics.lr_absolute"], strict=True))


def least_curvature(run: Run) -> float:
    """σ_r(C)² + σ_r(F)² in the end."""
    r = run.config.problem.rank
    values = (torch.linalg.svdvals(run.matrices[name])[r - 1] for name in ("C", "F"))
    return float(sum(value**2 for value in values))


def stiffness(run: Run, eta: float) -> float:
    """L/λ."""
    return 1 / (eta * least_curvature(run))


def contraction_in_theory(run: Run, eta: float) -> float:
    """The larger root of z² − (1 + β)(1 − ηλ) z + β(1 − ηλ)."""
    beta, shrunk = run.config.optimizer.beta, 1 - eta * least_curvature(run)
    return float(np.abs(np.roots([1, -(1 + beta) * shrunk, beta * shrunk])).max())


def contraction(run: Run) -> float:
    """The factor a step of the relative error while it falls from 1e-6 to 1e-9."""
    first, last = (step_at(run.trajectory, "relative_error", bound) for bound in (1e-6, 1e-9))
    return float(1e-3 ** (1 / (last - first)))


def steps(run: Run) -> float:
    """Steps to a relative error of 1e-8, inf if it is not reached."""
    step = step_at(run.trajectory, "relative_error", 1e-8)
    return math.inf if math.isnan(step) else step


def descent(by_beta: dict[float, Run]) -> float:
    return steps(by_beta[0.0])


def fewest(by_beta: dict[float, Run]) -> float:
    """The steps at the best β."""
    return min(steps(run) for run in by_beta.values())


def figure(runs: pandas.DataFrame) -> Figure:
    canvas = Figure(figsize=(11, 3.9), layout="constrained", dpi=110)
    left, right = canvas.subplots(1, 2)
    tracked, rates = by_condition(runs), absolute_rates(runs)
    for (kappa, by_beta), colour in zip(tracked.items(), mode_colours(len(tracked)), strict=True):
        plain, best = by_beta[0.0], min(by_beta.values(), key=steps)
        for run, line in ((plain, ":"), (best, "-")):
            label = f"κ = {kappa:g}, β = {run.config.optimizer.beta:g}"
            curve = run.trajectory["step"].iloc[1:], run.trajectory["relative_error"].iloc[1:]
            left.plot(*curve, line, color=colour, label=label)
        end = steps(plain)
        span = np.linspace(end / 4, end, 50)
        theory = 1e-8 * contraction_in_theory(plain, rates[kappa]) ** (span - end)
        left.plot(span, theory, **THEORY)
    left.plot([], [], **THEORY, label="1 − ηλ a step")
    left.set(xscale="log", yscale="log", xlabel="step", ylabel="relative error", ylim=(1e-10, 2))
    left.set_title("Gradient descent (dotted) and acceleration")
    kappas = np.array(list(tracked))
    most = [descent(by_beta) for by_beta in tracked.values()]
    least = [fewest(by_beta) for by_beta in tracked.values()]
    right.loglog(kappas, most, "s", color=VERMILLION, label="gradient descent")
    right.loglog(kappas, least, "o", color=BLUE, label="Nesterov, best β")
    right.plot(kappas, most[-1] * (kappas / kappas[-1]) ** 2, **THEORY, label="∝ κ² and ∝ κ")
    right.plot(kappas, least[-1] * kappas / kappas[-1], **THEORY)
    right.set(xlabel="κ", ylabel="steps to a relative error of 1e-8")
    right.minorticks_off()
    right.set(xticks=kappas, xticklabels=[f"{kappa:g}" for kappa in kappas])
    right.set_title("Steps over the condition number")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return canvas
