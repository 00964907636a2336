"""Product, objective, gradient."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cache, reduce
from typing import Any

import torch
from torch import Tensor

from mfgd.loss import Loss
from mfgd.problem import Problem
from mfgd.types import Factors

# MKL, which multiplies on most CPUs, would let the last bit of a product depend on where in memory a run of a batch
# lies. It looks here before its first product.
os.environ.setdefault("MKL_CBWR", "AUTO")

# Where one way of computing overtakes another.
TINY = 400
"""Below so many multiplications torch.bmm has no kernel but a plain loop."""
MANY = 2000
"""From so many multiplications for each product of vectors on, that loop is slower than passes over all runs."""
GRAM = 60_000
"""From so many entries of a full matrix on, Gram matrices are cheaper than its residual."""
BLOCK = 1 << 19
"""Entries of a residual that are computed at once."""
GRAIN = 1 << 15
"""From so many entries on, torch has several threads work on one matrix."""


@contextmanager
def serially(n: int, m: int) -> Iterator[None]:
    """One thread for a small matrix: how several would share the work, and with it the last bit, depends on company."""
    threads = torch.get_num_threads()
    if n * m < GRAIN:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def product(factors: Factors) -> Tensor:
    """D̂ = W₁ W₂ … W_L, (*, n, m)."""
    return reduce(_times(factors), factors)


def interleaves(n: int, k: int, m: int, runs: int, device: torch.device | str) -> bool:
    """Whether runs with factors (n, k) … (k, m) are best laid out by `interleaved` and multiplied entry by entry.

    The numbers are the same either way, to the last bit: a run does not depend on its company.
    """
    if n * k * m >= TINY or torch.device(device).type != "cpu":
        return False
    return runs * n * k * m > MANY * (n + k + m) or not _plain_bmm()


def interleaved(runs: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape as (B, *shape), with the same entry of all runs side by side in memory."""
    return torch.stack(tuple(runs), -1).movedim(-1, 0)


Block = tuple[slice | None, Tensor, Tensor | None]
"""Some rows, or None for all; D there, with the factor that `Objective.beta` is short of −c; c times the mask."""


