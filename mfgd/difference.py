"""Two runs beside each other: what differs, as text and as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from mfgd.columns import is_plumbing, kind_of, measured, short_name
from mfgd.init import factor_names
from mfgd.listing import align
from mfgd.palette import OKABE_ITO
from mfgd.spread import escape_formulas

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from mfgd.artifacts import Run

SIDES = 512
"""A matrix is thinned out to so many entries a side."""
CLOCKS = ("solve_seconds",)


def describe_difference(runs: pandas.DataFrame) -> str:
    """The keys in which two runs differ, their metrics, and what theory says of each, as text.

    Args:
        runs: two lines of the table of `mfgd.load_runs`.
    """
    names = [str(run_id)[:8] for run_id in runs["run_id"]]
    parts = []
    for title, kind in (("keys that differ", "params"), ("metrics", "metrics"), ("tags", "tags")):
        lines = _read_kind(runs, kind)
        if kind != "metrics":
            lines = {name: (a, b) for name, (a, b) in lines.items() if a != b}
        if not lines:
            parts.append(f"{title}: none")
            continue
        cells: dict[str, list[object]] = {title: list(lines)}
        for i, name in enumerate(names):
            cells[name] = [pair[i] for pair in lines.values()]
        if kind == "metrics":
            cells["ratio"] = [_ratio(*pair) for pair in lines.values()]
        parts.append(align(cells))
    return "\n\n".join(parts)


def _read_kind(runs: pandas.DataFrame, kind: str) -> dict[str, tuple[Any, Any]]:
    """Short name → the values of both runs, of the columns that one of them has."""
    found = {}
    for column in map(str, runs.columns):
        name = short_name(column)
        said = kind_of(column) == kind and not is_plumbing(name)
        if said and runs[column].notna().any() and name not in CLOCKS:
            values = measured(runs, column) if kind == "metrics" else runs[column].fillna("–")
            found[name] = tuple(values)
    if kind == "tags":
        shown = ("outcome", "oracle.")
        found = {name: pair for name, pair in found.items() if name.startswith(shown)}
    return found


def _ratio(a: float, b: float) -> float:
    return a / b if b and np.isfinite(a) and np.isfinite(b) else float("nan")


def draw_difference(first: Run, second: Run, names: tuple[str, str]) -> Figure:
    """Both runs' curves and spectra over each other, D̂ and the residual side by side, each pair on
    one scale.

    Args:
        first: as `mfgd.load_run` gives it.
        second: the other.
        names: what the legends call them.
    """
    names = escape_formulas(names[0]), escape_formulas(names[1])
    figure = Figure(figsize=(11, 8.5), layout="constrained", dpi=120)
    halves: Any = figure.subfigures(2, 1, height_ratios=(1, 1.6))
    above, below = halves
    errors, spectra = above.subplots(1, 2)
    pairs = list(zip((first, second), names, OKABE_ITO, strict=False))
    for run, name, colour in pairs:
        _draw_curve(errors, run, name, colour)
        sigma = np.linalg.svd(_product(run), compute_uv=False)[: min(20, _rank(run) + 4)]
        place = np.arange(1, len(sigma) + 1)
        spectra.semilogy(place, np.maximum(sigma, 1e-16), "o-", color=colour, label=name)
    errors.set(xlabel="step", ylabel="relative error", xscale="symlog", yscale="log")
    spectra.set(xlabel="i", ylabel="singular values of D̂ at the end")
    for axes in (errors, spectra):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    grid: Any = below.subplots(2, 2)
    _draw_matrices(grid[0], [_product(run) for run, _, _ in pairs], "D̂", names)
    residuals = [_residual(run) for run, _, _ in pairs]
    if all(residual is not None for residual in residuals):
        _draw_matrices(grid[1], residuals, "D̂ − D", names)
    else:
        for axes in grid[1]:
            axes.set_axis_off()
        grid[1, 0].set_title("a run did not keep its D: no residual", fontsize=9)
    return figure


def _draw_curve(axes: Axes, run: Run, name: str, colour: str) -> None:
    steps, error = run.trajectory["step"], run.trajectory["relative_error"]
    shown = np.isfinite(error) & (error > 0)
    axes.plot(steps[shown], error[shown], color=colour, label=name)
    if "theory.relative_error" in run.trajectory:
        axes.plot(steps, run.trajectory["theory.relative_error"], "--", color=colour, linewidth=0.8)


def _draw_matrices(axes: Any, matrices: list[Any], title: str, names: tuple[str, str]) -> None:
    """Matrices side by side on one scale, which is diverging if they have both signs."""
    finite = np.concatenate([X[np.isfinite(X)].ravel() for X in matrices])
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    style: dict[str, Any] = {"cmap": "viridis", "vmin": low, "vmax": high}
    if low < 0 < high:
        bound = max(-low, high)
        style = {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound}
    for place, X, name in zip(axes, matrices, names, strict=True):
        down, across = (max(1, size // SIDES) for size in X.shape)
        image = place.imshow(X[::down, ::across], aspect="auto", interpolation="nearest", **style)
        place.set_title(f"{title}, {name}", fontsize=9)
        place.tick_params(labelsize=7)
        place.set_facecolor("0.8")
    place.figure.colorbar(image, ax=list(axes))


def _factors(run: Run) -> list[np.ndarray]:
    """C and F, or W1 … WL, in their order."""
    return [run.matrices[name].double().numpy() for name in factor_names(run.config.depth)]


def _rank(run: Run) -> int:
    return _factors(run)[0].shape[1]


def _product(run: Run) -> np.ndarray:
    return np.linalg.multi_dot(_factors(run))


def _residual(run: Run) -> np.ndarray | None:
    """D̂ − D, NaN where D is not observed; None if D was not kept."""
    if "D" not in run.matrices:
        return None
    return _product(run) - run.matrices["D"].to_dense().double().numpy()
