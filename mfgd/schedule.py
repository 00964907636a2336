"""How the learning rate changes from step to step.

Each function here is an option of ``schedule=``; its keyword arguments are the keys of that option.
It returns a function that multiplies ``lr``, (number of steps done, budget) → factor, or None if
the rate does not change.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from annotated_types import Gt, Le
from torch import Tensor

Rates = Callable[[int], Any]
"""Number of steps done → the learning rate of the next step, or a tuple of one for each factor."""
Schedule = Callable[[int, int], float | Tensor] | None
"""(number of steps done, budget) → what multiplies the rate."""


def first_rates(lr: float | Tensor | Sequence[float | Tensor]) -> Rates:
    """The rates of the first steps, of which the last rate holds from there on; or one rate that
    holds."""
    if not isinstance(lr, Sequence):
        return lambda step: lr
    return lambda step: lr[min(step, len(lr) - 1)]


def multiply_rates(rates: Rates, schedule: Schedule, budget: int) -> Rates:
    """The rates times a schedule."""
    if schedule is None:
        return rates
    return lambda step: rates(step) * schedule(step, budget)


def constant() -> Schedule:
    """The rate does not change: the factor is 1 after any number of steps."""
    return None


def geometric(*, decay: Annotated[float, Gt(0), Le(1)]) -> Schedule:
    """decayᵗ after t steps.

    Source: Goffin 1977, On convergence rates of subgradient optimization methods.

    Args:
        decay: what each step multiplies the rate by.
    """
    return lambda step, budget: decay**step


def cosine() -> Schedule:
    """(1 + cos(π t/T))/2 after t of T steps, from 1 to 0.

    Source: Loshchilov, Hutter 2017, SGDR: stochastic gradient descent with warm restarts, eq. 5,
    without restarts.
    """
    return lambda step, budget: (1 + math.cos(math.pi * step / budget)) / 2
