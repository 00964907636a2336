"""The outputs Y = D X of inputs X: linear measurements of D by all pairs of a row and an input."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from mfgd.dense import stack_tensors
from mfgd.kernel import Multiply, Stack
from mfgd.linalg import is_finite, solve_least_norm
from mfgd.measurements import Measurements, share_or_stack, times_rows
from mfgd.types import Refused


class Outputs(Measurements):
    """Y = D X, (*, n, N), of N inputs X (m, N), or (*, m, N) if runs have their own.

    Arrays over the measurements are laid out like Y. A step costs 8 N k (n + m) operations a run,
    with factors of width k, beside the residual.
    """

    def __init__(self, Y: Tensor, X: Tensor, variance: float | None) -> None:
        """
        Args:
            Y: the outputs.
            X: the inputs.
            variance: v, if the covariance X Xᵀ/N is v I; else None.
        """
        super().__init__(Y)
        self.X, self.variance = X, variance
        m, samples = X.shape[-2:]
        self.arrays_of_a_step = 1 - (-3 * samples // m)

    @property
    def shape(self) -> tuple[int, int]:
        return self.target.shape[-2], self.X.shape[-2]

    @property
    def count(self) -> int:
        return self.target.shape[-2:].numel()

    @property
    def dilution(self) -> float:
        if self.variance is None:
            raise Refused(
                "problem.covariance: ‖D X‖ is no multiple of ‖D‖; allowed are lr_unit=absolute, "
                "lr_unit=sharpness, init=spectral"
            )
        return self.shape[0] / self.variance

    @property
    def shared_arrays(self) -> int:
        return -(-self.X.shape[-1] // self.shape[0])

    @property
    def operator(self) -> dict[str, Tensor]:
        return {"X": self.X}

    def arrays(self) -> dict[str, Tensor]:
        """Y (n, N), and X unless it is large."""
        kept = super().arrays()
        del kept["y"]
        return {"Y": self.target.contiguous()} | kept

    def apply(self, left: Tensor, right: Tensor, multiply: Multiply = torch.matmul) -> Tensor:
        return times_rows(left, times_rows(right, self.X))

    def adjoint(self, S: Tensor) -> Tensor:
        return times_rows(S, self.X.mT)

    def times_transposed(
        self, S: Tensor, right: Tensor, multiply: Multiply = torch.matmul
    ) -> Tensor:
        return times_rows(times_rows(right, self.X), S.mT).mT

    def transposed_times(
        self, left: Tensor, S: Tensor, multiply: Multiply = torch.matmul
    ) -> Tensor:
        return times_rows(times_rows(left.mT, S), self.X.mT)

    @cached_property
    def _gram(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (*, m) and eigenvectors (*, m, m) of X Xᵀ."""
        values, vectors = torch.linalg.eigh(self.X @ self.X.mT)
        return values, vectors

    def estimate(self) -> Tensor:
        """The D (n, m) of least ‖D X − Y‖, and of these the one of least norm."""
        values, vectors = self._gram
        inverse = torch.where(values > _rounding(values), 1 / values, 0)
        found: Tensor = self.adjoint(self.target) @ (vectors * inverse) @ vectors.mT
        return found

    def solve_left(self, right: Tensor, ridge: float | Tensor) -> Tensor:
        Z = times_rows(right, self.X)
        sides = times_rows(Z, self.target.mT)
        return solve_least_norm(Z @ Z.mT, sides, ridge, Z.shape[-1]).mT

    def solve_right(self, left: Tensor, ridge: float | Tensor) -> Tensor:
        """The R that solves LᵀL R X Xᵀ + ridge R = LᵀY Xᵀ, in the eigenvectors of LᵀL and X Xᵀ."""
        gram = left.mT @ left
        finite = is_finite(gram)[..., None, None]
        a, A = torch.linalg.eigh(torch.where(finite, gram, 0))
        b, B = self._gram
        products = a[..., :, None] * b[..., None, :]
        kept = products > _rounding(a)[..., None] * b[..., None, -1:]
        kept = finite & (kept | (torch.as_tensor(ridge) > 0))
        inverse = torch.where(kept, 1 / (products + ridge), torch.where(finite, 0, torch.nan))
        sides = times_rows(A.mT, times_rows(self.transposed_times(left, self.target), B))
        return times_rows(times_rows(A, sides * inverse), B.mT)

    def select(self, at: Tensor) -> Outputs:
        return Outputs(self.target[:, at], self.X[:, at], self.variance)

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Outputs:
        return Outputs(self.target.to(device, dtype), self.X.to(device, dtype), self.variance)

    @classmethod
    def stack(cls, runs: Sequence[Outputs], stack: Stack) -> Outputs:
        Y = stack_tensors([run.target for run in runs], stack)
        return cls(Y, share_or_stack([run.X for run in runs]), runs[0].variance)


def _rounding(values: Tensor) -> Tensor:
    """Up to which an eigenvalue of ascending values (*, r) of a Gram matrix is rounding, (*, 1)."""
    return values.shape[-1] * torch.finfo(values.dtype).eps * values[..., -1:]
