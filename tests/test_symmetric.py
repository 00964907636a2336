"""What theory knows of D ≈ U Uᵀ, against NumPy's eigenvalues and long descents."""

import numpy as np
import pytest
import torch
from cases import loss, make_problem, solve, sparsely, synthetic
from numpy.testing import assert_allclose
from scipy.optimize import minimize
from test_config import composed
from test_oracles import judge_changed, reach_answer, scale_column, slow_down, solve_line

import mfgd
from mfgd import plan, theory
from mfgd.dense import AllEntries, MaskedEntries
from mfgd.descent import descent
from mfgd.draws import standard_normal
from mfgd.given import load_problem
from mfgd.lanczos import sharpness
from mfgd.sparse import LowRank
from mfgd.symmetric import eigenpairs, is_semidefinite, is_symmetric, leading_eigenpairs
from mfgd.tied import TiedObjective, tie

N = 8
KINDS = ("positive", "indefinite", "negative", "noisy")


def draw(kind="indefinite", n=N, seed=0):
    """A matrix with eigenvalues of the kind; a noisy one is not symmetric."""
    generator = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(generator.normal(size=(n, n)))
    values = {
        "positive": np.linspace(0.2, 2, n),
        "indefinite": np.linspace(-3, 2, n),
        "negative": np.linspace(-3, -1, n),
        "noisy": np.linspace(-1, 2, n),
    }[kind]
    D = (Q * values) @ Q.T
    return (D + D.T) / 2 + (0.3 * generator.normal(size=(n, n)) if kind == "noisy" else 0)


def nearest(D, k):
    """The matrix without negative eigenvalues and of rank k that is nearest to D."""
    values, vectors = np.linalg.eigh((D + D.T) / 2)
    return (vectors[:, -k:] * np.maximum(values[-k:], 0)) @ vectors[:, -k:].T


def least_value(D, k, scale, penalty):
    """The least value that SciPy finds from several starts."""

    def value(x):
        U = x.reshape(len(D), k)
        R = U @ U.T - D
        total = scale * (R**2).sum() + penalty * (U**2).sum()
        return total, (2 * scale * (R + R.T) @ U + 2 * penalty * U).ravel()

    generator = np.random.default_rng(1)
    found = [
        minimize(value, generator.normal(size=len(D) * k), jac=True, options={"gtol": 1e-9}).fun
        for _ in range(3)
    ]
    return min(found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 3, N, N + 2])
@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_optimum_is_the_least_value_that_scipy_finds(kind, k, penalty):
    D = draw(kind)
    given = make_problem(torch.from_numpy(D))
    used = loss("squared", scale=0.7, penalty=penalty)
    found = theory.optimum(given, used, k, symmetric=True)
    assert_allclose(found, least_value(D, k, 0.7, penalty), rtol=1e-7, atol=1e-9)
    if penalty == 0:
        expected = 0.7 * np.linalg.norm(nearest(D, k) - D) ** 2
        assert_allclose(found, expected, rtol=1e-10, atol=1e-25)


def test_optimum_is_zero_for_a_truth_that_can_be_reached_and_unknown_for_another():
    keys = {"m": 30, "symmetric": True}
    masked = synthetic(**keys, observed=0.5)
    assert theory.optimum(masked, loss("huber"), 3, symmetric=True) == 0
    assert np.isnan(theory.optimum(masked, loss("huber"), 2, symmetric=True))
    negative = LowRank(-masked.truth.target, torch.eye(30).double())
    mirrored = mfgd.problem.Problem(masked.observation, negative, rank=3)
    assert theory.optimum(mirrored, loss("huber"), 3) == 0
    assert np.isnan(theory.optimum(mirrored, loss("huber"), 3, symmetric=True))
    # Rounding in U diag(σ) Uᵀ is no part of D that cannot be reached.
    exact = make_problem(synthetic(**keys).D)
    assert theory.optimum(exact, loss("squared"), 3, symmetric=True) == 0


def test_a_factor_is_that_of_the_nearest_matrix():
    for kind in KINDS:
        D = draw(kind)
        for k in (2, N + 1):
            U = eigenpairs(AllEntries(torch.from_numpy(D))).find_factor(k).numpy()
            assert U.shape == (N, k)
            assert_allclose(U @ U.T, nearest(D, min(k, N)), atol=1e-12)


@pytest.mark.parametrize("values", [[3.0, 1.0, 0.5], [2.0, -2.0, 1.0], [-1.0, -2.0, -3.0]])
def test_eigenpairs_of_a_matrix_in_factors(values):
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 3)))[0]
    D = (Q * values) @ Q.T
    made = LowRank(torch.from_numpy(Q * values), torch.from_numpy(Q.T.copy()))
    found = eigenpairs(made)
    assert_allclose(found.values, sorted(values, reverse=True), rtol=1e-12)
    assert_allclose((found.vectors * found.values) @ found.vectors.mT, D, atol=1e-12)
    assert is_semidefinite(made) == (min(values) > 0)
    assert is_symmetric(made)
    assert not is_symmetric(LowRank(made.left, torch.randn(3, 40).double()))


