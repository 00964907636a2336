from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import solve
from test_config import composed

from mfgd import batch, plan
from mfgd.attempt import solve_or_report
from mfgd.component import batch_identity, build_component
from mfgd.types import Refused

SYNTHETIC = (
    "problem=synthetic",
    "problem.n=12",
    "problem.m=9",
    "problem.rank=2",
    "steps=300",
    "lr=0.1",
)


def grid(*lines: str) -> list:
    return [composed(*SYNTHETIC, *line.split()) for line in lines]


def test_runs_of_equal_identity_and_shape_share_a_batch():
    points = grid(
        "lr=0.1",
        "rank=3",
        "lr=0.2 seed=4",
        "loss=huber",
        "loss=huber loss.delta=2",
        "init=normal",
        "problem.seed=1",
    )
    assert plan.group_points(points) == [[0, 2, 5, 6], [1], [3, 4]]


def test_batches_fit_their_bytes():
    points = grid(
        *[f"seed={seed} batch_bytes={(2 * 12 * 9 + 3 * 2 * (12 + 9)) * 8 * 2}" for seed in range(5)]
    )
    assert plan.group_points(points) == [[0, 1], [2, 3], [4]]


def test_masked_and_full_problems_do_not_mix():
    assert plan.group_points(
        grid("problem.observed=0.5", "problem.observed=0.6", "problem.observed=1.0")
    ) == [[0, 1], [2]]


def test_patience_is_a_part_of_the_batch_and_moves_no_fingerprint_unless_it_is_set():
    points = grid("", "patience=20", "patience=20 lr=0.2", "patience=null")
    assert plan.group_points(points) == [[0, 3], [1, 2]]
    assert points[0].fingerprint == points[3].fingerprint != points[1].fingerprint
    assert "patience" not in points[0].params()
    assert points[1].params()["patience"] == 20
    ended = [solve([point])[0].outcome for point in grid("lr=1e-9", "lr=1e-9 patience=20")]
    assert ended == ["budget", "plateau"]


def test_a_fault_in_the_largest_singular_value_fails_one_run_alone(tmp_path, monkeypatch):
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.eye(250) * (1 + (name == "b")))

    def refuse(D):
        if D.max() > 1:
            raise RuntimeError("no convergence")
        return 1.0

    monkeypatch.setattr("mfgd.observation.top_singular_value", refuse)
    lines = [f"problem=file problem.path={tmp_path / name}.npy steps=2" for name in "ab"]
    points = [composed(*line.split(), "lr_unit=sigma1") for line in lines]
    plan.find_unstable(points)
    (good,), (bad,) = (result for each in points for result in solve_or_report([each]))
    assert good.outcome == "budget"
    assert "no convergence" in str(bad)


EXACT = {
    "tiny": "problem.n=3 problem.m=4 rank=2",
    "tiny, deep, penalized": "problem.n=5 problem.m=6 depth=3 rank=2 loss.penalty=0.01",
    "tiny, one column": "problem.n=12 problem.m=1 problem.rank=1 rank=1",
    "small": "problem.n=12 problem.m=9 rank=5 loss.reduction=mean lr=20",
    "small, diagnosed": "problem.n=12 problem.m=9 rank=2 diagnostics=full record.points=12",
    "small, huber": "problem.n=30 problem.m=20 rank=3 loss=huber loss.delta=0.1",
    "tiny, logcosh": "problem.n=3 problem.m=4 rank=2 loss=logcosh",
    "small, logcosh": "problem.n=33 problem.m=21 rank=3 loss=logcosh",
    "masked": "problem.n=60 problem.m=60 rank=5 problem.observed=0.3",
    "float32": "problem.n=100 problem.m=80 rank=10 dtype=float32",
    "largest": "problem.n=100 problem.m=100 rank=5 optimizer=momentum lr=0.05",
}
LARGE = {
    "residual": "problem.n=150 problem.m=120 rank=5",
    "gram": "problem.n=300 problem.m=200 rank=3 depth=3 init=normal lr=0.01",
}
COMPANY = [
    "seed=0",
    "seed=1 lr=1e4",
    "seed=2 loss.scale=0.3 problem.seed=1",
    "seed=3 problem.seed=2",
    "seed=4 lr=1e9",
]


