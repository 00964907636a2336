"""Zhang, Fattahi, Zhang 2021, Preconditioned gradient descent for over-parameterized nonconvex
matrix factorization.

Above the true rank gradient descent slows down to 1/t; damped by the error, scaled gradient descent
stays linear.

PrecGD is X ← X − η G (XᵀX + δI)⁻¹, whose δ is in proportion to the error ‖E‖, E = XXᵀ − M; for
measurements that keep lengths δ = √f does that (section 1). Above the true rank r the columns of X
that are too many end at 0, and set the pace: with w the singular values of these k − r columns, a
step of gradient descent is w ← w − η w³, so that ‖E‖ → √(k − r)/(2ηt) from any start; a step of
PrecGD with δ = ‖E‖ is w ← w − η w³/(w² + δ), under which all these w become equal and ‖E‖ shrinks
by (1 − η/(1 + √(k − r)))² a step at any condition number. At k = r gradient descent is linear, and
shrinks the error by 1 − η s_r.

Every entry is observed; the paper also has Gaussian measurements. F = Cᵀ at the start, so that
descent on ½‖D − CF‖² is descent on ¼‖M − XXᵀ‖² (see xu2023). Of the text abstract and summaries
were at hand; both laws follow from the step for w. M is 40 × 40 of rank 3 with σ₁ = 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas
from matplotlib.figure import Figure

from experiments import THEORY, Claim, between, loaded, step_at, within
from mfgd.palette import mode_colours
from mfgd.tracking import Run

SWEEPS = {
    "zhang2021": ("rank=4,10", "problem.condition=1,100"),
    "zhang2021_gd": ("rank=3,6", "steps=3000", "record.points=30"),
}


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    for (rank, kappa), run in by_rank(runs).items():
        text = f"PrecGD, k = {rank}, κ = {kappa:g}: contraction of the error"
        yield within(text, contraction(run), contraction_in_theory(run), 2e-3)
    for rank, tracked in steps_by_rank(runs).items():
        text = f"PrecGD, k = {rank}: steps to 1e-10, most over fewest of any κ"
        yield between(text, max(tracked) / min(tracked), high=1.25)
    exact, *above = by_rank_of_descent(runs).values()
    expected = 1 - exact.config.lr / exact.config.problem.condition
    got = float(exact.trajectory["contraction"].dropna().iloc[-1])
    yield within("gradient descent, k = r = 3: contraction of the error", got, expected, 1e-3)
    for run in above:
        ratio = float((error(run) / descent_in_theory(run)).iloc[-1])
        text = f"gradient descent, k = {run.config.rank}, in the end: ‖E‖ 2ηt/√(k − r)"
        yield within(text, ratio, 1.0, 0.02)


def by_rank(runs: pandas.DataFrame) -> dict[tuple[int, float], Run]:
    """k, κ → run of PrecGD, ascending."""
    tracked = loaded(runs[runs["sweep"] == "zhang2021"])
    found = {(run.config.rank, float(run.config.problem.condition)): run for run in tracked}
    return dict(sorted(found.items()))


def steps_by_rank(runs: pandas.DataFrame) -> dict[int, list[float]]:
    """k → the steps of PrecGD to a relative error of 1e-10, of each κ."""
    steps: dict[int, list[float]] = {}
    for (rank, _), run in by_rank(runs).items():
        steps.setdefault(rank, []).append(step_at(run.trajectory, "relative_error", 1e-10))
    return steps


def by_rank_of_descent(runs: pandas.DataFrame) -> dict[int, Run]:
    """k → run of gradient descent, ascending; k = r comes first."""
    tracked = loaded(runs[runs["sweep"] == "zhang2021_gd"])
    return {run.config.rank: run for run in sorted(tracked, key=lambda run: run.config.rank)}


def contraction(run: Run) -> float:
    """The factor a step of the relative error while it falls from 1e-6 to 1e-11."""
    first, last = (step_at(run.trajectory, "relative_error", bound) for bound in (1e-6, 1e-11))
    return float(1e-5 ** (1 / (last - first)))


def contraction_in_theory(run: Run) -> float:
    extra = run.config.rank - run.config.problem.rank
    return float((1 - run.config.lr / (1 + math.sqrt(extra))) ** 2)


def error(run: Run) -> pandas.Series:
    """‖E‖ at each record, of a run on the squared loss times ½."""
    return (2 * run.trajectory["loss"]) ** 0.5


def descent_in_theory(run: Run) -> pandas.Series:
    """√(k − r)/(2ηt) at each record."""
    extra = run.config.rank - run.config.problem.rank
    return math.sqrt(extra) / (2 * run.config.lr * run.trajectory["step"])


def figure(runs: pandas.DataFrame) -> Figure:
    canvas = Figure(figsize=(11, 3.9), layout="constrained", dpi=110)
    left, right = canvas.subplots(1, 2)
    tracked = by_rank_of_descent(runs)
    colours = dict(zip((3, 4, 6, 10), mode_colours(4), strict=True))
    for rank, run in tracked.items():
        after = run.trajectory["step"] > 0
        step = run.trajectory["step"][after]
        look = {"color": colours[rank], "label": f"k = {rank}" + " = r" * (rank == 3)}
        left.loglog(step, error(run)[after].clip(lower=1e-12), "o-", markersize=3, **look)
        if rank > 3:
            left.loglog(step[step > 20], descent_in_theory(run)[after][step > 20], **THEORY)
    left.plot([], [], **THEORY, label="√(k − r)/(2ηt)")
    left.set(xlabel="step", ylabel="‖E‖", title="Gradient descent: linear at k = r only")
    lines = {1.0: "-", 10.0: "--", 100.0: ":"}
    for (rank, kappa), run in by_rank(runs).items():
        label = f"k = {rank}" if kappa == 1 else None
        curve = run.trajectory["step"], error(run).clip(lower=1e-14), lines[kappa]
        right.plot(*curve, color=colours[rank], label=label)
        if kappa == 1:
            steps = np.array([0, 110])
            theory = contraction_in_theory(run) ** steps
            right.plot(steps, theory, **THEORY)
    for kappa, line in lines.items():
        right.plot([], [], line, color="0.4", label=f"κ = {kappa:g}")
    right.plot([], [], **THEORY, label="(1 − η/(1 + √(k − r)))² a step")
    right.set(xlabel="step", ylabel="‖E‖", yscale="log", ylim=(1e-12, 30))
    right.set_title("PrecGD: linear at any k and κ")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return canvas
