"""What theory says, compared with what a long descent finds."""

from functools import reduce

import numpy as np
import pytest
import torch
from cases import DEPTHS, LOSSES, RANK, M, N, factors, loss, make_problem, problem, solve
from numpy.testing import assert_allclose
from test_config import composed

import mfgd
from mfgd import Objective, oracles, theory
from mfgd.descent import descent
from mfgd.draws import standard_normal
from mfgd.given import draw_start, load_problem
from mfgd.lanczos import sharpness
from mfgd.verdict import Setting

KEYS = pytest.mark.parametrize(
    "keys", [{}, {"scale": 0.5}, {"scale": 3.0, "reduction": "mean"}], ids=["sum", "half", "mean"]
)


def weight(keys) -> float:
    return keys.get("scale", 1.0) / (N * M if keys.get("reduction") == "mean" else 1)


def least_loss_of_descent(given, used, rank: int) -> float:
    """The least loss that descent from three starts reaches in many steps."""
    # Twice σ₁ · 2w bounds the curvature at the optimum.
    lr = 0.25 / weight({"scale": used.scale, "reduction": used.reduction}) / float(given.D.norm())
    start = tuple(0.5 * W for W in factors((3,), rank=rank))
    *_, state = descent(
        Objective(given, used), mfgd.optimizer.gd(alternating=False), start, lr=lr, records=[10_000]
    )
    return float(state.loss.min())


@KEYS
@pytest.mark.parametrize("rank", [1, 2, 4, M, M + 3])
@pytest.mark.parametrize("depth", [2, 3])
def test_optimum_is_eckart_young(keys, rank, depth):
    given = problem("full")
    sigma = np.linalg.svd(given.D.numpy(), compute_uv=False)
    expected = weight(keys) * (sigma[rank:] ** 2).sum()
    assert_allclose(
        theory.optimum(given, loss("squared", **keys), rank, depth),
        expected,
        rtol=1e-12,
        atol=1e-28,
    )


@KEYS
@pytest.mark.parametrize("rank", [1, 2, M])
@pytest.mark.parametrize("penalty", [0.02, 0.6])
def test_optimum_under_a_penalty_is_where_descent_ends(keys, rank, penalty):
    # τ = λ/2w cuts into the spectrum, whose largest value is about 1, in all of these.
    used = loss("squared", penalty=penalty * weight(keys), **keys)
    given = problem("full")
    assert_allclose(
        theory.optimum(given, used, rank), least_loss_of_descent(given, used, rank), rtol=1e-9
    )


def test_descent_ends_at_eckart_young():
    given, used = problem("full"), loss("squared", scale=0.5)
    assert_allclose(
        theory.optimum(given, used, 2), least_loss_of_descent(given, used, 2), rtol=1e-9
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["exact", "masked"])
@pytest.mark.parametrize("depth", [2, 3])
def test_optimum_is_zero_from_the_rank_of_a_noiseless_truth(name, kind, depth):
    for rank in (RANK, RANK + 1):
        assert theory.optimum(problem(kind), loss(name), rank, depth) == 0


def test_optimum_is_zero_from_the_numerical_rank_of_data():
    """A sum of squared rounding errors would give an excess loss of millions."""
    low = torch.outer(torch.arange(1.0, 8), torch.arange(1.0, 6)).double() / 3
    assert theory.optimum(mfgd.problem.from_matrix(low), loss("squared"), 1) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_data_in_single_precision_has_its_optimum_in_double(dtype):
    D = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
    sigma = np.linalg.svd(D.double().numpy(), compute_uv=False)
    assert_allclose(
        theory.optimum(mfgd.problem.from_matrix(D), loss("squared"), 3),
        (sigma[3:] ** 2).sum(),
        rtol=1e-12,
    )


@pytest.mark.parametrize(
    ("name", "kind", "penalty", "rank", "depth"),
    [(name, "full", 0.0, RANK, 2) for name in LOSSES if name != "squared"]
    + [
        ("squared", "noisy", 0.0, RANK, 2),
        ("squared", "masked", 0.0, RANK - 1, 2),
        ("squared", "masked", 0.1, RANK, 2),
        ("huber", "exact", 0.0, RANK - 1, 2),
        ("huber", "exact", 0.1, RANK, 2),
    ],
)
def test_optimum_is_nan_if_theory_does_not_know_it(name, kind, penalty, rank, depth):
    assert np.isnan(theory.optimum(problem(kind), loss(name, penalty=penalty), rank, depth))


