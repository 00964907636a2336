"""How far a prediction is from its target, elementwise.

Each function here is an option of ``loss=``; its keyword arguments are the keys of that option, and
it returns a `Loss`. The objective is ``scale`` times the sum (``reduction=sum``) or the mean
(``reduction=mean``) of ρ over the observed entries, plus ``penalty``/2 times the squared Frobenius
norms of the factors. The ½ of the literature is ``scale=0.5``; the plain sum of squares of the
founding notebook is ``scale=1``.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor

from mfgd.types import Fraction, NonNegative, Positive


class ReductionKeys(TypedDict):
    """How the losses of the entries become one number.

    Keys:
        scale: multiplies ρ.
        reduction: sum of ρ over the observed entries, or the mean of ρ.
        penalty: λ of λ/2 Σ ‖W_l‖², beside the reduction and not scaled.
    """

    scale: Positive
    reduction: Literal["sum", "mean"]
    penalty: NonNegative


class Loss(NamedTuple):
    """A loss ρ(prediction, target). Autograd supplies the derivative if `derivative` is left
    out."""

    value: Callable[[Tensor, Tensor], Tensor]
    """(prediction, target) → ρ, elementwise, at least 0."""
    derivative: Callable[[Tensor, Tensor], Tensor] | None = None
    """(prediction, target) → ∂ρ/∂prediction, elementwise."""
    rho: Callable[[Tensor], Tensor] | None = None
    """ρ as a function of the residual, if ρ depends on prediction − target alone: `residual_loss`
    sets this field."""
    slope: Callable[[Tensor], Tensor] | None = None
    """ρ′ as a function of the residual, of the same losses."""
    curvature: float | None = None
    """ρ″, if ρ″ is the same everywhere: the loss is then quadratic, and its optimum is known."""
    scale: Positive = 1.0
    reduction: Literal["sum", "mean"] = "sum"
    penalty: NonNegative = 0.0

    def weigh(self, count: Tensor | int) -> Any:
        """w, the weight of ρ in the objective, a number or a column (*, 1, 1).

        Args:
            count: number of observed entries.
        """
        return self.scale / count if self.reduction == "mean" else self.scale

    def differentiate(self, prediction: Tensor, target: Tensor) -> Tensor:
        """∂ρ/∂prediction, elementwise, by the closed form or by autograd."""
        if self.derivative is not None:
            return self.derivative(prediction, target)
        return _differentiate(lambda P: self.value(P, target), prediction)


def residual_loss(
    rho: Callable[[Tensor], Tensor],
    slope: Callable[[Tensor], Tensor] | None = None,
    curvature: float | None = None,
    **reduction: Unpack[ReductionKeys],
) -> Loss:
    """A loss of the residual r = prediction − target.

    Args:
        rho: r → ρ, elementwise, at least 0.
        slope: r → ρ′, elementwise; None: by autograd.
        curvature: ρ″, if it is the same everywhere.
        reduction: scale, reduction and penalty of the objective.
    """

    def differentiate(r: Tensor) -> Tensor:
        return _differentiate(rho, r) if slope is None else slope(r)

    return Loss(
        lambda prediction, target: rho(prediction - target),
        lambda prediction, target: differentiate(prediction - target),
        rho,
        differentiate,
        curvature,
        **reduction,
    )


def _differentiate(function: Callable[[Tensor], Tensor], X: Tensor) -> Tensor:
    """The derivative of an elementwise function by autograd."""
    # The transform, not Tensor.backward: the transform can be differentiated again, which sharpness
    # needs.
    derivative: Tensor = torch.func.grad(lambda x: function(x).sum())(X)
    return derivative


def squared(**reduction: Unpack[ReductionKeys]) -> Loss:
    """ρ(r) = r².

    Source: Eckart, Young 1936, The approximation of one matrix by another of lower rank.
    """
    return residual_loss(torch.square, lambda r: 2 * r, 2.0, **reduction)


def absolute(**reduction: Unpack[ReductionKeys]) -> Loss:
    """ρ(r) = |r|, with the subgradient 0 at 0.

    Source: Ke, Kanade 2005, Robust L1 norm factorization in the presence of outliers and missing
    data by alternative convex programming.
    """
    return residual_loss(torch.abs, torch.sign, **reduction)


def quantile(*, share: Fraction, **reduction: Unpack[ReductionKeys]) -> Loss:
    """ρ(r) = (1 − share) r if r ≥ 0, else −share r, with the subgradient 0 at 0.

    The prediction of least loss is a quantile of the targets: share of them are below it.

    Source: Koenker, Bassett 1978, Regression quantiles, eq. 3.1.

    Args:
        share: of the targets that are below the prediction.
    """

    def rho(r: Tensor) -> Tensor:
        return (1 - share) * torch.relu(r) + share * torch.relu(-r)

    def slope(r: Tensor) -> Tensor:
        return r.sign() / 2 + (0.5 - share) * (r != 0).to(r.dtype)

    return residual_loss(rho, slope, **reduction)


def huber(*, delta: Positive, **reduction: Unpack[ReductionKeys]) -> Loss:
    """ρ(r) = r²/2 if |r| ≤ delta, else delta (|r| − delta/2).

    Source: Huber 1964, Robust estimation of a location parameter, section 3.

    Args:
        delta: the residual at which the parabola turns into a line, in units of D.
    """

    def rho(r: Tensor) -> Tensor:
        inner = r.abs().clamp(max=delta)
        return inner * (r.abs() - inner / 2)

    return residual_loss(rho, lambda r: r.clamp(-delta, delta), **reduction)


def logcosh(**reduction: Unpack[ReductionKeys]) -> Loss:
    """ρ(r) = log cosh r.

    For |r| < 1 the code evaluates log(1 + 2 sinh²(r/2)), which keeps its digits near 0; beyond, it
    evaluates
    |r| + log(1 + e^{−2|r|}) − log 2, which does not overflow.

    Source: Green 1990, Bayesian reconstructions from emission tomography data using a modified EM
    algorithm.
    """

    def rho(r: Tensor) -> Tensor:
        grown = torch.expm1(r.abs().clamp(max=1))
        near = torch.log1p(grown.square() / (2 + 2 * grown))
        far = r.abs() + torch.log1p(torch.exp(-2 * r.abs())) - math.log(2)
        return torch.where(r.abs() < 1, near, far)

    return residual_loss(rho, torch.tanh, **reduction)
