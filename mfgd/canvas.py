"""What the figures of many runs are drawn on: scales, ticks, a title, a legend and a note."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from mfgd.spread import format_setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMALL = 7
"""Font size of ticks, legends and notes."""
LETTER = 0.065
"""Inches that a letter of this size takes, at most."""
LEANING = 5
"""Up to so many names an inch lean if they have no room side by side."""
WIDE = 10
"""From this ratio of the largest to the least value on, an axis of a key is logarithmic."""
NEAR = 3
"""Up to this ratio, an axis of a measure is linear."""


NAMES = 16
"""Up to so many colours, each has a line in the legend."""


class Scale(NamedTuple):
    """Where the values of a key stand on an axis."""

    values: Sequence[float | str]
    """In the order of their size."""
    name: str
    """log, linear, or category: one place after the other."""

    @classmethod
    def of(cls, values: Sequence[float | str]) -> Scale:
        """Logarithmic if numbers span a range, by category if a value is no finite number."""
        numbers = [value for value in values if isinstance(value, float) and np.isfinite(value)]
        if len(numbers) < len(values) or len(values) == 1:
            return cls(values, "category")
        spans = numbers[0] > 0 and numbers[-1] >= WIDE * numbers[0]
        return cls(values, "log" if spans else "linear")

    def places(self, values: Iterable[float | str], offset: float = 0.0) -> np.ndarray:
        """Where values stand, moved by a share of the least distance of two values."""
        if self.name == "category":
            known = list(self.values)
            return np.array([known.index(value) for value in values], float) + offset
        if self.name == "log":
            gap = np.diff(np.log(np.asarray(self.values, float))).min()
            return np.array(list(values), float) * np.exp(offset * gap)
        gap = np.diff(np.asarray(self.values, float)).min()
        return np.array(list(values), float) + offset * gap

    def draw(self, axes: Axes, inches: float) -> float:
        """Sets scale, limits and ticks of the x axis; returns the inches between two values."""
        places = self.places(self.values)
        even = np.log(places) if self.name == "log" else places
        gap = np.diff(even).min() if len(even) > 1 else 1.0
        span = even[-1] - even[0]
        margin = max(0.6 * gap, 0.04 * span)
        low, high = even[0] - margin, even[-1] + margin
        if self.name == "log":
            axes.set_xscale("log")
            axes.set_xlim(np.exp(low), np.exp(high))
        else:
            axes.set_xlim(low, high)
        per_unit = inches / (high - low)
        labels = [format_setting(value) for value in self.values]
        kept = thin(even * per_unit, labels)
        style: dict[str, Any] = {"fontsize": SMALL}
        if self.name == "category" and len(kept) < len(labels) <= LEANING * inches:
            kept = list(range(len(labels)))
            style |= {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks([places[i] for i in kept], [labels[i] for i in kept], **style)
        return float(gap * per_unit)


def thin(inches: np.ndarray, labels: Sequence[str]) -> list[int]:
    """Which labels at these places can stand side by side: the first one, and every one that is
    clear of the one before."""
    kept = [0]
    for i in range(1, len(labels)):
        needed = LETTER * (len(labels[i]) + len(labels[kept[-1]])) / 2 + 0.08
        if inches[i] - inches[kept[-1]] >= needed:
            kept.append(i)
    return kept


def scale_measure(axes: Axes, values: Iterable[float], head: float = 0.0) -> float:
    """Sets scale, limits and ticks of the y axis; returns up to where it shows values.

    It is logarithmic if all values are positive and span a range.

    Args:
        axes: one of them; those that share its axis follow.
        values: what is drawn; what is not finite does not count.
        head: the share of the axis that is kept free above the values.
    """
    known = np.array([value for value in values if np.isfinite(value)], float)
    if not len(known):
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        return 1 - head
    low, high = known.min(), known.max()
    log = low > 0 and high > NEAR * low
    if log:
        axes.set_yscale("log")
        low, high = np.log10(low), np.log10(high)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 0.1
    low, high = low - margin, high + margin
    top = low + (high - low) / (1 - head)
    if log:
        low, high, top = 10**low, 10**high, 10**top
        subs: Sequence[float] = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
        if high < 10 * low:
            subs = (1.0, 2.0, 3.0, 5.0, 7.0)
        ticks = LogLocator(subs=subs, numticks=7).tick_values(low, high)
    else:
        ticks = MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)).tick_values(low, high)
    shown = [tick for tick in ticks if low <= tick <= high]
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(shown, [f"{tick:g}" for tick in shown], fontsize=SMALL)
    axes.set_ylim(low, top)
    return float(high)


class Legend(NamedTuple):
    """What stands to the right of a figure."""

    artists: Sequence[Any] = ()
    labels: Sequence[str] = ()
    title: str = ""

    @property
    def inches(self) -> float:
        """How wide it is."""
        lines = [line for label in (*self.labels, self.title) for line in label.splitlines()]
        return LETTER * max(map(len, lines)) + 0.55 if self.artists else 0.0


def fold(text: str, inches: float) -> str:
    """Lines that fit into a width in a font a little larger than small."""
    return textwrap.fill(text, max(8, int(inches / LETTER * 0.9)))


def choose_names(values: Sequence[float | str]) -> list[float | str]:
    """The values that a legend names: all, or some from the first to the last one."""
    if len(values) <= NAMES:
        return list(values)
    places = np.linspace(0, len(values) - 1, NAMES // 2 + 1)
    return [values[i] for i in places.round().astype(int)]


def blank(width: float, height: float) -> Figure:
    """A figure in inches."""
    return Figure(figsize=(width, height), layout="constrained", dpi=120)


def finish(figure: Figure, title: str, notes: Iterable[str], legend: Legend) -> None:
    """Adds a title, a line of notes below, and a legend."""
    width = figure.get_figwidth()
    free = width - legend.inches
    place = {"x": free / 2 / width, "fontsize": 10}
    figure.suptitle(textwrap.fill(title, int(free / LETTER * 0.7)), **place)
    if text := "; ".join(note for note in notes if note):
        lines = textwrap.fill(text, int(width / LETTER * 1.1))
        figure.supxlabel(lines, fontsize=SMALL, color="0.3")
    if legend.artists:
        figure.legend(
            legend.artists,
            legend.labels,
            title=legend.title or None,
            loc="outside right upper",
            fontsize=SMALL,
            title_fontsize=SMALL,
            frameon=False,
        )
