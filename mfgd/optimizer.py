"""How factors move in one step.

Each function here is an option of ``optimizer=``; its keyword arguments are the keys of that
option. It returns an `Optimizer`; the learning rate is the top-level ``lr``.

Keys:
    alternating: whether each factor sees the steps of the factors before it; if not, every gradient
        is taken at the old factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from mfgd.directions import muon, normalized, rmsprop, sign
from mfgd.gauss_newton import gauss_newton, levenberg_marquardt
from mfgd.lengths import armijo, exact_line_search, flow
from mfgd.linalg import inner_product, solve_positive
from mfgd.method import Method, Optimizer, Rate, step_by_all_factors, step_by_factor
from mfgd.objective import Objective
from mfgd.secant import barzilai_borwein, lbfgs
from mfgd.types import Factors, NonNegative, Positive, Share
from mfgd.updates import als, alt_gd_min, mu

__all__ = [
    "adam",
    "als",
    "alt_gd_min",
    "armijo",
    "barzilai_borwein",
    "exact_line_search",
    "flow",
    "gauss_newton",
    "gd",
    "lbfgs",
    "levenberg_marquardt",
    "momentum",
    "mu",
    "muon",
    "nesterov",
    "normalized",
    "polyak",
    "rmsprop",
    "scaled_gd",
    "sign",
]


def gd(*, alternating: bool) -> Optimizer:
    """Gradient descent: W ← W − lr G, with G the gradient of the objective with respect to W.

    Source: Cauchy 1847, Méthode générale pour la résolution des systèmes d'équations simultanées.
    """
    return step_by_factor(
        lambda W: None, lambda G, memory: (G, None), alternating=alternating, method=Method.GRADIENT
    )


def momentum(*, beta: Share, alternating: bool) -> Optimizer:
    """Heavy ball: V ← beta V + G, W ← W − lr V.

    Source: Polyak 1964, Some methods of speeding up the convergence of iteration methods, eq. 9.

    Args:
        beta: the share of V that is kept at a step.
    """

    def direction(G: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        V = beta * V + G
        return V, V

    moves = step_by_factor(
        torch.zeros_like, direction, alternating=alternating, method=Method.HEAVY_BALL
    )
    return moves._replace(beta=beta)


def nesterov(*, beta: Share, alternating: bool) -> Optimizer:
    """Nesterov's acceleration: V ← beta V + G, W ← W − lr (G + beta V).

    The iterate is the point at which the gradient is taken.

    Source: Sutskever, Martens, Dahl, Hinton 2013, On the importance of initialization and momentum
    in deep learning, eqs. 3 and 4, shifted.

    Args:
        beta: the share of V that is kept at a step.
    """

    def direction(G: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        V = beta * V + G
        return G + beta * V, V

    moves = step_by_factor(
        torch.zeros_like, direction, alternating=alternating, method=Method.NESTEROV
    )
    return moves._replace(beta=beta)


def adam(
    *,
    beta1: Share,
    beta2: Share,
    epsilon: Positive,
    weight_decay: NonNegative,
    alternating: bool,
) -> Optimizer:
    """Adam: W ← W − lr (m̂ / (√v̂ + epsilon) + weight_decay W), m̂ and v̂ the running means m of G
    and v of G², without bias.

    Source: Kingma, Ba 2015, Adam: a method for stochastic optimization, algorithm 1; with a decay
    of the weights AdamW, Loshchilov, Hutter 2019, Decoupled weight decay regularization, algorithm
    2, as torch has it.

    Args:
        beta1: the share of the running mean m that is kept at a step.
        beta2: the share of the running mean v that is kept at a step.
        epsilon: added to √v̂, in units of the gradient.
        weight_decay: what a step takes off each factor, times lr, apart from the gradient; it is
            no part of the objective, as loss.penalty is.
    """

    def direction(
        G: Tensor, memory: tuple[Tensor, Tensor, int]
    ) -> tuple[Tensor, tuple[Tensor, Tensor, int]]:
        mean, square, t = memory
        t += 1
        mean = beta1 * mean + (1 - beta1) * G
        square = beta2 * square + (1 - beta2) * G.square()
        unbiased_mean, unbiased_square = mean / (1 - beta1**t), square / (1 - beta2**t)
        return unbiased_mean / (unbiased_square.sqrt() + epsilon), (mean, square, t)

    def remember(W: Tensor) -> tuple[Tensor, Tensor, int]:
        return torch.zeros_like(W), torch.zeros_like(W), 0

    return step_by_factor(remember, direction, alternating=alternating, decay=weight_decay)


def scaled_gd(
    *, damping: NonNegative, damped_by: Literal["number", "error"], alternating: bool
) -> Optimizer:
    """Scaled gradient descent: W_l ← W_l − lr (LᵀL + δI)⁻¹ G_l (TTᵀ + δI)⁻¹, L = W₁…W_{l−1}, T =
    W_{l+1}…W_L.

    At depth 2, C ← C − lr G_C (FFᵀ + δI)⁻¹ and F ← F − lr (CᵀC + δI)⁻¹ G_F. If δ follows the error,
    the method is PrecGD, for ranks above the true rank. Where a matrix to be inverted is
    numerically singular, as it becomes above the true rank with δ = 0, the method is not defined:
    the run ends as undefined, at the last factors before.

    Source: Tong, Ma, Chi 2021, Accelerating ill-conditioned low-rank matrix estimation via scaled
    gradient descent, eq. 3, with δ = 0; for PrecGD Zhang, Fattahi, Zhang 2021, Preconditioned
    gradient descent for over-parameterized nonconvex matrix factorization, section 1.

    Args:
        damping: δ, or the number that multiplies the error in δ.
        damped_by: number: δ = damping; error: δ = damping times the Frobenius norm of D̂ − D over
            the observed entries, whatever the loss and its scale.
    """

    def directions(
        objective: Objective, factors: Factors, levels: Sequence[int], gradients: Factors
    ) -> tuple[Sequence[Tensor], Tensor]:
        delta: Rate = damping
        if damped_by == "error":
            error, _ = objective.observation.misfit(objective.expand(factors))
            delta = (damping * error[..., None, None]).to(factors[0].dtype)
        return _precondition(objective.expand(factors), levels, gradients, delta)

    undamped = not (torch.as_tensor(damping) != 0).any()
    method = Method.PRECONDITIONED if undamped else Method.OTHER
    return step_by_all_factors(
        directions,
        alternating=alternating,
        method=method,
        gradient_only=damped_by == "number",
    )


def polyak(
    *,
    floor: NonNegative,
    metric: Literal["euclidean", "scaled"],
    damping: NonNegative,
    alternating: bool,
) -> Optimizer:
    """Polyak's step: W ← W − lr (f − f*) / ⟨G, H⟩ H, with H = G, or H the direction of `scaled_gd`.

    Source: Polyak 1969, Minimization of unsmooth functionals; in the scaled metric Tong, Ma, Chi
    2021, Low-rank matrix recovery with scaled subgradient methods, section II. Where the scaled
    metric is numerically singular, the run ends as undefined, like `scaled_gd`.

    Args:
        floor: f*, the least value of the objective.
        metric: euclidean: H = G; scaled: H = (LᵀL + δI)⁻¹ G (TTᵀ + δI)⁻¹.
        damping: δ, of the scaled metric.
    """

    def directions(
        objective: Objective, factors: Factors, levels: Sequence[int], gradients: Factors
    ) -> tuple[Sequence[Tensor], Tensor | bool]:
        found: Sequence[Tensor] = gradients
        singular: Tensor | bool = False
        if metric == "scaled":
            whole = objective.expand(factors)
            found, singular = _precondition(whole, levels, gradients, damping)
        slope = inner_product(gradients, found)
        gap = (objective.value(factors)[..., None, None] - floor).clamp(min=0)
        length = torch.where(slope > 0, gap / slope, torch.where(slope.isnan(), slope, 0))
        return [length.to(H.dtype) * H for H in found], singular

    return step_by_all_factors(directions, alternating=alternating)


def _precondition(
    factors: Factors, levels: Sequence[int], gradients: Factors, damping: Rate
) -> tuple[list[Tensor], Tensor]:
    """(LᵀL + δI)⁻¹ G_l (TTᵀ + δI)⁻¹ for each level l, and whether one of these matrices is
    singular, (*,); the first factor has no L, the last factor no T."""
    directions, singular = [], torch.tensor(False)
    for level, G in zip(levels, gradients, strict=True):
        H = G
        if level > 0:
            left = reduce(torch.matmul, factors[:level])
            H, found = solve_positive(left.mT @ left, H, damping, left.shape[-2])
            singular = singular | found
        if level < len(factors) - 1:
            right = reduce(torch.matmul, factors[level + 1 :])
            H, found = solve_positive(right @ right.mT, H.mT, damping, right.shape[-1])
            H, singular = H.mT, singular | found
        directions.append(H)
    return directions, singular
