"""What the comparison page knows of the runs: settings, results, floors and thinned curves."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas

from mfgd.columns import (
    INFINITE,
    REPEATS,
    by_size,
    choose_coloured,
    choose_measure,
    find_swept,
    is_lost,
    measured,
    outcomes,
    settings,
)
from mfgd.palette import colour_of
from mfgd.spread import excess_errors, least_errors

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVELS = 24
"""A numeric key with more values than this is drawn in so many bins."""
RECORDS = 30
"""Records of a run that its curve keeps."""
ERROR, EXCESS = "metrics.final_relative_error", "metrics.excess_error"
CURVES = "excess_loss", "excess_error", "relative_error", "loss"
"""Measures with a curve."""
MEASURES = {
    "metrics.excess_loss": ("excess over the optimum", "excess_loss"),
    EXCESS: ("excess of the squared error", "excess_error"),
    ERROR: ("relative error", "relative_error"),
    "metrics.heldout_error": ("error of held-out entries", ""),
    "metrics.final_loss": ("loss", "loss"),
    "metrics.steps_run": ("steps", ""),
    "metrics.steps_to_tolerance": ("steps to tolerance", ""),
    "metrics.solve_seconds": ("seconds", ""),
}
"""Column → its name on the page, and its curve if it has one."""
VERDICTS = "agrees", "deviates"
"""What an oracle says where it applies."""
DECADE = 1000
"""Steps of a curve's code between two powers of ten: values are kept to 0.12 %."""
UNKNOWN, INFINITY, ZERO = 30_000, 20_000, -20_000
"""Codes of NaN, of what is at least 1e20, and of what is at most 1e-20."""


def describe_runs(runs: pandas.DataFrame) -> dict[str, Any]:
    """Settings, results, verdicts, floors and limits of the runs, and what is drawn at first."""
    swept = find_swept(runs)
    verdicts = runs.filter(regex=r"^tags\.oracle\.").rename(columns=lambda name: name[12:])
    first = compared = choose_measure(runs)
    if first == ERROR and EXCESS in runs and runs[EXCESS].notna().all():
        first = EXCESS
    known = [name for name in MEASURES if name == first or _column(runs, name).notna().any()]
    return {
        "keys": [_describe_key(runs, name) for name in swept],
        "measures": [_describe_measure(runs, name) for name in known],
        "start": _choose_axes(runs, swept) | {"measure": first, "compared": compared},
        "id": runs["run_id"].tolist(),
        "outcome": _number(outcomes(runs)),
        "lost": is_lost(runs).astype(int).tolist(),
        "verdicts": _number([_join_verdicts(line) for line in verdicts.to_dict("records")]),
        "floors": {name: _round_off(floor) for name, floor in find_floors(runs).items()},
        "limit": _round_off(_column(runs, "metrics.lr_limit")),
        "rate": _round_off(_column(runs, "metrics.lr_absolute")),
    }


def _describe_key(runs: pandas.DataFrame, name: str) -> dict[str, Any]:
    """Values of a swept key, sorted, the levels that they are drawn at, and each run's value."""
    given = settings(runs, name)
    values = sorted(given.unique(), key=by_size)
    texts = [f"{value:.10g}" if isinstance(value, float) else value for value in values]
    labels, level, colours = texts, list(range(len(values))), colour_of(texts)
    if len(values) > LEVELS and pandas.api.types.is_numeric_dtype(given):
        labels, level = _cut(np.array(values))
        colours = dict(zip(labels, colour_of(range(len(labels))).values(), strict=True))
    return {
        "name": name,
        "values": texts,
        "codes": pandas.Index(values).get_indexer(pandas.Index(given)).tolist(),
        "levels": labels,
        "level": level,
        "colours": [colours[label] for label in labels],
    }


def _describe_measure(runs: pandas.DataFrame, name: str) -> dict[str, Any]:
    """A measure's name, the name of its curve, and its value for each run."""
    label, curve = MEASURES[name]
    known = runs if name in runs else runs.assign(**{name: np.nan})
    return {
        "name": name,
        "label": label,
        "curve": curve,
        "values": _round_off(measured(known, name)),
    }


def _cut(values: NDArray[np.float64]) -> tuple[list[str], list[int]]:
    """Bins of equal width, of equal ratio if the sorted values span: the name of each bin that
    holds a value, and the bin of each value."""
    low, high = values[0], values[-1]
    space = np.geomspace if low > 0 and high > 20 * low else np.linspace
    bins = np.searchsorted(space(low, high, LEVELS + 1)[1:-1], values, side="right")
    _, starts, level = np.unique(bins, return_index=True, return_inverse=True)
    ends = np.append(starts[1:], len(values)) - 1
    labels: list[str] = []
    for digits in range(2, 18):  # as many as tell the bins apart
        labels = [
            _name_range(values[i], values[j], digits) for i, j in zip(starts, ends, strict=True)
        ]
        if len(set(labels)) == len(labels):
            break
    return labels, level.tolist()


def _name_range(low: float, high: float, digits: int) -> str:
    texts = [f"{value:.{digits}g}".replace("e-0", "e-") for value in (low, high)]
    return "–".join(dict.fromkeys(texts))


