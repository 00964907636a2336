"""What theory knows of a run before its first step."""

from __future__ import annotations

import math

import torch

from mfgd.dense import AllEntries
from mfgd.loss import Loss
from mfgd.schatten import least_penalized
from mfgd.symmetric import eigenpairs, is_semidefinite, part_by_definiteness
from mfgd.target import Problem


def is_quadratic(problem: Problem, loss: Loss) -> bool:
    """Whether this is the squared loss of a complete matrix, without penalty."""
    return loss.curvature is not None and problem.complete and loss.penalty == 0


def optimum(
    problem: Problem, loss: Loss, rank: int, depth: int = 2, *, symmetric: bool = False
) -> float:
    """The least value that the objective can take, NaN if theory does not know it.

    - Squared loss of a complete D: w Σ_{i>k} σ_i² (Eckart, Young 1936). At depth 2 the penalty λ
      acts as λ‖CF‖_* (Srebro, Rennie, Jaakkola 2005, lemma 1): the optimum soft-thresholds σ_i at
      τ = λ/2w, and is w Σ_{i≤k} min(σ_i, τ)² + λ Σ_{i≤k} max(σ_i − τ, 0) + w Σ_{i>k} σ_i². Beyond
      depth 2 it is that of `mfgd.schatten`.
    - Any loss without penalty that is 0 at the target, if D is its own noiseless truth of rank ≤
      k: 0.

    Of tied factors, D ≈ U Uᵀ, the σ_i are the positive eigenvalues of (D + Dᵀ)/2, and the rest of D
    adds w times its sum of squares (Higham 1988, Computing a nearest symmetric positive
    semidefinite matrix, theorem 2.1); the penalty λ‖U‖² is λ‖UUᵀ‖_*. A truth with negative
    eigenvalues is out of their reach.

    Args:
        problem: the problem of one run, without leading dimensions.
        loss: the loss of one run, with plain numbers.
        rank: k, the width of the factors.
        depth: number of factors.
        symmetric: whether the two factors are tied.
    """
    reaches = loss.zero_at_target and loss.penalty == 0
    reaches = reaches and problem.rank is not None and problem.rank <= rank
    if symmetric:
        reaches = reaches and problem.truth is not None and is_semidefinite(problem.truth)
    if reaches:
        return 0.0
    if loss.curvature is None or not problem.complete:
        return math.nan
    sigma, beyond = problem.spectrum, 0.0
    if symmetric:
        assert isinstance(problem.observation, AllEntries)
        sigma, beyond = part_by_definiteness(problem.observation)
    assert sigma is not None
    weight = loss.curvature / 2 * loss.scale
    if loss.reduction == "mean":
        weight /= math.prod(problem.shape)
    if loss.penalty > 0 and depth > 2:
        return least_penalized(sigma.tolist(), weight, loss.penalty, rank, depth)
    kept, left_out = sigma[:rank], sigma[rank:]
    threshold = loss.penalty / (2 * weight)
    shrunk = weight * kept.clamp(max=threshold).square().sum()
    norms = loss.penalty * (kept - threshold).clamp(min=0).sum()
    return float(shrunk + norms + weight * (left_out.square().sum() + beyond))


def curvature(problem: Problem, loss: Loss) -> float:
    """c of f ≈ c/2 ‖W₁…W_L − D‖² near the answer: ρ″(0) times the weight of an entry times the
    share of observed entries; N over the dilution of linear measurements stands for the share.

    NaN if ρ is no function of the residual, or if ρ has no positive second derivative at 0, like
    the absolute value.
    """
    second = loss.curvature
    if second is None:
        if loss.slope is None:
            return math.nan
        slope, zero = loss.slope, torch.zeros(1, 1, dtype=torch.float64)
        second = float(torch.func.grad(lambda r: slope(r).sum())(zero))
    if not second > 0:
        return math.nan
    size = problem.observation.dilution
    share = float(problem.count) / size
    return second * (loss.scale / size if loss.reduction == "mean" else loss.scale * share)


def rate_unit(problem: Problem, loss: Loss, depth: int, mean_share: float = 1.0) -> float:
    """2/(c L σ₁^{2−2/L}), 1/(c σ₁) at depth 2: gradient descent is stable at the balanced answer up
    to this rate.

    There its sharpness is c L σ₁^{2−2/L}, the least sharpness of a global minimizer. Gradient
    descent at a rate above 2 over it converges to no global minimizer (Mulayoff, Michaeli 2020,
    Unique properties of flat minima in deep networks). c is the `curvature`, L the depth, σ₁ the
    largest singular value of D; if D is incomplete, that of the observed matrix over the share of
    observed entries. NaN if c is unknown, infinite if D is 0.

    Rates lr s_l of their own for the factors are one rate for the factors W_l/√s_l, whose product
    is W₁…W_L/√(s₁⋯s_L): the limit is divided by the geometric mean of the shares s_l.

    Args:
        problem: of one run.
        loss: with plain numbers.
        depth: L.
        mean_share: (s₁⋯s_L)^{1/L}; 2 of tied factors, which move as a pair does at twice the rate.
    """
    share = float(problem.count) / problem.observation.dilution
    sharpness = (
        curvature(problem, loss) * depth * (problem.top_singular_value / share) ** (2 - 2 / depth)
    )
    return 2 / (sharpness * mean_share) if sharpness != 0 else math.inf


def rate_limit(
    problem: Problem, loss: Loss, depth: int, mean_share: float = 1.0, *, symmetric: bool = False
) -> float:
    """The rate above which gradient descent converges to no minimizer; NaN if theory does not know
    it.

    It is `rate_unit` for the squared loss of a complete D without penalty. Of tied factors it is 2
    over the sharpness of every global minimizer, 2c max(2λ₁, λ₁ − λ_n), with λ₁ the largest and λ_n
    the least eigenvalue of (D + Dᵀ)/2, or 0 if that is nearer to the other: the curvature is 2c
    (λ_i + λ_j) along two eigenvectors in U, and 2c (λ_i − λ_j) if the second one is not.
    """
    if not is_quadratic(problem, loss):
        return math.nan
    if symmetric:
        assert isinstance(problem.observation, AllEntries)
        values = eigenpairs(problem.observation).values
        top, least = float(values[0].clamp(min=0)), float(values[-1].clamp(max=0))
        sharpness = 2 * curvature(problem, loss) * max(2 * top, top - least)
        return 2 / sharpness if sharpness else math.inf
    return rate_unit(problem, loss, depth, mean_share)
