"""At which steps a run is measured, and what a run leaves behind."""

import numpy as np
import pytest
import torch
from cases import column, factors, loss, options, problem
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import mfgd
from mfgd import Objective
from mfgd.descent import State, descent
from mfgd.record import Records, Row, follow, geometric
from mfgd.types import Refused


def test_every_option_is_here():
    assert options("record") == {"geometric"}


# Records

USUAL = {"points": 40, "steps": None, "every": None, "last": 0, "snapshots": 0, "matrices": False}


def records(**keys):
    return geometric(**USUAL | keys)


@given(budget=st.integers(1, 10**7), points=st.integers(1, 200), snapshots=st.integers(0, 300))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_records_and_snapshots(budget, points, snapshots):
    recorded, kept, *_ = records(points=points, snapshots=snapshots)(budget)
    assert (recorded[0], recorded[-1]) == (0, budget)
    assert all(type(step) is int for step in recorded)
    assert (np.diff(recorded) > 0).all()
    # The first and the last step are always there.
    assert len(recorded) <= max(points, 2)
    assert kept <= set(recorded)
    assert len(kept) == min(snapshots, len(recorded))
    assert not kept or 0 in kept


def test_huge_numbers_of_steps_and_points():
    """2^63 − 1 steps are beyond what floats count, and 10^12 points beyond memory."""
    steps = records(points=5, snapshots=0)(2**63 - 1).steps
    assert steps[:2] == [0, 1]
    assert steps[-1] == 2**63 - 1
    ratios = np.diff(np.log(np.array(steps[1:], dtype=float)))
    assert_allclose(ratios, 63 * np.log(2) / 3, rtol=1e-6)
    for budget in (1, 2, 3, 1000):
        every = records(points=10**12, snapshots=0)(budget).steps
        assert every == list(range(budget + 1))


@pytest.mark.parametrize(("budget", "points"), [(10_000, 40), (10**6, 100), (500, 20)])
def test_records_are_even_on_a_logarithmic_axis(budget, points):
    steps = np.array(records(points=points, snapshots=0)(budget).steps[1:])
    late = steps[steps > 100]
    ratio = budget ** (1 / (points - 2))
    assert_allclose(late[1:] / late[:-1], ratio, rtol=0.02)
    assert steps[0] == 1


@pytest.mark.parametrize(
    ("steps", "expected"),
    [([5], [0, 5, 10]), ([], [0, 10]), ([10, 0, 3, 3], [0, 3, 10]), ([9, 1], [0, 1, 9, 10])],
)
def test_explicit_steps_win_over_points(steps, expected):
    assert records(points=7, steps=steps, snapshots=0)(10).steps == expected


def test_a_step_beyond_the_budget_is_refused():
    with pytest.raises(Refused, match=r"^record\.steps=11: allowed are 0 to steps=10$"):
        records(points=7, steps=[3, 11], snapshots=0)(10)


def test_snapshots_are_spread_over_the_records():
    recorded, kept, *_ = records(points=40, snapshots=5)(10_000)
    places = [recorded.index(step) for step in sorted(kept)]
    assert_allclose(places, np.linspace(0, len(recorded) - 1, 5), atol=0.5)


def test_records_after_every_so_many_steps_win_over_points():
    assert records(every=3)(10).steps == [0, 3, 6, 9, 10]
    assert records(every=5)(10).steps == [0, 5, 10]
    assert records(every=20)(10).steps == [0, 10]
    assert records(every=4, steps=[1, 2])(10).steps == [0, 1, 2, 4, 8, 10]


def test_the_last_steps_are_added_to_all_records():
    plain, added = records(points=20)(10**4), records(points=20, last=5)(10**4)
    assert added.steps == sorted({*plain.steps, *range(9996, 10001)})
    assert (plain.last, added.last) == (0, 5)
    assert records(steps=[2], last=3)(10).steps == [0, 2, 8, 9, 10]
    assert records(every=4, last=1)(10).steps == [0, 4, 8, 10]
    assert records(steps=[], last=50)(3) == ([0, 1, 2, 3], frozenset(), 4, False)


@pytest.mark.parametrize("keys", [{"every": 1}, {"last": 10**13}, {"every": 7, "last": 10**6}])
def test_more_records_than_memory_can_hold_are_refused(keys):
    with pytest.raises(Refused, match=r"^record\.every and record\.last: \d+ entries take .* TB"):
        records(**keys)(10**13)


