"""Singular values and singular vectors of products of factors."""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from mfgd.linalg import is_finite
from mfgd.types import Factors


class Triplets(NamedTuple):
    """Singular triplets U diag(σ) Vᵀ, largest first."""

    U: Tensor
    """(*, n, r), orthonormal columns."""
    sigma: Tensor
    """(*, r)."""
    V: Tensor
    """(*, m, r), orthonormal columns."""

    @classmethod
    def from_factors(cls, factors: Factors) -> Triplets:
        """The triplets of finite W₁…W_L, r = min(n, k, m), from two QR factorizations and a
        product; NaN for a run whose product is not finite."""
        first, *inner, last = factors
        (Q, R), (P, S) = torch.linalg.qr(first), torch.linalg.qr(last.mT)
        finite, (core,) = _replace_non_finite((reduce(torch.matmul, (R, *inner)) @ S.mT,))
        U, sigma, Vh = torch.linalg.svd(core, full_matrices=False)
        return cls(Q @ U, sigma, P @ Vh.mT).keep(finite)

    def keep(self, known: Tensor) -> Triplets:
        """NaN for the runs that are not known, (*, 1, 1)."""
        U, sigma, V = self
        return Triplets(
            torch.where(known, U, torch.nan),
            torch.where(known[..., 0], sigma, torch.nan),
            torch.where(known, V, torch.nan),
        )


def singular_values(factors: Factors) -> Tensor:
    """The singular values of W₁…W_L, largest first, (*, min(n, k, m)).

    They come from two QR factorizations and a k×k product. A run with factors or a product that are
    not finite has NaN, and leaves its neighbours alone.
    """
    finite, (first, *inner, last) = _replace_non_finite(factors)
    core = reduce(torch.matmul, (torch.linalg.qr(first, mode="r").R, *inner))
    core = core @ torch.linalg.qr(last.mT, mode="r").R.mT
    # Finite factors may have a product beyond the largest number.
    fits, (core,) = _replace_non_finite((core,))
    return torch.where((finite & fits)[..., 0], torch.linalg.svdvals(core), torch.nan)


def singular_triplets(factors: Factors) -> Triplets:
    """The singular triplets of W₁…W_L; NaN for a run with factors or a product that are not
    finite."""
    finite, factors = _replace_non_finite(factors)
    return Triplets.from_factors(factors).keep(finite)


def _replace_non_finite(factors: Factors) -> tuple[Tensor, Factors]:
    """Which runs have finite matrices, (*, 1, 1), and the matrices, with 0 for the other runs.

    LAPACK must not see what is not finite: it raises, or MKL prints its complaint to stdout.
    """
    finite = torch.stack([is_finite(W) for W in factors]).all(0)[..., None, None]
    return finite, tuple(torch.where(finite, W, 0) for W in factors)


def effective_rank(sigma: Tensor) -> Tensor:
    """exp(−Σ p log p) with p = σ/Σσ, (*,); 0 for the zero matrix.

    Source: Roy, Vetterli 2007, The effective rank: a measure of effective dimensionality, eq. 2.
    """
    total = sigma.sum(-1)
    p = sigma / total[..., None]
    return torch.where(total == 0, 0, torch.exp(-torch.xlogy(p, p).sum(-1)))


def drop_rounding(sigma: Tensor, shape: tuple[int, int]) -> Tensor:
    """Singular values (*, r) of an (n, m) matrix, with 0 for a value that is only rounding."""
    least = sigma[..., :1] * max(shape) * torch.finfo(sigma.dtype).eps
    return torch.where(sigma > least, sigma, 0)
