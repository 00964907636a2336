"""What is measured of a state. Shapes follow the package docstring; each measure is (*,), one number a run."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from itertools import pairwise
from operator import truediv

import torch
from torch import Tensor

from mfgd.descent import State
from mfgd.objective import Objective, product, row_blocks, rows_of
from mfgd.problem import Problem, Triplets
from mfgd.sparse import Pattern, apart
from mfgd.types import Factors

SIGMAS = 8
"""How many singular values and modes are measured."""
ALIGNMENT = 20, 1e-6
"""How many Gauss–Newton steps the alignment of factors takes at most, and the relative gain below which it ends."""
RITZ = 10, 1e-7
"""After how many Lanczos iterations each the largest eigenvalue is looked at, and which relative residual is enough."""


def norm(X: Tensor) -> Tensor:
    """Frobenius norm over the last two dimensions, (*,)."""
    return torch.linalg.vector_norm(X.contiguous(), dim=(-2, -1))


def joined(norms: Iterable[Tensor]) -> Tensor:
    """Root of the sum of squares, summed in the same order in any batch."""
    first, *others = norms
    return (
        reduce(torch.add, (norm.square() for norm in others), first.square()).sqrt()
        if others
        else first
    )


def relative_error(problem: Problem, factors: Factors) -> Tensor:
    """‖D̂ − D*‖ / ‖D*‖ with the truth D* where it is known, else with D on its observed entries."""
    if problem.truth is not None:
        return truediv(*_misfit(factors, problem.truth))
    return truediv(*_misfit(factors, problem.D, problem.mask))


def heldout_error(problem: Problem, factors: Factors) -> Tensor | None:
    """‖D̂ − D‖ / ‖D‖ over the entries set aside, else ‖D̂ − D*‖ / ‖D*‖ over those not observed.

    None where none was set aside and there is no entry that is not observed, or no truth.
    """
    truth, pattern = problem.truth, problem.pattern
    if problem.heldout is not None:
        return truediv(*_misfit(factors, problem.heldout, holes=True))
    if truth is None or problem.complete:
        return None
    if pattern is None:
        return truediv(*_misfit(factors, truth, problem.mask, hidden=True))
    # What is not observed is all but what is: nearly everything, so little is lost in the difference.
    there = (
        pattern.sampled(*truth)
        if isinstance(truth, tuple)
        else truth[pattern.rows, pattern.columns]
    )
    whole, observed = _misfit(factors, truth), _misfit(factors, pattern.filled(there))
    return truediv(
        *(
            (x.square() - y.square()).clamp(min=0).sqrt()
            for x, y in zip(whole, observed, strict=True)
        )
    )


def _misfit(
    factors: Factors,
    target: Tensor | Factors,
    mask: Tensor | None = None,
    *,
    hidden: bool = False,
    holes: bool = False,
) -> tuple[Tensor, Tensor]:
    """‖D̂ − T‖ and ‖T‖ over the entries under a mask, or over the others; no n×m matrix is built where that is large.

    With holes those of T that are NaN are left out; of a sparse T those that it does not hold; a T in factors is whole.
    """
    if isinstance(target, tuple):
        A, B = target
        return apart((product(factors[:-1]), factors[-1]), (A, B)), ((A.mT @ A) * (B @ B.mT)).sum(
            (-2, -1)
        ).sqrt()
    if target.layout == torch.sparse_csr:
        values = target.values()[None]
        return norm(Pattern(target).sampled(product(factors[:-1]), factors[-1]) - values), norm(
            values
        )
    misses, sizes = [], []
    for rows in row_blocks(*target.shape[-2:]):
        part, weight = rows_of(target, rows), rows_of(mask, rows)
        if holes:
            part, weight = part.nan_to_num(), (~part.isnan()).to(part)
        missed = product((rows_of(factors[0], rows), *factors[1:])) - part
        if weight is not None:
            weight = 1 - weight if hidden else weight
            missed, part = missed * weight, part * weight
        misses.append(norm(missed))
        sizes.append(norm(part))
    return joined(misses), joined(sizes)


def balance(factors: Factors) -> Tensor:
    """‖CᵀC − FFᵀ‖_F, at depth L the root of Σ_l ‖W_lᵀW_l − W_{l+1}W_{l+1}ᵀ‖².

    It does not change along gradient flow (Du, Hu, Lee 2018, theorem 2.2).
    """
    return joined(norm(W.mT @ W - V @ V.mT) for W, V in pairwise(factors))


def singular_values(factors: Factors) -> Tensor:
    """The singular values of W₁…W_L, largest first, (*, min(n, k, m)); from two QR factorizations and a k×k product.

    A run whose factors are not finite has NaN, and leaves its neighbours alone.
    """
    finite, (first, *inner, last) = _finite(factors)
    core = reduce(torch.matmul, (torch.linalg.qr(first, mode="r").R, *inner))
    sigma = torch.linalg.svdvals(core @ torch.linalg.qr(last.mT, mode="r").R.mT)
    return torch.where(finite[..., 0], sigma, torch.nan)


def triplets(factors: Factors) -> Triplets:
    """The singular triplets of W₁…W_L, with NaN for a run that is not finite."""
    finite, factors = _finite(factors)
    U, sigma, V = Triplets.of(factors)
    U, V = (torch.where(finite, X, torch.nan) for X in (U, V))
    return Triplets(U, torch.where(finite[..., 0], sigma, torch.nan), V)


def _finite(factors: Factors) -> tuple[Tensor, Factors]:
    """Which runs have finite factors, (*, 1, 1), and the factors with zeros for those that have not."""
    finite = torch.stack([torch.isfinite(W).all(-1).all(-1) for W in factors]).all(0)[
        ..., None, None
    ]
    return finite, tuple(torch.where(finite, W, 0) for W in factors)


def modes(factors: Factors, target: Triplets) -> Tensor:
    """u_iᵀ D̂ v_i, how much of each mode of the target is learnt, (*, r).

    Source: Saxe, McClelland, Ganguli 2014, Exact solutions to the nonlinear dynamics of learning, section 1.1.
    """
    left = reduce(torch.matmul, (target.U.mT, *factors[:-1]))
    return (left * (factors[-1] @ target.V).mT).contiguous().sum(-1)


def angles(found: Triplets, target: Triplets) -> tuple[Tensor, Tensor]:
    """The largest principal angle between leading singular subspaces of D̂ and of the target, left and right, (*,).

    In radians, from 0 to π/2, of as many dimensions as both have, D̂ given by its `triplets`: by its sine, which keeps
    the digits of small angles (Björck, Golub 1973, Numerical methods for computing angles between linear subspaces).
    """
    r = min(found.sigma.shape[-1], target.sigma.shape[-1])
    shared = (target.sigma[..., None, :r] > 0).to(target.U.dtype)

    def angle(A: Tensor, B: Tensor) -> Tensor:
        A, B = A[..., :r] * shared, B[..., :r] * shared
        missed = B - A @ (A.mT @ B)
        finite = torch.isfinite(missed).all(-1).all(-1)
        sine = torch.linalg.svdvals(torch.where(finite[..., None, None], missed, 0))[..., 0]
        return torch.where(finite, torch.asin(sine.clamp(max=1)), torch.nan)

    return angle(found.U, target.U), angle(found.V, target.V)


def factor_distance(factors: Factors, target: Triplets) -> Tensor:
    """min over invertible Q of √(‖(CQ − C*)Σ^½‖² + ‖(FᵀQ⁻ᵀ − F*ᵀ)Σ^½‖²) / ‖D*‖, (*,), with C* = UΣ^½ and F* = Σ^½Vᵀ.

    How far the factors are from the balanced ones of the target's best rank-k approximation, up to what their product
    does not tell (Tong, Ma, Chi 2021, Accelerating ill-conditioned low-rank matrix estimation via scaled gradient
    descent, the error metric of section 2). NaN where the target has not that rank, and where no Q is found: far from
    the answer the infimum need not be attained. Q is found by Gauss–Newton steps from the least squares fit of C, each
    the solution of a k×k Sylvester equation: near the answer the best, far from it perhaps one of several.
    """
    C, F = factors
    k = C.shape[-1]
    root = target.sigma[..., :k].sqrt()
    known = (
        (root > 0).all(-1) & torch.isfinite(C).all(-1).all(-1) & torch.isfinite(F).all(-1).all(-1)
    )
    eye = torch.eye(k, dtype=C.dtype, device=C.device)
    valid = known[..., None, None]
    weight = torch.where(known[..., None], root, 1)[..., None, :]

    def reduced(W: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        """Both in 2k dimensions, which hold all of them."""
        R = torch.linalg.qr(torch.cat([torch.where(valid, W, 0), goal * weight], -1), mode="r").R
        return R[..., :k], R[..., k:]

    (A, goal_A), (B, goal_B) = reduced(C, target.U[..., :k]), reduced(F.mT, target.V[..., :k])

    def misses(Q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inverse, info = torch.linalg.inv_ex(Q)
        inverse = torch.where((info == 0)[..., None, None], inverse, torch.nan)
        left, right = A @ Q, B @ inverse.mT
        return left, right, (left - goal_A) * weight, (right - goal_B) * weight

    def size(Q: Tensor) -> Tensor:
        _, _, first, second = misses(Q)
        return joined((norm(first), norm(second))).nan_to_num(torch.inf)

    # The least squares fit of C alone; where C has not full rank no Q is of use.
    grown = A.mT @ A
    scale = (
        grown.diagonal(dim1=-2, dim2=-1)
        .sum(-1)[..., None, None]
        .clamp(min=torch.finfo(C.dtype).tiny)
    )
    Q, info = torch.linalg.solve_ex(
        grown / scale + torch.where(valid, 0, eye), A.mT @ goal_A / scale
    )
    usable = known & (info == 0)
    Q = torch.where(usable[..., None, None] & torch.isfinite(Q), Q, eye)
    best, ended = size(Q), ~usable
    for _ in range(ALIGNMENT[0]):
        if ended.all():
            break
        left, right, first, second = misses(Q)
        slope = (right.mT @ second * weight).mT - left.mT @ first * weight
        p, P = _eigh(left.mT @ left / weight / weight.mT)
        r, R = _eigh(right.mT @ right / weight / weight.mT)
        Y = (
            P
            @ ((P.mT @ (slope / weight / weight.mT) @ R) / (p[..., :, None] + r[..., None, :]))
            @ R.mT
        )
        turn = Q @ (Y / weight / weight.mT)
        stays = ~ended
        for step in (1.0, 0.3, 0.1, 0.01):
            tried = Q + step * turn
            reached = size(tried)
            gains = stays & (reached < (1 - ALIGNMENT[1]) * best)
            Q, best = (
                torch.where(gains[..., None, None], tried, Q),
                torch.where(gains, reached, best),
            )
            stays &= ~gains
            if not stays.any():
                break
        ended |= stays
    return torch.where(
        usable & torch.isfinite(best), best / norm(torch.diag_embed(target.sigma)), torch.nan
    )


def _eigh(X: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, away from 0, and eigenvectors; of one that is not finite those of 0."""
    finite = torch.isfinite(X).all(-1).all(-1)[..., None, None]
    values, vectors = torch.linalg.eigh(torch.where(finite, X, 0))
    return values.clamp(min=torch.finfo(X.dtype).tiny), vectors


