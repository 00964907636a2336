"""Norms, solves and leading triplets that give a run the same bits in any batch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from functools import reduce
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

SAFE = 1e-140, 1e140
"""A norm in this range is the root of a sum of squares that has neither over- nor underflown."""


def frobenius_norm(X: Tensor) -> Tensor:
    """Frobenius norm over the last two dimensions, (*,), in double precision, at any scale."""
    # The order of a sum follows the layout in memory, and interleaved runs have another layout.
    X = X.to(torch.float64).contiguous()
    norm = torch.linalg.vector_norm(X, dim=(-2, -1))
    safe = _is_safe(norm)
    if safe.all() or X.numel() == 0:
        return norm
    # A power of two scales without rounding, so that a run has the same bits beside any other run.
    unit = power_of_two(X.abs().amax((-2, -1)))
    scaled = unit * torch.linalg.vector_norm(X / unit[..., None, None], dim=(-2, -1))
    return torch.where(safe | unit.isnan(), norm, scaled)


def _is_safe(norm: Tensor) -> Tensor:
    """Whether no square under a norm has over- or underflown so that it counts, (*,)."""
    return (norm > SAFE[0]) & (norm < SAFE[1])


def power_of_two(X: Tensor) -> Tensor:
    """The power of two that is at most X and above X/2; 1 for 0, NaN for a number not finite."""
    mantissa, _ = torch.frexp(X)
    return torch.where(X == 0, 1, X / (2 * mantissa))


def sum_matrix(X: Tensor) -> Tensor:
    """Sum over the last two dimensions, (*, 1, 1)."""
    return X.contiguous().sum((-2, -1), keepdim=True)


def inner_product(first: Iterable[Tensor], second: Iterable[Tensor]) -> Tensor:
    """Σ_l ⟨A_l, B_l⟩ over matrices A_l and B_l, (*, 1, 1)."""
    return reduce(torch.add, (sum_matrix(A * B) for A, B in zip(first, second, strict=True)))


def join_norms(norms: Iterable[Tensor]) -> Tensor:
    """Root of the sum of squares of norms (*,), added in their order, at any scale."""
    first, *others = norms
    if not others:
        return first
    norm = reduce(torch.add, (norm.square() for norm in others), first.square()).sqrt()
    safe = _is_safe(norm)
    if safe.all():
        return norm
    return torch.where(safe, norm, frobenius_norm(torch.stack([first, *others], -1)[..., None]))


def solve_positive(
    A: Tensor, X: Tensor, damping: float | Tensor, rows: int
) -> tuple[Tensor, Tensor]:
    """(A + δI)⁻¹ X, (*, k, m), for a Gram matrix A (*, k, k) of vectors of so many rows; and
    whether A + δI is numerically singular, (*,).

    Singular means that the least eigenvalue is at most (k + √rows) ε times the largest: several
    times the rounding of a Gram matrix, as measured from 10 to 100,000 rows.
    """
    shifted = A + damping * torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    factor, info = torch.linalg.cholesky_ex(shifted)
    solved = torch.cholesky_solve(X, factor)
    # No eigenvalue is above the least pivot, but rounding leaves a pivot that should be 0 at up to
    # some thousand ε: only if a pivot is small, the eigenvalues are worth their time.
    pivot = factor.diagonal(dim1=-2, dim2=-1).amin(-1)
    largest = shifted.diagonal(dim1=-2, dim2=-1).amax(-1)
    factored = info == 0
    sound = factored & (pivot.square() > math.sqrt(torch.finfo(A.dtype).eps) * largest)
    if sound.all():
        return solved, ~sound
    singular = ~sound & is_finite(shifted)
    values = torch.linalg.eigvalsh(shifted[singular])
    singular[singular.clone()] = values[..., 0] <= _least_eigenvalue(values, rows)
    singular |= ~factored & is_finite(shifted)
    return torch.where(factored[..., None, None], solved, torch.nan), singular


def solve_least_norm(A: Tensor, X: Tensor, damping: float | Tensor, rows: int) -> Tensor:
    """(A + δI)⁻¹ X like `solve_positive`; if A + δI is numerically singular, (A + δI)⁺ X, the
    solution of least norm."""
    solved, singular = solve_positive(A, X, damping, rows)
    if singular.any():
        shifted = A + damping * torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        values, vectors = torch.linalg.eigh(shifted[singular])
        kept = values > _least_eigenvalue(values, rows)[..., None]
        inverse = torch.where(kept, 1 / values, 0)
        solved[singular] = vectors @ (inverse[..., None] * (vectors.mT @ X[singular]))
    return solved


def _least_eigenvalue(values: Tensor, rows: int) -> Tensor:
    """Up to which an eigenvalue of ascending values (*, k) is rounding, (*,)."""
    share = (values.shape[-1] + math.sqrt(rows)) * torch.finfo(values.dtype).eps
    return share * values[..., -1]


def top_singular_value(D: Any) -> float:
    """σ₁ of a NumPy array or a SciPy sparse matrix that is not 0; see `leading_triplets`."""
    return float(leading_triplets(D, 1)[1][0])


def leading_triplets(D: Any, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U (n, k), σ (k,), Vᵀ (k, m) of a NumPy array or a SciPy sparse matrix D that is not 0, for k
    below n and m, by ARPACK's Lanczos iterations on the smaller Gram matrix.

    The start is random, since ones are orthogonal to the rows of a matrix whose rows sum to 0, and
    the same in every call. D is scaled by a power of two, at no rounding.
    """
    from scipy.sparse.linalg import LinearOperator

    unit = float(power_of_two(torch.tensor(float(abs(D).max()), dtype=torch.float64)))
    scaled = D / unit
    tall = scaled if D.shape[0] >= D.shape[1] else scaled.T
    size = tall.shape[1]
    gram = LinearOperator((size, size), matvec=lambda x: tall.T @ (tall @ x), dtype=tall.dtype)
    _, vectors = extreme_eigenpairs(gram, k, "LM")
    basis, _ = np.linalg.qr(vectors)
    U, sigma, Vh = np.linalg.svd(tall @ basis, full_matrices=False)
    Vh = Vh @ basis.T
    if tall is not scaled:
        U, Vh = Vh.T, U.T
    return U, sigma * unit, Vh


def extreme_eigenpairs(
    operator: Any, k: int, which: Literal["LM", "LA"]
) -> tuple[np.ndarray, np.ndarray]:
    """k eigenvalues (k,), ascending, and eigenvectors (n, k) of a symmetric operator of SciPy: the
    largest by magnitude (LM) or by value (LA). The start is random, and the same in every call."""
    from scipy.sparse.linalg import eigsh

    # ARPACK restarts at random if it exhausts an invariant subspace. Before SciPy 1.17 these
    # starts have a seed of their own, and the last bits may differ from call to call.
    seeded = {"rng": 0} if "rng" in inspect.signature(eigsh).parameters else {}
    v0 = np.random.default_rng(0).standard_normal(operator.shape[0])
    values, vectors = eigsh(operator, k=k, v0=v0, which=which, **seeded)
    return values, vectors


def is_finite(X: Tensor) -> Tensor:
    """Whether all entries of a matrix are finite, (*,)."""
    return torch.isfinite(X).all(-1).all(-1)