@pytest.mark.parametrize("observed", [0.05, 0.3])
def test_leading_eigenpairs_of_listed_entries(observed):
    keys = {"n": 250, "m": 250, "rank": 5, "symmetric": True, "noise": 0.1, "observed": observed}
    with sparsely():
        given = synthetic(**keys)
    found = leading_eigenpairs(given.observation, 4)
    D = given.observation.matrix.to_dense().numpy() / (float(given.count) / 250**2)
    values, vectors = np.linalg.eigh((D + D.T) / 2)
    assert_allclose(found.values, values[:-5:-1], rtol=1e-10)
    overlap = abs((found.vectors.numpy() * vectors[:, :-5:-1]).sum(0))
    assert_allclose(overlap, 1, rtol=1e-8)


def test_a_matrix_is_symmetric_where_both_entries_are_seen():
    D = torch.from_numpy(draw("indefinite"))
    mask = torch.ones_like(D)
    mask[0, 1] = mask[3, 2] = 0
    wrong = D.clone()
    wrong[1, 0] += 1
    for matrix, expected in ((D, True), (wrong, False), (D + 1e-9 * mask.triu(), True)):
        assert is_symmetric(AllEntries(matrix)) == expected
    for matrix in (D, wrong):
        assert is_symmetric(MaskedEntries(matrix * mask, mask))
    wrong[5, 4] += 1
    assert not is_symmetric(MaskedEntries(wrong * mask, mask))
    with sparsely():
        listed = mfgd.problem.from_matrix(torch.where(mask == 1, D, torch.nan))
        unlike = mfgd.problem.from_matrix(torch.where(mask == 1, wrong, torch.nan))
    assert is_symmetric(listed.observation)
    assert not is_symmetric(unlike.observation)


# The limit of the rate


@pytest.mark.parametrize("kind", ["positive", "indefinite", "noisy"])
@pytest.mark.parametrize("times", [0.97, 1.03])
def test_gradient_descent_converges_below_the_limit_and_not_above(kind, times):
    D, k, used = draw(kind), 3, loss("squared", scale=0.4)
    given = make_problem(torch.from_numpy(D))
    limit = theory.rate_limit(given, used, 2, symmetric=True)
    objective = TiedObjective(given, used)
    U = eigenpairs(given.observation).find_factor(k)
    # From k = N on there is no direction outside, but the curvatures λ_i − λ_j stay.
    assert 2 / sharpness(objective, (U, U.mT)) == pytest.approx(limit, rel=1e-6)
    start = U + 1e-4 * standard_normal(U.shape, torch.Generator().manual_seed(0))
    *_, state = descent(
        objective,
        tie(mfgd.optimizer.gd(alternating=False)),
        (start, start.mT),
        lr=times * limit,
        records=[0, 5000],
    )
    optimum = theory.optimum(given, used, k, symmetric=True)
    assert (state.loss - optimum < 1e-13) == (times < 1)


def test_the_unit_of_the_rate_is_half_of_the_pair_s():
    line = ("problem=synthetic", "problem.n=9", "problem.m=9", "problem.rank=3", "rank=3")
    line = (*line, "problem.symmetric=true", "loss.scale=0.25", "lr_unit=sigma1", "steps=5")
    tied, pair = (
        composed(*line, f"symmetric={flag}", "init=normal", "lr=0.7") for flag in ("true", "false")
    )
    (row,), (other,) = solve([tied]), solve([pair])
    # ¼‖UUᵀ − D‖² with σ₁ = 1 has the sharpness 2 at the answer.
    assert row.values["lr_absolute"] == pytest.approx(0.7, rel=1e-12)
    assert other.values["lr_absolute"] == pytest.approx(1.4, rel=1e-12)
    assert row.values["lr_limit"] == pytest.approx(1, rel=1e-12)
    beyond = composed(*line, "symmetric=true", "lr=1.01")
    assert plan.find_unstable([beyond, tied]) == ([beyond], pytest.approx(1))
    beyond = composed(*line, "symmetric=true", "lr_unit=absolute", "lr=1.01")
    assert plan.find_unstable([beyond]) == ([beyond], pytest.approx(1))
    (row,) = solve([composed(*line, "symmetric=true", "lr_unit=sharpness", "init=spectral")])
    assert row.values["lr_absolute"] == pytest.approx(0.001, rel=1e-6)


# Verdicts

