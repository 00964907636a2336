"""Linear measurements y_i = a_iᵀ D b_i of a matrix D: A_i = a_i b_iᵀ is kept as two vectors."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from mfgd.dense import stack_tensors
from mfgd.kernel import Multiply, Stack
from mfgd.measurements import ListedMeasurements, share_or_stack, times_rows
from mfgd.types import Refused


class VectorMeasurements(ListedMeasurements):
    """Measurements y_i = a_iᵀ D b_i by vectors a (N, n) and b (N, m), or (*, N, n) and (*, N, m) if
    runs have their own.

    A step costs 12 N k (n + m) operations a run, with factors of width k.
    """

    def __init__(self, y: Tensor, a: Tensor, b: Tensor, power: float = 1.0) -> None:
        """
        Args:
            y: (*, 1, N).
            a: independent normal numbers of mean 0.
            b: the same, or a itself.
            power: the variance of a times that of b.
        """
        super().__init__(y)
        self.a, self.b, self.power = a, b, power

    @property
    def quadratic(self) -> bool:
        """Whether y_i = a_iᵀ D a_i."""
        return self.b is self.a

    @property
    def shape(self) -> tuple[int, int]:
        return self.a.shape[-1], self.b.shape[-1]

    @property
    def dilution(self) -> float:
        if self.quadratic:
            raise Refused(
                "problem.ensemble=rank_one_symmetric: the mean of ⟨A_i, D⟩² is 2‖D‖² + (tr D)², no "
                "multiple of ‖D‖²; allowed are lr_unit=absolute, lr_unit=sharpness, init=spectral"
            )
        return 1 / self.power

    @property
    def shared_arrays(self) -> int:
        n, m = self.shape
        return -(-self.count * (n + m) // (n * m))

    @property
    def operator(self) -> dict[str, Tensor]:
        return {"a": self.a} if self.quadratic else {"a": self.a, "b": self.b}

    def estimate(self) -> Tensor:
        """D (n, m) in the mean over draws: A*(y)/N; if y_i = a_iᵀ D a_i, ½ (A*(y)/N − I mean y),
        for vectors of variance 1.

        Source: for the latter Li, Ma, Chen, Chi 2019, Nonconvex matrix factorization from rank-one
        measurements, the spectral initialization.
        """
        if not self.quadratic:
            return super().estimate()
        eye = torch.eye(self.shape[0], dtype=self.target.dtype, device=self.target.device)
        trace = self.target.mean() / self.power**0.5
        return (self.adjoint(self.target) / (self.count * self.power) - trace * eye) / 2

    def apply(self, left: Tensor, right: Tensor, multiply: Multiply = torch.matmul) -> Tensor:
        return (self._map_left(left) * self._map_right(right)).sum(-2, keepdim=True)

    def _map_left(self, left: Tensor) -> Tensor:
        """Lᵀ a_i as columns, (*, k, N)."""
        return times_rows(left.mT, self.a.mT)

    def _map_right(self, right: Tensor) -> Tensor:
        """R b_i as columns, (*, k, N)."""
        return times_rows(right, self.b.mT)

    def adjoint(self, S: Tensor) -> Tensor:
        return times_rows(self.a.mT * S, self.b)

    def times_transposed(
        self, S: Tensor, right: Tensor, multiply: Multiply = torch.matmul
    ) -> Tensor:
        return times_rows(self._map_right(right) * S, self.a).mT

    def transposed_times(
        self, left: Tensor, S: Tensor, multiply: Multiply = torch.matmul
    ) -> Tensor:
        return times_rows(self._map_left(left) * S, self.b)

    def design_left(self, right: Tensor) -> Tensor:
        return (self.a[..., None] * self._map_right(right).mT[..., None, :]).flatten(-2)

    def design_right(self, left: Tensor) -> Tensor:
        return (self._map_left(left).mT[..., None] * self.b[..., None, :]).flatten(-2)

    def _rebuild(self, y: Tensor, a: Tensor, b: Tensor) -> VectorMeasurements:
        return VectorMeasurements(y, a, a if self.quadratic else b, self.power)

    def select(self, at: Tensor) -> VectorMeasurements:
        return self._rebuild(self.target[:, at], self.a[at], self.b[at])

    def to(self, dtype: torch.dtype, device: torch.device | str) -> VectorMeasurements:
        y, a, b = (X.to(device, dtype) for X in (self.target, self.a, self.b))
        return self._rebuild(y, a, b)

    @property
    def layout(self) -> Hashable:
        return super().layout, self.quadratic

    @classmethod
    def stack(cls, runs: Sequence[VectorMeasurements], stack: Stack) -> VectorMeasurements:
        y = stack_tensors([run.target for run in runs], stack)
        a, b = (share_or_stack(arrays) for arrays in ([r.a for r in runs], [r.b for r in runs]))
        return runs[0]._rebuild(y, a, b)
