"""What theory says a measurement should be.

Each oracle looks at a run that has ended. If theory knows the answer, the oracle returns an
`Answer`; if not, it returns None. A new oracle is a function and a line in `ORACLES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mfgd.mode_oracles import aligned_modes, period_two
from mfgd.noise_oracles import noise_floor, spiked_angles, spiked_values
from mfgd.penalty_oracles import deep_penalty, soft_threshold
from mfgd.rate_oracles import alternating_rate, local_rate, momentum_rate
from mfgd.record import Row
from mfgd.scalar_oracles import critical_step
from mfgd.spectra import Triplets
from mfgd.types import Factors
from mfgd.verdict import CLOSE, Answer, Setting

Oracle = Callable[[Setting, Row], Answer | None]


def eckart_young(setting: Setting, row: Row) -> Answer | None:
    """The loss ends at the loss of the best rank-k approximation, f* = w Σ_{i>k} σ_i², and is never
    below f*.

    Holds for the squared loss of a complete matrix without penalty, at any depth: there is no bad
    local minimum (Eckart, Young 1936, The approximation of one matrix by another of lower rank;
    Baldi, Hornik 1989, Neural networks and principal component analysis). Of tied factors f* is
    that of `mfgd.theory.optimum`. The deviation is f/f* − 1, or the relative error if f* is 0. It
    separates the runs that reached the answer within their budget from the other runs.
    """
    if not setting.is_quadratic:
        return None
    return Answer(setting.excess(row), setting.closeness(row), {"loss": setting.optimum})


def saxe(setting: Setting, row: Row) -> Answer | None:
    """Each mode follows a(t) = s / (1 + (s/a₀ − 1) e^{−2cst}), t = lr · step, and is half learnt at
    ln(s/a₀ − 1)/2cs.

    This is gradient flow from a balanced start whose product has the target's singular vectors
    (Saxe, McClelland, Ganguli 2014, Exact solutions to the nonlinear dynamics of learning in deep
    linear neural networks, eqs. 5 and 6). Holds for the squared loss of a complete matrix without
    penalty at depth 2 and gradient descent at one rate of at most a tenth of the limit 1/cσ₁, if
    the modes of D are measured (diagnostics=dynamics, D without noise). Tied factors move at twice
    the rate. Steps of finite length leave the flow by about their length: c lr σ₁ is allowed. The
    deviation is the largest one over modes and records, in units of s.
    """
    names = [name for name in row.trajectory if name.startswith("mode.")]
    known = setting.is_quadratic and setting.is_gradient_descent and len(setting.start) == 2
    if not (known and names) or setting.problem.hides_truth:
        return None
    target = setting.problem.triplets
    assert target is not None
    starts = _learnt_at_start(setting.start, target)
    c, lr, largest = setting.curvature, setting.pair_rate, float(target.sigma[0])
    if starts is None or not 0 < c * lr * largest <= 0.1:
        return None
    t = lr * row.trajectory["step"]
    curves, values, deviation = {}, {}, 0.0
    for name, s, a in zip(names, target.sigma.tolist(), starts.tolist(), strict=False):
        if s <= 1e-12 * largest:
            continue
        curve = np.zeros_like(t)
        if a > 0:
            curve = s / (1 + (s / a - 1) * np.exp(-2 * c * s * t))
        curves[name] = curve
        # Not the built-in max, which would pass over NaN.
        deviation = float(np.maximum(deviation, np.abs(row.trajectory[name] - curve).max() / s))
        if 0 < a < s / 2:
            half = math.log(s / a - 1) / (2 * c * s * lr)
            values[name.replace("mode", "half_time")] = half
    return Answer(deviation, c * lr * largest, curves, values)


def _learnt_at_start(start: Factors, target: Triplets) -> Tensor | None:
    """a₀ of each mode, (r,); None if the start is not balanced or its product has other singular
    vectors than the target."""
    (C, F), (U, _, V) = start, target
    modes = (U.mT @ C @ F @ V).diagonal()
    rounding = 1e-9 * (torch.linalg.norm(C) * torch.linalg.norm(F))
    a = torch.where(modes.abs() > rounding, modes, 0)
    balanced = torch.linalg.norm(C.mT @ C - F @ F.mT) <= rounding
    aligned = torch.linalg.norm(C @ F - (U * a) @ V.mT) <= rounding
    return a if balanced and aligned and (a >= 0).all() else None


def stability(setting: Setting, row: Row) -> Answer | None:
    """Gradient descent does not converge to an answer at a rate above 2 over the least sharpness λ
    of an answer, at depth 2 lr = 1/cσ₁; the heavy ball above (2 + 2β)/λ, and Nesterov's method
    above (2 + 2β)/((1 + 2β)λ).

    Source: `mfgd.theory.rate_unit`; with momentum Polyak 1964, Some methods of speeding up the
    convergence of iteration methods, and Cohen and others 2021, Gradient descent on neural networks
    typically occurs at the edge of stability, appendix B. A run below the limit that reaches the
    answer agrees; nothing is said of the other runs below the limit. Holds for the squared loss of
    a complete matrix without penalty, these methods at one rate, factors that move at once, and a
    start that is not the answer. The deviation is lr over the limit − 1 if a run above the limit
    reached the answer, else 0.
    """
    limit = setting.rate_limit
    if not limit > 0:
        return None
    enough = setting.closeness(row)
    reached = abs(setting.excess(row)) <= enough
    started_there = abs(setting.excess(row, record=0)) <= enough
    if started_there or not (reached or setting.lr > limit):
        return None
    return Answer(max(0.0, setting.lr / limit - 1) if reached else 0.0, 0.0)


def sharpness_of_answer(setting: Setting, row: Row) -> Answer | None:
    """If the residual is 0, the sharpness is c (σ₁(C)² + σ₁(F)²), at a balanced answer 2cσ₁.

    Source: Mulayoff, Michaeli 2020, Unique properties of flat minima in deep networks. Holds for
    the squared loss of a complete matrix without penalty at depth 2, if the sharpness is measured
    (diagnostics=full) and the run ended at a relative residual below 1e-8. With respect to U of
    tied factors the sharpness is twice that. The deviation is relative.
    """
    known = setting.is_quadratic and setting.optimum == 0 and len(setting.start) == 2
    if not known or "sharpness" not in row.trajectory:
        return None
    if not row.trajectory["loss"][-1] <= 1e-16 * setting.loss_of_zero:
        return None
    C, F = (float(torch.linalg.matrix_norm(W.to(torch.float64), ord=2)) for W in row.factors)
    expected = setting.curvature * (C**2 + F**2) * (2 if setting.symmetric else 1)
    deviation = float(row.trajectory["sharpness"][-1]) / expected - 1
    return Answer(deviation, max(CLOSE, 1e3 * row.epsilon), {"sharpness": expected})


ORACLES: dict[str, Oracle] = {
    "eckart_young": eckart_young,
    "soft_threshold": soft_threshold,
    "deep_penalty": deep_penalty,
    "saxe": saxe,
    "aligned_modes": aligned_modes,
    "period_two": period_two,
    "critical_step": critical_step,
    "local_rate": local_rate,
    "momentum_rate": momentum_rate,
    "alternating_rate": alternating_rate,
    "stability": stability,
    "sharpness": sharpness_of_answer,
    "noise_floor": noise_floor,
    "spiked_values": spiked_values,
    "spiked_angles": spiked_angles,
}
"""Name of an oracle in tags and metrics → its function."""
TIED = eckart_young, soft_threshold, saxe, local_rate, stability, sharpness_of_answer, noise_floor
"""The oracles that know tied factors."""


def judge(setting: Setting, row: Row) -> None:
    """Adds what theory says of a run to its row: curves beside the measures, verdicts as tags, and
    the limit of stability.

    Nothing agrees with a loss that no arithmetic can give.
    """
    impossible = setting.is_impossible(row)
    if setting.rate_limit > 0:
        row.values["lr_limit"] = setting.rate_limit
    for name, oracle in ORACLES.items():
        answer = oracle(setting, row) if oracle in TIED or not setting.symmetric else None
        if answer is None:
            continue
        row.tags[f"oracle.{name}"] = "deviates" if impossible else answer.verdict
        if math.isfinite(answer.deviation):
            row.values[f"deviation.{name}"] = answer.deviation
        for measure, curve in answer.curves.items():
            row.trajectory[f"theory.{measure}"] = np.ones(len(row.trajectory["step"])) * curve
        for measure, value in answer.values.items():
            row.values[f"theory.{measure}"] = value
