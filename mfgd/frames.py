"""Matrices from tables of pandas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mfgd.labels import INDEX_NAMES, Labels, choose_columns
from mfgd.matrix import EXACT
from mfgd.reading import ReadingKeys
from mfgd.types import Refused

if TYPE_CHECKING:
    import pandas


def read_frame_matrix(frame: pandas.DataFrame, keys: ReadingKeys) -> tuple[np.ndarray, list[str]]:
    """The matrix (n, m) in a table of pandas, and what is to be said of it.

    Raises:
        Refused: a column that is not numeric, or that may hold row names.
    """
    from pandas.api.types import is_integer_dtype, is_numeric_dtype

    frame = spell_out(frame)
    names = list(map(str, frame.columns))
    index = bool(keys["index"])
    if keys["index"] is None and len(names) > 1:
        index = _has_row_names(frame, names[0])
    labels = Labels(True, index, names[index:], len(names) - index)
    chosen = choose_columns(labels, keys)
    table = frame.iloc[:, [index + column for column in chosen]]
    for name, kind in table.dtypes.items():
        if not is_numeric_dtype(kind):
            raise Refused(f"column {name} is not numeric; allowed are numbers and NaN")
        if is_integer_dtype(kind) and (table[name].abs() > EXACT).any():
            raise Refused(f"column {name} has whole numbers beyond 2^53; allowed is float64")
    remarks = ["first column taken as row names"] if index else []
    if len(chosen) < labels.width:
        remarks.append(f"{len(chosen)} of {labels.width} columns read")
    return table.to_numpy(dtype=np.float64, na_value=np.nan).copy(), remarks


def spell_out(frame: pandas.DataFrame) -> pandas.DataFrame:
    """A table whose categories are written as what they stand for."""
    from pandas import CategoricalDtype

    kinds = {}
    for name, kind in frame.dtypes.items():
        if isinstance(kind, CategoricalDtype):
            kinds[name] = kind.categories.dtype
    return frame.astype(kinds)


def _has_row_names(frame: pandas.DataFrame, name: str) -> bool:
    """Whether the first column holds names of the rows.

    Raises:
        Refused: a column with a name of row names, whose numbers do not count the rows.
    """
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    column = frame.iloc[:, 0]
    if not is_numeric_dtype(column.dtype):
        return True
    if name.lower() not in INDEX_NAMES or is_bool_dtype(column.dtype):
        return False
    if column.isna().any() or not (column.diff().dropna() == 1).all():
        raise Refused(
            f"the column {name!r} holds row names (problem.index=true) "
            "or entries (problem.index=false)"
        )
    return True
