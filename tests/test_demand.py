"""What a run needs of the memory, known before its factors are drawn."""

import resource

import pytest
from test_batch import composed

from mfgd import capacity, plan
from mfgd.types import Refused

TALL = (
    "record.snapshots=0 init=normal problem=synthetic problem.n=50000 problem.m=10 problem.rank=2"
)
VAST = {
    # The start, and the factors before and after a step, of 8 bytes for each of 100·50010 numbers.
    f"{TALL} rank=100": r"rank=100 depth=2: .* of a 50000×10 matrix take 120 MB",
    # Adam carries two numbers more for each.
    f"{TALL} rank=100 optimizer=adam": "rank=100 depth=2: .* take 200 MB",
    f"{TALL} rank=80 dtype=float32".replace("s=0", "s=9"): "record.snapshots=9: .* take 208 MB",
    # The factors at two records, of the batch and of the run: 8 bytes for each of 50·50010 numbers.
    f"{TALL} rank=50 record.points=2 record.matrices=true": (
        "record.matrices=true: the factors at 2 records take 140 MB"
    ),
    # Two Gram matrices of 10¹⁰ numbers each.
    "rank=100000": "rank=100000 depth=2: steps of factors of a 3×4 matrix take 160 GB",
    "rank=1 depth=1000000000 record.snapshots=0": "rank=1 depth=1000000000: .* take 424 GB",
    "steps=1000000000 record.points=1000000000": "record.points=1000000000: 999999999 entries",
    "steps=1000000 record.points=1000000": "record.points=2.....: so many records of a run take",
}


@pytest.mark.parametrize("line", VAST)
def test_a_run_that_cannot_fit_is_refused_before_it_is_drawn(line, monkeypatch):
    monkeypatch.setattr(capacity, "free_memory", lambda: 100e6)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Refused, match=f"^{VAST[line]}.*; this machine has 100 MB free; allowed"):
        plan.group_points([composed(*line.split())])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB


def test_batches_side_by_side_have_to_fit_together(monkeypatch):
    points = [composed("steps=5", f"seed={seed}", "batch_bytes=1") for seed in range(4)]
    monkeypatch.setattr(capacity, "free_memory", lambda: 100_000)
    assert plan.group_points(points, workers=1) == [[0], [1], [2], [3]]
    monkeypatch.setattr(capacity, "free_memory", lambda: 30_000)
    with pytest.raises(Refused, match=r"^batch_bytes: 4 batches at once of up to 1 runs take"):
        plan.group_points(points, workers=4)