TIED = (
    *("problem=synthetic", "problem.n=30", "problem.m=30", "problem.rank=3", "rank=3"),
    *("problem.condition=3", "problem.symmetric=true", "symmetric=true", "loss.scale=0.5"),
    *("init=normal", "init.scale=0.1", "lr=0.25", "record.points=60"),
)
GAUSSIAN = (
    *("problem=gaussian", "problem.n=12", "problem.m=12", "problem.symmetric=true", "rank=3"),
    *("symmetric=true", "loss.scale=0.5", "init=normal", "lr=0.2", "lr_unit=sigma1", "steps=4000"),
)
SAXE = (
    *TIED[:3],
    *("problem.symmetric=true", "symmetric=true", "loss.scale=0.5", "record.points=60"),
    *("problem.spectrum=[4,2,1,0.5]", "rank=4", "init._target_=test_symmetric.aligned"),
    *("init.scale=1e-3", "diagnostics=dynamics"),
)
SCALED = (
    *TIED,
    *("steps=40", "optimizer=scaled_gd", "optimizer.damping=0.0"),
    *("init._target_=test_symmetric.near", "init.scale=0.01"),
)


def aligned(*, scale):
    def start(given, widths, generator):
        _, vectors = np.linalg.eigh(given.D.numpy())
        U = scale**0.5 * torch.from_numpy(vectors[:, : -widths[1] - 1 : -1].copy())
        return U, U.mT

    return start


def near(*, scale):
    def start(given, widths, generator):
        U = eigenpairs(given.observation).find_factor(widths[1])
        U = U + scale * standard_normal(U.shape, generator)
        return U, U.mT

    return start


VERDICTS = [
    ("eckart_young", "agrees", (*TIED, "steps=1000")),
    ("eckart_young", "agrees", (*TIED, "steps=1000", "problem.noise=0.1")),
    ("eckart_young", "agrees", GAUSSIAN),
    ("eckart_young", "deviates", (*TIED, "steps=10")),
    ("soft_threshold", "agrees", (*TIED, "steps=3000", "loss.penalty=0.1", "problem.noise=0.05")),
    ("soft_threshold", "agrees", (*GAUSSIAN, "loss.penalty=1.0")),
    ("soft_threshold", "deviates", (*TIED, "steps=20", "loss.penalty=0.1")),
    ("saxe", "agrees", (*SAXE, "steps=8000", "lr=5e-4")),
    ("saxe", None, (*SAXE, "steps=100", "lr=0.02")),
    ("local_rate", "agrees", (*TIED, "steps=300")),
    ("local_rate", "agrees", (*TIED, "steps=300", "lr=0.475")),
    ("local_rate", "agrees", SCALED),
    ("local_rate", None, (*TIED, "steps=400", "problem.noise=0.01", "init.scale=0.001")),
    ("local_rate", None, (*GAUSSIAN, "steps=2000")),
    ("stability", "agrees", (*TIED, "steps=2000", "lr=0.45")),
    ("stability", "agrees", (*TIED, "steps=2000", "lr=0.6")),
    ("stability", None, (*TIED, "steps=20", "lr=0.45")),
    ("sharpness", "agrees", (*TIED, "steps=1000", "diagnostics=full", "record.points=5")),
    (
        "noise_floor",
        "agrees",
        (*TIED, "problem.n=80", "problem.m=80", "steps=1000", "problem.noise=0.002"),
    ),
    (
        "noise_floor",
        "agrees",
        (
            *TIED,
            *("problem.n=80", "problem.m=80", "steps=1000", "problem.noise=0.002"),
            *("problem.observed=0.4", "lr=0.5"),
        ),
    ),
]


@pytest.mark.parametrize(("oracle", "expected", "line"), VERDICTS)
def test_verdict(oracle, expected, line):
    assert solve_line(*line).tags.get(f"oracle.{oracle}") == expected


@pytest.mark.parametrize(
    ("oracle", "line", "change", "deviation"),
    [
        ("saxe", VERDICTS[7][2], scale_column("mode.2", 1.02), 0.02),
        ("sharpness", VERDICTS[17][2], scale_column("sharpness", 1.001), 0.001),
        ("local_rate", VERDICTS[9][2], slow_down, -0.2),
        ("stability", VERDICTS[15][2], reach_answer, 0.2),
        ("soft_threshold", VERDICTS[4][2], scale_column("sigma.1", 1.1), 0.09),
        ("eckart_young", VERDICTS[1][2], scale_column("loss", 0.9), -0.1),
        ("noise_floor", VERDICTS[18][2], scale_column("relative_error", 3.0), 2.0),
    ],
)
def test_the_deviation_is_the_size_of_the_contradiction(oracle, line, change, deviation):
    row = judge_changed(line, change)
    assert row.tags[f"oracle.{oracle}"] == "deviates"
    assert row.values[f"deviation.{oracle}"] == pytest.approx(deviation, rel=0.15)


def test_the_noise_floor_is_that_of_symmetric_matrices():
    """A tied run of 240 − 3 unknowns sees about half of the noise that a pair of 471 sees."""
    row = solve_line(*VERDICTS[18][2])
    sigma = load_problem(composed(*VERDICTS[18][2]).problem).truth_spectrum
    expected = 0.002 * np.sqrt(3 * 80 - 3) / float(sigma.square().sum().sqrt())
    assert_allclose(row.trajectory["theory.relative_error"], expected)
    assert abs(row.values["deviation.noise_floor"]) < 0.15