def effective_rank(sigma: Tensor) -> Tensor:
    """exp(−Σ p log p) with p = σ/Σσ (Roy, Vetterli 2007, The effective rank, eq. 2); 0 for the zero matrix."""
    total = sigma.sum(-1)
    p = sigma / total[..., None]
    return torch.where(total == 0, 0, torch.exp(-torch.xlogy(p, p).sum(-1)))


def sharpness(objective: Objective, factors: Factors, iterations: int = 100) -> Tensor:
    """The largest eigenvalue of the Hessian of the objective, by Lanczos on Hessian-vector products.

    The products are exact, forward differentiation of the closed-form gradient; the basis is orthogonalized twice in
    every iteration. The start vector is fixed, so a run's value does not depend on its companions.

    Args:
        objective: what is descended.
        factors: where.
        iterations: at most this many, and at most as many as there are parameters.
    """
    shapes = [W.shape[-2:] for W in factors]
    lead = factors[0].shape[:-2]
    size = sum(shape.numel() for shape in shapes)

    def unflatten(vector: Tensor) -> Factors:
        parts = torch.split(vector, [shape.numel() for shape in shapes], dim=-1)
        return tuple(part.reshape(*lead, *shape) for part, shape in zip(parts, shapes, strict=True))

    def hessian(vector: Tensor) -> Tensor:
        return torch.cat(
            [H.flatten(-2) for H in objective.hessian(factors, unflatten(vector))], dim=-1
        )

    steps = min(iterations, size)
    v = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = (v / v.norm()).to(factors[0]).expand(*lead, size)
    before = torch.zeros_like(v)
    length = v.new_zeros(lead)
    T = v.new_zeros(*lead, steps, steps)
    largest = v.new_full(lead, torch.nan)
    settled = torch.zeros(lead, dtype=torch.bool, device=v.device)
    for i in range(steps):
        w = hessian(v) - length[..., None] * before
        T[..., i, i] = (w * v).sum(-1)
        w = w - T[..., i, i, None] * v
        length = torch.linalg.vector_norm(w, dim=-1)
        if i + 1 == steps or (i + 1) % RITZ[0] == 0:
            value, residual = _ritz(T[..., : i + 1, : i + 1], length)
            largest = torch.where(settled, largest, value)
            settled |= ~(residual > RITZ[1] * value.abs())
            if settled.all():
                break
        if i + 1 < steps:
            # An invariant subspace is exhausted when nothing is left of w: then the rest of T stays zero.
            alive = length > 1e-12 * T.diagonal(dim1=-2, dim2=-1).abs().amax(-1).clamp(
                min=torch.finfo(T.dtype).tiny
            )
            length = torch.where(alive, length, 0)
            T[..., i, i + 1] = T[..., i + 1, i] = length
            before, v = v, torch.where(alive[..., None], w / length[..., None], 0)
    return largest


