"""Arrays of NumPy, torch, pandas and SciPy in float64, and which of them are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfgd.capacity import NUMBER, refuse_large_array
from mfgd.types import Refused

EXACT = 2**53
"""The whole numbers up to here are numbers of float64."""


def real_tensor(data: Any, source: str) -> Tensor:
    """An array in float64, whatever its dtype: a spectrum needs all digits. `source` names it.

    Raises:
        Refused: text, dates, records, complex numbers, lists of unequal length, whole numbers that
            float64 does not have, or no array at all.
    """
    if isinstance(data, Tensor):
        # An expanded tensor has many entries in few bytes.
        held = data.layout == torch.strided and data.untyped_storage().nbytes()
        if data.dtype != torch.float64 or held < NUMBER * data.numel():
            refuse_large_array(data.shape, source)
        dense = data.detach().to("cpu")
        if dense.layout != torch.strided:
            dense = dense.to_dense()
        array = dense.resolve_conj().resolve_neg()
        if array.is_complex():
            raise Refused(f"{source}: complex entries; allowed are real numbers")
        if array.is_floating_point():
            return array.to(torch.float64)
        data = array.numpy()
    return torch.from_numpy(as_floats(data, source))


def as_floats(data: Any, source: str) -> np.ndarray:
    """An array of NumPy, pandas or SciPy, or nested lists, in float64."""
    if hasattr(data, "toarray"):
        refuse_large_array(data.shape, source)
        data = data.toarray()
    elif hasattr(data, "to_numpy"):
        data = data.to_numpy(na_value=np.nan)
    masked = np.ma.getmaskarray(data) if np.ma.isMaskedArray(data) else None
    try:
        array = np.asarray(data)
    except (TypeError, ValueError) as error:
        raise Refused(f"{source}: {str(error).splitlines()[0]}; allowed are real numbers") from None
    if array.dtype.kind == "c":
        raise Refused(f"{source}: complex entries; allowed are real numbers")
    if array.dtype.kind not in "biuf":
        raise Refused(f"{source}: entries of type {array.dtype}; allowed are real numbers")
    if array.dtype != np.float64:
        refuse_large_array(array.shape, source)
    floats = array.astype(np.float64, copy=not array.flags.writeable)
    if array.dtype.kind in "iu" and ((array > EXACT) | (array < -EXACT)).any():
        raise Refused(f"{source}: whole numbers beyond 2^53; allowed are numbers of float64")
    if masked is not None:
        floats = np.where(masked, np.nan, floats)
    return floats


def join_rows(rows: Sequence[Sequence[float | None]], source: str) -> Tensor:
    """The matrix (n, m) of rows of numbers, with NaN for None. `source` names it.

    Raises:
        Refused: no row, or rows that are empty or of several lengths.
    """
    lengths = sorted({len(row) for row in rows})
    if len(lengths) != 1 or lengths == [0]:
        found = f"ragged: rows of {lengths[0]} to {lengths[-1]} numbers" if lengths[1:] else "empty"
        raise Refused(f"{source}: {found}; allowed are rows of one length, [[1, 2], [3, 4]]")
    numbers = [[math.nan if number is None else number for number in row] for row in rows]
    return torch.tensor(numbers, dtype=torch.float64)


def pick_matrices(
    arrays: Mapping[str, Any], shapes: Mapping[str, tuple[int, int]], source: str
) -> tuple[Tensor, ...]:
    """The matrices of these names and shapes among arrays by name. `source` names the arrays.

    Raises:
        Refused: an array is missing, not real, of another shape, or not finite.
    """
    for name in shapes:
        if name not in arrays:
            raise Refused(f"{source}: no array {name} in it; allowed are {', '.join(shapes)}")
    # Every array is a tensor of real numbers before any shape is checked.
    found = {name: real_tensor(arrays[name], f"{source}: {name}") for name in shapes}
    for name, W in found.items():
        if tuple(W.shape) != shapes[name]:
            allowed = f"allowed here is {shapes[name]}"
            raise Refused(f"{source}: {name} is {tuple(W.shape)}; {allowed}")
        refuse_not_finite(W, source, name)
    return tuple(found.values())


def refuse_not_finite(array: Tensor, source: str, name: str) -> None:
    """Raises `Refused` if an array of a file has entries that are not finite."""
    if not torch.isfinite(array).all():
        wrong = f"{name} has entries that are not finite"
        raise Refused(f"{source}: {wrong}; allowed are finite numbers")


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
