"""Matrices, ratings and arrays from files, and what is refused of them."""

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


def real(data: Any, source: str) -> Tensor:
    """An array of real numbers in double precision, whatever it was stored in: a spectrum needs all of it.

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


def matrix(data: Any, source: str) -> Tensor:
    """A non-empty matrix of real numbers (n, m) whose missing entries are NaN.

    Raises:
        Refused: anything else, or infinite entries.
    """
    D = real(data, source)
    if D.ndim != 2:
        raise Refused(f"{source}: an array of shape {tuple(D.shape)}; allowed is a matrix (n, m)")
    if D.numel() == 0:
        raise Refused(
            f"{source}: an empty matrix of shape {tuple(D.shape)}; allowed is at least one entry"
        )
    if torch.isinf(D).any():
        raise Refused(
            f"{source}: {int(torch.isinf(D).sum())} infinite entries; allowed are finite numbers and NaN"
        )
    if torch.isnan(D).all():
        raise Refused(f"{source}: every entry is missing; allowed is at least one observed entry")
    return D


def read(path: str, source: str) -> Tensor:
    """The matrix in a file of any of the formats; `source` is how an error names it."""
    file = Path(path).expanduser()
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise Refused(f"{source}: unknown format; allowed are {' '.join(_READERS)}")
    return matrix(opened(reader, file, source), source)


def opened(read: Callable[[Path], Any], file: Path, source: str) -> Any:
    """What `read` makes of the file; every way in which that fails becomes a `Refused`."""
    if not file.is_file():
        raise Refused(f"{source}: no such file")
    if file.stat().st_size == 0:
        raise Refused(f"{source}: an empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a reader warns of is refused or harmless
            return read(file)
    except Refused as error:
        raise Refused(f"{source}: {error}") from None
    except Exception as error:  # each reader has its own ways to fail on a broken file
        reason = (str(error).strip().splitlines() or [repr(error)])[0].partition(". ")[0]
        raise Refused(f"{source}: not readable as {file.suffix} ({reason})") from None


def arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; none that is a pickle."""
    # NumPy leaves a file that it opened itself open when it is broken.
    with file.open("rb") as handle, np.load(handle, allow_pickle=False) as content:
        return dict(content)


def _tensor(file: Path) -> Any:
    value = torch.load(file, weights_only=True, map_location="cpu")
    return _only(value) if isinstance(value, dict) else value


def _only(arrays: dict[str, Any]) -> Any:
    if "D" in arrays or len(arrays) == 1:
        return arrays.get("D", next(iter(arrays.values())))
    raise Refused(f"arrays {', '.join(arrays) or 'none'}; allowed is one array, or one named D")


def _table(file: Path) -> np.ndarray:
    def number(cell: str) -> float:
        return float(cell) if cell.strip() else np.nan

    def is_number(cell: str) -> bool:
        try:
            return bool(cell.strip()) and float(cell) is not None
        except ValueError:
            return False

    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = [row for row in csv.reader(lines, delimiter=_SEPARATORS[file.suffix.lower()]) if row]
    if rows and any(cell.strip() for cell in rows[0]) and not any(map(is_number, rows[0])):
        rows = rows[1:]
    widths = sorted({len(row) for row in rows})
    if len(widths) > 1:
        raise Refused(f"ragged: rows of {widths[0]} to {widths[-1]} cells; allowed is one length")
    for i, row in enumerate(rows):
        try:
            rows[i] = [number(cell) for cell in row]  # type: ignore[misc]
        except ValueError as error:
            raise Refused(
                f"row {i + 1}: {error}; allowed are numbers, NaN and empty cells"
            ) from None
    return np.array(rows, dtype=np.float64).reshape(len(rows), *widths or (0,))


def _matrix_market(file: Path) -> np.ndarray:
    from scipy.io import mmread

    matrix = mmread(file)
    return matrix if isinstance(matrix, np.ndarray) else matrix.toarray()


def _parquet(file: Path) -> np.ndarray:
    import pandas

    table = pandas.read_parquet(file)
    if text := [
        name for name, kind in table.dtypes.items() if not pandas.api.types.is_numeric_dtype(kind)
    ]:
        raise Refused(f"column {text[0]} is not numeric; allowed are numbers and NaN")
    return table.to_numpy(dtype=np.float64, na_value=np.nan).copy()


def ratings(path: str, source: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User, item and rating of each line of a MovieLens file."""
    file = Path(path).expanduser()
    if file.suffix.lower() not in (".data", ".dat", ".csv"):
        raise Refused(f"{source}: unknown format; allowed are u.data, ratings.dat and ratings.csv")
    return opened(_triples, file, source)


def _triples(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import pandas

    suffix = file.suffix.lower()
    table = pandas.read_csv(
        file,
        sep=_SEPARATORS[suffix][:1],
        header=0 if suffix == ".csv" else None,
        encoding="latin-1",
    )
    if (
        suffix == ".dat"
    ):  # pandas is slow with separators of two characters: every other column is between the two
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
_READERS: dict[str, Callable[[Path], Any]] = {
    ".npy": lambda file: np.load(file, allow_pickle=False),
    ".npz": lambda file: _only(arrays(file)),
    ".csv": _table,
    ".tsv": _table,
    ".mtx": _matrix_market,
    ".pt": _tensor,
    ".parquet": _parquet,
}
