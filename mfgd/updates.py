"""Methods that set a factor in closed form, without a learning rate: multiplicative updates, least
squares."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mfgd.capacity import refuse_unless_fits
from mfgd.divergences import power
from mfgd.linalg import is_finite, power_of_two
from mfgd.method import Method, Optimizer, Rate, descend, forget
from mfgd.objective import Objective
from mfgd.types import Factors, Refused

EPSILON = torch.finfo(torch.float32).eps
"""What scikit-learn has in place of 0 where 0 would be divided by."""


def mu() -> Optimizer:
    """Multiplicative updates, C then F, of factors without negative entries.

    C ← C ∘ (M∘D)Fᵀ / (M∘CF)Fᵀ, then F ← F ∘ Cᵀ(M∘D) / Cᵀ(M∘CF). The method is for the squared loss
    and the β-divergences (loss=kullback_leibler, beta) at depth 2; a penalty λ adds λ/w times the
    factor to the denominator, λ/2w for the squared loss. There is no rate: ``lr`` is not used.

    For a β-divergence P = CF, C ← C ∘ [(M∘P^{β−2}∘D)Fᵀ / (M∘P^{β−1})Fᵀ]^γ and F likewise, with γ =
    1/(2 − β) for β < 1, 1/(β − 1) for β > 2, else 1: without a penalty the loss never rises.

    Source: Lee, Seung 2001, Algorithms for non-negative matrix factorization, theorems 1 and 2; for
    γ Févotte, Idier 2011, Algorithms for nonnegative matrix factorization with the β-divergence.
    """

    def step(
        objective: Objective, factors: Factors, memory: None, lr: Rate
    ) -> tuple[Factors, None]:
        seen, (C, F) = objective.observation, factors
        if objective.loss.beta is not None:
            return _multiply_for_divergence(objective, objective.loss.beta, C, F), None
        C = C * _divide(
            seen.times_transposed(seen.target, F), _penalize(objective, seen.times_gram(C, F), C)
        )
        F = F * _divide(
            seen.transposed_times(C, seen.target), _penalize(objective, seen.gram_times(C, F), F)
        )
        return (C, F), None

    def check(objective: Objective, factors: Factors) -> None:
        if objective.loss.curvature is None and objective.loss.beta is None:
            allowed = "allowed are loss=squared, kullback_leibler and beta"
            raise Refused(f"optimizer=mu: {allowed}")
        _refuse_other_depth("mu", factors)
        if not objective.observation.entrywise:
            raise Refused("optimizer=mu: allowed are problems whose entries are observed")
        if (objective.observation.target < 0).any():
            raise Refused("optimizer=mu: D has negative entries; allowed is a matrix without")
        if any((W < 0).any() for W in factors):
            raise Refused(
                "optimizer=mu: the start has negative entries; "
                "allowed is a start without, for example init=uniform"
            )
        _refuse_zero("mu", factors)

    return Optimizer(forget, step, check, simultaneous=False)


def als() -> Optimizer:
    """Alternating least squares, C then F: each minimizes the objective while the other is fixed.

    The method is for the squared loss at depth 2. There is no rate: ``lr`` is not used. Where the
    minimizer is not unique, above the rank of D and for a row or column of D with fewer observed
    entries than the rank, it is the one of least norm, as `numpy.linalg.lstsq` finds it.

    Source: Zhou, Wilkinson, Schreiber, Pan 2008, Large-scale parallel collaborative filtering for
    the Netflix prize, section 3.1, with λ not weighted by the number of ratings.
    """

    def step(
        objective: Objective, factors: Factors, memory: None, lr: Rate
    ) -> tuple[Factors, None]:
        ridge = _ridge(objective)
        C = _solve_scaled(objective.observation.solve_left, factors[1], ridge)
        return (C, _solve_scaled(objective.observation.solve_right, C, ridge)), None

    def check(objective: Objective, factors: Factors) -> None:
        _refuse_unless_quadratic("als", objective, factors)
        _refuse_vast("als", objective, factors)
        _refuse_zero("als", factors[1:])

    return Optimizer(forget, step, check, Method.LEAST_SQUARES, simultaneous=False)


def alt_gd_min() -> Optimizer:
    """A gradient step on C, and least squares for F: C ← orth(C − lr G_C), then F minimizes the
    objective while C is fixed.

    orth(X) is the Q of X = QR, so that C has orthonormal columns from the first step on. The method
    is for the squared loss at depth 2, without a penalty, which would not see C.

    Source: Nayer, Vaswani 2023, Fast and sample-efficient federated low rank matrix recovery from
    column-wise linear and quadratic projections, algorithm 1.
    """

    def step(
        objective: Objective, factors: Factors, memory: None, lr: Rate
    ) -> tuple[Factors, None]:
        C, _ = factors
        (G,) = objective.gradient(factors, 0)
        moved = descend(C, G, lr)
        finite = is_finite(moved)[..., None, None]
        # What is not finite would stop the decomposition of the other runs.
        Q, _ = torch.linalg.qr(torch.where(finite, moved, 0))
        C = torch.where(finite, Q, torch.nan)
        return (C, _solve_scaled(objective.observation.solve_right, C, 0.0)), None

    def check(objective: Objective, factors: Factors) -> None:
        _refuse_unless_quadratic("alt_gd_min", objective, factors)
        if objective.penalized:
            raise Refused("optimizer=alt_gd_min: allowed is loss.penalty=0")
        n, k = factors[0].shape[-2:]
        _refuse_vast("alt_gd_min", objective, factors)
        if k > n:
            raise Refused(f"optimizer=alt_gd_min at rank={k}: allowed is rank ≤ {n}, the rows of D")

    return Optimizer(forget, step, check, simultaneous=False)


def _solve_scaled(solve: Callable[[Tensor, Rate], Tensor], basis: Tensor, ridge: Rate) -> Tensor:
    """The factor that `solve` finds for the other factor. This is scaled by a power of two, at no
    rounding, so that its Gram matrix neither over- nor underflows."""
    unit = power_of_two(basis.abs().amax((-2, -1), keepdim=True))
    return solve(basis / unit, ridge / unit / unit) / unit


def _multiply_for_divergence(objective: Objective, beta: Rate, C: Tensor, F: Tensor) -> Factors:
    """The next C and F for a β-divergence."""
    seen = objective.observation

    def weigh() -> tuple[Tensor, Tensor]:
        """M∘P^{β−2}∘D and M∘P^{β−1}."""
        P = seen.apply(C, F)
        # Where P is 0, each term of the sums is 0 or its factor stays 0.
        P = P.masked_fill(P == 0, EPSILON)
        return seen.target * power(P, beta - 2), seen.restrict(power(P, beta - 1))

    def temper(numerator: Tensor, denominator: Tensor) -> Tensor:
        ratio = _divide(numerator, denominator)
        if isinstance(beta, Tensor):
            gamma = torch.where(beta < 1, 1 / (2 - beta), 1 / (beta - 1))
            return torch.where((beta < 1) | (beta > 2), power(ratio, gamma), ratio)
        if 1 <= beta <= 2:
            return ratio
        return power(ratio, 1 / (2 - beta) if beta < 1 else 1 / (beta - 1))

    attracted, repelled = weigh()
    C = C * temper(
        seen.times_transposed(attracted, F),
        _penalize(objective, seen.times_transposed(repelled, F), C),
    )
    attracted, repelled = weigh()
    F = F * temper(
        seen.transposed_times(C, attracted),
        _penalize(objective, seen.transposed_times(C, repelled), F),
    )
    return C, F


def _penalize(objective: Objective, denominator: Tensor, factor: Tensor) -> Tensor:
    if not objective.penalized:
        return denominator
    return denominator + _ridge(objective) * factor


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    # If the denominator is 0, so is the numerator; divide by eps instead, as scikit-learn does.
    return numerator / denominator.masked_fill(denominator == 0, EPSILON)


def _ridge(objective: Objective) -> Rate:
    """λ/(c w), c the curvature of the loss: the penalty in units of half the sum of squares."""
    return objective.loss.penalty / ((objective.loss.curvature or 1.0) * objective.weight)


def _refuse_zero(name: str, factors: Factors) -> None:
    """Refuses factors (*, …) that are 0 in a run, if the method keeps them so."""
    if any((W == 0).all(-1).all(-1).any() for W in factors):
        raise Refused(
            f"optimizer={name}: a factor of the start is 0, which this method never leaves; "
            "allowed is a start with other factors, such as a larger init.ratio"
        )


def _refuse_vast(name: str, objective: Objective, factors: Factors) -> None:
    """Refuses least squares that cannot fit into memory."""
    k = factors[0].shape[-1]
    size = objective.observation.bytes_to_solve(k)
    said = f"optimizer={name} at rank={k}: least squares for a factor take"
    refuse_unless_fits(size, said, "allowed is a lower rank, or an optimizer such as gd")


def _refuse_unless_quadratic(name: str, objective: Objective, factors: Factors) -> None:
    if objective.loss.curvature is None:
        raise Refused(f"optimizer={name}: allowed is loss=squared")
    _refuse_other_depth(name, factors)


def _refuse_other_depth(name: str, factors: Factors) -> None:
    if len(factors) != 2:
        raise Refused(f"optimizer={name} at depth={len(factors)}: allowed is depth=2")