class Objective:
    """f(W₁ … W_L) = w Σ M ∘ ρ(W₁…W_L − D) + λ/2 Σ_l ‖W_l‖² of a problem and a loss, and its gradient."""

    def __init__(self, problem: Problem, loss: Loss) -> None:
        self.problem, self.loss, self.pattern = problem, loss, problem.pattern
        self.room: Tensor | None = None
        self.weight = loss.scale / problem.count if loss.reduction == "mean" else loss.scale
        self.weighted = bool((torch.as_tensor(self.weight) != 1).any())
        self.penalized = bool((torch.as_tensor(loss.penalty) != 0).any())
        nothing = torch.zeros(
            (*problem.D.shape[:-2], 1, 1), dtype=problem.D.dtype, device=problem.D.device
        )
        if (loss.value(nothing) != 0).any() or (loss.slope(nothing) != 0).any():
            raise ValueError(
                "a loss and its derivative must be 0 at 0: missing entries count as entries that are right"
            )
        n, m = problem.shape
        self.gram = loss.curvature is not None and problem.complete and n * m >= GRAM
        # A quadratic loss has ρ′(R) = c R. Where its curvature c rounds nothing it joins the product, where it is free.
        self.folded = loss.curvature is not None and math.frexp(loss.curvature)[0] == 0.5
        self.gain = loss.curvature if self.folded and loss.curvature else 1.0
        self.beta = -self.gain
        D, mask = problem.entries, problem.mask
        if self.pattern is not None:
            self.blocks: list[Block] = [(None, D, None)]
            return
        if mask is not None or n * m < TINY:
            D, self.beta = (
                _once(
                    lambda D, mask=1.0: -self.gain * D * mask, D, *(() if mask is None else (mask,))
                ),
                1.0,
            )
            mask = None if mask is None else _once(lambda mask: self.gain * mask, mask)
        self.blocks = [(rows, rows_of(D, rows), rows_of(mask, rows)) for rows in row_blocks(n, m)]

    def residual(self, factors: Factors) -> Tensor:
        """M ∘ (W₁ W₂ … W_L − D), (*, n, m), of a sparse D on its entries, (*, 1, N)."""
        return torch.cat(
            [self._residual(factors, block).mul_(1 / self.gain) for block in self.blocks], -2
        )

    def value(self, factors: Factors) -> Tensor:
        """f, (*,)."""
        sums, c = [], self.loss.curvature
        for block in self.blocks:
            R = self._residual(factors, block)
            # ρ(r) = c/2 r² takes one pass, in place: on a large matrix each is as slow as the product.
            values = R.square_() if c else self.loss.value(R.mul_(1 / self.gain))
            # Contiguous: the order of a sum follows the layout in memory, and interleaved runs have another one.
            sums.append(values.contiguous().sum((-2, -1), keepdim=True))
        terms = self.weight * (c / 2 / self.gain**2 if c else 1.0) * reduce(torch.add, sums)
        if self.penalized:
            squares = (W.contiguous().square().sum((-2, -1), keepdim=True) for W in factors)
            terms = terms + self.loss.penalty / 2 * reduce(torch.add, squares)
        return terms[..., 0, 0]

    def gradient(self, factors: Factors, only: int | None = None) -> Factors:
        """∂f/∂W_l = w (W₁…W_{l−1})ᵀ (M ∘ ρ′(R)) (W_{l+1}…W_L)ᵀ + λ W_l, of the shapes of the factors.

        Args:
            factors: where, W₁ (*, n, k) … W_L (*, k, m).
            only: of which factor, counted from 0; None: of all.
        """
        times = _times(factors)
        tails = [factors[-1]]  # W_{l+1}…W_L
        for W in factors[-2:0:-1]:
            tails.append(times(W, tails[-1]))
        tails.reverse()
        by = self._by_grams if self.gram else self._by_residual
        gradients = by(factors, tails, only)
        if self.weighted:
            gradients = [G.mul_(self.weight) for G in gradients]
        if self.penalized:
            moved = factors if only is None else (factors[only],)
            gradients = [
                G.add_(self.loss.penalty * W) for G, W in zip(gradients, moved, strict=True)
            ]
        return tuple(gradients)

    def hessian(self, factors: Factors, direction: Factors) -> Factors:
        """The derivative of the gradient along a direction V₁ … V_L, of the shapes of the factors: the Hessian times V.

        The product rule on `gradient`, where M ∘ ρ′(R) changes by M ∘ ρ″(R) ∘ Σ_l W₁…V_l…W_L.
        """
        times = _times(factors)
        tails, turns = [factors[-1]], [direction[-1]]  # W_{l+1}…W_L, and how it changes
        for W, V in zip(factors[-2:0:-1], direction[-2:0:-1], strict=True):
            turns.append(times(V, tails[-1]) + times(W, turns[-1]))
            tails.append(times(W, tails[-1]))
        tails.reverse()
        turns.reverse()
        heads, B, dB = (
            [],
            torch.zeros_like(tails[0]),
            torch.zeros_like(tails[0]),
        )  # (W₁…W_{l−1})ᵀ S, and its change
        for block in self.blocks:
            W, V = rows_of(factors[0], block[0]), rows_of(direction[0], block[0])
            S = self._residual((factors[0], tails[0]), block)
            changes = times if self.pattern is None else self.pattern.sampled
            dS = changes(V, tails[0]) + changes(W, turns[0])
            dS = dS.mul_(self.gain) if block[2] is None else dS.mul_(block[2])
            if not self.folded:
                S, dS = torch.func.jvp(self.loss.slope, (S,), (dS,))  # type: ignore[misc]
            heads.append(self.against(dS, tails[0], times) + self.against(S, turns[0], times))
            B = B + self.along(W, S, times)
            dB = dB + self.along(V, S, times) + self.along(W, dS, times)
        products = [torch.cat(heads, -2)]
        for W, V, tail, turn in zip(
            factors[1:-1], direction[1:-1], tails[1:], turns[1:], strict=True
        ):
            products.append(times(dB, tail.mT) + times(B, turn.mT))
            B, dB = times(W.mT, B), times(V.mT, B) + times(W.mT, dB)
        return tuple(
            self.weight * H + self.loss.penalty * V
            for H, V in zip([*products, dB], direction, strict=True)
        )

    def with_room(self, factors: Factors) -> Objective:
        """The same with memory for residuals of such factors: fresh pages at every step cost more than the arithmetic.

        Its gradients can not be differentiated.
        """
        made = copy(self)
        if not self.gram and self.pattern is None and factors[0].ndim == 3:
            made.room = self._residual(factors, self.blocks[0])
        return made

    def masked(self, X: Tensor) -> Tensor:
        """M ∘ X; an X of the shape of the residual of a sparse D has no other entries."""
        return X if self.problem.mask is None else self.problem.mask * X

    def against(self, S: Tensor, F: Tensor, times: Callable[..., Tensor] = torch.matmul) -> Tensor:
        """S Fᵀ, (*, n, k), of an S of the shape of the residual and F (*, k, m)."""
        if self.pattern is not None:
            return self.pattern.times(S, F.mT)
        return times(F, S.mT).mT  # written along its long side: up to twice as fast

    def along(self, C: Tensor, S: Tensor, times: Callable[..., Tensor] = torch.matmul) -> Tensor:
        """Cᵀ S, (*, k, m), of C (*, n, k) and such an S."""
        return times(C.mT, S) if self.pattern is None else self.pattern.transposed_times(S, C).mT

    def laid_out(self, factors: Factors) -> Factors:
        """The factors with each laid out as its gradient is: what joins both entry by entry is one pass of memory."""
        if self.pattern is not None:
            return (*(W.contiguous() for W in factors[:-1]), factors[-1].mT.contiguous().mT)
        return (
            factors if _times(factors) is _spread else (factors[0].mT.contiguous().mT, *factors[1:])
        )

    def _residual(self, factors: Factors, block: Block, out: Tensor | None = None) -> Tensor:
        """c M ∘ (W₁ W₂ … W_L − D) on the rows of a block, written to `out` or to as many of its rows."""
        rows, D, mask = block
        times = _times(factors)
        left, right = reduce(times, (rows_of(factors[0], rows), *factors[1:-1])), factors[-1]
        if self.pattern is not None:
            return self.pattern.sampled(self.gain * left, right).sub_(D, alpha=self.gain)
        if out is not None and rows is not None:
            out = out[..., : left.shape[-2], :]
        if mask is not None:
            return torch.addcmul(D, times(left, right, out=out), mask, out=out)
        if times is torch.bmm:
            return torch.baddbmm(D, left, right, beta=self.beta, alpha=self.gain, out=out)
        if times is _spread:
            return torch.add(D, times(left, right, out=out), alpha=self.gain, out=out)
        return torch.add(self.beta * D, times(left, right), alpha=self.gain)

    def _by_residual(self, factors: Factors, tails: list[Tensor], only: int | None) -> list[Tensor]:
        times, tail, heads, above = _times(factors), tails[0], [], None
        for block in self.blocks:
            R = self._residual((factors[0], tail), block, self.room)
            S = R if self.folded else self.loss.slope(R)
            if only is None or only == 0:
                heads.append(self.against(S, tail, times))
            if only != 0:
                below = self.along(rows_of(factors[0], block[0]), S, times)
                above = below if above is None else above.add_(below)
        gradients = [torch.cat(heads, -2)] if len(heads) > 1 else heads
        if above is None:
            return gradients
        for level, (W, tail) in enumerate(zip(factors[1:-1], tails[1:], strict=True), 1):
            if only is None or only == level:
                gradients.append(times(above, tail.mT))
            above = times(W.mT, above)
        return [*gradients, above] if only is None or only == len(factors) - 1 else gradients

    def _by_grams(self, factors: Factors, tails: list[Tensor], only: int | None) -> list[Tensor]:
        """c ((LᵀL) W_l (T Tᵀ) − (LᵀD) Tᵀ) with L = W₁…W_{l−1}, T = W_{l+1}…W_L and the curvature c.

        For a quadratic loss of a full matrix: two products with D, where the residual takes three of that size.
        """
        c = self.loss.curvature or 1.0
        gradients, seen, grown = [], self.problem.D, factors[0]  # seen: LᵀD, grown: LᵀL W_l
        for level, (W, after, tail) in enumerate(zip(factors, factors[1:], tails, strict=False)):
            if only is None or only == level:
                gradients.append(
                    (tail @ seen.mT).mul_(-c).add_((tail @ tail.mT) @ grown.mT, alpha=c).mT
                )
                if only == level:
                    return gradients
            seen, grown = W.mT @ seen, W.mT @ grown @ after
        return [*gradients, (grown - seen).mul_(c)]


