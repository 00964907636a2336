"""Many configs → few batches, and what is refused or announced before the first step."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from mfgd import theory
from mfgd.component import batch_identity
from mfgd.config import Component
from mfgd.demand import count_runs, refuse_vast_batches, refuse_vast_run
from mfgd.given import draw_start, load_problem
from mfgd.limits import refuse_out_of_range, refuse_outside_domain
from mfgd.method import Method
from mfgd.metrics import refuse_built_in
from mfgd.objective import Objective
from mfgd.point import Point
from mfgd.rates import refuse_shares, unit_of_rate
from mfgd.replicates import refuse_unknown_success
from mfgd.terminal import say, warn
from mfgd.tied import choose_objective, refuse_untied
from mfgd.types import Refused

FEWEST, MOST = 16, 512
"""Runs of a batch if several workers share a sweep: fewer are slow to solve, more delay progress
and interruptions."""


class Layout(NamedTuple):
    """What decides which problems share a batch, and how many."""

    key: Hashable
    n: int
    m: int
    arrays: int | None
    """How many (n, m) arrays a step touches; None: the run shares its batch with no other run."""
    shared: int
    """How many more, of which runs of one problem share one copy."""


def group_points(points: Sequence[Point], workers: int = 1) -> list[list[int]]:
    """The positions of points that are solved together: of equal identity and layout, within the
    budget of bytes.

    A float is not identity: in a batch a float becomes a column. If several workers share a sweep
    that is large enough, each worker gets at least one batch: a step of many runs costs little more
    than a step of a few.

    Raises:
        Refused: a problem, start, schedule or method that cannot be used; nothing has been solved
            then.
    """
    layouts: dict[Component, Layout] = {}
    checked: set[Hashable] = set()
    demands: dict[Hashable, float] = {}
    groups: dict[Hashable, list[int]] = {}
    for point in {point.success: point for point in points}.values():
        refuse_unknown_success(point)
    for i, point in enumerate(points):
        problem, init = drop_seed(point.problem), drop_seed(point.init)
        if problem not in layouts:
            layouts[problem] = _find_layout(point)
        group = layouts[problem], _identity(point)
        # What is refused may depend on a float: whether data fit a loss, or rates a method.
        kind = group, problem, init, _judge_loss(point.loss), point.gradient, point.equal_shares
        if kind not in checked:
            checked.add(kind)
            demands[group] = _refuse_early(point, demands.get(group))
        groups.setdefault(group, []).append(i)
    batches: list[list[int]] = []
    sizes: list[tuple[int, float]] = []
    for alike, members, arrays in _part_groups(points, groups, layouts):
        first = points[members[0]]
        layout = layouts[drop_seed(first.problem)]
        size = count_runs(first, layout.n, layout.m, arrays)
        if workers > 1:
            share = math.ceil(len(points) * first.replicates / workers)
            size = min(size, max(FEWEST, min(MOST, share)))
        size = max(1, size // first.replicates)
        batches += [members[i : i + size] for i in range(0, len(members), size)]
        sizes += [
            (len(batch) * first.replicates, demands[alike]) for batch in batches[len(sizes) :]
        ]
    refuse_vast_batches(sizes[:workers])
    return batches


def _part_groups(
    points: Sequence[Point],
    groups: Mapping[Hashable, list[int]],
    layouts: Mapping[Component, Layout],
) -> Iterator[tuple[Hashable, list[int], int | None]]:
    """Groups with how many arrays a step of each run touches. Runs of several problems that cannot
    share what runs of one problem do are parted by their problem, unless they fit nevertheless."""
    for kind, members in groups.items():
        first = points[members[0]]
        layout = layouts[drop_seed(first.problem)]
        if not layout.shared:
            yield kind, members, layout.arrays
            continue
        parts: dict[Hashable, list[int]] = {}
        for i in members:
            parts.setdefault(points[i].problem, []).append(i)
        apart = (layout.arrays or 0) + layout.shared
        moves = any(group == "problem" for group, _ in first.moving)
        fits = count_runs(first, layout.n, layout.m, apart) >= len(members) * first.replicates
        if moves or (fits and len(parts) > 1):
            yield kind, members, apart
        else:
            for part in parts.values():
                yield kind, part, layout.arrays


def _identity(point: Point) -> Hashable:
    """What runs of one batch have in common, beside the layout of the problem."""
    components = point.loss, point.optimizer, point.gradient, point.schedule, point.record
    numbers = point.rank, point.steps, point.depth, len(point.lr), point.batch_bytes
    replicates = point.replicates, point.success
    modes = point.dtype, point.device, point.diagnostics, point.patience, point.symmetric
    return (*map(batch_identity, components), *numbers, *modes, *replicates, point.metrics)


def _judge_loss(loss: Component) -> Hashable:
    """What decides whether data fit a loss. One loss stands for all of a user's function, which may
    be costly, or take its process down."""
    return loss if loss.target.startswith("mfgd.") else batch_identity(loss)


def _find_layout(point: Point) -> Layout:
    try:
        problem = load_problem(point.problem)
    except Refused:
        raise
    except Exception:
        # The problem fails again, as a run of its own, when it is solved.
        return Layout(point.problem, 1, 1, 2, 0)
    seen = problem.observation
    return Layout(problem.layout, *problem.shape, seen.arrays_of_a_step, seen.shared_arrays)


def _refuse_early(point: Point, demand: float | None) -> float:
    """Builds what a point starts from, for the refusals in it.

    Args:
        point: the point.
        demand: the bytes that a run of its group needs at once; None: not known yet.

    Returns:
        These bytes, as far as they are known.
    """
    for name, _ in point.metrics:
        refuse_built_in(name)
    try:
        refuse_shares(point)
        problem = load_problem(point.problem)
        refuse_untied(point, problem)
        refuse_out_of_range(problem, point.loss(), point.problem.name, point.dtype)
        if demand is None:  # to ask what memory is free takes longer than all the rest
            demand = refuse_vast_run(point, problem, point.record()(point.steps))
        start = draw_start(problem, point)
        refuse_outside_domain(problem, point.loss(), point.loss.name, start)
        objective = choose_objective(problem, point.loss(), point.symmetric)
        point.optimizer().check(objective, start)
        _refuse_noise(point, objective)
        unit_of_rate(point, problem, start)
    except Refused:
        raise
    except Exception:  # A fault in a user's own function fails that run, when the run is solved.
        return demand or 0.0
    return demand


def _refuse_noise(point: Point, objective: Objective) -> None:
    """Refuses noise in the gradients if the method asks for more than gradients, or the noise is
    not for this objective."""
    noise = point.gradient()
    if noise is None:
        return
    if point.symmetric:
        given = f"symmetric=true with gradient={point.gradient.name}"
        raise Refused(f"{given}: allowed is gradient=full")
    if not point.optimizer().gradient_only:
        given = f"gradient={point.gradient.name} with optimizer={point.optimizer.name}"
        reason = "this method asks for more than gradients, or compares them from step to step"
        raise Refused(f"{given}: {reason}; allowed is gradient=full")
    noise.check(objective)


def drop_seed(component: Component) -> Component:
    """The component without its seed: the seed moves what is drawn, and not its shape."""
    items = tuple((key, value) for key, value in component.items if key != "seed")
    return replace(component, items=items)


def list_sources(points: Sequence[Point]) -> list[str]:
    """What was read from the files of the points, one line a file."""
    lines: dict[str, None] = {}
    firsts = {drop_seed(point.problem): point for point in reversed(points)}
    for point in reversed(firsts.values()):
        with suppress(Exception):  # the problem fails again, as a run of its own
            source = load_problem(point.problem).source
            if source is not None:
                lines[source.summary] = None
    return list(lines)


def announce_sources(points: Sequence[Point], said: set[str]) -> None:
    """Prints what was read from files, but for the lines that are said already, and adds to
    them."""
    for line in list_sources(points):
        if line not in said:
            said.add(line)
            say(line)


def find_unstable(points: Sequence[Point]) -> tuple[list[Point], float]:
    """The points with a rate at which gradient descent cannot converge by theory, and the least
    such limit.

    The limit is in the unit of the rates. Of problems that differ only in their seed the first
    stands for all.
    """
    unstable, least = [], math.inf
    limited: dict[Hashable, bool] = {}
    limits: dict[Hashable, float] = {}
    for point in points:
        # One point stands for all of its kind: a user's function may be costly, or fail.
        components = point.optimizer, point.loss, point.schedule, point.gradient
        kind = tuple(map(batch_identity, components))
        if kind not in limited:
            limited[kind] = _has_limit(point)
        if point.lr_unit == "sharpness" or not limited[kind]:
            continue
        rates = point.ratios, point.lr_unit, point.symmetric
        key = drop_seed(point.problem), point.loss, point.depth, rates
        if key not in limits:
            limits[key] = _limit(point)
        if point.lr[-1] > limits[key]:
            unstable.append(point)
            least = min(least, limits[key])
    return unstable, least


def announce_unstable(points: Sequence[Point]) -> None:
    """Warns of learning rates at which gradient descent cannot converge."""
    beyond, limit = find_unstable(points)
    if beyond:
        rates = ", ".join(f"{rate:g}" for rate in sorted({point.lr[-1] for point in beyond}))
        what = f"{len(beyond)} of {len(points)} runs (lr={rates}) are beyond {limit:.3g}"
        which = "the rate up to which gradient descent can converge to a minimum"
        warn(f"{what}, {which}")


def _has_limit(point: Point) -> bool:
    """Whether theory knows a limit of the rate: for plain gradient steps of a quadratic loss at one
    rate."""
    try:
        optimizer, loss, schedule = point.optimizer(), point.loss(), point.schedule()
        plain = optimizer.method is Method.GRADIENT and optimizer.simultaneous
        quadratic = loss.curvature is not None and point.gradient() is None
    except Exception:
        # The function of the user fails again when the run is solved.
        return False
    return plain and quadratic and schedule is None


def _limit(point: Point) -> float:
    """The largest stable rate in the unit of the given rate, NaN if theory does not know it."""
    try:
        problem, loss = load_problem(point.problem), point.loss()
        setting = problem, loss, point.depth, point.mean_share
        limit = theory.rate_limit(*setting, symmetric=point.symmetric)
        if point.lr_unit == "sigma1":
            return limit / theory.rate_unit(*setting)
    except Exception:
        # What fails here fails again, if it matters, when the run is solved, and fails that run
        # alone.
        return math.nan
    return limit
