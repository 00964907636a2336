"""How large the factors are, how far they are from balance, and from a best approximation."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from mfgd.kernel import product
from mfgd.linalg import frobenius_norm, is_finite, join_norms
from mfgd.sparse import distance
from mfgd.spectra import Triplets
from mfgd.types import Factors


def factor_norms(factors: Factors) -> list[Tensor]:
    """‖W_l‖_F of each factor, as many (*,) as factors."""
    return [frobenius_norm(W) for W in factors]


def pair_balances(factors: Factors) -> list[Tensor]:
    """‖W_lᵀW_l − W_{l+1}W_{l+1}ᵀ‖_F of each pair of neighbours, (*,); none of them changes along
    gradient flow.

    Source: Arora, Cohen, Hazan 2018, On the optimization of deep networks, theorem 1.
    """
    return [frobenius_norm(W.mT @ W - V @ V.mT) for W, V in pairwise(factors)]


def norm_gap(factors: Factors) -> Tensor:
    """‖W₁‖² − ‖W_L‖², at depth 2 ‖C‖² − ‖F‖², (*,); it does not change along gradient flow.

    Source: Du, Hu, Lee 2018, Algorithmic regularization in learning deep homogeneous models,
    theorem 2.1.
    """
    return frobenius_norm(factors[0]).square() - frobenius_norm(factors[-1]).square()


def root_balance(factors: Factors) -> Tensor:
    """‖√(CᵀC) − √(FFᵀ)‖_F, in units of a factor, (*,); at depth L the root of the sum of its
    squares over the pairs of neighbours."""
    gaps = [_root_of_gram(W) - _root_of_gram(V.mT) for W, V in pairwise(factors)]
    return join_norms(map(frobenius_norm, gaps))


def _root_of_gram(W: Tensor) -> Tensor:
    """√(WᵀW) of W (*, n, k), from its singular values; NaN for a run that is not finite."""
    finite = is_finite(W)[..., None, None]
    R = torch.linalg.qr(torch.where(finite, W, 0), mode="r").R
    # The norm of a finite column may be beyond the largest number.
    finite = finite & is_finite(R)[..., None, None]
    _, sigma, Vh = torch.linalg.svd(torch.where(finite, R, 0), full_matrices=False)
    return torch.where(finite, Vh.mT * sigma[..., None, :] @ Vh, torch.nan)


def best_rank_error(factors: Factors, best: Triplets) -> Tensor:
    """‖D̂ − T‖ / ‖T‖ with T = U diag(σ) Vᵀ, (*,).

    T is the best approximation of rank `problem.target_rank` of the matrix that `relative_error`
    refers to, in the Frobenius norm.

    Source: Eckart, Young 1936, The approximation of one matrix by another of lower rank.
    """
    missed = distance(
        (product(factors[:-1]), factors[-1]), (best.U * best.sigma[..., None, :], best.V.mT)
    )
    return missed / torch.linalg.vector_norm(best.sigma, dim=-1)