# Follow


RATES = (0.01, 5.0, 0.02)
RECORDS = [0, 1, 2, 5, 10, 20, 40]


def stream(rates=RATES, **keys):
    objective = Objective(problem("full", (3,)), loss("squared", scale=0.5))
    return descent(
        objective,
        mfgd.optimizer.gd(alternating=False),
        factors((3,)),
        lr=column(*rates),
        records=RECORDS,
        **keys,
    )


def measure(state: State) -> dict[str, torch.Tensor]:
    return {"loss": state.loss, "relative_error": state.loss / 2}


@pytest.fixture
def rows() -> list[Row]:
    return follow(stream(divergence=1e6), measure, Records(RECORDS, frozenset([0, 1, 40])))


def test_each_run_ends_at_its_own_last_record(rows):
    states = {state.step: state for state in stream(divergence=1e6)}
    assert [row.outcome for row in rows] == ["budget", "diverged", "budget"]
    for b, row in enumerate(rows):
        steps = row.trajectory["step"]
        assert_array_equal(steps, RECORDS[: len(steps)])
        assert_array_equal(row.trajectory["loss"], [float(states[step].loss[b]) for step in steps])
        for W, V in zip(row.factors, states[int(steps[-1])].factors, strict=True):
            assert_array_equal(W, V[b])
    end = int(rows[1].trajectory["step"][-1])
    assert end < 40
    limit = 1e6 * rows[1].trajectory["loss"][0]
    beyond = ~(rows[1].trajectory["loss"] <= limit)
    assert beyond.tolist() == [False] * (len(beyond) - 1) + [True]
    assert len(rows[0].trajectory["step"]) == len(RECORDS)


def test_a_converged_run_ends_there():
    rows = follow(
        stream((0.01, 0.02, 0.03), reached=lambda s: torch.tensor([False, s.step >= 5, False])),
        measure,
        Records(RECORDS, frozenset()),
    )
    assert [row.outcome for row in rows] == ["budget", "converged", "budget"]
    assert [int(row.trajectory["step"][-1]) for row in rows] == [40, 5, 40]
    assert rows[1].snapshots == []


def test_snapshots_end_with_the_run_s_own_end(rows):
    states = {state.step: state for state in stream(divergence=1e6)}
    end = int(rows[1].trajectory["step"][-1])
    assert 1 < end < 40
    assert [[step for step, _ in row.snapshots] for row in rows] == [
        [0, 1, 40],
        [0, 1, end],
        [0, 1, 40],
    ]
    for b, row in enumerate(rows):
        for step, kept in row.snapshots:
            for W, V in zip(kept, states[step].factors, strict=True):
                assert_array_equal(W, V[b])


def test_the_factors_at_every_record_are_those_of_the_states():
    states = {state.step: state for state in stream(divergence=1e6)}
    for snapshots in (frozenset(), frozenset([0, 5])):
        rows = follow(stream(divergence=1e6), measure, Records(RECORDS, snapshots, matrices=True))
        for b, row in enumerate(rows):
            steps = row.trajectory["step"].astype(int).tolist()
            for level, kept in enumerate(row.recorded):
                expected = torch.stack([states[step].factors[level][b] for step in steps])
                assert_array_equal(kept, expected)
            pictured = [step for step, _ in row.snapshots]
            assert pictured == ([0, 5, steps[-1]] if snapshots and steps[-1] > 5 else pictured)
            assert bool(pictured) == bool(snapshots)
    assert rows[1].recorded[0].shape[0] < len(RECORDS)


