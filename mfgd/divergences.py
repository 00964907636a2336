"""Divergences of a target from a prediction, elementwise: value and derivative.

A divergence is infinite, and its derivative NaN, where the prediction is outside of its domain: a
descent that steps outside does not come back unseen.

No function here calls torch.pow or softplus, which round the last few entries of an array otherwise
than the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Number = float | Tensor
"""A number, or a column (*, 1, 1)."""
Elementwise = Callable[[Tensor, Tensor], Tensor]
"""(prediction, target) → a number each."""

NEAR = 0.3
"""x − log(1 + x) loses digits below."""
TERMS = range(25, 1, -2)
"""Of the series there: enough for double precision."""


def subtract_log(x: Tensor, logarithm: Tensor) -> Tensor:
    """x − log(1 + x) ≥ 0, with all digits near x = 0.

    There it is x y − 2 y³ (1/3 + y²/5 + y⁴/7 + …), y = x/(2 + x), since log(1 + x) = 2 artanh y.

    Args:
        x: above −1.
        logarithm: log(1 + x).
    """
    near = x.abs() < NEAR
    inner = torch.where(near, x, 0)
    y = inner / (2 + inner)
    series = torch.zeros_like(y)
    for power in TERMS:
        series = series * y * y + 1 / power
    return torch.where(near, inner * y - 2 * y * y * y * series, x - logarithm)


def power(base: Tensor, exponent: Number) -> Tensor:
    """base^exponent of positive numbers."""
    return torch.exp(exponent * torch.log(base))


def kullback_leibler(p: Tensor, t: Tensor) -> Tensor:
    """t log(t/p) − t + p, as `scipy.special.kl_div` of (t, p)."""
    positive = t > 0
    s = torch.where(positive, t, 1)
    q = torch.where(p > 0, p, s)
    value = torch.where(positive, s * subtract_log((q - s) / s, torch.log(q / s)), p)
    return torch.where((p > 0) | ((p == 0) & ~positive), value, torch.inf)


def kullback_leibler_slope(p: Tensor, t: Tensor) -> Tensor:
    """1 − t/p."""
    slope = torch.where(t == 0, 1, (p - t) / p)
    return torch.where(p < 0, torch.nan, slope)


def itakura_saito(p: Tensor, t: Tensor) -> Tensor:
    """t/p − log(t/p) − 1."""
    inside = (p > 0) & (t > 0)
    q, s = torch.where(inside, p, 1), torch.where(inside, t, 1)
    return torch.where(inside, subtract_log((s - q) / q, torch.log(s / q)), torch.inf)


def itakura_saito_slope(p: Tensor, t: Tensor) -> Tensor:
    """(p − t)/p²."""
    return torch.where(p < 0, torch.nan, (p - t) / p / p)


def half_square(p: Tensor, t: Tensor) -> Tensor:
    """(p − t)²/2."""
    return (p - t).square() / 2


def beta_divergence(beta: Number) -> Elementwise:
    """The divergence d_β(t | p) = (t^β + (β − 1) p^β − β t p^{β−1}) / (β (β − 1)) and its limits.

    The limit at β = 1 is `kullback_leibler`, at β = 0 `itakura_saito`; at β = 2 it is
    `half_square`, of any numbers.

    Args:
        beta: β, a number or a column (*, 1, 1).
    """

    def general(p: Tensor, t: Tensor) -> Tensor:
        b = beta
        if isinstance(b, Tensor):  # at a limit another β stands in, whose value is not used
            b = torch.where((b == 0) | (b == 1) | (b == 2), 3, b).to(p.dtype)
        inside = (p > 0) | ((p == 0) & (((t == 0) & (b > 0)) | (b > 1)))
        q = torch.where(inside, p, 1)
        crossed = torch.where(t == 0, 0, t * power(q, b - 1))
        value = (power(t, b) + (b - 1) * power(q, b) - b * crossed) / (b * (b - 1))
        return torch.where(inside, value.clamp(min=0), torch.inf)

    limits = {0.0: itakura_saito, 1.0: kullback_leibler, 2.0: half_square}
    return _take_limits(beta, limits, general)


def beta_divergence_slope(beta: Number) -> Elementwise:
    """p^{β−2} (p − t), the derivative of `beta_divergence`."""

    def general(p: Tensor, t: Tensor) -> Tensor:
        slope = torch.where(t == 0, power(p, beta - 1), power(p, beta - 2) * (p - t))
        return torch.where(p < 0, torch.nan, slope)

    limits: dict[float, Elementwise] = {
        0.0: itakura_saito_slope,
        1.0: kullback_leibler_slope,
        2.0: torch.sub,
    }
    return _take_limits(beta, limits, general)


def _take_limits(
    beta: Number, limits: Mapping[float, Elementwise], general: Elementwise
) -> Elementwise:
    """The function of each run: a limit at its β, else the general one."""
    betas = torch.as_tensor(beta)
    chosen = [(function, betas == at) for at, function in limits.items() if (betas == at).any()]
    first = general
    if all(float(each) in limits for each in betas.flatten()):
        first, _ = chosen.pop(0)

    def evaluate(p: Tensor, t: Tensor) -> Tensor:
        found = first(p, t)
        for function, here in chosen:
            found = torch.where(here, function(p, t), found)
        return found

    return evaluate
