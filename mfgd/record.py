"""At which steps a run is measured, and what it leaves behind."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    """Column → (records,): `step`, `seconds` on the solver's clock, and the measures, NaN where unknown."""
    factors: Factors
    """Where it ended, W₁ (n, k) … W_L (k, m), on the host."""
    snapshots: list[tuple[int, Factors]]
    """Step and factors at some of the records, the last among them."""
    rate: float = math.nan
    """The learning rate that came of the one given, where that has another unit; of several the last."""

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
            "final_relative_error": float(self.trajectory["relative_error"][-1]) if ended else math.nan,
            "best_loss": float(finite.min()) if len(finite) else math.nan,
            "steps_run": float(steps[-1]),
            "solve_seconds": float(self.trajectory["seconds"][-1]),
        }
        if math.isfinite(self.rate):
            values["lr_absolute"] = self.rate
        if tolerance > 0 and self.outcome == "converged":
            values["steps_to_tolerance"] = float(steps[-1])
        return values


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
    states: Iterator[State], measure: Callable[[State], dict[str, Tensor]], snapshots: frozenset[int] = frozenset()
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
        measures = {name: value.to(torch.float64).cpu().numpy() for name, value in measure(state).items()}
        columns.append({"step": state.step * ones, "seconds": seconds / len(outcome) * ones} | measures)
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
        rows.append(Row(OUTCOMES[code], trajectory, factors, [*images, (end, factors)] if snapshots else []))
    return rows
