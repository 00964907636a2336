"""Many configs → few batches, and one batch → its rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfgd import loss, metrics, optimizer, oracles, schedule
from mfgd.config import Component, Point
from mfgd.descent import State, descent, listed
from mfgd.init import Init
from mfgd.objective import Objective, interleaved, interleaves, serially
from mfgd.problem import Problem, Triplets, hashed, of, stream
from mfgd.record import Row, Schedule, follow
from mfgd.types import Factors, Refused

SPARSE = "sparse"
"""In place of which arrays a problem has: one that is kept sparse shares its batch with no other."""
Stack = Callable[[list[Tensor]], Tensor]
SHARE = 16, 256
"""Runs of a batch for one of several workers: fewer are slow to solve, more keep progress and interruptions waiting."""


def batches(points: Sequence[Point], workers: int = 1) -> list[list[int]]:
    """The positions of points that are solved together: of equal identity and shape, within the budget of bytes.

    A float is not identity: in a batch it becomes a column. Of a problem or a start only the shape counts. Workers that
    share a sweep get at least two batches each where it is large enough.

    Raises:
        Refused: a problem, start or schedule that cannot be had; nothing has been solved then.
    """
    layouts: dict[Component, Any] = {}
    checked: set[Any] = set()
    groups: dict[Any, list[int]] = {}
    for i, point in enumerate(points):
        drawn = _seedless(point.problem)
        if drawn not in layouts:
            layouts[drawn] = _layout(point)
        key = (layouts[drawn], *_identity(point))
        if (key, drawn, _seedless(point.init)) not in checked:
            checked.add((key, drawn, _seedless(point.init)))
            _check(point)
        groups.setdefault(key, []).append(i)
    chunks = []
    for (layout, *_), members in groups.items():
        first = points[members[0]]
        arrays, n, m, held = layout
        parameters = first.rank * (n + m + (first.depth - 2) * first.rank)
        # What a step touches: the residual and what it is made of; factors, gradients and the next factors.
        run_bytes = (arrays * n * m + 3 * parameters) * first.dtype.itemsize
        size = 1 if held == SPARSE else max(1, first.batch_bytes // run_bytes)
        if workers > 1:
            size = min(size, max(SHARE[0], min(SHARE[1], len(points) // (2 * workers))))
        chunks += [members[i : i + size] for i in range(0, len(members), size)]
    return chunks


def solve(points: Sequence[Point]) -> list[Row]:
    """The rows of points of one batch, in their order. Each is what it would be alone."""
    known = {
        component: problem_of(component)
        for component in dict.fromkeys(point.problem for point in points)
    }
    with serially(*known[points[0].problem].shape):
        return _solve(points, known)


def _solve(points: Sequence[Point], known: dict[Component, Problem]) -> list[Row]:
    first = points[0]
    problems = [known[point.problem] for point in points]
    optima = [
        oracles.optimum(p, point.loss(), point.rank, point.depth)
        for p, point in zip(problems, points, strict=True)
    ]
    starts = [_start(problem, point) for problem, point in zip(problems, points, strict=True)]

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=first.dtype, device=first.device)[:, None, None]

    def made(components: Sequence[Component]) -> Any:
        values = {key: [dict(c.items)[key] for c in components] for key, _ in components[0].items}
        return components[0].function(
            **{k: column(v) if isinstance(v[0], float) else v[0] for k, v in values.items()}
        )

    cast = {
        component: problem.to(first.dtype, first.device) for component, problem in known.items()
    }
    n, m = problems[0].shape
    stack: Stack = (
        interleaved if interleaves(n, first.rank, m, len(points), first.device) else torch.stack
    )
    objective = Objective(
        _stacked([cast[point.problem] for point in points], stack),
        made([point.loss for point in points]),
    )
    optimum = column(optima)[:, 0, 0]
    tolerance = column([point.tolerance for point in points])[:, 0, 0]
    records = _schedule(first)
    units = [_unit(*each) for each in zip(points, problems, starts, strict=True)]
    given = ([unit * lr for lr in point.lr] for point, unit in zip(points, units, strict=True))
    rates = [column(lr) for lr in zip(*given, strict=True)]
    rate = listed(rates)
    change = made([point.schedule for point in points])

    def reached(state: State) -> Tensor:
        return (tolerance > 0) & (metrics.distance(objective, state, optimum) <= tolerance)

    states = descent(
        objective,
        made([point.optimizer for point in points]),
        tuple(stack(list(Ws)).to(first.dtype).to(first.device) for Ws in zip(*starts, strict=True)),
        lr=rate if change is None else lambda step: rate(step) * change(step, first.steps),
        records=records.records,
        divergence=column([point.divergence for point in points])[:, 0, 0],
        reached=reached,
    )
    target = None if first.diagnostics == "basic" else _targets(problems, first)
    full = first.diagnostics == "full"

    def measure(state: State) -> dict[str, Tensor]:
        return metrics.measure(objective, state, optimum, target, full=full)

    rows = follow(states, measure, records.snapshots)
    for each in zip(points, problems, starts, units, optima, rows, strict=True):
        _finish(*each)
    return rows


def _targets(problems: Sequence[Problem], first: Point) -> Triplets | None:
    """The leading singular triplets of each run's target, as many as are measured; None where there is none known."""
    r = max(first.rank, metrics.SIGMAS)
    found: dict[int, list[Tensor]] = {}
    for problem in problems:
        if id(problem) not in found:
            if problem.triplets is None:
                return None
            found[id(problem)] = [
                X[..., :r].to(first.device, first.dtype) for X in problem.triplets
            ]
    return Triplets(
        *(torch.stack(X) for X in zip(*(found[id(problem)] for problem in problems), strict=True))
    )