@pytest.mark.parametrize("kind", ["full", "exact"])
@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_no_state_is_below_the_optimum(kind, penalty):
    given, used = problem(kind), loss("squared", penalty=penalty)
    U, sigma, Vh = np.linalg.svd(given.D.numpy())
    for shrink in np.linspace(0, 0.3, 31):
        root = np.sqrt(np.maximum(sigma[:2] - shrink, 0))
        near = (torch.from_numpy(U[:, :2] * root), torch.from_numpy(root[:, None] * Vh[:2]))
        assert Objective(given, used).value(near) >= theory.optimum(given, used, 2) * (1 - 1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("squared", 2.0),
        ("huber", 1.0),
        ("logcosh", 1.0),
        ("absolute", None),
        ("quantile", None),
    ],
)
def test_curvature_is_the_second_derivative_at_the_answer(name, expected):
    given = problem("full")
    for reduction, weight in (("sum", 0.3), ("mean", 0.3 / given.D.numel())):
        found = theory.curvature(given, loss(name, scale=0.3, reduction=reduction))
        if expected is None:
            assert np.isnan(found)
        else:
            assert found == pytest.approx(expected * weight, rel=1e-12)


@pytest.mark.parametrize("scale", [0.5, 3.0])
@pytest.mark.parametrize("times", [0.97, 1.03])
@DEPTHS
def test_gradient_descent_converges_below_the_limit_and_not_above(scale, times, depth):
    # The balanced answer has sharpness c L σ₁^{2−2/L}. Descent from nearby stays there below the
    # limit, and leaves above the limit.
    given, used = problem("exact"), loss("squared", scale=scale)
    U, sigma, Vh = torch.linalg.svd(2 * given.D, full_matrices=False)
    given = make_problem(2 * given.D)
    limit = theory.rate_limit(given, used, depth)
    assert limit == pytest.approx(
        2 / (2 * scale * depth * float(sigma[0]) ** (2 - 2 / depth)), rel=1e-12
    )
    root = sigma[:3] ** (1 / depth)
    balanced = (U[:, :3] * root, *[torch.diag(root)] * (depth - 2), root[:, None] * Vh[:3])
    assert 2 / sharpness(Objective(given, used), balanced) == pytest.approx(limit, rel=1e-9)
    start = tuple(W + 1e-4 * torch.ones_like(W) for W in balanced)
    *_, state = descent(
        Objective(given, used),
        mfgd.optimizer.gd(alternating=False),
        start,
        lr=times * limit,
        records=[0, 5000],
    )
    assert (state.loss < 1e-20) == (times < 1)


@pytest.mark.parametrize("shares", [(1.0, 16.0), (1.0, 0.1), (1.0, 3.0, 0.5), (1.0, 1.0, 4.0)])
@pytest.mark.parametrize("times", [0.97, 1.03])
def test_the_limit_at_rates_of_their_own_for_the_factors(times, shares):
    # W̃_l = W_l/√s_l descends at one rate, on S H S, S = diag(√s_l); W̃ is balanced at the answer.
    given, used, depth = problem("exact"), loss("squared", scale=0.5), len(shares)
    U, sigma, Vh = torch.linalg.svd(given.D, full_matrices=False)
    mean = np.prod(shares) ** (1 / depth)
    root = sigma[:3] ** (1 / depth) / mean**0.5
    balanced = (U[:, :3] * root, *[torch.diag(root)] * (depth - 2), root[:, None] * Vh[:3])
    answer = tuple(share**0.5 * W for share, W in zip(shares, balanced, strict=True))
    assert_allclose(reduce(torch.matmul, answer), given.D, atol=1e-14)
    sizes = [W.numel() for W in answer]

    def value(flat):
        parts = zip(torch.split(flat, sizes), answer, strict=True)
        estimate = reduce(torch.matmul, [w.view(W.shape) for w, W in parts])
        return 0.5 * (estimate - given.D).square().sum()

    H = torch.func.hessian(value)(torch.cat([W.flatten() for W in answer]))
    S = torch.cat(
        [torch.full((size,), s**0.5, dtype=H.dtype) for size, s in zip(sizes, shares, strict=True)]
    )
    largest = float(torch.linalg.eigvalsh(S[:, None] * H * S)[-1])
    limit = theory.rate_limit(given, used, depth, mean)
    assert limit == pytest.approx(2 / largest, rel=1e-9)
    objective = Objective(given, used)
    assert sharpness(objective, answer, shares=shares) == pytest.approx(2 / limit, rel=1e-9)
    *_, state = descent(
        objective,
        mfgd.optimizer.gd(alternating=False),
        tuple(W + 1e-4 for W in answer),
        lr=lambda step: tuple(times * limit * share for share in shares),
        records=[0, 5000],
    )
    assert (state.loss < 1e-20) == (times < 1)


