"""One step.

Each function here is an option of ``optimizer=``; its keyword arguments are that option's keys. It returns an
`Optimizer`, a pair of pure functions; the learning rate is the top-level ``lr``.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from mfgd.types import Factors


class Optimizer(NamedTuple):
    """How factors move, given their gradients."""

    init: Callable[[Factors], Any]
    """factors → memory, what the method carries from step to step."""
    step: Callable[[Factors, Factors, Any, float | Tensor], tuple[Factors, Any]]
    """factors, gradients at these factors, memory, lr → the next factors and memory; nothing is changed in place."""


def _descend(factors: Factors, directions: Factors, lr: float | Tensor) -> Factors:
    if isinstance(lr, Tensor):
        return tuple(torch.addcmul(W, G, lr, value=-1) for W, G in zip(factors, directions, strict=True))
    return tuple(torch.sub(W, G, alpha=lr) for W, G in zip(factors, directions, strict=True))


def gd() -> Optimizer:
    """Gradient descent: W ← W − lr G."""

    def step(factors: Factors, gradients: Factors, memory: None, lr: float | Tensor) -> tuple[Factors, None]:
        return _descend(factors, gradients, lr), None

    return Optimizer(lambda factors: None, step)


def momentum(*, beta: Annotated[float, Ge(0), Lt(1)]) -> Optimizer:
    """Heavy ball: V ← beta V + G, W ← W − lr V (Polyak 1964, Some methods of speeding up the convergence, eq. 9)."""

    def step(factors: Factors, gradients: Factors, memory: Factors, lr: float | Tensor) -> tuple[Factors, Factors]:
        memory = tuple(beta * V + G for V, G in zip(memory, gradients, strict=True))
        return _descend(factors, memory, lr), memory

    return Optimizer(lambda factors: tuple(torch.zeros_like(W) for W in factors), step)