def row_blocks(n: int, m: int) -> list[slice | None]:
    """Rows of an (n, m) matrix, `BLOCK` entries at a time; None: all of them."""
    height = max(1, BLOCK // m)
    return [None] if height >= n else [slice(i, i + height) for i in range(0, n, height)]


def rows_of(X: Any, rows: slice | None) -> Any:
    """Some rows of a matrix, or of none."""
    return X if rows is None or X is None else X[..., rows, :]


def _times(factors: Factors) -> Callable[..., Tensor]:
    """How factors of these sizes are multiplied."""
    first, last = factors[0], factors[-1]
    if first.ndim != 3 or last.ndim != 3:
        return torch.matmul
    runs, n, k = first.shape
    if interleaves(n, k, last.shape[2], runs, first.device):
        return _spread
    return (
        torch.bmm
    )  # torch.matmul looks at its shapes for as long as it takes to multiply small ones


def _spread(A: Tensor, B: Tensor, out: Tensor | None = None) -> Tensor:
    """A B as a sum of outer products, rounded after each product and each sum as in torch.bmm's loop."""
    columns, rows = A.mT.unsqueeze(-1).unbind(-3), B.unsqueeze(-2).unbind(-3)
    total = torch.mul(columns[0], rows[0], out=out)
    for column, row in zip(columns[1:], rows[1:], strict=True):
        total.add_(column * row)
    return total


@cache
def _plain_bmm() -> bool:
    """Whether torch.bmm has the same bits as `_spread`: not where its compiler fused products with sums."""
    # Not drawn: the first to ask may be inside torch.func.vmap, which forbids that.
    A, B = (
        torch.arange(9.0 * n * m, dtype=torch.float64).sin().view(9, n, m)
        for n, m in ((4, 7), (7, 5))
    )
    pairs = [(A, B), (A.float(), B.float()), (A.mT.contiguous().mT, B.mT.contiguous().mT)]
    products = [(A[..., :1] + B[:, :1], A, B, _spread(A, B)) for A, B in pairs]
    return all(
        torch.equal(torch.bmm(A, B), AB)
        and torch.equal(torch.baddbmm(start, A, B, alpha=2), torch.add(start, AB, alpha=2))
        for start, A, B, AB in products
    )


def _once(function: Callable[..., Tensor], *arrays: Tensor) -> Tensor:
    """The function of arrays, taken once where all runs share them, and shared."""
    if all(X.ndim == 3 and X.stride(0) == 0 for X in arrays):
        return function(*(X[:1] for X in arrays)).expand_as(arrays[0])
    return function(*arrays)
