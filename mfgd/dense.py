"""Matrices kept in full: every entry is observed, or the entries under a mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mfgd.kernel import (
    FullResidual,
    MaskedResidual,
    Multiply,
    ScaledResidual,
    Stack,
    row_blocks,
    take_rows,
)
from mfgd.linalg import join_norms, solve_least_norm
from mfgd.observation import Observation, Truth
from mfgd.types import Factors


class _DenseEntries(Observation):
    """Entries kept as a full matrix."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.target.shape[-2], self.target.shape[-1]

    def times_transposed(
        self, S: Tensor, right: Tensor, multiply: Multiply = torch.matmul
    ) -> Tensor:
        # The product is written along its long side, which is up to twice as fast.
        return multiply(right, S.mT).mT

    def transposed_times(
        self, left: Tensor, S: Tensor, multiply: Multiply = torch.matmul
    ) -> Tensor:
        return multiply(left.mT, S)

    def leading_triplets(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        n, m = self.shape
        U, sigma, Vh = torch.linalg.svd(self.target * (n * m / self.count), full_matrices=False)
        return U[:, :k], sigma[:k], Vh[:k]


class AllEntries(_DenseEntries):
    """Every entry of D is observed; D (*, n, m) is finite."""

    complete = True
    arrays_of_a_step = 2

    def __init__(self, D: Tensor) -> None:
        self.target = D

    @property
    def count(self) -> int:
        n, m = self.shape
        return n * m

    def apply(self, left: Tensor, right: Tensor, multiply: Multiply = torch.matmul) -> Tensor:
        return multiply(left, right)

    def restrict(self, S: Tensor) -> Tensor:
        return S

    def blocks(self) -> Iterator[tuple[slice | None, Observation]]:
        for rows in row_blocks(*self.shape, self.target.device):
            yield rows, AllEntries(take_rows(self.target, rows))

    def scaled_residual(self, c: float) -> ScaledResidual:
        return FullResidual.prescale(self.target, c)

    def hidden_misfit(self, truth: Truth, factors: Factors) -> None:
        return None

    def times_gram(self, left: Tensor, right: Tensor) -> Tensor:
        return ((right @ right.mT) @ left.mT).mT

    def gram_times(self, left: Tensor, right: Tensor) -> Tensor:
        return (left.mT @ left) @ right

    def solve_left(self, right: Tensor, ridge: float | Tensor) -> Tensor:
        sides = self.times_transposed(self.target, right).mT
        return solve_least_norm(right @ right.mT, sides, ridge, self.shape[1]).mT

    def solve_right(self, left: Tensor, ridge: float | Tensor) -> Tensor:
        sides = self.transposed_times(left, self.target)
        return solve_least_norm(left.mT @ left, sides, ridge, self.shape[0])

    def with_nan(self) -> Tensor:
        return self.target

    def singular_values(self) -> Tensor:
        """Singular values of D, (*, min(n, m)), largest first."""
        return torch.linalg.svdvals(self.target)

    def singular_vectors(self) -> tuple[Tensor, Tensor]:
        """Left (*, n, r) and right (*, m, r) singular vectors, r = min(n, m)."""
        U, _, Vh = torch.linalg.svd(self.target, full_matrices=False)
        return U, Vh.mT

    def to(self, dtype: torch.dtype, device: torch.device | str) -> AllEntries:
        return AllEntries(self.target.to(dtype=dtype, device=device))

    @classmethod
    def stack(cls, runs: Sequence[AllEntries], stack: Stack) -> AllEntries:
        return cls(stack_tensors([run.target for run in runs], stack))


class MaskedEntries(_DenseEntries):
    """The entries of D under a mask M (*, n, m): 1 if an entry is observed, 0 if not; D is 0 if M
    is 0."""

    arrays_of_a_step = 3

    def __init__(self, D: Tensor, mask: Tensor) -> None:
        self.target, self.mask = D, mask

    @property
    def count(self) -> Tensor:
        return self.mask.sum((-2, -1), keepdim=True)

    def apply(self, left: Tensor, right: Tensor, multiply: Multiply = torch.matmul) -> Tensor:
        return self.mask * multiply(left, right)

    def restrict(self, S: Tensor) -> Tensor:
        # Not a product: a loss may be infinite at an entry that is not observed.
        return S.masked_fill(self.mask == 0, 0)

    def blocks(self) -> Iterator[tuple[slice | None, Observation]]:
        for rows in row_blocks(*self.shape, self.target.device):
            yield rows, MaskedEntries(take_rows(self.target, rows), take_rows(self.mask, rows))

    def scaled_residual(self, c: float) -> ScaledResidual:
        return MaskedResidual.prescale(self.target, self.mask, c)

    def hidden_misfit(self, truth: Truth, factors: Factors) -> tuple[Tensor, Tensor]:
        assert isinstance(truth, AllEntries)
        missed, sizes = [], []
        for rows in row_blocks(*self.shape, self.target.device):
            hidden = 1 - take_rows(self.mask, rows)
            part = MaskedEntries(take_rows(truth.target, rows) * hidden, hidden)
            misfit, size = part.misfit((take_rows(factors[0], rows), *factors[1:]))
            missed.append(misfit)
            sizes.append(size)
        return join_norms(missed), join_norms(sizes)

    def with_nan(self) -> Tensor:
        return self.target.masked_fill(self.mask == 0, torch.nan)

    def to(self, dtype: torch.dtype, device: torch.device | str) -> MaskedEntries:
        return MaskedEntries(
            self.target.to(dtype=dtype, device=device), self.mask.to(dtype=dtype, device=device)
        )

    @classmethod
    def stack(cls, runs: Sequence[MaskedEntries], stack: Stack) -> MaskedEntries:
        targets, masks = [run.target for run in runs], [run.mask for run in runs]
        return cls(stack_tensors(targets, stack), stack_tensors(masks, stack))


def stack_tensors(runs: list[Tensor], stack: Stack) -> Tensor:
    """Tensors under a leading run dimension; a tensor that all runs share is expanded, not
    copied."""
    if all(X is runs[0] for X in runs):
        return runs[0].expand(len(runs), *runs[0].shape)
    return stack(runs)
