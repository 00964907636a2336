"""What the figures of many runs show: medians and quartiles, the Eckart-Young floor, and words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mfgd.columns import by_size, is_lost, measured, quartiles, settings, short_name

if TYPE_CHECKING:
    import pandas

LABELS = {
    "excess_loss": "excess, loss/optimum − 1",
    "excess_error": "excess, squared error/least − 1",
    "final_relative_error": "final relative error",
    "relative_error": "relative error",
    "heldout_error": "held-out error",
}
"""Measure → what an axis says of it. They are relative: from `ROUNDING` on they are rounding."""
ROUNDING = 1e-16
"""Where a relative measure that is smaller, or not above 0, is drawn."""
DIGITS_SHOWN = 7
"""Characters of a number in a figure, from which on it has three digits."""
LONGEST = 24
"""Characters of a value in a figure."""
AGREEING = 1.001
"""Up to this ratio, two least errors are the same one."""
VALUE, LOST, FLOOR = "final value", "is lost", "least value"
"""Columns beside those of the keys; a blank is in no key."""


def tabulate(runs: pandas.DataFrame, column: str, keys: Sequence[str]) -> pandas.DataFrame:
    """The settings of some keys, one column each, and `VALUE`, `LOST` and `FLOOR` of each run.

    Args:
        runs: the table of `mfgd.load_runs`.
        column: of the measure; if no run has it, all values are unknown.
        keys: a blank one has one value for all runs.
    """
    import pandas

    frame = pandas.DataFrame(index=runs.index)
    for key in keys:
        frame[key] = settings(runs, key) if key.strip() else ""
    frame[LOST] = is_lost(runs)
    unknown = pandas.Series(np.nan, index=runs.index).mask(frame[LOST], np.inf)
    values = measured(runs, column) if column in runs else unknown
    if short_name(column) in LABELS:
        values = values.mask(frame[LOST], np.inf).clip(lower=ROUNDING)
    frame[VALUE] = values
    frame[FLOOR] = least_errors(runs) if column == "metrics.final_relative_error" else np.nan
    return frame


def least_errors(runs: pandas.DataFrame) -> pandas.Series:
    """The least relative error of the rank and the matrix of each run, NaN if unknown.

    A squared loss of a complete D without penalty is f = w‖D̂ − D‖², and the relative error that of
    D, unless D has noise or outliers: the least error is then e/√(f/f*) of any run that ended
    (Eckart, Young 1936), and 0 if f* is 0. It holds for the runs with other losses too.
    """
    import pandas

    unknown = pandas.Series(np.nan, index=runs.index)
    error, excess, gap, loss = (
        pandas.to_numeric(runs.get(f"metrics.{name}", unknown))
        for name in ("final_relative_error", "excess_loss", "loss_gap", "final_loss")
    )
    least = (error / np.sqrt(1 + excess)).mask(excess.isna() & (gap == loss), 0.0)
    keys = [
        name
        for name in map(str, runs.columns)
        if name == "params.rank" or name.startswith("params.problem")
    ]
    if not keys:
        return unknown
    same = runs[keys].fillna("–").groupby(keys).ngroup()
    groups = least.where(_has_plain_error(runs)).groupby(same)
    # Runs that disagree have an error of another matrix than their loss.
    agree = groups.transform("max") <= AGREEING * groups.transform("min")
    return groups.transform("median").where(agree)


def _has_plain_error(runs: pandas.DataFrame) -> pandas.Series:
    """Whether each run ended and has neither penalty nor noise nor outliers."""
    import pandas

    plain = ~is_lost(runs)
    unknown = pandas.Series(np.nan, index=runs.index)
    for name in ("problem.noise", "problem.snr", "problem.outliers", "loss.penalty"):
        numbers = pandas.to_numeric(runs.get(f"params.{name}", unknown), errors="coerce")
        plain &= numbers.fillna(0) == 0
    return plain


def excess_errors(runs: pandas.DataFrame) -> pandas.Series:
    """(e/e*)² − 1 of the relative error e and the least one, NaN if unknown or e* is 0.

    It is the excess loss of a run with the squared loss, and compares runs with other losses to it.
    """
    import pandas

    least = least_errors(runs)
    excess = (runs["metrics.final_relative_error"] / least.where(least > 0)) ** 2 - 1
    unknown = pandas.Series(np.nan, index=runs.index)
    known = runs.get("metrics.excess_loss", unknown).where(_has_plain_error(runs) & excess.notna())
    return known.fillna(excess)  # what is tracked has lost no digits


def summarize(frame: pandas.DataFrame, keys: Sequence[str]) -> pandas.DataFrame:
    """One line a setting of some keys of `tabulate`: q25, median and q75, n runs, lost (the share
    of them) and floor.

    A lost run counts as infinite, so that a quantile may be.
    """
    groups = frame.groupby(list(keys), sort=True)
    table = quartiles(groups[VALUE]).assign(
        n=groups.size(), lost=groups[LOST].mean(), floor=groups[FLOOR].median()
    )
    return table.reset_index()


def values_of(column: pandas.Series) -> list[float | str]:
    """The values of a key in the order of their size."""
    return sorted(column.unique(), key=by_size)


def format_setting(value: object) -> str:
    """A value of a key in few characters."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, float) and len(text) > DIGITS_SHOWN:
        text = f"{value:.3g}"
    if len(text) > LONGEST:
        text = text.rpartition("/")[2]
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2 - 1]}…{text[-LONGEST // 2 :]}"
    return escape_formulas(text)


def escape_formulas(text: str) -> str:
    """A text of the user's as matplotlib shows it, which would read a formula between two $."""
    return text.replace("$", r"\$")


def label_of(measure: str) -> str:
    """What an axis says of a measure."""
    return LABELS.get(measure, measure.replace("_", " "))


def describe_sweep(runs: pandas.DataFrame) -> str:
    """Problem, size, optimizer and steps as far as the runs agree on them, and their number."""
    known = {}
    for name in ("problem", "data.rows", "data.columns", "optimizer", "steps"):
        column = f"params.{name}"
        if column in runs and runs[column].nunique() == 1:
            known[name] = format_setting(runs[column].dropna().iloc[0])
    said = [known.get("problem", "")]
    if "data.rows" in known and "data.columns" in known:
        said[0] += f" {known['data.rows']}×{known['data.columns']}"
    said.append(known.get("optimizer", ""))
    said.append(f"{known['steps']} steps" if "steps" in known else "")
    said.append(count_of(len(runs), "run"))
    return ", ".join(text.strip() for text in said if text)


def count_of(n: int, noun: str) -> str:
    """A number of things."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
