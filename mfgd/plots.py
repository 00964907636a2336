"""Figures of one run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from mfgd.record import Row
from mfgd.target import Problem
from mfgd.types import Factors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PIXELS = 256
"""An image is scaled up, or thinned out, to about this many pixels a side."""
SMALL = 7
"""Font size of ticks and legends."""
DISTANCES: tuple[str, ...] = ("angle.left", "angle.right", "factor_distance")
DASHED: dict[str, Any] = {"linestyle": "--", "linewidth": 0.8}
GREY = 204
"""Of an entry that is not observed, out of 255."""


def figures(row: Row, problem: Problem) -> dict[str, Figure]:
    """The figures of one run by name."""
    drawn = {
        "curves": curves(row),
        "matrices": matrices(row, problem),
        "spectrum": spectrum(row, problem),
    }
    if "contraction" in row.trajectory:
        drawn["dynamics"] = dynamics(row)
    return drawn


def curves(row: Row) -> Figure:
    """Loss and errors against the step, on logarithmic axes; theory is dashed."""
    figure = _canvas(7, 3.2)
    left, right = figure.subplots(1, 2)
    _draw_measure(left, row, "loss", label=None)
    _draw_measure(right, row, "relative_error", label=None)
    if "heldout_error" in row.trajectory:
        values = row.trajectory["heldout_error"]
        _curve(right, row.trajectory["step"], values, color="tab:orange", label="held out")
        right.legend(fontsize=SMALL)
    figure.suptitle(f"{row.outcome} at step {int(row.trajectory['step'][-1])}", fontsize=10)
    figure.subplots_adjust(left=0.11, right=0.98, bottom=0.16, top=0.9, wspace=0.3)
    return figure


def spectrum(row: Row, problem: Problem) -> Figure:
    """Singular values of D̂ against the step; dashed: where they end by theory, else those of the
    truth or of D."""
    figure = _canvas(5, 3.4)
    axes = figure.subplots()
    target = problem.spectrum
    for i, (name, colour) in enumerate(_coloured_measures(row, "sigma.")):
        _curve(axes, row.trajectory["step"], row.trajectory[name], label=f"σ{i + 1}", color=colour)
        end = 0.0
        if f"theory.{name}" in row.trajectory:
            end = float(row.trajectory[f"theory.{name}"][0])
        elif target is not None and i < len(target):
            end = float(target[i])
        if end > 0:
            axes.axhline(end, color=colour, **DASHED)
    dashed = ""
    if target is not None:
        dashed = " (dashed: of D)"
        if "theory.sigma.1" in row.trajectory:
            dashed = " (dashed: theory)"
    axes.set(xlabel="step", ylabel=f"singular values of D̂{dashed}")
    axes.legend(fontsize=SMALL, loc="best")
    figure.subplots_adjust(left=0.15, right=0.97, bottom=0.15, top=0.96)
    return figure


def dynamics(row: Row) -> Figure:
    """Modes, distances, contraction and sharpness against the step, as far as they were measured;
    theory is dashed."""
    found = row.trajectory
    rank = row.factors[0].shape[-1]
    modes = _coloured_measures(row, "mode.")[:rank]  # the factors cannot hold more modes
    distances = [name for name in DISTANCES if name in found]
    panels = [bool(modes), bool(distances), True, "sharpness" in found]
    width = 3.6 * sum(panels)
    figure = _canvas(width, 3.2)
    grid = iter(figure.subplots(1, sum(panels), squeeze=False).ravel())
    if modes:
        _draw_modes(next(grid), row, modes)
    if distances:
        _draw_distances(next(grid), row, distances)
    _draw_measure(next(grid), row, "contraction", label="contraction per step", linear=True)
    if "sharpness" in found:
        axes = next(grid)
        _draw_measure(axes, row, "sharpness", label=None)
        if "sharpness_limit" in found:
            limit = found["sharpness_limit"]
            _curve(axes, found["step"], limit, color="tab:red", linestyle=":", label="2/lr")
            axes.legend(fontsize=SMALL)
    margins = {"left": 0.7 / width, "right": 1 - 0.1 / width}
    figure.subplots_adjust(**margins, bottom=0.16, top=0.95, wspace=0.34)
    return figure


def _draw_modes(axes: Axes, row: Row, modes: list[tuple[str, Any]]) -> None:
    steps = row.trajectory["step"]
    for name, colour in modes:
        label = name.removeprefix("mode.")
        _curve(axes, steps, row.trajectory[name], linear=True, label=label, color=colour)
        _draw_theory(axes, row, name)
    axes.set(xlabel="step", ylabel="modes $u_i^T \\hat{D} v_i$")
    axes.legend(fontsize=SMALL, title="mode", title_fontsize=SMALL)


def _draw_distances(axes: Axes, row: Row, names: list[str]) -> None:
    for name in names:
        label = name.replace(".", ", ").replace("_", " ")
        _curve(axes, row.trajectory["step"], row.trajectory[name], label=label)
    axes.set(xlabel="step", ylabel="angle (radians), distance")
    axes.legend(fontsize=SMALL)


def _draw_measure(
    axes: Axes, row: Row, name: str, *, label: str | None, linear: bool = False
) -> None:
    """A measure against the step, and what theory says of it; None labels it with its name."""
    _curve(axes, row.trajectory["step"], row.trajectory[name], linear=linear)
    _draw_theory(axes, row, name)
    axes.set(xlabel="step", ylabel=label or name.replace("_", " "))


def matrices(row: Row, problem: Problem) -> Figure:
    """D, D̂ and the residual D̂ − D as heat maps; entries that are not observed are grey."""
    D, estimate, residual = problem.observation.picture(row.factors, PIXELS)
    n, m = problem.shape
    tall = n > 3 * m
    if tall:
        n, m = m, n
    bound = _bound(D)
    values = {"cmap": "viridis", "vmin": np.nanmin(D), "vmax": np.nanmax(D)}
    differences = {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound}
    panels = (
        ("D", D, values),
        ("D̂", estimate, values),
        ("D̂ − D", _nan_if_infinite(residual), differences),
    )
    if m > 3 * n:
        figure, shape, bottom, top = _canvas(7, 4.2), (3, 1), 0.07, 0.93
    else:
        figure, shape, bottom, top = _canvas(9, 2.8), (1, 3), 0.1, 0.9
    extent = (-0.5, m - 0.5, n - 0.5, -0.5)
    place: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest", "extent": extent}
    for axes, (name, X, style) in zip(figure.subplots(*shape), panels, strict=True):
        axes.set_facecolor("0.8")
        if tall:
            name, X = f"{name} (transposed)", X.T
        image = axes.imshow(X, **place, **style)
        axes.set_title(name, fontsize=9)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True))
        axes.tick_params(labelsize=SMALL)
        figure.colorbar(image, ax=axes, pad=0.02).ax.tick_params(labelsize=SMALL)
    figure.subplots_adjust(left=0.05, right=0.98, bottom=bottom, top=top, hspace=0.45)
    return figure


def pictures(problem: Problem, factors: Factors) -> dict[str, np.ndarray]:
    """D̂ and the residual as RGB images (height, width, 3) uint8, on the colour scales of
    `matrices`."""
    D, estimate, residual = problem.observation.picture(factors, PIXELS)
    bound = _bound(D)
    return {
        "D_hat": _to_rgb(estimate, "viridis", np.nanmin(D), np.nanmax(D)),
        "residual": _to_rgb(_nan_if_infinite(residual), "RdBu_r", -bound, bound),
    }


def _canvas(width: float, height: float) -> Figure:
    """A figure in inches, without automatic layout: that would draw each figure of each run
    twice."""
    return Figure(figsize=(width, height), dpi=100)


def _coloured_measures(row: Row, prefix: str) -> list[tuple[str, Any]]:
    """The measures with this prefix, each with a colour."""
    names = [name for name in row.trajectory if name.startswith(prefix)]
    colours = colormaps["viridis"](np.linspace(0, 0.9, max(len(names), 2)))
    return list(zip(names, colours, strict=False))


def _draw_theory(axes: Axes, row: Row, name: str) -> None:
    """Draws what theory says of a measure, if it says anything that the axes can show."""
    expected = row.trajectory.get(f"theory.{name}")
    if expected is None or (axes.get_yscale() == "log" and not (expected > 0).any()):
        return
    style: dict[str, Any] = {"color": "black", "zorder": 3, **DASHED}
    if "theory" not in axes.get_legend_handles_labels()[1]:
        style["label"] = "theory"
    axes.plot(row.trajectory["step"], expected, **style)
    axes.legend(fontsize=SMALL)


def _curve(
    axes: Axes, steps: np.ndarray, values: np.ndarray, *, linear: bool = False, **style: Any
) -> None:
    """A measure against the step; without `linear`, on a logarithmic axis."""
    shown = np.isfinite(values) & ((values > 0) | linear)
    axes.plot(steps[shown], values[shown], marker=".", markersize=3, linewidth=1, **style)
    # Linear up to 1 and logarithmic from there, so that step 0 has its place too.
    axes.set_xscale("symlog", linthresh=1)
    if not linear:
        axes.set_yscale("log")
        if shown.any() and values[shown].max() < 30 * values[shown].min():
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(lambda value, position: f"{value:g}")
    axes.tick_params(labelsize=SMALL)
    axes.grid(alpha=0.3)


def _bound(D: np.ndarray) -> float:
    """max |D|, 1 if D is 0."""
    return float(np.nanmax(np.abs(D))) or 1.0


def _nan_if_infinite(X: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(X), X, np.nan)


def _to_rgb(X: np.ndarray, cmap: str, low: float, high: float) -> np.ndarray:
    """An image of X, low to high, with its long side across."""
    if X.shape[0] > X.shape[1]:
        X = X.T
    down, across = (max(1, round(size / PIXELS)) for size in X.shape)
    # One entry stands for a block of entries.
    X = X[: X.shape[0] // down * down : down, : X.shape[1] // across * across : across]
    grow = max(1, PIXELS // max(X.shape))
    X = np.kron(X, np.ones((grow, grow)))
    scaled = np.clip((X - low) / ((high - low) or 1.0), 0, 1)
    colours = colormaps[cmap](np.ma.masked_invalid(scaled), bytes=True)[..., :3]
    colours[~np.isfinite(X)] = GREY
    return np.ascontiguousarray(colours)
