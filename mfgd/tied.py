"""Tied factors, D ≈ U Uᵀ: the factors of every state are (U, Uᵀ), and U alone moves.

The objective is that of a pair, f(U) = w Σ M ∘ ρ(U Uᵀ, D) + λ ‖U‖², and its gradient is G_C + G_Fᵀ
with the gradients of the pair (U, Uᵀ). If D and M are symmetric, G_F = G_Cᵀ: U then moves by
gradient descent at a rate lr as the pair does at 2 lr. Neither has to be: under noise the squared
loss of a complete D sees (D + Dᵀ)/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mfgd import init
from mfgd.component import Component
from mfgd.init import Init
from mfgd.loss import Loss
from mfgd.method import Memory, Optimizer, Rate
from mfgd.objective import Objective
from mfgd.point import Point
from mfgd.streams import Streams
from mfgd.symmetric import eigenpairs, is_symmetric, leading_eigenpairs
from mfgd.target import Problem
from mfgd.types import Factors, Refused

DRAWN = (init.uniform, init.normal, init.orthogonal, init.sketch, init.identity)
"""The initializations whose first factor is U."""
START = "symmetric=true with init="


class TiedObjective(Objective):
    """f(U) = w Σ M ∘ ρ(U Uᵀ, D) + λ ‖U‖², and its derivatives with respect to U.

    Each function takes (U, Uᵀ) or (U,), and gives a derivative as (G,). λ ‖U‖² is λ/2 (‖U‖² +
    ‖Uᵀ‖²), and λ times the nuclear norm of U Uᵀ.
    """

    def expand(self, factors: Factors) -> Factors:
        return factors[0], factors[0].mT

    def free(self, factors: Factors) -> Factors:
        return factors[:1]

    def residual(self, factors: Factors) -> Tensor:
        return super().residual(self.expand(factors))

    def value(self, factors: Factors) -> Tensor:
        return super().value(self.expand(factors))

    def gradient(self, factors: Factors, only: int | None = None) -> Factors:
        first, second = super().gradient(self.expand(factors))
        return (first + second.mT,)

    def hessian(self, factors: Factors, direction: Factors) -> Factors:
        first, second = super().hessian(self.expand(factors), self.expand(direction))
        return (first + second.mT,)


def choose_objective(problem: Problem, loss: Loss, symmetric: bool) -> Objective:
    """The objective of a run or a batch, by its key `symmetric`."""
    return TiedObjective(problem, loss) if symmetric else Objective(problem, loss)


def tie(optimizer: Optimizer) -> Optimizer:
    """The method on U alone, as a method of (U, Uᵀ); for a `TiedObjective`."""

    def remember(factors: Factors, streams: Streams) -> Memory:
        return optimizer.init(factors[:1], streams)

    def step(
        objective: Objective, factors: Factors, memory: Memory, lr: Rate
    ) -> tuple[Factors, Memory]:
        (U,), memory = optimizer.step(objective, factors[:1], memory, lr)
        return (U, U.mT), memory

    return optimizer._replace(init=remember, step=step)


def tie_start(component: Component) -> Init:
    """The initialization of tied factors: the first factor of a drawn pair, and its transpose.

    `spectral` has the leading eigenpairs instead of singular triplets. Factors that are given have
    to be a matrix and its transpose.
    """
    made = component()

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        if component.function is init.spectral:
            first = dict(component.items)["scale"] * _find_spectral_factor(problem, widths[1])
        else:
            first, second = made(problem, widths, generator)
            if component.function not in DRAWN:
                refuse_parted((first, second), component.name)
        return first, first.mT

    return start


def refuse_parted(factors: Factors, name: str) -> None:
    """Raises `Refused` if factors that an initialization of a name gives are no transposes."""
    first, second = factors
    if not torch.equal(second, first.mT):
        different = "the second factor is not the transpose of the first"
        raise Refused(f"{START}{name}: {different}; allowed is F = Cᵀ")


def _find_spectral_factor(problem: Problem, k: int) -> Tensor:
    n = problem.shape[0]
    if k > n:
        raise Refused(f"rank={k} with init=spectral: must be between 1 and n = {n}")
    found = leading_eigenpairs(problem.observation, k)
    if not found.values[0] > 0:
        none = "no eigenvalue of D is positive, so that U would be 0, where the gradient is 0"
        raise Refused(f"{START}spectral: {none}; allowed is another start")
    return found.find_factor(k)


def find_goals(problems: Sequence[Problem], k: int) -> Tensor | None:
    """The U* (B, n, k) of each run with U* U*ᵀ nearest to the truth, or to a complete D if there is
    no truth; None if one is unknown."""
    goals = []
    for problem in problems:
        if problem.truth is None and not problem.complete:
            return None
        known: Any = problem.truth or problem.observation
        goals.append(eigenpairs(known).find_factor(k))
    return torch.stack(goals)


def refuse_untied(point: Point, problem: Problem) -> None:
    """Refuses what tied factors cannot have.

    Raises:
        Refused: another depth than 2, a ratio of two scales or rates, a method that moves a factor
            while the other is fixed, a start that says nothing, or a D that is not symmetric.
    """
    if not point.symmetric:
        return
    if point.depth != 2:
        raise Refused(f"symmetric=true at depth={point.depth}: allowed is depth=2")
    if not point.equal_shares:
        one = "U and Uᵀ have one rate; allowed is lr_ratio=1"
        raise Refused(f"symmetric=true with lr_ratio={point.lr_ratio}: {one}")
    ratio = dict(point.init.items).get("ratio", 1.0)
    if ratio != 1:
        one = "U and Uᵀ have one scale; allowed is init.ratio=1"
        raise Refused(f"symmetric=true with init.ratio={ratio:g}: {one}")
    if point.init.function is init.balanced:
        raise Refused(f"{START}balanced: (U, Uᵀ) is balanced in any case; allowed is init=normal")
    if not point.optimizer().simultaneous:
        turns = "moves one factor while the other is fixed"
        if dict(point.optimizer.items).get("alternating"):
            turns = f"with optimizer.alternating=true {turns}"
        raise Refused(
            f"symmetric=true with optimizer={point.optimizer.name}: the method {turns}; "
            "allowed is a method that moves both at once"
        )
    _refuse_asymmetric(point, problem)


def _refuse_asymmetric(point: Point, problem: Problem) -> None:
    where, (n, m) = f"symmetric=true with problem={point.problem.name}", problem.shape
    if n != m:
        raise Refused(f"{where}: D is {n}×{m}; allowed is a square D")
    if not is_symmetric(problem.observation if problem.truth is None else problem.truth):
        key = "problem.symmetric" in point.params()
        hint = "problem.symmetric=true" if key else "a matrix such as (D + Dᵀ)/2"
        raise Refused(f"{where}: D is not symmetric, even without its noise; allowed is {hint}")
