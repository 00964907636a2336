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

from mfgd.record import Row
from mfgd.spectra import Triplets
from mfgd.types import Factors
from mfgd.verdict import CLOSE, Answer, Setting

Oracle = Callable[[Setting, Row], Answer | None]


def eckart_young(setting: Setting, row: Row) -> Answer | None:
    """The loss ends at the loss of the best rank-k approximation, f* = w Σ_{i>k} σ_i², and is never
    below f*.

    Holds for the squared loss of a complete matrix without penalty, at any depth: there is no bad
    local minimum (Eckart, Young 1936, The approximation of one matrix by another of lower rank;
    Baldi, Hornik 1989, Neural networks and principal component analysis). The deviation is
    f/f* − 1, or the relative error if f* is 0. It separates the runs that reached the answer within
    their budget from the other runs.
    """
    if not setting.is_quadratic:
        return None
    return Answer(setting.excess(row), setting.closeness(row), {"loss": setting.optimum})


def soft_threshold(setting: Setting, row: Row) -> Answer | None:
    """Under the penalty λ the singular values end at max(σ_i − λ/2w, 0), i ≤ k.

    Holds for the squared loss of a complete matrix at depth 2: λ/2 (‖C‖² + ‖F‖²) acts as λ‖CF‖_*
    (Srebro, Rennie, Jaakkola 2005, Maximum-margin matrix factorization, lemma 1; Cai, Candès, Shen
    2010, A singular value thresholding algorithm, theorem 2.1). The deviation is the largest one of
    all singular values, in units of σ₁.
    """
    known = setting.loss.curvature is not None and setting.problem.complete
    if not known or setting.loss.penalty == 0 or len(setting.start) != 2:
        return None
    sigma = setting.problem.spectrum
    assert sigma is not None
    names = [name for name in row.trajectory if name.startswith("sigma.")]
    threshold = setting.loss.penalty / setting.curvature
    goals = (sigma[: len(names)] - threshold).clamp(min=0).tolist()
    gaps = [abs(row.trajectory[name][-1] - goal) for name, goal in zip(names, goals, strict=True)]
    deviation = float(np.max(gaps)) / (float(sigma[0]) or 1.0)
    if row.outcome == "diverged":
        deviation = math.inf
    curves = {"loss": setting.optimum, **dict(zip(names, goals, strict=True))}
    return Answer(deviation, setting.closeness(row), curves)


def saxe(setting: Setting, row: Row) -> Answer | None:
    """Each mode follows a(t) = s / (1 + (s/a₀ − 1) e^{−2cst}), t = lr · step, and is half learnt at
    ln(s/a₀ − 1)/2cs.

    This is gradient flow from a balanced start whose product has the target's singular vectors
    (Saxe, McClelland, Ganguli 2014, Exact solutions to the nonlinear dynamics of learning in deep
    linear neural networks, eqs. 5 and 6). Holds for the squared loss of a complete matrix without
    penalty at depth 2 and gradient descent at one rate of at most a tenth of the limit 1/cσ₁, if
    the modes of D are measured (diagnostics=dynamics, D without noise). Steps of finite length
    leave the flow by about their length: c lr σ₁ is allowed. The deviation is the largest one over
    modes and records, in units of s.
    """
    names = [name for name in row.trajectory if name.startswith("mode.")]
    known = setting.is_quadratic and setting.is_gradient_descent and len(setting.start) == 2
    if not (known and names) or setting.problem.hides_truth:
        return None
    target = setting.problem.triplets
    assert target is not None
    starts = _learnt_at_start(setting.start, target)
    c, lr, largest = setting.curvature, setting.lr, float(target.sigma[0])
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


