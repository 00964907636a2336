"""What theory says the measurement should be.

Each function of `ORACLES` looks at a run that has ended. Where theory knows the answer it gives an `Answer`: how far
the measurement is from it, how far is allowed, and theory's values to stand beside the measures; where not, None.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from mfgd.loss import Loss
from mfgd.problem import Problem
from mfgd.record import Row
from mfgd.types import Factors

ENOUGH = 1e-6
"""A run has reached an answer when it is within this, relative, or within its own tolerance where that is more."""


class Setting(NamedTuple):
    """What theory needs to know of a run beside what was measured."""

    problem: Problem
    """Without leading dimensions, in double precision."""
    loss: Loss
    """With plain numbers."""
    start: Factors
    optimizer: str
    """Its name, or the path of a user's own."""
    keys: Mapping[str, Any]
    """The optimizer's."""
    lr: float
    """NaN where it changes from step to step."""
    tolerance: float
    optimum: float
    """Of the objective; NaN where unknown."""

    @property
    def rank(self) -> int:
        return self.start[0].shape[-1]

    @property
    def quadratic(self) -> bool:
        """Whether this is the squared loss of a complete matrix, without penalty."""
        return self.loss.curvature is not None and self.problem.complete and self.loss.penalty == 0

    @property
    def plain(self) -> bool:
        """Whether this is gradient descent at one rate, with all factors moving at once."""
        return self.optimizer == "gd" and not self.keys["alternating"] and math.isfinite(self.lr)


@dataclass(frozen=True)
class Answer:
    """What theory says of a run, beside what was measured."""

    deviation: float
    """Relative, or a share of a rate; infinite for a run that diverged where theory has it converge."""
    allowed: float
    curves: dict[str, Any] = field(default_factory=dict)
    """Measure → theory's value of it, a number or (records,)."""
    values: dict[str, float] = field(default_factory=dict)
    """The same of what there is one number of."""

    @property
    def verdict(self) -> str:
        return "agrees" if abs(self.deviation) <= self.allowed else "deviates"


Oracle = Callable[[Setting, Row], Answer | None]


def optimum(problem: Problem, loss: Loss, rank: int, depth: int = 2) -> float:
    """The least value that the objective can take, NaN where theory does not know it.

    - Squared loss on a fully observed D: w Σ_{i>k} σ_i² (Eckart, Young 1936). With the penalty λ at depth 2, which acts
      as λ‖CF‖_* (Srebro, Rennie, Jaakkola 2005, lemma 1), the optimum soft-thresholds σ_i at τ = λ/2w:
      w Σ_{i≤k} min(σ_i, τ)² + λ Σ_{i≤k} max(σ_i − τ, 0) + w Σ_{i>k} σ_i².
    - Any loss without penalty, D its own noiseless truth of rank ≤ k: 0.

    Args:
        problem: one run's, without leading dimensions.
        loss: one run's, with plain numbers.
        rank: k, the width of the factors.
        depth: number of factors.
    """
    if problem.rank is not None and problem.rank <= rank and loss.penalty == 0:
        return 0.0
    if loss.curvature is None or not problem.complete or (loss.penalty > 0 and depth != 2):
        return math.nan
    sigma = problem.spectrum
    assert sigma is not None
    weight = (
        loss.curvature
        / 2
        * loss.scale
        / (math.prod(problem.shape) if loss.reduction == "mean" else 1)
    )
    head, tail = sigma[:rank], sigma[rank:]
    threshold = loss.penalty / (2 * weight)
    kept = (
        weight * head.clamp(max=threshold).square().sum()
        + loss.penalty * (head - threshold).clamp(min=0).sum()
    )
    return float(kept + weight * tail.square().sum())


def curvature(problem: Problem, loss: Loss) -> float:
    """c of f ≈ c/2 ‖W₁…W_L − D‖² near the answer: ρ″(0) times the weight of an entry times the share observed.

    NaN where the loss has no second derivative at 0 that is positive, as the absolute value.
    """
    second = loss.curvature
    if second is None:
        zero = torch.zeros(1, 1, dtype=torch.float64)
        second = float(torch.func.grad(lambda r: loss.slope(r).sum())(zero))
    size = math.prod(problem.shape)
    share = float(problem.count) / size
    weight = loss.scale / size if loss.reduction == "mean" else loss.scale * share
    return second * weight if second > 0 else math.nan


def rate_unit(problem: Problem, loss: Loss, depth: int) -> float:
    """2/(c L σ₁^{2−2/L}), 1/(c σ₁) at depth 2: the rate up to which gradient descent is stable at the balanced answer.

    There its sharpness is c L σ₁^{2−2/L}, the least that any global minimizer has, and 2 over it is the limit: beyond,
    gradient descent converges to none of them (Mulayoff, Michaeli 2020, Unique properties of flat minima in deep
    networks). c is the `curvature`, L the depth, σ₁ the largest singular value of D, of an incomplete one that of the
    observed matrix over the share observed. NaN where c is unknown, infinite where D is 0.
    """
    share = float(problem.count) / math.prod(problem.shape)
    sharpness = curvature(problem, loss) * depth * (problem.largest / share) ** (2 - 2 / depth)
    return 2 / sharpness if sharpness != 0 else math.inf


