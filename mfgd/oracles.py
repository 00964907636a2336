"""What theory says the measurement should be."""

import math

from torch import Tensor

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
    if loss.curvature is None or problem.mask is not None or (loss.penalty > 0 and depth != 2):
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
    import torch

    return torch.where(sigma > sigma[0] * max(problem.shape) * torch.finfo(sigma.dtype).eps, sigma, 0)
