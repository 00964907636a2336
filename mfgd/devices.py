"""Where runs are solved: on the processor, or on a GPU."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

import torch

from mfgd.kernel import cores
from mfgd.types import Refused

CACHE = 2_000_000
"""Bytes of a batch on a processor: somewhat less than the cache of a core."""
BUSY = 1 << 30
"""Bytes of a batch on a GPU at most. Several times what its cache holds keep it busy; a larger
batch delays progress."""
CROWD = 1 << 14
"""Runs of a batch on a GPU at most: each leaves a row of about 10 kB in this process."""
SHARE = 16
"""A batch on a GPU takes at most this part of the memory that is free: for a moment a record takes
1.4 to 12 times what a step touches, as measured."""
ELSEWHERE = ("slurm", "ray")
"""Engines whose processes may have other devices than this machine."""


@cache
def list_devices() -> list[str]:
    """The devices of this machine."""
    devices = ["cpu"]
    if torch.cuda.is_available() and torch.cuda.device_count():
        devices.append("cuda")
        devices += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return devices


def is_gpu(device: str) -> bool:
    """Whether a device is a GPU, of this machine or of another one."""
    return device == "cuda" or device.startswith("cuda:")


def refuse_absent(device: str, engine: str | None) -> None:
    """Refuses a device that this machine does not have, and that the machines of an engine cannot
    have.

    Raises:
        Refused: as said.
    """
    if not (engine in ELSEWHERE and is_gpu(device)) and device not in list_devices():
        raise Refused(f"device={device}: allowed here are {', '.join(list_devices())}")


def free_gpu_memory(device: str) -> float:
    """How many bytes of a GPU this process can still get; infinity if it is on another machine."""
    if device not in list_devices():
        return float("inf")
    free, _ = torch.cuda.mem_get_info(device)
    # What torch keeps for its next arrays is free too.
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def choose_batch_bytes(device: str) -> int:
    """How many bytes the runs of a batch take on a device if nobody says.

    On a GPU it is a power of two: what others take of its memory then seldom moves runs from batch
    to batch.
    """
    if not is_gpu(device):
        return CACHE
    room = min(free_gpu_memory(device) / SHARE, BUSY)
    return 1 << max(int(room).bit_length() - 1, 0)


def choose_workers(devices: Collection[str], engine: str | None) -> int:
    """How many processes solve side by side if nobody says.

    Processes that share a GPU take turns, and each has some hundred MB of its memory for itself: a
    GPU of this machine has one process.
    """
    named = set(devices) - {"cpu"}
    if engine in ELSEWHERE or not named:
        return cores()
    return len(named)
