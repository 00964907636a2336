"""The factors at every record, in the files of a run and read back."""

import pytest
import torch
from cases import problem, solve
from numpy.testing import assert_array_equal
from test_config import composed

from mfgd import artifacts, difference
from mfgd.replicates import solve_ensembles

LINE = ("problem=synthetic", "problem.n=9", "problem.m=7", "rank=2", "steps=50", "record.every=10")


@pytest.mark.parametrize("depth", [2, 3])
def test_the_factors_at_every_record_are_read_back(depth, tmp_path):
    line = (*LINE, f"depth={depth}", "init=normal", "init.scale=0.3")
    point = composed(*line, "record.matrices=true", "record.snapshots=0")
    (row,) = solve([point])
    artifacts.write_row(tmp_path, row, problem("full"))
    artifacts.write_config(tmp_path, point)
    run = artifacts.read_run(tmp_path)
    assert run.trajectory["step"].tolist() == [0, 10, 20, 30, 40, 50]
    names = ("C", "F") if depth == 2 else ("W1", "W2", "W3")
    for name in names:
        kept = run.matrices[f"records.{name}"]
        assert_array_equal(kept[-1], run.matrices[name])
    for i, steps in enumerate((0, 10, 20, 30, 40)):
        if steps == 0:
            continue
        # A run of that budget ends there.
        (short,) = solve([composed(*line, f"steps={steps}")])
        for name, W in zip(names, short.factors, strict=True):
            assert torch.equal(run.matrices[f"records.{name}"][i], W)
    assert difference._rank(run) == 2


def test_nothing_is_kept_unless_asked_for(tmp_path):
    point = composed(*LINE)
    (row,) = solve([point])
    artifacts.write_row(tmp_path, row, problem("full"))
    artifacts.write_config(tmp_path, point)
    assert set(artifacts.read_run(tmp_path).matrices) == {"C", "F", "D"}


def test_replicates_keep_the_records_of_the_median_one():
    point = composed(*LINE, "record.matrices=true", "replicates=3")
    ((ensemble,),) = solve_ensembles([point])
    (alone,) = solve([ensemble.chosen])
    for kept, expected in zip(ensemble.recorded, alone.recorded, strict=True):
        assert torch.equal(kept, expected)


def test_untold_keys_leave_the_fingerprint():
    plain = composed(*LINE).fingerprint
    same = ("record.last=0", "record.matrices=false", "problem.target_rank=null")
    assert all(composed(*LINE, key).fingerprint == plain for key in same)
    other = ("record.last=1", "record.matrices=true", "problem.target_rank=2")
    assert all(composed(*LINE, key).fingerprint != plain for key in other)
