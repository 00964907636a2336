"""The only loop."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mfgd.gradient import STREAM, Disturbance
from mfgd.kernel import single_threaded
from mfgd.method import Memory, Optimizer, Rate, choose_runs
from mfgd.objective import Objective
from mfgd.schedule import Rates, first_rates
from mfgd.streams import Streams
from mfgd.types import Factors


class Outcome(IntEnum):
    """How a run ended, or that the run goes on."""

    RUNNING = 0
    CONVERGED = 1
    BUDGET = 2
    DIVERGED = 3
    UNDEFINED = 4
    PLATEAU = 5

    @property
    def label(self) -> str:
        """The outcome as the tag of a run."""
        return self.name.lower()

    @property
    def sentence(self) -> str:
        """The outcome in words."""
        return _SENTENCES[self]


_SENTENCES = {
    Outcome.RUNNING: "The run has not ended.",
    Outcome.CONVERGED: "The run came within its tolerance of the answer.",
    Outcome.BUDGET: "The run used its budget of steps.",
    Outcome.DIVERGED: "The loss was not finite, or above the stated multiple of its start.",
    Outcome.UNDEFINED: "The method was not defined any more: a matrix that it inverts is singular; "
    "a lower rank or a damping helps.",
    Outcome.PLATEAU: "The loss fell too little over the stated number of steps.",
}
PLATEAU = 1e-4
"""A loss that falls by less than this share is on a plateau."""


class State(NamedTuple):
    """A run, or a batch of runs, at one step."""

    step: int
    factors: Factors
    loss: Tensor
    """(*,), the objective at these factors."""
    outcome: Tensor
    """(*,), an `Outcome` a run. A run that has ended is frozen: its factors stay as they are
    here."""


def never_converged(state: State) -> Tensor:
    """The stopping rule that stops no run."""
    return torch.zeros_like(state.loss, dtype=torch.bool)


class Position(NamedTuple):
    """All that the loop goes on from."""

    step: int
    records: int
    """How many records are done."""
    factors: Factors
    frozen: Factors
    """The factors of the last record, which a run keeps that has ended."""
    memory: Memory
    streams: Streams
    outcome: Tensor
    history: list[tuple[int, Tensor]]
    """Steps and losses (*,) of the records that a plateau is judged by."""


class Keeper(Protocol):
    """What keeps positions for another process."""

    pace: int
    """How many steps are done before it is asked again."""

    def restore(self, start: Position, loss: Tensor) -> Position:
        """The position from which to go on, which is the start if none is kept.

        Args:
            start: of the descent.
            loss: at the start, (*,).
        """

    def is_due(self) -> bool:
        """Whether a position is to be kept now."""

    def keep(self, position: Position) -> None:
        """Keeps a position."""


class KeepNothing:
    """The keeper that keeps nothing."""

    pace = sys.maxsize

    def restore(self, start: Position, loss: Tensor) -> Position:
        return start

    def is_due(self) -> bool:
        return False

    def keep(self, position: Position) -> None: ...


NOTHING_KEPT = KeepNothing()


@torch.no_grad()
def descent(
    objective: Objective,
    optimizer: Optimizer,
    factors: Factors,
    *,
    lr: Rate | Sequence[Rate] | Rates,
    records: Sequence[int],
    divergence: float | Tensor = float("inf"),
    reached: Callable[[State], Tensor] = never_converged,
    patience: int | None = None,
    seeds: Sequence[int] | None = None,
    noise: Disturbance | None = None,
    keeper: Keeper = NOTHING_KEPT,
) -> Iterator[State]:
    """The states of gradient descent at the given steps.

    Between two records nothing leaves the device and nothing is waited for, unless the optimizer
    decomposes a matrix or tries several steps. At a record each run is judged by itself. A run that
    has ended is frozen while the others go on; the stream ends when all runs have ended. Of two
    outcomes at one record a run has the first one of diverged, converged, undefined, plateau,
    budget.

    Args:
        objective: what is descended.
        optimizer: how the factors move.
        factors: the start, W₁ (*, n, k) … W_L (*, k, m); not modified.
        lr: learning rate, a number or a column (*, 1, 1); or a list of first rates, or a function
            of the number of steps done (`mfgd.schedule`).
        records: ascending steps at which to yield; the last step is the budget.
        divergence: a run has diverged if its loss is not finite or above this multiple of its
            start; (*,).
        reached: state → (*,) bool, whether each run has converged.
        patience: a run is on a plateau if its loss fell by less than the share `PLATEAU` over this
            many steps, or since the last record if that is longer ago; None: never.
        seeds: the seed of each run, for a method or a noise that draws numbers; None: 0, 1, ….
        noise: disturbs the gradients that the optimizer asks for; None: they are as they are.
        keeper: keeps positions between two records, and may have one from which to go on.

    Yields:
        The state at each record that is not done.
    """
    rates = lr if callable(lr) else first_rates(lr)
    factors = objective.observation.in_gradient_layout(factors)
    runs = factors[0].shape[:-2].numel()
    streams = Streams(seeds or range(runs), factors[0])
    memory = optimizer.init(factors, streams)
    with single_threaded(*objective.problem.shape):
        start = objective.value(factors)
        moving = objective.preallocate(factors)
        if noise is not None:
            moving = noise.apply(moving, streams.branch(STREAM))
    outcome = torch.full(start.shape, Outcome.RUNNING, dtype=torch.int64, device=start.device)
    step, done, factors, frozen, memory, streams, outcome, history = keeper.restore(
        Position(0, 0, factors, factors, memory, streams, outcome, []), start
    )
    for record in records[done:]:
        with single_threaded(*objective.problem.shape):
            while step < record:
                pause = min(record, step + keeper.pace)
                while step < pause:
                    factors, memory = optimizer.step(moving, factors, memory, rates(step))
                    step += 1
                if keeper.is_due():
                    # It has no name, which would hold its tensors in memory.
                    keeper.keep(
                        Position(step, done, factors, frozen, memory, streams, outcome, history)
                    )
            done += 1
            running = outcome == Outcome.RUNNING
            frozen = factors = choose_runs(running, factors, frozen)
            loss = objective.value(factors)
            state = State(step, factors, loss, outcome)
            last = Outcome.BUDGET if record == records[-1] else Outcome.RUNNING
            verdict = torch.full_like(outcome, last)
            if patience is not None:
                history = [*_since(history, step - patience), (step, loss)]
                verdict[_is_flat(history, step - patience)] = Outcome.PLATEAU
            verdict[torch.as_tensor(optimizer.undefined(memory))] = Outcome.UNDEFINED
            verdict[reached(state)] = Outcome.CONVERGED
            verdict[~torch.isfinite(loss) | (loss > divergence * start)] = Outcome.DIVERGED
            outcome = torch.where(running, verdict, outcome)
        # Before the state is given: clocks then know how long a device took for it.
        ended = bool((outcome != Outcome.RUNNING).all())
        yield state._replace(outcome=outcome)
        if ended:
            return


def _since(history: list[tuple[int, Tensor]], step: int) -> list[tuple[int, Tensor]]:
    """The records (step, loss) from the last one on that is not after a step."""
    before = sum(recorded <= step for recorded, _ in history)
    return history[max(before - 1, 0) :]


def _is_flat(history: list[tuple[int, Tensor]], step: int) -> Tensor:
    """Whether the loss (*,) of each run fell by less than the share `PLATEAU` since a step."""
    (first, before), (_, now) = history[0], history[-1]
    if first > step:
        return torch.zeros_like(now, dtype=torch.bool)
    return now >= (1 - PLATEAU) * before
