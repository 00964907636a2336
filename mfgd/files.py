"""Matrices, ratings and arrays from files, and which contents are refused."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfgd.types import Refused


def real_tensor(data: Any, source: str) -> Tensor:
    """An array in float64, whatever its dtype: a spectrum needs all digits. `source` names it.

    Raises:
        Refused: text, dates, records, complex numbers, lists of unequal length, or no array at all.
    """
    try:
        array = torch.as_tensor(data)
    except (TypeError, ValueError, RuntimeError) as error:
        raise Refused(f"{source}: {str(error).splitlines()[0]}; allowed are real numbers") from None
    if array.is_complex():
        raise Refused(f"{source}: complex entries; allowed are real numbers")
    return array.to(torch.float64)


def as_matrix(data: Any, source: str) -> Tensor:
    """A non-empty matrix of real numbers (n, m) with NaN for a missing entry.

    Raises:
        Refused: anything else, or infinite entries.
    """
    D = real_tensor(data, source)
    shape = tuple(D.shape)
    if D.ndim != 2:
        raise Refused(f"{source}: an array of shape {shape}; allowed is a matrix (n, m)")
    if D.numel() == 0:
        raise Refused(f"{source}: an empty matrix of shape {shape}; allowed is at least one entry")
    infinite = int(torch.isinf(D).sum())
    if infinite:
        allowed = "allowed are finite numbers and NaN"
        raise Refused(f"{source}: {infinite} infinite entries; {allowed}")
    if torch.isnan(D).all():
        raise Refused(f"{source}: every entry is missing; allowed is at least one observed entry")
    return D


def read_matrix(path: str, source: str) -> Tensor:
    """The matrix (n, m) in a file of any known format.

    Raises:
        Refused: no such file, another format, or contents that are no matrix.
    """
    file = Path(path).expanduser()
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise Refused(f"{source}: unknown format; allowed are {' '.join(READERS)}")
    return as_matrix(read_or_refuse(reader, file, source), source)


def read_or_refuse(read: Callable[[Path], Any], file: Path, source: str) -> Any:
    """What the function `read` makes of a file.

    Raises:
        Refused: no such file, an empty file, or any exception of `read`.
    """
    if not file.is_file():
        raise Refused(f"{source}: no such file")
    if file.stat().st_size == 0:
        raise Refused(f"{source}: an empty file")
    try:
        with warnings.catch_warnings():
            # Contents that a reader warns of are refused later, or harmless.
            warnings.simplefilter("ignore")
            return read(file)
    except Refused as error:
        raise Refused(f"{source}: {error}") from None
    except Exception as error:  # each reader fails in its own ways on a broken file
        text = str(error).strip() or repr(error)
        reason = text.splitlines()[0].partition(". ")[0]
        raise Refused(f"{source}: not readable as {file.suffix} ({reason})") from None


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; a pickled array raises ValueError."""
    # NumPy would leave a broken file open if NumPy had opened the file itself.
    with file.open("rb") as handle, np.load(handle, allow_pickle=False) as content:
        return dict(content)


def read_ratings(path: str, source: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User, item and rating of each line of a MovieLens file, three arrays (N,).

    Raises:
        Refused: no such file, another format, or a line without user, item or rating.
    """
    file = Path(path).expanduser()
    if file.suffix.lower() not in (".data", ".dat", ".csv"):
        raise Refused(f"{source}: unknown format; allowed are u.data, ratings.dat and ratings.csv")
    return read_or_refuse(_read_triples, file, source)


def _read_torch(file: Path) -> Any:
    value = torch.load(file, weights_only=True, map_location="cpu")
    return _choose_array(value) if isinstance(value, dict) else value


def _choose_array(arrays: dict[str, Any]) -> Any:
    """The array named D, or the only array."""
    if "D" in arrays:
        return arrays["D"]
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    raise Refused(f"arrays {', '.join(arrays) or 'none'}; allowed is one array, or one named D")


def _read_text(file: Path) -> np.ndarray:
    """The cells of a .csv or .tsv file; an empty cell is NaN, an empty line is no row."""
    separator = _SEPARATORS[file.suffix.lower()]
    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = [cells for cells in csv.reader(lines, delimiter=separator) if cells]
    if rows and _is_header(rows[0]):
        del rows[0]
    widths = sorted(set(map(len, rows)))
    if len(widths) > 1:
        raise Refused(f"ragged: rows of {widths[0]} to {widths[-1]} cells; allowed is one length")
    numbers = np.empty((len(rows), widths[0] if widths else 0))
    for i, cells in enumerate(rows):
        try:
            numbers[i] = list(map(_to_number, cells))
        except ValueError as error:
            allowed = "allowed are numbers, NaN and empty cells"
            raise Refused(f"row {i + 1}: {error}; {allowed}") from None
    return numbers


def _to_number(cell: str) -> float:
    return float(cell) if cell.strip() else np.nan


def _is_header(cells: list[str]) -> bool:
    """Whether a line has text in it and no number."""
    filled = [cell for cell in cells if cell.strip()]
    for cell in filled:
        try:
            float(cell)
        except ValueError:
            continue
        return False
    return bool(filled)


def _read_matrix_market(file: Path) -> np.ndarray:
    from scipy.io import mmread

    matrix = mmread(file)
    return matrix if isinstance(matrix, np.ndarray) else matrix.toarray()


def _read_parquet(file: Path) -> np.ndarray:
    import pandas

    table = pandas.read_parquet(file)
    for name, kind in table.dtypes.items():
        if not pandas.api.types.is_numeric_dtype(kind):
            raise Refused(f"column {name} is not numeric; allowed are numbers and NaN")
    return table.to_numpy(dtype=np.float64, na_value=np.nan).copy()


def _read_triples(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import pandas

    suffix = file.suffix.lower()
    header = 0 if suffix == ".csv" else None
    separator = _SEPARATORS[suffix][:1]
    table = pandas.read_csv(file, sep=separator, header=header, encoding="latin-1")
    if suffix == ".dat":
        # pandas is slow if a separator has two characters. If it has one, every other column is
        # the empty text between two colons.
        if table.iloc[:, 1::2].notna().any(axis=None):
            raise Refused("values between single colons; allowed are user::item::rating")
        table = table.iloc[:, ::2]
    if table.shape[1] < 3:
        raise Refused(f"{table.shape[1]} columns; allowed are at least user, item and rating")
    try:
        user, item, rating = (table.iloc[:, i].to_numpy(dtype=np.float64) for i in range(3))
    except ValueError as error:
        raise Refused(f"{error}; allowed are numeric user, item and rating") from None
    if not np.isfinite([user, item, rating]).all():
        raise Refused("a line without user, item or rating")
    return user, item, rating


_SEPARATORS = {".csv": ",", ".tsv": "\t", ".data": "\t", ".dat": "::"}
READERS: dict[str, Callable[[Path], Any]] = {
    ".npy": lambda file: np.load(file, allow_pickle=False),
    ".npz": lambda file: _choose_array(read_arrays(file)),
    ".csv": _read_text,
    ".tsv": _read_text,
    ".mtx": _read_matrix_market,
    ".pt": _read_torch,
    ".parquet": _read_parquet,
}
"""Suffix → what reads a matrix from such a file."""
