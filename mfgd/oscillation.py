"""Whether the loss of the last steps oscillates, how much, and how often it repeats."""

from __future__ import annotations

import math

import numpy as np

FEWEST = 4
"""Records of consecutive steps from which on an oscillation is looked for."""
LONGEST = 64
"""The longest period that is looked for, in steps."""
SPREAD = 1e-3
"""A loss repeats if its values at one phase differ by at most this share of their range."""
ROUNDING = 1e-12
"""A loss stays as it is if its range is at most this share of its largest value, or this share
squared of the first loss."""


def find_oscillation(trajectory: dict[str, np.ndarray], last: int) -> dict[str, float]:
    """`oscillation_range` and `oscillation_period` of the loss over the last so many records.

    The range is the largest loss less the smallest. The period is the least number of steps after
    which the loss repeats, all along these records, and at least twice; 1 if the loss stays as it
    is, and absent if it does not repeat, as that of a run that still descends. The factors can
    have a multiple of this period.

    Args:
        trajectory: `step` and `loss`, (records,).
        last: how many records at the end are of consecutive steps in a run of all its steps.

    Returns:
        Nothing if there are fewer than `FEWEST` such records, or the run ended before they began.
    """
    steps, loss = trajectory["step"][-last:], trajectory["loss"][-last:]
    whole = len(steps) == last and bool((np.diff(steps) == 1).all())
    if last < FEWEST or not whole or not np.isfinite(loss).all():
        return {}
    size = float(np.ptp(loss))
    found = {"oscillation_range": size}
    largest = max(float(np.abs(loss).max()), ROUNDING * abs(float(trajectory["loss"][0])))
    period = 1.0 if size <= ROUNDING * largest else _find_period(loss, size)
    return found if math.isnan(period) else found | {"oscillation_period": period}


def _find_period(loss: np.ndarray, size: float) -> float:
    """The least period of values of a given range, NaN if there is none."""
    for period in range(2, min(LONGEST, len(loss) // 2) + 1):
        if all(np.ptp(loss[phase::period]) <= SPREAD * size for phase in range(period)):
            return float(period)
    return math.nan
