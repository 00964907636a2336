"""The largest eigenvalue of the Hessian H of an objective, by Lanczos iterations.

The iterations need products H v only, and keep three vectors. From a unit vector v₁, with β₀ = 0,
iteration i computes

    u  =  H vᵢ − βᵢ₋₁ vᵢ₋₁                       (1)
    αᵢ =  uᵀ vᵢ                                  (2)
    βᵢ =  ‖w‖ and vᵢ₊₁ = w/βᵢ, w = u − αᵢ vᵢ     (3)

In exact arithmetic v₁, v₂, … are orthonormal, and in this basis H is the tridiagonal matrix T with
αᵢ on the diagonal and βᵢ beside it. An eigenvalue θ of the leading (i, i) block of T is a Ritz
value of H: if s is its unit eigenvector, then some eigenvalue of H is as close to θ as

    βᵢ |sᵢ|                                      (4)

Source: Golub, Van Loan 2013, Matrix computations, section 10.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mfgd.linalg import is_finite
from mfgd.objective import Objective
from mfgd.types import Factors

CHECK_EVERY = 10
"""Number of iterations between two looks at the largest Ritz value."""
PRECISION = 1e-7
"""The iterations end if the bound (4) is at most this, relative to the largest Ritz value."""
EXHAUSTED = 1e-12
"""A w in (3) that is shorter than this, relative to the largest |αᵢ|, is rounding."""


def sharpness(
    objective: Objective,
    factors: Factors,
    iterations: int = 100,
    shares: Sequence[float] | None = None,
) -> Tensor:
    """The largest eigenvalue of the Hessian of the objective, (*,), by Lanczos iterations.

    The value of a run does not depend on the other runs of its batch; it is NaN if the run is not
    finite.

    Source: Golub, Van Loan 2013, Matrix computations, section 10.1.

    Args:
        objective: the function.
        factors: where its Hessian is taken, W₁ (*, n, k) … W_L (*, k, m).
        iterations: the most iterations; there are at most as many as parameters.
        shares: s₁ … s_L: the Hessian is that with respect to the factors W_l/√s_l, in which rates
            lr s_l of the factors W_l are one rate lr; None: all are 1.
    """
    roots = None if shares is None else [share**0.5 for share in shares]
    lead = factors[0].shape[:-2]
    size = sum(W.shape[-2:].numel() for W in objective.free(factors))
    steps = min(iterations, size)
    v = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = (v / v.norm()).to(factors[0]).expand(*lead, size)  # v₁, the same in every call
    previous, beta = torch.zeros_like(v), v.new_zeros(lead)
    T = v.new_zeros(*lead, steps, steps)
    largest = v.new_full(lead, torch.nan)
    settled = torch.zeros(lead, dtype=torch.bool, device=v.device)
    for i in range(steps):
        u = _hessian_times(objective, factors, v, roots) - beta[..., None] * previous  # (1)
        T[..., i, i] = (u * v).sum(-1)  # (2)
        w = u - T[..., i, i, None] * v  # (3)
        # In double precision: the squares of small numbers vanish in single precision.
        beta = torch.linalg.vector_norm(w, dim=-1, dtype=torch.float64).to(w.dtype)
        if i + 1 == steps or (i + 1) % CHECK_EVERY == 0:
            value, bound = _largest_ritz_value(T[..., : i + 1, : i + 1], beta)
            largest = torch.where(settled, largest, value)
            settled |= ~(bound > PRECISION * value.abs())  # also if the bound is NaN
            if i + 1 == steps or settled.all():
                break
        # If w is only rounding, v₁ … vᵢ span an invariant subspace: the rest of T stays 0.
        scale = T.diagonal(dim1=-2, dim2=-1).abs().amax(-1)
        alive = beta > EXHAUSTED * scale.clamp(min=torch.finfo(T.dtype).tiny)
        beta = torch.where(alive, beta, 0)
        T[..., i, i + 1] = T[..., i + 1, i] = beta
        previous, v = v, torch.where(alive[..., None], w / beta[..., None], 0)
    return largest


def _hessian_times(
    objective: Objective, factors: Factors, v: Tensor, roots: Sequence[float] | None
) -> Tensor:
    """H v for v (*, size), the entries of all factors that move in a row; S H S v for the diagonal
    S that has a root for each factor."""
    shapes = [W.shape for W in objective.free(factors)]
    parts = torch.split(v, [shape[-2:].numel() for shape in shapes], dim=-1)
    direction = tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
    if roots is not None:
        direction = tuple(root * V for root, V in zip(roots, direction, strict=True))
    found = objective.hessian(factors, direction)
    if roots is not None:
        found = tuple(root * H for root, H in zip(roots, found, strict=True))
    return torch.cat([H.flatten(-2) for H in found], dim=-1)


def _largest_ritz_value(T: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue of T (*, i, i) and its bound (4), (*,); NaN if T is not finite."""
    finite = is_finite(T)
    values, vectors = torch.linalg.eigh(torch.where(finite[..., None, None], T, 0))
    bound = beta * vectors[..., -1, -1].abs()
    return torch.where(finite, values[..., -1], torch.nan), torch.where(finite, bound, torch.nan)
