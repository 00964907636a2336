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

from mfgd import divergences
from mfgd.types import Fraction, NonNegative, Positive, Refused


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


def _take_all(targets: Tensor) -> None:
    """The check of a loss of any targets."""


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
    check: Callable[[Tensor], None] = _take_all
    """(observed targets, flat) → None; raises `Refused` if ρ is not for such data."""
    domain: str = ""
    """In words, the predictions at which ρ is finite; empty: all."""
    zero_at_target: bool = True
    """Whether ρ is 0 where the prediction is the target."""
    beta: float | Tensor | None = None
    """β, if ρ is the β-divergence."""

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


def logistic(**reduction: Unpack[ReductionKeys]) -> Loss:
    """ρ(p, t) = log(1 + e^{−t p}) of a target t = ±1 and a prediction p, the logarithm of the odds
    of t = 1.

    It is the negative log-likelihood of P(t = 1) = 1/(1 + e^{−p}), as problem.response=one_bit
    draws it: 1-bit matrix completion. ρ falls to 0 only as t p goes to infinity.

    Source: Davenport, Plan, van den Berg, Wootters 2014, 1-bit matrix completion, eqs. 2 and 4.
    """

    def value(p: Tensor, t: Tensor) -> Tensor:
        z = t * p
        return torch.relu(-z) + torch.log1p(torch.exp(-z.abs()))

    def slope(p: Tensor, t: Tensor) -> Tensor:
        return -t / (1 + torch.exp(t * p))

    def check(t: Tensor) -> None:
        _refuse_targets("logistic", t, t.abs() == 1, "1 and -1")

    made = Loss(value, slope, **reduction)
    return made._replace(check=check, zero_at_target=False)


def poisson(**reduction: Unpack[ReductionKeys]) -> Loss:
    """ρ(p, t) = e^p − t p + t log t − t of a count t ≥ 0 and a prediction p, the logarithm of the
    rate: any number.

    It is the negative log-likelihood of a Poisson count of mean e^p, less its least value, as
    problem.response=poisson draws it. For a prediction that is the rate itself the same loss is
    kullback_leibler.

    Source: Collins, Dasgupta, Schapire 2001, A generalization of principal component analysis to
    the exponential family, section 3.
    """

    def value(p: Tensor, t: Tensor) -> Tensor:
        s = torch.where(t > 0, t, 1)
        u = p - torch.log(s)
        return torch.where(t > 0, s * divergences.subtract_log(torch.expm1(u), u), torch.exp(p))

    def check(t: Tensor) -> None:
        _refuse_targets("poisson", t, t >= 0, "numbers from 0 on")

    made = Loss(value, lambda p, t: torch.exp(p) - t, **reduction)
    return made._replace(check=check, zero_at_target=False)


def kullback_leibler(**reduction: Unpack[ReductionKeys]) -> Loss:
    """ρ(p, t) = t log(t/p) − t + p of a target t ≥ 0 and a prediction p > 0, or p = 0 if t = 0.

    It is the negative log-likelihood of a Poisson count t of mean p, less its least value, and the
    β-divergence with β = 1.

    Source: Lee, Seung 2001, Algorithms for non-negative matrix factorization, eq. 3.
    """
    made = Loss(divergences.kullback_leibler, divergences.kullback_leibler_slope, **reduction)
    return _confine(made, "kullback_leibler", 1.0)


def beta(*, beta: float, **reduction: Unpack[ReductionKeys]) -> Loss:
    """ρ(p, t) = (t^β + (β − 1) p^β − β t p^{β−1}) / (β (β − 1)), the β-divergence of a target t
    from a prediction p.

    β = 2 is half the square (p − t)²/2, of any numbers; β = 1 is kullback_leibler; β = 0 is the
    divergence of Itakura and Saito t/p − log(t/p) − 1. Predictions are positive, or 0 if t = 0 <
    β; targets are at least 0, for β ≤ 0 above 0. For other β than 0, 1 and 2 ρ is known up to
    rounding errors of t^β/β(β − 1).

    Source: Févotte, Idier 2011, Algorithms for nonnegative matrix factorization with the
    β-divergence, eq. 2.

    Args:
        beta: β.
    """
    made = Loss(
        divergences.beta_divergence(beta), divergences.beta_divergence_slope(beta), **reduction
    )
    return _confine(made, "beta", beta)


def _confine(made: Loss, name: str, beta: float) -> Loss:
    """The loss, a β-divergence, with the check of its targets and its domain."""

    def check(t: Tensor) -> None:
        if beta <= 0:
            _refuse_targets(name, t, t > 0, f"positive numbers for β={beta:g}")
        elif beta != 2:
            _refuse_targets(name, t, t >= 0, f"numbers from 0 on for β={beta:g}")

    return made._replace(check=check, domain="positive where D is observed", beta=beta)


def _refuse_targets(name: str, targets: Tensor, fits: Tensor, allowed: str) -> None:
    """Refuses targets of which some do not fit the loss."""
    if not fits.all():
        wrong = float(targets[~fits][0])
        raise Refused(f"loss={name}: D has the entry {wrong:g}; allowed are {allowed}")
