"""A phase diagram: the share of runs that succeed, over two keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mfgd import canvas
from mfgd.canvas import SMALL
from mfgd.columns import (
    LOST,
    REPEATS,
    find_swept,
    is_lost,
    is_numeric,
    measured,
    outcomes,
    settings,
)
from mfgd.errors import Refused
from mfgd.spread import describe_sweep, escape_formulas, format_setting, values_of

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL = (0.62, 0.5)
"""Inches of a cell, across and down, if there is room."""
LARGEST = 6.5
"""Inches of a side of the diagram, at most."""
SMALLEST = 2.5
BAR = 0.2
"""Inches of the width of the colour bar."""
TICKS = 12
"""Names along a side, at most."""
WRITTEN = (0.45, 0.36)
"""Inches of a cell from which on the numbers are written into it."""
NUMBERS = 6.5
"""Font size of the numbers in a cell."""
DARK = 0.55
"""Up to this share the numbers are white on the map."""

GRID = 20
"""A sweep of two numbers that have at least so many values each is a map."""
RATE = "metrics.success_rate"


def find_rates(runs: pandas.DataFrame) -> pandas.Series | None:
    """The share of each run's replicates that succeed, under the name of their condition; None if
    a run has no such share."""
    if RATE not in runs or runs[RATE].isna().any():
        return None
    conditions = runs["params.success"].unique()
    return runs[RATE].rename(conditions[0] if len(conditions) == 1 else RATE)


def find_arrivals(runs: pandas.DataFrame) -> pandas.Series | None:
    """Whether each run converged, or if none did, whether it has a final value, under the name of
    this condition; None if the runs are no grid of two numbers, as maps of basins are."""
    keys = [key for key in find_swept(runs) if key not in REPEATS]
    dense = [is_numeric(runs, key) and settings(runs, key).nunique() >= GRID for key in keys]
    if len(keys) != 2 or not all(dense):
        return None
    converged = outcomes(runs) == "converged"
    if converged.any():
        return converged.rename('outcome == "converged"')
    return (~is_lost(runs)).rename("a final value")


def phase(
    runs: pandas.DataFrame, success: pandas.Series, keys: Sequence[str] | None = None
) -> Figure:
    """The share of runs that succeed, over two keys; into the cells, if they are large enough, go
    the share, the number of runs, and × with the share that diverged, was undefined or failed.

    Args:
        runs: the table of `mfgd.load_runs`, without sweeps' own runs.
        success: whether each run succeeded, with the index of `runs`; its name says what success
            is. Or what `find_rates` gives: then the cells count replicates.
        keys: across and down; None: the first two that are swept, lr across.

    Raises:
        Refused: there are no two keys, or no such one.
    """
    import pandas

    across, down = _choose_keys(runs, keys)
    by = [settings(runs, down), settings(runs, across)]
    rows, columns = (values_of(column) for column in by)
    counted, weights, lost_runs = "runs", np.ones(len(runs)), is_lost(runs).astype(float)
    if success.dtype == float:
        counted, weights = "replicates", measured(runs, "params.replicates").to_numpy()
        lost_runs = _find_lost_replicates(runs) / weights
    columns_of = {"share": success * weights, "n": weights, "lost": lost_runs * weights}
    sums = pandas.DataFrame(columns_of, index=runs.index).groupby(by).sum()
    shares = sums[["share", "lost"]].div(sums["n"], axis=0)
    share, lost, n = (
        cells.unstack().reindex(index=rows, columns=columns)
        for cells in (shares["share"], shares["lost"], sums["n"])
    )
    wide, high = (
        min(max(size * count, SMALLEST), LARGEST)
        for size, count in zip(CELL, (len(columns), len(rows)), strict=True)
    )
    figure = canvas.blank(wide + 1.7, high + 1.2)
    axes = figure.subplots()
    axes.set_facecolor("0.85")
    style: dict[str, Any] = {"origin": "lower", "aspect": "auto", "interpolation": "nearest"}
    image = axes.imshow(share, vmin=0, vmax=1, cmap="viridis", **style)
    _name_ticks(axes, columns, rows, (wide, high))
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(down, fontsize=8)
    bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05, aspect=high / BAR)
    # A comparison keeps the name of its column, which says nothing of success.
    is_named = success.name is not None and success.name not in runs
    said = f"share with {success.name}" if is_named else "share of successes"
    bar.set_label(escape_formulas(said), fontsize=8)
    bar.ax.tick_params(labelsize=SMALL)

    counts = n.to_numpy()[n.notna()]
    size = f"{counts.min():g}" + ("" if counts.min() == counts.max() else f" to {counts.max():g}")
    notes = [f"{size} {counted if size != '1' else counted.removesuffix('s')} a cell"]
    if share.isna().to_numpy().any():
        notes.append("grey: no run")
    if wide / len(columns) >= WRITTEN[0] and high / len(rows) >= WRITTEN[1]:
        _write_cells(axes, share.to_numpy(), n.to_numpy(), lost.to_numpy())
        if lost_runs.any():
            notes.append("×: share that diverged, was undefined or failed")
    elif lost_runs.any():
        lost_of_all = np.average(lost_runs, weights=weights)
        notes.append(f"{lost_of_all:.0%} of all {counted} diverged, were undefined or failed")
    pooled = [key for key in find_swept(runs) if key not in (across, down)]
    notes.append(f"shares over {', '.join(pooled)}" if pooled else "")
    canvas.finish(figure, describe_sweep(runs), notes, canvas.Legend())
    return figure


def _find_lost_replicates(runs: pandas.DataFrame) -> pandas.Series:
    """How many replicates of each run are lost."""
    columns = [f"metrics.replicates.{outcome}" for outcome in LOST]
    return runs.reindex(columns=columns).fillna(0.0).sum(axis=1)


def _choose_keys(runs: pandas.DataFrame, keys: Sequence[str] | None) -> tuple[str, str]:
    """The keys across and down."""
    swept = [key for key in find_swept(runs) if key not in REPEATS]
    if keys is None:
        keys = sorted(swept[:2], key=lambda key: key != "lr")
    if len(keys) != 2 or keys[0] == keys[1]:
        given = ",".join(keys) or "none"
        known = ", ".join(swept) or "none"
        raise Refused(f"keys={given}: a phase diagram needs two keys; the runs vary {known}")
    return keys[0], keys[1]


def _name_ticks(
    axes: Axes,
    columns: Sequence[float | str],
    rows: Sequence[float | str],
    inches: tuple[float, float],
) -> None:
    """Names every column and row, or every second, third, … if they have no room."""
    names = [format_setting(value) for value in columns]
    wide = canvas.LETTER * max(map(len, names)) + 0.08
    step = _choose_stride(len(names), inches[0] / wide)
    axes.set_xticks(range(0, len(names), step), names[::step], fontsize=SMALL)
    names = [format_setting(value) for value in rows]
    step = _choose_stride(len(names), inches[1] / 0.15)
    axes.set_yticks(range(0, len(names), step), names[::step], fontsize=SMALL)


def _choose_stride(n: int, room: float) -> int:
    """How many of n names are one step, if so many have room."""
    return int(np.ceil(n / max(1.0, min(room, TICKS))))


def _write_cells(axes: Axes, share: np.ndarray, n: np.ndarray, lost: np.ndarray) -> None:
    """Share, number of runs and share of lost runs of each cell."""
    for (i, j), value in np.ndenumerate(share):
        if np.isnan(value):
            continue
        text = f"{value:.2g}\nn {n[i, j]:g}"
        if lost[i, j] > 0:
            text += f"\n×{lost[i, j]:.0%}"
        colour = "white" if value < DARK else "black"
        axes.text(j, i, text, ha="center", va="center", fontsize=NUMBERS, color=colour)
