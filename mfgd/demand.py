"""What runs need of the memory, known from their config, and what is refused because it cannot
fit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from mfgd.capacity import NUMBER, refuse_unless_fits
from mfgd.devices import CROWD, choose_batch_bytes, free_gpu_memory, is_gpu
from mfgd.metrics import SIGMAS
from mfgd.point import Point
from mfgd.record import Records
from mfgd.streams import Streams
from mfgd.target import Problem

ARRAY = 100
"""Bytes of an array around its numbers: each measure of each record is an array over the runs."""
TENSOR = 400
"""Bytes of a tensor around its numbers."""
MEASURES = 10
"""The columns that every trajectory has, besides the singular values."""


def count_parameters(point: Point, n: int, m: int) -> int:
    """How many numbers the factors of a run have."""
    return point.rank * (n + m + (point.depth - 2) * point.rank)


def count_runs(point: Point, n: int, m: int, arrays: int | None) -> int:
    """How many runs of an (n, m) matrix fit into the budget of bytes of a batch.

    Args:
        point: the config of a run.
        n: rows.
        m: columns.
        arrays: how many (n, m) arrays a step touches; None: the run shares its batch with no other.
    """
    if arrays is None:
        return 1
    # A step touches the residual and its parts, and factors, gradients and next factors.
    numbers = arrays * n * m + 3 * count_parameters(point, n, m)
    size = numbers * point.dtype.itemsize
    if point.batch_bytes is not None:
        return max(1, point.batch_bytes // size)
    count = max(1, choose_batch_bytes(point.device) // size)
    return min(count, CROWD) if is_gpu(point.device) else count


def refuse_vast_run(point: Point, problem: Problem, records: Records) -> float:
    """Refuses a run that cannot fit into memory, before its factors are drawn.

    Args:
        point: the config of the run.
        problem: what it factors; D is in memory already.
        records: when it is measured.

    Returns:
        The bytes of this process that the run needs at once if it uses its budget.

    Raises:
        Refused: with the key that decides.
    """
    n, m = problem.shape
    k, steps, kept = point.rank, len(records.steps), len(records.snapshots)
    factors = point.dtype.itemsize * count_parameters(point, n, m)
    solving = NUMBER * count_parameters(point, n, m) + TENSOR * point.depth  # the start
    # The factors before and after a step, what the method carries, CᵀC and F Fᵀ.
    step = int((2 + _find_share_carried(point, n, m)) * factors) + 2 * k * k * point.dtype.itemsize
    if point.device == "cpu":
        solving += step
    elif is_gpu(point.device):
        numbers = problem.D.numel() + problem.observation.shared_arrays * n * m
        size = step + numbers * point.dtype.itemsize
        said = f"device={point.device}: D and factors of rank={k} depth={point.depth} take"
        refuse_unless_fits(size, said, "allowed is less of it", free_gpu_memory(point.device))
    measures = MEASURES + min(k, n, m, SIGMAS)
    parts = {
        f"rank={k} depth={point.depth}: steps of factors of a {n}×{m} matrix": solving,
        f"record.snapshots={kept}: so many times the factors": kept * factors,
        f"record.matrices=true: the factors at {steps} records": (
            2 * records.matrices * steps * factors  # of the batch, and of each run
        ),
        f"record.points={steps}: so many records of a run": steps * measures * (NUMBER + ARRAY),
    }
    total = sum(parts.values())
    refuse_unless_fits(total, f"{max(parts, key=parts.__getitem__)} take", "allowed is less of it")
    return total


def refuse_vast_batches(batches: Sequence[tuple[int, float]]) -> None:
    """Refuses batches that are solved side by side and cannot fit into memory together.

    Args:
        batches: runs, and the bytes of each run.

    Raises:
        Refused: with the number of batches and the runs of a batch.
    """
    runs = max((runs for runs, _ in batches), default=0)
    said = f"batch_bytes: {len(batches)} batches at once of up to {runs} runs take"
    total = sum(runs * size for runs, size in batches)
    refuse_unless_fits(total, said, "allowed are a smaller batch_bytes, and fewer workers")


def _find_share_carried(point: Point, n: int, m: int) -> float:
    """How many times the factors an optimizer carries from step to step. What it makes of factors
    without storage has none either."""
    with suppress(Exception):  # a user's own method may need numbers
        factors = tuple(
            torch.empty(shape, dtype=point.dtype, device="meta")
            for shape in ((n, point.rank), (point.rank, m))
        )
        memory = point.optimizer().init(factors, Streams([point.seed], factors[0]))
        return _count_bytes(memory) / _count_bytes(factors)
    return 0.0


def _count_bytes(memory: Any) -> int:
    if isinstance(memory, Tensor):
        return memory.numel() * memory.element_size()
    if isinstance(memory, list | tuple):
        return sum(map(_count_bytes, memory))
    return 0
