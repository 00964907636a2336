"""Norms and solves that give a run the same bits in any batch."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor


def frobenius_norm(X: Tensor) -> Tensor:
    """Frobenius norm over the last two dimensions, (*,)."""
    # The order of a sum follows the layout in memory, and interleaved runs have another layout.
    return torch.linalg.vector_norm(X.contiguous(), dim=(-2, -1))


def sum_matrix(X: Tensor) -> Tensor:
    """Sum over the last two dimensions, (*, 1, 1)."""
    return X.contiguous().sum((-2, -1), keepdim=True)


def join_norms(norms: Iterable[Tensor]) -> Tensor:
    """Root of the sum of squares of norms (*,), added in their order."""
    first, *others = norms
    if not others:
        return first
    return reduce(torch.add, (norm.square() for norm in others), first.square()).sqrt()


def solve_positive(A: Tensor, X: Tensor, damping: float | Tensor) -> Tensor:
    """(A + δI)⁻¹ X, (*, k, n), for A (*, k, k); NaN if A + δI is not positive definite."""
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    factor, info = torch.linalg.cholesky_ex(A + damping * eye)
    return torch.where(info[..., None, None] == 0, torch.cholesky_solve(X, factor), torch.nan)


def top_singular_value(D: Any) -> float:
    """σ₁ of a NumPy array or a SciPy sparse matrix, by Lanczos iterations from a fixed start."""
    from scipy.sparse.linalg import svds

    (sigma,) = svds(D, k=1, return_singular_vectors=False, v0=np.ones(min(D.shape)))
    return float(sigma)


def is_finite(X: Tensor) -> Tensor:
    """Whether all entries of a matrix are finite, (*,)."""
    return torch.isfinite(X).all(-1).all(-1)
