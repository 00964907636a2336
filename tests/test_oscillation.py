"""Whether the loss of the last steps oscillates."""

import numpy as np
import pytest
from cases import solve
from test_config import composed

from mfgd.oscillation import find_oscillation


def find(loss, last=None, step=1):
    loss = np.asarray(loss, dtype=float)
    steps = step * np.arange(len(loss), dtype=float)
    return find_oscillation({"step": steps, "loss": loss}, last or len(loss))


@pytest.mark.parametrize("period", [2, 3, 4, 7])
def test_the_period_is_the_least_one(period):
    cycle = np.random.default_rng(period).normal(size=period)
    found = find(np.tile(cycle, 5))
    assert found == {"oscillation_range": np.ptp(cycle), "oscillation_period": period}


@pytest.mark.parametrize(
    "loss",
    [
        np.linspace(2, 1, 2000),  # neighbours are near each other, and yet it falls
        0.9 ** np.arange(100),
        np.random.default_rng(0).normal(size=200),
        np.cos(np.arange(100)),  # 2π is no number of steps
        [1, 2, 1, 3],
    ],
)
def test_a_loss_that_does_not_repeat_has_a_range_and_no_period(loss):
    assert find(loss) == {"oscillation_range": np.ptp(loss)}


def test_a_loss_that_stays_has_period_one():
    assert find([2.0] * 6) == {"oscillation_range": 0, "oscillation_period": 1}


def test_only_consecutive_steps_and_enough_of_them_count():
    cycle = [1.0, 2.0] * 4
    assert find(cycle, last=3) == {}
    assert find(cycle, last=9) == {}
    assert find(cycle, step=2) == {}
    assert find([*cycle, np.inf]) == {}
    assert find(cycle, last=4)["oscillation_period"] == 2


LINE = ("problem=explicit", "problem.matrix=[[1]]", "rank=1", "loss.scale=0.5", "steps=2000")
LINE = (*LINE, "init=explicit", "init.factors=[[[1.1]],[[1.1]]]")


@pytest.mark.parametrize(("lr", "period"), [(0.8, 1), (1.1, 2), (1.27, 4)])
def test_the_period_of_descent_is_that_of_the_iterated_number(lr, period):
    (row,) = solve([composed(*LINE, f"lr={lr}", "record.last=32")])
    w, seen = 1.1, []
    for _ in range(2001):
        seen.append((w * w - 1) ** 2 / 2)
        w -= lr * w * (w * w - 1)
    tail = np.array(seen[-32:])
    assert np.ptp(tail[::period]) < 1e-6
    assert period == 1 or np.ptp(tail[:: period // 2]) > 1e-3
    assert row.values["oscillation_range"] == pytest.approx(np.ptp(tail), rel=1e-9, abs=1e-15)
    assert row.values["oscillation_period"] == period
    (plain,) = solve([composed(*LINE, f"lr={lr}")])
    assert not [name for name in plain.values if name.startswith("oscillation")]
