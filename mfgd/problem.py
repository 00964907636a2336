"""What is factored, and what is known of its answer.

Each function here is an option of ``problem=``; its keyword arguments are that option's keys. It returns a `Problem`.
"""

from __future__ import annotations

import csv
import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfgd.types import Count, NonNegative, Positive, Refused, Seed


@dataclass(frozen=True)
class Problem:
    """A target D with its observed entries, and the truth behind it where that is known."""

    D: Tensor
    """(*, n, m), finite; 0 where not observed."""
    mask: Tensor | None = None
    """(*, n, m), 1 where observed and 0 where not; None when every entry is observed."""
    truth: Tensor | None = None
    """(*, n, m), the noiseless, complete matrix; None where unknown."""
    rank: int | None = None
    """The rank of the truth where D has no noise: from this rank on the loss can reach 0."""
    generated: bool = False
    """Drawn from a seed, not read from somewhere."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return self.D.shape[-2], self.D.shape[-1]

    @property
    def count(self) -> Tensor | int:
        """Number of observed entries, (*, 1, 1) under a mask."""
        n, m = self.shape
        return n * m if self.mask is None else self.mask.sum((-2, -1), keepdim=True)

    @cached_property
    def spectrum(self) -> Tensor | None:
        """Singular values (*, min(n, m)), largest first: of D when fully observed, else of the truth."""
        target = self.D if self.mask is None else self.truth
        return None if target is None else torch.linalg.svdvals(target)

    @cached_property
    def triplets(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """U (*, n, r), σ (*, r), V (*, m, r) of what `spectrum` is of."""
        target = self.D if self.mask is None else self.truth
        if target is None:
            return None
        U, sigma, Vh = torch.linalg.svd(target, full_matrices=False)
        return U, sigma, Vh.mT

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Problem:
        """The same problem in another precision, on another device."""
        D, mask = (None if x is None else x.to(dtype=dtype, device=device) for x in (self.D, self.mask))
        assert D is not None
        truth = self.truth
        if truth is not None:
            truth = D if truth is self.D else truth.to(dtype=dtype, device=device)
        return Problem(D, mask, truth, self.rank, self.generated)


def stream(name: str, seed: int) -> torch.Generator:
    """A random stream of its own for each (name, seed), so that drawing more from one never moves another."""
    digest = hashlib.blake2b(f"{name}:{seed}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def hashed(*draws: Tensor) -> str:
    """A short hash of what was drawn, by which runs that share it are found."""
    digest = hashlib.blake2b(digest_size=8)
    for draw in draws:
        digest.update(draw.contiguous().numpy().tobytes())
    return digest.hexdigest()


def gaussian(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal draw in float64: a draw in float32 would be another one, not the same one rounded."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def orthonormal(n: int, k: int, generator: torch.Generator) -> Tensor:
    """(n, k) with orthonormal columns, Haar distributed (Mezzadri 2007, How to generate random matrices, eq. 5.10)."""
    Q, R = torch.linalg.qr(gaussian((n, k), generator))
    return Q * torch.sgn(R.diagonal())


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


def of(data: Any, source: str = "D") -> Problem:
    """The problem of a given matrix whose missing entries are NaN.

    Args:
        data: (n, m), anything that `torch.as_tensor` takes.
        source: how an error names the matrix.

    Raises:
        Refused: not a non-empty matrix of real numbers, infinite entries, or nothing observed.
    """
    D = real(data, source)
    if D.ndim != 2:
        raise Refused(f"{source}: an array of shape {tuple(D.shape)}; allowed is a matrix (n, m)")
    if D.numel() == 0:
        raise Refused(f"{source}: an empty matrix of shape {tuple(D.shape)}; allowed is at least one entry")
    if torch.isinf(D).any():
        raise Refused(f"{source}: {int(torch.isinf(D).sum())} infinite entries; allowed are finite numbers and NaN")
    missing = torch.isnan(D)
    if missing.all():
        raise Refused(f"{source}: every entry is missing; allowed is at least one observed entry")
    if not missing.any():
        return Problem(D)
    return Problem(D.masked_fill(missing, 0.0), (~missing).to(D.dtype))


def notebook() -> Problem:
    """The 3×4 matrix of rank 2 that the founding notebook printed, to its four decimals."""
    D = [[0.0456, 0.1537, 0.0830, 0.0980], [0.2683, 0.4260, 0.4277, 0.4913], [0.4779, 0.7156, 0.7563, 0.8673]]
    return of(torch.tensor(D, dtype=torch.float64))


def synthetic(
    *,
    n: Count,
    m: Count,
    rank: Count,
    spectrum: list[Positive] | None,
    condition: Positive,
    noise: NonNegative,
    observed: float | int,
    seed: Seed,
) -> Problem:
    """D = U diag(σ) Vᵀ + noise with random orthonormal U and V, of which a share is observed.

    Data, noise and mask have a stream of their own under the one seed. Masks are nested: at the same seed a larger
    share adds entries and removes none.

    Args:
        n: rows.
        m: columns.
        rank: number of non-zero singular values, which fall linearly from 1 to 1/condition
            (Tong, Ma, Chi 2021, section 4).
        spectrum: the singular values themselves; given, it wins over rank and condition.
        condition: σ_1 / σ_rank, at least 1.
        noise: standard deviation of the Gaussian noise on each entry.
        observed: share of the entries that are observed, in (0, 1], or their number as an integer above 1.
        seed: moves U, V, noise and mask.

    Raises:
        Refused: a rank or spectrum beyond min(n, m), a condition below 1, or an unusable share.
    """
    if condition < 1:
        raise Refused(f"problem.condition={condition}: allowed is a number of at least 1")
    key = f"problem.rank={rank}" if spectrum is None else f"problem.spectrum of length {len(spectrum)}"
    sigma = torch.as_tensor(np.linspace(1, 1 / condition, rank) if spectrum is None else spectrum, dtype=torch.float64)
    r = len(sigma)
    if not 1 <= r <= min(n, m):
        raise Refused(f"{key}: allowed is 1 to min(n, m) = {min(n, m)}")
    if not (0 < observed <= 1 or (isinstance(observed, int) and 1 <= observed <= n * m)):
        raise Refused(f"problem.observed={observed}: allowed is a share in (0, 1] or a count up to n*m = {n * m}")
    sigma = sigma.sort(descending=True).values
    data = stream("problem data", seed)
    U, V = orthonormal(n, r, data), orthonormal(m, r, data)
    truth = (U * sigma) @ V.mT
    D = truth + noise * gaussian((n, m), stream("problem noise", seed)) if noise else truth

    exact = None if noise else r
    entries = round(observed * n * m) if observed <= 1 else int(observed)
    if entries == n * m:
        return Problem(D, None, truth, exact, generated=True)
    if entries == 0:
        raise Refused(f"problem.observed={observed}: no entry of {n}×{m} is left; allowed is at least 1/{n * m}")
    order = torch.rand(n * m, generator=stream("problem mask", seed), dtype=torch.float64).argsort()
    mask = torch.zeros(n * m, dtype=torch.float64)
    mask[order[:entries]] = 1.0
    mask = mask.view(n, m)
    return Problem(D * mask, mask, truth, exact, generated=True)


def digits() -> Problem:
    """The 1797 handwritten digits that come with scikit-learn, one a row of 64 pixels from 0 to 16 (1797×64)."""
    from sklearn.datasets import load_digits

    return of(load_digits().data)


def file(*, path: str) -> Problem:
    """A matrix from a file: .npy, .npz, .csv, .tsv, .mtx, .pt or .parquet. NaN, or an empty cell, is a missing entry.

    An .npz or .pt with several arrays must name one of them D. In .mtx, entries that are not listed are 0, as the
    format says. A first line of .csv or .tsv without a number in it is a header. No pickled object is ever loaded.

    Raises:
        Refused: no such file, another format, not a matrix, or unusable contents.
    """
    source, file = f"problem.path={path}", Path(path).expanduser()
    read = _READERS.get(file.suffix.lower())
    if read is None:
        raise Refused(f"{source}: unknown format; allowed are {' '.join(_READERS)}")
    return of(opened(read, file, source), source)


def ratings(*, path: str) -> Problem:
    """Users × items from a MovieLens file: u.data (tabs), ratings.dat (::) or ratings.csv (a header and commas).

    Users and items are numbered in the order of their ids, and the others of the grid are missing. A pair rated twice
    keeps its last rating.

    Raises:
        Refused: no such file, another format, or a line without user, item and rating.
    """
    source, file = f"problem.path={path}", Path(path).expanduser()
    if file.suffix.lower() not in (".data", ".dat", ".csv"):
        raise Refused(f"{source}: unknown format; allowed are u.data, ratings.dat and ratings.csv")
    user, item, rating = opened(_triples, file, source)
    (users, row), (items, column) = (np.unique(ids, return_inverse=True) for ids in (user, item))
    D = np.full((len(users), len(items)), np.nan)
    D[row, column] = rating
    return of(D, source)


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
            raise Refused(f"row {i + 1}: {error}; allowed are numbers, NaN and empty cells") from None
    return np.array(rows, dtype=np.float64).reshape(len(rows), *widths or (0,))


def _matrix_market(file: Path) -> np.ndarray:
    from scipy.io import mmread

    matrix = mmread(file)
    return matrix if isinstance(matrix, np.ndarray) else matrix.toarray()


def _parquet(file: Path) -> np.ndarray:
    import pandas

    table = pandas.read_parquet(file)
    if text := [name for name, kind in table.dtypes.items() if not pandas.api.types.is_numeric_dtype(kind)]:
        raise Refused(f"column {text[0]} is not numeric; allowed are numbers and NaN")
    return table.to_numpy(dtype=np.float64, na_value=np.nan).copy()


def _triples(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import pandas

    suffix = file.suffix.lower()
    table = pandas.read_csv(
        file,
        sep=_SEPARATORS[suffix],
        header=0 if suffix == ".csv" else None,
        engine="python" if suffix == ".dat" else "c",
        encoding="latin-1",
    )
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
