"""Which runs are compared: those that fulfil a condition, the best first, each result once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mfgd.columns import KINDS, REPEATS, choose_measure, find_column, kind_of, measured, short_name
from mfgd.errors import Refused

if TYPE_CHECKING:
    import pandas

WORDS = re.compile(
    r"""(?P<other>"[^"]*"|'[^']*'|\d+\.?\d*(?:[eE][+-]?\d+)?|\b(?:and|or|not|in|True|False)\b)"""
    r"|`(?P<quoted>[^`]+)`|(?P<name>[A-Za-z_]\w*(?:\.\w+)*)"
)
"""The texts, numbers and names of a condition."""
BEFORE_TEXT = re.compile(r"\s*(==|!=|in|not\s+in)\s*[\[(]?\s*[\"']")
AFTER_TEXT = re.compile(r"[\"']\s*(==|!=)\s*$")
FORM = 'allowed is, for example, rank == 10 and outcome != "diverged"; also or, not, in, < and ( )'


def where(runs: pandas.DataFrame, condition: str) -> pandas.DataFrame:
    """The runs that fulfil a condition, such as ``rank == 10 and outcome != "diverged"``.

    Args:
        runs: the table of `mfgd.load_runs`.
        condition: comparisons of columns, by whole or short names, with numbers or with text in
            quotes, joined by and, or, not. An error of a run that is lost is infinite. Of an
            unknown value only != is true.

    Raises:
        Refused: the condition is of another form, or a name is that of no column or of several.
    """
    import pandas

    values: dict[str, pandas.Series] = {}

    def replace(found: re.Match[str]) -> str:
        if found["other"]:
            return found[0]
        place = f"value_{len(values)}_"
        before, after = condition[: found.start()], condition[found.end() :]
        beside_text = bool(BEFORE_TEXT.match(after) or AFTER_TEXT.search(before))
        values[place] = _take_column(runs, found["quoted"] or found["name"], beside_text)
        return place

    try:
        text = WORDS.sub(replace, condition)
        fulfilled: Any = pandas.DataFrame(values, index=runs.index).eval(text, engine="python")
        if fulfilled.dtype != bool:
            raise ValueError("is no condition")
        return runs[fulfilled]
    except Refused as refused:
        raise type(refused)(f"{condition}: {refused}") from None
    except Exception:
        # Whatever pandas raises, it speaks of the condition.
        raise Refused(f"{condition}: cannot be read; {FORM}") from None


def refuse_unreadable(condition: str) -> None:
    """Refuses a condition that `where` could not read of any runs, before there are runs.

    Raises:
        Refused: the condition is of another form.
    """
    import pandas

    names = [found["quoted"] or found["name"] for found in WORDS.finditer(condition)]
    where(pandas.DataFrame({f"params.{name}": ["1"] for name in names if name}), condition)


def _take_column(runs: pandas.DataFrame, name: str, beside_text: bool) -> pandas.Series:
    """A column as numbers if it holds numbers, else as text; beside a text it is no metric."""
    kinds = ("params", "tags") if beside_text else KINDS
    column = find_column(runs, name, kinds)
    if beside_text:
        return runs[column].astype(object)
    numbers = measured(runs, column)
    if numbers.notna().any() or kind_of(column) == "metrics":
        return numbers
    return runs[column].astype(object)


def best(runs: pandas.DataFrame, by: str | None = None) -> pandas.DataFrame:
    """The runs sorted by a column, the least value first; runs without a number there come last,
    after those that are lost.

    Args:
        runs: the table of `mfgd.load_runs`.
        by: a column, by its whole or short name; None for `columns.choose_measure`.

    Raises:
        Refused: as `columns.find_column` does.
    """
    import numpy as np

    if by is None:
        by = choose_measure(runs)
        if by not in runs:
            return runs
    column = find_column(runs, by)
    key = measured(runs, column) if kind_of(column) in ("params", "metrics") else runs[column]
    if key.isna().all():
        key = runs[column]
    elif kind_of(column) == "metrics":
        key = key.where(np.isfinite(key))
    return runs.loc[key.sort_values(kind="stable", na_position="last").index]


def drop_repeats(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The runs without those that only repeat another run: of equal settings and draws, such as the
    seeds of a start that draws nothing.

    A column `equal` says how many runs a line stands for.
    """
    import pandas

    same = [
        column
        for column in map(str, runs.columns)
        if (kind_of(column) == "params" and short_name(column) not in REPEATS)
        or column.startswith("tags.draw.")
    ]
    if "tags.draw.init" not in runs:
        return runs.assign(equal=1)
    lines = runs[same].astype(object).fillna("–").astype(str)
    # A run that raised has no draws, and stands for itself.
    alone = runs["tags.draw.init"].isna()
    lines["alone"] = pandas.Series(range(len(runs)), index=runs.index).where(alone, -1)
    groups = lines.groupby(list(lines.columns), sort=False)
    counted = runs.assign(equal=groups["alone"].transform("size"))
    return counted[~lines.duplicated()]