def alone_and_together(monkeypatch, line: str, steps: int, others: int = 12):
    """Pairs of rows of the same runs, solved one by one and with others, of which two diverge.

    Alone they have two threads, as a single run of the command has; together one, as a worker of a
    sweep has.
    """
    lines = [f"init.scale=0.1 {line} steps={steps} {other} problem.noise=0.01" for other in COMPANY]
    points = grid(*lines)
    assert len(plan.group_points([replace(point, batch_bytes=10**9) for point in points])) == 1
    crowd = [replace(points[0], seed=seed) for seed in range(10, 10 + others)]
    rows = solve(points + crowd)[: len(points)]
    assert [row.outcome for row in rows] == ["budget", "diverged", "budget", "budget", "diverged"]
    monkeypatch.setattr(batch, "load_problem", batch.load_problem.__wrapped__)
    torch.set_num_threads(2)
    try:
        pairs = [(solve([point])[0], row) for point, row in zip(points, rows, strict=True)]
        return pairs + list(zip(solve(points[2:4]), rows[2:4], strict=True))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(("name", "line"), EXACT.items(), ids=EXACT)
def test_a_run_alone_and_in_a_batch_agree_bit_for_bit(monkeypatch, name, line):
    # A large crowd of tiny runs is interleaved, a run alone is not.
    crowd = {"tiny, one column": 2400}.get(name, 800)
    steps, others = (3000, crowd) if name.startswith("tiny") else (10_000, 12)
    for alone, row in alone_and_together(monkeypatch, line, steps=steps, others=others):
        for a, b in zip(alone.factors, row.factors, strict=True):
            assert torch.equal(a.nan_to_num(), b.nan_to_num())
        for measure in alone.trajectory.keys() - {"seconds"}:
            assert alone.trajectory[measure].tobytes() == row.trajectory[measure].tobytes(), measure


@pytest.mark.parametrize("line", LARGE.values(), ids=LARGE)
def test_larger_runs_alone_and_in_a_batch_agree_to_rounding(monkeypatch, line):
    for alone, row in alone_and_together(monkeypatch, line, steps=500):
        if row.outcome != "diverged":
            for a, b in zip(alone.factors, row.factors, strict=True):
                assert torch.linalg.vector_norm(a - b) <= 1e-12 * torch.linalg.vector_norm(b)


def test_the_same_sweep_twice_gives_identical_matrices():
    points = grid("seed=0", "seed=1")
    for one, two in zip(solve(points), solve(points), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.factors, two.factors, strict=True))


@pytest.mark.parametrize("diagnostics", ["basic", "full"])
def test_a_run_with_finite_factors_whose_loss_overflows_has_diverged(diagnostics):
    line = (
        "problem.n=60 problem.m=50 problem.spectrum=[1,.7,.4,.2] rank=4 loss.scale=0.5 "
        "init=spectral init.scale=1.001 optimizer=momentum optimizer.beta=0.5 lr_unit=sigma1 "
        f"lr=1.89 divergence=1e307 steps=200 record.points=200 diagnostics={diagnostics}"
    )
    (row,) = solve(grid(line))
    assert all(torch.isfinite(W).all() for W in row.factors)
    assert row.trajectory["loss"][-1] == np.inf
    assert row.outcome == "diverged"


def test_tolerance_is_held_against_the_excess_loss_or_the_relative_error():
    noisy, exact = grid("problem.noise=0.1 tolerance=1e-3 steps=5000", "tolerance=1e-3 steps=5000")
    (row,) = solve([noisy])
    assert row.outcome == "converged"
    assert row.trajectory["excess_loss"][-1] <= 1e-3 < row.trajectory["excess_loss"][-2]
    (row,) = solve([exact])
    assert row.outcome == "converged"
    assert row.trajectory["relative_error"][-1] <= 1e-3 < row.trajectory["relative_error"][-2]


def test_lr_as_a_list_gives_the_first_rates():
    listed, plain = grid("lr=[0.1,0.1,0.1]", "lr=0.1")
    assert torch.equal(solve([listed])[0].factors[0], solve([plain])[0].factors[0])


@pytest.mark.parametrize("depth", [3, 4])
def test_depth(depth):
    (row,) = solve(
        grid(f"depth={depth} init=balanced init.scale=0.5 lr=0.02 steps=4000 tolerance=1e-6")
    )
    assert [tuple(W.shape) for W in row.factors] == [(12, 2), *[(2, 2)] * (depth - 2), (2, 9)]
    assert row.outcome == "converged"


def test_full_diagnostics_add_sharpness():
    (row,) = solve(grid("diagnostics=full init=spectral loss.scale=0.5 steps=5"))
    # At the balanced optimum of ½‖D − CF‖² the sharpness is 2 σ1(D), and σ1 = 1 here (Cohen et al.
    # 2021, appendix).
    assert row.trajectory["sharpness"][0] == pytest.approx(2.0, rel=1e-9)


