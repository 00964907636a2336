"""What fits into the memory of this machine, and what is refused because it does not."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mfgd.errors import Refused

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Where Linux says what each cgroup may use, and which are those of this process."""
NUMBER = 8
"""Bytes of a number in double precision."""


def free_memory() -> float:
    """How many bytes this process can still get, swap included; infinity if nobody says."""
    return min(_free_of_machine(), *_free_of_cgroups(), math.inf)


def _free_of_machine() -> float:
    free = _read_numbers(Path("/proc/meminfo"))
    if "MemAvailable:" in free:
        return 1024 * (free["MemAvailable:"] + free.get("SwapFree:", 0))
    if hasattr(os, "sysconf"):  # a system without /proc: all of its memory
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return math.inf


def _free_of_cgroups() -> Iterator[float]:
    """What each cgroup around this process has left, without its files, which can be let go."""
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, limit = CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, limit = CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        inner = root / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(root) and (folder / limit).is_file():
                text = (folder / limit).read_text().strip()
                used = _read_numbers(folder / "memory.stat")
                if text != "max":
                    yield int(text) - used.get("anon", used.get("total_rss", 0))


def _read_numbers(file: Path) -> dict[str, int]:
    """Name → number, of lines that begin with the two; empty if there is no such file."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return {}
    return {line.split()[0]: int(line.split()[1]) for line in lines}


def refuse_unless_fits(size: float, said: str, hint: str, gpu: float | None = None) -> None:
    """Refuses what cannot fit into memory, before it is allocated.

    Args:
        size: bytes that are certainly needed at once.
        said: the key, its value, and what takes so much.
        hint: what is allowed.
        gpu: the bytes that are free on the GPU which is meant; None: this machine is meant.

    Raises:
        Refused: there is less memory.
    """
    where, free = ("this machine", free_memory()) if gpu is None else ("this GPU", gpu)
    if size > free:
        raise Refused(f"{said} {in_words(size)}; {where} has {in_words(max(free, 0))} free; {hint}")


def refuse_large_array(
    shape: Sequence[int], source: str = "", *, number: int = NUMBER, hint: str = ""
) -> None:
    """Refuses an array by the shape that a file declares.

    Args:
        shape: of the array.
        source: names the array.
        number: bytes of an entry, as far as they are certainly needed.
        hint: what is allowed.

    Raises:
        Refused: the array cannot fit into memory.
    """
    named = "×".join(map(str, shape))
    said = f"{source}: {named} entries take" if source else f"{named} entries take"
    size = number * math.prod(map(int, shape))
    refuse_unless_fits(size, said, hint or "allowed is a smaller array")


def in_words(size: float) -> str:
    """A number of bytes in words."""
    for unit, name in ((1e12, "TB"), (1e9, "GB")):
        if size >= unit:
            return f"{size / unit:,.3g} {name}"
    return f"{size / 1e6:,.3g} MB"
