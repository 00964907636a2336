"""What an optimizer is: one step of a method, and how steps are built."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfgd.objective import Objective
from mfgd.streams import Streams
from mfgd.types import Factors

Memory = Any
"""What a method carries from step to step; each method has its own type."""
Rate = float | Tensor
"""A learning rate: a number, or a column (*, 1, 1)."""
Shared = Rate | tuple[Rate, ...]
"""A rate for all factors, or one for each."""


class Method(Enum):
    """What theory knows of a method."""

    GRADIENT = "a plain gradient step"
    PRECONDITIONED = "a gradient step in the metric of the other factors, without damping"
    HEAVY_BALL = "a gradient step with momentum, V ← βV + G, W ← W − lr V"
    NESTEROV = "a gradient step with momentum, V ← βV + G, W ← W − lr (G + βV)"
    LEAST_SQUARES = "least squares for one factor after the other"
    OTHER = "none of these"


def _allow(objective: Objective, factors: Factors) -> None:
    """The check of a method that takes every problem."""


def _always_defined(memory: Memory) -> bool:
    """The `Optimizer.undefined` of a method that is defined at all factors."""
    return False


class Optimizer(NamedTuple):
    """How factors move."""

    init: Callable[[Factors, Streams], Memory]
    """(factors, random streams of the runs) → memory, which the method carries from step to
    step."""
    step: Callable[[Objective, Factors, Memory, Rate], tuple[Factors, Memory]]
    """(objective, factors, memory, lr) → the next factors and memory; nothing is changed in
    place."""
    check: Callable[[Objective, Factors], None] = _allow
    """(objective, start) → None; raises `Refused` if the method cannot be used."""
    method: Method = Method.OTHER
    """What the oracles and the announcement of unstable rates may assume."""
    simultaneous: bool = True
    """Whether every gradient is taken at the old factors."""
    undefined: Callable[[Memory], Tensor | bool] = _always_defined
    """memory → whether each run has come to factors at which the method is not defined, (*,). Such
    a run stays at the last factors at which it was defined."""
    beta: Rate = 0.0
    """β, the share of V that a method with momentum keeps at a step."""
    by_factor: bool = False
    """Whether ``lr`` may be a tuple with a rate for each factor."""
    gradient_only: bool = False
    """Whether all that a step asks of the objective are gradients, which may then be disturbed."""


def forget(factors: Factors, streams: Streams) -> None:
    """The memory of a method without memory."""


def step_by_factor(
    remember: Callable[[Tensor], Memory],
    direction: Callable[[Tensor, Memory], tuple[Tensor, Memory]],
    *,
    alternating: bool,
    method: Method = Method.OTHER,
    decay: Rate = 0.0,
) -> Optimizer:
    """W ← W − lr (H + decay W) for each factor W.

    Args:
        remember: W → the memory of this factor at the start.
        direction: (gradient, memory) → (H, memory) of one factor.
        alternating: whether each factor sees the steps of the factors before it.
        method: what theory knows of the method.
        decay: of weights, apart from the gradient: a number, or a column (*, 1, 1).
    """
    decays = bool((torch.as_tensor(decay) != 0).any())

    def shrink_and_descend(W: Tensor, H: Tensor, lr: Rate) -> Tensor:
        return descend(W, H + decay * W, lr)

    move = shrink_and_descend if decays else descend

    def step_all(
        objective: Objective, factors: Factors, memory: list[Memory], lr: Shared
    ) -> tuple[Factors, list[Memory]]:
        # Few lines: a few lines of Python take as long as a step of small matrices.
        found = list(map(direction, objective.gradient(factors), memory))
        rates = lr if isinstance(lr, tuple) else (lr,) * len(factors)
        moved = [move(W, H, rate) for W, (H, _), rate in zip(factors, found, rates, strict=True)]
        return tuple(moved), [kept for _, kept in found]

    def step_in_turn(
        objective: Objective, factors: Factors, memory: list[Memory], lr: Shared
    ) -> tuple[Factors, list[Memory]]:
        moved, memory = list(factors), list(memory)
        for level in range(len(moved)):
            (G,) = objective.gradient(tuple(moved), level)
            H, memory[level] = direction(G, memory[level])
            moved[level] = move(moved[level], H, rate_of(lr, level))
        return tuple(moved), memory

    def init(factors: Factors, streams: Streams) -> list[Memory]:
        return [remember(W) for W in factors]

    return Optimizer(
        init,
        step_in_turn if alternating else step_all,
        method=method,
        simultaneous=not alternating,
        by_factor=True,
        gradient_only=True,
    )


def step_by_all_factors(
    directions: Callable[
        [Objective, Factors, Sequence[int], Factors], tuple[Sequence[Tensor], Tensor | bool]
    ],
    *,
    alternating: bool,
    method: Method = Method.OTHER,
    gradient_only: bool = False,
) -> Optimizer:
    """W ← W − lr H, if H follows from the gradients and all factors; W stays once H is not defined.

    The memory is whether a direction of each run was not defined, (*,).

    Args:
        directions: (objective, factors, levels, gradients) → H of the factors at these levels, and
            whether H is not defined, (*,).
        alternating: whether each factor sees the steps of the factors before it.
        method: what theory knows of the method.
        gradient_only: whether the directions ask nothing of the objective.
    """

    def init(factors: Factors, streams: Streams) -> Tensor:
        return torch.zeros(factors[0].shape[:-2], dtype=torch.bool, device=factors[0].device)

    def step(
        objective: Objective, factors: Factors, memory: Tensor, lr: Shared
    ) -> tuple[Factors, Tensor]:
        moved, undefined = list(factors), memory
        for levels, gradients in _take_turns(objective, moved, alternating):
            found, singular = directions(objective, tuple(moved), levels, gradients)
            undefined = undefined | singular
            for level, H in zip(levels, found, strict=True):
                moved[level] = descend(moved[level], H, rate_of(lr, level))
        return choose_runs(undefined, factors, tuple(moved)), undefined

    return Optimizer(
        init,
        step,
        method=method,
        simultaneous=not alternating,
        undefined=lambda memory: memory,
        by_factor=True,
        gradient_only=gradient_only,
    )


def choose_runs(chosen: Tensor, first: Factors, second: Factors) -> Factors:
    """The first factors of each chosen run (*,), the second factors of each other run."""
    column = chosen[..., None, None]
    return tuple(torch.where(column, A, B) for A, B in zip(first, second, strict=True))


def _take_turns(
    objective: Objective, factors: list[Tensor], alternating: bool
) -> Iterator[tuple[Sequence[int], Factors]]:
    """The levels that move together, with the gradients at the current factors."""
    if not alternating:
        yield range(len(factors)), objective.gradient(tuple(factors))
        return
    for level in range(len(factors)):
        yield (level,), objective.gradient(tuple(factors), level)


def rate_of(lr: Shared, level: int) -> Rate:
    """The rate of the factor at a level, from 0 on."""
    return lr[level] if isinstance(lr, tuple) else lr


def descend_all(factors: Factors, directions: Iterable[Tensor], lr: Rate) -> Factors:
    """W − lr H for each factor W."""
    return tuple(descend(W, H, lr) for W, H in zip(factors, directions, strict=True))


def descend(W: Tensor, H: Tensor, lr: Rate) -> Tensor:
    """W − lr H."""
    if isinstance(lr, Tensor):
        return torch.addcmul(W, H, lr, value=-1)
    return torch.sub(W, H, alpha=lr)
