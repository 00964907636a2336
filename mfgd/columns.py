"""The columns of a table of runs: what they are called, what they hold, and which keys were swept.

The table is that of `mfgd.load_runs`: run_id, status, parent, params.*, metrics.* and tags.*.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mfgd.errors import Refused
from mfgd.terminal import show_plain

if TYPE_CHECKING:
    import pandas
    from pandas.core.groupby import SeriesGroupBy


class NoColumn(Refused):
    """The table has no such column."""


KINDS = ("params", "metrics", "tags")
FIRST = ("rank", "lr", "loss", "init")
"""The keys that a table and a figure show first, if they vary."""
FEW = 8
"""So many options have a colour of their own."""
COLOURED = ("init", "optimizer", "loss")
"""The keys that have colours first, if they vary."""
REPEATS = ("seed", "problem.seed")
"""The keys that draw the same setting again."""
PLUMBING = (
    "batch_bytes",
    "workers",
    "device",
    "experiment",
    "tracking",
    "record",
    "figures",
)
"""Keys and groups that say how a run is made and kept; they change no number."""
LOST = ("diverged", "undefined", "error")
"""The outcomes of a run that has no final value."""
ERRORS = (
    "loss",
    "final_loss",
    "best_loss",
    "loss_gap",
    "excess_loss",
    "relative_error",
    "best_rank_error",
    "final_relative_error",
    "heldout_error",
    "early_stop_error",
)
"""Measures that are infinite if a run is lost."""
INFINITE = 1e300
"""MLflow keeps infinity as the largest number."""
QUARTILES = {"q25": 0.25, "median": 0.5, "q75": 0.75}


def find_column(runs: pandas.DataFrame, name: str, kinds: Sequence[str] = KINDS) -> str:
    """The column of a name: a whole name such as metrics.loss, or a short one such as excess_loss.

    Args:
        runs: the table.
        name: whole or short.
        kinds: what a short name may be, of `KINDS`.

    Raises:
        NoColumn: there is no such column.
        Refused: a param and a metric are called so.
    """
    if name in runs:
        return name
    found = [f"{kind}.{name}" for kind in kinds if f"{kind}.{name}" in runs]
    if not found:
        columns = map(str, runs.columns)
        short = sorted(short_name(column) for column in columns if kind_of(column) in kinds)
        near = difflib.get_close_matches(name, short, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}" if near else f"allowed are {', '.join(short)}"
        raise NoColumn(f"{name}: no such column; {hint}")
    if len(found) > 1 and not _same_numbers(runs, found):
        raise Refused(f"{name}: {' and '.join(found)} are called so; allowed is either")
    return found[0]


def kind_of(column: str) -> str:
    """params, metrics or tags."""
    return column.partition(".")[0]


def short_name(column: str) -> str:
    """The name of a column without its kind."""
    return column.partition(".")[2]


def _same_numbers(runs: pandas.DataFrame, columns: Sequence[str]) -> bool:
    """Whether a metric only repeats a param, so that MLflow can sort by it."""
    first, *others = (_to_numbers(runs[column]) for column in columns)
    return bool(first.notna().any()) and all(first.equals(other) for other in others)


def _to_numbers(column: pandas.Series) -> pandas.Series:
    import pandas

    return pandas.to_numeric(column, errors="coerce").astype(float)


def measured(runs: pandas.DataFrame, name: str) -> pandas.Series:
    """A column as numbers, NaN if unknown.

    An error or a loss is infinite if the run diverged, is undefined or raised: the run did not
    come anywhere, and no median may leave it out.

    Raises:
        Refused: as `find_column` does.
    """
    column = find_column(runs, name)
    values = _to_numbers(runs[column])
    values = values.where(values.abs() < INFINITE, np.sign(values) * np.inf)
    if kind_of(column) == "metrics" and short_name(column) in ERRORS:
        values = values.mask(is_lost(runs), np.inf)
    return values


def is_lost(runs: pandas.DataFrame) -> pandas.Series:
    """Whether each run diverged, is undefined or raised."""
    return outcomes(runs).isin(LOST)


def outcomes(runs: pandas.DataFrame) -> pandas.Series:
    """How each run ended, "unfinished" if it has not."""
    import pandas

    unknown = pandas.Series(None, index=runs.index, dtype=object)
    return runs.get("tags.outcome", unknown).fillna("unfinished")


def settings(runs: pandas.DataFrame, key: str) -> pandas.Series:
    """The values of a key: numbers if all of them are, else text that prints; "–" if a run has
    none.

    Raises:
        Refused: no run has such a param.
    """
    texts = runs[find_column(runs, key, ("params",))]
    numbers = _to_numbers(texts)
    if numbers.notna().all():
        return numbers.where(numbers.abs() < INFINITE, np.sign(numbers) * np.inf)
    return texts.fillna("–").astype(str).map(show_plain)


def is_numeric(runs: pandas.DataFrame, key: str) -> bool:
    """Whether all values of a key are numbers."""
    return settings(runs, key).dtype.kind == "f"


def is_plumbing(key: str) -> bool:
    """Whether a key says how a run is made and kept, and changes no number."""
    return key.partition(".")[0] in PLUMBING


def name_settings(runs: pandas.DataFrame, key: str) -> pandas.Series:
    """The values of a key as text, a number in its shortest form.

    Raises:
        Refused: as `settings` does.
    """
    values = settings(runs, key)
    return values.map("{:.12g}".format) if is_numeric(runs, key) else values


def find_varied(runs: pandas.DataFrame) -> list[str]:
    """The params that take several values and say something of a run.

    A param that only some runs have, with one value, follows from another param, and so does what
    is known of the data.
    """
    found = []
    for column in runs.columns:
        name = short_name(column)
        is_data = name.startswith("data.")
        says = kind_of(column) == "params" and not is_plumbing(name) and not is_data
        if says and runs[column].nunique() > 1:
            found.append(name)
    return found


def find_swept(runs: pandas.DataFrame) -> list[str]:
    """The keys that a sweep varies: rank, lr, loss and init first, those that only repeat a setting
    last.

    A key of an option, such as init.scale, is left out if the option decides it.
    """
    varied = find_varied(runs)
    keys = [name for name in varied if not _is_decided(runs, name, varied)]
    first = [name for name in FIRST if name in keys]
    last = [name for name in REPEATS if name in keys]
    return first + sorted(set(keys) - {*first, *last}) + last


def _is_decided(runs: pandas.DataFrame, name: str, varied: Sequence[str]) -> bool:
    """Whether the option of a group decides this key of it."""
    group, _, key = name.partition(".")
    if not key or group not in varied:
        return False
    return bool((runs.groupby(f"params.{group}")[f"params.{name}"].nunique() <= 1).all())


def choose_coloured(runs: pandas.DataFrame) -> str | None:
    """The swept key whose values have colours: the first of a few words, else the first of numbers;
    None if nothing is swept but repeats."""
    keys = [key for key in find_swept(runs) if key not in REPEATS]
    words = [key for key in keys if not is_numeric(runs, key)]
    few = [key for key in words if settings(runs, key).nunique() <= FEW]
    first = [key for key in COLOURED if key in few]
    return next(iter([*first, *few, *keys]), None)


def choose_measure(runs: pandas.DataFrame) -> str:
    """The column that says how near the runs came: the excess over the optimum if it is known of
    every run that ended, else the held-out error, else the relative error."""
    ended = ~is_lost(runs) & (outcomes(runs) != "unfinished")
    for column in ("metrics.excess_loss", "metrics.heldout_error"):
        if column in runs and ended.any() and runs.loc[ended, column].notna().all():
            return column
    return "metrics.final_relative_error"


def quantile(values: Iterable[float], q: float) -> float:
    """The q-quantile by linear interpolation, NaN without values; it may be infinite."""
    known = np.sort([value for value in values if not np.isnan(value)])
    if not len(known):
        return float("nan")
    place = q * (len(known) - 1)
    low, high = known[int(np.floor(place))], known[int(np.ceil(place))]
    share = place - np.floor(place)
    if share == 0 or low == high:
        return float(low)
    return float(low + share * (high - low)) if np.isfinite(low) else float(low)


def quartiles(values: SeriesGroupBy[Any, Any]) -> pandas.DataFrame:
    """`q25`, `median` and `q75` of each group."""
    import pandas

    return pandas.DataFrame(
        {name: values.agg(partial(quantile, q=q)) for name, q in QUARTILES.items()}
    )


def by_size(text: object) -> tuple[int, float, str]:
    """Sorts numbers by size, before words."""
    try:
        return 0, float(str(text)), str(text)
    except ValueError:
        return 1, 0.0, str(text)


def table_line(
    run_id: str,
    status: str,
    parent: str | None,
    params: Mapping[str, str],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
) -> dict[str, Any]:
    """A run's line in the table of runs."""
    line: dict[str, Any] = {"run_id": run_id, "status": status, "parent": parent}
    line |= {f"params.{key}": value for key, value in params.items()}
    line |= {f"metrics.{key}": value for key, value in metrics.items()}
    return line | {f"tags.{key}": value for key, value in tags.items()}
