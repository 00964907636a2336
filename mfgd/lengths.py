"""Steps along the gradient: their length follows from the objective, or they follow its flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from mfgd.linalg import inner_product, power_of_two, sum_matrix
from mfgd.method import Optimizer, Rate, descend_all, forget, step_by_all_factors
from mfgd.objective import Objective
from mfgd.types import Factors, Fraction, Refused

SHORTEST = 1e-18
"""The share of lr at which backtracking gives up."""


def exact_line_search(*, alternating: bool) -> Optimizer:
    """Steepest descent: W ← W − lr t G, with t ≥ 0 the least minimizer of f(W − t G).

    Along a direction the squared loss is a polynomial, of degree 2L if all L factors move at once;
    t is a root of its derivative. With lr = 1 the step is that minimizer. The loss is the squared
    one.

    Source: Cauchy 1847, Méthode générale pour la résolution des systèmes d'équations simultanées.
    """

    def directions(
        objective: Objective, factors: Factors, levels: Sequence[int], gradients: Factors
    ) -> tuple[Sequence[Tensor], bool]:
        along: list[Any] = [None] * len(factors)
        for level, G in zip(levels, gradients, strict=True):
            along[level] = G
        whole, turned = objective.expand(factors), objective.expand(tuple(along))
        length = _minimize_polynomial(_expand(objective, whole, turned))[..., None, None]
        return [(length * G).to(G.dtype) for G in gradients], False

    def check(objective: Objective, factors: Factors) -> None:
        if objective.loss.curvature is None:
            raise Refused("optimizer=exact_line_search: allowed is loss=squared")

    made = step_by_all_factors(directions, alternating=alternating)
    return made._replace(check=check)


def _expand(objective: Objective, factors: Factors, along: Sequence[Tensor | None]) -> Tensor:
    """The coefficients of f(W₁ − t G₁, …, W_L − t G_L) as a polynomial in t, (*, degree + 1), the
    constant one first.

    Args:
        objective: of a squared loss.
        factors: W₁ … W_L.
        along: G_l, or None for a factor that stays.
    """
    seen = objective.observation
    products = [factors[0]] if along[0] is None else [factors[0], -along[0]]
    for W, G in zip(factors[1:-1], along[1:-1], strict=True):
        products = _convolve(products, [W] if G is None else [W, -G], torch.matmul)
    last, G = factors[-1], along[-1]
    residuals = _convolve(products, [last] if G is None else [last, -G], seen.apply)
    residuals[0] = residuals[0] - seen.target
    squares = _square([R.to(torch.float64) for R in residuals])
    factor = objective.weight * (objective.loss.curvature or 1.0) / 2
    found = [factor * square for square in squares]
    if objective.penalized:
        for W, G in zip(factors, along, strict=True):
            terms = [W.to(torch.float64)] + ([] if G is None else [-G.to(torch.float64)])
            for j, square in enumerate(_square(terms)):
                found[j] = found[j] + objective.loss.penalty / 2 * square
    return torch.cat(found, -1)[..., 0, :]


def _convolve(
    first: Sequence[Tensor], second: Sequence[Tensor], multiply: Callable[[Tensor, Tensor], Tensor]
) -> list[Tensor]:
    """The coefficients of the product of two matrix polynomials."""
    found: list[Tensor] = []
    for degree in range(len(first) + len(second) - 1):
        terms = []
        for i, A in enumerate(first):
            if 0 <= degree - i < len(second):
                terms.append(multiply(A, second[degree - i]))
        found.append(reduce(torch.add, terms))
    return found


def _square(terms: Sequence[Tensor]) -> list[Tensor]:
    """The coefficients of ‖Σ_j t^j X_j‖², each (*, 1, 1)."""
    return _convolve(terms, terms, lambda A, B: sum_matrix(A * B))


def _minimize_polynomial(coefficients: Tensor) -> Tensor:
    """The t ≥ 0 at which polynomials (*, degree + 1), the constant coefficient first, are least,
    (*,); NaN if a coefficient is not finite."""
    finite = torch.isfinite(coefficients).all(-1, keepdim=True)
    c = torch.where(finite, coefficients, 0)
    degree = c.shape[-1] - 1
    # In units in which the first and the last coefficient are about equal no root is large or
    # small. The last bit of a power depends on the runs beside it, and a power of two has no such
    # bit.
    unit = (c[..., :1].abs() / c[..., -1:].abs()) ** (1 / degree)
    bent = (unit > 0) & torch.isfinite(unit)
    unit = torch.where(bent, power_of_two(unit), 1)
    powers = torch.arange(degree + 1, dtype=c.dtype, device=c.device)
    units = torch.cat([torch.ones_like(unit), unit.expand(*unit.shape[:-1], degree)], -1)
    c = c * units.cumprod(-1)
    slopes = c[..., 1:] * powers[1:]
    leading = torch.where(bent, slopes[..., -1:], 1)
    companion = torch.diag_embed(torch.ones_like(slopes[..., :-2]), offset=-1)
    companion[..., -1] = torch.where(bent, -slopes[..., :-1] / leading, 0)
    # The real part of a root that is not real is a candidate that never wins by mistake: the
    # polynomial decides.
    candidates = torch.linalg.eigvals(companion).real.clamp(min=0)
    candidates = torch.cat([torch.zeros_like(unit), candidates], -1)
    values = torch.zeros_like(candidates)
    for i in range(degree, -1, -1):
        values = values * candidates + c[..., i : i + 1]
    best = values.argmin(-1, keepdim=True)
    found = (unit * candidates.gather(-1, best))[..., 0]
    return torch.where(finite[..., 0], found, torch.nan)


def armijo(*, sufficient: Fraction, shrink: Fraction) -> Optimizer:
    """Backtracking: W ← W − t G, with t the first of lr, shrink lr, shrink² lr … at which f(W −
    t G) ≤ f − sufficient t ‖G‖².

    The factors stay if no t above 1e-18 lr is found.

    Source: Armijo 1966, Minimization of functions having Lipschitz continuous first partial
    derivatives, corollary 2.

    Args:
        sufficient: the share of the decrease that the gradient promises.
        shrink: multiplies t until the decrease is sufficient.
    """

    def step(
        objective: Objective, factors: Factors, memory: None, lr: Rate
    ) -> tuple[Factors, None]:
        gradients = objective.gradient(factors)
        before = objective.value(factors)[..., None, None]
        doubles = [G.to(torch.float64) for G in gradients]
        slope = sufficient * inner_product(doubles, doubles)
        length, done = torch.ones_like(before), torch.zeros_like(before, dtype=torch.bool)
        moved = factors
        while True:
            t = (length * lr).to(factors[0].dtype)
            tried = descend_all(factors, gradients, t)
            fits = objective.value(tried)[..., None, None] <= before - slope * t
            pairs = zip(tried, moved, strict=True)
            moved = tuple(torch.where(fits & ~done, V, W) for V, W in pairs)
            done = done | fits
            length = length * shrink
            if done.all() or (length < SHORTEST).all():
                return moved, None

    return Optimizer(forget, step)


def flow() -> Optimizer:
    """Gradient flow Ẇ = −G by the classical Runge–Kutta method of order 4; lr is the time step.

    Source: Kutta 1901, Beitrag zur näherungsweisen Integration totaler Differentialgleichungen.
    """

    def step(
        objective: Objective, factors: Factors, memory: None, lr: Rate
    ) -> tuple[Factors, None]:
        first = objective.gradient(factors)
        second = objective.gradient(descend_all(factors, first, lr / 2))
        third = objective.gradient(descend_all(factors, second, lr / 2))
        fourth = objective.gradient(descend_all(factors, third, lr))
        slopes = zip(first, second, third, fourth, strict=True)
        mean = tuple((a + 2 * b + 2 * c + d) / 6 for a, b, c, d in slopes)
        return descend_all(factors, mean, lr), None

    return Optimizer(forget, step)
