"""Secant methods: what the last changes of the gradient say of the curvature."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mfgd.linalg import inner_product, sum_matrix
from mfgd.method import Optimizer, Rate, descend_all
from mfgd.objective import Objective
from mfgd.streams import Streams
from mfgd.types import Count, Factors


class Secant(NamedTuple):
    """What `barzilai_borwein` carries from step to step."""

    factors: Factors
    gradients: Factors
    """At these factors; 0 before the first step."""
    length: Tensor
    """Of the last step, (*, 1, 1); 0 before the first step."""


def barzilai_borwein(*, variant: Literal["long", "short"]) -> Optimizer:
    """Barzilai and Borwein's step: W ← W − t G, with t = ⟨s, s⟩/⟨s, y⟩ (long) or ⟨s, y⟩/⟨y, y⟩
    (short), s and y the last changes of all factors and of their gradients.

    The first step has t = lr. If ⟨s, y⟩ is not positive, t is that of the step before.

    Source: Barzilai, Borwein 1988, Two-point step size gradient methods, eqs. 5 and 6.

    Args:
        variant: which of the two quotients.
    """

    def init(factors: Factors, streams: Streams) -> Secant:
        still = tuple(map(torch.zeros_like, factors))
        return Secant(factors, still, inner_product(still, still).to(torch.float64))

    def step(
        objective: Objective, factors: Factors, memory: Secant, lr: Rate
    ) -> tuple[Factors, Secant]:
        gradients = objective.gradient(factors)
        s = [(W - V).to(torch.float64) for W, V in zip(factors, memory.factors, strict=True)]
        y = [(G - H).to(torch.float64) for G, H in zip(gradients, memory.gradients, strict=True)]
        curvature = inner_product(s, y)
        quotient = (
            inner_product(s, s) / curvature
            if variant == "long"
            else curvature / inner_product(y, y)
        )
        last = torch.where(memory.length == 0, lr, memory.length)
        length = torch.where((curvature > 0) & torch.isfinite(quotient), quotient, last)
        t = length.to(factors[0].dtype)
        return descend_all(factors, gradients, t), Secant(factors, gradients, length)

    return Optimizer(init, step)


Pair = tuple[Factors, Factors, Tensor]
"""s, a change of the factors, and y, that of their gradients, in double precision; and 1/⟨s, y⟩,
(*, 1, 1), or 0 if ⟨s, y⟩ is not positive and the pair is not used."""


class History(NamedTuple):
    """What `lbfgs` carries from step to step."""

    factors: Factors
    gradients: Factors | None
    """At these factors; None before the first step."""
    pairs: tuple[Pair, ...]
    """The oldest first; none before the second step."""
    scale: Tensor
    """⟨s, y⟩/⟨y, y⟩ of the last pair that is used, (*, 1, 1); 0 before there is one."""


def lbfgs(*, history: Count) -> Optimizer:
    """L-BFGS: W ← W − lr H G, with H the inverse Hessian that the last changes of factors and
    gradients give, without a line search.

    The first step is lr min(1, 1/‖G‖₁) G, as in torch.optim.LBFGS. A pair of changes with ⟨s, y⟩ ≤
    0 is left out.

    Source: Liu, Nocedal 1989, On the limited memory BFGS method for large scale optimization,
    algorithm 2.1.

    Args:
        history: how many changes are kept.
    """

    def init(factors: Factors, streams: Streams) -> History:
        return History(factors, None, (), 0 * _sum_all(_widen(factors)))

    def step(
        objective: Objective, factors: Factors, memory: History, lr: Rate
    ) -> tuple[Factors, History]:
        gradients = objective.gradient(factors)
        doubles = _widen(gradients)
        pairs, scale = memory.pairs, memory.scale
        if memory.gradients is not None:
            pair = _pair_changes(factors, memory.factors, doubles, _widen(memory.gradients))
            pairs = (*pairs, pair)[-history:]
            _, y, weight = pair
            scale = torch.where(weight > 0, 1 / (weight * inner_product(y, y)), scale)
        first = (1 / _sum_all([G.abs() for G in doubles])).clamp(max=1)
        directions = _apply_inverse(pairs, doubles, torch.where(scale > 0, scale, first))
        moved = descend_all(factors, [H.to(factors[0].dtype) for H in directions], lr)
        return moved, History(factors, gradients, pairs, scale)

    return Optimizer(init, step)


def _pair_changes(factors: Factors, before: Factors, gradients: Factors, earlier: Factors) -> Pair:
    """The pair of two steps."""
    s = tuple((W - V).to(torch.float64) for W, V in zip(factors, before, strict=True))
    y = tuple(G - H for G, H in zip(gradients, earlier, strict=True))
    weight = 1 / inner_product(s, y)
    return s, y, torch.where((weight > 0) & torch.isfinite(weight), weight, 0)


def _apply_inverse(pairs: Sequence[Pair], gradients: Factors, scale: Tensor) -> Factors:
    """H G by the recursion of two loops, H = scale without pairs."""
    found, shares = gradients, []
    for s, y, weight in reversed(pairs):
        share = weight * inner_product(s, found)
        shares.append(share)
        found = tuple(X - share * V for X, V in zip(found, y, strict=True))
    found = tuple(scale * X for X in found)
    for (s, y, weight), share in zip(pairs, reversed(shares), strict=True):
        rest = share - weight * inner_product(y, found)
        found = tuple(X + rest * V for X, V in zip(found, s, strict=True))
    return found


def _widen(gradients: Factors) -> Factors:
    return tuple(G.to(torch.float64) for G in gradients)


def _sum_all(terms: Sequence[Tensor]) -> Tensor:
    """The sum over all factors, (*, 1, 1)."""
    return reduce(torch.add, map(sum_matrix, terms))
