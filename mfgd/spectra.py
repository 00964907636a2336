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
        """The triplets of W₁…W_L, r = min(n, k, m), from two QR factorizations and a product."""
        first, *inner, last = factors
        (Q, R), (P, S) = torch.linalg.qr(first), torch.linalg.qr(last.mT)
        core = reduce(torch.matmul, (R, *inner)) @ S.mT
        U, sigma, Vh = torch.linalg.svd(core, full_matrices=False)
        return cls(Q @ U, sigma, P @ Vh.mT)


def singular_values(factors: Factors) -> Tensor:
    """The singular values of W₁…W_L, largest first, (*, min(n, k, m)).

    They come from two QR factorizations and a k×k product. A run with factors that are not finite
    has NaN, and leaves its neighbours alone.
    """
    finite, (first, *inner, last) = _replace_non_finite(factors)
    core = reduce(torch.matmul, (torch.linalg.qr(first, mode="r").R, *inner))
    sigma = torch.linalg.svdvals(core @ torch.linalg.qr(last.mT, mode="r").R.mT)
    return torch.where(finite[..., 0], sigma, torch.nan)


def singular_triplets(factors: Factors) -> Triplets:
    """The singular triplets of W₁…W_L; NaN for a run with factors that are not finite."""
    finite, factors = _replace_non_finite(factors)
    U, sigma, V = Triplets.from_factors(factors)
    return Triplets(
        torch.where(finite, U, torch.nan),
        torch.where(finite[..., 0], sigma, torch.nan),
        torch.where(finite, V, torch.nan),
    )


def _replace_non_finite(factors: Factors) -> tuple[Tensor, Factors]:
    """Which runs have finite factors, (*, 1, 1), and the factors, with 0 for the other runs."""
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