def test_the_limit_is_known_only_for_complete_matrices_and_quadratic_losses():
    assert np.isnan(theory.rate_limit(problem("masked"), loss("squared"), 2))
    assert np.isnan(theory.rate_limit(problem("full"), loss("huber"), 2))
    assert np.isnan(theory.rate_limit(problem("full"), loss("squared", penalty=1.0), 2))


def test_the_largest_singular_value_of_a_large_matrix():
    D = torch.randn(300, 250, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert make_problem(D).top_singular_value == pytest.approx(
        np.linalg.svd(D, compute_uv=False)[0], rel=1e-12
    )
    assert make_problem(torch.zeros_like(D)).top_singular_value == 0
    assert theory.rate_unit(make_problem(torch.zeros_like(D)), loss("squared"), 2) == np.inf


# Verdicts

PLAIN = ("problem=synthetic", "problem.n=30", "problem.m=20", "loss.scale=0.5", "record.points=60")
LOW = (
    *PLAIN,
    "problem.rank=3",
    "rank=3",
    "problem.condition=3",
    "init=normal",
    "init.scale=0.1",
    "lr=0.5",
)


def solve_line(*line: str) -> mfgd.record.Row:
    (row,) = solve([composed(*line)])
    return row


NOISY = (*LOW, "problem.n=80", "problem.m=70", "problem.noise=0.002", "steps=1000")
SAXE = (
    *PLAIN,
    "problem.spectrum=[4,2,1,0.5]",
    "rank=4",
    "init._target_=test_oracles.aligned",
    "init.scale=1e-3",
)
SAXE = (*SAXE, "diagnostics=dynamics")
SCALED = (
    *LOW,
    "steps=40",
    "optimizer=scaled_gd",
    "optimizer.damping=0.0",
    "init._target_=test_oracles.near",
)
SCALED = (*SCALED, "init.scale=0.01")
VERDICTS = {
    "eckart_young": [
        ("agrees", (*LOW, "steps=1000")),
        ("agrees", (*LOW, "steps=1000", "problem.noise=0.1")),
        ("agrees", (*LOW, "steps=3000", "depth=3", "init.scale=0.2", "lr=0.3")),
        ("deviates", (*LOW, "steps=10")),
        ("deviates", (*LOW, "steps=100", "lr=5")),
        (None, (*LOW, "steps=1000", "problem.observed=0.9")),
        (None, (*LOW, "steps=10", "loss=huber")),
        (None, (*LOW, "steps=10", "loss.penalty=0.1")),
    ],
    "soft_threshold": [
        ("agrees", (*LOW, "steps=3000", "loss.penalty=0.1", "problem.noise=0.05")),
        ("agrees", (*LOW, "steps=3000", "loss.penalty=0.2", "loss.scale=1.0", "lr=0.25")),
        ("deviates", (*LOW, "steps=20", "loss.penalty=0.1")),
        ("deviates", (*LOW, "steps=100", "loss.penalty=0.1", "lr=5")),
        (None, (*LOW, "steps=20")),
        (None, (*LOW, "steps=20", "loss.penalty=0.1", "depth=3")),
        (None, (*LOW, "steps=20", "loss.penalty=0.1", "problem.observed=0.9")),
    ],
    "saxe": [
        ("agrees", (*SAXE, "steps=8000", "lr=1e-3")),
        ("agrees", (*SAXE, "steps=800", "lr=1e-2", "loss.scale=0.25")),
        (None, (*SAXE, "steps=100", "lr=0.1")),
        (None, (*SAXE, "steps=100", "lr=1e-3", "diagnostics=basic")),
        (None, (*SAXE, "steps=100", "lr=1e-3", "optimizer=momentum")),
        (None, (*SAXE, "steps=100", "lr=1e-3", "schedule=cosine")),
        (None, (*SAXE, "steps=100", "lr=1e-3", "init._target_=test_oracles.near")),
        (None, (*SAXE, "steps=100", "lr=1e-3", "problem.observed=0.9")),
        (None, (*SAXE, "steps=100", "lr=1e-3", "problem.noise=1e-6")),
    ],
    "local_rate": [
        ("agrees", (*LOW, "steps=300")),
        ("agrees", (*LOW, "steps=300", "lr=0.95")),
        ("agrees", (*LOW, "steps=300", "init.scale=0.2", "lr=0.3")),
        ("agrees", (*LOW, "steps=400", "problem.noise=0.01", "init.scale=0.001")),
        ("agrees", SCALED),
        (None, (*LOW, "steps=40", "optimizer=momentum")),
        (None, (*LOW, "steps=40", "optimizer.alternating=true")),
        (None, (*LOW, "steps=40", "problem.observed=0.9")),
        (None, (*LOW, "steps=300", "rank=4")),
        (None, (*LOW, "steps=5")),
    ],
    "stability": [
        ("agrees", (*LOW, "steps=2000", "lr=0.9")),
        ("agrees", (*LOW, "steps=2000", "lr=1.2")),
        ("agrees", (*LOW, "steps=200", "lr=6")),
        (None, (*LOW, "steps=20", "lr=0.9")),
        (None, (*LOW, "steps=2000", "lr=1.2", "optimizer=adam")),
        (None, (*LOW, "steps=200", "lr=1.2", "init=spectral", "init.scale=1.0")),
        ("agrees", (*LOW, "steps=200", "lr=1.2", "depth=3")),
        (None, (*LOW, "steps=200", "lr=0.6", "depth=3")),
    ],
    "sharpness": [
        ("agrees", (*LOW, "steps=1000", "diagnostics=full", "record.points=5")),
        (
            "agrees",
            (*LOW, "steps=1000", "diagnostics=full", "record.points=5", "init.scale=0.2", "lr=0.3"),
        ),
        (None, (*LOW, "steps=10", "diagnostics=full", "record.points=5")),
        (None, (*LOW, "steps=1000", "diagnostics=dynamics")),
        (
            None,
            (*LOW, "steps=100", "diagnostics=full", "record.points=5", "problem.noise=0.1"),
        ),
    ],
    "noise_floor": [
        ("agrees", (*LOW, "steps=1000", "problem.noise=0.005")),
        (
            "agrees",
            (
                *LOW,
                "steps=1000",
                "problem.snr=1000",
                "optimizer=adam",
                "lr=0.02",
                "schedule=cosine",
            ),
        ),
        ("agrees", (*NOISY, "problem.observed=0.4", "lr=1")),
        (None, (*LOW, "steps=1000")),
        (None, (*LOW, "steps=1000", "problem.noise=0.2")),
        (None, (*LOW, "steps=12", "problem.noise=0.005")),
        (None, (*LOW, "steps=1000", "problem.noise=0.005", "rank=4")),
        (None, (*LOW, "steps=1000", "problem.noise=0.005", "loss=huber")),
        (None, (*LOW, "steps=1000", "problem.noise=0.005", "loss.penalty=0.01")),
        (None, (*LOW, "steps=1000", "problem.noise=0.005", "problem.outliers=0.01")),
        (None, (*LOW, "steps=1000", "problem.noise=0.005", "problem.observed=0.5")),
    ],
}


def aligned(*, scale):
    """Saxe's start: C₀ = √a₀ U, F₀ = √a₀ Vᵀ."""

    def start(given, widths, generator):
        U, _, V = given.triplets
        return scale**0.5 * U[:, : widths[1]], scale**0.5 * V[:, : widths[1]].mT

    return start


def near(*, scale):
    """The balanced answer and Gaussian noise."""

    def start(given, widths, generator):
        answer = mfgd.init.spectral(scale=1.0, ratio=1.0)(given, widths, generator)
        return tuple(W + scale * standard_normal(W.shape, generator) for W in answer)

    return start


@pytest.mark.parametrize(
    ("oracle", "expected", "line"),
    [(name, *case) for name, cases in VERDICTS.items() for case in cases],
)
def test_verdict(oracle, expected, line):
    assert solve_line(*line).tags.get(f"oracle.{oracle}") == expected


def judge_changed(line, change) -> mfgd.record.Row:
    """The verdicts on a run after a change of its record."""
    point = composed(*line)
    (row,) = solve([point])
    optimum = float(row.trajectory["loss"][0] - row.trajectory["loss_gap"][0])
    start = draw_start(load_problem(point.problem), point)
    change(row)
    setting = Setting(
        load_problem(point.problem), point.loss(), start, point.optimizer(),
        point.lr[0], point.tolerance, optimum, point.shares, point.symmetric,
    )  # fmt: skip
    oracles.judge(setting, row)
    return row


def slow_down(row):
    loss = row.trajectory["loss"]
    row.trajectory["loss_gap"] = np.where(loss > 1e-20, loss, 0) ** 0.8


def reach_answer(row):
    row.trajectory["loss"][-1] = 0


def scale_column(name, by):
    def change(row):
        row.trajectory[name] = row.trajectory[name] * by

    return change


@pytest.mark.parametrize(
    ("oracle", "line", "change", "deviation"),
    [
        ("saxe", VERDICTS["saxe"][0][1], scale_column("mode.2", 1.02), 0.02),
        ("sharpness", VERDICTS["sharpness"][0][1], scale_column("sharpness", 1.001), 0.001),
        ("local_rate", VERDICTS["local_rate"][0][1], slow_down, -0.2),
        ("stability", VERDICTS["stability"][1][1], reach_answer, 0.2),
        ("soft_threshold", VERDICTS["soft_threshold"][0][1], scale_column("sigma.1", 1.1), 0.09),
        ("eckart_young", VERDICTS["eckart_young"][1][1], scale_column("loss", 0.9), -0.1),
        (
            "noise_floor",
            VERDICTS["noise_floor"][0][1],
            scale_column("relative_error", 3.0),
            3 * 1.0714 - 1,
        ),
    ],
)
def test_the_deviation_is_the_size_of_the_contradiction(oracle, line, change, deviation):
    row = judge_changed(line, change)
    assert row.tags[f"oracle.{oracle}"] == "deviates"
    assert row.values[f"deviation.{oracle}"] == pytest.approx(deviation, rel=0.1)


def test_curves_of_theory_are_columns_beside_the_measures():
    row = solve_line(*SAXE, "steps=8000", "lr=1e-3")
    t = 1e-3 * row.trajectory["step"]
    for i, s in enumerate((4, 2, 1, 0.5), 1):
        expected = s * np.exp(2 * s * t) / (np.exp(2 * s * t) - 1 + s / 1e-3)
        assert_allclose(row.trajectory[f"theory.mode.{i}"], expected, rtol=1e-9)
        assert row.values[f"theory.half_time.{i}"] == pytest.approx(
            1000 * np.log(s / 1e-3 - 1) / (2 * s), rel=1e-9
        )
        assert row.values[f"half_time.{i}"] == pytest.approx(
            row.values[f"theory.half_time.{i}"], rel=5e-3
        )


def test_saxe_s_deviation_is_what_another_program_measured():
    row = solve_line(*SAXE, "steps=1400", "lr=1e-3", f"record.steps={list(range(800, 1400, 10))}")
    assert row.values["deviation.saxe"] == pytest.approx(3.12e-3, abs=1e-5)


def test_contraction_of_scaled_descent_is_one_minus_its_rate_at_any_condition():
    for condition in (1, 20):
        row = solve_line(*SCALED, f"problem.condition={condition}")
        assert_allclose(row.trajectory["theory.contraction"], 0.5)
        assert abs(row.values["deviation.local_rate"]) < 2e-3


@pytest.mark.parametrize("penalty", [0.0, 0.1])
@pytest.mark.parametrize("lr", [1e-3, 1e9])
def test_a_matrix_of_one_entry_and_a_start_that_blows_up_are_judged(tmp_path, penalty, lr):
    np.save(tmp_path / "D.npy", np.pad([[1e-6]], ((0, 5), (0, 4))))
    line = (
        "problem=file",
        f"problem.path={tmp_path / 'D.npy'}",
        "steps=20",
        f"loss.penalty={penalty}",
        f"lr={lr}",
    )
    row = solve_line(*line, "diagnostics=full")
    verdicts = {row.tags[tag] for tag in row.tags if tag.startswith("oracle.")}
    assert verdicts <= {"agrees", "deviates"}
