"""How the learning rate changes from step to step.

Each function here is an option of ``schedule=``; its keyword arguments are that option's keys. It returns what
multiplies ``lr``, as a function of the number of steps done and of the budget, or None where the rate holds.
"""

import math
from collections.abc import Callable
from typing import Annotated

from annotated_types import Gt, Le
from torch import Tensor

Schedule = Callable[[int, int], float | Tensor] | None


def constant() -> Schedule:
    """The rate holds: 1 after any number of steps."""
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

    Source: Loshchilov, Hutter 2017, SGDR: stochastic gradient descent with warm restarts, eq. 5, without restarts.
    """
    return lambda step, budget: (1 + math.cos(math.pi * step / budget)) / 2