def _finish(
    point: Point, problem: Problem, start: Factors, unit: float, optimum: float, row: Row
) -> None:
    """What is known of a run once it has ended: rates, times, and what theory says."""
    rate = unit * point.lr[-1]
    constant = point.schedule.function is schedule.constant and len(point.lr) == 1
    row.values["lr_absolute"] = rate
    if point.diagnostics != "basic":
        row.trajectory["contraction"] = row.contraction()
        if "heldout_error" in row.trajectory or (
            problem.truth is not None and problem.truth is not problem.D
        ):
            row.values["early_stop_step"], row.values["early_stop_error"] = row.early_stop()
        sigma = problem.spectrum
        for i, goal in enumerate(
            [] if sigma is None else sigma[: min(point.rank, metrics.SIGMAS)].tolist(), 1
        ):
            if goal > 0 and math.isfinite(half := row.half_time(f"mode.{i}", goal)):
                row.values[f"half_time.{i}"] = half
    if "sharpness" in row.trajectory and point.optimizer.function is optimizer.gd and constant:
        row.trajectory["sharpness_limit"] = np.full(len(row.trajectory["step"]), 2 / rate)
    row.tags |= {f"draw.{kind}": hash for kind, hash in problem.draws.items()}
    init, shape = _unscaled(point.init), (point.rank, point.depth, point.seed)
    row.tags["draw.init"] = (
        hashed(*start) if init == point.init else _drawn(init, point.problem, *shape)
    )
    keys = point.optimizer.arguments
    lr = rate if constant else math.nan
    setting = oracles.Setting(
        problem, point.loss(), start, point.optimizer.name, keys, lr, point.tolerance, optimum
    )
    oracles.judge(setting, row)


def outcomes(points: Sequence[Point]) -> Iterator[Sequence[Row | Exception]]:
    """The rows of a batch, at once; where it raises, its runs are solved one by one, so that only the culprit fails."""
    try:
        rows = solve(points)
    except Exception as error:
        if len(points) == 1:
            yield [error]
        else:
            for point in points:
                yield from outcomes([point])
    else:
        yield rows


@lru_cache(maxsize=8)
def problem_of(component: Component) -> Problem:
    """What a problem's function gives, kept for the next runs that share it."""
    with serially(1, 1):  # of whatever shape: what is drawn is the same in any process
        problem = component()
    return problem if isinstance(problem, Problem) else of(problem, f"problem={component.name}")


def _start(problem: Problem, point: Point) -> Factors:
    return _factors(point.init, problem, point.rank, point.depth, point.seed)


def _factors(component: Component, problem: Problem, rank: int, depth: int, seed: int) -> Factors:
    n, m = problem.shape
    widths = (n, *[rank] * (depth - 1), m)
    init: Init = component()
    factors = init(problem, widths, stream("init", seed))
    shapes = [tuple(W.shape) for W in factors]
    if shapes != list(pairwise(widths)):
        raise ValueError(
            f"init={component.name} gave shapes {shapes}; needed are {list(pairwise(widths))}"
        )
    return factors


def _unscaled(init: Component) -> Component:
    """The initialization at scale 1, if it has one: at any scale it is the same draw."""
    return replace(
        init, items=tuple((key, 1.0 if key == "scale" else value) for key, value in init.items)
    )


@lru_cache(maxsize=1024)
def _drawn(init: Component, problem: Component, rank: int, depth: int, seed: int) -> str:
    """Hash of the factors that an initialization draws."""
    return hashed(*_factors(init, problem_of(problem), rank, depth, seed))


