"""The two worst faults of tests/faults.py, once each; by hand all are done, and more often."""

import sys

import pytest
from faults import solve_undisturbed, try_fault

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # fork beside threads
    pytest.mark.xdist_group("faults"),
]


@pytest.fixture(scope="module")
def expected():
    return solve_undisturbed()


@pytest.mark.parametrize("name", ["Ctrl-C", "kill -9"])
def test_nothing_is_lost_doubled_or_left(name, expected):
    lost, doubled, left, _ = try_fault(name, expected, moment=60)
    assert (lost, doubled, left) == (0, 0, [])