def rate_limit(problem: Problem, loss: Loss, depth: int) -> float:
    """The rate beyond which gradient descent converges to no minimizer, NaN where theory does not know it.

    `rate_unit` for the squared loss of a complete D without penalty.
    """
    known = loss.curvature is not None and problem.complete and loss.penalty == 0
    return rate_unit(problem, loss, depth) if known else math.nan


def eckart_young(setting: Setting, row: Row) -> Answer | None:
    """The loss ends at that of the best rank-k approximation: f* = w Σ_{i>k} σ_i², and is never below it.

    Holds for the squared loss of a complete matrix without penalty, at any depth: there is no bad local minimum
    (Eckart, Young 1936, The approximation of one matrix by another of lower rank; Baldi, Hornik 1989, Neural networks
    and principal component analysis). The deviation is f/f* − 1, where f* is 0 the relative error; it tells the runs
    that reached the answer within their budget from the others.
    """
    if not setting.quadratic:
        return None
    return Answer(_excess(setting, row), _enough(setting, row), {"loss": setting.optimum})


def soft_threshold(setting: Setting, row: Row) -> Answer | None:
    """Under the penalty λ the singular values end at max(σ_i − λ/2w, 0), i ≤ k.

    Holds for the squared loss of a complete matrix at depth 2: λ/2 (‖C‖² + ‖F‖²) acts as λ‖CF‖_* (Srebro, Rennie,
    Jaakkola 2005, Maximum-margin matrix factorization, lemma 1; Cai, Candès, Shen 2010, A singular value thresholding
    algorithm, theorem 2.1). The deviation is the largest of all singular values, in units of σ₁.
    """
    known = setting.loss.curvature is not None and setting.problem.complete
    if not known or setting.loss.penalty == 0 or len(setting.start) != 2:
        return None
    sigma = setting.problem.spectrum
    assert sigma is not None
    names = [name for name in row.trajectory if name.startswith("sigma.")]
    threshold = setting.loss.penalty / curvature(setting.problem, setting.loss)
    goals = (sigma[: len(names)] - threshold).clamp(min=0).tolist()
    ends = [float(row.trajectory[name][-1]) for name in names]
    deviation = max(abs(end - goal) for end, goal in zip(ends, goals, strict=True)) / (
        float(sigma[0]) or 1.0
    )
    curves = {"loss": setting.optimum} | dict(zip(names, goals, strict=True))
    return Answer(
        deviation if row.outcome != "diverged" else math.inf, _enough(setting, row), curves
    )


def saxe(setting: Setting, row: Row) -> Answer | None:
    """Each mode follows a(t) = s / (1 + (s/a₀ − 1) e^{−2cst}), t = lr · step, and is half learnt at ln(s/a₀ − 1)/2cs.

    Gradient flow from a balanced start whose product has the target's singular vectors (Saxe, McClelland, Ganguli 2014,
    Exact solutions to the nonlinear dynamics of learning in deep linear neural networks, eqs. 5 and 6). Holds for the
    squared loss of a complete matrix without penalty at depth 2, gradient descent at one rate of at most a tenth of the
    limit 1/cσ₁, where the modes are measured (diagnostics=dynamics). Steps of finite length leave the flow by about
    their length: allowed is c lr σ₁. The deviation is the largest over modes and records, in units of s.
    """
    names = [name for name in row.trajectory if name.startswith("mode.")]
    if not (setting.quadratic and setting.plain and names and len(setting.start) == 2):
        return None
    c = curvature(setting.problem, setting.loss)
    triplets = setting.problem.triplets
    assert triplets is not None
    U, s, V = triplets
    C, F = setting.start
    X = U.mT @ C @ F @ V
    size, unbalanced = (
        torch.linalg.norm(C) * torch.linalg.norm(F),
        torch.linalg.norm(C.mT @ C - F @ F.mT),
    )
    a = torch.where(X.diagonal().abs() > 1e-9 * size, X.diagonal(), 0)
    astray = torch.linalg.norm(C @ F - (U * a) @ V.mT)
    if not (
        0 < c * setting.lr * s[0] <= 0.1
        and unbalanced <= 1e-9 * size
        and astray <= 1e-9 * size
        and (a >= 0).all()
    ):
        return None
    t = setting.lr * row.trajectory["step"]
    curves, values, deviation = {}, {}, 0.0
    for name, s_i, a_i in zip(names, s.tolist(), a.tolist(), strict=False):
        if s_i > 1e-12 * float(s[0]):
            curves[name] = (
                s_i / (1 + (s_i / a_i - 1) * np.exp(-2 * c * s_i * t)) if a_i > 0 else 0 * t
            )
            deviation = max(
                deviation, float(np.abs(row.trajectory[name] - curves[name]).max()) / s_i
            )
            if 0 < a_i < s_i / 2:
                values[name.replace("mode", "half_time")] = math.log(s_i / a_i - 1) / (
                    2 * c * s_i * setting.lr
                )
    return Answer(deviation, c * setting.lr * float(s[0]), curves, values)


