"""Product, objective, gradient, and the only loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from mfgd.loss import Loss
from mfgd.optimizer import Optimizer
from mfgd.problem import Problem
from mfgd.types import Factors

OUTCOMES = ("running", "converged", "budget", "diverged")
RUNNING, CONVERGED, BUDGET, DIVERGED = range(len(OUTCOMES))


class State(NamedTuple):
    """A run, or a batch of them, at one step."""

    step: int
    factors: Factors
    loss: Tensor
    """(*,), the objective at these factors."""
    outcome: Tensor
    """(*,), an index into `OUTCOMES`. A run that is no longer running is frozen: its factors stay as they are here."""


def product(factors: Factors) -> Tensor:
    """D̂ = W₁ W₂ … W_L, (*, n, m)."""
    return reduce(torch.matmul, factors)


class Objective:
    """f(W₁ … W_L) = w Σ M ∘ ρ(W₁…W_L − D) + λ/2 Σ_l ‖W_l‖² of a problem and a loss, and its gradient."""

    def __init__(self, problem: Problem, loss: Loss) -> None:
        self.problem, self.loss = problem, loss
        self.weight = loss.scale / problem.count if loss.reduction == "mean" else loss.scale
        # A quadratic loss has ρ′(R) = curvature · R: its factor joins the weight, and no pass over R is spent on it.
        self.slope = loss.slope if loss.curvature is None else lambda residual: residual
        self.gain = self.weight if loss.curvature is None else self.weight * loss.curvature
        self.scaled = bool((torch.as_tensor(self.gain) != 1).any())
        nothing = problem.D.new_zeros((*problem.D.shape[:-2], 1, 1))
        if (loss.value(nothing) != 0).any() or (loss.slope(nothing) != 0).any():
            raise ValueError(
                "a loss and its derivative must be 0 at 0: missing entries count as entries that are right"
            )
        self.penalized = bool((torch.as_tensor(loss.penalty) != 0).any())

    def residual(self, factors: Factors) -> Tensor:
        """M ∘ (W₁ W₂ … W_L − D), (*, n, m)."""
        *left, right = factors
        D, mask = self.problem.D, self.problem.mask
        if right.ndim <= 3:
            fused = torch.addmm if right.ndim == 2 else torch.baddbmm
            R = fused(D, product(tuple(left)), right, beta=-1)
        else:
            R = product(factors) - D
        return R if mask is None else R.mul_(mask)

    def value(self, factors: Factors) -> Tensor:
        """f, (*,)."""
        terms = self.weight * self.loss.value(self.residual(factors)).sum((-2, -1), keepdim=True)
        if self.penalized:
            terms = terms + self.loss.penalty / 2 * sum(W.square().sum((-2, -1), keepdim=True) for W in factors)
        return terms[..., 0, 0]

    def gradient(self, factors: Factors) -> Factors:
        """∂f/∂W_l = w (W₁…W_{l−1})ᵀ (M ∘ ρ′(R)) (W_{l+1}…W_L)ᵀ + λ W_l, of the shapes of the factors."""
        first, *rest = factors
        tails = [rest.pop()]
        while rest:
            tails.append(rest.pop() @ tails[-1])
        above = self.slope(self.residual((first, tails[-1])))
        gradients = []
        for W in factors[:-1]:
            gradients.append(above @ tails.pop().mT)
            above = W.mT @ above
        gradients.append(above)
        if self.scaled:
            gradients = [G.mul_(self.gain) for G in gradients]
        if self.penalized:
            gradients = [G.add_(self.loss.penalty * W) for G, W in zip(gradients, factors, strict=True)]
        return tuple(gradients)


def never(state: State) -> Tensor:
    """The stopping rule that stops no run."""
    return torch.zeros_like(state.loss, dtype=torch.bool)


@torch.no_grad()
def descent(
    objective: Objective,
    optimizer: Optimizer,
    factors: Factors,
    *,
    lr: float | Tensor | Sequence[float | Tensor],
    records: Sequence[int],
    divergence: float | Tensor = float("inf"),
    reached: Callable[[State], Tensor] = never,
) -> Iterator[State]:
    """The states of gradient descent at the given steps.

    All factors move at once: every gradient is taken at the old factors. Between two records nothing leaves the device
    and nothing is waited for. At a record each run is judged by itself; one that has converged or diverged is frozen
    there while the others go on, and once all have ended the stream does too.

    Args:
        objective: what is descended.
        optimizer: how.
        factors: the start, W₁ (*, n, k) … W_L (*, k, m); not modified.
        lr: learning rate, a number or a column (*, 1, 1); or a sequence of them, the rates of the first steps, whose
            last one holds.
        records: ascending steps at which to yield; the last is the budget.
        divergence: a run has diverged when its loss is not finite or above this multiple of its start; (*,).
        reached: state → (*,) bool, which runs have converged.

    Yields:
        The state at each record.
    """
    rates = lr if isinstance(lr, Sequence) else (lr,)
    memory = optimizer.init(factors)
    start = objective.value(factors)
    outcome = torch.zeros(start.shape, dtype=torch.int64, device=start.device)
    held = factors
    step = 0
    for record in records:
        while step < record:
            gradients = objective.gradient(factors)
            factors, memory = optimizer.step(factors, gradients, memory, rates[min(step, len(rates) - 1)])
            step += 1
        running = outcome == RUNNING
        held = factors = tuple(
            torch.where(running[..., None, None], new, old) for new, old in zip(factors, held, strict=True)
        )
        loss = objective.value(factors)
        state = State(step, factors, loss, outcome)
        diverged = ~torch.isfinite(loss) | (loss > divergence * start)
        last = BUDGET if record == records[-1] else RUNNING
        verdict = torch.where(diverged, DIVERGED, torch.where(reached(state), CONVERGED, last))
        outcome = torch.where(running, verdict, outcome)
        yield state._replace(outcome=outcome)
        if bool((outcome != RUNNING).all()):
            return
