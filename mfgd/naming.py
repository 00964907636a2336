"""How a run is shown within its sweep: its name, its colour, and its numbers as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from mfgd.columns import choose_coloured, find_swept
from mfgd.palette import colour_of
from mfgd.point import Point
from mfgd.terminal import show_plain
from mfgd.tracked import Written, format_params

GREY = "#777777"
"""If nothing that is swept has colours."""


@dataclass(frozen=True)
class Label:
    """How a run of a sweep is shown."""

    name: str
    """The values of the swept keys, the longest last."""
    title: str
    """The swept keys with their values."""
    colour: str
    """#RRGGBB, by the value of one swept key."""
    numbers: dict[str, float]
    """Swept key → its value, if the values of all runs are numbers: MLflow sorts params as text."""


def label_points(points: Sequence[Point]) -> list[Point]:
    """The points of a sweep, each with its label if anything is swept."""
    import pandas

    lines = [format_params(point, None) for point in points]
    keys = dict.fromkeys(key for line in lines for key in line)
    columns = {f"params.{key}": [line.get(key) for line in lines] for key in keys}
    varied = {name: texts for name, texts in columns.items() if len(set(texts)) > 1}
    frame = pandas.DataFrame(varied)
    swept = find_swept(frame)
    if not swept:
        return list(points)
    widths = {key: frame[f"params.{key}"].fillna("").str.len().max() for key in swept}
    order = sorted(swept, key=lambda key: widths[key])
    coloured = choose_coloured(frame)
    colours = colour_of(line[coloured] for line in lines if coloured in line) if coloured else {}
    numeric = {key: numbers for key in swept if (numbers := _all_numbers(lines, key))}
    labelled = []
    for i, (point, line) in enumerate(zip(points, lines, strict=True)):
        told = {key: show_plain(_shorten_path(line[key])) for key in order if key in line}
        name, title = " ".join(told.values()), ", ".join(map(" ".join, told.items()))
        colour = colours.get(line.get(coloured or "", ""), GREY)
        mirrored = {key: values[i] for key, values in numeric.items()}
        labelled.append(replace(point, label=Label(name, title, colour, mirrored)))
    return labelled


def label_written(written: Mapping[str, Written], points: Sequence[Point]) -> dict[str, Written]:
    """The runs of a sweep that came in parts, with labels as those of one sweep.

    Args:
        written: id of each run → what is known of it.
        points: of these runs, in this order.
    """
    labelled = zip(written.items(), label_points(points), strict=True)
    return {run_id: run._replace(label=point.label) for (run_id, run), point in labelled}


def _shorten_path(text: str) -> str:
    """The name of the file that a value names; any other value as it is."""
    return PurePath(text).name if "/" in text else text


def _all_numbers(lines: Sequence[dict[str, str]], key: str) -> list[float]:
    """The values of a key as numbers, none if one of them is no number."""
    try:
        return [float(line[key]) for line in lines]
    except (KeyError, ValueError):
        return []
