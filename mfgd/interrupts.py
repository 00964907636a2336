"""Interruptions: Ctrl-C, a signal that asks to end, a closed terminal.

The first one ends the work, as a KeyboardInterrupt, after what must not be cut. Those that come
while the process winds up change nothing: a terminal sends Ctrl-C to every process of a command,
people press it twice, and the first process passes it on.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

HANG_UP = getattr(signal, "SIGHUP", None)
"""None on a system whose terminals close without a signal."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([HANG_UP] if HANG_UP else []))
EXIT_STATUS = 130
"""As a shell has it after Ctrl-C."""


@dataclass
class _State:
    """What this process was told."""

    blocks: int = 0
    """How many blocks that must not be cut it is in."""
    came: bool = False
    waiting: bool = False
    """Whether the interruption came in such a block, which has not ended."""
    patience: float = 0.0
    """Seconds that it waits at most; 0: as long as it takes."""


_state = _State()


def leave_at_once() -> None:
    """From now on an interruption ends the process without a word."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: os._exit(EXIT_STATUS))


def listen(numbers: Sequence[int] = SIGNALS) -> None:
    """From now on the first of these signals is an interruption; other signals that interrupt are
    ignored."""
    for number in SIGNALS:
        signal.signal(number, _hear if number in numbers else signal.SIG_IGN)


def _hear(number: int, frame: FrameType | None) -> None:
    if number == HANG_UP:
        _leave_terminal()
    if _state.came:
        return
    _state.came = True
    for other in SIGNALS:
        if other != HANG_UP:
            signal.signal(other, signal.SIG_IGN)  # in Python's last moments too
    if _state.blocks:
        _state.waiting = True
        if _state.patience and hasattr(signal, "setitimer"):  # Windows has none
            signal.signal(signal.SIGALRM, _cut_block)
            signal.setitimer(signal.ITIMER_REAL, _state.patience)
    else:
        raise KeyboardInterrupt


def _cut_block(number: int, frame: FrameType | None) -> None:
    """Ends a block that takes too long, unless an inner block may take as long as it needs."""
    if _state.patience and take():
        raise KeyboardInterrupt


def waits() -> bool:
    """Whether an interruption waits for the end of a block."""
    return _state.waiting


def take() -> bool:
    """Whether an interruption waits. If so the caller ends the work, as a KeyboardInterrupt."""
    waiting, _state.waiting = _state.waiting, False
    if waiting and hasattr(signal, "setitimer"):  # the alarm would kill Python's last moments
        signal.setitimer(signal.ITIMER_REAL, 0)
    return waiting


def _leave_terminal() -> None:
    """Sends what is printed from now on nowhere: to print to a closed terminal is an error."""
    with open(os.devnull, "w") as nowhere:
        for stream in (sys.__stdout__, sys.__stderr__):
            if stream is not None and stream.isatty():
                os.dup2(nowhere.fileno(), stream.fileno())


def has_come() -> bool:
    """Whether this process is to wind up."""
    return _state.came


@contextmanager
def defer(patience: float = 0.0) -> Iterator[None]:
    """Defers an interruption to the end of the block, which is then complete.

    Args:
        patience: seconds after which a block is cut that did not `take` the interruption; 0: never.

    Raises:
        KeyboardInterrupt: at the end of the outermost block.
    """
    _state.blocks += 1
    before, _state.patience = _state.patience, patience
    try:
        yield
    finally:
        _state.blocks -= 1
        _state.patience = before
    if not _state.blocks and take():
        raise KeyboardInterrupt


@contextmanager
def shield() -> Iterator[None]:
    """Has the processes that start in the block ignore what a terminal sends to all."""
    before = {number: signal.getsignal(number) for number in SIGNALS if number != signal.SIGTERM}
    for number in before:
        signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
