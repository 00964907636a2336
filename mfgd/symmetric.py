"""Symmetric matrices: their eigenvalues, and the matrices U Uᵀ nearest to them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfgd.dense import AllEntries, MaskedEntries
from mfgd.linalg import extreme_eigenpairs, frobenius_norm
from mfgd.measurements import Measurements
from mfgd.observation import LANCZOS, Observation, Truth
from mfgd.sparse import ListedEntries

EXACT = 1e-6
"""A matrix is symmetric if it differs from its transpose by at most this, relative: files keep few
digits."""


class Eigenpairs(NamedTuple):
    """Eigenvalues and eigenvectors of a symmetric matrix, the largest eigenvalue first."""

    values: Tensor
    """(r,); 0 for a value that is only rounding."""
    vectors: Tensor
    """(n, r), orthonormal columns."""

    def find_factor(self, k: int) -> Tensor:
        """The U (n, k) with U Uᵀ nearest to the matrix, in double precision; columns of 0 beyond
        the positive eigenvalues.

        Source: Higham 1988, Computing a nearest symmetric positive semidefinite matrix, theorem
        2.1.
        """
        U = self.vectors[:, :k] * self.values[:k].clamp(min=0).sqrt()
        return torch.nn.functional.pad(U, (0, k - U.shape[1]))


@lru_cache(maxsize=8)
def eigenpairs(matrix: Any) -> Eigenpairs:
    """The eigenpairs of the symmetric part (X + Xᵀ)/2 of a matrix X (n, n); of a symmetric matrix
    in factors those of its range alone.

    Args:
        matrix: `AllEntries`, or a `Truth` that is symmetric.
    """
    if isinstance(matrix, AllEntries):
        X = matrix.target.to(torch.float64)
        values, vectors = torch.linalg.eigh((X + X.mT) / 2)
    else:
        # A symmetric X = U Σ Vᵀ is U (Σ VᵀU) Uᵀ, since its columns span what its rows span.
        U, V = (Q.to(torch.float64) for Q in matrix.singular_vectors())
        core = matrix.singular_values()[:, None] * (V.mT @ U)
        values, turn = torch.linalg.eigh((core + core.mT) / 2)
        vectors = U @ turn
    values, vectors = values.flip(-1), vectors.flip(-1)
    least = len(vectors) * torch.finfo(values.dtype).eps * values.abs().amax()
    return Eigenpairs(torch.where(values.abs() > least, values, 0), vectors)


def is_semidefinite(matrix: Any) -> bool:
    """Whether a matrix, as in `eigenpairs`, has no negative eigenvalue."""
    return bool((eigenpairs(matrix).values >= 0).all())


def part_by_definiteness(seen: AllEntries) -> tuple[Tensor, float]:
    """The eigenvalues of a complete D (n, n) with 0 for the negative ones, (n,), largest first, and
    the square of the distance from D to the nearest U Uᵀ of any rank.

    ‖U Uᵀ − D‖² differs from ‖U Uᵀ − P‖², P the matrix of these eigenvalues, by a term that a U of
    the eigenvectors of P does not change.
    """
    values = eigenpairs(seen).values
    D = seen.target.to(torch.float64)
    skew = float(frobenius_norm((D - D.mT) / 2))
    if skew <= len(D) * torch.finfo(D.dtype).eps * float(frobenius_norm(D)):
        skew = 0.0  # rounding
    return values.clamp(min=0), float(values.clamp(max=0).square().sum()) + skew**2


def is_symmetric(matrix: Truth | Observation) -> bool:
    """Whether a matrix (n, n) is equal to its transpose where both are known; what is seen of D in
    another way than by its entries tells nothing of that."""
    if isinstance(matrix, ListedEntries):
        gap, size = _compare_listed(matrix)
    elif isinstance(matrix, AllEntries | MaskedEntries):
        D = matrix.with_nan()
        gap, size = float((D - D.mT).nan_to_num().abs().amax()), float(D.nan_to_num().abs().amax())
    elif isinstance(matrix, Observation):
        return True
    else:
        U, V = matrix.singular_vectors()
        sigma = matrix.singular_values()
        x = torch.from_numpy(np.random.default_rng(0).standard_normal(len(U))).to(U)
        gap = float((U @ (sigma * (V.mT @ x)) - V @ (sigma * (U.mT @ x))).abs().amax())
        size = float(sigma.amax())
    return gap <= EXACT * size


def _compare_listed(seen: ListedEntries) -> tuple[float, float]:
    """The largest |D_ij − D_ji| of pairs that are both listed, and the largest |D_ij|."""
    from scipy.sparse import csr_array

    parts = seen.columns.numpy(), seen.matrix.crow_indices().numpy()
    D = csr_array((seen.target.numpy(), *parts), shape=seen.shape)
    listed = csr_array((np.ones(seen.count), *parts), shape=seen.shape)
    gap = D.multiply(listed.T) - D.T.multiply(listed)
    return float(abs(gap).max()), float(abs(D).max())


def leading_eigenpairs(seen: Observation, k: int) -> Eigenpairs:
    """The k eigenpairs of largest eigenvalues of (D + Dᵀ)/2 over the share of observed entries,
    with 0 for an entry of D that is not observed; of linear measurements those of what A*(y) tells
    of D; k ≤ n.

    Those of a matrix whose entries are listed come from Lanczos iterations.
    """
    from scipy.sparse.linalg import LinearOperator

    if isinstance(seen, Measurements):
        X = seen.estimate()
        values, vectors = torch.linalg.eigh((X + X.mT) / 2)
        return Eigenpairs(values.flip(-1)[:k], vectors.flip(-1)[:, :k])
    n, _ = seen.shape
    D, share = seen.target, float(seen.count) / n**2

    def multiply(X: Tensor) -> Tensor:
        return (seen.times_transposed(D, X.mT) + seen.transposed_times(X, D).mT) / 2

    if seen.arrays_of_a_step is not None or n < LANCZOS or k >= n - 1:
        values, vectors = torch.linalg.eigh(multiply(torch.eye(n, dtype=D.dtype)))
    else:
        operator = LinearOperator(
            (n, n), matvec=lambda x: multiply(torch.from_numpy(x).view(n, 1)).numpy(), dtype=float
        )
        values, vectors = map(torch.from_numpy, extreme_eigenpairs(operator, k, "LA"))
    return Eigenpairs(values.flip(-1)[:k] / share, vectors.flip(-1)[:, :k])
