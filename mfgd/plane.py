"""A grid of starts: a plane through the space of the factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mfgd.matrix import join_rows, pick_matrices
from mfgd.types import Factors, Refused


def plane(
    *, x: float, y: float, along: list[list[list[list[float]]]] | None
) -> Callable[..., Factors]:
    """The point x A + y B of the plane that two starts A and B span, for maps of basins of
    attraction.

    Args:
        x: multiplies A.
        y: multiplies B.
        along: [A, B], each [W1, …, WL], row by row. If null, A has the identity, cut to the shape,
            as each factor but the last, and B as the last one: at rank 1 a 1×1 matrix starts at
            C = x and F = y, whose plane has every start.

    Raises:
        Refused: not two starts, rows of several lengths, or other shapes than n, m, rank and depth
            ask for.
    """

    def start(problem: Any, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        shapes = list(pairwise(widths))
        if along is None:
            *others, last = (torch.eye(*shape, dtype=torch.float64) for shape in shapes)
            return (*(x * W for W in others), y * last)
        if len(along) != 2:
            raise Refused(f"init.along: {len(along)} starts; allowed are 2, [A, B]")
        A, B = (_join_start(given, shapes, name) for given, name in zip(along, "AB", strict=True))
        return tuple(x * V + y * W for V, W in zip(A, B, strict=True))

    return start


def _join_start(
    given: Sequence[list[list[float]]], shapes: Sequence[tuple[int, int]], name: str
) -> tuple[Tensor, ...]:
    """The factors of one start."""
    source = f"init.along: {name}"
    if len(given) != len(shapes):
        allowed = f"allowed with depth={len(shapes)} are {len(shapes)}"
        raise Refused(f"{source} has {len(given)} matrices; {allowed}")
    names = [f"W{level}" for level in range(1, len(shapes) + 1)]
    read = {at: join_rows(rows, f"{source}: {at}") for at, rows in zip(names, given, strict=True)}
    return pick_matrices(read, dict(zip(names, shapes, strict=True)), source)
