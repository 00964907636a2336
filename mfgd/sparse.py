"""Matrices of which few entries are observed: kept and multiplied by those entries alone."""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mfgd.types import Factors

LARGE = 1 << 20
"""From so many entries, observed or not, on"""
FEW = 0.1
"""a matrix is kept sparse where less than this share of them is observed."""


def suits(n: int, m: int, count: int) -> bool:
    """Whether an (n, m) matrix with so many observed entries is kept sparse; its company has no say in it."""
    return n * m >= LARGE and count < FEW * n * m


def csr(at: Tensor, values: Tensor, n: int, m: int) -> Tensor:
    """The (n, m) matrix in compressed rows with values at ascending positions of the flattened one."""
    starts = torch.searchsorted(at, torch.arange(n + 1) * m)
    # 32 bits: MKL takes no others, and would be handed a copy at every product.
    return compressed(starts.to(torch.int32), (at % m).to(torch.int32), values, n, m)


def compressed(starts: Tensor, columns: Tensor, values: Tensor, n: int, m: int) -> Tensor:
    """A matrix in compressed rows, whose parts are known to fit."""
    return torch.sparse_csr_tensor(starts, columns, values, (n, m), check_invariants=False)


with warnings.catch_warnings():  # once in a process torch announces that such matrices are new
    warnings.simplefilter("ignore")
    csr(torch.tensor([0]), torch.ones(1), 1, 1)


class Pattern:
    """Where the entries of a sparse matrix lie, and products of matrices that have entries there and nowhere else.

    Values of the entries are (*, 1, N), row by row; of the leading dimensions * none is above 1.
    """

    def __init__(self, D: Tensor) -> None:
        self.D = D

    @property
    def rows(self) -> Tensor:
        """(N,), the row of each entry."""
        starts = self.D.crow_indices()
        return torch.repeat_interleave(
            torch.arange(len(starts) - 1, device=starts.device), starts.diff()
        )

    @property
    def columns(self) -> Tensor:
        """(N,), the column of each entry."""
        return self.D.col_indices()

    def sampled(self, A: Tensor, B: Tensor) -> Tensor:
        """The entries of A B, A (*, n, k) and B (*, k, m)."""
        found = torch.sparse.sampled_addmm(
            self.D, A.reshape(A.shape[-2:]), B.reshape(B.shape[-2:]), beta=0.0
        )
        return found.values().view(*A.shape[:-2], 1, -1)

    def times(self, values: Tensor, X: Tensor) -> Tensor:
        """S X, (*, n, k), S the matrix of these values and X (*, m, k)."""
        return (self.filled(values) @ X.reshape(X.shape[-2:])).view(*X.shape[:-2], -1, X.shape[-1])

    def transposed_times(self, values: Tensor, X: Tensor) -> Tensor:
        """Sᵀ X, (*, m, k), S the matrix of these values and X (*, n, k)."""
        starts, columns, order = self._transposed
        S = compressed(
            starts, columns, values.reshape(-1).index_select(0, order), *self.D.shape[::-1]
        )
        return (S @ X.reshape(X.shape[-2:])).view(*X.shape[:-2], -1, X.shape[-1])

    def filled(self, values: Tensor) -> Tensor:
        """The matrix of these values, in compressed rows (n, m)."""
        return compressed(
            self.D.crow_indices(), self.D.col_indices(), values.reshape(-1), *self.D.shape
        )

    @cached_property
    def _transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Column starts, rows, and the order of the entries, column by column."""
        m, columns = self.D.shape[1], self.columns
        order = columns.argsort(stable=True)
        starts = torch.searchsorted(
            columns[order], torch.arange(m + 1, dtype=columns.dtype, device=columns.device)
        )
        return starts.to(torch.int32), self.rows[order].to(torch.int32), order.to(torch.int32)


def as_scipy(D: Tensor) -> Any:
    """A matrix in compressed rows as SciPy has it."""
    from scipy.sparse import csr_array

    return csr_array(
        (D.values().numpy(), D.col_indices().numpy(), D.crow_indices().numpy()),
        shape=tuple(D.shape),
    )


def apart(left: Factors, right: Factors) -> Tensor:
    """‖A₁ B₁ − A₂ B₂‖_F of two pairs of factors, (*,), from QR factorizations of [A₁ −A₂] and [B₁ᵀ B₂ᵀ]."""
    (A, B), (P, Q) = left, right
    lead = A.shape[:-2]
    tall = torch.cat([A, -P.expand(*lead, *P.shape[-2:])], -1)
    wide = torch.cat([B, Q.expand(*lead, *Q.shape[-2:])], -2)
    R, S = (torch.linalg.qr(X, mode="r").R for X in (tall, wide.mT))
    return torch.linalg.vector_norm(R @ S.mT, dim=(-2, -1))
