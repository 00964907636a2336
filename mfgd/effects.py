"""Paired effects: what one key changes between runs that share everything else, draws included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mfgd.columns import (
    ERRORS,
    REPEATS,
    by_size,
    choose_measure,
    find_column,
    find_swept,
    kind_of,
    measured,
    name_settings,
    quantile,
    short_name,
)
from mfgd.errors import Refused
from mfgd.summaries import TIED

if TYPE_CHECKING:
    import pandas

CONFIDENCE = 0.95
MOVES_START = ("init", "rank", "depth", "symmetric")
"""The keys and groups that need a start of their own; the seed pairs it."""
PROBLEM, NOISE, START = "problem", "gradient", "tags.draw.init"
NO_PAIRS = math.nan, math.nan, 0, 0, 0, 0
"""The interval, wins, ties, losses and n of `Effect`."""


class Effect(NamedTuple):
    """What one option of a key did against another."""

    key: str
    by: str | None
    where: str
    """The setting of `by`, "all" over all of them."""
    first: str
    second: str
    ratio: float
    """The median of measure(first) / measure(second) over the pairs; without pairs, the ratio of
    the medians."""
    low: float
    high: float
    """The interval of the median; NaN if the pairs are too few, or none."""
    wins: int
    """Pairs in which the first has the less value."""
    ties: int
    losses: int
    n: int
    """Pairs; 0 if no runs share their draws."""


def effect(
    runs: pandas.DataFrame, key: str, by: str | None = None, measure: str | None = None
) -> list[Effect]:
    """Compares every two options of a key within pairs of runs that share the rest.

    A pair agrees in all other swept keys and in its draws (tags draw.*), except those that the key
    itself moves: a start belongs to its initialization and rank, and is paired by its seed. Repeats
    of equal draws count once. Two lost runs tie, and so do values that agree to six digits.

    The interval is that of the sign test: the order statistics that hold the median in at least
    95 % of all samples (Thompson 1936, On confidence ranges for the median).

    Args:
        runs: the table of `mfgd.load_runs`.
        key: a swept key.
        by: another key, for the effect at each of its values beside the effect over all.
        measure: a column by its whole or short name, of values that are not negative; None for
            `columns.choose_measure`.

    Raises:
        Refused: a name is that of no column, the key has one option only, or a value is negative.
    """
    runs = runs.reset_index(drop=True)
    column = find_column(runs, measure or choose_measure(runs))
    value = _positive(runs, column).to_numpy()
    option = name_settings(runs, key).to_numpy()
    options = sorted(set(option), key=by_size)
    if len(options) < 2:
        raise Refused(f"--effect={key}: all runs have {key}={options[0]}; nothing to compare")
    parts = {"all": np.full(len(runs), True)}
    if by is not None:
        if by == key:
            raise Refused(f"--by={by}: is the key of the effect; allowed is another key")
        at = name_settings(runs, by).to_numpy()
        parts |= {text: at == text for text in sorted(set(at), key=by_size)}
    found = []
    for first, second in combinations(options, 2):
        left, right = _pair(runs, key, option == first, option == second)
        for name, part in parts.items():
            inside = part[left] & part[right]
            numbers: tuple[Any, ...]
            if inside.any():
                numbers = _compare_pairs(value[left[inside]], value[right[inside]])
            else:
                sides = (value[part & (option == one)] for one in (first, second))
                numbers = (_ratio_of(*(quantile(side, 0.5) for side in sides)), *NO_PAIRS)
            found.append(Effect(key, by, name, first, second, *numbers))
    return found


def _positive(runs: pandas.DataFrame, column: str) -> pandas.Series:
    """The measure, an error or loss below the rounding error as the rounding error."""
    value = measured(runs, column)
    if short_name(column) in ERRORS and kind_of(column) == "metrics":
        return value.clip(lower=np.finfo(float).eps)
    if (value < 0).any():
        raise Refused(f"{column}: has negative values, of which a ratio says nothing")
    return value


def _pair(
    runs: pandas.DataFrame, key: str, first: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The positions of the runs that make pairs, each of equal draws once: of those of the first
    option, and of those of the second."""
    draws = [column for column in map(str, runs.columns) if column.startswith("tags.draw.")]
    if not draws:
        return np.array([], int), np.array([], int)
    shared = _shared_draws(key, draws)
    # What follows from an option, such as init.scale from init, moves with the option.
    swept = [name for name in find_swept(runs) if name != key and not name.startswith(f"{key}.")]
    names = [f"params.{name}" for name in swept if name not in REPEATS]
    if len(shared) < len(draws):  # what the key moves is paired by its seed
        names += [f"params.{name}" for name in swept if name in REPEATS]
    frame = runs[[*names, *draws]].astype(object).fillna("–").astype(str)
    frame["position"], frame["all"] = runs.index, ""
    known = runs[draws].notna().any(axis=1).to_numpy()
    left, right = (frame[side & known] for side in (first, second))
    joined = left.merge(right, on=[*names, *shared, "all"], suffixes=("", "|"))
    seeds = [f"params.{name}" for name in REPEATS]
    same = [name for name in map(str, joined) if name.rstrip("|") not in ("position", *seeds)]
    joined = joined[~joined.duplicated(same)]
    return joined["position"].to_numpy(), joined["position|"].to_numpy()


def _shared_draws(key: str, draws: Sequence[str]) -> list[str]:
    """The draws that two options of a key have in common."""
    group = key.partition(".")[0]
    if group == PROBLEM or key in REPEATS:
        return []
    if group == NOISE:
        return [column for column in draws if column != f"tags.draw.{NOISE}"]
    if group in MOVES_START:
        return [column for column in draws if column != START]
    return list(draws)


def _compare_pairs(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float, int, int, int, int]:
    """The numbers of `Effect` for paired values (pairs,)."""
    known = ~(np.isnan(a) | np.isnan(b))
    ratios = np.array([_ratio_of(x, y) for x, y in zip(a[known], b[known], strict=True)])
    ties = int((abs(ratios - 1) <= TIED).sum())
    wins = int((ratios < 1 - TIED).sum())
    low, high = median_interval(ratios)
    losses = len(ratios) - ties - wins
    return quantile(ratios, 0.5), low, high, wins, ties, losses, len(ratios)


def _ratio_of(x: float, y: float) -> float:
    if x == y or (math.isinf(x) and math.isinf(y)):
        return 1.0
    if math.isinf(y):
        return 0.0
    return x / y if y else math.inf


def median_interval(values: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The interval of order statistics that holds the median of the distribution with at least this
    confidence; NaN if the values are too few.

    Source: Thompson 1936; see `effect`.
    """
    ordered = np.sort(values)
    n, tail, rank = len(ordered), (1 - confidence) / 2, 0
    # The median lies below the r-th value with the probability of fewer than r heads in n throws.
    below = _binomial(n, 0)
    while n and below <= tail:
        rank += 1
        below += _binomial(n, rank)
    if rank == 0:
        return math.nan, math.nan
    return float(ordered[rank - 1]), float(ordered[n - rank])


def _binomial(n: int, k: int) -> float:
    """The probability of k heads in n throws."""
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways - n * math.log(2))
