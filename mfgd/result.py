"""What a sweeper is told of a run."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping
from typing import Any, Self


class Result(float):
    """The final loss of a run, which Hydra's sweepers expect, with its outcome and its values."""

    outcome: str
    """converged, budget, diverged …"""

    def __new__(cls, loss: float, outcome: str, values: Mapping[str, float]) -> Self:
        result = super().__new__(cls, loss)
        result.outcome = sys.intern(outcome)
        # A sweep of 100,000 runs has as many results, but few different lists of names.
        result._names = sys.intern("\n".join(values))
        result._numbers = array("d", values.values())
        return result

    _names: str
    _numbers: array[float]

    @property
    def values(self) -> dict[str, float]:
        """The last value of each metric."""
        return dict(zip(self._names.splitlines(), self._numbers, strict=True))

    def __reduce__(self) -> tuple[Any, ...]:
        return Result, (float(self), self.outcome, self.values)
