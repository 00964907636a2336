"""The overview figure of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

PANELS = 12
"""How many settings the overview shows."""
COLUMNS = 4
"""How many panels stand side by side."""
LARGEST = 18
"""Inches of a side of the figure."""
AXES = ("lr", "rank")
"""The keys that are drawn across and down, if they vary."""
WELL = "converged", "plateau", "budget"
"""Outcomes without a ×."""
REPEATS = ("seed", "problem.seed")


def overview(runs: pandas.DataFrame) -> Figure:
    """Final relative error over learning rate and rank, or over two other keys that the sweep
    varies, with a panel for each setting of the rest.

    Args:
        runs: the table of `mfgd.load_runs`. Repeats of a setting, such as seeds, are reduced to
            their median; × marks a setting of which a run diverged, was undefined or failed.
    """
    frame, (x, y, *rest) = _arrange(runs)
    norm = None
    if frame["error"].notna().any():
        norm = LogNorm(frame["error"].min(), frame["error"].max() * 1.001)
    across, down = (sorted(frame[name].unique(), key=_by_size) for name in (x, y))

    panels: list[Any] = [((), frame)]
    columns = 1
    if rest:
        panels = list(frame.groupby(rest))[:PANELS]
        columns = min(len(panels), frame[rest[-1]].nunique(), COLUMNS)
    lines = -(-len(panels) // columns)
    width = 1.5 + columns * (0.9 + 0.55 * len(across))
    height = 0.3 + lines * (0.9 + 0.4 * len(down))
    size = min(width, LARGEST), min(height, LARGEST)
    figure = Figure(figsize=size, layout="constrained", dpi=120)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    image: Any = None
    for axes, (setting, part) in zip(grid, panels, strict=False):
        cells = part.groupby([y, x])[["error", "well"]].agg({"error": "median", "well": "min"})
        errors = cells["error"].unstack().reindex(index=down, columns=across)
        well = cells["well"].unstack().reindex(index=down, columns=across)
        image = axes.imshow(errors, norm=norm, cmap="viridis_r", aspect="auto")
        _write_cells(axes, errors, well)
        axes.set_xticks(range(len(across)), across, fontsize=7)
        axes.set_yticks(range(len(down)), down, fontsize=7)
        title = [f"{name} {value}" for name, value in zip(rest, setting, strict=True)]
        axes.set_title(", ".join(title), fontsize=8)
        axes.set(xlabel=x.strip(), ylabel=y.strip())
    for axes in grid[len(panels) :]:
        axes.remove()
    if norm is not None:
        label = "final relative error (× diverged or undefined)"
        figure.colorbar(image, ax=list(grid[: len(panels)]), label=label)
    return figure


def _arrange(runs: pandas.DataFrame) -> tuple[pandas.DataFrame, Sequence[str]]:
    """The runs' keys, `error` and `well` (1 if a run's outcome is in `WELL`), and the names of
    the keys: across, down, and the rest in the order of their number of values."""
    import pandas

    varied = [name for name in find_varied(runs) if name not in REPEATS]
    first = [name for name in AXES if name in varied]
    names = first + sorted(set(varied) - set(first))
    columns = {name: runs[f"params.{name}"].fillna("–") for name in names}
    frame = pandas.DataFrame(columns, index=runs.index)
    while len(names) < 2:
        names.append(" " * len(names))  # an axis without a name, unlike the other axis
        frame[names[-1]] = ""
    frame["well"] = runs["tags.outcome"].isin(WELL).astype(float)
    unknown = pandas.Series(np.nan, index=runs.index)
    error = runs.get("metrics.final_relative_error", unknown)
    frame["error"] = error.where((frame["well"] == 1) & (error > 0) & np.isfinite(error))
    rest = sorted(names[2:], key=lambda name: frame[name].nunique())
    return frame, names[:2] + rest


def _write_cells(axes: Axes, errors: pandas.DataFrame, well: pandas.DataFrame) -> None:
    """Writes the number, and ×, into each cell of a panel."""
    box = {"fc": "1", "ec": "none", "alpha": 0.6}
    axes.set_facecolor("0.9")
    for (i, j), value in np.ndenumerate(errors):
        text = "" if np.isnan(value) else f"{value:.2g}"
        if well.iloc[i, j] == 0:
            text += "×"
        axes.text(j, i, text, ha="center", va="center", fontsize=7, bbox=box)


def find_varied(runs: pandas.DataFrame) -> list[str]:
    """The params that take several values.

    A param that only some runs have, with one value, follows from another param, and so does what
    is known of the data.
    """
    params = [
        name
        for name in runs.columns
        if name.startswith("params.") and not name.startswith("params.data.")
    ]
    return [name.removeprefix("params.") for name in params if runs[name].nunique() > 1]


def _by_size(text: str) -> tuple[int, float, str]:
    """Sorts numbers by size, before words."""
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text
