"""At which steps a run is measured, and what it leaves behind."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from mfgd.descent import OUTCOMES, RUNNING, State
from mfgd.types import Count, Factors, Refused


@dataclass
class Row:
    """What one run leaves behind."""

    outcome: str
    trajectory: dict[str, np.ndarray]
    """Column → (records,): `step`, `seconds` on the solver's clock, the measures, NaN where unknown, and beside some of
    them what theory says, under `theory.` and the measure's name."""
    factors: Factors
    """Where it ended, W₁ (n, k) … W_L (k, m), on the host."""
    snapshots: list[tuple[int, Factors]]
    """Step and factors at some of the records, the last among them."""
    values: dict[str, float] = field(default_factory=dict)
    """What else there is one number of, by the name of its metric."""
    tags: dict[str, str] = field(default_factory=dict)
    """What else there is to say of the run, by the name of its tag."""

    def summary(self, tolerance: float) -> dict[str, float]:
        """The metrics of one value. `steps_to_tolerance` is the first record at or below it, absent if none was.

        The final loss and error of a diverged run are NaN: how far it got before it was noticed says nothing, and 1e49
        would flatten every chart that it shares with other runs. The trajectory has the numbers.
        """
        ended = self.outcome != "diverged"
        steps, loss = self.trajectory["step"], self.trajectory["loss"]
        finite = loss[np.isfinite(loss)]
        values = {
            "final_loss": float(loss[-1]) if ended else math.nan,
            "final_relative_error": float(self.trajectory["relative_error"][-1])
            if ended
            else math.nan,
            "best_loss": float(finite.min()) if len(finite) else math.nan,
            "steps_run": float(steps[-1]),
            "solve_seconds": float(self.trajectory["seconds"][-1]),
        }
        if tolerance > 0 and self.outcome == "converged":
            values["steps_to_tolerance"] = float(steps[-1])
        return values | self.values

    @property
    def epsilon(self) -> float:
        """The rounding error of the run's numbers."""
        return torch.finfo(self.factors[0].dtype).eps

    def remaining(self) -> np.ndarray:
        """√(loss − optimum) where the optimum is known, else the relative error, (records,).

        It is what linear convergence shrinks by the same factor in each step; NaN where rounding has eaten its digits.
        """
        gap, loss = self.trajectory["loss_gap"], self.trajectory["loss"]
        if np.isnan(gap).all():
            return self.trajectory["relative_error"]
        least = np.where(gap < loss, 1e5 * self.epsilon * loss, (100 * self.epsilon) ** 2 * loss[0])
        return np.sqrt(np.where((gap > least) & np.isfinite(gap), gap, np.nan))

    def contraction(self) -> np.ndarray:
        """By which factor a step shrinks what remains, (records,): the mean since the record before, NaN at the first.

        Below 1 the run comes closer. It tends to the local rate of the method.
        """
        steps, left = self.trajectory["step"], self.remaining()
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = np.exp(np.diff(np.log(left)) / np.diff(steps))
        return np.concatenate([[np.nan], np.where(np.isfinite(rates), rates, np.nan)])

    def half_time(self, measure: str, goal: float) -> float:
        """The step at which a measure first reaches half of its goal, NaN where it does not.

        Between two records log(x/(goal − x)) is taken as linear in the step, as it is along gradient flow from an
        aligned start (Saxe, McClelland, Ganguli 2014, eq. 6).
        """
        steps, reached = self.trajectory["step"], self.trajectory[measure] / goal
        (after,) = np.nonzero(reached >= 0.5)
        if len(after) == 0 or after[0] == 0:
            return math.nan
        i = after[0]
        low, high = reached[i - 1 : i + 1]
        odds = [math.log(x / (1 - x)) if 0 < x < 1 else math.nan for x in (low, high)]
        share = (
            odds[0] / (odds[0] - odds[1]) if np.isfinite(odds).all() else (0.5 - low) / (high - low)
        )
        return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))

    def early_stop(self) -> tuple[float, float]:
        """The step at which stopping would have been best, and the error there: held out, else of the truth.

        Of records; NaN where nothing was ever finite.
        """
        error = self.trajectory.get("heldout_error", self.trajectory["relative_error"])
        if not np.isfinite(error).any():
            return math.nan, math.nan
        best = int(np.nanargmin(np.where(np.isfinite(error), error, np.nan)))
        return float(self.trajectory["step"][best]), float(error[best])


class Schedule(NamedTuple):
    """Steps, ascending from 0 to the budget."""

    records: list[int]
    """Where a run is measured."""
    snapshots: frozenset[int]
    """At which of the records its factors are kept, to be drawn."""


def geometric(
    *, points: Count, steps: list[Annotated[int, Ge(0)]] | None, snapshots: Annotated[int, Ge(0)]
) -> Callable[[int], Schedule]:
    """Records dense at the start and sparse at the end: step 0, then even on a logarithmic axis, then the last step.

    Args:
        points: how many at most; a short run has a record at every step.
        steps: the records themselves, beside the first and the last step; given, they win over points.
        snapshots: at how many of the records the matrices are kept as images.

    Returns:
        budget → the schedule.

    Raises:
        Refused: by the function returned, when a step lies beyond the budget.
    """

    def schedule(budget: int) -> Schedule:
        if steps is None:
            inner = {round(float(step)) for step in np.geomspace(budget, 1, max(points - 1, 1))}
        else:
            inner = set(steps)
            if wrong := [step for step in steps if step > budget]:
                raise Refused(f"record.steps={wrong[0]}: allowed are 0 to steps={budget}")
        records = sorted({0, budget} | inner)
        chosen = np.linspace(0, len(records) - 1, min(snapshots, len(records))).round().astype(int)
        return Schedule(records, frozenset(records[i] for i in chosen))

    return schedule


def follow(
    states: Iterator[State],
    measure: Callable[[State], dict[str, Tensor]],
    snapshots: frozenset[int] = frozenset(),
) -> list[Row]:
    """Run a stream of batched states to its end and give each of its runs a row.

    Measuring is off the solver's clock. `seconds` is a run's share of its batch: time so far over the number of runs.

    Args:
        states: of runs with leading dimension (B,).
        measure: state → name → (B,).
        snapshots: the steps at which the factors are kept.
    """
    columns: list[dict[str, np.ndarray]] = []
    kept: list[tuple[int, Factors]] = []
    lengths: Any = 0
    running = np.array(True)
    seconds, clock = 0.0, time.perf_counter()
    for state in states:
        outcome = state.outcome.cpu().numpy()
        seconds += time.perf_counter() - clock
        ones = np.ones(len(outcome))
        measures = {
            name: value.to(torch.float64).cpu().numpy() for name, value in measure(state).items()
        }
        columns.append(
            {"step": state.step * ones, "seconds": seconds / len(outcome) * ones} | measures
        )
        lengths = lengths + (running & ones.astype(bool))
        running = outcome == RUNNING
        if state.step in snapshots:
            kept.append((state.step, tuple(W.cpu() for W in state.factors)))
        clock = time.perf_counter()

    table = {name: np.stack([column[name] for column in columns], -1) for name in columns[0]}
    rows = []
    for b, (code, length) in enumerate(zip(outcome, lengths, strict=True)):
        trajectory = {name: values[b, :length] for name, values in table.items()}
        factors = tuple(W[b].cpu().clone() for W in state.factors)
        end = int(trajectory["step"][-1])
        images = [(step, tuple(W[b] for W in Ws)) for step, Ws in kept if step < end]
        rows.append(
            Row(OUTCOMES[code], trajectory, factors, [*images, (end, factors)] if snapshots else [])
        )
    return rows