def _choose_axes(runs: pandas.DataFrame, swept: Sequence[str]) -> dict[str, str]:
    """The keys drawn across, in colour and in panels; "" where none is left."""
    keys = [name for name in swept if name not in REPEATS] or list(swept)
    numeric = [name for name in keys if pandas.api.types.is_numeric_dtype(settings(runs, name))]
    words = [name for name in keys if name not in numeric]
    coloured = [name for name in words if name == choose_coloured(runs)]

    def take(*wanted: str) -> str:
        found = next((name for name in wanted if name in keys), "")
        if found:
            keys.remove(found)
        return found

    x = take("lr", *(name for name in numeric if name != "rank"), *numeric, *keys)
    colour = take(*coloured, *words, *(name for name in keys if name != "rank"), *keys)
    return {"x": x, "colour": colour, "facet": take("rank", *keys)}


def find_floors(runs: pandas.DataFrame) -> dict[str, pandas.Series]:
    """The least value that Eckart and Young allow a run, by measure, where it is known of any."""
    excess = _column(runs, "metrics.excess_loss")
    loss = _column(runs, "metrics.final_loss") / (1 + excess.where(excess < INFINITE))
    floors = {"metrics.final_loss": loss, ERROR: least_errors(runs)}
    return {name: floor for name, floor in floors.items() if floor.notna().any()}


def add_excess_error(
    runs: pandas.DataFrame, curves: pandas.DataFrame
) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """The tables with the excess of the squared error, if it is known of runs that ended and of
    which `excess_loss` is not: those with another loss."""
    if ERROR not in runs:
        return runs, curves
    excess, tracked = excess_errors(runs), _column(runs, "metrics.excess_loss")
    if not (excess.notna() & tracked.isna() & ~is_lost(runs)).any():
        return runs, curves
    if "relative_error" in curves:
        least = pandas.Series(least_errors(runs).to_numpy(), index=runs["run_id"])
        values = (curves["relative_error"] / curves["run_id"].map(least)) ** 2 - 1
        same = curves["run_id"].isin(runs["run_id"][excess == tracked])
        if "excess_loss" in curves:  # what is tracked has lost no digits
            values = values.mask(same, curves["excess_loss"])
        curves = curves.assign(excess_error=values)
    return runs.assign(**{EXCESS: excess.mask(is_lost(runs), np.inf)}), curves


def pack_curves(ids: Iterable[str], curves: pandas.DataFrame) -> dict[str, Any]:
    """The runs' curves at one grid of steps.

    A run has its last record at or before each step of the grid, so that a run that ended keeps its
    last value.

    Args:
        ids: the runs, in the order of the page.
        curves: the long table of `mfgd.page.write_page`.

    Returns:
        dict: ``grid`` (steps), ``ends`` (last recorded step of each run, −1 without a record) and
        ``curves``: measure → codes (runs x grid,), each less the one before it.
    """
    names = pandas.Index(list(ids))
    index = names.get_indexer(pandas.Index(curves["run_id"]))
    step = curves["step"].to_numpy(np.int64)
    order = np.lexsort((step, index))
    order = order[index[order] >= 0]
    run, step = index[order], step[order]
    grid = _thin(np.unique(step))
    count, beyond = len(names), int(step.max(initial=0)) + 1
    place = np.searchsorted(
        run * beyond + step, np.arange(count)[:, None] * beyond + grid, side="right"
    )
    found = np.append(run, -1)[place - 1] == np.arange(count)[:, None]
    ends = pandas.Series(step).groupby(run).max().reindex(range(count), fill_value=-1)
    packed = {}
    for name in (*CURVES, *(f"theory.{name}" for name in CURVES)):
        if name in curves and curves[name].notna().any():
            values = np.append(curves[name].to_numpy(float)[order], np.nan)
            codes = _code(np.where(found, values[place - 1], np.nan))
            packed[name] = np.diff(codes, prepend=0).ravel().astype(np.int32)
    return {"grid": grid.tolist(), "ends": ends.tolist(), "curves": packed}


def _thin(steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most `RECORDS` of the steps, sorted, about a constant ratio apart, the last one too."""
    if len(steps) <= RECORDS:
        return steps
    wanted = np.append(0, np.geomspace(1, steps[-1], RECORDS - 1))
    return steps[np.unique(np.searchsorted(steps, wanted).clip(max=len(steps) - 1))]


def _code(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Values as integers, a thousand a decade; what is not positive is `ZERO`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(values > 0, DECADE * np.log10(values), ZERO)
    codes = np.where(np.isnan(values), UNKNOWN, codes.clip(ZERO, INFINITY))
    return codes.round().astype(np.int64)


def _number(values: Iterable[str]) -> dict[str, list[Any]]:
    codes, distinct = pandas.factorize(np.array(list(values), dtype=object))
    return {"values": list(distinct), "codes": codes.tolist()}


def _join_verdicts(verdicts: Mapping[Any, Any]) -> str:
    """What theory says of a run, as far as it applies."""
    said = {text: [name for name in verdicts if verdicts[name] == text] for text in VERDICTS}
    return "; ".join(f"{text}: {', '.join(names)}" for text, names in said.items() if names)


def _column(runs: pandas.DataFrame, name: str) -> pandas.Series:
    """A column of numbers; NaN if no run has it."""
    unknown = pandas.Series(np.nan, index=runs.index)
    return pandas.to_numeric(runs.get(name, unknown), errors="coerce")


def _round_off(values: Iterable[float]) -> list[float | None]:
    rounded = (float(f"{value:.6g}") for value in values)
    return [None if value != value else min(value, INFINITE) for value in rounded]


def to_json(value: Any) -> Any:
    """The value as JSON can have it: None for NaN, `INFINITE` for infinity, text for no number."""
    if value is None or value != value:
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    return min(float(value), INFINITE) if isinstance(value, numbers.Real) else str(value)
