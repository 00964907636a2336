"""What is seen of a matrix D by linear measurements y_i = ⟨A_i, D⟩, i = 1 … N, instead of entries.

Runs that share A₁ … A_N use one copy of them; a product with A is one product of matrices a run,
since a product of all runs with A would give a run other bits beside other runs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from mfgd.capacity import NUMBER
from mfgd.dense import AllEntries, stack_tensors
from mfgd.kernel import Multiply, ScaledResidual, Stack, choose_multiply, product
from mfgd.linalg import frobenius_norm, solve_least_norm
from mfgd.observation import Observation, Truth
from mfgd.types import Factors

KEPT = 65_536
"""A file keeps A₁ … A_N if they have at most so many numbers."""


class Measurements(Observation):
    """y_i = ⟨A_i, D⟩, i = 1 … N, of a matrix D (*, n, m)."""

    entrywise = False
    arrays_of_a_step = 3

    def __init__(self, y: Tensor) -> None:
        self.target = y

    @property
    @abstractmethod
    def count(self) -> int:
        """N."""

    @property
    @abstractmethod
    def operator(self) -> dict[str, Tensor]:
        """The arrays that A₁ … A_N are kept in, by name."""

    @abstractmethod
    def adjoint(self, S: Tensor) -> Tensor:
        """A*(S) = Σ_i S_i A_i, (*, n, m), for S laid out like `target`."""

    @abstractmethod
    def select(self, at: Tensor) -> Self:
        """The measurements at some positions of the last dimension of `target`, without leading
        dimensions."""

    def estimate(self) -> Tensor:
        """D (n, m) from A*(y), right in the mean over draws of A₁ … A_N."""
        return self.adjoint(self.target) * (self.dilution / self.count)

    def restrict(self, S: Tensor) -> Tensor:
        return S

    def scaled_residual(self, c: float) -> ScaledResidual:
        def compute(
            left: Tensor, right: Tensor, multiply: Multiply, out: Tensor | None = None
        ) -> Tensor:
            return self.apply(c * left, right, multiply).sub_(self.target, alpha=c)

        return compute

    def misfit(self, factors: Factors) -> tuple[Tensor, Tensor]:
        multiply = choose_multiply(factors)
        seen = self.apply(product(factors[:-1]), factors[-1], multiply)
        return frobenius_norm(seen - self.target), frobenius_norm(self.target)

    def hidden_misfit(self, truth: Truth, factors: Factors) -> None:
        return None

    def top_singular_value(self) -> float:
        """σ₁ of A*(y)."""
        return float(torch.linalg.matrix_norm(self.adjoint(self.target), ord=2))

    def leading_triplets(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """The k leading singular triplets of `estimate`."""
        U, sigma, Vh = torch.linalg.svd(self.estimate(), full_matrices=False)
        return U[:, :k], sigma[:k], Vh[:k]

    def with_nan(self) -> Tensor:
        """NaN everywhere: no entry is observed."""
        lead = self.target.shape[:-2]
        return self.target.new_full((*lead, *self.shape), torch.nan)

    def arrays(self) -> dict[str, Tensor]:
        """y (N,), and what A₁ … A_N are kept in unless that is large."""
        kept = {"y": self.target.flatten().contiguous()}
        if sum(X.numel() for X in self.operator.values()) <= KEPT:
            kept |= {name: X.contiguous() for name, X in self.operator.items()}
        return kept

    def picture(self, factors: Factors, pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`estimate`, D̂ and their difference."""
        return AllEntries(self.estimate()).picture(factors, pixels)

    @property
    def layout(self) -> Hashable:
        return type(self), self.shape, self.count


class ListedMeasurements(Measurements):
    """y_1 … y_N one by one: arrays over the measurements are (*, 1, N)."""

    @property
    def count(self) -> int:
        return self.target.shape[-1]

    @abstractmethod
    def design_left(self, right: Tensor) -> Tensor:
        """What maps L, as a vector of its rows, to A(L R): A_i Rᵀ as rows, (*, N, n k)."""

    @abstractmethod
    def design_right(self, left: Tensor) -> Tensor:
        """What maps R, as a vector of its rows, to A(L R): LᵀA_i as rows, (*, N, k m)."""

    def bytes_to_solve(self, k: int) -> int:
        unknowns = k * max(self.shape)
        return NUMBER * unknowns * (self.count + 2 * unknowns)

    def solve_left(self, right: Tensor, ridge: float | Tensor) -> Tensor:
        return self._solve(self.design_left(right), ridge, (self.shape[0], right.shape[-2]))

    def solve_right(self, left: Tensor, ridge: float | Tensor) -> Tensor:
        return self._solve(self.design_right(left), ridge, (left.shape[-1], self.shape[1]))

    def _solve(self, design: Tensor, ridge: float | Tensor, shape: tuple[int, int]) -> Tensor:
        """The matrix X of a shape that minimizes ½‖design vec(X) − y‖² + ridge/2 ‖X‖²."""
        sides = torch.matmul(self.target, design).mT
        found = solve_least_norm(design.mT @ design, sides, ridge, self.count)
        return found.reshape(*found.shape[:-2], *shape)