def test_rates_in_units_of_sigma1_mean_the_same_at_any_loss_scale_and_data():
    line = "lr_unit=sigma1 lr=0.5 init=spectral init.scale=0.5 steps=200"
    rows = solve(
        grid(
            f"{line} problem.spectrum=[2,1]",
            f"{line} problem.spectrum=[2,1] loss.scale=3.0",
            f"{line} problem.spectrum=[2,1] loss.reduction=mean",
            f"{line} problem.spectrum=[20,10]",
        )[:2]
    )
    mean, large = (
        solve(grid(f"{line} problem.spectrum={spectrum} {more}"))[0]
        for spectrum, more in (("[2,1]", "loss.reduction=mean"), ("[20,10]", ""))
    )
    # In ½‖D − CF‖² the unit is 1/σ₁; the plain sum has twice its curvature.
    assert [row.values["lr_absolute"] for row in (*rows, mean, large)] == pytest.approx(
        [0.5 / (2 * 2), 0.5 / (2 * 3 * 2), 0.5 * 12 * 9 / (2 * 2), 0.5 / (2 * 20)], rel=1e-12
    )
    errors = [row.trajectory["relative_error"] for row in (*rows, mean, large)]
    for error in errors[1:]:
        assert error == pytest.approx(errors[0], rel=1e-9, abs=1e-15)


def test_a_ratio_of_rates_is_the_same_alone_and_beside_others():
    line = "loss.scale=0.5 init=normal init.scale=0.3 steps=20 lr_unit=sigma1 lr=0.3"
    points = grid(line, f"{line} lr_ratio=4", f"{line} lr_ratio=9", f"{line} lr_ratio=[4]")
    rows = solve(points)
    for point, row in zip(points, rows, strict=True):
        (alone,) = solve([point])
        assert all(torch.equal(*pair) for pair in zip(row.factors, alone.factors, strict=True))
        # σ₁ = 1: the limit of lr is 1/√ratio, that of a rate for the factors F/√ratio.
        assert row.values["lr_absolute"] == pytest.approx(0.3 / point.shares[1] ** 0.5, rel=1e-12)
        assert row.values["lr_limit"] == pytest.approx(1 / point.shares[1] ** 0.5, rel=1e-12)
    assert torch.equal(rows[1].factors[0], rows[3].factors[0])
    above, below = grid(f"{line} lr_ratio=4 lr=1.01", f"{line} lr_ratio=4 lr=0.99")
    assert plan.find_unstable([above, below]) == ([above], pytest.approx(1))
    above, below = (
        replace(point, lr_unit="absolute", lr=(lr,)) for point, lr in ((above, 0.51), (below, 0.49))
    )
    assert plan.find_unstable([above, below]) == ([above], pytest.approx(0.5))


def test_a_ratio_that_a_method_does_not_take_is_refused_beside_one_that_is_none():
    with pytest.raises(Refused, match=r"lr_ratio=2.0 with optimizer=als"):
        plan.group_points(grid("optimizer=als", "optimizer=als lr_ratio=2"))


def test_rates_in_units_of_the_sharpness_at_the_start():
    (row,) = solve(grid("lr_unit=sharpness lr=0.9 init=spectral loss.scale=0.5 steps=5"))
    assert row.values["lr_absolute"] == pytest.approx(
        0.9, rel=1e-9
    )  # of ½‖·‖² at the balanced optimum L = 2 σ₁, and σ₁ = 1 here


def test_an_unusable_unit_is_refused():
    with pytest.raises(Refused, match="lr_unit=sigma1 with loss=absolute"):
        plan.group_points(grid("lr_unit=sigma1 loss=absolute"))


def test_rates_beyond_the_limit_are_known_before_the_sweep():
    points = grid(
        "lr=0.4", "lr=0.6", "lr=1.1 lr_unit=sigma1", "lr=9 loss=huber", "lr=9 optimizer=momentum"
    )
    beyond, least = plan.find_unstable(points)
    assert beyond == [points[1], points[2]]  # σ₁ = 1 and the plain sum of squares: 1/2σ₁
    assert least == pytest.approx(0.5, rel=1e-12)


def test_schedules_and_optimizers_share_batches_by_their_floats():
    points = grid(
        "schedule=geometric",
        "schedule=geometric schedule.decay=0.9",
        "schedule=cosine",
        "optimizer=scaled_gd",
        "optimizer=scaled_gd optimizer.damping=0.1",
        "optimizer=scaled_gd optimizer.alternating=true",
    )
    assert plan.group_points(points) == [[0, 1], [2], [3, 4], [5]]


