import pytest
import torch
from test_config import composed

from mfgd import sweep

SYNTHETIC = ("problem=synthetic", "problem.n=12", "problem.m=9", "problem.rank=2", "steps=300", "lr=0.1")


def grid(*lines: str) -> list:
    return [composed(*SYNTHETIC, *line.split()) for line in lines]


def test_runs_of_equal_identity_and_shape_share_a_batch():
    points = grid(
        "lr=0.1", "rank=3", "lr=0.2 seed=4", "loss=huber", "loss=huber loss.delta=2", "init=normal", "problem.seed=1"
    )
    assert sweep.batches(points) == [[0, 2, 5, 6], [1], [3, 4]]


def test_batches_fit_their_bytes():
    points = grid(*[f"seed={seed} batch_bytes={12 * 9 * 8 * 3 * 2}" for seed in range(5)])
    assert sweep.batches(points) == [[0, 1], [2, 3], [4]]


def test_masked_and_full_problems_do_not_mix():
    assert sweep.batches(grid("problem.observed=0.5", "problem.observed=0.6", "problem.observed=1.0")) == [[0, 1], [2]]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_run_alone_and_in_a_batch_agree_bit_for_bit(dtype):
    lines = [
        f"seed={s} lr={lr} loss.scale={c}" for s, lr, c in [(0, 0.1, 1.0), (1, 0.05, 0.5), (2, 9.0, 1.0), (3, 0.2, 0.3)]
    ]
    points = grid(*[f"{line} problem.seed={i} dtype={dtype}" for i, line in enumerate(lines)])
    (batch,) = sweep.batches(points)
    together = sweep.solve([points[i] for i in batch])
    assert [row.outcome for row in together] == ["budget", "budget", "diverged", "budget"]
    for point, row in zip(points, together, strict=True):
        (alone,) = sweep.solve([point])
        for a, b in zip(alone.factors, row.factors, strict=True):
            assert torch.equal(a.nan_to_num(), b.nan_to_num())
        assert alone.trajectory["loss"].tobytes() == row.trajectory["loss"].tobytes()


def test_the_same_sweep_twice_gives_identical_matrices():
    points = grid("seed=0", "seed=1")
    for one, two in zip(sweep.solve(points), sweep.solve(points), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.factors, two.factors, strict=True))


def test_tolerance_is_held_against_the_excess_loss_or_the_relative_error():
    noisy, exact = grid("problem.noise=0.1 tolerance=1e-3 steps=5000", "tolerance=1e-3 steps=5000")
    (row,) = sweep.solve([noisy])
    assert row.outcome == "converged"
    assert row.trajectory["excess_loss"][-1] <= 1e-3 < row.trajectory["excess_loss"][-2]
    (row,) = sweep.solve([exact])
    assert row.outcome == "converged"
    assert row.trajectory["relative_error"][-1] <= 1e-3 < row.trajectory["relative_error"][-2]


def test_lr_as_a_list_gives_the_first_rates():
    listed, plain = grid("lr=[0.1,0.1,0.1]", "lr=0.1")
    assert torch.equal(sweep.solve([listed])[0].factors[0], sweep.solve([plain])[0].factors[0])


@pytest.mark.parametrize("depth", [3, 4])
def test_depth(depth):
    (row,) = sweep.solve(grid(f"depth={depth} init=balanced init.scale=0.5 lr=0.02 steps=4000 tolerance=1e-6"))
    assert [tuple(W.shape) for W in row.factors] == [(12, 2), *[(2, 2)] * (depth - 2), (2, 9)]
    assert row.outcome == "converged"


def test_full_diagnostics_add_sharpness():
    (row,) = sweep.solve(grid("diagnostics=full init=spectral loss.scale=0.5 steps=5"))
    # At the balanced optimum of ½‖D − CF‖² the sharpness is 2 σ1(D), and σ1 = 1 here (Cohen et al. 2021, appendix).
    assert row.trajectory["sharpness"][0] == pytest.approx(2.0, rel=1e-9)
