"""How long the rest takes, said once."""

import re
import time

import pytest
import torch

from mfgd import pace
from mfgd.descent import Outcome, State


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is moved."""
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


def states(move, steps, seconds_of_a_step, runs=1):
    before = 0
    for step in steps:
        move(seconds_of_a_step * (step - before))
        before = step
        zeros = torch.zeros(runs)
        yield State(step, (), zeros, zeros + Outcome.RUNNING)


RECORDS = [0, 1, 3, 10, 32, 100, 316, 1000]


def test_a_long_run_is_announced_once_from_its_first_records(clock, capsys):
    passed = []
    for state in pace.announce_steps(states(clock, RECORDS, 1.0, runs=3), 1000):
        passed.append(state.step)
        clock(50)  # to measure takes time too, which is not that of the steps
    assert passed == RECORDS
    said = "mfgd: at most 16 min to go: 990 of 1,000 steps of a batch of 3 runs\n"
    assert capsys.readouterr().err == said  # at step 10, after 10 of 1000 seconds


def test_a_run_that_goes_on_tells_its_own_pace(clock, capsys):
    list(pace.announce_steps(states(clock, [500, 510, 1000], 1.0), 1000))
    assert capsys.readouterr().err == "mfgd: at most 8 min to go: 490 of 1,000 steps\n"


def test_a_short_run_is_not_announced(clock, capsys):
    list(pace.announce_steps(states(clock, RECORDS, 0.06), 1000))  # a minute in all
    assert capsys.readouterr().err == ""


def test_a_sweep_is_announced_when_its_first_batch_is_done(clock, capsys):
    sweep = pace.Pace([[0, 1], [2, 3], *([i] for i in range(4, 204))], workers=2)
    clock(120)
    for position in (2, 0):
        sweep.note(position)
    assert capsys.readouterr().err == ""
    sweep.note(3)
    # Two processes have done 2 runs each in 120 s, and 204 runs take 51 times as long.
    assert capsys.readouterr().err == "mfgd: about 1 h 40 min to go: 202 of 204 runs\n"
    for position in (1, 4, 5):
        sweep.note(position)
    assert capsys.readouterr().err == ""


def test_durations_are_spelled_in_two_units():
    for seconds, said in {
        61: "1 min",
        3600: "1 h",
        12_000: "3 h 20 min",
        3599.9: "1 h",
        86_400 * 2 + 60: "2 days 1 min",
        86_400 * 3651 + 7200 + 60: "3,651 days 2 h",
    }.items():
        assert pace.spell_duration(seconds) == said


def test_the_command_announces_a_sweep_beside_its_progress(here, monkeypatch):
    monkeypatch.setattr(pace, "LONG", 0)
    done = here("--multirun", "steps=3", "rank=1,2", "seed=range(3)", "tracking=memory")
    assert done.returncode == 0
    (said,) = re.findall("mfgd: .* to go: .*", done.stderr)
    assert said.endswith("to go: 3 of 6 runs")
