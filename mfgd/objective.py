"""The objective of a problem and a loss: value, gradient, Hessian."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial, reduce
from typing import NamedTuple

import torch
from torch import Tensor

from mfgd.kernel import GRAM, Multiply, ScaledResidual, choose_multiply, product, take_rows
from mfgd.linalg import sum_matrix
from mfgd.loss import Loss
from mfgd.observation import Observation
from mfgd.target import Problem
from mfgd.types import Factors, Refused


class Block(NamedTuple):
    """Some rows of D."""

    rows: slice | None
    """Which rows; None: all."""
    seen: Observation
    """What is seen of these rows."""
    scaled_residual: ScaledResidual
    """The residual of these rows, times `Objective.gain`."""


class Objective:
    """f(W₁ … W_L) = w Σ M ∘ ρ(W₁…W_L, D) + λ/2 Σ_l ‖W_l‖², and its derivatives.

    M is 1 for an observed entry and 0 for any other; w is the loss's scale, over the number of
    observed entries if the loss is reduced to its mean.

    Raises:
        Refused: the value of the loss does not take a prediction and a target.
    """

    def __init__(self, problem: Problem, loss: Loss) -> None:
        _refuse_other_arguments(loss)
        self.problem, self.loss, self.observation = problem, loss, problem.observation
        self.weight = loss.weigh(problem.count)
        self.weighted = bool((torch.as_tensor(self.weight) != 1).any())
        self.penalized = bool((torch.as_tensor(loss.penalty) != 0).any())
        n, m = problem.shape
        self.gram = loss.curvature is not None and problem.complete and n * m >= GRAM
        # A quadratic loss has ρ′(r) = c r. The product takes a factor c for nothing, but only a
        # power of two rounds no bit.
        self.folded = loss.curvature is not None and math.frexp(loss.curvature)[0] == 0.5
        self.gain = loss.curvature if self.folded and loss.curvature else 1.0
        self.restricted = not _vanishes_at_zero(loss, problem.observation.target)
        self.blocks: list[Block] = []
        for rows, seen in problem.observation.blocks():
            self.blocks.append(Block(rows, seen, seen.scaled_residual(self.gain)))
        self._memory: Tensor | None = None

    def expand(self, factors: Factors) -> Factors:
        """W₁ … W_L, given the factors that move: all, but for tied factors (`mfgd.tied`)."""
        return factors

    def free(self, factors: Factors) -> Factors:
        """The factors that move."""
        return factors

    def residual(self, factors: Factors) -> Tensor:
        """M ∘ (W₁ W₂ … W_L − D), laid out like the target of the observation."""
        parts = [self._scaled_residual(block, factors).mul_(1 / self.gain) for block in self.blocks]
        return torch.cat(parts, -2)

    def value(self, factors: Factors) -> Tensor:
        """f, (*,), summed in double precision: the squares of small numbers vanish in single
        precision."""
        sums, c = [], self.loss.curvature
        for block in self.blocks:
            if c:
                # ρ(r) = c/2 r² in place: each pass over a large matrix is as slow as the product.
                values = self._scaled_residual(block, factors).to(torch.float64).square_()
            else:
                values = self._losses(block, factors)
            sums.append(sum_matrix(values))
        factor = c / 2 / self.gain**2 if c else 1.0
        total = self.weight * factor * reduce(torch.add, sums)
        if self.penalized:
            doubles = [W.to(torch.float64).contiguous() for W in factors]
            squares = [sum_matrix(W.square()) for W in doubles]
            total = total + self.loss.penalty / 2 * reduce(torch.add, squares)
        return total[..., 0, 0]

    def gradient(self, factors: Factors, only: int | None = None) -> Factors:
        """∂f/∂W_l = w (W₁…W_{l−1})ᵀ S (W_{l+1}…W_L)ᵀ + λ W_l with S = M ∘ ρ′(W₁…W_L, D).

        Args:
            factors: W₁ (*, n, k) … W_L (*, k, m).
            only: the factor whose gradient is wanted, counted from 0; None: every factor.

        Returns:
            Gradients of the shapes of the factors.
        """
        multiply = choose_multiply(factors)
        tails = _tail_products(factors, multiply)
        if self.gram:
            gradients = self._gradient_by_grams(factors, tails, only)
        else:
            gradients = self._gradient_by_slopes(factors, tails, only, multiply)
        if self.weighted:
            gradients = [G.mul_(self.weight) for G in gradients]
        if self.penalized:
            moved = factors if only is None else (factors[only],)
            for G, W in zip(gradients, moved, strict=True):
                G.add_(self.loss.penalty * W)
        return tuple(gradients)

    def hessian(self, factors: Factors, direction: Factors) -> Factors:
        """The Hessian of f times a direction V₁ … V_L, of the shapes of the factors.

        This is the derivative of `gradient` along V by the product rule: W_l changes by V_l, and S
        = M ∘ ρ′ changes by dS = M ∘ ρ″ ∘ Σ_l W₁…V_l…W_L.
        """
        multiply = choose_multiply(factors)
        tails, turns = _differentiate_tails(factors, direction, multiply)
        # B = (W₁…W_{l−1})ᵀ S W_{l+1}… and dB, the change of B.
        first, B, dB = [], torch.zeros_like(tails[0]), torch.zeros_like(tails[0])
        for block in self.blocks:
            W, V = take_rows(factors[0], block.rows), take_rows(direction[0], block.rows)
            moved = block.seen.apply(V, tails[0], multiply) + block.seen.apply(
                W, turns[0], multiply
            )
            seen = block.seen
            S, dS = self._slopes_and_change(block, (factors[0], tails[0]), moved)
            S, dS = seen.pull_back(S), seen.pull_back(dS)
            first.append(
                seen.times_transposed(dS, tails[0], multiply)
                + seen.times_transposed(S, turns[0], multiply)
            )
            B = B + seen.transposed_times(W, S, multiply)
            dB = dB + seen.transposed_times(V, S, multiply) + seen.transposed_times(W, dS, multiply)
        changes = [torch.cat(first, -2)]
        for level in range(1, len(factors) - 1):
            W, V, tail, turn = factors[level], direction[level], tails[level], turns[level]
            changes.append(multiply(dB, tail.mT) + multiply(B, turn.mT))
            B, dB = multiply(W.mT, B), multiply(V.mT, B) + multiply(W.mT, dB)
        changes.append(dB)
        penalty = self.loss.penalty
        return tuple(self.weight * H + penalty * V for H, V in zip(changes, direction, strict=True))

    def preallocate(self, factors: Factors) -> Objective:
        """This objective with memory for the residuals of such factors.

        Fresh pages at every step cost more than the arithmetic. A gradient that uses the memory
        cannot be differentiated.
        """
        made = copy(self)
        if factors[0].ndim == 3 and not self.gram:
            made._memory = self._scaled_residual(self.blocks[0], factors)
        return made

    def _scaled_residual(self, block: Block, factors: Factors, out: Tensor | None = None) -> Tensor:
        """c M ∘ (W₁ W₂ … W_L − D) on the rows of a block, with c the gain."""
        multiply = choose_multiply(factors)
        first = take_rows(factors[0], block.rows)
        left, right = reduce(multiply, (first, *factors[1:-1])), factors[-1]
        if out is not None and block.rows is not None:
            out = out[..., : left.shape[-2], :]
        return block.scaled_residual(left, right, multiply, out)

    def _losses(self, block: Block, factors: Factors) -> Tensor:
        """M ∘ ρ on the rows of a block, in double precision."""
        if self.loss.rho is not None:
            residual = self._scaled_residual(block, factors).mul_(1 / self.gain)
            values = self.loss.rho(residual.to(torch.float64))
        else:
            first = take_rows(factors[0], block.rows)
            prediction = block.seen.apply(product((first, *factors[1:-1])), factors[-1])
            target = block.seen.target.to(torch.float64)
            values = self.loss.value(prediction.to(torch.float64), target)
        return block.seen.restrict(values) if self.restricted else values

    def _slopes(self, block: Block, factors: tuple[Tensor, Tensor], out: Tensor | None) -> Tensor:
        """S = M ∘ ρ′ on the rows of a block, for factors (W₁, W₂…W_L)."""
        if self.folded:
            return self._scaled_residual(block, factors, out)
        point, slope = self._slope_function(block, factors, out)
        return block.seen.restrict(slope(point)) if self.restricted else slope(point)

    def _slopes_and_change(
        self, block: Block, factors: tuple[Tensor, Tensor], moved: Tensor
    ) -> tuple[Tensor, Tensor]:
        """S = M ∘ ρ′ on the rows of a block, and its change if the prediction changes by
        `moved`."""
        if self.folded:
            return self._scaled_residual(block, factors), moved.mul_(self.gain)
        point, slope = self._slope_function(block, factors)
        S, dS = torch.func.jvp(slope, (point,), (moved,))  # type: ignore[misc]
        if self.restricted:
            return block.seen.restrict(S), block.seen.restrict(dS)
        return S, dS

    def _slope_function(
        self, block: Block, factors: tuple[Tensor, Tensor], out: Tensor | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The residual of a block, or the prediction if ρ depends on both prediction and target,
        and ρ′ as a function of it."""
        if self.loss.slope is not None:
            return self._scaled_residual(block, factors, out), self.loss.slope
        W = take_rows(factors[0], block.rows)
        prediction = block.seen.apply(W, factors[1], choose_multiply(factors))
        return prediction, partial(self.loss.differentiate, target=block.seen.target)

    def _gradient_by_slopes(
        self, factors: Factors, tails: Sequence[Tensor], only: int | None, multiply: Multiply
    ) -> list[Tensor]:
        """Σ over blocks of S (W₂…W_L)ᵀ and W₁ᵀ S, then one product for each further factor."""
        first: list[Tensor] = []
        above: Tensor | None = None  # (W₁…W_{l−1})ᵀ S
        for block in self.blocks:
            S = block.seen.pull_back(self._slopes(block, (factors[0], tails[0]), self._memory))
            if only is None or only == 0:
                first.append(block.seen.times_transposed(S, tails[0], multiply))
            if only != 0:
                part = take_rows(factors[0], block.rows)
                below = block.seen.transposed_times(part, S, multiply)
                above = below if above is None else above.add_(below)
        gradients = [torch.cat(first, -2)] if len(first) > 1 else first
        if above is None:
            return gradients
        for level in range(1, len(factors) - 1):
            if only is None or only == level:
                gradients.append(multiply(above, tails[level].mT))
            above = multiply(factors[level].mT, above)
        return [*gradients, above] if only is None or only == len(factors) - 1 else gradients

    def _gradient_by_grams(
        self, factors: Factors, tails: Sequence[Tensor], only: int | None
    ) -> list[Tensor]:
        """c ((LᵀL) W_l (T Tᵀ) − (LᵀD) Tᵀ) with L = W₁…W_{l−1}, T = W_{l+1}…W_L and the curvature c.

        A quadratic loss of a full matrix takes two products with D; its residual takes three
        products of that size.
        """
        c = self.loss.curvature or 1.0
        gradients, seen, grown = [], self.observation.target, factors[0]  # LᵀD and LᵀL W_l
        for level, tail in enumerate(tails):
            W, after = factors[level], factors[level + 1]
            if only is None or only == level:
                pulled = (tail @ seen.mT).mul_(-c)
                gradients.append(pulled.add_((tail @ tail.mT) @ grown.mT, alpha=c).mT)
                if only == level:
                    return gradients
            seen, grown = W.mT @ seen, W.mT @ grown @ after
        return [*gradients, (grown - seen).mul_(c)]


