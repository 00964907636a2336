"""The curves of many runs over each other: medians, bands from quartile to quartile, and theory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from mfgd import canvas
from mfgd.canvas import NAMES, SMALL, Legend
from mfgd.columns import (
    QUARTILES,
    REPEATS,
    choose_measure,
    find_swept,
    is_lost,
    quantile,
    settings,
    short_name,
)
from mfgd.errors import Refused
from mfgd.palette import colour_of
from mfgd.spread import (
    LABELS,
    ROUNDING,
    count_of,
    describe_sweep,
    format_setting,
    label_of,
    values_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 12
"""Up to so many runs, each has its own curve too."""
BANDS = 8
"""Up to so many values of a key, the bands are drawn."""
POINTS = 100
"""Steps at which medians are taken, at most."""
INDEX = ("run_id", "step", "seconds")
"""The columns of curves that are no measures."""


def draw_curves(
    runs: pandas.DataFrame,
    curves: pandas.DataFrame,
    by: str | None = None,
    measure: str | None = None,
) -> Figure:
    """A measure against the step: a median and a band from quartile to quartile for each value of a
    key; few runs have their own curves too; the median of what theory says is dashed.

    A run that ended keeps its last value, and one that diverged, was undefined or failed is
    infinite from its end on: else the runs that go on would bend the median.

    Args:
        runs: the table of `mfgd.load_runs`, without sweeps' own runs.
        curves: one line a record: run_id, step, measures, and theory.MEASURE.
        by: the key that has the colours; None: the first that is swept.
        measure: None: that of the overview.

    Raises:
        Refused: no such key or measure, or no run has a curve of it.
    """
    if by is None:
        by = next((key for key in find_swept(runs) if key not in REPEATS), "")
    measure = measure or short_name(choose_measure(runs)).removeprefix("final_")
    if measure not in curves or measure in INDEX:
        known = ", ".join(str(name) for name in curves if name not in INDEX) or "none"
        raise Refused(f"measure={measure}: no such curve; allowed are {known}")
    keys = settings(runs, by) if by else pandas.Series("all runs", index=runs.index)
    members = {name: runs["run_id"][keys == name] for name in values_of(keys)}
    lost = set(runs["run_id"][is_lost(runs)])
    curves = curves[curves["run_id"].isin(runs["run_id"])]
    if not np.isfinite(curves[measure]).any():
        raise Refused(f"measure={measure}: no run has such a curve; allowed are runs with one")
    grid = _choose_steps(curves)
    values = _resample(curves, measure, grid, lost)
    if measure in LABELS:
        values = values.clip(lower=ROUNDING)
    theory = pandas.DataFrame(columns=grid, dtype=float)
    if f"theory.{measure}" in curves:
        theory = _resample(curves, f"theory.{measure}", grid, set())

    sizes = {name: int(ids.isin(values.index).sum()) for name, ids in members.items()}
    legend = _name_line(by, sizes, has_theory=len(theory) > 0)
    figure = canvas.blank(6.0 + legend.inches, 4.2)
    axes = figure.subplots()
    _draw_groups(axes, values, theory, members)
    axes.set_ylabel(label_of(measure), fontsize=8)
    canvas.finish(figure, describe_sweep(runs), _list_notes(runs, values, members, by), legend)
    return figure


def _choose_steps(curves: pandas.DataFrame) -> np.ndarray:
    """The steps that the longest runs recorded, or `POINTS` of them."""
    last = curves.groupby("run_id")["step"].max()
    longest = last.index[last == last.max()]
    steps = np.unique(curves["step"][curves["run_id"].isin(longest)].to_numpy(float))
    if len(steps) <= POINTS:
        return steps
    return steps[np.linspace(0, len(steps) - 1, POINTS).round().astype(int)]


def _resample(
    curves: pandas.DataFrame, measure: str, grid: np.ndarray, lost: set[str]
) -> pandas.DataFrame:
    """The measure of each run (a line) at common steps (the columns); without the runs that do not
    know it."""
    known = curves[np.isfinite(curves[measure])].sort_values(["run_id", "step"], kind="stable")
    ids, first = np.unique(known["run_id"].to_numpy(str), return_index=True)
    lines = np.empty((len(ids), len(grid)))
    steps, values = (np.split(known[name].to_numpy(float), first[1:]) for name in ("step", measure))
    for i, run_id in enumerate(ids):
        lines[i] = np.interp(grid, steps[i], values[i])
        if run_id in lost:
            lines[i, grid > steps[i][-1]] = np.inf
    return pandas.DataFrame(lines, index=ids, columns=grid)


def _draw_groups(
    axes: Axes,
    values: pandas.DataFrame,
    theory: pandas.DataFrame,
    members: Mapping[float | str, pandas.Series],
) -> None:
    """Single curves, bands, medians and theory, each group in its colour."""
    colours = colour_of(members)
    steps = values.columns.to_numpy(float)
    parts = {name: values[values.index.isin(ids)] for name, ids in members.items()}
    bands = {name: _quartiles(part) for name, part in parts.items()}
    single = values.to_numpy() if len(values) <= FEW else np.empty((0, len(steps)))
    has_bands = len(members) <= BANDS
    shown = [band if has_bands else band[1:2] for band in bands.values()]
    drawn = np.concatenate([single, *shown, theory.to_numpy()])
    top = canvas.scale_measure(axes, np.minimum(drawn, _find_cap(values)).ravel())
    for name, (low, median, high) in bands.items():
        style: dict[str, Any] = {"color": colours[str(name)]}
        for line in parts[name].to_numpy() if len(single) else ():
            axes.plot(steps, _break(line), linewidth=0.5, alpha=0.5, **style)
        if has_bands:
            axes.fill_between(steps, _break(low), np.minimum(high, top), alpha=0.2, lw=0, **style)
        axes.plot(steps, _break(median), linewidth=1.6, zorder=4, **style)
    known = {name: theory[theory.index.isin(ids)] for name, ids in members.items()}
    expected = {name: _quartiles(part)[1] for name, part in known.items() if len(part)}
    same = len({line.tobytes() for line in expected.values()}) == 1
    for name, line in expected.items():
        colour = "black" if same else colours[str(name)]
        axes.plot(steps, line, linestyle="--", linewidth=1.2, zorder=5, color=colour)
    # Linear up to 1 and logarithmic from there, so that step 0 has its place too.
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(steps[0] - 0.05, steps[-1] * 1.1 + 0.1)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, position: f"{value:g}")
    axes.tick_params(labelsize=SMALL)
    axes.grid(alpha=0.3)
    axes.set_xlabel("step", fontsize=8)


def _find_cap(values: pandas.DataFrame) -> float:
    """Ten times the largest start, and the largest value of a run that came anywhere: up to where
    the figure follows the runs that diverge."""
    ended = values[np.isfinite(values).all(axis=1)]
    return float(max(10 * values.iloc[:, 0].abs().max(), ended.max(axis=None)))


def _quartiles(values: pandas.DataFrame) -> np.ndarray:
    """Low, median and high at each step, (3, steps)."""
    columns = values.to_numpy().T
    return np.array([[quantile(column, q) for column in columns] for q in QUARTILES.values()])


def _break(line: np.ndarray) -> np.ndarray:
    """A line that ends where it is infinite."""
    return np.where(np.isfinite(line), line, np.nan)


def _name_line(by: str, sizes: Mapping[float | str, int], *, has_theory: bool) -> Legend:
    """The groups with their numbers of runs, and the other marks."""
    colours = colour_of(sizes)
    artists: list[Any] = []
    labels = []
    for name in canvas.choose_names(list(sizes)):
        artists.append(Line2D([], [], color=colours[str(name)], linewidth=1.6))
        labels.append(f"{format_setting(name)} ({count_of(sizes[name], 'run')})")
    if len(sizes) <= BANDS and max(sizes.values()) > 1:
        artists.append(Patch(color="0.5", alpha=0.3, linewidth=0))
        labels.append("quartiles")
    if has_theory:
        artists.append(Line2D([], [], color="0.2", linestyle="--", linewidth=1.2))
        labels.append("theory, median")
    return Legend(artists, labels, by)


def _list_notes(
    runs: pandas.DataFrame,
    values: pandas.DataFrame,
    members: Mapping[float | str, pandas.Series],
    by: str,
) -> list[str]:
    """What the figure does not show."""
    notes = []
    pooled = [key for key in find_swept(runs) if key != by]
    if pooled:
        notes.append(f"medians over {', '.join(pooled)}")
    if len(members) > BANDS:
        notes.append("quartiles are not drawn")
    if len(members) > NAMES:
        notes.append(f"the legend names some values of {by}")
    if n := int(is_lost(runs).sum()):
        said = f"{count_of(n, 'run')} diverged, {'was' if n == 1 else 'were'} undefined or failed"
        notes.append(f"{said}: infinite from the end on")
    if n := len(runs) - len(values):
        notes.append(f"{count_of(n, 'run')} without this curve")
    return notes
