"""What is measured of a state. Shapes follow the package docstring; each measure is (*,), one number a run."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

from mfgd.descent import State
from mfgd.objective import Objective, product, row_blocks, rows_of
from mfgd.problem import Problem
from mfgd.sparse import Pattern, apart
from mfgd.types import Factors

SIGMAS = 8
"""How many singular values are measured."""


def norm(X: Tensor) -> Tensor:
    """Frobenius norm over the last two dimensions, (*,)."""
    return torch.linalg.vector_norm(X.contiguous(), dim=(-2, -1))


def joined(norms: Iterable[Tensor]) -> Tensor:
    """Root of the sum of squares, summed in the same order in any batch."""
    first, *others = norms
    return reduce(torch.add, (norm.square() for norm in others), first.square()).sqrt() if others else first


def relative_error(problem: Problem, factors: Factors) -> Tensor:
    """‖D̂ − D*‖ / ‖D*‖ with the truth D* where it is known, else with D on its observed entries."""
    if problem.truth is not None:
        return _ratio(*_misfit(factors, problem.truth))
    return _ratio(*_misfit(factors, problem.D, problem.mask))


def heldout_error(problem: Problem, factors: Factors) -> Tensor | None:
    """‖D̂ − D‖ / ‖D‖ over the entries set aside, else ‖D̂ − D*‖ / ‖D*‖ over those not observed.

    None where none was set aside and there is no entry that is not observed, or no truth.
    """
    truth, pattern = problem.truth, problem.pattern
    if problem.heldout is not None:
        return _ratio(*_misfit(factors, problem.heldout, holes=True))
    if truth is None or problem.complete:
        return None
    if pattern is None:
        return _ratio(*_misfit(factors, truth, problem.mask, hidden=True))
    # What is not observed is all but what is: nearly everything, so little is lost in the difference.
    there = pattern.sampled(*truth) if isinstance(truth, tuple) else truth[pattern.rows, pattern.columns]
    whole, observed = _misfit(factors, truth), _misfit(factors, pattern.filled(there))
    return _ratio(*((x.square() - y.square()).clamp(min=0).sqrt() for x, y in zip(whole, observed, strict=True)))


def _ratio(misses: Tensor, sizes: Tensor) -> Tensor:
    return misses / sizes


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
        return apart((product(factors[:-1]), factors[-1]), (A, B)), ((A.mT @ A) * (B @ B.mT)).sum((-2, -1)).sqrt()
    if target.layout == torch.sparse_csr:
        values = target.values()[None]
        return norm(Pattern(target).sampled(product(factors[:-1]), factors[-1]) - values), norm(values)
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
    finite = torch.stack([torch.isfinite(W).all(-1).all(-1) for W in factors]).all(0)[..., None, None]
    first, *rest = (torch.where(finite, W, 0) for W in factors)
    R = torch.linalg.qr(first, mode="r").R
    for factor in rest[:-1]:
        R = R @ factor
    sigma = torch.linalg.svdvals(R @ torch.linalg.qr(rest[-1].mT, mode="r").R.mT)
    return torch.where(finite[..., 0], sigma, torch.nan)


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
        _, curved = torch.func.jvp(objective.gradient, (factors,), (unflatten(vector),))  # type: ignore[misc]
        return torch.cat([G.flatten(-2) for G in curved], dim=-1)

    steps = min(iterations, size)
    start = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = (start / start.norm()).to(factors[0])
    basis = [start.expand(*lead, size)]
    T = start.new_zeros(*lead, steps, steps)
    for i in range(steps):
        w = hessian(basis[i])
        T[..., i, i] = (w * basis[i]).sum(-1)
        V = torch.stack(basis, dim=-2)
        for _ in range(2):
            w = w - ((V @ w[..., None]).mT @ V)[..., 0, :]
        length = torch.linalg.vector_norm(w, dim=-1)
        if i + 1 < steps:
            # An invariant subspace is exhausted when nothing is left of w: then the rest of T stays zero.
            alive = length > 1e-12 * T.diagonal(dim1=-2, dim2=-1).abs().amax(-1).clamp(min=torch.finfo(T.dtype).tiny)
            length = torch.where(alive, length, 0)
            T[..., i, i + 1] = T[..., i + 1, i] = length
            basis.append(torch.where(alive[..., None], w / length[..., None], 0))
    finite = torch.isfinite(T).all(-1).all(-1)
    largest = torch.linalg.eigvalsh(torch.where(finite[..., None, None], T, 0))[..., -1]
    return torch.where(finite, largest, torch.nan)


def measure(objective: Objective, state: State, optimum: Tensor, *, full: bool = False) -> dict[str, Tensor]:
    """Every measure of a state by its name, each (*,); NaN where it does not apply to a run.

    Args:
        objective: what is descended.
        state: where it is.
        optimum: (*,), the least value of the objective; NaN where unknown.
        full: the costly ones too: sharpness.
    """
    problem, factors = objective.problem, state.factors
    sigma = singular_values(factors)
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
    if full:
        measures["sharpness"] = sharpness(objective, factors)
    return measures


def excess_loss(loss: Tensor, optimum: Tensor) -> Tensor:
    """loss/optimum − 1 where the optimum is known and positive, else NaN, (*,)."""
    return torch.where(optimum > 0, loss / optimum - 1, torch.nan)


def distance(objective: Objective, state: State, optimum: Tensor) -> Tensor:
    """How far a state is from the answer, (*,): `excess_loss`, else `relative_error`; held against ``tolerance``."""
    return torch.where(optimum > 0, excess_loss(state.loss, optimum), relative_error(objective.problem, state.factors))
