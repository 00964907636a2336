"""What a run is given: its problem and its start."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

from mfgd.capacity import NUMBER, free_memory
from mfgd.config import Component
from mfgd.continuation import choose_factors
from mfgd.draws import hash_tensors, stream
from mfgd.kernel import single_threaded
from mfgd.point import Point
from mfgd.problem import from_matrix
from mfgd.target import Problem
from mfgd.tied import refuse_parted, tie_start
from mfgd.types import Factors

KEPT = 8
"""How many problems are kept for the next runs."""


@lru_cache(maxsize=KEPT)
def load_problem(component: Component) -> Problem:
    """The problem of a component, kept for the next runs that share it."""
    with single_threaded(1, 1):  # a draw has the same bits in any process
        problem = component()
    if isinstance(problem, Problem):
        shared = problem.observation.shared_arrays * NUMBER * math.prod(problem.shape)
        if shared and shared > free_memory() / KEPT:
            load_problem.cache_clear()  # the other ones might leave no room for the next
        return problem
    return from_matrix(problem, f"problem={component.name}")


def forget_problems() -> None:
    """Empties the caches: what a user's function or file gives may differ from job to job."""
    load_problem.cache_clear()
    _HASHES.clear()


def draw_start(problem: Problem, point: Point) -> Factors:
    """The factors at which a run starts, W₁ (n, k) … W_L (k, m).

    Raises:
        ValueError: the initialization gave factors of other shapes.
    """
    if point.source is not None:
        n, m = problem.shape
        found = choose_factors(point.source, (n, *[point.rank] * (point.depth - 1), m))
        if point.symmetric:
            refuse_parted(found, point.init.name)
        return found
    draw = point.rank, point.depth, point.seed, point.symmetric
    return _draw_factors(point.init, problem, *draw)


def _draw_factors(
    component: Component, problem: Problem, rank: int, depth: int, seed: int, symmetric: bool
) -> Factors:
    n, m = problem.shape
    widths = (n, *[rank] * (depth - 1), m)
    init = tie_start(component) if symmetric else component()
    factors: Factors = init(problem, widths, stream("init", seed))
    shapes = [tuple(W.shape) for W in factors]
    if shapes != list(pairwise(widths)):
        raise ValueError(
            f"init={component.name} gave shapes {shapes}; needed are {list(pairwise(widths))}"
        )
    return factors


_HASHES: dict[Hashable, str] = {}
"""Of the last draws, which runs of other scales share."""


def hash_start(point: Point, problem: Problem, start: Factors) -> str:
    """A hash of the random draw of a start, which is the same at every scale and ratio."""
    items = tuple((k, 1.0 if k in ("scale", "ratio") else v) for k, v in point.init.items)
    unscaled = replace(point.init, items=items)
    if unscaled == point.init:
        return hash_tensors(*start)
    draw = point.rank, point.depth, point.seed, point.symmetric
    key = unscaled, point.problem, draw
    if key not in _HASHES:
        if len(_HASHES) == 1024:
            _HASHES.clear()
        _HASHES[key] = hash_tensors(*_draw_factors(unscaled, problem, *draw))
    return _HASHES[key]
