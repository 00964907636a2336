"""What theory says the measurement should be."""

import math

import numpy as np
import torch
from torch import Tensor

from mfgd import sparse
from mfgd.loss import Loss
from mfgd.problem import Problem


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
    sigma = singular_values(problem)
    assert sigma is not None
    weight = loss.curvature / 2 * loss.scale / (math.prod(problem.shape) if loss.reduction == "mean" else 1)
    head, tail = sigma[:rank], sigma[rank:]
    threshold = loss.penalty / (2 * weight)
    kept = weight * head.clamp(max=threshold).square().sum() + loss.penalty * (head - threshold).clamp(min=0).sum()
    return float(kept + weight * tail.square().sum())


def singular_values(problem: Problem) -> Tensor | None:
    """The problem's singular values with what is rounding only, below σ₁ max(n, m) ε, set to 0; None where unknown."""
    sigma = problem.spectrum
    if sigma is None:
        return None
    return torch.where(sigma > sigma[0] * max(problem.shape) * torch.finfo(sigma.dtype).eps, sigma, 0)


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


def rate_unit(problem: Problem, loss: Loss) -> float:
    """1/(c σ₁): the rate up to which gradient descent is stable at the balanced answer, at depth 2.

    There its sharpness is 2 c σ₁, the least that any global minimizer has, and 2 over it is the limit: beyond, gradient
    descent converges to none of them (Mulayoff, Michaeli 2020, Unique properties of flat minima in deep networks). c is
    the `curvature`, σ₁ the largest singular value of D, of an incomplete one that of the observed matrix over the share
    observed. NaN where c is unknown, infinite where D is 0.
    """
    share = float(problem.count) / math.prod(problem.shape)
    steepest = curvature(problem, loss) * largest(problem.D)
    return share / steepest if steepest != 0 else math.inf


def largest(D: Tensor) -> float:
    """σ₁ of a matrix (n, m), of a large or sparse one by Lanczos."""
    dense = D.layout == torch.strided
    if not (D if dense else D.values()).any():
        return 0.0
    if dense and min(D.shape) < 200:
        return float(torch.linalg.matrix_norm(D, ord=2))
    from scipy.sparse.linalg import svds

    return float(
        svds(D.numpy() if dense else sparse.as_scipy(D), k=1, return_singular_vectors=False, v0=np.ones(min(D.shape)))[
            0
        ]
    )


def rate_limit(problem: Problem, loss: Loss, depth: int) -> float:
    """The rate beyond which gradient descent converges to no minimizer, NaN where theory does not know it.

    `rate_unit` for the squared loss of a complete D without penalty at depth 2.
    """
    known = loss.curvature is not None and problem.complete and loss.penalty == 0 and depth == 2
    return rate_unit(problem, loss) if known else math.nan
