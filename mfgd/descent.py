"""The only loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfgd.objective import Objective, serially
from mfgd.optimizer import Optimizer
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


def listed(lr: float | Tensor | Sequence[float | Tensor]) -> Callable[[int], float | Tensor]:
    """The rate after a number of steps, where the first ones are listed and the last of them holds."""
    if isinstance(lr, Sequence):
        return lambda step: lr[min(step, len(lr) - 1)]
    return lambda step: lr


def never(state: State) -> Tensor:
    """The stopping rule that stops no run."""
    return torch.zeros_like(state.loss, dtype=torch.bool)


@torch.no_grad()
def descent(
    objective: Objective,
    optimizer: Optimizer,
    factors: Factors,
    *,
    lr: float | Tensor | Sequence[float | Tensor] | Callable[[int], float | Tensor],
    records: Sequence[int],
    divergence: float | Tensor = float("inf"),
    reached: Callable[[State], Tensor] = never,
) -> Iterator[State]:
    """The states of gradient descent at the given steps.

    Whether the factors move at once or one after another is the optimizer's. Between two records nothing leaves the
    device and nothing is waited for. At a record each run is judged by itself; one that has converged or diverged is
    frozen there while the others go on, and once all have ended the stream does too.

    Args:
        objective: what is descended.
        optimizer: how.
        factors: the start, W₁ (*, n, k) … W_L (*, k, m); not modified.
        lr: learning rate, a number or a column (*, 1, 1); a sequence of them, the rates of the first steps, whose last
            one holds; or a function from the number of steps done.
        records: ascending steps at which to yield; the last is the budget.
        divergence: a run has diverged when its loss is not finite or above this multiple of its start; (*,).
        reached: state → (*,) bool, which runs have converged.

    Yields:
        The state at each record.
    """
    rates = lr if callable(lr) else listed(lr)
    shape = objective.problem.shape
    factors = objective.laid_out(factors)
    memory = optimizer.init(factors)
    with serially(*shape):
        start = objective.value(factors)
        moving = objective.with_room(factors)
    outcome = torch.zeros(start.shape, dtype=torch.int64, device=start.device)
    held = factors
    step = 0
    for record in records:
        with serially(*shape):
            while step < record:
                factors, memory = optimizer.step(moving, factors, memory, rates(step))
                step += 1
            running = outcome == RUNNING
            held = factors = tuple(
                torch.where(running[..., None, None], new, old)
                for new, old in zip(factors, held, strict=True)
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
