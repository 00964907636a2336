"""Dots, bars and × over a key, in panels that share their axes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from mfgd import canvas
from mfgd.canvas import SMALL, Legend, Scale
from mfgd.palette import colour_of
from mfgd.spread import count_of, format_setting, summarize, values_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZES = {1: (5.0, 3.4), 2: (3.3, 2.7), 3: (2.6, 2.3), 4: (2.2, 2.1)}
"""Panels side by side → inches of a panel."""
WIDEST = max(SIZES)
BARS = 12
"""Up to so many colours, quartiles are drawn."""
ROWS = 5
"""Up to so many colours each have a row of ×."""
CROWDED = 30
"""From so many values across on, dots are smaller."""
MARKERS = "osD^vPhp"
WRITTEN = 0.36
"""Inches between two values from which on the share of lost runs is written."""
ROW = 0.15
"""Inches of a row of ×."""


class Places(NamedTuple):
    """Which key is drawn how; " " and "" are no keys."""

    x: str
    colour: str
    facets: Sequence[str] = ()
    pooled: Sequence[str] = ()
    """The keys that are not shown, which medians are over."""


class Panels:
    """The medians and quartiles of `mfgd.spread.tabulate`, a panel for each setting of the
    facets."""

    def __init__(self, table: pandas.DataFrame, layout: Places) -> None:
        self.layout = layout
        self.colours = values_of(table[layout.colour])
        self.scale = Scale.of(values_of(table[layout.x]))
        parts: list[tuple[Any, pandas.DataFrame]] = [((), table)]
        if layout.facets:
            parts = list(table.groupby(list(layout.facets)))
        self.titles = [
            ", ".join(
                f"{key} {format_setting(value)}"
                for key, value in zip(layout.facets, setting, strict=True)
            )
            for setting, _ in parts
        ]
        self.found = [summarize(part, (layout.x, layout.colour)) for _, part in parts]

    @cached_property
    def together(self) -> pandas.DataFrame:
        """The medians and quartiles of all panels."""
        return pandas.concat(self.found, ignore_index=True)

    @cached_property
    def lost(self) -> list[float | str]:
        """The colours of which runs are lost."""
        having = self.together[self.together["lost"] > 0][self.layout.colour].unique()
        return [value for value in self.colours if value in having]

    @property
    def rows(self) -> int:
        """How many rows of × there are."""
        return len(self.lost) if len(self.lost) <= ROWS else 1

    @property
    def has_bars(self) -> bool:
        """Whether quartiles are drawn."""
        return len(self.colours) <= BARS

    @cached_property
    def styles(self) -> dict[float | str, dict[str, Any]]:
        """Value → colour and marker; words have no line from one to the next."""
        colours = colour_of(self.colours)
        crowded = max(len(self.scale.values) / CROWDED, len(self.colours) / BARS) > 1
        style: dict[str, Any] = {"linewidth": 0.8, "markersize": 2 if crowded else 3.5}
        style["linestyle"] = "none" if self.scale.name == "category" else "-"
        return {
            value: style | {"color": colours[str(value)], "marker": MARKERS[i % len(MARKERS)]}
            for i, value in enumerate(self.colours)
        }

    def draw(self, ylabel: str) -> Figure:
        """The panels, as yet without title, legend and notes."""
        columns = self._count_columns()
        lines = -(-len(self.found) // columns)
        wide, high = SIZES[columns]
        figure = canvas.blank(columns * wide + self.legend.inches, lines * high + 0.9)
        grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
        row = min(ROW / (high - 0.6), 0.4 / max(self.rows, 1))
        head = self.rows * row + 0.02 * bool(self.lost)
        limits = self.together[["q25", "median", "q75"] if self.has_bars else ["median"]]
        floors = self.together["floor"].where(self.together["floor"] > 0)
        values = np.append(limits.to_numpy().ravel(), floors)
        top = canvas.scale_measure(grid[0, 0], values, head)
        for i, (axes, title, found) in enumerate(
            zip(grid.flat, self.titles, self.found, strict=False)
        ):
            last = i + columns >= len(self.found)
            axes.set_title(canvas.fold(title, wide - 0.2), fontsize=8)
            axes.grid(alpha=0.3)
            axes.tick_params(labelsize=SMALL, labelbottom=last)
            axes.set_xlabel(self.layout.x.strip() if last else "", fontsize=8)
            axes.set_ylabel(ylabel if i % columns == 0 else "", fontsize=8)
            if not np.isfinite(values).any():
                said = {"transform": axes.transAxes, "color": "0.4", "fontsize": SMALL}
                axes.text(0.5, (1 - head) / 2, "no run has a value", ha="center", **said)
            pitch = self.scale.draw(axes, wide - 0.7)
            self._draw_floor(axes, found)
            self._draw_lines(axes, found, top)
            self._mark_lost(axes, found, row, pitch)
        for axes in grid.flat[len(self.found) :]:
            axes.remove()
        return figure

    def _count_columns(self) -> int:
        """Panels side by side: the values of the last of several facets, if these are few."""
        n = len(self.found)
        if len(self.layout.facets) > 1:
            key = self.layout.facets[-1]
            last = len({title.rpartition(f"{key} ")[2] for title in self.titles})
            if last <= WIDEST:
                return last * (WIDEST // last if n > WIDEST else 1)
        if n <= WIDEST:
            return n
        return 3 if n in (5, 6, 9) else WIDEST

    def _draw_lines(self, axes: Axes, found: pandas.DataFrame, top: float) -> None:
        """Medians, joined where they are finite, and bars from quartile to quartile."""
        for i, value in enumerate(self.colours):
            part = found[found[self.layout.colour] == value]
            offset = 0.4 * ((i + 0.5) / len(self.colours) - 0.5) if self.has_bars else 0.0
            places = self.scale.places(part[self.layout.x], offset)
            style = self.styles[value]
            medians = part["median"].where(np.isfinite(part["median"]))
            axes.plot(places, medians, zorder=4, **style)
            known = np.isfinite(part["q25"]) & self.has_bars
            low, high = part["q25"][known], part["q75"][known].clip(upper=top)
            axes.vlines(places[known], low, high, color=style["color"], linewidth=1.2, zorder=3.5)

    def _mark_lost(self, axes: Axes, found: pandas.DataFrame, row: float, pitch: float) -> None:
        """Rows of × above the values; beside them the share that is lost, if it has room, else they
        are the paler the less are lost."""
        if self.lost:
            free = self.rows * row + 0.02
            place: dict[str, Any] = {"transform": axes.transAxes, "color": "0.94", "zorder": 0}
            axes.add_patch(Rectangle((0, 1 - free), 1, free, **place))
        for i, (colour, shares) in enumerate(self._find_shares(found)):
            shares = shares[shares > 0]
            places, y = self.scale.places(shares.index), 0.99 - (i + 0.5) * row
            style: dict[str, Any] = {"transform": axes.get_xaxis_transform()}
            if pitch <= WRITTEN:
                crosses = [to_rgba(colour, 0.25 + 0.75 * share) for share in shares]
                style |= {"marker": "x", "s": 14, "linewidths": 0.9}
                axes.scatter(places, np.full(len(places), y), color=crosses, **style)
                continue
            style |= {"color": colour, "ha": "center", "va": "center_baseline"}
            for x, share in zip(places, shares, strict=True):
                text, size = (f"×{share:.0%}", 6) if share < 1 else ("×", 8)
                axes.text(x, y, text, fontsize=size, **style)

    def _find_shares(self, found: pandas.DataFrame) -> list[tuple[str, pandas.Series]]:
        """The rows of ×: colour, and share by place across; one for all if they are many."""
        if len(self.lost) > ROWS:
            sums = (found["lost"] * found["n"]).groupby(found[self.layout.x]).sum()
            return [("black", sums / found.groupby(self.layout.x)["n"].sum())]
        parts = {value: found[found[self.layout.colour] == value] for value in self.lost}
        return [
            (self.styles[value]["color"], part.set_index(self.layout.x)["lost"])
            for value, part in parts.items()
        ]

    def _draw_floor(self, axes: Axes, found: pandas.DataFrame) -> None:
        """The least error, once if it is the same for all colours."""
        floors = found.pivot(index=self.layout.x, columns=self.layout.colour, values="floor")
        floors = floors.where(floors > 0)
        style: dict[str, Any] = {"linestyle": "--", "linewidth": 1.0, "zorder": 4.2}
        if (floors.max(axis=1) <= 1.000001 * floors.min(axis=1)).any():
            floors = floors.median(axis=1).to_frame("")
        for value in floors.columns[floors.notna().any()]:
            colour = self.styles[value]["color"] if value in self.styles else "black"
            known = floors[value].dropna()
            if len(known) == 1 or known.nunique() == 1:
                axes.axhline(known.iloc[0], color=colour, **style)
            else:
                axes.plot(self.scale.places(known.index), known, color=colour, **style)

    @cached_property
    def legend(self) -> Legend:
        """The colours, each with its number of runs, and the other marks."""
        sizes = self.together.groupby(self.layout.colour)["n"].sum()
        artists, labels = [], []
        for value in canvas.choose_names(self.colours):
            artists.append(Line2D([], [], **self.styles[value]))
            name = format_setting(value) if self.layout.colour else "median"
            labels.append(f"{name} ({count_of(int(sizes[value]), 'run')})")
        if self.has_bars and (self.together["q25"] < self.together["q75"]).any():
            artists.append(Line2D([], [], color="0.4", marker="|", markersize=9, linewidth=0))
            labels.append("quartiles")
        if self.lost:
            artists.append(Line2D([], [], color="0.3", marker="x", markersize=4, linewidth=0))
            some = (self.together["lost"] % 1 > 0).any()
            said = "diverged, undefined\nor failed"
            labels.append(f"share that {said} (pale: few)" if some or self.rows == 1 else said)
        if (self.together["floor"] > 0).any():
            artists.append(Line2D([], [], color="black", linestyle="--", linewidth=1.0))
            labels.append("least error of this rank\n(Eckart–Young)")
        return Legend(artists, labels, self.layout.colour)
