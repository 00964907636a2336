"""One batch: configs of equal identity → factors of all runs → rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfgd import interrupts, metrics, oracles, pace, theory
from mfgd.checkpoint import PATIENCE, Checkpoint
from mfgd.component import build_component
from mfgd.descent import State, descent
from mfgd.draws import hash_tensors, stream
from mfgd.flow_reference import follow_flow
from mfgd.given import draw_start, hash_start, load_problem
from mfgd.gradient import STREAM
from mfgd.kernel import Stack, interleave, single_threaded, use_interleaved
from mfgd.limits import least_possible_loss, refuse_out_of_range, refuse_outside_domain
from mfgd.method import Method
from mfgd.oscillation import find_oscillation
from mfgd.point import Point
from mfgd.rates import share_rates, unit_of_rate
from mfgd.record import Row, follow
from mfgd.schedule import first_rates, multiply_rates
from mfgd.spectra import Triplets
from mfgd.target import Problem
from mfgd.tied import choose_objective, find_goals, tie
from mfgd.types import Factors
from mfgd.verdict import Setting


class Batch:
    """Runs that are solved together: their components have one `batch_identity`, their problems one
    layout.

    Every array has the leading dimension (B,) of the runs. A run has the same bits alone.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        self.points, self.first = points, points[0]
        self.problems = [load_problem(point.problem) for point in points]
        self.optima: list[float] = []
        self.least: list[float] = []
        """The least loss of each run that is no fault of arithmetic."""
        self.starts: list[Factors] = []
        self.units: list[float] = []
        n, m = self.problems[0].shape
        with single_threaded(n, m):
            for point, problem in zip(points, self.problems, strict=True):
                loss = point.loss()
                refuse_out_of_range(problem, loss, point.problem.name, point.dtype)
                start = draw_start(problem, point)
                refuse_outside_domain(problem, loss, point.loss.name, start)
                optimum = theory.optimum(
                    problem, loss, point.rank, point.depth, symmetric=point.symmetric
                )
                self.optima.append(optimum)
                self.least.append(least_possible_loss(problem, loss, optimum, point.dtype))
                self.starts.append(start)
                self.units.append(unit_of_rate(point, problem, start))
        interleaved = use_interleaved(n, self.first.rank, m, len(points), self.first.device)
        self._stack: Stack = interleave if interleaved else torch.stack

    def solve(self, checkpoint: Checkpoint | None = None) -> list[Row]:
        """The rows of the runs, in the order of the points.

        Args:
            checkpoint: of these points; None: nothing is kept.
        """
        with single_threaded(*self.problems[0].shape):
            return self._solve(checkpoint or Checkpoint(None, self.points))

    def _solve(self, checkpoint: Checkpoint) -> list[Row]:
        first = self.first
        # Containers of NVIDIA's let a GPU drop half of the digits of single precision.
        torch.set_float32_matmul_precision("highest")
        objective = choose_objective(self._stack_problems(), self._build("loss"), first.symmetric)
        optimum, least = self._numbers(self.optima), self._numbers(self.least)
        tolerance = self._numbers([point.tolerance for point in self.points])
        records = first.record()(first.steps)
        dynamics, best = first.diagnostics != "basic", None
        target = self._stack_triplets(max(first.rank, metrics.SIGMAS)) if dynamics else None
        goal = self._stack_goals() if target is not None and first.symmetric else None
        if (r := self.problems[0].target_rank) is not None:
            best = self._stack_triplets(r)
        own = {name: component.bind() for name, component in first.metrics}

        def reached(state: State) -> Tensor:
            distance = metrics.distance_to_answer(objective, state, optimum)
            return (tolerance > 0) & (distance <= tolerance) & ~(state.loss < least)

        def measure(state: State) -> dict[str, Tensor]:
            full = first.diagnostics in ("full", "flow")
            known = optimum, target, goal, best
            return metrics.measure(objective, state, *known, dynamics=dynamics, full=full, own=own)

        rates = self._rates()
        checkpoint.constants = [optimum, *rates]
        lr = multiply_rates(first_rates(rates), self._build("schedule"), first.steps)
        if not all(point.equal_shares for point in self.points):
            shares = zip(*(point.shares for point in self.points), strict=True)
            lr = share_rates(lr, [self._column(each) for each in shares])
        optimizer = self._build("optimizer")
        states = descent(
            objective,
            tie(optimizer) if first.symmetric else optimizer,
            self._stack_starts(),
            lr=lr,
            records=records.steps,
            divergence=self._numbers([point.divergence for point in self.points]),
            reached=reached,
            patience=first.patience,
            seeds=[point.seed for point in self.points],
            noise=self._build("gradient"),
            keeper=checkpoint,
        )
        states = pace.announce_steps(states, first.steps)
        with interrupts.defer(PATIENCE):
            rows = follow(states, measure, records, checkpoint.trace)
        for b, row in enumerate(rows):
            row.values |= find_oscillation(row.trajectory, records.last)
            self._conclude(b, row)
        return rows

    def _column(self, values: Sequence[float]) -> Tensor:
        """A number of each run, (B, 1, 1)."""
        numbers = torch.tensor(values, dtype=self.first.dtype, device=self.first.device)
        return numbers[:, None, None]

    def _numbers(self, values: Sequence[float]) -> Tensor:
        """A number of each run, (B,), in double precision like the loss."""
        return torch.tensor(values, dtype=torch.float64, device=self.first.device)

    def _build(self, group: str) -> Any:
        return build_component([getattr(point, group) for point in self.points], self._column)

    def _rates(self) -> list[Tensor]:
        """The learning rates of the first steps, each (B, 1, 1)."""
        rates = []
        for step in range(len(self.first.lr)):
            absolute = [
                unit * point.lr[step] for unit, point in zip(self.units, self.points, strict=True)
            ]
            rates.append(self._column(absolute))
        return rates

    def _stack_starts(self) -> Factors:
        stacked = []
        for runs in zip(*self.starts, strict=True):
            stacked.append(self._stack(list(runs)).to(self.first.dtype).to(self.first.device))
        return tuple(stacked)

    def _stack_problems(self) -> Problem:
        """The problems under a leading dimension (B,); a problem that all runs share is expanded,
        not copied."""
        moved = {}
        for problem in self.problems:
            if id(problem) not in moved:
                moved[id(problem)] = problem.to(self.first.dtype, self.first.device)
        return Problem.stack([moved[id(problem)] for problem in self.problems], self._stack)

    def _stack_triplets(self, r: int) -> Triplets | None:
        """The r leading singular triplets of each matrix that errors refer to; None if one of these
        matrices is unknown."""
        found: dict[int, list[Tensor]] = {}
        for problem in self.problems:
            if problem.reference is None:
                return None
            if id(problem) not in found:
                leading = [X[..., :r] for X in problem.reference]
                found[id(problem)] = [X.to(self.first.device, self.first.dtype) for X in leading]
        runs = [found[id(problem)] for problem in self.problems]
        return Triplets(*(torch.stack(X) for X in zip(*runs, strict=True)))

    def _stack_goals(self) -> Tensor | None:
        """The U* of tied runs that `metrics.procrustes_distance` is measured to."""
        goals = find_goals(self.problems, self.first.rank)
        return None if goals is None else goals.to(self.first.device, self.first.dtype)

    def _conclude(self, b: int, row: Row) -> None:
        """Adds to a row what is known once the run has ended: rates, times, hashes, and what theory
        says."""
        point, problem, start = self.points[b], self.problems[b], self.starts[b]
        optimizer, lr = point.optimizer(), self.units[b] * point.lr[-1]
        constant = point.schedule() is None and len(point.lr) == 1
        noisy = point.gradient() is not None
        row.values["lr_absolute"] = lr
        if "heldout_error" in row.trajectory or problem.hides_truth:
            row.values["early_stop_step"], row.values["early_stop_error"] = row.early_stop()
        if point.diagnostics != "basic":
            _add_dynamics(row, point, problem)
        plain = optimizer.method is Method.GRADIENT and constant and not noisy
        steps = row.trajectory["step"]
        if "sharpness" in row.trajectory and plain and point.equal_shares:
            row.trajectory["sharpness_limit"] = np.full(len(steps), 2 / lr)
        if plain and point.diagnostics == "flow":
            objective = choose_objective(problem, point.loss(), point.symmetric)
            rates = tuple(lr * share for share in point.shares)
            flow = follow_flow(objective, start, rates[: len(objective.free(start))], steps)
            row.trajectory |= {f"theory.flow.{name}": curve for name, curve in flow.items()}
        for kind, digest in problem.draws.items():
            row.tags[f"draw.{kind}"] = digest
        row.tags["draw.init"] = hash_start(point, problem, start)
        if noisy:
            row.tags["draw.gradient"] = hash_tensors(stream(STREAM, point.seed).get_state())
            return  # theory is silent
        setting = Setting(
            problem=problem,
            loss=point.loss(),
            start=start,
            optimizer=optimizer,
            lr=lr if constant else math.nan,
            shares=point.shares,
            tolerance=point.tolerance,
            optimum=self.optima[b],
            symmetric=point.symmetric,
        )
        oracles.judge(setting, row)


def _add_dynamics(row: Row, point: Point, problem: Problem) -> None:
    """Adds contraction and half-times of the modes."""
    row.trajectory["contraction"] = row.contraction()
    if problem.reference is None:
        return
    goals = problem.reference.sigma[: min(point.rank, metrics.SIGMAS)].tolist()
    for i, goal in enumerate(goals, 1):
        if goal > 0:
            half = row.half_time(f"mode.{i}", goal)
            if math.isfinite(half):
                row.values[f"half_time.{i}"] = half
