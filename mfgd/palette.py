"""Colours that people with any kind of colour vision tell apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mfgd.columns import by_size

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW, BLACK = "#E69F00", "#56B4E9", "#F0E442", "#000000"
OKABE_ITO = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, YELLOW, BLACK)
"""Source: Okabe, Ito 2008, Color universal design; those that show best on white come first."""
LIGHTEST = 0.9
"""How far up the sequential map colours are taken: its end is too light on white."""


def colour_of(values: Iterable[object]) -> dict[str, str]:
    """Value → its colour as #RRGGBB: one of Okabe and Ito's for words, of a sequential map in the
    order of size for numbers, or for more words than there are colours."""
    names = sorted({str(value) for value in values}, key=by_size)
    numbers = all(by_size(name)[0] == 0 for name in names)
    if not numbers and len(names) <= len(OKABE_ITO):
        return dict(zip(names, OKABE_ITO, strict=False))
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    last = max(len(names) - 1, 1)
    scale = colormaps["viridis"]
    return {name: to_hex(scale(LIGHTEST * i / last)).upper() for i, name in enumerate(names)}


def mode_colours(count: int) -> Any:
    """Colours of modes or singular values 1, 2 …, (count, 4), spread over a sequential map."""
    import numpy as np
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0, 0.85, count))
