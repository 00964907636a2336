"""Large matrices of which few entries are observed: the entries are listed, and nothing else is
computed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfgd.dense import AllEntries
from mfgd.kernel import Multiply, ScaledResidual, Stack, product
from mfgd.linalg import frobenius_norm, leading_triplets, top_singular_value
from mfgd.observation import Observation, Truth
from mfgd.types import Factors

LARGE = 1 << 20
"""A matrix with fewer entries than this, observed or not, is kept as a full matrix."""
FEW = 0.1
"""The entries of a large matrix are listed if less than this share of them is observed."""
ARRAYS = "D.row_starts", "D.columns", "D.values"
"""Names of the arrays in which a file keeps a sparse matrix."""


def use_sparse(n: int, m: int, count: int) -> bool:
    """Whether the entries of an (n, m) matrix are listed if `count` of them are observed."""
    return n * m >= LARGE and count < FEW * n * m


def compress_entries(at: Tensor, values: Tensor, n: int, m: int) -> Tensor:
    """The (n, m) matrix in compressed rows with values at ascending positions of the flattened
    matrix."""
    starts = torch.searchsorted(at, torch.arange(n + 1) * m)
    # 32 bits: MKL takes no other integers, and would be handed a copy at every product.
    return compressed_rows(starts.to(torch.int32), (at % m).to(torch.int32), values, n, m)


def compressed_rows(starts: Tensor, columns: Tensor, values: Tensor, n: int, m: int) -> Tensor:
    """The (n, m) matrix of row starts (n + 1,), columns (N,) and values (N,), which are known to
    fit."""
    return torch.sparse_csr_tensor(starts, columns, values, (n, m), check_invariants=False)


with warnings.catch_warnings():  # torch announces once in a process that such matrices are new
    warnings.simplefilter("ignore")
    compress_entries(torch.tensor([0]), torch.ones(1), 1, 1)


class ListedEntries(Observation):
    """N listed entries of an (n, m) matrix, without leading dimensions: a run shares its batch with
    no other run.

    Arrays over the entries are (*, 1, N), row by row; a leading dimension of the factors is 1 at
    most.
    """

    arrays_of_a_step = None

    def __init__(self, D: Tensor) -> None:
        self.matrix, self.target = D, D.values()

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def count(self) -> int:
        return self.target.numel()

    @property
    def rows(self) -> Tensor:
        """(N,), the row of each entry."""
        starts = self.matrix.crow_indices()
        rows = torch.arange(len(starts) - 1, device=starts.device)
        return torch.repeat_interleave(rows, starts.diff())

    @property
    def columns(self) -> Tensor:
        """(N,), the column of each entry."""
        return self.matrix.col_indices()

    def apply(self, left: Tensor, right: Tensor, multiply: Multiply = torch.matmul) -> Tensor:
        L, R = left.reshape(left.shape[-2:]), right.reshape(right.shape[-2:])
        seen = torch.sparse.sampled_addmm(self.matrix, L, R, beta=0.0)
        return seen.values().view(*left.shape[:-2], 1, -1)

    def restrict(self, S: Tensor) -> Tensor:
        return S

    def times_transposed(
        self, S: Tensor, right: Tensor, multiply: Multiply = torch.matmul
    ) -> Tensor:
        X = right.mT
        filled = self.fill(S) @ X.reshape(X.shape[-2:])
        return filled.view(*X.shape[:-2], -1, X.shape[-1])

    def transposed_times(
        self, left: Tensor, S: Tensor, multiply: Multiply = torch.matmul
    ) -> Tensor:
        starts, rows, order = self._by_columns
        values = S.reshape(-1).index_select(0, order)
        transposed = compressed_rows(starts, rows, values, *self.shape[::-1])
        found = transposed @ left.reshape(left.shape[-2:])
        return found.view(*left.shape[:-2], -1, left.shape[-1]).mT

    def fill(self, S: Tensor) -> Tensor:
        """The (n, m) matrix in compressed rows that has S on the listed entries."""
        starts, columns = self.matrix.crow_indices(), self.matrix.col_indices()
        return compressed_rows(starts, columns, S.reshape(-1), *self.shape)

    @cached_property
    def _by_columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """Column starts, rows, and the order of the entries column by column."""
        m, columns = self.shape[1], self.columns
        order = columns.argsort(stable=True)
        ends = torch.arange(m + 1, dtype=columns.dtype, device=columns.device)
        starts = torch.searchsorted(columns[order], ends)
        return starts.to(torch.int32), self.rows[order].to(torch.int32), order.to(torch.int32)

    def scaled_residual(self, c: float) -> ScaledResidual:
        def compute(
            left: Tensor, right: Tensor, multiply: Multiply, out: Tensor | None = None
        ) -> Tensor:
            return self.apply(c * left, right).sub_(self.target, alpha=c)

        return compute

    def in_gradient_layout(self, factors: Factors) -> Factors:
        contiguous = [W.contiguous() for W in factors[:-1]]
        return (*contiguous, factors[-1].mT.contiguous().mT)

    def misfit(self, factors: Factors) -> tuple[Tensor, Tensor]:
        target = self.target[None]
        seen = self.apply(product(factors[:-1]), factors[-1])
        return frobenius_norm(seen - target), frobenius_norm(target)

    def hidden_misfit(self, truth: Truth, factors: Factors) -> tuple[Tensor, Tensor]:
        # Nearly all entries are hidden, so little is lost in the difference.
        if isinstance(truth, LowRank):
            entries = self.apply(truth.left, truth.right)
        else:
            assert isinstance(truth, AllEntries)
            entries = truth.target[self.rows, self.columns]
        seen = ListedEntries(self.fill(entries))
        hidden = []
        for whole, listed in zip(truth.misfit(factors), seen.misfit(factors), strict=True):
            hidden.append((whole.square() - listed.square()).clamp(min=0).sqrt())
        return hidden[0], hidden[1]

    def top_singular_value(self) -> float:
        return top_singular_value(self._to_scipy()) if self.target.any() else 0.0

    def leading_triplets(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        n, m = self.shape
        if k >= min(n, m):
            return AllEntries(self.matrix.to_dense() * (n * m / self.count)).leading_triplets(k)
        found = leading_triplets(self._to_scipy(), k)
        U, sigma, Vh = (torch.from_numpy(X.copy()) for X in found)
        return U, sigma / (self.count / (n * m)), Vh

    def _to_scipy(self) -> Any:
        from scipy.sparse import csr_array

        starts = self.matrix.crow_indices().numpy()
        parts = self.target.numpy(), self.columns.numpy(), starts
        return csr_array(parts, shape=self.shape)

    def with_nan(self) -> Tensor:
        return self.matrix

    def arrays(self) -> dict[str, Tensor]:
        parts = self.matrix.crow_indices(), self.columns, self.target
        return dict(zip(ARRAYS, parts, strict=True))

    def picture(self, factors: Factors, pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        left, right = product(factors[:-1]).to(torch.float64), factors[-1].to(torch.float64)
        row_cells, column_cells = (_cells(size, pixels) for size in self.shape)
        height, width = int(row_cells[-1]) + 1, int(column_cells[-1]) + 1
        # The mean of a product over a cell is the product of the means.
        rows, columns = _means(left, row_cells, height), _means(right.mT, column_cells, width)
        cells = row_cells[self.rows] * width + column_cells[self.columns]
        missed = self.apply(left, right).flatten() - self.target
        D, residual = (_means(X, cells, height * width) for X in (self.target, missed))
        shape = height, width
        return D.view(shape).numpy(), (rows @ columns.mT).numpy(), residual.view(shape).numpy()

    def to(self, dtype: torch.dtype, device: torch.device | str) -> ListedEntries:
        return ListedEntries(self.matrix.to(dtype=dtype, device=device))

    @classmethod
    def stack(cls, runs: Sequence[ListedEntries], stack: Stack) -> ListedEntries:
        (alone,) = runs
        return alone


class LowRank:
    """The truth behind listed entries as factors L (n, r), R (r, m): the matrix itself may not fit
    into memory."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right = left, right

    def misfit(self, factors: Factors) -> tuple[Tensor, Tensor]:
        """‖D̂ − L R‖ and ‖L R‖, (*,) and ()."""
        estimate = product(factors[:-1]), factors[-1]
        left, right = self.left.to(torch.float64), self.right.to(torch.float64)
        size = ((left.mT @ left) * (right @ right.mT)).sum().sqrt()
        return distance(estimate, (self.left, self.right)), size

    def singular_values(self) -> Tensor:
        """Singular values of L R, (r,), largest first."""
        R, S = (torch.linalg.qr(X, mode="r").R for X in (self.left, self.right.mT))
        return torch.linalg.svdvals(R @ S.mT)

    def singular_vectors(self) -> tuple[Tensor, Tensor]:
        """Left (n, r) and right (m, r) singular vectors."""
        from mfgd.spectra import Triplets

        found = Triplets.from_factors((self.left, self.right))
        return found.U, found.V

    def to(self, dtype: torch.dtype, device: torch.device | str) -> LowRank:
        """The factors in another precision, on another device."""
        return LowRank(self.left.to(device, dtype), self.right.to(device, dtype))


def distance(first: Factors, second: Factors) -> Tensor:
    """‖A₁ B₁ − A₂ B₂‖_F of two pairs of factors, (*,), from QR factorizations of [A₁ −A₂] and [B₁ᵀ
    B₂ᵀ]."""
    (A, B), (P, Q) = first, second
    lead = A.shape[:-2]
    tall = torch.cat([A, -P.expand(*lead, *P.shape[-2:])], -1)
    wide = torch.cat([B, Q.expand(*lead, *Q.shape[-2:])], -2)
    R, S = (torch.linalg.qr(X, mode="r").R for X in (tall, wide.mT))
    return frobenius_norm(R @ S.mT)


def _cells(size: int, pixels: int) -> Tensor:
    """The cell of each of so many rows or columns, at most `pixels` cells in all."""
    return torch.arange(size) * min(size, pixels) // size


def _means(X: Tensor, cells: Tensor, count: int) -> Tensor:
    """Means over the entries or rows of X in each cell, NaN for an empty cell."""
    sums = torch.zeros((count, *X.shape[1:]), dtype=X.dtype).index_add_(0, cells, X)
    return sums / torch.bincount(cells, minlength=count).view(-1, *[1] * (X.ndim - 1))
