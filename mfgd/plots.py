"""Figures of one run."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from mfgd.dense import AllEntries
from mfgd.heatmaps import PIXELS, scale_about_0, scale_of
from mfgd.palette import BLUE, GREEN, VERMILLION, mode_colours
from mfgd.record import Row
from mfgd.spread import escape_formulas
from mfgd.target import Problem

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMALL = 7
"""Font size of ticks and legends."""
LETTERS = 13
"""Letters of a title in an inch."""
LINE = 0.17
"""Height of a line of a title in inches."""
DISTANCES = {"angle.left": BLUE, "angle.right": VERMILLION, "factor_distance": GREEN}
DASHED: dict[str, Any] = {"linestyle": "--", "linewidth": 0.8}
DOTTED: dict[str, Any] = {"linestyle": ":", "linewidth": 1.2}
SAID = {"theory": ("theory", DASHED), "theory.flow": ("gradient flow", DOTTED)}
"""What is drawn beside a measure, with its label and look."""


def figures(row: Row, problem: Problem, title: str = "") -> dict[str, Figure]:
    """The figures of one run by name, each under a title."""
    drawn = {
        "curves": curves(row, title),
        "matrices": matrices(row, problem, title),
        "spectrum": spectrum(row, problem, title),
    }
    if "contraction" in row.trajectory:
        drawn["dynamics"] = dynamics(row, title)
    return drawn


def curves(row: Row, title: str = "") -> Figure:
    """Loss, relative error and `excess_loss` against the step, on logarithmic axes; theory is
    dashed.

    There is no curve of an excess that is unknown, or that is the loss itself as the optimum is 0.
    """
    excess = row.trajectory["excess_loss"]
    panels = 2 + bool((np.isfinite(excess) & (excess > 0)).any())
    ending = f"{row.outcome} at step {int(row.trajectory['step'][-1])}"
    figure = _canvas(3.5 * panels, 3, f"{title}: {ending}" if title else ending)
    left, middle, *right = _panels(figure, 1, panels)
    _draw_measure(left, row, "loss")
    _draw_measure(middle, row, "relative_error")
    if "heldout_error" in row.trajectory:
        values = row.trajectory["heldout_error"]
        _curve(middle, row.trajectory["step"], values, color=VERMILLION, label="held out")
        middle.legend(fontsize=SMALL)
    for axes in right:
        _draw_measure(axes, row, "excess_loss", label="excess over the optimum, relative")
    return figure


def spectrum(row: Row, problem: Problem, title: str = "") -> Figure:
    """Singular values of D̂ against the step; dashed: where they end by theory, else those of the
    truth or of D; dotted: those of gradient flow."""
    figure = _canvas(5, 3.4, title)
    (axes,) = _panels(figure, 1, 1)
    target = problem.spectrum
    for i, (name, colour) in enumerate(_coloured_measures(row, "sigma.")):
        _curve(axes, row.trajectory["step"], row.trajectory[name], label=f"σ{i + 1}", color=colour)
        if f"theory.flow.{name}" in row.trajectory:
            axes.plot(
                row.trajectory["step"],
                row.trajectory[f"theory.flow.{name}"],
                color=colour,
                **DOTTED,
            )
        end = 0.0
        if f"theory.{name}" in row.trajectory:
            end = float(row.trajectory[f"theory.{name}"][0])
        elif target is not None and i < len(target):
            end = float(target[i])
        if end > 0:
            axes.axhline(end, color=colour, **DASHED)
    dashed = ""
    if target is not None:
        dashed = " (dashed: of D)" if problem.complete else " (dashed: of the truth)"
        if "theory.sigma.1" in row.trajectory:
            dashed = " (dashed: theory)"
    _name(axes, f"singular values of D̂{dashed}")
    axes.legend(fontsize=SMALL, loc="best")
    return figure


def dynamics(row: Row, title: str = "") -> Figure:
    """Modes, distances, contraction and sharpness against the step, as far as they were measured;
    theory is dashed."""
    found = row.trajectory
    modes = _coloured_measures(row, "mode.", row.factors[0].shape[-1])  # as many as factors hold
    distances = [name for name in DISTANCES if np.isfinite(found.get(name, np.nan)).any()]
    count = 1 + bool(modes) + bool(distances) + ("sharpness" in found)
    down, across = (1, count) if count < 3 else (2, 2)
    figure = _canvas(3.6 * across, 2.7 * down, title)
    grid = iter(_panels(figure, down, across))
    if modes:
        _draw_modes(next(grid), row, modes)
    if distances:
        _draw_distances(next(grid), row, distances)
    _draw_measure(next(grid), row, "contraction", label="contraction per step", linear=True)
    if "sharpness" in found:
        axes = next(grid)
        _draw_measure(axes, row, "sharpness")
        if "sharpness_limit" in found:
            limit = found["sharpness_limit"]
            _curve(axes, found["step"], limit, color=VERMILLION, linestyle=":", label="2/lr")
            axes.legend(fontsize=SMALL)
    for axes in grid:
        axes.remove()
    return figure


def _draw_modes(axes: Axes, row: Row, modes: list[tuple[str, Any]]) -> None:
    steps = row.trajectory["step"]
    for name, colour in modes:
        label = name.removeprefix("mode.")
        _curve(axes, steps, row.trajectory[name], linear=True, label=label, color=colour)
        _draw_theory(axes, row, name)
    _name(axes, "modes $u_i^T \\hat{D} v_i$")
    axes.legend(fontsize=SMALL, title="mode", title_fontsize=SMALL)


def _draw_distances(axes: Axes, row: Row, names: list[str]) -> None:
    for name in names:
        label = name.replace(".", ", ").replace("_", " ")
        values = row.trajectory[name]
        _curve(axes, row.trajectory["step"], values, label=label, color=DISTANCES[name])
    _name(axes, "angle (radians), distance")
    axes.legend(fontsize=SMALL)


def _draw_measure(
    axes: Axes, row: Row, name: str, *, label: str | None = None, linear: bool = False
) -> None:
    """A measure against the step, and what theory says of it; None labels it with its name."""
    _curve(axes, row.trajectory["step"], row.trajectory[name], linear=linear, color=BLUE)
    if f"{name}.q25" in row.trajectory:
        low, high = (row.trajectory[f"{name}.{label}"] for label in ("q25", "q75"))
        axes.fill_between(row.trajectory["step"], low, high, color=BLUE, alpha=0.2, linewidth=0)
    _draw_theory(axes, row, name)
    _name(axes, label or name.replace("_", " "))


def matrices(row: Row, problem: Problem, title: str = "") -> Figure:
    """D, D̂ and the residual D̂ − D as heat maps; an entry that is not observed, or not
    finite, is grey.

    D and D̂ share a scale, and the residuals have their own. Where the truth D* is known, a fourth
    map shows D̂ − D* on the entries that are not observed. Of linear measurements D* is drawn in the
    place of D, or if it is unknown what A*(y) tells of D.
    """
    drawn, pictured = problem.pictured
    D, estimate, residual = pictured.picture(row.factors, PIXELS)
    estimate, residual = (np.where(np.isfinite(X), X, np.nan) for X in (estimate, residual))
    values, residuals = {drawn: D, "D̂": estimate}, {f"D̂ − {drawn}": residual}
    truth = problem.truth
    if isinstance(truth, AllEntries) and truth.target.shape == D.shape and np.isnan(D).any():
        missed = estimate - truth.target.numpy()
        residuals["D̂ − D* where D is not observed"] = np.where(np.isnan(D), missed, np.nan)
    n, m = problem.shape
    tall = n > 3 * m
    if tall:
        n, m = m, n
    count = len(values) + len(residuals)
    if m > 3 * n:
        figure, down, across = _canvas(7, 1.5 * count, title), count, 1
    elif count == 4:
        figure, down, across = _canvas(7, 5.4, title), 2, 2
    else:
        figure, down, across = _canvas(9, 2.8, title), 1, 3
    extent = (-0.5, m - 0.5, n - 0.5, -0.5)
    place: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest", "extent": extent}
    grid = iter(_panels(figure, down, across, left=0.35, right=0.35, bottom=0.25, gaps=(0.6, 0.5)))
    for maps, scale in ((values, scale_of(D)), (residuals, scale_about_0(*residuals.values()))):
        for name, X in maps.items():
            axes = next(grid)
            axes.set_facecolor("0.8")
            shown = np.clip(X.T if tall else X, scale["vmin"], scale["vmax"])
            image = axes.imshow(shown, **place, **scale)
            axes.set_title(f"{name} (transposed)" if tall else name, fontsize=9, y=1.0)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(5, integer=True))
            axes.tick_params(labelsize=SMALL)
            bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.15 / (4 - across))
            bar.ax.ticklabel_format(axis="y", scilimits=(-2, 3))
            bar.ax.tick_params(labelsize=SMALL)
            bar.ax.yaxis.get_offset_text().set_fontsize(SMALL)
    return figure


def _canvas(width: float, height: float, title: str) -> Figure:
    """A figure in inches, higher by the lines of its title, without automatic layout: that would
    draw each figure of each run twice."""
    lines = textwrap.wrap(title, int(LETTERS * width), max_lines=4, placeholder=" …")
    figure = Figure(figsize=(width, height + LINE * len(lines)), dpi=100)
    if lines:
        top = 1 - 0.05 / figure.get_figheight()
        figure.suptitle(escape_formulas("\n".join(lines)), fontsize=9, y=top)
    return figure


def _panels(
    figure: Figure,
    down: int,
    across: int,
    *,
    left: float = 0.55,
    right: float = 0.1,
    bottom: float = 0.4,
    gaps: tuple[float, float] = (0.6, 0.7),
) -> list[Axes]:
    """Axes in rows under the title of a figure, at margins and gaps in inches."""
    width, height = figure.get_size_inches()
    title = LINE * len(figure.get_suptitle().splitlines())
    top = 0.28 + title
    wide = (width - left - right - (across - 1) * gaps[0]) / across
    high = (height - bottom - top - (down - 1) * gaps[1]) / down
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        bottom=bottom / height,
        top=1 - top / height,
        wspace=gaps[0] / wide,
        hspace=gaps[1] / high,
    )
    return list(figure.subplots(down, across, squeeze=False).ravel())


def _name(axes: Axes, name: str) -> None:
    """Names what is drawn against the step: above the axes, where no tick label is in the way."""
    axes.set_title(name, fontsize=9, loc="left", y=1.0)
    axes.set_xlabel("step", fontsize=8, labelpad=1)


def _coloured_measures(row: Row, prefix: str, most: int | None = None) -> list[tuple[str, Any]]:
    """The first measures with this prefix and a number, each with a colour."""
    names = [
        name
        for name in row.trajectory
        if name.startswith(prefix) and name.removeprefix(prefix).isdigit()
    ][:most]
    return list(zip(names, mode_colours(len(names)), strict=True))


def _draw_theory(axes: Axes, row: Row, name: str) -> None:
    """Draws what theory, and gradient flow from the same start, say of a measure, if they say
    anything that the axes can show."""
    for kind, (label, style) in SAID.items():
        expected = row.trajectory.get(f"{kind}.{name}")
        if expected is None or (axes.get_yscale() == "log" and not (expected > 0).any()):
            continue
        known = axes.get_legend_handles_labels()[1]
        look = style if label in known else style | {"label": label}
        axes.plot(row.trajectory["step"], expected, color="black", zorder=3, **look)
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
        _fit_log_axis(axes)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(lambda value, position: f"{value:g}")
    axes.tick_params(labelsize=SMALL)
    axes.grid(alpha=0.3)


def _fit_log_axis(axes: Axes) -> None:
    """Ticks of a logarithmic axis: powers of ten only if there are several of them."""
    (step, low), (_, high) = axes.dataLim.get_points()
    if high < 1.02 * low:  # rounding of one number: the axis spans a tenth of the number at least
        axes.update_datalim([(step, low / 1.1), (step, high * 1.1)])
    if high < 4 * low:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    else:
        digits = (1.0, 2.0, 5.0) if high < 30 * low else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=digits))
