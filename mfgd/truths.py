"""Matrices of low rank that are drawn: U diag(σ) Vᵀ."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfgd.draws import hash_tensors
from mfgd.types import Refused


class LowRankTruth(NamedTuple):
    """D = U diag(σ) Vᵀ."""

    U: Tensor
    """(n, r), orthonormal columns."""
    sigma: Tensor
    """(r,), largest first."""
    V: Tensor
    """(m, r), orthonormal columns."""

    @property
    def rank(self) -> int:
        """r."""
        return len(self.sigma)

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """U diag(σ) (n, r) and Vᵀ (r, m)."""
        return self.U * self.sigma, self.V.mT

    def hash(self) -> str:
        """The hash of what was drawn."""
        return hash_tensors(self.U, self.V)

    def overrule(self, spectrum: list[float] | None) -> dict[str, float]:
        """`Problem.overruled` of the keys rank and condition, if a spectrum is given."""
        if spectrum is None:
            return {}
        return {"rank": self.rank, "condition": float(self.sigma[0] / self.sigma[-1])}


def draw_truth(
    columns: Callable[[int, int], Tensor],
    n: int,
    m: int,
    rank: int,
    spectrum: list[float] | None,
    condition: float,
    symmetric: bool,
) -> LowRankTruth:
    """D of given singular values.

    Args:
        columns: (rows, r) → orthonormal columns, drawn for U first.
        n: rows.
        m: columns.
        rank: number of singular values, which fall linearly from 1 to 1/condition.
        spectrum: the singular values instead, in any order.
        condition: σ_1 / σ_rank.
        symmetric: whether V = U.

    Raises:
        Refused: a rank or spectrum beyond min(n, m), a condition below 1, or a symmetric D with
            n ≠ m.
    """
    refuse_oblong(n, m, symmetric)
    if condition < 1:
        raise Refused(f"problem.condition={condition}: must be at least 1")
    if spectrum is None:
        key, values = f"problem.rank={rank}", np.linspace(1, 1 / condition, rank)
    else:
        key, values = f"problem.spectrum of length {len(spectrum)}", np.array(spectrum)
    r = len(values)
    if not 1 <= r <= min(n, m):
        raise Refused(f"{key}: must be between 1 and min(n, m) = {min(n, m)}")
    sigma = torch.as_tensor(values, dtype=torch.float64).sort(descending=True).values
    U = columns(n, r)
    return LowRankTruth(U, sigma, U if symmetric else columns(m, r))


def refuse_oblong(n: int, m: int, symmetric: bool) -> None:
    """Raises `Refused` if a symmetric D is not square."""
    if symmetric and n != m:
        raise Refused(f"problem.symmetric=true with problem.n={n}, problem.m={m}: must be square")
