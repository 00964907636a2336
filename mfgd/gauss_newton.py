"""Gauss and Newton's step, and Levenberg and Marquardt's: the residual is linearized in all factors
at once, and least squares are solved."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Annotated, NamedTuple

import torch
from annotated_types import Gt
from torch import Tensor

from mfgd.method import Optimizer, Rate, choose_runs, descend_all, forget
from mfgd.objective import Objective
from mfgd.sparse import ListedEntries
from mfgd.streams import Streams
from mfgd.types import Factors, Positive, Refused

LARGEST = 1 << 24
"""Entries of a Jacobian, at most: 134 MB in double precision."""


class _Linearization(NamedTuple):
    """The residual of a run, r + J δ, with J = U S Vᵀ for a change δ of all factors."""

    V: Tensor
    """(p, q) for p entries of the factors."""
    sigma: Tensor
    """(q,)"""
    turned: Tensor
    """Uᵀ r, (q,)."""


def gauss_newton() -> Optimizer:
    """Gauss–Newton: W ← W − lr δ, with δ = J⁺ r of least norm among the minimizers of ‖r − Jδ‖.

    r is the residual W₁…W_L − D at the observed entries, and J its Jacobian with respect to all
    factors. J is never of full rank, because W₁Q and Q⁻¹W₂ have the product of W₁ and W₂; the
    solution of least norm needs no more, at a rank above that of D too. Singular values of J up to
    its larger side times ε times the largest count as 0. The method is for the squared loss without
    penalty; each step takes a singular value decomposition of J, (nm, p) for p entries of all
    factors.

    Source: Ben-Israel 1966, A Newton–Raphson method for the solution of systems of equations; for
    factorizations Buchanan, Fitzgibbon 2005, Damped Newton algorithms for matrix factorization with
    missing data.
    """

    def step(
        objective: Objective, factors: Factors, memory: None, lr: Rate
    ) -> tuple[Factors, None]:
        def solve(run: _Linearization, damping: Tensor) -> Tensor:
            kept = run.sigma > damping * run.sigma[:1]
            return run.V @ torch.where(kept, run.turned / run.sigma, 0)

        shape = factors[0].shape[:-2]
        size = max(objective.observation.shape[0] * objective.observation.shape[1], _count(factors))
        rounding = torch.full(shape, size * torch.finfo(factors[0].dtype).eps)
        return descend_all(factors, _solve_runs(objective, factors, rounding, solve), lr), None

    return Optimizer(forget, step, _make_check("gauss_newton"))


def levenberg_marquardt(*, damping: Positive, factor: Annotated[float, Gt(1)]) -> Optimizer:
    """Levenberg–Marquardt: W ← W − δ, with δ = (JᵀJ + d σ₁² I)⁻¹ Jᵀ r, if the loss falls.

    r and J are those of `gauss_newton`, σ₁ is the largest singular value of J. If the loss falls, d
    is divided by ``factor``; if not, the factors stay, and d is multiplied. There is no rate:
    ``lr`` is not used.

    Source: Marquardt 1963, An algorithm for least-squares estimation of nonlinear parameters, with
    one trial a step and one scale σ₁² for all entries.

    Args:
        damping: d at the first step.
        factor: of d, from step to step.
    """

    def init(factors: Factors, streams: Streams) -> Tensor:
        shape, device = factors[0].shape[:-2], factors[0].device
        return damping * torch.ones((*shape, 1, 1), dtype=torch.float64, device=device)

    def step(
        objective: Objective, factors: Factors, memory: Tensor, lr: Rate
    ) -> tuple[Factors, Tensor]:
        def solve(run: _Linearization, damping: Tensor) -> Tensor:
            ridge = damping * run.sigma[:1].square()
            return run.V @ (run.sigma * run.turned / (run.sigma.square() + ridge))

        directions = _solve_runs(objective, factors, memory[..., 0, 0], solve)
        moved = descend_all(factors, directions, 1.0)
        before, after = objective.value(factors), objective.value(moved)
        fell = after < before
        stays = ~fell & before.isfinite()  # a run that is not finite ends as diverged
        changed = torch.where(fell[..., None, None], memory / factor, memory * factor)
        return choose_runs(stays, factors, moved), changed

    return Optimizer(init, step, _make_check("levenberg_marquardt"))


def _count(factors: Factors) -> int:
    """The entries of all factors of a run."""
    return sum(W.shape[-2] * W.shape[-1] for W in factors)


def _solve_runs(
    objective: Objective,
    factors: Factors,
    damping: Tensor,
    solve: Callable[[_Linearization, Tensor], Tensor],
) -> Factors:
    """The directions of all factors, run by run: one Jacobian is in memory, and a run has the same
    bits in any batch.

    Args:
        objective: of the squared loss.
        factors: W₁ … W_L.
        damping: what `solve` is given of each run, (*,).
        solve: (linearization, damping of this run) → the change of all factors, (p,).
    """
    seen = objective.observation
    n, m = seen.shape
    runs = [W.reshape(-1, *W.shape[-2:]) for W in objective.expand(factors)]
    tied = len(runs) > len(factors)
    count = len(runs[0])
    residuals = objective.residual(factors).reshape(count, -1)
    listed = seen.rows * m + seen.columns if isinstance(seen, ListedEntries) else None
    masks = seen.restrict(torch.ones_like(seen.target))
    if listed is None:
        masks = masks.expand(*factors[0].shape[:-2], n, m).reshape(count, -1, 1)
    given = damping.reshape(-1).to(factors[0].device, factors[0].dtype)
    found = []
    for b, (r, d) in enumerate(zip(residuals, given, strict=True)):
        J = _find_jacobian([W[b] for W in runs])
        if tied:
            J = _join_tied(J, factors[0].shape[-1])
        J = J * masks[b] if listed is None else J[listed]
        if not (torch.isfinite(J).all() and torch.isfinite(r).all()):
            found.append(torch.full_like(J[0], torch.nan))
            continue
        U, sigma, Vh = torch.linalg.svd(J, full_matrices=False)
        found.append(solve(_Linearization(Vh.mT, sigma, U.mT @ r), d))
    parts = torch.split(torch.stack(found), [W.shape[-2] * W.shape[-1] for W in factors], -1)
    return tuple(part.reshape(W.shape) for part, W in zip(parts, factors, strict=True))


def _find_jacobian(Ws: list[Tensor]) -> Tensor:
    """The Jacobian of W₁ … W_L row by row with respect to the factors row by row, (nm, p): that of
    L V T with respect to V is L ⊗ Tᵀ."""
    n, m = Ws[0].shape[0], Ws[-1].shape[1]
    parts = []
    for level in range(len(Ws)):
        eye = torch.eye(n if level == 0 else m, dtype=Ws[0].dtype, device=Ws[0].device)
        left = eye if level == 0 else reduce(torch.matmul, Ws[:level])
        right = eye if level == len(Ws) - 1 else reduce(torch.matmul, Ws[level + 1 :])
        # torch.kron fails for some matrices of one column.
        blocks = left[:, None, :, None] * right.mT[None, :, None, :]
        parts.append(blocks.reshape(n * m, -1))
    return torch.cat(parts, -1)


def _join_tied(J: Tensor, k: int) -> Tensor:
    """The Jacobian with respect to U (n, k) of that with respect to the pair (U, Uᵀ)."""
    first, second = J.chunk(2, -1)
    return first + second.reshape(len(second), k, -1).mT.flatten(-2)


def _make_check(name: str) -> Callable[[Objective, Factors], None]:
    """What refuses a problem to which the method of a name does not apply."""

    def check(objective: Objective, factors: Factors) -> None:
        if objective.loss.curvature is None:
            raise Refused(f"optimizer={name}: allowed is loss=squared")
        if objective.penalized:
            raise Refused(f"optimizer={name}: allowed is loss.penalty=0")
        if not objective.observation.entrywise:
            raise Refused(f"optimizer={name}: allowed are problems whose entries are observed")
        n, m = objective.observation.shape
        if (size := n * m * _count(factors)) > LARGEST:
            told = f"the Jacobian of a {n}×{m} matrix has {size:,} entries"
            raise Refused(f"optimizer={name}: {told}; allowed are {LARGEST:,}")

    return check
