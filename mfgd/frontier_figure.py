"""The figure of a frontier: the brackets over one other key, and theory over them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mfgd import canvas
from mfgd.bisection import Axis
from mfgd.columns import REPEATS
from mfgd.palette import BLACK, BLUE, colour_of
from mfgd.spread import escape_formulas, format_setting, values_of

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

SIZE = (5.2, 3.6)
"""Inches."""
APART = 0.06
"""How far the points of two settings stand apart, as a share of the least distance in x."""


def draw(table: pandas.DataFrame, axis: Axis, success: str) -> Figure | None:
    """The brackets of a frontier over the first other key, a colour for each setting of the rest;
    lines join the medians over seeds. What theory says is dashed.

    Args:
        table: of `mfgd.frontier.Frontier`.
        axis: the key that is bisected.
        success: the condition, for the title.

    Returns:
        The figure; None if there is no other key, or no bracket.
    """
    import pandas

    columns = [*map(str, table.columns)]
    keys = columns[: columns.index("success")]
    keys = sorted(keys, key=lambda key: key in REPEATS)
    low, high = table[f"{axis.key}.low"], table[f"{axis.key}.high"]
    if not keys or low.isna().all():
        return None
    x, others = keys[0], [key for key in keys[1:] if key not in REPEATS]
    numbers = pandas.to_numeric(table[x], errors="coerce")
    settings = numbers.astype(float) if numbers.notna().all() else table[x].astype(str)
    scale = canvas.Scale.of(values_of(settings))
    names = pandas.Series("", table.index)
    if others:
        names = table[others].astype(str).agg(", ".join, axis=1)
    colours = colour_of(names) if others else {"": BLUE}
    figure = canvas.blank(*SIZE)
    axes = figure.subplots()
    scale.draw(axes, SIZE[0])
    artists: dict[float | str, Any] = {}
    for i, (name, cells) in enumerate(table.groupby(names, sort=False)):
        colour, offset = colours[str(name)], APART * (i - (len(colours) - 1) / 2)
        below, above = low[cells.index], high[cells.index]
        middle = (below * above) ** 0.5 if axis.is_log else (below + above) / 2
        at = scale.places(settings[cells.index], offset)
        bars = middle - below, above - middle
        axes.errorbar(at, middle, bars, fmt="o", markersize=3, capsize=2, color=colour)
        line = middle.groupby(at).median()
        (artists[str(name)],) = axes.plot(line.index, line, color=colour, linewidth=1)
    notes = ["bars: brackets"]
    if repeats := [key for key in keys if key in REPEATS]:
        notes = [f"bars: brackets, one for each {', '.join(repeats)}; line: their medians"]
    measured = [*low, *high]
    if "theory" in table:
        for _, cells in table.groupby(names, sort=False):
            line = cells["theory"].groupby(scale.places(settings[cells.index])).median()
            axes.plot(line.index, line, "--", color=BLACK, linewidth=1)
        measured += list(table["theory"])
        notes.append("dashed: the largest stable rate by theory")
    canvas.scale_measure(axes, measured)
    if missing := int(low.isna().sum()):
        notes.append(f"{missing} of {len(table)} cells have no bracket")
    axes.set_xlabel(escape_formulas(x), fontsize=8)
    axes.set_ylabel(escape_formulas(axis.key), fontsize=8)
    shown = canvas.choose_names(list(artists)) if others else []
    lines, labels = [artists[name] for name in shown], [*map(format_setting, shown)]
    title = escape_formulas(f"where {success} changes")
    canvas.finish(figure, title, notes, canvas.Legend(lines, labels, ", ".join(others)))
    return figure
