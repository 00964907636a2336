"""How long the rest of a run or of a sweep takes, said once if that is long."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence

from mfgd.descent import State
from mfgd.terminal import warn

LONG = 60
"""Seconds of work that are announced."""
SETTLED = 5
"""Seconds of steps after which their pace is known."""
UNITS = {"day": 86_400, "h": 3600, "min": 60}


def announce_steps(states: Iterator[State], budget: int) -> Iterator[State]:
    """Passes the states of a batch on, and says how long its steps take at most if that is long.

    The records, which are dense at the start, tell the pace. Of several processes the first one
    speaks for all.
    """
    silent = multiprocessing.current_process().name not in ("MainProcess", "ForkServerProcess-1")
    seconds, begin = 0.0, None
    clock = time.perf_counter()
    for state in states:
        if begin is None:  # a run may go on from a checkpoint
            begin = state.step
        else:
            seconds += time.perf_counter() - clock
        if not silent and seconds > SETTLED:
            silent = True
            left = seconds / (state.step - begin) * (budget - state.step)
            runs = len(state.loss)
            whose = f" of a batch of {runs} runs" if runs > 1 else ""
            _announce_rest("at most", left, f"{budget - state.step:,} of {budget:,} steps{whose}")
        yield state
        clock = time.perf_counter()


class Pace:
    """The pace of a sweep, which is known once a batch is done."""

    def __init__(self, batches: Sequence[Sequence[int]], workers: int) -> None:
        """
        Args:
            batches: the positions of runs, batch by batch in the order of their start.
            workers: how many batches are solved side by side.
        """
        self.sizes = [len(batch) for batch in batches]
        self.first = [set(batch) for batch in batches[:workers]]
        """What is not done of the batches that start at once."""
        self.start = time.monotonic()

    def note(self, position: int) -> None:
        """Takes note of a run that is done, and of the pace if its batch is the first one that is
        done."""
        for number, batch in enumerate(self.first):
            batch.discard(position)
            if not batch:
                runs, seconds = sum(self.sizes), time.monotonic() - self.start
                left = seconds * (runs / (self.sizes[number] * len(self.first)) - 1)
                done = self.sizes[number]
                self.first = []
                _announce_rest("about", left, f"{runs - done:,} of {runs:,} runs")


def _announce_rest(bound: str, seconds: float, rest: str) -> None:
    if seconds > LONG:
        warn(f"{bound} {spell_duration(seconds)} to go: {rest}")


def spell_duration(seconds: float) -> str:
    """A number of seconds in words, in its two largest units from minutes on."""
    words, left = [], round(seconds / 60) * 60
    for unit, size in UNITS.items():
        count, left = divmod(left, size)
        if count:
            plural = "s" if unit == "day" and count > 1 else ""
            words.append(f"{count:,} {unit}{plural}")
    return " ".join(words[:2])
