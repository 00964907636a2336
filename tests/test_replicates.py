"""Replicates: the same bits as single runs, and NumPy's quantiles of what those leave behind."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from cases import solve
from test_config import composed

import mfgd
from mfgd import plan
from mfgd.component import Component
from mfgd.replicates import Ensemble, solve_ensembles
from mfgd.types import Refused

SYNTHETIC = (
    *("problem=synthetic", "problem.n=12", "problem.m=9", "problem.rank=2", "problem.observed=0.7"),
    *("init.scale=0.3", "steps=300", "lr=0.1", "record.points=8"),
)
MOVING = "problem.seed=${seed}"


def ensemble(*line: str, count: int = 5) -> Ensemble:
    (rows,) = solve_ensembles([composed(*SYNTHETIC, f"replicates={count}", *line)])
    (row,) = rows
    assert isinstance(row, Ensemble)
    return row


def singles(*line: str, seeds=range(5), moving: bool = True) -> list:
    moved = [[f"problem.seed={seed}"] if moving else [] for seed in seeds]
    lines = [(*line, f"seed={seed}", *more) for seed, more in zip(seeds, moved, strict=True)]
    return [solve([composed(*SYNTHETIC, *line)])[0] for line in lines]


@pytest.mark.parametrize("moving", [True, False])
def test_a_replicate_has_the_bits_of_the_single_run_of_its_seed(moving):
    more = [MOVING] if moving else []
    row = ensemble("seed=2", "replicates_kept=all", *more)
    alone = singles(seeds=range(10, 15), moving=moving)
    assert row.table["seed"].tolist() == [10, 11, 12, 13, 14]
    for i, name in enumerate("CF"):
        assert torch.equal(row.stacked[name], torch.stack([one.factors[i] for one in alone]))
    for measure in ("loss", "relative_error", "balance"):
        expected = [one.trajectory[measure][-1] for one in alone]
        assert row.table[measure].tolist() == expected
    for kind in ("draw.init", "draw.data", "draw.mask"):
        assert row.table[kind].tolist() == [one.tags[kind] for one in alone]
    assert (len(set(row.table["draw.data"])) > 1) == moving
    order = np.argsort([one.trajectory["loss"][-1] for one in alone])
    assert torch.equal(row.factors[0], alone[order[2]].factors[0])
    assert row.tags["replicates.median_seed"] == str(10 + order[2])


def test_the_bytes_of_a_batch_change_no_bit():
    few = ensemble(MOVING, "batch_bytes=20000")
    many = ensemble(MOVING)
    for name, column in many.trajectory.items():
        if name != "seconds":
            assert np.array_equal(few.trajectory[name], column, equal_nan=True), name
    assert torch.equal(few.factors[0], many.factors[0])


@pytest.mark.parametrize("count", [4, 5, 6])
def test_medians_and_quartiles_are_those_of_numpy(count):
    row, alone = ensemble(MOVING, count=count), singles(seeds=range(count))
    for measure in ("loss", "relative_error", "sigma.1"):
        columns = np.stack([one.trajectory[measure] for one in alone])
        for name, share in ((measure, 0.5), (f"{measure}.q25", 0.25), (f"{measure}.q75", 0.75)):
            expected = np.quantile(columns, share, axis=0)
            np.testing.assert_allclose(row.trajectory[name], expected, rtol=1e-14)
    final = np.quantile([one.summary(0.0)["final_loss"] for one in alone], [0.25, 0.5, 0.75])
    found = [row.summary(0.0)[f"final_loss{label}"] for label in (".q25", "", ".q75")]
    np.testing.assert_allclose(found, final, rtol=1e-14)
    seconds = row.summary(0.0)["solve_seconds"]
    assert seconds == pytest.approx(row.table["solve_seconds"].sum())


def test_a_replicate_that_has_ended_stays_where_it_ended():
    line = ("tolerance=1e-3", "problem.observed=1", "steps=400", "record.points=40")
    row, alone = ensemble(MOVING, *line), singles(*line)
    lengths = {len(one.trajectory["loss"]) for one in alone}
    assert len(lengths) > 1
    long = max(lengths)
    columns = [one.trajectory["loss"] for one in alone]
    filled = [np.concatenate([X, np.full(long - len(X), X[-1])]) for X in columns]
    np.testing.assert_allclose(row.trajectory["loss"], np.median(filled, axis=0), rtol=1e-14)
    steps = [one.trajectory["step"][-1] for one in alone]
    assert row.values["steps_to_tolerance"] == np.median(steps)
    assert row.values["replicates.converged"] == 5
    assert (row.outcome, row.reason[:20]) == ("converged", "5 of 5 replicates: T")


def test_a_replicate_that_diverged_counts_as_the_largest():
    """The rate is beyond the limit of stability at some starts, and below the limit at others."""
    line = ("init=normal", "init.scale=1", "lr=0.06", "problem.observed=1", "divergence=10")
    row, alone = ensemble(*line, count=9), singles(*line, seeds=range(9), moving=False)
    outcomes = [one.outcome for one in alone]
    lost = outcomes.count("diverged")
    assert 0 < lost < 9
    assert row.values["replicates.diverged"] == lost
    finals = [one.trajectory["loss"][-1] for one in alone if one.outcome != "diverged"]
    ordered = [*sorted(finals), *[np.nan] * lost]
    expected = [ordered[2], ordered[4], ordered[6]]
    found = [row.values[f"final_loss{label}"] for label in (".q25", "", ".q75")]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(row.trajectory["loss"][-1], ordered[4])


def test_the_success_rate_is_the_share_that_fulfils_the_condition():
    condition = "relative_error < 0.5 and outcome == 'budget'"
    row, alone = ensemble(MOVING, f'success="{condition}"', "steps=40"), singles("steps=40")
    errors = [one.trajectory["relative_error"][-1] for one in alone]
    assert 0 < sum(error < 0.5 for error in errors) < 5
    assert row.values["success_rate"] == sum(error < 0.5 for error in errors) / 5


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("success='relative_eror < 1'",), "relative_eror: no such column"),
        (("success='relative_error <'",), "cannot be read"),
        (("replicates=1", "success='loss < 1'"), "allowed with replicates=2 or more"),
        (("replicates=0",), "replicates=0: must be at least 1"),
        (("+problem.twice=${seed}${seed}",), "problem.twice: depends on seed"),
        (("+metrics.own._target_=cases.own", "+metrics.own.key=${seed}"), "depends on seed"),
    ],
)
def test_what_is_refused(line, said):
    with pytest.raises(Refused, match=said):
        plan.group_points([composed(*SYNTHETIC, "replicates=5", *line)])


def test_a_single_run_has_the_fingerprint_that_it_had():
    one, many = composed(*SYNTHETIC), composed(*SYNTHETIC, "replicates=3")
    assert "replicates" not in one.resolved
    fixed, moving = (
        composed(*SYNTHETIC, "replicates=3", "seed=0"),
        composed(*SYNTHETIC, "replicates=3", MOVING),
    )
    assert fixed.fingerprint == many.fingerprint != one.fingerprint
    assert moving.fingerprint != fixed.fingerprint
    assert moving.params()["problem.seed"] == "${seed}"
    assert MOVING in moving.arguments


def test_a_batch_holds_replicates_as_runs():
    bytes_of_a_run = (3 * 12 * 9 + 3 * 2 * (12 + 9)) * 8
    line = (*SYNTHETIC, f"batch_bytes={12 * bytes_of_a_run}", "replicates=5")
    points = [composed(*line, f"seed={seed}") for seed in range(5)]
    assert [len(batch) for batch in plan.group_points(points)] == [2, 2, 1]


def test_a_replicate_that_raises_fails_its_run_alone():
    def fail(*, seed):
        def start(problem, widths, generator):
            if generator.initial_seed() in bad:
                raise RuntimeError("no start")
            return tuple(torch.ones(shape) for shape in pairwise(widths))

        return start

    from mfgd.draws import stream

    bad = {stream("init", 7).initial_seed()}
    points = [composed(*SYNTHETIC, "replicates=5", f"seed={seed}", "steps=3") for seed in (0, 1)]
    points = [
        replace(point, init=Component("own", "own", fail, (("seed", 0),))) for point in points
    ]
    ((first, second),) = solve_ensembles(points)
    assert isinstance(first, Ensemble)
    assert str(second) == "no start"


def test_a_sweep_of_replicates_is_tracked_and_resumed(here, tmp_path):
    line = (
        *("--multirun", *SYNTHETIC, "replicates=4", MOVING, "rank=1,2", "steps=30"),
        *("success='relative_error < 0.9'", "workers=1", "replicates_kept=all"),
    )
    assert here(*line).returncode == 0
    runs = mfgd.load_runs(uri=f"sqlite:///{tmp_path}/mlflow.db")
    runs = runs[runs["parent"].notna()]
    assert set(runs["params.problem.seed"]) == {"${seed}"}
    for _, tracked in runs.iterrows():
        run, replicates = (
            load(tracked["run_id"], uri=f"sqlite:///{tmp_path}/mlflow.db")
            for load in (mfgd.load_run, mfgd.load_replicates)
        )
        errors = replicates.table["relative_error"]
        assert tracked["metrics.relative_error"] == errors.median()
        assert tracked["metrics.success_rate"] == (errors < 0.9).mean()
        middle = int(tracked["tags.replicates.median_seed"])
        assert torch.equal(run.matrices["C"], replicates.factors["C"][middle])
        assert tracked["metrics.replicates.budget"] == 4
    ids = set(runs["run_id"])
    assert here(*line, "resume=true").returncode == 0
    again = mfgd.load_runs(uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert set(again[again["parent"].notna()]["run_id"]) == ids