def local_rate(setting: Setting, row: Row) -> Answer | None:
    """Near the answer a step shrinks what remains by the largest |1 − lr λ| over the curvatures λ there.

    Gradient descent on a noiseless D of rank k: λ is between c min(σ_k(C)², σ_k(F)²) and c (σ₁(C)² + σ₁(F)²), at a
    balanced answer cσ_k and 2cσ₁: the rate is 1 − lr cσ_k. With more singular values in D, c (σ_k − σ_{k+1}) and 2cσ₁
    at a balanced answer. Scaled gradient descent without damping: c (1 − σ_{k+1}/σ_k) and 2c, so that for c = 1 the
    rate is 1 − lr, whatever the condition number (Tong, Ma, Chi 2021, Accelerating ill-conditioned low-rank matrix
    estimation via scaled gradient descent, section 2). Holds for the squared loss of a complete matrix of rank at least
    k without penalty at depth 2, one rate, factors that move at once, and two records between rounding and a relative
    distance of 1 %. From a start inside the answer's own subspaces, sums of their curvatures are the least that is met.
    The deviation is that of 1 − rate, relative; allowed is a tenth: faster modes still have their say.
    """
    scaled = (
        setting.optimizer == "scaled_gd"
        and setting.keys["damping"] == 0
        and not setting.keys["alternating"]
    )
    moves = setting.plain or (scaled and math.isfinite(setting.lr))
    if not (setting.quadratic and moves and len(setting.start) == 2 and row.outcome != "diverged"):
        return None
    sigma, k = setting.problem.spectrum, setting.rank
    assert sigma is not None
    if k > len(sigma) or sigma[k - 1] == 0:
        return None
    first, last, beyond = (float(sigma[i]) if i < len(sigma) else 0.0 for i in (0, k - 1, k))
    C, F = (torch.linalg.svdvals(W.to(torch.float64)).square() for W in row.factors)
    inside = _inside(setting, row)
    if scaled:
        slow, fast = 2.0 if inside else 1 - beyond / last, 2.0
    elif beyond == 0:
        slow, fast = float(C[-1] + F[-1] if inside else min(C[-1], F[-1])), float(C[0] + F[0])
    elif row.trajectory["balance"][-1] <= 0.02 * (last - beyond):
        slow, fast = 2 * last if inside else last - beyond, 2 * first
    else:
        return None
    c = curvature(setting.problem, setting.loss)
    rate = max(abs(1 - setting.lr * c * slow), abs(1 - setting.lr * c * fast))
    left, steps = row.remaining(), row.trajectory["step"]
    (near,) = np.nonzero(np.nan_to_num(left, nan=np.inf) < 1e-2 * math.sqrt(_scale(setting)))
    if len(near) < 2 or not 0 < rate < 1:
        return None
    i, j = near[-2:]
    measured = math.exp(math.log(left[j] / left[i]) / (steps[j] - steps[i]))
    return Answer((1 - measured) / (1 - rate) - 1, 0.1, {"contraction": rate})


def stability(setting: Setting, row: Row) -> Answer | None:
    """Beyond 2 over the least sharpness of an answer, at depth 2 lr = 1/cσ₁, gradient descent does not converge to one.

    Source: `rate_unit`. Of runs below the limit it says only that they may: those that reach the answer agree, of the
    others nothing is said. Holds for the squared loss of a complete matrix without penalty, gradient descent at one
    rate, a start that is not the answer. The deviation is lr over the limit − 1 of a run that reached the answer all
    the same, else 0.
    """
    limit = (
        rate_limit(setting.problem, setting.loss, len(setting.start)) if setting.plain else math.nan
    )
    if not limit > 0:
        return None
    enough = _enough(setting, row)
    reached = abs(_excess(setting, row)) <= enough
    there = abs(_excess(setting, row, record=0)) <= enough
    if there or not (reached or setting.lr > limit):
        return None
    return Answer(max(0.0, setting.lr / limit - 1) if reached else 0.0, 0.0)


