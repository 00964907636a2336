"""A run that was measured otherwise contradicts theory, by the size of the change."""

import pytest
from test_mode_oracles import CYCLES, DEEP
from test_noise_oracles import SPIKED, TURNED
from test_oracles import judge_changed, reach_answer, scale_column, slow_down
from test_rate_oracles import HEAVY, IN_TURN
from test_scalar_oracles import CRITICAL, ONE
from test_schatten import DEEP as PENALIZED


def come_back(row):
    row.outcome = "budget"
    reach_answer(row)


@pytest.mark.parametrize(
    ("oracle", "line", "change", "deviation"),
    [
        ("momentum_rate", (*HEAVY, "optimizer.beta=0.9", "lr=0.1"), slow_down, -0.2),
        ("alternating_rate", IN_TURN, slow_down, (1 - 0.5**0.8) / 0.5 - 1),
        ("spiked_values", SPIKED, scale_column("sigma.2", 1.5), 0.5),
        (
            "spiked_angles",
            (*TURNED, "problem.noise=0.03", "problem.seed=2"),
            scale_column("angle.left", 2.0),
            1.0,
        ),
        ("deep_penalty", PENALIZED, scale_column("sigma.1", 1.1), 0.1),
        ("aligned_modes", DEEP, scale_column("mode.2", 1.1), 0.1),
        ("period_two", CYCLES, scale_column("mode.3", 1.01), 0.01),
        ("critical_step", (*ONE, f"lr={1.1 * CRITICAL}"), come_back, 0.1),
    ],
)
def test_the_deviation_is_the_size_of_the_contradiction(oracle, line, change, deviation):
    row = judge_changed(line, change)
    assert row.tags[f"oracle.{oracle}"] == "deviates"
    assert row.values[f"deviation.{oracle}"] == pytest.approx(deviation, rel=0.2, abs=1e-3)
