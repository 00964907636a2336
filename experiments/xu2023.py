"""Xu, Shen, Chi, Ma 2023, The power of preconditioning in overparameterized low-rank matrix
sensing.

Above the true rank and from a small start ScaledGD(λ) heeds the condition number at most
logarithmically.

ScaledGD(λ) is X ← X − η G (XᵀX + λI)⁻¹ from X₀ = αG₀ with a small α and a fixed λ below σ_min.
While X is small, a mode grows by the factor (1 + η s/λ)² a step, so that it takes O(log) steps to
leave the start; near the answer its error shrinks by 1 − 2η s/(s + λ), for the least mode s_r the
same at any κ; and the directions above the true rank stay at α², so that they do no harm. Gradient
descent takes ∝ κ steps.

The paper is on Gaussian measurements of M = XXᵀ; here every entry is observed, which is the mean of
its measurements. D is symmetric and F = Cᵀ at the start: then F = Cᵀ at every step, and descent on
½‖D − CF‖² is descent on ¼‖M − XXᵀ‖². Of the text the abstract was at hand; growth and contraction
follow from the step, linearized at 0 and at the answer. D is 40 × 40 of rank 3 with s_r = 1, k = 6.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas
import torch
from matplotlib.figure import Figure

from experiments import THEORY, Claim, between, loaded, step_at, within
from mfgd.init import Init, normal
from mfgd.palette import BLUE, VERMILLION, mode_colours
from mfgd.problem import Problem
from mfgd.tracking import Run
from mfgd.types import Factors, Positive

TWO = "problem.spectrum=[1,1,1],[100,50.5,1]"
SWEEPS = {
    "xu2023": (TWO, "init.scale=1e-6,1e-4"),
    "xu2023_gd": ("problem.spectrum=[1,1,1],[10,5.5,1]", "steps=1000"),
}
ALPHA = 1e-6
"""The start whose dynamics are measured."""


def mirrored(*, scale: Positive) -> Init:
    """C with independent Gaussian entries of standard deviation ``scale``, and F = Cᵀ."""
    draw = normal(scale=scale, ratio=1.0)

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        C, _ = draw(problem, widths, generator)
        return C, C.mT.clone()

    return start


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    tracked = by_scale(runs)
    for kappa, run in tracked[ALPHA].items():
        for mode in (1, 3):
            got, expected = growth(run, mode), growth_in_theory(run, mode)
            text = f"κ = {kappa:g}: growth of mode {mode} by the first step, ± 1 %"
            yield within(text, got, expected, 0.01 * expected)
    for kappa, run in tracked[ALPHA].items():
        text = f"κ = {kappa:g}: contraction of the error of the least mode"
        yield within(text, contraction(run), contraction_in_theory(run), 2e-3)
    steps = {kappa: steps_to_answer(run) for kappa, run in tracked[ALPHA].items()}
    last = max(steps)
    yield between(f"steps at κ = {last:g} over κ = 1", steps[last] / steps[1.0], high=1.5)
    plain = {kappa: steps_to_answer(run) for kappa, run in by_condition(runs, "xu2023_gd").items()}
    last = max(plain)
    text = f"gradient descent: steps at κ = {last:g} over κ = {last / 10:g}, ∝ κ"
    yield between(text, plain[last] / plain[last / 10], low=8)
    for kappa, run in tracked[ALPHA].items():
        other = tracked[1e-4][kappa]
        ratio = end(other) / end(run)
        text = f"κ = {kappa:g}: error in the end from α = 1e-4 over that from 1e-6, ∝ α²"
        yield within(text, ratio, 1e4, 1e3)


def by_scale(runs: pandas.DataFrame) -> dict[float, dict[float, Run]]:
    """α → κ → run of ScaledGD(λ), both ascending."""
    found: dict[float, dict[float, Run]] = {}
    tracked = loaded(runs[runs["sweep"] == "xu2023"])
    for run in sorted(tracked, key=lambda run: (run.config.init.scale, condition(run))):
        found.setdefault(run.config.init.scale, {})[condition(run)] = run
    return found


def by_condition(runs: pandas.DataFrame, sweep: str) -> dict[float, Run]:
    """κ → run of a sweep with one start, ascending."""
    tracked = loaded(runs[runs["sweep"] == sweep])
    return {condition(run): run for run in sorted(tracked, key=condition)}


def condition(run: Run) -> float:
    return float(run.config.problem.spectrum[0])


def growth(run: Run, mode: int) -> float:
    """The factor of a mode by the first step."""
    learnt = run.trajectory[f"mode.{mode}"]
    return float(learnt.iloc[1] / learnt.iloc[0])


def growth_in_theory(run: Run, mode: int) -> float:
    s = run.config.problem.spectrum[mode - 1]
    return float((1 + run.config.lr * s / run.config.optimizer.damping) ** 2)


def contraction(run: Run) -> float:
    """The factor a step of |mode − s_r| while it falls from 1e-4 to 1e-8."""
    mode = run.trajectory["mode.3"] - run.config.problem.spectrum[-1]
    late = run.trajectory.assign(error=mode.abs())[run.trajectory["step"] >= 10]
    first, last = (step_at(late, "error", bound) for bound in (1e-4, 1e-8))
    return float(1e-4 ** (1 / (last - first)))


def contraction_in_theory(run: Run) -> float:
    least = run.config.problem.spectrum[-1]
    return float(1 - 2 * run.config.lr * least / (least + run.config.optimizer.damping))


def steps_to_answer(run: Run) -> float:
    """Steps to a relative error of 1e-6."""
    return step_at(run.trajectory, "relative_error", 1e-6)


def end(run: Run) -> float:
    return float(run.trajectory["relative_error"].iloc[-1])


def figure(runs: pandas.DataFrame) -> Figure:
    canvas = Figure(figsize=(12.5, 3.9), layout="constrained", dpi=110)
    left, middle, right = canvas.subplots(1, 3, width_ratios=(1.3, 1, 1))
    tracked = by_scale(runs)
    for (kappa, run), colour in zip(
        tracked[ALPHA].items(), mode_colours(len(tracked[ALPHA])), strict=True
    ):
        error = run.trajectory["relative_error"]
        left.plot(
            run.trajectory["step"], error, "o-", color=colour, markersize=3, label=f"κ = {kappa:g}"
        )
    steps = np.array([16, 36])
    run = tracked[ALPHA][1.0]
    rate = contraction_in_theory(run)
    left.plot(steps, rate ** (steps - 12), **THEORY, label=f"{rate:.3f} to the step")
    left.set(yscale="log", xlabel="step", ylabel="relative error", ylim=(1e-14, 3))
    left.set_title("ScaledGD(λ), k = 6 at rank 3, any κ")
    scaled = {kappa: steps_to_answer(run) for kappa, run in tracked[ALPHA].items()}
    plain = {kappa: steps_to_answer(run) for kappa, run in by_condition(runs, "xu2023_gd").items()}
    middle.loglog(list(scaled), list(scaled.values()), "o-", color=BLUE, label="ScaledGD(λ)")
    middle.loglog(
        list(plain), list(plain.values()), "s", color=VERMILLION, label="gradient descent"
    )
    line = np.array([3, max(plain)])
    middle.plot(line, line * plain[10.0] / 10, **THEORY, label="proportional to κ")
    middle.set(xlabel="κ", ylabel="steps to a relative error of 1e-6")
    middle.set_title("Steps over the condition number")
    scales = np.array(list(tracked))
    for kappa, colour in zip(tracked[ALPHA], mode_colours(len(tracked[ALPHA])), strict=True):
        ends = [end(tracked[scale][kappa]) for scale in tracked]
        right.loglog(scales, ends, "o", color=colour, label=f"κ = {kappa:g}")
    right.plot(scales, scales**2 * end(run) / ALPHA**2, **THEORY, label="proportional to α²")
    right.set(xlabel="α", ylabel="relative error in the end")
    right.set_title("What is left of a small start")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return canvas
