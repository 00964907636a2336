"""Liang, Montúfar 2026, Gradient descent with large step sizes: chaos and fractal convergence
region.

Gradient descent on ½(xᵀy − s)² converges up to an exact rate, and near it the answer leaps from
start to start.

With p = xᵀy and q = ‖x‖² + ‖y‖² a step maps p ← p − η(p − s)q + η²(p − s)²p and
q ← q − 4η(p − s)p + η²(p − s)²q. The curve q = 4/η + ηs(p − s) is mapped into itself, and parts the
starts that stay from the starts that diverge. Solved for η, this is the critical rate
8/(q + √(q² − 16 s(p − s))); and no minimum is stable beyond 1/|s|, half the inverse of the least
sharpness. The region of convergence has this smooth boundary if there is no penalty; under a
penalty the paper shows a fractal one, which is not measured here. Each answer that is reached has
a sharpness q ≤ 2/η.

Which answer is reached depends sensitively on the start where the start is near that boundary:
along a line of starts the imbalance ‖x‖² − ‖y‖² of the answers changes smoothly up to half of the
critical x, and leaps between neighbours 0.01 apart in the last tenth.

Of the text abstract and figure captions were at hand. The curve is worked out here; that it is
mapped into itself is checked in exact fractions by the first claim. s = 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pandas
import torch
from matplotlib.figure import Figure

from experiments import THEORY, Claim, between, loaded, within
from mfgd.init import Init
from mfgd.palette import BLUE, VERMILLION
from mfgd.problem import Problem
from mfgd.types import Factors

SWEEPS = {
    "liang2026": ("hydra.sweeper.resolution=0.02", "steps=300"),
    "liang2026_basin": (
        "init.x=-2.9,-1.5,-0.1,0.7,1.3,2.1,2.9",
        "init.y=-2.55,-0.35,0.25,1.25,2.65",
    ),
    "liang2026_line": (
        "init.x=range(2.5,2.797,0.01)",
        "steps=1000",
    ),
}


def numbers(*, x: float, y: float) -> Init:
    """C = x and F = y, of a 1 × 1 problem at rank 1."""

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        return tuple(torch.as_tensor(w, dtype=torch.float64).reshape(1, 1) for w in (x, y))

    return start


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    holds = all(on_curve(Fraction(eta, 10), Fraction(p, 7)) for eta in (3, 9) for p in (-20, 1, 9))
    yield Claim("the curve q = 4/η + ηs(p − s) is mapped into itself", "True", f"{holds}", holds)
    for start, (low, high) in brackets(runs).items():
        expected = critical_rate(*start)
        text = f"x = {start[0]:g}, y = {start[1]:g}: largest rate that does not diverge"
        yield within(text, (low + high) / 2, expected, 2 * (high - low))
    grid = runs[runs["sweep"] == "liang2026_basin"]
    stays = grid["tags.outcome"] != "diverged"
    agree = [
        stays_in_theory(x, y, lr) == stayed
        for (x, y, lr), stayed in zip(starts(grid), stays, strict=True)
    ]
    yield Claim(
        "starts of a grid on whose divergence the curve decides rightly",
        f"all of {len(grid)}",
        f"{sum(agree)} of {len(grid)}",
        all(agree),
    )
    yield between(
        "largest final loss of those that stay", grid["metrics.loss"][stays].max(), high=1e-20
    )
    eta = float(grid["params.lr"].iloc[0])
    bound = math.sqrt((2 / eta) ** 2 - 4)
    text = "largest |x² − y²| of the answers, from q ≤ 2/η"
    yield between(text, grid["metrics.balance"][stays].max(), high=bound)
    x, balance = line(runs)
    edge, leaps = critical_start(), np.abs(np.diff(balance))
    if x[0] < edge / 2:
        text = "largest change of x² − y² between neighbours, up to half of the critical x"
        yield between(text, leaps[x[1:] < edge / 2].max(), high=0.05)
    text = "changes of x² − y² beyond 0.3 between neighbours, in the last tenth"
    yield between(text, int((leaps[x[1:] > 0.9 * edge] > 0.3).sum()), low=5)


def on_curve(eta: Fraction, p: Fraction, s: Fraction = Fraction(1)) -> bool:
    """Whether a step from the curve ends on the curve, in exact arithmetic."""
    z, q = p - s, 4 / eta + eta * s * (p - s)
    after_p, after_q = p - eta * z * q + eta**2 * z**2 * p, q - 4 * eta * z * p + eta**2 * z**2 * q
    return after_q == 4 / eta + eta * s * (after_p - s)


def critical_rate(x: float, y: float, s: float = 1.0) -> float:
    """8/(q + √(q² − 16 s(p − s)))."""
    q = x**2 + y**2
    return 8 / (q + math.sqrt(q**2 - 16 * s * (x * y - s)))


def stays_in_theory(x: float, y: float, eta: float) -> bool:
    return x**2 + y**2 < 4 / eta + eta * (x * y - 1)


def starts(runs: pandas.DataFrame) -> list[tuple[float, float, float]]:
    """x, y and η of each run of a grid."""
    columns = ("params.init.x", "params.init.y", "params.lr")
    rows = zip(*(runs[column].astype(float) for column in columns), strict=True)
    return [(x, y, eta) for x, y, eta in rows]


def brackets(runs: pandas.DataFrame) -> dict[tuple[float, float], tuple[float, float]]:
    """Start → the largest rate that does not diverge and the least rate above it that does."""
    tracked = runs[runs["sweep"] == "liang2026"]
    found = {}
    for text, cell in tracked.groupby("params.init.factors"):
        x, y = (float(number) for number in str(text).replace("[", "").replace("]", "").split(","))
        rates = cell["params.lr"].astype(float)
        diverged = cell["tags.outcome"] == "diverged"
        found[x, y] = rates[~diverged].max(), rates[diverged].min()
    return found


def line(runs: pandas.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """x of the starts along the line, and x² − y² of their answers."""
    tracked = loaded(runs[runs["sweep"] == "liang2026_line"])
    tracked.sort(key=lambda run: run.config.init.x)
    ends = [[float(run.matrices[name]) for name in ("C", "F")] for run in tracked]
    balance = np.array([C**2 - F**2 for C, F in ends])
    return np.array([run.config.init.x for run in tracked]), balance


def critical_start(y: float = 0.3, eta: float = 0.5) -> float:
    """The x at which the line of starts meets the curve."""
    return float(np.roots([1, -eta * y, y**2 - 4 / eta + eta]).max())


def figure(runs: pandas.DataFrame) -> Figure:
    canvas = Figure(figsize=(12.5, 4.1), layout="constrained", dpi=110)
    left, middle, right = canvas.subplots(1, 3)
    found = brackets(runs)
    expected = [critical_rate(*start) for start in found]
    left.plot(expected, [low for low, _ in found.values()], "o", color=BLUE, label="measured")
    left.plot([0.15, 0.7], [0.15, 0.7], **THEORY, label="equal")
    left.set(xlabel="8/(q + √(q² − 16 s(p − s)))", ylabel="largest rate that does not diverge")
    left.set_title("The critical rate of four starts")
    left.legend(fontsize=7)
    grid = runs[runs["sweep"] == "liang2026_basin"]
    x, y, eta = np.array(starts(grid)).T
    stays = (grid["tags.outcome"] != "diverged").to_numpy()
    middle.plot(x[~stays], y[~stays], ".", color="0.8", markersize=4, label="diverges")
    drawn = middle.scatter(
        x[stays], y[stays], c=grid["metrics.balance"][stays], s=16, marker="s", cmap="viridis"
    )
    canvas.colorbar(drawn, ax=middle, label="|x² − y²| of the answer")
    X, Y = np.meshgrid(*2 * [np.linspace(-3, 3, 301)])
    curve = X**2 + Y**2 - 4 / eta[0] - eta[0] * (X * Y - 1)
    middle.contour(X, Y, curve, levels=[0], colors="black", linestyles="--", linewidths=1)
    middle.plot([], [], **THEORY, label="q = 4/η + ηs(p − s)")
    middle.set(xlabel="x", ylabel="y", aspect="equal", title=f"Which starts stay, η = {eta[0]:g}")
    middle.legend(fontsize=7, loc="lower right")
    right.plot(*line(runs), ".-", color=BLUE, markersize=3, linewidth=0.8, label="measured")
    bound = math.sqrt((2 / 0.5) ** 2 - 4)
    right.axhline(bound, **THEORY, label="bounds by q ≤ 2/η")
    right.axhline(-bound, **THEORY)
    right.axvline(critical_start(), color=VERMILLION, linestyle=":", label="critical x")
    right.set(xlabel="x at the start, y = 0.3", ylabel="x² − y² of the answer")
    right.set_title("Neighbours part at the edge, η = ½")
    right.legend(fontsize=7)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return canvas
