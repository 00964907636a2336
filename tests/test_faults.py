"""The worst faults of tests/faults.py, once each; by hand all are done, and more often."""

import sys
from importlib.util import find_spec

import pytest
from faults import FEWER, RESTART, solve_undisturbed, try_fault
from servers import BIN

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # fork beside threads
    pytest.mark.xdist_group("faults"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def expected():
    return solve_undisturbed()


@pytest.mark.parametrize("name", ["Ctrl-C", "kill -9"])
def test_nothing_is_lost_doubled_or_left(name, expected):
    lost, doubled, left, _ = try_fault(name, expected, moment=60)
    assert (lost, doubled, left) == (0, 0, [])


@pytest.mark.skipif(BIN is None or not find_spec("psycopg"), reason="no PostgreSQL")
def test_a_server_and_its_database_restart():
    fewer = solve_undisturbed(FEWER)
    lost, doubled, left, _ = try_fault(RESTART, fewer, moment=10, kind="server", sweep=FEWER)
    assert (lost, doubled, left) == (0, 0, [])
