"""At which steps a run is measured, and what a run leaves behind."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from mfgd.capacity import refuse_large_array
from mfgd.descent import Outcome, State
from mfgd.types import Count, Factors, Refused

GAP_DIGITS = 1e5
"""A gap between loss and optimum below this many rounding errors of the loss is rounding."""
LOSS_DIGITS = 100
"""If the optimum is 0, √loss is rounding below this many rounding errors of √(first loss)."""


@dataclass
class Row:
    """What one run leaves behind."""

    outcome: str
    trajectory: dict[str, np.ndarray]
    """Column → (records,): `step`, `seconds` on the solver's clock, the measures, NaN if unknown,
    and `theory.` with the name of a measure: its value by theory."""
    factors: Factors
    """The factors at the end, W₁ (n, k) … W_L (k, m), on the host."""
    snapshots: list[tuple[int, Factors]]
    """Step and factors at some of the records, the last record among them."""
    values: dict[str, float] = field(default_factory=dict)
    """Metrics of one number a run, beside those of `summary`."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tags of the run."""
    recorded: Factors = ()
    """The factors at each record, (records, n, k) … (records, k, m), if they are kept."""

    def summary(self, tolerance: float) -> dict[str, float]:
        """The metrics of one number a run.

        `steps_to_tolerance` is the first record at or below the tolerance, absent if there is none.
        The final loss and error of a run that diverged are NaN: how far the run got before it was
        noticed says nothing, and 1e49 would flatten every chart with other runs. The trajectory has
        the numbers.
        """
        steps, loss = self.trajectory["step"], self.trajectory["loss"]
        finite = loss[np.isfinite(loss)]
        final_loss, final_error = loss[-1], self.trajectory["relative_error"][-1]
        if self.outcome == "diverged":
            final_loss = final_error = math.nan
        values = {
            "final_loss": float(final_loss),
            "final_relative_error": float(final_error),
            "best_loss": float(finite.min()) if len(finite) else math.nan,
            "steps_run": float(steps[-1]),
            "solve_seconds": float(self.trajectory["seconds"][-1]),
        }
        if tolerance > 0 and self.outcome == "converged":
            values["steps_to_tolerance"] = float(steps[-1])
        return values | self.values

    @property
    def reason(self) -> str:
        """How the run ended, in words."""
        return Outcome[self.outcome.upper()].sentence

    @property
    def epsilon(self) -> float:
        """The rounding error of the run's numbers, relative."""
        return torch.finfo(self.factors[0].dtype).eps

    def remaining(self) -> np.ndarray:
        """√(loss − optimum) if the optimum is known, else the relative error, (records,).

        Linear convergence shrinks it by the same factor in each step. NaN if only rounding is left.
        """
        gap, loss = self.trajectory["loss_gap"], self.trajectory["loss"]
        if np.isnan(gap).all():
            return self.trajectory["relative_error"]
        rounding_of_loss = GAP_DIGITS * self.epsilon * loss
        rounding_of_zero = (LOSS_DIGITS * self.epsilon) ** 2 * loss[0]
        rounding = np.where(gap < loss, rounding_of_loss, rounding_of_zero)
        return np.sqrt(np.where((gap > rounding) & np.isfinite(gap), gap, np.nan))

    def contraction(self) -> np.ndarray:
        """The factor by which a step shrinks what remains, (records,): the mean since the last
        record, NaN at the first record.

        It tends to the local rate of the method; the run comes closer if it is below 1.
        """
        steps, left = self.trajectory["step"], self.remaining()
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = np.exp(np.diff(np.log(left)) / np.diff(steps))
        return np.concatenate([[np.nan], np.where(np.isfinite(rates), rates, np.nan)])

    def half_time(self, measure: str, goal: float) -> float:
        """The step at which a measure first reaches half of its goal; NaN if it does not.

        Between two records log(x/(goal − x)) is linear in the step, as along gradient flow from an
        aligned start (Saxe, McClelland, Ganguli 2014, eq. 6).
        """
        steps, reached = self.trajectory["step"], self.trajectory[measure] / goal
        (after,) = np.nonzero(reached >= 0.5)
        if len(after) == 0 or after[0] == 0:
            return math.nan
        i = after[0]
        low, high = reached[i - 1], reached[i]
        if 0 < low < 1 and 0 < high < 1:
            low_odds, high_odds = math.log(low / (1 - low)), math.log(high / (1 - high))
            share = low_odds / (low_odds - high_odds)
        else:  # off that curve x itself is taken as linear
            share = (0.5 - low) / (high - low)
        return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))

    def early_stop(self) -> tuple[float, float]:
        """The record with the least held-out error, or error of the truth if there is none: its
        step and error.

        Both are NaN if the error was never finite.
        """
        error = self.trajectory.get("heldout_error", self.trajectory["relative_error"])
        if not np.isfinite(error).any():
            return math.nan, math.nan
        best = int(np.argmin(np.where(np.isfinite(error), error, np.inf)))
        return float(self.trajectory["step"][best]), float(error[best])


class Records(NamedTuple):
    """The steps at which a run is recorded, ascending from 0 to the budget."""

    steps: list[int]
    """The steps at which the run is measured."""
    snapshots: frozenset[int]
    """The steps among them at which the factors are kept, for pictures."""
    last: int = 0
    """So many records at the end are of consecutive steps."""
    matrices: bool = False
    """Whether the factors are kept at every record."""


