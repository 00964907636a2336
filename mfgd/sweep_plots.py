"""How near the runs of a sweep came: the overview, and the final error against the rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mfgd import canvas
from mfgd.columns import (
    REPEATS,
    choose_measure,
    find_column,
    find_swept,
    is_lost,
    outcomes,
    settings,
    short_name,
)
from mfgd.panels import WIDEST, Panels, Places
from mfgd.spread import (
    ROUNDING,
    VALUE,
    count_of,
    describe_sweep,
    escape_formulas,
    excess_errors,
    format_setting,
    label_of,
    tabulate,
    values_of,
)

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

ERROR = "metrics.final_relative_error"
PANELS = 12
"""How many settings of the keys that are neither x nor colour have a panel."""


def overview(runs: pandas.DataFrame, title: str = "") -> Figure:
    """How near the runs came, over the learning rate or another key.

    Dots are medians and bars quartiles over all that is not shown, such as seeds; × is the share
    of runs that are lost. A line below names what is not drawn. Up is the excess over the optimum
    if it is known, of the squared error if the runs have several losses.

    Args:
        runs: the table of `mfgd.load_runs`, without sweeps' own runs.
        title: what the sweep is called.
    """
    column = choose_measure(runs)
    if column == ERROR and column in runs:
        excess = excess_errors(runs)
        if excess[~is_lost(runs)].notna().any() and excess[~is_lost(runs)].notna().all():
            column = "metrics.excess_error"
            runs = runs.assign(**{column: excess})
    return _draw_sweep(runs, column, _arrange(runs), escape_formulas(title))


def floor(runs: pandas.DataFrame) -> Figure:
    """Final relative error against the rank, and the least error of a matrix of that rank (Eckart,
    Young 1936), if it is known.

    Args:
        runs: as for `overview`.

    Raises:
        Refused: the runs have no rank.
    """
    find_column(runs, "rank", ("params",))
    swept = [key for key in find_swept(runs) if key != "rank"]
    keys = [key for key in swept if key not in REPEATS]
    colour = [*_list_words(runs, keys), *keys, ""][0]
    layout = Places("rank", colour, pooled=[key for key in swept if key != colour])
    return _draw_sweep(runs, ERROR, layout, "Final error against the rank")


def _arrange(runs: pandas.DataFrame) -> Places:
    """Gives each swept key a place: across is lr, else the number with the most values; words are
    colours; the rest are panels while these are few."""
    swept = find_swept(runs)
    keys = [key for key in swept if key not in REPEATS] or swept
    words = _list_words(runs, keys)
    numbers = sorted(
        (key for key in keys if key not in words),
        key=lambda key: (key != "lr", -settings(runs, key).nunique()),
    )
    x = [*numbers, *words, " "][0]
    colour = next(key for key in [*words, *keys, ""] if key != x)
    left = [key for key in keys if key not in (x, colour)]
    if left and settings(runs, left[0]).nunique() > PANELS and _tell_apart(runs, x, colour, keys):
        left = []  # a search drew the values: a panel each would have a dot each
    facets = left[:1]
    for key in left[1:]:
        if runs.groupby([settings(runs, name) for name in (*facets, key)]).ngroups <= PANELS:
            facets.append(key)
    shown = (x, colour, *facets)
    # The last one is across: of those that fit side by side the one with the most values.
    facets.sort(key=lambda key: (n := settings(runs, key).nunique()) * (n <= WIDEST))
    return Places(x, colour, facets, [key for key in swept if key not in shown])


def _tell_apart(runs: pandas.DataFrame, x: str, colour: str, keys: Sequence[str]) -> bool:
    """Whether no two settings share a dot if nothing but x and colour is shown."""
    shown, all_keys = (
        runs.groupby([settings(runs, key) for key in names]).ngroups
        for names in ([key for key in keys if key in (x, colour)], keys)
    )
    return shown == all_keys


def _list_words(runs: pandas.DataFrame, keys: Sequence[str]) -> list[str]:
    """The keys whose values are words, those with the most values first."""
    words = [key for key in keys if settings(runs, key).dtype != float]
    return sorted(words, key=lambda key: -settings(runs, key).nunique())


def _draw_sweep(runs: pandas.DataFrame, column: str, layout: Places, title: str) -> Figure:
    table = tabulate(runs, column, (layout.x, layout.colour, *layout.facets))
    kept, left_out = _leave_out(runs, table, layout)
    panels = Panels(kept, layout)
    figure = panels.draw(label_of(short_name(column)))
    notes = [
        left_out,
        _say_pooled(panels),
        "" if panels.has_bars else "quartiles are not drawn",
        ""
        if len(panels.colours) <= canvas.NAMES
        else f"the legend names some values of {layout.colour}",
        _say_rounding(kept),
        _say_floor(panels) if layout.x == "rank" and column == ERROR else "",
        _say_unfinished(runs),
    ]
    said = describe_sweep(runs)
    canvas.finish(figure, f"{title}: {said}" if title else said, notes, panels.legend)
    return figure


def _leave_out(
    runs: pandas.DataFrame, table: pandas.DataFrame, layout: Places
) -> tuple[pandas.DataFrame, str]:
    """The runs that have a panel, and a sentence about the others."""
    if not layout.facets:
        return table, ""
    key = layout.facets[0]
    values = values_of(table[key])
    if len(values) <= PANELS:
        return table, ""
    places = np.linspace(0, len(values) - 1, PANELS).round().astype(int)
    kept = [values[i] for i in places]
    is_kept = table[key].isin(kept)
    keys = [name for name in find_swept(runs) if name not in REPEATS]
    setting = runs.groupby([settings(runs, name) for name in keys]).ngroup()
    total, shown = setting.nunique(), setting[is_kept].nunique()
    missing = [format_setting(value) for value in values if value not in kept]
    named = ", ".join(missing[:8]) + (", …" if len(missing) > 8 else "")
    said = f"{total - shown:,} of {count_of(total, 'setting')} are not drawn: {key} {named}"
    return table[is_kept], said


def _say_pooled(panels: Panels) -> str:
    """What medians are over, and how many runs a dot is of."""
    least, most = panels.together["n"].min(), panels.together["n"].max()
    if not np.isfinite(panels.together["median"]).any():
        return ""
    if most == 1:
        hidden = [key for key in panels.layout.pooled if key not in REPEATS]
        return "one run a dot" + (f", of any {', '.join(hidden)}" if hidden else "")
    size = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    over = f" over {', '.join(panels.layout.pooled)}" if panels.layout.pooled else ""
    return f"medians and quartiles{over}, {size} runs a dot"


def _say_rounding(table: pandas.DataFrame) -> str:
    small = (table[VALUE] == ROUNDING).any()
    return f"values up to {ROUNDING:g} are drawn at {ROUNDING:g}" if small else ""


def _say_floor(panels: Panels) -> str:
    """At which ranks the least error is 0, or unknown."""
    floors = panels.together.groupby(panels.layout.x)["floor"].median()
    said = []
    for state, which in (("is 0", floors == 0), ("is not known", floors.isna())):
        if which.all():
            said.append(f"the least error {state}")
        elif which.any():
            ranks = ", ".join(format_setting(rank) for rank in floors.index[which])
            said.append(f"the least error {state} at rank {ranks}")
    return "; ".join(said)


def _say_unfinished(runs: pandas.DataFrame) -> str:
    n = int((outcomes(runs) == "unfinished").sum())
    return f"{count_of(n, 'run')} without an outcome" if n else ""
