"""How fast a method comes near the answer, by theory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from mfgd.method import Method
from mfgd.record import Row
from mfgd.verdict import Answer, Setting


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
    the least λ that counts is a sum of their curvatures. Tied factors move at twice the rate, if D
    is symmetric without negative eigenvalues. The deviation is that of 1 − rate, relative; a tenth
    is allowed, because faster modes still have their say.
    """
    moves = setting.is_gradient_descent or setting.is_scaled_gradient_descent
    known = setting.is_quadratic and moves and len(setting.start) == 2
    if not known or row.outcome == "diverged":
        return None
    curvatures, near = _extreme_curvatures(setting, row), _last_records_near_answer(setting, row)
    if curvatures is None or near is None:
        return None
    lr, c, (least, most) = setting.pair_rate, setting.curvature, curvatures
    rate = max(abs(1 - lr * c * least), abs(1 - lr * c * most))
    if not 0 < rate < 1:
        return None
    return _compare_contraction(row, near, rate)


def _extreme_curvatures(setting: Setting, row: Row) -> tuple[float, float] | None:
    """The least and the largest λ/c of `local_rate`; None if theory does not know them."""
    sigma, k = setting.problem.spectrum, setting.rank
    assert sigma is not None
    if k > len(sigma) or sigma[k - 1] == 0 or not setting.can_reach(setting.problem.observation):
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


def _last_records_near_answer(setting: Setting, row: Row) -> Sequence[int] | None:
    """The last two records between rounding and a relative distance of 1 %, if there are two."""
    near = _records_near_answer(setting, row)
    return near[-2:] if len(near) >= 2 else None


def _records_near_answer(setting: Setting, row: Row) -> list[int]:
    """The records between rounding and a relative distance of 1 %."""
    left = np.nan_to_num(row.remaining(), nan=np.inf)
    (near,) = np.nonzero(left < 1e-2 * math.sqrt(setting.loss_of_zero))
    return [int(i) for i in near]


def momentum_rate(setting: Setting, row: Row) -> Answer | None:
    """Near the answer a step of the heavy ball shrinks what remains by the largest |z| with
    z² − (1 + β − lr λ) z + β = 0 over the curvatures λ there, √β if no root is real; a step of
    Nesterov's method by that with z² − (1 + β)(1 − lr λ) z + β (1 − lr λ) = 0.

    Source: Polyak 1964, Some methods of speeding up the convergence of iteration methods; Lessard,
    Recht, Packard 2016, Analysis and design of optimization algorithms via integral quadratic
    constraints, section 4. The curvatures are those of `local_rate`, and so is what it holds for,
    with these methods. The two roots must differ, as what remains is t zᵗ else. What remains
    oscillates, so that the rate is fitted to all records between rounding and a relative distance
    of 1 %, which must be three at least and shrink by e⁴. The deviation is that of 1 − rate,
    relative; a tenth is allowed.
    """
    known = setting.is_quadratic and len(setting.start) == 2 and setting.has_equal_shares
    if not (known and setting.has_method(Method.HEAVY_BALL, Method.NESTEROV)):
        return None
    curvatures = None if row.outcome == "diverged" else _extreme_curvatures(setting, row)
    if curvatures is None:
        return None
    scale = setting.lr * setting.curvature
    roots = [_momentum_roots(setting, scale * each) for each in curvatures]
    rate = max(size for size, _ in roots)
    apart = min(gap for size, gap in roots if size >= (1 - 1e-9) * rate)
    near = _records_near_answer(setting, row)
    if not 0 < rate < 1 or len(near) < 3:
        return None
    left, steps = row.remaining()[near], row.trajectory["step"][near]
    begin, end = steps[0], steps[-1]
    if begin * apart < 10 or (end - begin) * -math.log(rate) < 4:
        return None
    measured = math.exp(np.polyfit(steps, np.log(left), 1)[0])
    return Answer((1 - measured) / (1 - rate) - 1, 0.1, {"contraction": rate})


def _momentum_roots(setting: Setting, x: float) -> tuple[float, float]:
    """The larger |z| of `momentum_rate` at lr λ = x, and how far the roots are apart, relative."""
    beta = float(setting.optimizer.beta)
    if setting.optimizer.method is Method.NESTEROV:
        roots = np.roots([1, -(1 + beta) * (1 - x), beta * (1 - x)])
    else:
        roots = np.roots([1, -(1 + beta - x), beta])
    largest = float(np.abs(roots).max())
    return largest, float(np.abs(roots[0] - roots[-1])) / (largest or 1.0)


def alternating_rate(setting: Setting, row: Row) -> Answer | None:
    """Near the answer a step of alternating scaled gradient descent shrinks what remains by 1 − lr
    for c = 1, and one of alternating least squares by (σ_{k+1}/σ_k)².

    Write η = lr c and ρ = σ_{k+1}/σ_k. Two factors that take turns carry an error between the
    singular subspaces k and k + 1 by a matrix whose eigenvalues are the roots of
    z² − (2 (1 − η) + η²ρ²) z + (1 − η)²: 1 − η twice if D has rank k, and ρ² and 0 for η = 1, which
    is least squares, a step of subspace iteration (Golub, Van Loan 2013, Matrix computations,
    section 8.2.4; for scaled gradient descent Tong, Ma, Chi 2021, section 2). From a start inside
    the answer's own subspaces the rate is (1 − η)² for a D of rank k. Holds for the squared loss of
    a complete matrix of rank at least k without penalty at depth 2, one rate, no damping, and at
    least four records between rounding and a relative distance of 1 %, if 1 − rate is the same in
    the last two quarters of these up to a twentieth. The deviation is that of 1 − rate in the last
    quarter, relative; a tenth is allowed.
    """
    methods = Method.PRECONDITIONED, Method.LEAST_SQUARES
    moves = setting.has_method(*methods, simultaneous=False) and setting.has_equal_shares
    known = setting.is_quadratic and moves and len(setting.start) == 2
    sigma, k = setting.problem.spectrum, setting.rank
    if not known or row.outcome == "diverged" or sigma is None or k > len(sigma):
        return None
    near = _records_near_answer(setting, row)
    if len(near) < 4 or sigma[k - 1] == 0:
        return None
    exact = setting.optimizer.method is Method.LEAST_SQUARES
    eta = 1.0 if exact else setting.lr * setting.curvature
    ratio = float(sigma[k] / sigma[k - 1]) if k < len(sigma) else 0.0
    if ratio == 0 and _starts_in_final_subspaces(setting, row):
        rate = (1 - eta) ** 2
    else:
        roots = np.roots([1, -(2 * (1 - eta) + (eta * ratio) ** 2), (1 - eta) ** 2])
        rate = max(float(np.abs(roots).max()), abs(1 - eta))
    if not 0 < rate < 1:
        return None
    quarters = near[-1 - len(near) // 2], near[-1 - len(near) // 4], near[-1]
    before, answer = (_compare_contraction(row, pair, rate) for pair in pairwise(quarters))
    settled = abs(before.deviation - answer.deviation) <= 0.05 * abs(1 + answer.deviation)
    return answer if settled else None


def _compare_contraction(row: Row, near: Sequence[int], rate: float) -> Answer:
    """The contraction between two records beside a rate by theory."""
    (first, last), left, steps = near, row.remaining(), row.trajectory["step"]
    measured = math.exp(math.log(left[last] / left[first]) / (steps[last] - steps[first]))
    return Answer((1 - measured) / (1 - rate) - 1, 0.1, {"contraction": rate})
