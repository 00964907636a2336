"""How far singular subspaces and factors are from those of a target.

A product C F does not change if C becomes C Q and F becomes Q⁻¹ F. The distance of factors is
therefore a least one, over all invertible Q:

    d(Q)² = ‖(C Q − C*) Σ^½‖² + ‖(Fᵀ Q⁻ᵀ − F*ᵀ) Σ^½‖²                            (1)

with the balanced factors C* = U Σ^½ and F* = Σ^½ Vᵀ of the target. A Gauss–Newton step goes from Q
to Q (I + X). To first order L = C Q then changes by L X, and R = Fᵀ Q⁻ᵀ by −R Xᵀ. With the weighted
residuals E = (L − C*) Σ^½ and G = (R − F*ᵀ) Σ^½, the normal equations for X are

    Lᵀ L X Σ + Σ X Rᵀ R = Σ^½ Gᵀ R − Lᵀ E Σ^½ = S                               (2)

which for Y = Σ^½ X Σ^½ are a Sylvester equation with symmetric coefficients,

    (Σ^−½ Lᵀ L Σ^−½) Y + Y (Σ^−½ Rᵀ R Σ^−½) = Σ^−½ S Σ^−½                       (3)

In the eigenvectors of the two coefficients, A diag(a) Aᵀ and B diag(b) Bᵀ, it is solved entry by
entry:

    (Aᵀ Y B)_ij = (Aᵀ Σ^−½ S Σ^−½ B)_ij / (a_i + b_j)                           (4)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfgd.linalg import frobenius_norm, is_finite, join_norms
from mfgd.spectra import Triplets
from mfgd.types import Factors

MOST_STEPS = 20
"""Number of Gauss–Newton steps at most."""
LEAST_GAIN = 1e-6
"""The steps end if none shortens the distance by more than this, relative."""
LENGTHS = (1.0, 0.3, 0.1, 0.01)
"""Shares of a Gauss–Newton step that are tried, until one of them gains."""


def angles(found: Triplets, target: Triplets) -> tuple[Tensor, Tensor]:
    """The largest principal angle between leading singular subspaces of D̂ and of the target, left
    and right, (*,), in radians from 0 to π/2.

    Both are given by their singular triplets, and compared in as many dimensions as both have. The
    sine of an angle keeps the digits of small angles.

    Source: Björck, Golub 1973, Numerical methods for computing angles between linear subspaces.
    """
    r = min(found.sigma.shape[-1], target.sigma.shape[-1])
    shared = (target.sigma[..., None, :r] > 0).to(target.U.dtype)
    left = _largest_angle(found.U[..., :r] * shared, target.U[..., :r] * shared)
    right = _largest_angle(found.V[..., :r] * shared, target.V[..., :r] * shared)
    return left, right


def _largest_angle(A: Tensor, B: Tensor) -> Tensor:
    """The largest principal angle between the spans of orthonormal columns, (*,)."""
    missed = B - A @ (A.mT @ B)
    finite = is_finite(missed)
    sine = torch.linalg.svdvals(torch.where(finite[..., None, None], missed, 0))[..., 0]
    return torch.where(finite, torch.asin(sine.clamp(max=1)), torch.nan)


def factor_distance(factors: Factors, target: Triplets) -> Tensor:
    """min over invertible Q of √(‖(CQ − C*)Σ^½‖² + ‖(FᵀQ⁻ᵀ − F*ᵀ)Σ^½‖²) / ‖D*‖, (*,), with
    C* = UΣ^½ and F* = Σ^½Vᵀ.

    This is how far the factors are from the balanced factors of the target's best rank-k
    approximation, up to what their product does not tell. NaN if the rank of the target is below k,
    or if no Q is found: far from the answer the infimum need not be attained. Gauss–Newton steps
    find Q, from the least squares fit of C. Near the answer they find the best Q, far from the
    answer perhaps another local minimum.

    Source: Tong, Ma, Chi 2021, Accelerating ill-conditioned low-rank matrix estimation via scaled
    gradient descent, the error metric of section 2.
    """
    C, F = factors
    k = C.shape[-1]
    root = target.sigma[..., :k].sqrt()
    known = (root > 0).all(-1) & is_finite(C) & is_finite(F)
    weight = torch.where(known[..., None], root, 1)[..., None, :]
    usable_C, usable_F = (torch.where(known[..., None, None], W, 0) for W in (C, F.mT))
    left, left_goal = _reduce(usable_C, target.U[..., :k] * weight)
    right, right_goal = _reduce(usable_F, target.V[..., :k] * weight)
    fit = _Fit(left, right, left_goal, right_goal, weight)
    Q, usable = _fit_left(left, left_goal, known)
    least, ended = fit.distance(Q), ~usable
    for _ in range(MOST_STEPS):
        if ended.all():
            break
        Q, least, stuck = _shorten(fit, Q, least, ~ended)
        ended |= stuck
    relative = least / frobenius_norm(torch.diag_embed(target.sigma))
    return torch.where(usable & torch.isfinite(least), relative, torch.nan)


def procrustes_distance(U: Tensor, goal: Tensor) -> Tensor:
    """min over orthogonal Q of ‖U Q − U*‖ / ‖U*‖, (*,), of tied factors (U, Uᵀ).

    U* U*ᵀ is the matrix of rank k and without negative eigenvalues that is nearest to the truth, or
    to a complete D without a truth. NaN if U* is 0.

    Source: Tu, Boczar, Simchowitz, Soltanolkotabi, Recht 2016, Low-rank solutions of linear matrix
    equations via Procrustes flow, where it is absolute; for the best Q Schönemann 1966, A
    generalized solution of the orthogonal Procrustes problem.

    Args:
        U: (*, n, k).
        goal: U*, (*, n, k).
    """
    finite = is_finite(U)
    usable = torch.where(finite[..., None, None], U, 0)
    A, _, Bh = torch.linalg.svd(usable.mT @ goal)
    missed = frobenius_norm(usable @ (A @ Bh) - goal)
    return torch.where(finite, missed / frobenius_norm(goal), torch.nan)


@dataclass(frozen=True)
class _Fit:
    """C, Fᵀ, C*, F*ᵀ of (1) in 2k dimensions, which hold all their columns, each (*, 2k, k)."""

    left: Tensor
    right: Tensor
    left_goal: Tensor
    right_goal: Tensor
    weight: Tensor
    """(*, 1, k), the diagonal of Σ^½."""

    def apply(self, Q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """L, R, E and G of (2); R and G are NaN if Q is singular."""
        inverse, info = torch.linalg.inv_ex(Q)
        inverse = torch.where((info == 0)[..., None, None], inverse, torch.nan)
        L, R = self.left @ Q, self.right @ inverse.mT
        return L, R, (L - self.left_goal) * self.weight, (R - self.right_goal) * self.weight

    def distance(self, Q: Tensor) -> Tensor:
        """d(Q) of (1), (*,); infinite if Q is singular."""
        _, _, E, G = self.apply(Q)
        return join_norms((frobenius_norm(E), frobenius_norm(G))).nan_to_num(torch.inf)

    def step(self, Q: Tensor) -> Tensor:
        """Q X, the Gauss–Newton step of Q."""
        row, column = self.weight, self.weight.mT
        L, R, E, G = self.apply(Q)
        S = (R.mT @ G * row).mT - L.mT @ E * row  # (2)
        a, A = _eigen(L.mT @ L / row / column)  # (3)
        b, B = _eigen(R.mT @ R / row / column)
        rotated = A.mT @ (S / row / column) @ B
        Y = A @ (rotated / (a[..., :, None] + b[..., None, :])) @ B.mT  # (4)
        return Q @ (Y / row / column)


def _reduce(W: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """Two matrices (*, n, k) as (*, 2k, k) in an orthonormal basis of all their columns."""
    R = torch.linalg.qr(torch.cat([W, goal], -1), mode="r").R
    k = W.shape[-1]
    return R[..., :k], R[..., k:]


def _fit_left(left: Tensor, goal: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The Q (*, k, k) that minimizes ‖left Q − goal‖, and for which runs it is usable, (*,).

    No Q is usable if the rank of left is below k; Q is then the identity.
    """
    eye = torch.eye(left.shape[-1], dtype=left.dtype, device=left.device)
    gram = left.mT @ left
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    scale = trace.clamp(min=torch.finfo(left.dtype).tiny)
    filled = gram / scale + torch.where(known[..., None, None], 0, eye)
    Q, info = torch.linalg.solve_ex(filled, left.mT @ goal / scale)
    usable = known & (info == 0)
    return torch.where(usable[..., None, None] & torch.isfinite(Q), Q, eye), usable


def _shorten(fit: _Fit, Q: Tensor, least: Tensor, active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The next Q of the active runs, its distance, and which of these runs are stuck.

    A run takes its Gauss–Newton step at the first of `LENGTHS` that gains; it is stuck if none
    does.
    """
    step, stuck = fit.step(Q), active
    for length in LENGTHS:
        tried = Q + length * step
        reached = fit.distance(tried)
        gains = stuck & (reached < (1 - LEAST_GAIN) * least)
        Q = torch.where(gains[..., None, None], tried, Q)
        least = torch.where(gains, reached, least)
        stuck = stuck & ~gains
        if not stuck.any():
            break
    return Q, least, stuck


def _eigen(X: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, kept away from 0, and eigenvectors; those of 0 if X is not finite."""
    values, vectors = torch.linalg.eigh(torch.where(is_finite(X)[..., None, None], X, 0))
    return values.clamp(min=torch.finfo(X.dtype).tiny), vectors
