"""The learning rates of a run: their unit, and how the factors share them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from mfgd import lanczos, theory
from mfgd.method import Rate
from mfgd.point import Point
from mfgd.schedule import Rates
from mfgd.target import Problem
from mfgd.tied import choose_objective
from mfgd.types import Factors, Refused


def unit_of_rate(point: Point, problem: Problem, start: Factors) -> float:
    """The number that multiplies the given learning rate, for its ``lr_unit``.

    Raises:
        Refused: the unit is not a positive number for this loss.
    """
    if point.lr_unit == "absolute":
        return 1.0
    if point.lr_unit == "sigma1":
        unit = theory.rate_unit(problem, point.loss(), point.depth, point.mean_share)
    else:
        objective = choose_objective(problem, point.loss(), point.symmetric)
        shares = None if point.equal_shares else point.shares
        unit = 2 / float(lanczos.sharpness(objective, start, shares=shares))
    if not 0 < unit < math.inf:
        setting = f"lr_unit={point.lr_unit} with loss={point.loss.name}"
        raise Refused(f"{setting}: there is no such rate; allowed is lr_unit=absolute")
    return unit


def share_rates(rates: Rates, shares: Sequence[Tensor]) -> Rates:
    """The rates of all factors.

    Args:
        rates: those of the first factor.
        shares: of each factor, (*, 1, 1): its rate over that of the first factor.
    """

    def share(step: int) -> tuple[Rate, ...]:
        rate: Rate = rates(step)
        return tuple(rate * each for each in shares)

    return share


def refuse_shares(point: Point) -> None:
    """Refuses rates of their own for the factors if the method has no such rates.

    Raises:
        Refused: the method takes one rate, or none.
    """
    if not point.equal_shares and not point.optimizer().by_factor:
        given = f"lr_ratio={point.lr_ratio} with optimizer={point.optimizer.name}"
        raise Refused(f"{given}: this method has no rate for each factor; allowed is lr_ratio=1")
