"""What a number can be: the range of a matrix D in which losses and errors can be computed, the
domain of a loss, and the least loss that is no fault of arithmetic."""

from __future__ import annotations

import math

import torch

from mfgd.dense import AllEntries
from mfgd.kernel import product
from mfgd.loss import Loss
from mfgd.target import Problem
from mfgd.types import Factors, Refused

DIGITS = 100
"""The norm of a residual is known up to this many rounding errors of the norm of D."""


def refuse_out_of_range(problem: Problem, loss: Loss, name: str, dtype: torch.dtype) -> None:
    """Refuses a D whose losses and errors cannot be computed.

    Args:
        problem: of one run, in double precision.
        loss: with plain numbers.
        name: the option of the problem.
        dtype: the precision of the run.

    Raises:
        Refused: D or its truth is 0 everywhere, an entry of D is not finite, or squares of D, down
            to those of its rounding errors, are beyond the range of double precision, or D itself
            beyond that of the run.
    """
    where, largest, norm = f"problem={name}", problem.largest, problem.norm
    if not math.isfinite(largest):
        raise Refused(f"{where}: D has entries that are not finite; allowed are finite numbers")
    if largest == 0:
        what = f"the {int(problem.count)} observed entries of D are all 0"
        raise Refused(f"{where}: {what}, so that a relative error is not defined")
    if isinstance(problem.truth, AllEntries) and not problem.truth.target.any():
        raise Refused(f"{where}: the truth is 0, so that a relative error is not defined")
    low, high = _range(torch.float64)
    if not low < norm * norm < high:
        raise Refused(
            f"{where}: the sum of squares of D, with entries up to {largest:.3g}, is beyond "
            f"{low:.0e} … {high:.0e}, where its digits can be kept; rescale D"
        )
    if not low < norm * norm * loss.weigh(int(problem.count)) < high:
        raise Refused(
            f"loss.scale={loss.scale:g}: times the sum of squares of D it is beyond "
            f"{low:.0e} … {high:.0e}, where its digits can be kept; rescale D, or the loss"
        )
    low, high = _range(dtype)
    if not low < largest < high:
        raise Refused(
            f"dtype=float32 with {where}: the largest entry of D, {largest:.3g}, is beyond "
            f"{low:.0e} … {high:.0e}, where its digits can be kept; use dtype=float64"
        )


def refuse_outside_domain(problem: Problem, loss: Loss, name: str, start: Factors) -> None:
    """Refuses data that the loss is not for, and a start outside of its domain.

    Args:
        problem: of one run, in double precision.
        loss: with plain numbers.
        name: the option of the loss.
        start: W₁ (n, k) … W_L (k, m).

    Raises:
        Refused: by the check of the loss, or a loss or slope at the start that is not finite.
    """
    seen = problem.observation
    observed = seen.restrict(torch.ones_like(seen.target)) != 0
    loss.check(seen.target[observed])
    if not loss.domain:
        return
    prediction = seen.apply(product(start[:-1]), start[-1])
    found = loss.value(prediction, seen.target), loss.differentiate(prediction, seen.target)
    if not all(torch.isfinite(seen.restrict(X)).all() for X in found):
        least = float(prediction.view_as(observed)[observed].min())
        raise Refused(
            f"loss={name}: the product of the start has an entry {least:g}; allowed is a product "
            f"that is {loss.domain}, for example by init=uniform"
        )


def _range(dtype: torch.dtype) -> tuple[float, float]:
    """Between which numbers x also ε x and x/ε are normal numbers; of squares ε is squared."""
    numbers = torch.finfo(dtype)
    share = numbers.eps**2 if dtype == torch.float64 else numbers.eps
    return numbers.tiny / share, numbers.max * share


def least_possible_loss(problem: Problem, loss: Loss, optimum: float, dtype: torch.dtype) -> float:
    """The least number that rounding can make of the loss at the optimum; NaN if that is unknown.

    √f is the norm of the residual up to a factor, and wrong by at most `DIGITS` rounding errors of
    that of the zero matrix. A loss below is a fault of arithmetic, and is never near the optimum.
    """
    if not optimum > 0 or loss.curvature is None:
        return optimum
    of_zero = loss.curvature / 2 * loss.weigh(int(problem.count)) * problem.norm**2
    root = math.sqrt(optimum) - DIGITS * torch.finfo(dtype).eps * math.sqrt(of_zero)
    return max(root, 0.0) ** 2
