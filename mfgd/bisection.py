"""The bisection of an interval of one key, in each cell of the other keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from mfgd.errors import Refused

PARTS = 1000
"""If no resolution is given, the bracket is so small a part of the interval."""


@dataclass(frozen=True)
class Axis:
    """The interval of the key, and how it is halved."""

    key: str
    low: float
    high: float
    is_log: bool = False
    is_whole: bool = False
    resolution: float | None = None
    """Width of a bracket that is narrow enough, on a log axis relative to its lower end; None: a
    thousandth of the interval, of whole numbers 1."""

    def __post_init__(self) -> None:
        said = f"{self.key}=interval({self.low:g},{self.high:g})"
        if not -math.inf < self.low < self.high < math.inf:
            raise Refused(f"{said}: allowed are two finite ends, the lower one first")
        if self.is_log and self.low <= 0:
            raise Refused(f"{said} with tag(log,…): allowed are ends above 0")

    def middle(self, low: float, high: float) -> float:
        """The point between two others, whole if the key is."""
        middle = math.sqrt(low) * math.sqrt(high) if self.is_log else low + (high - low) / 2
        return min(max(round(middle), low + 1), high - 1) if self.is_whole else middle

    def is_narrow(self, low: float, high: float) -> bool:
        """Whether a bracket need not be halved, or cannot be."""
        if (self.is_whole and high - low <= 1) or not low < self.middle(low, high) < high:
            return True
        width = high / low - 1 if self.is_log else high - low
        return width <= self.narrow

    @property
    def narrow(self) -> float:
        """The width of a bracket that is narrow enough."""
        if self.resolution is not None:
            return self.resolution
        if self.is_whole:
            return 0.0
        if self.is_log:
            return math.expm1(math.log(self.high / self.low) / PARTS)
        return (self.high - self.low) / PARTS

    @property
    def most(self) -> int:
        """How many runs the bisection takes, of whole numbers within one."""
        low, runs = self.low, 2
        while not self.is_narrow(low, self.high):
            low, runs = self.middle(low, self.high), runs + 1
        return runs

    def write(self, value: float) -> str:
        """A value as an override says it."""
        return str(int(value)) if self.is_whole else repr(float(value))


class Reply(NamedTuple):
    """What a run says."""

    success: bool
    limit: float
    """What theory says of where the outcome changes, NaN if it says nothing."""


@dataclass
class Cell:
    """A setting of the other keys, and the bracket in which the outcome changes."""

    setting: Mapping[str, str]
    low: float
    high: float
    at_low: bool | None = None
    """Whether the run at the lower end succeeded; None: it is not run."""
    at_high: bool | None = None
    has_failed: bool = False
    runs: int = 0
    limit: float = math.nan

    @property
    def success(self) -> str:
        """Where runs succeed: below the bracket, above it, everywhere, nowhere, or unknown."""
        if self.has_failed or self.at_low is None or self.at_high is None:
            return "unknown"
        if self.at_low == self.at_high:
            return "everywhere" if self.at_low else "nowhere"
        return "below" if self.at_low else "above"

    @property
    def is_bracket(self) -> bool:
        """Whether the outcome changes between the two ends."""
        return self.success in ("below", "above")

    def list_asked(self, axis: Axis) -> list[float]:
        """The values whose runs are needed next."""
        if self.runs == 0:
            return [self.low, self.high]
        if not self.is_bracket or axis.is_narrow(self.low, self.high):
            return []
        return [axis.middle(self.low, self.high)]

    def tell(self, value: float, reply: Reply | None) -> None:
        """Takes the reply of a run; None: the run raised."""
        self.runs += 1
        if reply is None:
            self.has_failed = True
            return
        if not math.isnan(reply.limit):
            self.limit = reply.limit
        if value == self.low:
            self.at_low = reply.success
        elif value == self.high:
            self.at_high = reply.success
        elif reply.success == self.at_low:
            self.low = value
        else:
            self.high = value