def geometric(
    *,
    points: Count,
    steps: list[Annotated[int, Ge(0)]] | None,
    every: Count | None,
    last: Annotated[int, Ge(0)],
    snapshots: Annotated[int, Ge(0)],
    matrices: bool,
) -> Callable[[int], Records]:
    """Records dense at the start and sparse at the end: step 0, then even on a logarithmic axis,
    then the last step.

    Args:
        points: how many at most; a short run has a record at every step.
        steps: the records themselves, beside the first and the last step; given, they win over
            points.
        every: records at step 0 and after every so many steps; given, it wins over points, and is
            added to steps.
        last: records at each of the last so many steps of the budget, or at all steps of a shorter
            one; they are added to all others, and show whether the loss oscillates.
        snapshots: at how many of the records the matrices are kept as images.
        matrices: whether the factors are kept at every record, in matrices.safetensors as records.C
            and records.F (records.W1 … beyond depth 2), (records, n, k) and (records, k, m).

    Returns:
        budget → the records.

    Raises:
        Refused: by the function returned, if a step is beyond the budget, or the records cannot fit
            into memory.
    """

    def choose(budget: int) -> Records:
        size = min(last, budget) + (budget // every if every else 0)
        refuse_large_array([size], "record.every and record.last", hint="allowed are fewer")
        inner = set(range(max(budget - last + 1, 0), budget + 1)) if last else set[int]()
        if steps is None and every is None:
            inner |= _choose_points(points, budget)
        for step in steps or []:
            if step > budget:
                raise Refused(f"record.steps={step}: allowed are 0 to steps={budget}")
            inner.add(step)
        if every is not None:
            inner |= set(range(0, budget, every))
        records = sorted({0, budget} | inner)
        chosen = np.linspace(0, len(records) - 1, min(snapshots, len(records))).round().astype(int)
        drawn = frozenset(records[i] for i in chosen)
        return Records(records, drawn, min(last, budget + 1), matrices)

    return choose


def _choose_points(points: int, budget: int) -> set[int]:
    """At most so many records, even on a logarithmic axis."""
    # So many points have a gap below 1 even at the end: more would add no step.
    enough = math.ceil(budget * math.log(budget)) + 2
    count = min(max(points - 1, 1), enough)
    refuse_large_array([count], f"record.points={points}", hint="allowed are fewer")
    axis = np.geomspace(float(budget), 1, count)
    return {min(round(float(step)), budget) for step in axis}


class Trace:
    """What is seen of a batch of runs, from record to record."""

    def __init__(self) -> None:
        self._columns: dict[str, list[np.ndarray]] = defaultdict(list)
        self._kept: list[tuple[int, Factors]] = []
        self._lengths, self._running = np.array(0), np.array(True)
        self._seconds, self._clock = 0.0, time.perf_counter()

    @property
    def content(self) -> tuple[Any, ...]:
        """All of it, up to this moment of the solver's clock."""
        self.stop_clock()
        columns = {name: np.stack(column) for name, column in self._columns.items()}
        return columns, self._kept, self._lengths, self._running, self._seconds

    @content.setter
    def content(self, content: tuple[Any, ...]) -> None:
        columns, self._kept, self._lengths, self._running, self._seconds = content
        self._columns = defaultdict(list, {name: [*rows] for name, rows in columns.items()})
        self.start_clock()

    def stop_clock(self) -> None:
        """Stops the solver's clock, and notes the time."""
        now = time.perf_counter()
        self._seconds, self._clock = self._seconds + now - self._clock, now

    def start_clock(self) -> None:
        """Lets the solver's clock run again."""
        self._clock = time.perf_counter()

    def add(self, state: State, measure: Callable[[State], dict[str, Tensor]], keep: bool) -> None:
        """Adds a record; the clock stands still while the state is measured."""
        outcome = state.outcome.cpu().numpy()
        self.stop_clock()
        runs = len(outcome)
        self._columns["step"].append(np.full(runs, float(state.step)))
        self._columns["seconds"].append(np.full(runs, self._seconds / runs))
        for name, value in measure(state).items():
            self._columns[name].append(value.to(torch.float64).cpu().numpy())
        self._lengths = self._lengths + np.broadcast_to(self._running, runs)
        self._running = outcome == Outcome.RUNNING
        if keep:
            self._kept.append((state.step, tuple(W.cpu() for W in state.factors)))
        self.start_clock()

    def rows(self, state: State, records: Records) -> list[Row]:
        """A row for each run, after its last state."""
        table = {name: np.stack(column, -1) for name, column in self._columns.items()}
        rows, outcomes = [], state.outcome.cpu().tolist()
        ends = [W.cpu() for W in state.factors]  # at once: each copy waits for a device
        for b, length in enumerate(self._lengths):
            trajectory = {name: values[b, :length] for name, values in table.items()}
            factors = tuple(W[b].clone() for W in ends)
            end = int(trajectory["step"][-1])
            passed = [(step, tuple(W[b] for W in Ws)) for step, Ws in self._kept if step < end]
            images = [(step, Ws) for step, Ws in passed if step in records.snapshots]
            if records.snapshots:
                images.append((end, factors))
            row = Row(Outcome(outcomes[b]).label, trajectory, factors, images)
            if records.matrices:
                at_records = [*(Ws for _, Ws in passed), factors]
                row.recorded = tuple(map(torch.stack, zip(*at_records, strict=True)))
            rows.append(row)
        return rows


def follow(
    states: Iterator[State],
    measure: Callable[[State], dict[str, Tensor]],
    records: Records,
    trace: Trace | None = None,
) -> list[Row]:
    """Follows a stream of batched states to its end and returns a row for each run.

    The solver's clock stands still while a state is measured. `seconds` is a run's share of its
    batch: the time so far over the number of runs.

    Args:
        states: the states of runs with leading dimension (B,).
        measure: state → name → (B,).
        records: the steps of the states, and at which of them the factors are kept.
        trace: what was seen of the runs before.
    """
    trace = trace or Trace()
    trace.start_clock()
    for state in states:
        trace.add(state, measure, records.matrices or state.step in records.snapshots)
    return trace.rows(state, records)
