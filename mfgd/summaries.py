"""What the runs of each setting have in common, and which key matters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mfgd.columns import (
    choose_measure,
    find_column,
    find_swept,
    is_lost,
    measured,
    outcomes,
    quartiles,
    settings,
)
from mfgd.errors import Refused

if TYPE_CHECKING:
    import pandas

TIED = 1e-6
"""Values that differ by less, relative, are equal."""


def group(
    runs: pandas.DataFrame, keys: Sequence[str], measure: str | None = None
) -> pandas.DataFrame:
    """Each setting of some keys with what its runs came to, the best first.

    Args:
        runs: the table of `mfgd.load_runs`.
        keys: params by their short names.
        measure: a column by its whole or short name; None for `columns.choose_measure`.

    Returns:
        One line a setting: the keys, `median`, `q25` and `q75` of the measure (a lost run counts as
        infinite), `n`, the shares `converged` and `diverged`, and `tied`: whether the quartiles of
        this setting hold the median of the best.

    Raises:
        Refused: a name is that of no column or of several.
    """
    column = find_column(runs, measure or choose_measure(runs))
    setting = [settings(runs, key).rename(key) for key in keys]
    values = measured(runs, column).groupby(setting)
    table = quartiles(values).assign(
        n=values.size(),
        converged=(outcomes(runs) == "converged").groupby(setting).mean(),
        diverged=is_lost(runs).groupby(setting).mean(),
    )
    table = table.reset_index().sort_values("median", kind="stable", ignore_index=True)
    least = float(table["median"].iloc[0])
    slack = TIED * abs(least) if np.isfinite(least) else 0.0
    table["tied"] = (table["q25"] - slack <= least) & (least <= table["q75"] + slack)
    return table


def importance(runs: pandas.DataFrame, measure: str | None = None) -> pandas.DataFrame:
    """The share of the variance of log₁₀ of a measure that each swept key explains by itself.

    The share is η², the sum of squares between the values of the key over the total sum of squares:
    the main effects of an analysis of variance (Fisher 1925). What keys explain only together, and
    what seeds move, is the rest to 1 if every combination was run equally often.

    Args:
        runs: the table of `mfgd.load_runs`.
        measure: a column by its whole or short name; None for `columns.choose_measure`.

    Returns:
        One line a key, the largest share first: `key`, `share`, `n` runs. Runs that are lost or
        without a positive value are left out: they have no logarithm.

    Raises:
        Refused: there is no such column, or no two runs differ in the measure.
    """
    import pandas

    column = find_column(runs, measure or choose_measure(runs))
    value = measured(runs, column)
    runs = runs[np.isfinite(value) & (value > 0)]
    y = np.log10(value[runs.index])
    total = float(((y - y.mean()) ** 2).sum())
    if not total > 0:
        raise Refused(f"{column}: no two runs have different finite values; nothing is explained")
    lines = []
    for key in find_swept(runs):
        means = y.groupby(settings(runs, key)).transform("mean")
        share = float(((means - y.mean()) ** 2).sum()) / total
        lines.append({"key": key, "share": share, "n": len(runs)})
    table = pandas.DataFrame(lines, columns=["key", "share", "n"])
    return table.sort_values("share", ascending=False, kind="stable", ignore_index=True)
