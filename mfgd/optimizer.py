"""One step.

Each function here is an option of ``optimizer=``; its keyword arguments are that option's keys. It returns an
`Optimizer`, a pair of pure functions; the learning rate is the top-level ``lr``. With ``alternating`` the factors move
one after another, and each sees what those before it did; without, every gradient is taken at the old factors.

Keys:
    alternating: whether each factor sees what those before it did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from mfgd.objective import Objective
from mfgd.types import Factors, NonNegative, Positive, Refused

Momentum = Annotated[float, Ge(0), Lt(1)]
Rate = float | Tensor
"""A number, or a column (*, 1, 1)."""


def _anything(objective: Objective, factors: Factors) -> None:
    pass


class Optimizer(NamedTuple):
    """How factors move."""

    init: Callable[[Factors], Any]
    """factors → memory, what the method carries from step to step."""
    step: Callable[[Objective, Factors, Any, Rate], tuple[Factors, Any]]
    """objective, factors, memory, lr → the next factors and memory; nothing is changed in place."""
    check: Callable[[Objective, Factors], None] = _anything
    """objective, start → nothing, or raises `Refused` where the method cannot be used."""


def gd(*, alternating: bool) -> Optimizer:
    """Gradient descent: W ← W − lr G, with G the gradient of the objective with respect to W.

    Source: Cauchy 1847, Méthode générale pour la résolution des systèmes d'équations simultanées.
    """
    return _by_direction(lambda W: None, lambda G, _: (G, None), alternating)


def momentum(*, beta: Momentum, alternating: bool) -> Optimizer:
    """Heavy ball: V ← beta V + G, W ← W − lr V.

    Source: Polyak 1964, Some methods of speeding up the convergence of iteration methods, eq. 9.

    Args:
        beta: how much of the last step's V is kept.
    """

    def direction(G: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        V = beta * V + G
        return V, V

    return _by_direction(torch.zeros_like, direction, alternating)


def nesterov(*, beta: Momentum, alternating: bool) -> Optimizer:
    """Nesterov's acceleration: V ← beta V + G, W ← W − lr (G + beta V).

    In the variable in which the gradient is taken where the iterate is.

    Source: Sutskever, Martens, Dahl, Hinton 2013, On the importance of initialization and momentum in deep learning,
    eqs. 3 and 4, shifted.

    Args:
        beta: how much of the last step's V is kept.
    """

    def direction(G: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        V = beta * V + G
        return G + beta * V, V

    return _by_direction(torch.zeros_like, direction, alternating)


def adam(*, beta1: Momentum, beta2: Momentum, epsilon: Positive, alternating: bool) -> Optimizer:
    """Adam: W ← W − lr m̂ / (√v̂ + epsilon), with m and v the running means of G and G², m̂ and v̂ without their bias.

    Source: Kingma, Ba 2015, Adam: a method for stochastic optimization, algorithm 1.

    Args:
        beta1: how much of the running mean m is kept at a step.
        beta2: how much of the running mean v is kept at a step.
        epsilon: added to √v̂, in units of the gradient.
    """

    def direction(
        G: Tensor, memory: tuple[Tensor, Tensor, int]
    ) -> tuple[Tensor, tuple[Tensor, Tensor, int]]:
        mean, square, t = memory
        mean, square, t = (
            beta1 * mean + (1 - beta1) * G,
            beta2 * square + (1 - beta2) * G.square(),
            t + 1,
        )
        return mean / (1 - beta1**t) / ((square / (1 - beta2**t)).sqrt() + epsilon), (
            mean,
            square,
            t,
        )

    return _by_direction(
        lambda W: (torch.zeros_like(W), torch.zeros_like(W), 0), direction, alternating
    )


def scaled_gd(
    *, damping: NonNegative, damped_by: Literal["number", "error"], alternating: bool
) -> Optimizer:
    """Scaled gradient descent: W_l ← W_l − lr (LᵀL + δI)⁻¹ G_l (TTᵀ + δI)⁻¹, L = W₁…W_{l−1}, T = W_{l+1}…W_L.

    At depth 2: C ← C − lr G_C (FFᵀ + δI)⁻¹ and F ← F − lr (CᵀC + δI)⁻¹ G_F. With δ tied to the error it is PrecGD, for
    ranks above the true one.

    Source: Tong, Ma, Chi 2021, Accelerating ill-conditioned low-rank matrix estimation via scaled gradient descent,
    eq. 3, where δ = 0; for PrecGD Zhang, Fattahi, Zhang 2021, Preconditioned gradient descent for over-parameterized
    nonconvex matrix factorization, section 1.

    Args:
        damping: δ, or what multiplies the error in it.
        damped_by: number: δ = damping; error: δ = damping √f.
    """

    def directions(
        objective: Objective, factors: Factors, levels: Sequence[int], gradients: Factors
    ) -> Sequence[Tensor]:
        delta: Rate = damping
        if damped_by == "error":
            delta = damping * objective.value(factors).sqrt()[..., None, None]
        return _scaled(factors, levels, gradients, delta)

    return _memoryless(directions, alternating)


def polyak(
    *,
    floor: NonNegative,
    metric: Literal["euclidean", "scaled"],
    damping: NonNegative,
    alternating: bool,
) -> Optimizer:
    """Polyak's step: W ← W − lr (f − f*) / ⟨G, H⟩ H, with H = G, or H the direction of `scaled_gd`.

    Source: Polyak 1969, Minimization of unsmooth functionals; in the scaled metric Tong, Ma, Chi 2021, Low-rank matrix
    recovery with scaled subgradient methods, section II.

    Args:
        floor: f*, the least value of the objective.
        metric: euclidean: H = G; scaled: H = (LᵀL + δI)⁻¹ G (TTᵀ + δI)⁻¹.
        damping: δ, of the scaled metric.
    """

    def directions(
        objective: Objective, factors: Factors, levels: Sequence[int], gradients: Factors
    ) -> Sequence[Tensor]:
        along = gradients if metric == "euclidean" else _scaled(factors, levels, gradients, damping)
        slopes = [
            (G * H).contiguous().sum((-2, -1), keepdim=True)
            for G, H in zip(gradients, along, strict=True)
        ]
        slope = reduce(torch.add, slopes)
        gap = (objective.value(factors)[..., None, None] - floor).clamp(min=0)
        length = torch.where(slope > 0, gap / slope, torch.where(slope.isnan(), slope, 0))
        return [length * H for H in along]

    return _memoryless(directions, alternating)


def mu() -> Optimizer:
    """Multiplicative updates, C then F: C ← C ∘ (M∘D)Fᵀ / (M∘CF)Fᵀ, F ← F ∘ Cᵀ(M∘D) / Cᵀ(M∘CF), all entries ≥ 0.

    For the squared loss at depth 2; its penalty joins the denominator. There is no rate: ``lr`` is not used.

    Source: Lee, Seung 2001, Algorithms for non-negative matrix factorization, theorem 1.
    """

    def step(
        objective: Objective, factors: Factors, memory: None, lr: Rate
    ) -> tuple[Factors, None]:
        C, F = factors
        C = C * _ratio(*_parts(objective, (C, F), 0))
        return (C, F * _ratio(*_parts(objective, (C, F), 1))), None

    def check(objective: Objective, factors: Factors) -> None:
        _only_quadratic("mu", objective, factors)
        if (objective.problem.entries < 0).any():
            raise Refused("optimizer=mu: D has negative entries; allowed is a matrix without")
        if any((W < 0).any() for W in factors):
            raise Refused(
                "optimizer=mu: the start has negative entries; allowed is one without, as of init=uniform"
            )

    return Optimizer(lambda factors: None, step, check)


def als() -> Optimizer:
    """Alternating least squares, C then F: each is the minimizer of the objective while the other is held.

    For the squared loss at depth 2. There is no rate: ``lr`` is not used. A row or column of D with fewer observed
    entries than the rank has no unique minimizer, and the run diverges, unless there is a penalty.

    Source: Zhou, Wilkinson, Schreiber, Pan 2008, Large-scale parallel collaborative filtering for the Netflix prize,
    section 3.1, with λ not weighted by the number of ratings.
    """

    def step(
        objective: Objective, factors: Factors, memory: None, lr: Rate
    ) -> tuple[Factors, None]:
        C, F = factors
        C = _least_squares(objective, F.mT, transposed=True)
        return (C, _least_squares(objective, C, transposed=False).mT), None

    return Optimizer(
        lambda factors: None,
        step,
        lambda objective, factors: _only_quadratic("als", objective, factors),
    )


def _by_direction(
    remember: Callable[[Tensor], Any],
    direction: Callable[[Tensor, Any], tuple[Tensor, Any]],
    alternating: bool,
) -> Optimizer:
    """W ← W − lr H, where H and the next memory of a factor follow from its gradient and its memory alone."""

    def step(
        objective: Objective, factors: Factors, memory: list[Any], lr: Rate
    ) -> tuple[Factors, list[Any]]:
        if (
            not alternating
        ):  # in few lines, as many of Python's take as long as a step of small matrices
            found = list(map(direction, objective.gradient(factors), memory))
            return tuple(_descended(W, H, lr) for W, (H, _) in zip(factors, found, strict=True)), [
                m for _, m in found
            ]
        moved, memory = list(factors), list(memory)
        for (level,), (G,) in _turns(objective, moved, alternating):
            H, memory[level] = direction(G, memory[level])
            moved[level] = _descended(moved[level], H, lr)
        return tuple(moved), memory

    return Optimizer(lambda factors: [remember(W) for W in factors], step)


def _memoryless(
    directions: Callable[[Objective, Factors, Sequence[int], Factors], Sequence[Tensor]],
    alternating: bool,
) -> Optimizer:
    """W ← W − lr H, where H follows from all factors and the gradients."""

    def step(
        objective: Objective, factors: Factors, memory: None, lr: Rate
    ) -> tuple[Factors, None]:
        moved = list(factors)
        for levels, gradients in _turns(objective, moved, alternating):
            for level, H in zip(
                levels, directions(objective, tuple(moved), levels, gradients), strict=True
            ):
                moved[level] = _descended(moved[level], H, lr)
        return tuple(moved), None

    return Optimizer(lambda factors: None, step)


def _turns(objective: Objective, factors: list[Tensor], alternating: bool) -> Any:
    """Who moves together, with the gradients where the factors then are."""
    if alternating:
        for level in range(len(factors)):
            yield (level,), objective.gradient(tuple(factors), level)
    else:
        yield range(len(factors)), objective.gradient(tuple(factors))


def _descended(W: Tensor, H: Tensor, lr: Rate) -> Tensor:
    return (
        torch.addcmul(W, H, lr, value=-1) if isinstance(lr, Tensor) else torch.sub(W, H, alpha=lr)
    )


def _scaled(
    factors: Factors, levels: Sequence[int], gradients: Factors, damping: Rate
) -> list[Tensor]:
    """(LᵀL + δI)⁻¹ G_l (TTᵀ + δI)⁻¹ for each of the levels; at an end of the chain there is no such matrix."""
    directions = []
    for level, G in zip(levels, gradients, strict=True):
        H = G
        if level > 0:
            left = reduce(torch.matmul, factors[:level])
            H = _solved(left.mT @ left, H, damping)
        if level < len(factors) - 1:
            right = reduce(torch.matmul, factors[level + 1 :])
            H = _solved(right @ right.mT, H.mT, damping).mT
        directions.append(H)
    return directions


def _solved(A: Tensor, X: Tensor, damping: Rate) -> Tensor:
    """(A + δI)⁻¹ X, (*, k, n), for A (*, k, k) positive definite; NaN where it is not."""
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    factor, info = torch.linalg.cholesky_ex(A + damping * eye)
    return torch.where(info[..., None, None] == 0, torch.cholesky_solve(X, factor), torch.nan)


def _parts(objective: Objective, factors: Factors, level: int) -> tuple[Tensor, Tensor]:
    """What pulls entries up and what pulls them down: the gradient of factor `level` is c w times their difference."""
    problem, (C, F) = objective.problem, factors

    def beside(S: Tensor) -> Tensor:
        return objective.against(S, F) if level == 0 else objective.along(C, S)

    if problem.complete:
        down = (
            ((F @ F.mT) @ C.mT).mT if level == 0 else (C.mT @ C) @ F
        )  # C along its long side, as it is laid out
    elif problem.pattern is not None:
        down = beside(problem.pattern.sampled(C, F))
    else:
        down = beside(objective.masked(C @ F))
    if objective.penalized:
        down = down + _ridge(objective) * factors[level]
    return beside(objective.masked(problem.entries)), down


def _ratio(up: Tensor, down: Tensor) -> Tensor:
    # Where nothing pulls down the entry is held up by nothing either: as in scikit-learn, by a number and not by 0.
    return up / down.masked_fill(down == 0, torch.finfo(torch.float32).eps)


def _ridge(objective: Objective) -> Rate:
    """λ/(c w), c the curvature of the loss: the penalty in units of half the sum of squares."""
    return objective.loss.penalty / ((objective.loss.curvature or 1.0) * objective.weight)


def _least_squares(objective: Objective, basis: Tensor, *, transposed: bool) -> Tensor:
    """The X (*, m, k) that minimizes w‖M∘(basis Xᵀ − D)‖² + λ/2 ‖X‖², or that of Dᵀ."""
    problem, k = objective.problem, basis.shape[-1]
    D = objective.masked(problem.entries)

    def beside(S: Tensor, X: Tensor) -> Tensor:
        """S X or Sᵀ X, whichever sums over what the basis spans."""
        return objective.against(S, X.mT) if transposed else objective.along(X, S).mT

    if problem.complete:
        return _solved(basis.mT @ basis, beside(D, basis).mT, _ridge(objective)).mT
    pairs = (basis[..., :, None] * basis[..., None, :]).flatten(-2)
    Grams = beside(objective.masked(torch.ones_like(problem.entries)), pairs)
    Grams = Grams.reshape(*Grams.shape[:-1], k, k)
    ridge = _ridge(objective)
    if isinstance(ridge, Tensor) and ridge.ndim > 2:
        ridge = ridge[..., None]
    return _solved(Grams, beside(D, basis)[..., None], ridge)[..., 0]


def _only_quadratic(name: str, objective: Objective, factors: Factors) -> None:
    if objective.loss.curvature is None:
        raise Refused(f"optimizer={name}: allowed is loss=squared")
    if len(factors) != 2:
        raise Refused(f"optimizer={name} at depth={len(factors)}: allowed is depth=2")