def test_a_geometric_schedule_of_a_batch_is_that_of_each_run():
    points = grid(
        "schedule=geometric schedule.decay=0.99",
        "schedule=geometric schedule.decay=0.9",
        "lr=[0.1,0.05]",
    )
    pair = solve(points[:2])
    for point, row in zip(points, pair, strict=False):
        (alone,) = solve([point])
        assert all(map(torch.equal, alone.factors, row.factors))
    listed = grid("lr=[" + ",".join(str(0.1 * 0.9**t) for t in range(300)) + "]")
    (expected,) = solve(listed)
    for W, X in zip(pair[1].factors, expected.factors, strict=True):
        assert torch.linalg.vector_norm(W - X) <= 1e-13 * torch.linalg.vector_norm(X)


def spread(problem, factors, *, width):
    """A metric of a user's own: the largest entry of D̂ over a width."""
    return (factors[0] @ factors[-1]).abs().amax((-2, -1)) / width


def test_a_metric_of_ones_own_has_a_curve_in_any_batch():
    own = "+metrics.spread._target_=test_batch.spread +metrics.spread.width="
    points = grid(f"{own}2.0", f"{own}2.0 seed=1", f"{own}4.0")
    assert plan.group_points(points) == [[0, 1], [2]]
    rows = solve(points[:2]) + solve(points[2:])
    for row, width in zip(rows, (2.0, 2.0, 4.0), strict=True):
        C, F = (W.numpy() for W in row.factors)
        assert len(row.trajectory["spread"]) == len(row.trajectory["step"])
        assert row.trajectory["spread"][-1] == pytest.approx(abs(C @ F).max() / width, rel=1e-12)


def test_a_metric_of_ones_own_may_not_hide_a_measure():
    (point,) = grid("+metrics.loss._target_=test_batch.spread +metrics.loss.width=1.0")
    with pytest.raises(Refused, match=r"^metrics\.loss: the name of a built-in measure"):
        plan.group_points([point])


def test_unusable_optimizers_are_refused_before_anything_is_solved():
    with pytest.raises(Refused, match="optimizer=mu"):
        plan.group_points(grid("optimizer=mu"))
    with pytest.raises(Refused, match="optimizer=als: allowed is loss=squared"):
        plan.group_points(grid("optimizer=als loss=huber"))


def test_a_float_becomes_a_column_and_all_else_is_identity():
    first, second, third = (
        composed(*SYNTHETIC, "optimizer=polyak", f"optimizer.{keys}").optimizer
        for keys in ("floor=1.0", "floor=2.0", "metric=scaled")
    )
    assert batch_identity(first) == batch_identity(second) != batch_identity(third)

    def keep(*, floor, metric, damping, alternating):
        return floor, metric, damping, alternating

    kept = build_component(
        [replace(component, function=keep) for component in (first, second)], tuple
    )
    assert kept == ((1.0, 2.0), "euclidean", (0.0, 0.0), False)


def test_problems_and_starts_of_a_batch_differ_by_any_key():
    points = grid("init.scale=0.5", "init=normal", "problem.seed=3 problem.noise=0.2")
    assert plan.group_points(points) == [[0, 1, 2]]


def draws(*lines: str) -> list[str]:
    return [
        solve([point])[0].tags["draw.init"]
        for point in grid(*(f"steps=1 {line}" for line in lines))
    ]


@pytest.mark.parametrize("init", ["uniform", "normal", "orthogonal", "balanced", "spectral"])
def test_the_draw_of_a_start_does_not_depend_on_its_scale_nor_on_any_other_axis(init):
    others = (
        "init.scale=0.37",
        "lr=0.2",
        "loss=huber",
        "optimizer=adam",
        "problem.noise=0",
        "steps=2",
        "dtype=float32",
    )
    assert len(set(draws(*(f"init={init} {other}" for other in ("", *others))))) == 1
    scaled, whole = (
        solve(grid(f"init={init} init.scale={s} steps=1 lr=1e-300"))[0].factors for s in (0.25, 1.0)
    )
    for W, V in zip(scaled, whole, strict=True):
        torch.testing.assert_close(W, 0.25 * V, rtol=1e-15, atol=0)


def test_another_seed_rank_or_kind_is_another_draw():
    lines = ("seed=0", "seed=1", "rank=3", "depth=3", "init=normal", "init=orthogonal")
    assert len(set(draws(*lines))) == len(lines)


def test_a_run_carries_the_hashes_of_all_its_draws():
    line = "steps=1 problem.noise=0.1 problem.observed=0.7 problem.heldout=0.2"
    (first,), (other,), (moved,) = (
        solve(grid(f"{line} {more}")) for more in ("", "seed=1 problem.noise=0.3", "problem.seed=1")
    )
    names = {"draw.init", "draw.data", "draw.noise", "draw.mask", "draw.heldout"}
    assert names <= set(first.tags)
    assert {name for name in names if first.tags[name] != other.tags[name]} == {"draw.init"}
    assert {name for name in names if first.tags[name] != moved.tags[name]} == names - {"draw.init"}
