"""Ward, Kolda 2023, Convergence of alternating gradient descent for matrix factorization.

From a sketch of D above its rank alternating gradient descent is linear, and takes at most O(κ²)
steps.

The start is C = DΦ/(c₁ σ₁ √η) and F = c₂ σ₁ √η Ψ with Gaussian Φ and Ψ (section 2; here k = 10 at
rank r = 5, c₁ = 2, c₂ = 0.1, η = ½, σ₁ = 1). The columns of C stay in the range of D, in which C
has full rank: a step on F multiplies the residual by I − η CCᵀ from the left and so shrinks it by
1 − η σ_r(C)² at least, and a step on C does not raise it while η σ₁(F)² ≤ 2. The error falls at
every step, from the first one on, and in the end by exactly 1 − η σ_r(C)² a step, because what Ψ
put outside D's row space shrinks by nothing else. The number of steps is at most ∝ κ²; Gaussian
factors take more of them (the paper's experiments).

Of the text the introduction was at hand; sizes and constants are not those of the paper's figures.
The contraction is worked out here.
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
    "ward2023": ("problem.condition=2,8", "seed=0,1", "record.points=60"),
    "ward2023_gaussian": ("problem.condition=2,8", "seed=0,1", "record.points=60"),
}


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    sketch, gaussian = (by_condition(runs, sweep) for sweep in SWEEPS)
    for kappa, draws in sketch.items():
        rises = max(float(run.trajectory["loss"].diff().max()) for run in draws)
        yield between(f"κ = {kappa:g}: largest rise of the loss between two records", rises, high=0)
        for run in draws[:1]:
            expected = contraction_in_theory(run)
            text = f"κ = {kappa:g}: 1 − contraction in the end, η σ_r(C)², ± 2 %"
            yield within(text, 1 - contraction(run), 1 - expected, 0.02 * (1 - expected))
    low, high = min(sketch), max(sketch)
    slope = math.log(median(sketch[high]) / median(sketch[low])) / math.log(high / low)
    yield between(f"slope of log steps over log κ, {low:g} to {high:g}", slope, high=2)
    for kappa in sketch:
        ratio = median(sketch[kappa]) / median(gaussian[kappa])
        text = f"κ = {kappa:g}: steps from the sketch over those from Gaussian factors"
        yield between(text, ratio, high=1)


def by_condition(runs: pandas.DataFrame, sweep: str) -> dict[float, list[Run]]:
    """κ → the runs of all draws, ascending."""
    found: dict[float, list[Run]] = {}
    tracked = loaded(runs[runs["sweep"] == sweep])
    for run in sorted(tracked, key=lambda run: (run.config.problem.condition, run.config.seed)):
        found.setdefault(float(run.config.problem.condition), []).append(run)
    return found


def steps(run: Run) -> float:
    """Steps to a relative error of 1e-6, inf if it is not reached."""
    step = step_at(run.trajectory, "relative_error", 1e-6)
    return math.inf if math.isnan(step) else step


def median(draws: list[Run]) -> float:
    return float(np.median([steps(run) for run in draws]))


def contraction(run: Run) -> float:
    """The factor a step of the relative error while it falls from 1e-8 to 1e-11."""
    first, last = (step_at(run.trajectory, "relative_error", bound) for bound in (1e-8, 1e-11))
    return float(1e-3 ** (1 / (last - first)))


def contraction_in_theory(run: Run) -> float:
    """1 − η σ_r(C)², of the factor in the end."""
    values = torch.linalg.svdvals(run.matrices["C"])
    return float(1 - run.config.lr * values[run.config.problem.rank - 1] ** 2)


def figure(runs: pandas.DataFrame) -> Figure:
    canvas = Figure(figsize=(11, 3.9), layout="constrained", dpi=110)
    left, right = canvas.subplots(1, 2)
    sketch, gaussian = (by_condition(runs, sweep) for sweep in SWEEPS)
    for (kappa, draws), colour in zip(sketch.items(), mode_colours(len(sketch)), strict=True):
        run, other = draws[0], gaussian[kappa][0]
        left.plot(*curve(run), color=colour, label=f"κ = {kappa:g}")
        left.plot(*curve(other), ":", color=colour, linewidth=1)
        end = steps(run)
        line = np.linspace(end, end * 1.8, 50)
        left.plot(line, 1e-6 * contraction_in_theory(run) ** (line - end), **THEORY)
    left.plot([], [], ":", color="0.4", label="from Gaussian factors")
    left.plot([], [], **THEORY, label="1 − η σ_r(C)² a step")
    left.set(xscale="log", yscale="log", xlabel="step", ylabel="relative error", ylim=(1e-12, 3))
    left.set_title("In the end the contraction is that of σ_r(C)")
    for found, colour, marker, name in (
        (sketch, BLUE, "o", "from the sketch"),
        (gaussian, VERMILLION, "s", "from Gaussian factors"),
    ):
        for kappa, draws in found.items():
            values = [steps(run) for run in draws]
            right.plot([kappa] * len(draws), values, marker, color=colour, fillstyle="none")
        right.plot([], [], marker, color=colour, fillstyle="none", label=name)
    kappas = np.array(list(sketch))
    first = median(sketch[kappas[0]])
    right.plot(kappas, first * (kappas / kappas[0]) ** 2, **THEORY, label="proportional to κ²")
    right.set(xscale="log", yscale="log", xlabel="κ", ylabel="steps to a relative error of 1e-6")
    right.set(xticks=kappas, xticklabels=[f"{kappa:g}" for kappa in kappas])
    right.minorticks_off()
    right.set_title("Steps over the condition number")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return canvas


def curve(run: Run) -> tuple[pandas.Series, pandas.Series]:
    """Step and relative error of each record after the start."""
    return run.trajectory["step"].iloc[1:], run.trajectory["relative_error"].iloc[1:]
