"""A batch, and what becomes of its runs if it raises."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from mfgd.batch import Batch
from mfgd.checkpoint import Checkpoint
from mfgd.point import Point
from mfgd.record import Row


def solve_or_report(
    points: Sequence[Point], folder: Path | None = None
) -> Iterator[Sequence[Row | Exception]]:
    """The rows of a batch at once; one by one if the batch raises, so that one run fails alone, and
    by halves if a GPU has too little memory for it.

    Args:
        points: the runs of the batch.
        folder: of the checkpoints; None: nothing is kept.
    """
    checkpoint = Checkpoint(folder, points)
    parts: Sequence[Sequence[Point]] = []
    try:
        with checkpoint.threads():
            rows: Sequence[Row | Exception] = Batch(points).solve(checkpoint)
    except Exception as error:
        # The frames of an error hold the arrays of its batch, which the next batch has no room for.
        traceback.clear_frames(error.__traceback__)
        if len(points) == 1:
            rows = [error]
        elif isinstance(error, torch.OutOfMemoryError):
            parts = points[: len(points) // 2], points[len(points) // 2 :]
        else:
            parts = [[point] for point in points]
    if not parts:
        yield rows
    for part in parts:
        yield from solve_or_report(part, folder)