def test_seconds_are_the_solver_s_and_a_share_of_the_batch(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mfgd.record.time.perf_counter", lambda: now[0])

    def solving():
        for state in stream((0.01, 0.02, 0.03)):
            now[0] += 3.0
            yield state

    def measuring(state):
        now[0] += 1000.0
        return measure(state)

    for row in follow(solving(), measuring, Records(RECORDS, frozenset())):
        assert_allclose(row.trajectory["seconds"], np.arange(1, len(RECORDS) + 1))


def make_row(outcome: str, losses: list[float]) -> Row:
    count = len(losses)
    columns = {"step": 10 * np.arange(count), "seconds": np.linspace(0, 0.5, count), "loss": losses}
    trajectory = {name: np.array(values, dtype=float) for name, values in columns.items()}
    return Row(outcome, trajectory | {"relative_error": trajectory["loss"] / 4}, (), [])


@pytest.mark.parametrize(
    ("outcome", "losses", "tolerance", "expected"),
    [
        (
            "budget",
            [4.0, 1.0, 2.0],
            0.0,
            {"final_loss": 2.0, "final_relative_error": 0.5, "best_loss": 1.0},
        ),
        (
            "converged",
            [4.0, 2.0, 1.0],
            0.5,
            {"final_loss": 1.0, "best_loss": 1.0, "steps_to_tolerance": 20.0},
        ),
        (
            "budget",
            [4.0, 2.0, 1.0],
            0.1,
            {"final_loss": 1.0, "steps_run": 20.0, "solve_seconds": 0.5},
        ),
        (
            "diverged",
            [4.0, 9.0, 1e49],
            0.5,
            {"final_loss": np.nan, "best_loss": 4.0, "steps_run": 20.0},
        ),
        ("diverged", [np.nan], 0.5, {"final_loss": np.nan, "best_loss": np.nan, "steps_run": 0.0}),
    ],
)
def test_summary(outcome, losses, tolerance, expected):
    summary = make_row(outcome, losses).summary(tolerance)
    assert_array_equal([summary[name] for name in expected], [*expected.values()])
    always = {"final_loss", "final_relative_error", "best_loss", "steps_run", "solve_seconds"}
    assert set(summary) == always | ({"steps_to_tolerance"} if outcome == "converged" else set())


def row_of_columns(**columns) -> Row:
    """A run in double precision with the given columns at steps 0, 10, 20 …"""
    count = len(next(iter(columns.values())))
    steps = {
        "step": 10.0 * np.arange(count),
        "loss_gap": np.full(count, np.nan),
        "loss": np.ones(count),
    }
    trajectory = steps | {name: np.array(values, dtype=float) for name, values in columns.items()}
    return Row("budget", trajectory, (torch.zeros(2, 1).double(), torch.zeros(1, 2).double()), [])


def test_contraction_of_a_geometric_sequence():
    errors = 0.9 ** (10 * np.arange(5))
    assert_allclose(
        row_of_columns(relative_error=errors).contraction(),
        [np.nan, 0.9, 0.9, 0.9, 0.9],
        rtol=1e-12,
    )
    # The root of the loss counts: the loss is quadratic in the distance.
    gap = row_of_columns(loss=3 + errors**2, loss_gap=errors**2, relative_error=np.zeros(5))
    assert_allclose(gap.contraction(), [np.nan, 0.9, 0.9, 0.9, 0.9], rtol=1e-12)


def test_no_contraction_of_what_is_only_rounding():
    errors = np.array([1.0, 1e-3, 1e-15, 1e-16])
    gap = row_of_columns(loss=3 + errors**2, loss_gap=errors**2, relative_error=np.zeros(4))
    assert_array_equal(np.isnan(gap.contraction()), [True, False, True, True])


@pytest.mark.parametrize("s", [0.5, 4.0])
@pytest.mark.parametrize("start", [1e-3, 0.1])
def test_half_time_on_saxe_s_curve(s, start):
    t = 10.0 * np.arange(60)
    rate = 0.02
    curve = s / (1 + (s / start - 1) * np.exp(-rate * t))
    expected = np.log(s / start - 1) / rate
    assert row_of_columns(**{"mode.1": curve}).half_time("mode.1", s) == pytest.approx(
        expected, rel=1e-10
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, -1, 3, 2], 10 + 10 * 2 / 4),
        ([0.0, 0.1, 0.2], np.nan),
        ([1.5, 2, 2], np.nan),
        ([0, np.nan, 2], np.nan),
    ],
)
def test_half_time_off_the_curve(values, expected):
    assert_allclose(row_of_columns(**{"mode.1": values}).half_time("mode.1", 2.0), expected)


def test_early_stop_is_at_the_least_heldout_error_if_there_is_one():
    error = [3.0, 1.0, 2.0, np.inf]
    assert row_of_columns(relative_error=error).early_stop() == (10, 1)
    assert row_of_columns(
        relative_error=error, heldout_error=[3.0, 2.0, 1.5, np.nan]
    ).early_stop() == (
        20,
        1.5,
    )
    assert np.isnan(row_of_columns(relative_error=[np.nan, np.inf]).early_stop()).all()