def local_rate(setting: Setting, row: Row) -> Answer | None:
    """Near the answer a step shrinks what remains by the largest |1 − lr λ| over the curvatures λ
    there.

    Gradient descent on a noiseless D of rank k: λ is between c min(σ_k(C)², σ_k(F)²) and c (σ₁(C)²
    + σ₁(F)²), at a balanced answer cσ_k and 2cσ₁: the rate is 1 − lr cσ_k. If D has more singular
    values, c (σ_k − σ_{k+1}) and 2cσ₁ at a balanced answer. Scaled gradient descent without
    damping: c (1 − σ_{k+1}/σ_k) and 2c, so that for c = 1 the rate is 1 − lr, whatever the
    condition number (Tong, Ma, Chi 2021, Accelerating ill-conditioned low-rank matrix estimation
    via scaled gradient descent, section 2). Holds for the squared loss of a complete matrix of rank
    at least k without penalty at depth 2, one rate, factors that move at once, and two records
    between rounding and a relative distance of 1 %. From a start inside the answer's own subspaces
    the least λ that counts is a sum of their curvatures. The deviation is that of 1 − rate,
    relative; a tenth is allowed, because faster modes still have their say.
    """
    moves = setting.is_gradient_descent or setting.is_scaled_gradient_descent
    known = setting.is_quadratic and moves and len(setting.start) == 2
    if not known or row.outcome == "diverged":
        return None
    curvatures, near = _extreme_curvatures(setting, row), _last_records_near_answer(setting, row)
    if curvatures is None or near is None:
        return None
    lr, c, (least, most) = setting.lr, setting.curvature, curvatures
    rate = max(abs(1 - lr * c * least), abs(1 - lr * c * most))
    if not 0 < rate < 1:
        return None
    (first, last), left, steps = near, row.remaining(), row.trajectory["step"]
    measured = math.exp(math.log(left[last] / left[first]) / (steps[last] - steps[first]))
    return Answer((1 - measured) / (1 - rate) - 1, 0.1, {"contraction": rate})


def _extreme_curvatures(setting: Setting, row: Row) -> tuple[float, float] | None:
    """The least and the largest λ/c of `local_rate`; None if theory does not know them."""
    sigma, k = setting.problem.spectrum, setting.rank
    assert sigma is not None
    if k > len(sigma) or sigma[k - 1] == 0:
        return None
    first, last, beyond = float(sigma[0]), float(sigma[k - 1]), 0.0
    if k < len(sigma):
        beyond = float(sigma[k])
    inside = _starts_in_final_subspaces(setting, row)
    if setting.is_scaled_gradient_descent:
        return (2.0 if inside else 1 - beyond / last), 2.0
    if beyond == 0:
        C, F = (torch.linalg.svdvals(W.to(torch.float64)).square() for W in row.factors)
        least = C[-1] + F[-1] if inside else min(C[-1], F[-1])
        return float(least), float(C[0] + F[0])
    if row.trajectory["balance"][-1] <= 0.02 * (last - beyond):
        return (2 * last if inside else last - beyond), 2 * first
    return None


def _starts_in_final_subspaces(setting: Setting, row: Row) -> bool:
    """Whether the start is in the subspaces of the end, so that no mode outside had to decay."""
    pairs = ((setting.start[0], row.factors[0]), (setting.start[-1].mT, row.factors[-1].mT))
    for start, end in pairs:
        Q = torch.linalg.qr(end.to(torch.float64)).Q
        outside = torch.linalg.norm(start - Q @ (Q.mT @ start))
        if not outside <= 1e-6 * torch.linalg.norm(start):
            return False
    return True


def _last_records_near_answer(setting: Setting, row: Row) -> tuple[int, int] | None:
    """The last two records between rounding and a relative distance of 1 %, if there are two."""
    left = np.nan_to_num(row.remaining(), nan=np.inf)
    (near,) = np.nonzero(left < 1e-2 * math.sqrt(setting.loss_of_zero))
    return (int(near[-2]), int(near[-1])) if len(near) >= 2 else None


