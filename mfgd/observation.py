"""What is seen of a matrix D: all its entries, the entries under a mask, or a list of entries
(`mfgd.sparse`).

An observation A maps a matrix X (*, n, m) to the entries of X that are observed, or to linear
measurements of X (`mfgd.measurements`). A loss, a gradient, an error and a picture need nothing
else of D. Leading dimensions * are runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from typing import ClassVar, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from mfgd.kernel import (
    Multiply,
    ScaledResidual,
    Stack,
    choose_multiply,
    multiply_interleaved,
    product,
    take_rows,
)
from mfgd.linalg import frobenius_norm, join_norms, solve_least_norm, top_singular_value
from mfgd.types import Factors

LANCZOS = 200
"""σ₁ is found by Lanczos iterations if both sides of a matrix are at least this long."""


class Truth(Protocol):
    """The noiseless, complete matrix D* (*, n, m) behind D."""

    def misfit(self, factors: Factors) -> tuple[Tensor, Tensor]:
        """‖D̂ − D*‖ and ‖D*‖ for D̂ = W₁ … W_L."""

    def singular_values(self) -> Tensor:
        """Singular values of D*, (*, r), largest first."""

    def singular_vectors(self) -> tuple[Tensor, Tensor]:
        """Left (*, n, r) and right (*, m, r) singular vectors of D*."""

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Truth:
        """D* in another precision, on another device."""


class Observation(ABC):
    """What is seen of a matrix D (*, n, m)."""

    target: Tensor
    """A(D), the observed entries: (*, n, m) with 0 for an entry that is not observed, or (N,) of N
    listed entries."""
    complete: ClassVar[bool] = False
    """Whether every entry is observed."""
    entrywise: ClassVar[bool] = True
    """Whether entries are observed, and not linear measurements (`mfgd.measurements`)."""
    arrays_of_a_step: int | None
    """How many (n, m) arrays a step touches; None if a run shares its batch with no other run."""

    @property
    def shared_arrays(self) -> int:
        """How many (n, m) arrays a step touches beside these, which runs of one problem share."""
        return 0

    @property
    def dilution(self) -> float:
        """d, if ‖X‖² is about d times the mean square of A(X): n m, if entries are observed."""
        n, m = self.shape
        return n * m

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(n, m)."""

    @property
    @abstractmethod
    def count(self) -> Tensor | int:
        """Number of observed entries, (*, 1, 1) if runs may differ."""

    @abstractmethod
    def apply(self, left: Tensor, right: Tensor, multiply: Multiply = torch.matmul) -> Tensor:
        """A(L R) for L (*, n, k) and R (*, k, m), laid out like `target`."""

    def residual(self, left: Tensor, right: Tensor) -> Tensor:
        """A(L R − D), laid out like `target`."""
        return self.apply(left, right) - self.target

    @abstractmethod
    def restrict(self, S: Tensor) -> Tensor:
        """S with 0 for every entry that is not observed; S is laid out like `target`."""

    @abstractmethod
    def times_transposed(
        self, S: Tensor, right: Tensor, multiply: Multiply = torch.matmul
    ) -> Tensor:
        """S Rᵀ, (*, n, k), for S laid out like `target` and R (*, k, m)."""

    @abstractmethod
    def transposed_times(
        self, left: Tensor, S: Tensor, multiply: Multiply = torch.matmul
    ) -> Tensor:
        """Lᵀ S, (*, k, m), for L (*, n, k) and S laid out like `target`."""

    def pull_back(self, S: Tensor) -> Tensor:
        """S, laid out like `target`, in the form that is multiplied fastest by two factors, one
        after the other."""
        return S

    def blocks(self) -> Iterator[tuple[slice | None, Observation]]:
        """Blocks of rows (None: all rows) and what is seen of these rows."""
        yield None, self

    @abstractmethod
    def scaled_residual(self, c: float) -> ScaledResidual:
        """A fused way to compute c A(L R − D)."""

    def in_gradient_layout(self, factors: Factors) -> Factors:
        """The factors, each laid out in memory like its gradient: updates then pass over memory
        once."""
        if choose_multiply(factors) is multiply_interleaved:
            return factors
        return (factors[0].mT.contiguous().mT, *factors[1:])

    def misfit(self, factors: Factors) -> tuple[Tensor, Tensor]:
        """‖A(D̂ − D)‖ and ‖A(D)‖ for D̂ = W₁ … W_L, both (*,)."""
        missed, sizes = [], []
        for rows, part in self.blocks():
            seen = part.restrict(product((take_rows(factors[0], rows), *factors[1:])))
            missed.append(frobenius_norm(seen - part.target))
            sizes.append(frobenius_norm(part.target))
        return join_norms(missed), join_norms(sizes)

    @abstractmethod
    def hidden_misfit(self, truth: Truth, factors: Factors) -> tuple[Tensor, Tensor] | None:
        """‖D̂ − D*‖ and ‖D*‖ over the entries that are not observed, both (*,); None if there are
        none."""

    def times_gram(self, left: Tensor, right: Tensor) -> Tensor:
        """A(L R) Rᵀ, (*, n, k)."""
        return self.times_transposed(self.apply(left, right), right)

    def gram_times(self, left: Tensor, right: Tensor) -> Tensor:
        """Lᵀ A(L R), (*, k, m)."""
        return self.transposed_times(left, self.apply(left, right))

    def bytes_to_solve(self, k: int) -> int:
        """The bytes that `solve_left` and `solve_right` certainly need beside the factors, at a
        width k."""
        return 0

    def solve_left(self, right: Tensor, ridge: float | Tensor) -> Tensor:
        """The L (*, n, k) that minimizes ½‖A(L R − D)‖² + ridge/2 ‖L‖²."""
        pairs = _column_pairs(right.mT)
        grams = self.times_transposed(self.restrict(torch.ones_like(self.target)), pairs.mT)
        return _solve_rows(grams, self.times_transposed(self.target, right), ridge, self.shape[1])

    def solve_right(self, left: Tensor, ridge: float | Tensor) -> Tensor:
        """The R (*, k, m) that minimizes ½‖A(L R − D)‖² + ridge/2 ‖R‖²."""
        pairs = _column_pairs(left)
        grams = self.transposed_times(pairs, self.restrict(torch.ones_like(self.target))).mT
        return _solve_rows(
            grams, self.transposed_times(left, self.target).mT, ridge, self.shape[0]
        ).mT

    def top_singular_value(self) -> float:
        """σ₁ of D (n, m) with 0 for every entry that is not observed."""
        if not self.target.any():
            return 0.0
        if min(self.shape) < LANCZOS:
            return float(torch.linalg.matrix_norm(self.target, ord=2))
        return top_singular_value(self.target.numpy())

    @abstractmethod
    def leading_triplets(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """The k leading singular triplets U (n, k), σ (k,), Vᵀ (k, m) of D over the share of
        observed entries."""

    @abstractmethod
    def with_nan(self) -> Tensor:
        """D (*, n, m) with NaN for every entry that is not observed; listed entries stay a sparse
        matrix."""

    def arrays(self) -> dict[str, Tensor]:
        """What a file keeps of D, by name: D (*, n, m) with NaN, or the parts of a sparse
        matrix."""
        return {"D": self.with_nan().contiguous()}

    def picture(self, factors: Factors, pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """D, D̂ and D̂ − D of one run as arrays; NaN if not observed.

        Args:
            factors: W₁ (n, k) … W_L (k, m).
            pixels: of listed entries the arrays are means over at most this many cells a side.
        """
        D, estimate = self.with_nan().to(torch.float64), product(factors).to(torch.float64)
        return D.numpy(), estimate.numpy(), (estimate - D).numpy()

    @abstractmethod
    def to(self, dtype: torch.dtype, device: torch.device | str) -> Self:
        """The observation in another precision, on another device."""

    @property
    def layout(self) -> Hashable:
        """What observations of one batch have in common."""
        return type(self), self.shape

    @classmethod
    @abstractmethod
    def stack(cls, runs: Sequence[Self], stack: Stack) -> Self:
        """Observations of one layout, with a leading run dimension."""


def _column_pairs(basis: Tensor) -> Tensor:
    """The products of all pairs of columns of a basis (*, n, k), (*, n, k²)."""
    return (basis[..., :, None] * basis[..., None, :]).flatten(-2)


def _solve_rows(grams: Tensor, sides: Tensor, ridge: float | Tensor, rows: int) -> Tensor:
    """The rows x_i (*, n, k) with (G_i + ridge I) x_i = b_i, for Gram matrices G (*, n, k²) of
    vectors of at most so many rows, and b (*, n, k)."""
    k = sides.shape[-1]
    if isinstance(ridge, Tensor) and ridge.ndim > 2:
        ridge = ridge[..., None]
    return solve_least_norm(grams.reshape(*sides.shape, k), sides[..., None], ridge, rows)[..., 0]
