"""Tong, Ma, Chi 2021, Accelerating ill-conditioned low-rank matrix estimation via scaled gradient
descent.

Scaled gradient descent completes a matrix in as many steps at any condition number, gradient
descent in ∝ κ steps.

C ← C − η G_C (FFᵀ)⁻¹, F ← F − η (CᵀC)⁻¹ G_F. If every entry is observed, a step shrinks the error
by 1 − η to first order near the balanced answer; a step of plain gradient descent shrinks the error
by 1 − η σ_r/σ₁. Completion as in section 4: σ falls linearly from 1 to 1/κ, a share p = 0.4 of 200
× 200 entries, rank 5, spectral start, gradient over p, η = ½ (over σ₁ for plain gradient descent),
steps to a relative error of 10⁻¹⁰.

The steps of so small a matrix depend on the draw: at κ = 20, σ₅ = 0.05 drowns in the noise that the
sampling adds to the spectrum, up to about 2 √((1 − p)/(pn)) ‖D‖ = 0.23. The spectral start misses
this mode, and the time until descent finds the mode differs from draw to draw. From an error of
10⁻⁵ on ScaledGD takes as many steps as at κ = 1.

At the size of the paper, 1000 × 1000 of rank 10 and p = 0.2, we compare one draw with the published
steps, ± 10 % because the draws differ. GD at κ = 5 and 10 takes a sixth more steps than published;
a separate program in NumPy took 344 to 397 steps at κ = 5 in three draws, and 343 with a symmetric
truth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import THEORY, Claim, between, loaded, step_at, within
from mfgd.palette import mode_colours
from mfgd.tracking import Run

SWEEPS = {
    "tong2021": ("problem.condition=1,5,20", "problem.seed=0", "steps=2000", "record.points=60"),
    "tong2021_rates": ("problem.condition=5,20", "steps=250", "record.points=20"),
    "tong2021_large": None,
}
METHODS = {"scaled_gd": "ScaledGD", "gd": "GD"}
PUBLISHED = {"scaled_gd": {1: 76, 5: 75, 10: 77, 20: 78}, "gd": {1: 76, 5: 296, 10: 656}}
"""Method → κ → steps of the large completion; GD at κ = 20 takes more than 1000."""
LINES, MARKERS = {"scaled_gd": "-", "gd": ":"}, {"scaled_gd": "o", "gd": "s"}
COLOURS = dict(zip((1.0, 5.0, 10.0, 20.0), mode_colours(4), strict=True))


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    completion, rates, large = (by_method(runs[runs["sweep"] == sweep]) for sweep in SWEEPS)
    for name, method in METHODS.items():
        for kappa, tracked in rates[name].items():
            (run,) = tracked
            expected = 1 - run.config.lr / (1 if name == "scaled_gd" else kappa)
            yield within(
                f"every entry observed, {method}, κ = {kappa:g}: contraction",
                contraction(run),
                expected,
                1e-3,
            )
    scaled, plain = completion["scaled_gd"], completion["gd"]
    for text, ratios, low, high in (
        ("ScaledGD: steps at κ = 20 over κ = 1", ratio(scaled, 20, 1), -math.inf, 1.15),
        (
            "ScaledGD: of them those from 10⁻⁵ to 10⁻¹⁰",
            ratio(scaled, 20, 1, since=1e-5),
            -math.inf,
            1.15,
        ),
        ("GD: steps at κ = 20 over κ = 5", ratio(plain, 20, 5), 3.3, 4.6),
    ):
        count = f"median of {len(ratios)} draws" if len(ratios) > 1 else "one draw"
        yield between(f"completion, {text}, {count}", float(np.median(ratios)), low, high)
        if len(ratios) > 1:
            farthest = max(ratios, key=lambda ratio: max(low - ratio, ratio - high))
            yield between(f"completion, {text}, farthest draw", farthest, low, high)
    for name, method in METHODS.items():
        for kappa, (run,) in large[name].items():
            text = f"n = 1000, {method}, κ = {kappa:g}: steps"
            published = PUBLISHED[name].get(int(kappa))
            if published is None:
                yield between(text, steps(run), low=1000)
            else:
                yield within(text, steps(run), published, published / 10)


def by_method(runs: pandas.DataFrame) -> dict[str, dict[float, list[Run]]]:
    """Method → κ → the runs of all draws, by their seed."""
    found: dict[str, dict[float, list[Run]]] = {name: {} for name in METHODS}
    for run in sorted(
        loaded(runs), key=lambda run: (run.config.problem.condition, run.config.problem.seed)
    ):
        name = run.config.optimizer._target_.rpartition(".")[2]
        found[name].setdefault(run.config.problem.condition, []).append(run)
    return found


def contraction(run: Run) -> float:
    """The last contraction that was measured above rounding."""
    return float(run.trajectory["contraction"].dropna().iloc[-1])


def steps(run: Run, since: float = math.inf) -> float:
    """Steps from a relative error of `since` (inf: the start) to one of 10⁻¹⁰; inf if the budget is
    too small."""
    end = step_at(run.trajectory, "relative_error", 1e-10)
    begin = 0.0 if math.isinf(since) else step_at(run.trajectory, "relative_error", since)
    return math.inf if math.isnan(end) else end - begin


def ratio(
    tracked: dict[float, list[Run]], above: float, below: float, since: float = math.inf
) -> list[float]:
    """The steps at one κ over the steps at another, draw by draw."""
    draws = zip(tracked[above], tracked[below], strict=True)
    return [steps(a, since) / steps(b, since) for a, b in draws]


def figure(runs: pandas.DataFrame) -> Figure:
    completion, rates, large = (by_method(runs[runs["sweep"] == sweep]) for sweep in SWEEPS)
    canvas = Figure(figsize=(12, 3.9), layout="constrained", dpi=110)
    left, middle, right = canvas.subplots(1, 3, width_ratios=(1.3, 1, 1))
    _draw_curves(left, completion)
    _draw_steps(middle, completion, large)
    _draw_contractions(right, rates)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize=7, loc="lower left")
    middle.legend(fontsize=7, loc="upper left")
    right.legend(fontsize=7, loc="center right")
    return canvas


def _draw_curves(axes: Axes, completion: Mapping[str, Mapping[float, Sequence[Run]]]) -> None:
    """The relative error of each draw over the step."""
    for name, tracked in completion.items():
        for kappa, draws in tracked.items():
            for run in draws:
                curve = run.trajectory["step"], run.trajectory["relative_error"]
                axes.plot(*curve, LINES[name], linewidth=0.9, color=COLOURS[kappa])
    for kappa in completion["gd"]:
        axes.plot([], [], color=COLOURS[kappa], label=f"κ = {kappa:g}")
    for name, method in METHODS.items():
        axes.plot([], [], LINES[name], color="0.4", label=method)
    axes.axhline(1e-10, **THEORY)
    axes.set(xscale="log", yscale="log", xlabel="step", ylabel="relative error", ylim=(1e-11, 2))
    axes.set_title("Completion, each draw")


def _draw_steps(
    axes: Axes,
    completion: Mapping[str, Mapping[float, Sequence[Run]]],
    large: Mapping[str, Mapping[float, Sequence[Run]]],
) -> None:
    """The steps to a relative error of 10⁻¹⁰ over κ."""
    for name, tracked in completion.items():
        for kappa, draws in tracked.items():
            for run in draws:
                look: dict[str, Any] = {"color": COLOURS[kappa], "fillstyle": "none"}
                axes.plot(kappa, steps(run), MARKERS[name], markersize=6, **look)
    for name, tracked in large.items():
        for kappa, (run,) in tracked.items():
            axes.plot(kappa, steps(run), MARKERS[name], markersize=6, color=COLOURS[kappa])
            if kappa in PUBLISHED[name]:
                axes.plot(kappa, PUBLISHED[name][int(kappa)], "kx", markersize=6)
    if large["gd"]:
        axes.plot([], [], MARKERS["gd"], color="0.4", label="n = 1000")
        axes.plot([], [], "kx", label="n = 1000, published")
    for name, method in METHODS.items():
        axes.plot([], [], MARKERS[name], color="0.4", fillstyle="none", label=method)
    kappas = np.array(list(completion["gd"]))
    axes.axhspan(75, 95, color="0.85", label="ScaledGD as published, another draw")
    axes.plot(kappas, 80 * kappas, **THEORY, label="proportional to κ")
    axes.set(xscale="log", yscale="log", xlabel="κ", ylabel="steps")
    axes.set_title("Steps to a relative error of 10⁻¹⁰")
    axes.minorticks_off()
    axes.set(xticks=kappas, xticklabels=[f"{kappa:g}" for kappa in kappas])


def _draw_contractions(axes: Axes, rates: Mapping[str, Mapping[float, Sequence[Run]]]) -> None:
    """The contraction per step over the step, and the contraction that theory predicts."""
    for name, method in METHODS.items():
        for kappa, (run,) in rates[name].items():
            axes.plot(
                run.trajectory["step"],
                run.trajectory["contraction"],
                MARKERS[name] + LINES[name],
                color=COLOURS[kappa],
                fillstyle="none",
                markersize=4,
                label=f"{method}, κ = {kappa:g}",
            )
            axes.axhline(1 - run.config.lr / (1 if name == "scaled_gd" else kappa), **THEORY)
    axes.set(xscale="log", xlabel="step", ylabel="contraction per step", ylim=(0.4, 1.05))
    axes.set_title("Every entry observed")