class MatrixMeasurements(ListedMeasurements):
    """Measurements by matrices A (N, n, m), or (*, N, n, m) if runs have their own.

    A step costs 4 N n m operations a run beside those of the full matrix, and reads A twice.
    """

    def __init__(self, y: Tensor, A: Tensor, dilution: float) -> None:
        """
        Args:
            y: (*, 1, N).
            A: A₁ … A_N.
            dilution: of these matrices.
        """
        super().__init__(y)
        self.A, self._dilution = A, dilution
        self._rows = A.flatten(-2)

    @property
    def shape(self) -> tuple[int, int]:
        return self.A.shape[-2], self.A.shape[-1]

    @property
    def dilution(self) -> float:
        return self._dilution

    @property
    def shared_arrays(self) -> int:
        return self.count

    @property
    def operator(self) -> dict[str, Tensor]:
        return {"A": self.A}

    def apply(self, left: Tensor, right: Tensor, multiply: Multiply = torch.matmul) -> Tensor:
        return times_rows(multiply(left, right).flatten(-2)[..., None, :], self._rows.mT)

    def adjoint(self, S: Tensor) -> Tensor:
        return split_last(times_rows(S, self._rows), *self.shape)[..., 0, :, :]

    def pull_back(self, S: Tensor) -> Tensor:
        # An array over N measurements of a 1×N matrix could be A*(S) as well.
        return S if self.shape == (1, self.count) else self.adjoint(S)

    def _pulled_back(self, S: Tensor) -> Tensor:
        """A*(S) of S, or of what `pull_back` made of it."""
        return self.adjoint(S) if S.shape[-2:] == (1, self.count) else S

    def times_transposed(
        self, S: Tensor, right: Tensor, multiply: Multiply = torch.matmul
    ) -> Tensor:
        return multiply(right, self._pulled_back(S).mT).mT

    def transposed_times(
        self, left: Tensor, S: Tensor, multiply: Multiply = torch.matmul
    ) -> Tensor:
        return multiply(left.mT, self._pulled_back(S))

    def design_left(self, right: Tensor) -> Tensor:
        found = times_rows(right, self.A.flatten(-3, -2).mT)  # (*, k, N n)
        return split_last(found, self.count, -1).movedim(-3, -1).flatten(-2)

    def design_right(self, left: Tensor) -> Tensor:
        found = times_rows(left.mT, self.A.movedim(-3, -2).flatten(-2))  # (*, k, N m)
        return split_last(found, self.count, -1).movedim(-3, -2).flatten(-2)

    def select(self, at: Tensor) -> MatrixMeasurements:
        return MatrixMeasurements(self.target[:, at], self.A[at], self._dilution)

    def to(self, dtype: torch.dtype, device: torch.device | str) -> MatrixMeasurements:
        y, A = self.target.to(device, dtype), self.A.to(device, dtype)
        return MatrixMeasurements(y, A, self._dilution)

    @classmethod
    def stack(cls, runs: Sequence[MatrixMeasurements], stack: Stack) -> MatrixMeasurements:
        y = stack_tensors([run.target for run in runs], stack)
        return cls(y, share_or_stack([run.A for run in runs]), runs[0]._dilution)


def times_rows(rows: Tensor, M: Tensor) -> Tensor:
    """Rows (*, r, p) times a matrix M (p, q), which all runs share, or (*, p, q)."""
    # The stride of a dimension of one row is anything, and decides how MKL multiplies.
    rows = rows.reshape(-1).view(rows.shape)
    if rows.ndim == 3 and M.ndim == 2:
        # A product a run, whose bits do not depend on the runs beside it; M is not copied.
        return torch.bmm(rows, M.expand(len(rows), *M.shape))
    return torch.matmul(rows, M)


def split_last(X: Tensor, *shape: int) -> Tensor:
    """X (*, p) as (*, *shape)."""
    return X.reshape(*X.shape[:-1], *shape)


def share_or_stack(arrays: Sequence[Tensor]) -> Tensor:
    """The array that all runs share, or their arrays under a leading run dimension."""
    if all(X is arrays[0] for X in arrays):
        return arrays[0]
    return torch.stack(tuple(arrays))