def _unit(point: Point, problem: Problem, start: Factors) -> float:
    """What the given rate is multiplied by."""
    if point.lr_unit == "absolute":
        return 1.0
    if point.lr_unit == "sigma1":
        unit = oracles.rate_unit(problem, point.loss(), point.depth)
    else:
        unit = 2 / float(metrics.sharpness(Objective(problem, point.loss()), start))
    if not 0 < unit < math.inf:
        raise Refused(
            f"lr_unit={point.lr_unit} with loss={point.loss.name}: no such rate; allowed is absolute"
        )
    return unit


def unstable(points: Sequence[Point]) -> tuple[list[Point], float]:
    """Those whose rate is beyond what theory says gradient descent can converge with, and the least such limit.

    Both in the unit of the rates. Of problems that differ in their seed alone the first stands for all.
    """
    beyond, least = [], math.inf
    limits: dict[Any, float] = {}
    for point in points:
        choices = point.optimizer.function, point.loss.function, point.schedule.function
        known = (
            choices == (optimizer.gd, loss.squared, schedule.constant)
            and point.lr_unit != "sharpness"
        )
        if not known or point.optimizer.arguments["alternating"]:
            continue
        key = _seedless(point.problem), point.loss, point.depth, point.lr_unit
        if key not in limits:
            limits[key] = _limit(point)
        if point.lr[-1] > limits[key]:
            beyond.append(point)
            least = min(least, limits[key])
    return beyond, least


def _limit(point: Point) -> float:
    try:
        problem = problem_of(point.problem)
    except Exception:  # it fails again, as a run of its own, when it is solved
        return math.nan
    unit = (
        oracles.rate_unit(problem, point.loss(), point.depth) if point.lr_unit == "sigma1" else 1.0
    )
    return oracles.rate_limit(problem, point.loss(), point.depth) / unit


def _schedule(point: Point) -> Schedule:
    return point.record()(point.steps)


def _layout(point: Point) -> tuple[Any, ...]:
    """Number of arrays of the problem's shape that a step touches, n, m, and which arrays the problem has."""
    try:
        problem = problem_of(point.problem)
    except Refused:
        raise
    except Exception:
        return (
            2,
            1,
            1,
            point.problem,
        )  # alone with its kind: it fails again, as a run of its own, when it is solved
    if problem.pattern is not None:
        return (1, *problem.shape, SPARSE)
    held = tuple(
        array is not None for array in (problem.D, problem.mask, problem.truth, problem.heldout)
    )
    return (2 + held[1], *problem.shape, held)


def _check(point: Point) -> None:
    """Builds what a point starts from, for the refusals in it."""
    try:
        problem = problem_of(point.problem)
        start = _start(problem, point)
        _schedule(point)
        point.optimizer().check(Objective(problem, point.loss()), start)
        _unit(point, problem, start)
    except Refused:
        raise
    except Exception:
        return  # a fault in a user's own function is that run's failure: it comes again when the run is solved


def _seedless(component: Component) -> Component:
    """The component without its seed, which moves what is drawn and not its shape."""
    return replace(
        component, items=tuple((key, value) for key, value in component.items if key != "seed")
    )


def _identity(point: Point) -> tuple[Any, ...]:
    """What runs of one batch have in common, beside the problem's layout."""

    def identity(component: Component) -> tuple[Any, ...]:
        return component.function, tuple(
            (key, None if isinstance(v, float) else v) for key, v in component.items
        )

    parts = (
        identity(component)
        for component in (point.loss, point.optimizer, point.schedule, point.record)
    )
    numbers = point.rank, point.steps, point.depth, len(point.lr), point.batch_bytes
    return (*parts, *numbers, point.dtype, point.device, point.diagnostics)


def _stacked(problems: Sequence[Problem], stack: Stack) -> Problem:
    """Problems of one layout under a leading run dimension; one that they share is expanded, not copied.

    A sparse one is alone, and without that dimension.
    """
    if problems[0].pattern is not None:
        (alone,) = problems
        return alone

    def stacked(arrays: list[Tensor | None]) -> Tensor | None:
        if arrays[0] is None:
            return None
        if all(array is arrays[0] for array in arrays):
            return arrays[0].expand(len(arrays), *arrays[0].shape)
        return stack([array for array in arrays if array is not None])

    names = "D", "mask", "truth", "heldout"
    return Problem(**{name: stacked([getattr(p, name) for p in problems]) for name in names})  # type: ignore[arg-type]