def stability(setting: Setting, row: Row) -> Answer | None:
    """Gradient descent does not converge to an answer at a rate above 2 over the least sharpness of
    an answer, at depth 2 lr = 1/cσ₁.

    Source: `mfgd.theory.rate_unit`. A run below the limit that reaches the answer agrees; nothing
    is said of the other runs below the limit. Holds for the squared loss of a complete matrix
    without penalty, gradient descent at one rate, and a start that is not the answer. The deviation
    is lr over the limit − 1 if a run above the limit reached the answer, else 0.
    """
    limit = setting.rate_limit
    if not (setting.is_shared_gradient_descent and limit > 0):
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
    (diagnostics=full) and the run ended at a relative residual below 1e-8. The deviation is
    relative.
    """
    known = setting.is_quadratic and setting.optimum == 0 and len(setting.start) == 2
    if not known or "sharpness" not in row.trajectory:
        return None
    if not row.trajectory["loss"][-1] <= 1e-16 * setting.loss_of_zero:
        return None
    C, F = (float(torch.linalg.matrix_norm(W.to(torch.float64), ord=2)) for W in row.factors)
    expected = setting.curvature * (C**2 + F**2)
    deviation = float(row.trajectory["sharpness"][-1]) / expected - 1
    return Answer(deviation, max(CLOSE, 1e3 * row.epsilon), {"sharpness": expected})


def noise_floor(setting: Setting, row: Row) -> Answer | None:
    """Under Gaussian noise of standard deviation s the error ends at about
    s √(r (n + m − r)/p) / ‖D*‖.

    r (n + m − r) is the dimension of the matrices of rank r, and p the share of observed entries:
    this is the error if the tangent space is known (Candès, Plan 2010, Matrix completion with
    noise, section III.B). Holds for the squared loss without penalty at the rank r of the truth, if
    the noise is weak, s (√n + √m) ≤ √p σ_r/4, there are at least four times as many observed
    entries as dimensions, and the run has settled: its last two records differ by at most 1 %. The
    deviation is relative; four standard deviations of the draw are allowed, and a tenth for what is
    beyond first order.
    """
    problem, loss = setting.problem, setting.loss
    if loss.curvature is None or loss.penalty or not problem.noise:
        return None
    sigma = problem.truth_spectrum
    if sigma is None:
        return None
    (n, m), r = problem.shape, int((sigma > 0).sum())
    dimension, share = r * (n + m - r), float(problem.count) / (n * m)
    strength = problem.noise * (math.sqrt(n) + math.sqrt(m))
    weak = strength <= math.sqrt(share) * float(sigma[r - 1]) / 4
    enough_entries = share * n * m >= 4 * dimension
    if setting.rank != r or not weak or not enough_entries or not _has_settled(row):
        return None
    floor = problem.noise * math.sqrt(dimension / share) / float(sigma.square().sum().sqrt())
    deviation = float(row.trajectory["relative_error"][-1]) / floor - 1
    allowed = 0.1 + 4 / math.sqrt(2 * dimension)
    return Answer(deviation, allowed, {"relative_error": floor})


def _has_settled(row: Row) -> bool:
    """Whether the relative errors of the last two records differ by at most 1 %."""
    error = row.trajectory["relative_error"]
    if len(error) < 2 or row.outcome == "diverged":
        return False
    return bool(abs(error[-1] - error[-2]) <= 0.01 * error[-1])


ORACLES: dict[str, Oracle] = {
    "eckart_young": eckart_young,
    "soft_threshold": soft_threshold,
    "saxe": saxe,
    "local_rate": local_rate,
    "stability": stability,
    "sharpness": sharpness_of_answer,
    "noise_floor": noise_floor,
}
"""Name of an oracle in tags and metrics → its function."""


def judge(setting: Setting, row: Row) -> None:
    """Adds what theory says of a run to its row: curves beside the measures, verdicts as tags, and
    the limit of stability.

    Nothing agrees with a loss that no arithmetic can give.
    """
    impossible = setting.is_impossible(row)
    limit = setting.rate_limit
    if setting.is_shared_gradient_descent and limit > 0:
        row.values["lr_limit"] = limit
    for name, oracle in ORACLES.items():
        answer = oracle(setting, row)
        if answer is None:
            continue
        row.tags[f"oracle.{name}"] = "deviates" if impossible else answer.verdict
        if math.isfinite(answer.deviation):
            row.values[f"deviation.{name}"] = answer.deviation
        for measure, curve in answer.curves.items():
            row.trajectory[f"theory.{measure}"] = np.ones(len(row.trajectory["step"])) * curve
        for measure, value in answer.values.items():
            row.values[f"theory.{measure}"] = value