def sharpness(setting: Setting, row: Row) -> Answer | None:
    """Where the residual is 0 the sharpness is c (σ₁(C)² + σ₁(F)²), at a balanced answer 2cσ₁.

    Source: Mulayoff, Michaeli 2020, Unique properties of flat minima in deep networks. Holds for the squared loss of a
    complete matrix without penalty at depth 2, where it is measured (diagnostics=full) and the run ended at a relative
    residual below 1e-8. The deviation is relative.
    """
    known = setting.quadratic and setting.optimum == 0 and len(setting.start) == 2
    if not known or "sharpness" not in row.trajectory:
        return None
    if not row.trajectory["loss"][-1] <= 1e-16 * _scale(setting):
        return None
    C, F = (float(torch.linalg.matrix_norm(W.to(torch.float64), ord=2)) for W in row.factors)
    expected = curvature(setting.problem, setting.loss) * (C**2 + F**2)
    deviation = float(row.trajectory["sharpness"][-1]) / expected - 1
    return Answer(deviation, max(ENOUGH, 1e3 * row.epsilon), {"sharpness": expected})


def noise_floor(setting: Setting, row: Row) -> Answer | None:
    """Under Gaussian noise of standard deviation s the error ends at about s √(r (n + m − r)/p) / ‖D*‖.

    r (n + m − r) is the dimension of the matrices of rank r, and p the share observed: the error of one who knows the
    tangent space (Candès, Plan 2010, Matrix completion with noise, section III.B). Holds for the squared loss without
    penalty at the rank r of the truth, where the noise is weak, s (√n + √m) ≤ √p σ_r/4, of its entries there are at
    least four times as many as dimensions, and the run has settled: its last two records differ by at most 1 %. The
    deviation is relative; allowed are four standard deviations of the draw and a tenth for what is beyond first order.
    """
    problem, loss = setting.problem, setting.loss
    sigma = problem.truth_spectrum
    if loss.curvature is None or loss.penalty or not problem.noise or sigma is None:
        return None
    (n, m), r = problem.shape, int((sigma > 0).sum())
    dimension, share = r * (n + m - r), float(problem.count) / (n * m)
    weak = (
        problem.noise * (math.sqrt(n) + math.sqrt(m)) <= math.sqrt(share) * float(sigma[r - 1]) / 4
    )
    error = row.trajectory["relative_error"]
    settled = (
        len(error) > 1
        and abs(error[-1] - error[-2]) <= 0.01 * error[-1]
        and row.outcome != "diverged"
    )
    if setting.rank != r or not weak or not settled or share * n * m < 4 * dimension:
        return None
    floor = problem.noise * math.sqrt(dimension / share) / float(sigma.square().sum().sqrt())
    return Answer(
        float(error[-1]) / floor - 1, 0.1 + 4 / math.sqrt(2 * dimension), {"relative_error": floor}
    )


ORACLES: dict[str, Oracle] = {
    oracle.__name__: oracle
    for oracle in (
        eckart_young,
        soft_threshold,
        saxe,
        local_rate,
        stability,
        sharpness,
        noise_floor,
    )
}


def judge(setting: Setting, row: Row) -> None:
    """Writes what theory says of a run into its row: curves beside the measures, verdicts as tags, deviations."""
    for name, oracle in ORACLES.items():
        answer = oracle(setting, row)
        row.tags[f"oracle.{name}"] = "not applicable" if answer is None else answer.verdict
        if answer is None:
            continue
        if math.isfinite(answer.deviation):
            row.values[f"deviation.{name}"] = answer.deviation
        ones = np.ones(len(row.trajectory["step"]))
        row.trajectory |= {
            f"theory.{measure}": ones * curve for measure, curve in answer.curves.items()
        }
        row.values |= {f"theory.{measure}": value for measure, value in answer.values.items()}


def _inside(setting: Setting, row: Row) -> bool:
    """Whether the run started in the subspaces that it ended in, so that no mode outside of them had to decay."""
    pairs = ((setting.start[0], row.factors[0]), (setting.start[-1].mT, row.factors[-1].mT))
    for start, end in pairs:
        Q = torch.linalg.qr(end.to(torch.float64)).Q
        if not torch.linalg.norm(start - Q @ (Q.mT @ start)) <= 1e-6 * torch.linalg.norm(start):
            return False
    return True


def _scale(setting: Setting) -> float:
    """The loss of the zero matrix."""
    return curvature(setting.problem, setting.loss) / 2 * float(setting.problem.D.square().sum())


def _enough(setting: Setting, row: Row) -> float:
    return max(ENOUGH, setting.tolerance, 100 * row.epsilon)


def _excess(setting: Setting, row: Row, record: int = -1) -> float:
    """f/f* − 1 at a record, or the relative error where f* is 0; infinite for a run that diverged."""
    if row.outcome == "diverged" and record == -1:
        return math.inf
    loss = float(row.trajectory["loss"][record])
    if setting.optimum > 0:
        return loss / setting.optimum - 1
    return math.sqrt(loss / (_scale(setting) or 1.0))