def _tail_products(factors: Factors, multiply: Multiply) -> list[Tensor]:
    """W_{l+1}…W_L for l = 1 … L − 1."""
    tails = [factors[-1]]
    for W in factors[-2:0:-1]:
        tails.append(multiply(W, tails[-1]))
    tails.reverse()
    return tails


def _differentiate_tails(
    factors: Factors, direction: Factors, multiply: Multiply
) -> tuple[list[Tensor], list[Tensor]]:
    """W_{l+1}…W_L for l = 1 … L − 1, and their changes along a direction."""
    tails, turns = [factors[-1]], [direction[-1]]
    for W, V in zip(factors[-2:0:-1], direction[-2:0:-1], strict=True):
        turns.append(multiply(V, tails[-1]) + multiply(W, turns[-1]))
        tails.append(multiply(W, tails[-1]))
    tails.reverse()
    turns.reverse()
    return tails, turns


def _vanishes_at_zero(loss: Loss, target: Tensor) -> bool:
    """Whether ρ and ρ′ are 0 at the residual 0, so that an entry that is not observed adds
    nothing."""
    if loss.rho is None or loss.slope is None:
        return False
    zero = torch.zeros((*target.shape[:-2], 1, 1), dtype=target.dtype, device=target.device)
    return not (loss.rho(zero) != 0).any() and not (loss.slope(zero) != 0).any()


def _refuse_other_arguments(loss: Loss) -> None:
    try:
        parameters = inspect.signature(loss.value).parameters
    except ValueError:  # a built-in function does not tell
        return
    if len(parameters) == 1:
        raise Refused(
            "loss: the value of a Loss takes a prediction and a target; "
            "mfgd.loss.residual_loss takes a function of the residual"
        )
