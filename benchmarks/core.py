"""What the benchmarks call of mfgd."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from mfgd import config, devices, kernel, loss, objective, optimizer, replicates, tracked
from mfgd.batch import Batch
from mfgd.dense import AllEntries, MaskedEntries
from mfgd.descent import State, descent
from mfgd.given import load_problem
from mfgd.job import flatten
from mfgd.method import Optimizer
from mfgd.point import Point
from mfgd.record import Row
from mfgd.sparse import ListedEntries
from mfgd.target import Problem
from mfgd.tracking import Tracker

SQUARED = loss.squared(scale=1.0, reduction="sum", penalty=0.0)
HALF_SQUARED = loss.squared(scale=0.5, reduction="sum", penalty=0.0)
PLAIN = optimizer.gd(alternating=False)
SCALED = optimizer.scaled_gd(damping=0.0, damped_by="number", alternating=True)
MULTIPLICATIVE = optimizer.mu()


def point(*overrides: str) -> Point:
    """The run that a shell line describes."""
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        composed = compose("config", list(overrides), return_hydra_config=True)
        return config.read(composed, composed.hydra)


def solve(points: Sequence[Point]) -> list[Row]:
    """Solves the points as one batch."""
    return Batch(points).solve()


def choose_batch_bytes(device: torch.device) -> int:
    """How many bytes the runs of a batch take on a device by default."""
    return devices.choose_batch_bytes(str(device))


def list_replicates(point: Point) -> list[Point]:
    """The single runs that a point with replicates stands for."""
    return replicates.list_replicates(point)


def solve_replicates(point: Point) -> Row | Exception:
    """Solves the replicates of a point."""
    ((row,),) = replicates.solve_ensembles([point])
    return row


def prepare(points: Sequence[Point]) -> tuple[Problem, Sequence[Tensor]]:
    """The problem and the start of a batch, under a leading dimension of runs."""
    batch = Batch(points)
    return batch._stack_problems(), batch._stack_starts()


def load(point: Point) -> Problem:
    """The problem of a point, for one run: (n, m)."""
    return load_problem(point.problem)


def observe(D: Tensor, mask: Tensor | None = None) -> Problem:
    """The problem that a target and a mask make; D is 0 if not observed."""
    return Problem(AllEntries(D) if mask is None else MaskedEntries(D, mask))


def target(problem: Problem) -> Tensor:
    """The target as a full matrix."""
    return problem.D


def loss_values(of: loss.Loss, prediction: Tensor, target: Tensor) -> Tensor:
    """The loss of each entry."""
    return of.value(prediction, target)


def dense_pair(problem: Problem) -> tuple[Tensor, Tensor]:
    """Target and mask of a problem of listed entries, as full matrices (n, m)."""
    seen = problem.observation
    assert isinstance(seen, ListedEntries)
    return seen.matrix.to_dense(), seen.fill(torch.ones_like(seen.target)).to_dense()


def descend(
    problem: Problem,
    start: Sequence[Tensor],
    *,
    lr: float | Tensor,
    records: Sequence[int],
    method: Optimizer = PLAIN,
    of: loss.Loss = SQUARED,
) -> Iterator[State]:
    """The states of a descent at its records."""
    return descent(
        objective.Objective(problem, of), method, tuple(start), lr=lr, records=list(records)
    )


def make_step(
    problem: Problem, start: Sequence[Tensor], lr: Tensor
) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
    """Factors, and a step of plain gradient descent that changes them, as a CUDA graph needs."""
    laid_out = problem.observation.in_gradient_layout(tuple(start))
    factors = tuple(W.clone() for W in laid_out)
    moving = objective.Objective(problem, SQUARED).preallocate(factors)

    def step() -> None:
        moved, _ = PLAIN.step(moving, factors, [None] * len(factors), lr)
        for W, V in zip(factors, moved, strict=True):
            W.copy_(V)

    return factors, step


def stack(matrices: Tensor, n: int, k: int, m: int) -> Tensor:
    """A copy of the matrices of a batch of runs, in the layout that a batch of that size has."""
    runs = list(matrices)
    if kernel.use_interleaved(n, k, m, len(runs), matrices.device):
        return kernel.interleave(runs)
    return torch.stack(runs)


def open_tracker(point: Point, runs: int) -> Tracker:
    """The MLflow tracker of a point, at the start of a sweep of that many runs."""
    tracker: Tracker = point.tracking()
    tracker.open([])
    tracker.expect(runs)
    return tracker


def logged_metrics(point: Point, row: Row, most: int) -> list[tuple[Any, ...]]:
    """What a tracker logs of a run, at most so many points: (key, value, time, step) of each."""
    return list(tracked.select_points(row, point.tolerance, 0, most))


def flat_params(values: dict[str, Any]) -> dict[str, Any]:
    """A nested config as flat parameters."""
    return dict(flatten(values))
