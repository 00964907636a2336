"""Hayou, Ghosh, Yu 2024, LoRA+: efficient low rank adaptation of large models.

From LoRA's zero start, equal rates learn the slower the wider the model; a ratio that grows with
the width mends it.

The model of the paper's section on scaling is f = b aᵀx, with b = 0 and a ~ N(0, I/n) at the start,
|x_i| = 1 and ½(f − y)². A step at the rates η_A of a and η_B of b changes f by −δ₁ − δ₂ + δ₃, with
δ₁ = η_A n b² (f − y), δ₂ = η_B (aᵀx)² (f − y) and δ₃ = η_A η_B n b aᵀx (f − y)². Learning is
efficient if neither δ₁ nor δ₂ vanishes as n grows, so that η_B/η_A has to grow like n.

Only aᵀx enters f, and it moves at the rate n η_A: the model is the factorization of y by C = aᵀx
and F = b at lr = n η_A and lr_ratio = η_B/(n η_A). LoRA with equal rates is lr_ratio = 1/n, and the
ratio η_B/η_A that is efficient is one of lr_ratio = Θ(1). The first claims hold the factorization
against the model itself, n = 4096, in NumPy, from aᵀx = 1.

At small equal rates the half of y is learnt after ∫ dθ/(√n η (1 − f)) steps, because (aᵀx)² − n b²
is conserved: aᵀx = cosh θ, √n b = sinh θ, f = sinh(2θ)/(2√n). This grows like ln n, and so do the
fewest steps at any equal rates, counted to a median error of 1 % over draws of a that share their
rates. The paper reports a speed-up of up to 2. Of the paper abstract and summaries were at hand;
the integral is worked out here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas
from matplotlib.figure import Figure
from scipy.integrate import quad

from experiments import THEORY, Claim, between, loaded, step_at, within
from mfgd.palette import BLUE, VERMILLION, mode_colours
from mfgd.tracking import Run

SWEEPS = {
    "hayou2024": ("lr_ratio=0.000244140625,0.00390625,0.0625,1.0", "lr=0.1,0.3,0.5,0.7"),
    "hayou2024_flow": ("lr_ratio=0.000244140625,1.0",),
}
WIDTH = 4096
"""The width of the models that are run in NumPy."""
LEARNT = 1e-2
"""The relative error at which the steps are counted."""


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    small = flow(runs)
    for run in (small[-1], small[0]):
        ratio = run.config.lr_ratio
        at = run.trajectory["step"].to_numpy()
        deviation = np.abs(run.trajectory["mode.1"] - model(run)[at]).max()
        text = f"n = {WIDTH}, η_B/η_A = {WIDTH * ratio:g}: largest |f − f of the model|"
        yield between(text, deviation, high=1e-12)
        first = run.trajectory["mode.1"].iloc[1]
        text = f"n = {WIDTH}, η_B/η_A = {WIDTH * ratio:g}: f after a step, η_B (aᵀx)² y"
        yield within(text, first, rate(run) * ratio, 1e-15)
    for run in small:
        n = 1 / run.config.lr_ratio
        half, expected = half_learnt(run), half_time(run)
        text = f"n = {n:g}, equal small rates: half learnt at step, ± 2 %"
        yield within(text, half, expected, 0.02 * expected)
    fewest = {ratio: fewest_steps(tracked) for ratio, tracked in grouped(runs).items()}
    widths = [ratio for ratio in fewest if ratio < 1]
    rising = all(np.diff([fewest[ratio] for ratio in sorted(widths, reverse=True)]) > 0)
    yield Claim(
        f"equal rates: fewest steps at n = {', '.join(f'{1 / ratio:g}' for ratio in widths[::-1])}",
        "rise",
        ", ".join(f"{fewest[ratio]:.3g}" for ratio in widths[::-1]),
        rising,
    )
    best = min(fewest, key=lambda ratio: fewest[ratio])
    yield between("best ratio η_B/η_A, over n", best, low=0.25, high=4.0)
    text = f"n = {WIDTH}: fewest steps at equal rates over those at the best ratio"
    yield between(text, fewest[min(fewest)] / fewest[best], low=1.5, high=2.5)


def grouped(runs: pandas.DataFrame) -> dict[float, dict[float, Run]]:
    """lr_ratio → lr → run, both ascending."""
    found: dict[float, dict[float, Run]] = {}
    tracked = loaded(runs[runs["sweep"] == "hayou2024"])
    for run in sorted(tracked, key=lambda run: (run.config.lr_ratio, run.config.lr)):
        found.setdefault(run.config.lr_ratio, {})[run.config.lr] = run
    return found


def flow(runs: pandas.DataFrame) -> list[Run]:
    """The runs at small equal rates, the narrowest first."""
    tracked = loaded(runs[runs["sweep"] == "hayou2024_flow"])
    return sorted(tracked, key=lambda run: -run.config.lr_ratio)


def rate(run: Run) -> float:
    """lr = n η_A: the unit is the limit of stability, 1/√lr_ratio for D = 1."""
    return run.config.lr / math.sqrt(run.config.lr_ratio)


def model(run: Run) -> np.ndarray:
    """f = b aᵀx of the model of width 4096 at each step (steps + 1,)."""
    lr_A, lr_B = rate(run) / WIDTH, rate(run) * run.config.lr_ratio
    x = np.where(np.arange(WIDTH) % 3, 1.0, -1.0)
    a, b = x / WIDTH, 0.0
    f = np.empty(run.config.steps + 1)
    for step in range(len(f)):
        f[step] = b * (a @ x)
        residual = f[step] - 1
        a, b = a - lr_A * residual * b * x, b - lr_B * residual * (a @ x)
    return f


def half_time(run: Run) -> float:
    """The steps of gradient flow until f = ½ at equal rates η = n η_A/n."""
    n = 1 / run.config.lr_ratio
    end = math.asinh(math.sqrt(n)) / 2
    eta = rate(run) / n
    time, _ = quad(lambda theta: 1 / (1 - math.sinh(2 * theta) / (2 * math.sqrt(n))), 0, end)
    return time / (math.sqrt(n) * eta)


def half_learnt(run: Run) -> float:
    """The step at which f = ½, between two records on a line."""
    f, step = run.trajectory["mode.1"].to_numpy(), run.trajectory["step"].to_numpy()
    after = int(np.flatnonzero(f >= 0.5)[0])
    return float(np.interp(0.5, f[after - 1 : after + 1], step[after - 1 : after + 1]))


def fewest_steps(tracked: dict[float, Run]) -> float:
    """The steps until half of the draws are learnt at the best of all rates."""
    return min(steps_to_learn(run) for run in tracked.values())


def steps_to_learn(run: Run) -> float:
    """The step at which the median error comes down to 1e-2, inf if it never does."""
    step = step_at(run.trajectory, "relative_error", LEARNT)
    return math.inf if math.isnan(step) else step


def figure(runs: pandas.DataFrame) -> Figure:
    canvas = Figure(figsize=(12.5, 3.9), layout="constrained", dpi=110)
    left, middle, right = canvas.subplots(1, 3)
    tracked = [run for run in flow(runs) if run.config.lr_ratio < 1]
    for run, colour in zip(tracked, mode_colours(len(tracked)), strict=True):
        n = 1 / run.config.lr_ratio
        look = {"color": colour, "label": f"n = {n:g}"}
        left.plot(run.trajectory["step"], run.trajectory["mode.1"], **look)
        left.plot(half_time(run), 0.5, "kD", fillstyle="none", markersize=7)
    left.plot([], [], "kD", fillstyle="none", label="half learnt, by the flow")
    left.set(xlabel="step", ylabel="f = b aᵀx", title="At equal rates the wider, the later")
    by_ratio = grouped(runs)
    fewest = {ratio: fewest_steps(runs_of) for ratio, runs_of in by_ratio.items()}
    middle.plot(list(fewest), list(fewest.values()), "o-", color=BLUE, label="measured")
    middle.axvspan(0.25, 4, color="0.88", label="neither δ₁ nor δ₂ vanishes")
    middle.set(xscale="log", xlabel="(η_B/η_A)/n", ylabel="fewest steps to an error of 1 %")
    middle.set_title("The best ratio is in proportion to n")
    best = min(fewest, key=lambda ratio: fewest[ratio])
    for ratio, colour, name in (
        (min(by_ratio), VERMILLION, "equal rates"),
        (best, BLUE, f"η_B/η_A = {WIDTH * best:g}"),
    ):
        run = min(by_ratio[ratio].values(), key=steps_to_learn)
        label = f"{name}, best of all rates"
        curve = run.trajectory["step"], run.trajectory["relative_error"].clip(1e-6)
        right.plot(*curve, "o-", color=colour, markersize=4, label=label)
    right.axhline(LEARNT, **THEORY)
    right.set(xlabel="step", ylabel="|f − y|, median of 25 draws", xlim=(-0.5, 25), yscale="log")
    right.set_title(f"n = {WIDTH}")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return canvas
