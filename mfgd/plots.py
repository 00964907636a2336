"""Figures: of one run, and of a sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from mfgd.objective import product
from mfgd.problem import Problem
from mfgd.record import Row
from mfgd.sparse import Pattern
from mfgd.types import Factors

if TYPE_CHECKING:
    import pandas

PIXELS = 256
"""A picture is drawn up to at least, and averaged down to at most, about this many pixels a side."""
PANELS = 12
"""How many settings the overview shows."""


def figures(row: Row, problem: Problem) -> dict[str, Figure]:
    """The figures of one run by name."""
    made = {
        "curves": curves(row),
        "matrices": matrices(row, problem),
        "spectrum": spectrum(row, problem),
    }
    return made | ({"dynamics": dynamics(row)} if "contraction" in row.trajectory else {})


def curves(row: Row) -> Figure:
    """Loss and errors against the step, on logarithmic axes; dashed: what theory says of them."""
    figure = _canvas(7, 3.2)
    for axes, name in zip(figure.subplots(1, 2), ("loss", "relative_error"), strict=True):
        _curve(axes, row.trajectory["step"], row.trajectory[name])
        _theory(axes, row, name)
        axes.set(xlabel="step", ylabel=name.replace("_", " "))
    if "heldout_error" in row.trajectory:
        _curve(
            axes,
            row.trajectory["step"],
            row.trajectory["heldout_error"],
            color="tab:orange",
            label="held out",
        )
        axes.legend(fontsize=7)
    figure.suptitle(f"{row.outcome} at step {int(row.trajectory['step'][-1])}", fontsize=10)
    figure.subplots_adjust(left=0.11, right=0.98, bottom=0.16, top=0.9, wspace=0.3)
    return figure


def spectrum(row: Row, problem: Problem) -> Figure:
    """Singular values of D̂ against the step; dashed: where theory has them end, else those of D or of the truth."""
    figure = _canvas(5, 3.4)
    axes = figure.subplots()
    target = problem.spectrum
    for i, (name, colour) in enumerate(_series(row, "sigma.")):
        _curve(axes, row.trajectory["step"], row.trajectory[name], label=f"σ{i + 1}", color=colour)
        ends: Any = row.trajectory.get(
            f"theory.{name}", [] if target is None else target[i : i + 1]
        )
        if len(ends) and ends[0] > 0:
            axes.axhline(float(ends[0]), color=colour, linestyle="--", linewidth=0.8)
    dashed = (
        ""
        if target is None
        else " (dashed: of D)"
        if "theory.sigma.1" not in row.trajectory
        else " (dashed: theory)"
    )
    axes.set(xlabel="step", ylabel=f"singular values of D̂{dashed}")
    axes.legend(fontsize=7, loc="best")
    figure.subplots_adjust(left=0.15, right=0.97, bottom=0.15, top=0.96)
    return figure


def dynamics(row: Row) -> Figure:
    """Modes, subspaces, contraction and sharpness against the step, as far as they were measured; dashed: theory."""
    steps, found = row.trajectory["step"], row.trajectory
    modes = _series(row, "mode.")[: row.factors[0].shape[-1]]  # the factors cannot hold more
    apart = [name for name in ("angle.left", "angle.right", "factor_distance") if name in found]
    panels = [bool(modes), bool(apart), True, "sharpness" in found]
    width = 3.6 * sum(panels)
    figure = _canvas(width, 3.2)
    grid = iter(np.ravel(figure.subplots(1, sum(panels), squeeze=False)))
    if modes:
        axes = next(grid)
        for name, colour in modes:
            _curve(
                axes,
                steps,
                found[name],
                label=name.removeprefix("mode."),
                color=colour,
                linear=True,
            )
            _theory(axes, row, name)
        axes.set(xlabel="step", ylabel="modes $u_i^T \\hat{D} v_i$")
        axes.legend(fontsize=7, title="mode", title_fontsize=7)
    if apart:
        axes = next(grid)
        for name in apart:
            _curve(axes, steps, found[name], label=name.replace(".", ", ").replace("_", " "))
        axes.set(xlabel="step", ylabel="angle (radians), distance")
        axes.legend(fontsize=7)
    axes = next(grid)
    _curve(axes, steps, found["contraction"], linear=True)
    _theory(axes, row, "contraction")
    axes.set(xlabel="step", ylabel="contraction per step")
    if "sharpness" in found:
        axes = next(grid)
        _curve(axes, steps, found["sharpness"])
        _theory(axes, row, "sharpness")
        if "sharpness_limit" in found:
            _curve(
                axes, steps, found["sharpness_limit"], color="tab:red", linestyle=":", label="2/lr"
            )
            axes.legend(fontsize=7)
        axes.set(xlabel="step", ylabel="sharpness")
    figure.subplots_adjust(
        left=0.7 / width, right=1 - 0.1 / width, bottom=0.16, top=0.95, wspace=0.34
    )
    return figure


def matrices(row: Row, problem: Problem) -> Figure:
    """D, D̂ and the residual D̂ − D as heat maps; missing entries are grey."""
    D, estimate, residual = _shown(problem, row.factors)
    n, m = problem.shape
    tall = n > 3 * m
    wide = tall or m > 3 * n
    figure = _canvas(*((7, 4.2) if wide else (9, 2.8)))
    grid = figure.subplots(*((3, 1) if wide else (1, 3)))
    bound = _bound(D)
    for axes, (name, X, style) in zip(
        grid,
        (
            ("D", D, {"cmap": "viridis", "vmin": np.nanmin(D), "vmax": np.nanmax(D)}),
            ("D̂", estimate, {"cmap": "viridis", "vmin": np.nanmin(D), "vmax": np.nanmax(D)}),
            ("D̂ − D", _finite(residual), {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound}),
        ),
        strict=True,
    ):
        axes.set_facecolor("0.8")
        across, down = (n, m) if tall else (m, n)
        place = {
            "aspect": "auto",
            "interpolation": "nearest",
            "extent": (-0.5, across - 0.5, down - 0.5, -0.5),
        }
        image = axes.imshow(X.T if tall else X, **place, **style)
        axes.set_title(name + (" (transposed)" if tall else ""), fontsize=9)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True))
        axes.tick_params(labelsize=7)
        figure.colorbar(image, ax=axes, pad=0.02).ax.tick_params(labelsize=7)
    figure.subplots_adjust(
        left=0.05, right=0.98, bottom=0.07 if wide else 0.1, top=0.93 if wide else 0.9, hspace=0.45
    )
    return figure


def pictures(problem: Problem, factors: Factors) -> dict[str, np.ndarray]:
    """D̂ and the residual as RGB images (height, width, 3) uint8, on the colour scales of `matrices`."""
    D, estimate, residual = _shown(problem, factors)
    low, high, bound = np.nanmin(D), np.nanmax(D), _bound(D)
    return {
        "D_hat": _picture(estimate, "viridis", low, high),
        "residual": _picture(_finite(residual), "RdBu_r", -bound, bound),
    }


def overview(runs: pandas.DataFrame) -> Figure:
    """Final relative error over learning rate and rank, or what else was swept, with a panel for each other setting.

    Args:
        runs: as `mfgd.load_runs` gives them. Repeats of a setting, such as seeds, are reduced to their median; × marks
            a setting of which a run diverged or failed.
    """
    import pandas

    names = [name for name in swept(runs) if name not in ("seed", "problem.seed")]
    names.sort(key=lambda name: (("lr", "rank").index(name) if name in ("lr", "rank") else 2, name))
    frame = pandas.DataFrame(
        {name: runs[f"params.{name}"].fillna("–") for name in names}, index=runs.index
    )
    while len(names) < 2:
        names.append(" " * len(names))
        frame[names[-1]] = ""
    x, y, *rest = names
    rest.sort(key=lambda name: frame[name].nunique())
    frame["well"] = runs["tags.outcome"].isin(["converged", "budget"]).astype(float)
    error = runs.get("metrics.final_relative_error", pandas.Series(np.nan, index=runs.index))
    frame["error"] = error.where((frame["well"] == 1) & (error > 0) & np.isfinite(error))
    norm = (
        LogNorm(frame["error"].min(), frame["error"].max() * 1.001)
        if frame["error"].notna().any()
        else None
    )
    across, down = (sorted(frame[name].unique(), key=_by_size) for name in (x, y))

    panels = list(frame.groupby(rest))[:PANELS] if rest else [((), frame)]
    columns = min(len(panels), frame[rest[-1]].nunique() if rest else 1, 4)
    lines = -(-len(panels) // columns)
    width, height = (
        1.5 + columns * (0.9 + 0.55 * len(across)),
        0.3 + lines * (0.9 + 0.4 * len(down)),
    )
    figure = Figure(figsize=(min(width, 18), min(height, 18)), layout="constrained", dpi=120)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    image: Any = None
    for axes, (setting, part) in zip(grid, panels, strict=False):
        cells = part.groupby([y, x])[["error", "well"]].agg({"error": "median", "well": "min"})
        errors, well = (
            cells[name].unstack().reindex(index=down, columns=across) for name in ("error", "well")
        )
        image = axes.imshow(errors, norm=norm, cmap="viridis_r", aspect="auto")
        axes.set_facecolor("0.9")
        for (i, j), value in np.ndenumerate(errors):
            text = ("" if np.isnan(value) else f"{value:.2g}") + (
                "×" if well.iloc[i, j] == 0 else ""
            )
            axes.text(
                j,
                i,
                text,
                ha="center",
                va="center",
                fontsize=7,
                bbox={"fc": "1", "ec": "none", "alpha": 0.6},
            )
        axes.set_xticks(range(len(across)), across, fontsize=7)
        axes.set_yticks(range(len(down)), down, fontsize=7)
        axes.set_title(
            ", ".join(f"{name} {value}" for name, value in zip(rest, setting, strict=True)),
            fontsize=8,
        )
        axes.set(xlabel=x.strip(), ylabel=y.strip())
    for axes in grid[len(panels) :]:
        axes.remove()
    if norm is not None:
        figure.colorbar(
            image, ax=list(grid[: len(panels)]), label="final relative error (× diverged)"
        )
    return figure


def swept(runs: pandas.DataFrame) -> list[str]:
    """The parameters that take several values; one that only some runs have, with one value, follows from another."""
    return [
        name.removeprefix("params.")
        for name in runs.columns
        if name.startswith("params.") and runs[name].nunique() > 1
    ]


def _by_size(text: str) -> tuple[int, float, str]:
    """Sorts numbers by size, before words."""
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def _canvas(width: float, height: float) -> Figure:
    """A figure in inches without automatic layout, which would draw everything twice: there is one of these a run."""
    return Figure(figsize=(width, height), dpi=100)


def _series(row: Row, prefix: str) -> list[tuple[str, Any]]:
    """The measures of that prefix, each with a colour."""
    names = [name for name in row.trajectory if name.startswith(prefix)]
    return list(
        zip(names, colormaps["viridis"](np.linspace(0, 0.9, max(len(names), 2))), strict=False)
    )


def _theory(axes: Any, row: Row, name: str) -> None:
    """What theory says of a measure, in black and dashed, where it does and the axes can show it."""
    expected = row.trajectory.get(f"theory.{name}")
    if expected is None or (axes.get_yscale() == "log" and not (expected > 0).any()):
        return
    label = None if "theory" in axes.get_legend_handles_labels()[1] else "theory"
    axes.plot(
        row.trajectory["step"],
        expected,
        color="black",
        linestyle="--",
        linewidth=0.8,
        label=label,
        zorder=3,
    )
    axes.legend(fontsize=7)


def _curve(
    axes: Any, steps: np.ndarray, values: np.ndarray, *, linear: bool = False, **style: Any
) -> None:
    positive = np.isfinite(values) & ((values > 0) | linear)
    axes.plot(
        steps[positive],
        values[positive],
        **{"marker": ".", "markersize": 3, "linewidth": 1} | style,
    )
    # Step 0 has its place on the axis too: linear up to 1, logarithmic from there.
    axes.set_xscale("symlog", linthresh=1)
    if not linear:
        axes.set_yscale("log")
    if not linear and positive.any() and values[positive].max() < 30 * values[positive].min():
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(lambda value, position: f"{value:g}")
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)


def _shown(problem: Problem, factors: Factors) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """D, D̂ and D̂ − D, NaN where not observed; beside a sparse D means over cells of a grid of few pixels."""
    if problem.pattern is not None:
        return _cells(problem.pattern, problem.entries, factors)
    whole, estimate = (X.to(torch.float64).numpy() for X in (problem.holed, product(factors)))
    return whole, estimate, estimate - whole


def _cells(
    pattern: Pattern, entries: Tensor, factors: Factors
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over cells: of D and D̂ − D those of the observed entries, NaN where none is; of D̂ those of all entries."""
    left, right = (X.to(torch.float64) for X in (product(factors[:-1]), factors[-1]))
    bins = [torch.arange(size) * min(size, PIXELS) // size for size in pattern.D.shape]
    height, width = shape = [int(bin[-1]) + 1 for bin in bins]
    # The mean of a product over a cell is the product of the means.
    estimate = _means(left, bins[0], height) @ _means(right.mT, bins[1], width).mT
    cells = bins[0][pattern.rows] * width + bins[1][pattern.columns]
    missed = pattern.sampled(left, right).flatten() - entries
    D, residual = (_means(X, cells, height * width).view(shape) for X in (entries, missed))
    return D.numpy(), estimate.numpy(), residual.numpy()


def _means(X: Tensor, cells: Tensor, count: int) -> Tensor:
    """Means over the entries or rows of X in each cell, NaN where there is none."""
    sums = torch.zeros((count, *X.shape[1:]), dtype=X.dtype).index_add_(0, cells, X)
    return sums / torch.bincount(cells, minlength=count).view(-1, *[1] * (X.ndim - 1))


def _bound(D: np.ndarray) -> float:
    return float(np.nanmax(np.abs(D))) or 1.0


def _finite(X: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(X), X, np.nan)


def _picture(X: np.ndarray, cmap: str, low: float, high: float) -> np.ndarray:
    if X.shape[0] > X.shape[1]:
        X = X.T
    blocks = [max(1, round(size / PIXELS)) for size in X.shape]
    X = X[: X.shape[0] // blocks[0] * blocks[0], : X.shape[1] // blocks[1] * blocks[1]]
    X = (
        X.reshape(X.shape[0] // blocks[0], blocks[0], -1, blocks[1])[:, 0, :, 0]
        if max(blocks) > 1
        else X
    )
    grow = max(1, PIXELS // max(X.shape))
    X = np.kron(X, np.ones((grow, grow)))
    scaled = np.clip((X - low) / ((high - low) or 1.0), 0, 1)
    colours = colormaps[cmap](np.ma.masked_invalid(scaled), bytes=True)[..., :3]
    colours[~np.isfinite(X)] = 204
    return np.ascontiguousarray(colours)