def _ritz(T: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue of T and how far it can be from one of the Hessian; NaN for a run that is not finite."""
    finite = torch.isfinite(T).all(-1).all(-1)
    values, vectors = torch.linalg.eigh(torch.where(finite[..., None, None], T, 0))
    residual = length * vectors[..., -1, -1].abs()
    return torch.where(finite, values[..., -1], torch.nan), torch.where(finite, residual, torch.nan)


def measure(
    objective: Objective,
    state: State,
    optimum: Tensor,
    target: Triplets | None = None,
    *,
    full: bool = False,
) -> dict[str, Tensor]:
    """Every measure of a state by its name, each (*,); NaN where it does not apply to a run.

    Args:
        objective: what is descended.
        state: where it is.
        optimum: (*,), the least value of the objective; NaN where unknown.
        target: what modes, angles and the distance of the factors are measured against; None: they are not.
        full: the costly one too: sharpness.
    """
    problem, factors = objective.problem, state.factors
    found = triplets(factors) if target is not None else None
    sigma = singular_values(factors) if found is None else found.sigma
    gradient = joined(norm(G) for G in objective.gradient(factors))
    measures = {
        "loss": state.loss,
        "relative_error": relative_error(problem, factors),
        "excess_loss": excess_loss(state.loss, optimum),
        "loss_gap": state.loss - optimum,
        "gradient_norm": gradient,
        "balance": balance(factors),
        "effective_rank": effective_rank(sigma),
        "nuclear_norm": sigma.sum(-1),
    }
    measures |= {f"sigma.{i + 1}": sigma[..., i] for i in range(min(SIGMAS, sigma.shape[-1]))}
    if (heldout := heldout_error(problem, factors)) is not None:
        measures["heldout_error"] = heldout
    if target is not None and found is not None:
        learnt = modes(factors, target)
        measures |= {f"mode.{i + 1}": learnt[..., i] for i in range(min(SIGMAS, learnt.shape[-1]))}
        measures["angle.left"], measures["angle.right"] = angles(found, target)
        if len(factors) == 2 and factors[0].shape[-1] <= target.sigma.shape[-1]:
            measures["factor_distance"] = factor_distance(factors, target)
    if full:
        measures["sharpness"] = sharpness(objective, factors)
    return measures


def excess_loss(loss: Tensor, optimum: Tensor) -> Tensor:
    """loss/optimum − 1 where the optimum is known and positive, else NaN, (*,)."""
    return torch.where(optimum > 0, loss / optimum - 1, torch.nan)


def distance(objective: Objective, state: State, optimum: Tensor) -> Tensor:
    """How far a state is from the answer, (*,): `excess_loss`, else `relative_error`; held against ``tolerance``."""
    return torch.where(
        optimum > 0,
        excess_loss(state.loss, optimum),
        relative_error(objective.problem, state.factors),
    )
