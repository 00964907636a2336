"""Steps whose length does not follow the size of the gradient: normalized and orthogonalized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mfgd.linalg import frobenius_norm, is_finite, join_norms
from mfgd.method import Optimizer, step_by_all_factors, step_by_factor
from mfgd.objective import Objective
from mfgd.types import Factors, Positive, Share

POLYNOMIAL = 3.4445, -4.7750, 2.0315
"""a, b, c of X ← a X + (b XXᵀ + c (XXᵀ)²) X, which brings singular values of (0, 1] near 1."""
ITERATIONS = 5


def sign(*, alternating: bool) -> Optimizer:
    """Sign descent: W ← W − lr sign(G), with sign(0) = 0.

    Source: Bernstein, Wang, Azizzadenesheli, Anandkumar 2018, signSGD: compressed optimisation for
    non-convex problems, algorithm 1.
    """
    return step_by_factor(
        lambda W: None, lambda G, memory: (G.sign(), None), alternating=alternating
    )


def normalized(*, alternating: bool) -> Optimizer:
    """Normalized gradient descent: W ← W − lr G / ‖G‖, with ‖G‖ the Frobenius norm over all factors
    that move at once; where the gradient is 0, the factors stay.

    Source: Hazan, Levy, Shalev-Shwartz 2015, Beyond convexity: stochastic quasi-convex
    optimization, algorithm 1.
    """

    def directions(
        objective: Objective, factors: Factors, levels: Sequence[int], gradients: Factors
    ) -> tuple[Sequence[Tensor], bool]:
        norm = join_norms(map(frobenius_norm, gradients))[..., None, None]
        length = torch.where(norm == 0, 0, 1 / norm)
        return [(length * G).to(G.dtype) for G in gradients], False

    return step_by_all_factors(directions, alternating=alternating, gradient_only=True)


def rmsprop(*, beta: Share, epsilon: Positive, alternating: bool) -> Optimizer:
    """RMSprop: v ← beta v + (1 − beta) G², W ← W − lr G / (√v + epsilon).

    Source: Tieleman, Hinton 2012, Neural networks for machine learning, lecture 6.5.

    Args:
        beta: the share of the running mean v that is kept at a step.
        epsilon: added to √v, in units of the gradient.
    """

    def direction(G: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
        square = beta * square + (1 - beta) * G.square()
        return G / (square.sqrt() + epsilon), square

    return step_by_factor(torch.zeros_like, direction, alternating=alternating)


def muon(
    *,
    beta: Share,
    nesterov: bool,
    polar: Literal["svd", "newton_schulz"],
    alternating: bool,
) -> Optimizer:
    """Muon: V ← beta V + G, W ← W − lr P, with P the polar factor of V, or of G + beta V.

    The polar factor of X = U Σ Vᵀ is U Vᵀ, over the singular values that are not 0. Five steps of
    Newton and Schulz on X/‖X‖ come to U Σ′ Vᵀ with Σ′ from about .7 to 1.2, but for small singular
    values. The rate is not scaled by the shape of the factor.

    Source: Jordan and others 2024, Muon: an optimizer for hidden layers in neural networks.

    Args:
        beta: the share of V that is kept at a step.
        nesterov: whether P is of G + beta V.
        polar: svd: the polar factor; newton_schulz: five steps towards it.
    """
    orthogonalize = _find_polar_factor if polar == "svd" else _iterate_newton_schulz

    def direction(G: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        V = beta * V + G
        X = G + beta * V if nesterov else V
        finite = is_finite(X)[..., None, None]
        # What is not finite would stop the decomposition of the other runs.
        return torch.where(finite, orthogonalize(torch.where(finite, X, 0)), torch.nan), V

    return step_by_factor(torch.zeros_like, direction, alternating=alternating)


def _find_polar_factor(X: Tensor) -> Tensor:
    """U Vᵀ of X = U Σ Vᵀ (*, n, m), over the singular values above rounding."""
    U, sigma, Vh = torch.linalg.svd(X, full_matrices=False)
    rounding = max(X.shape[-2:]) * torch.finfo(X.dtype).eps * sigma[..., :1]
    return (U * (sigma > rounding)[..., None, :]) @ Vh


def _iterate_newton_schulz(X: Tensor) -> Tensor:
    """Five steps from X/‖X‖ (*, n, m) towards its polar factor; 0 stays 0."""
    a, b, c = POLYNOMIAL
    norm = frobenius_norm(X)[..., None, None]
    Y = torch.where(norm == 0, X, X / norm).to(X.dtype)
    tall = X.shape[-2] > X.shape[-1]
    Y = Y.mT if tall else Y
    for _ in range(ITERATIONS):
        gram = Y @ Y.mT
        Y = a * Y + (b * gram + c * gram @ gram) @ Y
    return Y.mT if tall else Y
