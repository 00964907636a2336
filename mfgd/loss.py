"""How far an entry is from its target, elementwise.

Each function here is an option of ``loss=``; its keyword arguments are that option's keys and it returns a `Loss`.
Three keys are common to all: the objective is ``scale`` times the sum (``reduction=sum``) or the mean over the observed
entries (``reduction=mean``) of ρ, plus ``penalty``/2 times the squared Frobenius norms of the factors. So the ½ of the
literature is ``scale=0.5``, and the founding notebook's plain sum of squares ``scale=1``.

Keys:
    scale: multiplies ρ.
    reduction: sum of ρ over the observed entries, or their mean.
    penalty: λ of λ/2 Σ ‖W_l‖², beside the reduction and not scaled.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mfgd.types import NonNegative, Positive

Reduction = Literal["sum", "mean"]


class Loss(NamedTuple):
    """A loss of the residual; `derivative` may be left out, then autograd supplies it."""

    value: Callable[[Tensor], Tensor]
    """ρ, elementwise: ρ ≥ 0 and ρ(0) = 0."""
    derivative: Callable[[Tensor], Tensor] | None = None
    """ρ′, elementwise."""
    curvature: float | None = None
    """ρ″ where it is the same everywhere: the loss is then quadratic and its optimum known."""
    scale: Positive = 1.0
    reduction: Reduction = "sum"
    penalty: NonNegative = 0.0

    def slope(self, residual: Tensor) -> Tensor:
        """ρ′ of the residual, elementwise, in closed form where the loss gives one and by autograd where not."""
        if self.derivative is not None:
            return self.derivative(residual)
        # The transform, not Tensor.backward: it differentiates once more, which sharpness needs.
        return torch.func.grad(lambda r: self.value(r).sum())(residual)


def squared(*, scale: Positive, reduction: Reduction, penalty: NonNegative) -> Loss:
    """ρ(r) = r².

    Source: Eckart, Young 1936, The approximation of one matrix by another of lower rank.
    """
    return Loss(torch.square, lambda r: 2 * r, 2.0, scale, reduction, penalty)


def absolute(*, scale: Positive, reduction: Reduction, penalty: NonNegative) -> Loss:
    """ρ(r) = |r|, with the subgradient 0 at 0.

    Source: Ke, Kanade 2005, Robust L1 norm factorization in the presence of outliers and missing data by alternative
    convex programming.
    """
    return Loss(torch.abs, torch.sign, None, scale, reduction, penalty)


def huber(*, delta: Positive, scale: Positive, reduction: Reduction, penalty: NonNegative) -> Loss:
    """ρ(r) = r²/2 where |r| ≤ delta, else delta (|r| − delta/2).

    Source: Huber 1964, Robust estimation of a location parameter, section 3.

    Args:
        delta: where the parabola turns into a line, in units of D.
    """

    def value(r: Tensor) -> Tensor:
        inner = r.abs().clamp(max=delta)
        return inner * (r.abs() - inner / 2)

    return Loss(value, lambda r: r.clamp(-delta, delta), None, scale, reduction, penalty)


def logcosh(*, scale: Positive, reduction: Reduction, penalty: NonNegative) -> Loss:
    """ρ(r) = log cosh r.

    Evaluated as log(1 + 2 sinh²(r/2)) for |r| < 1, which keeps its digits near 0, and beyond as
    |r| + log(1 + e^{−2|r|}) − log 2, which does not overflow.

    Source: Green 1990, Bayesian reconstructions from emission tomography data using a modified EM algorithm.
    """

    def value(r: Tensor) -> Tensor:
        grown = torch.expm1(r.abs().clamp(max=1))
        near = torch.log1p(grown.square() / (2 + 2 * grown))
        far = r.abs() + torch.log1p(torch.exp(-2 * r.abs())) - math.log(2)
        return torch.where(r.abs() < 1, near, far)

    return Loss(value, torch.tanh, None, scale, reduction, penalty)
