"""Outputs Y = D X of inputs with a covariance, against NumPy and the matrix seen in full."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import REGRESSION, factors, loss, solve
from numpy.testing import assert_allclose, assert_array_equal
from test_config import composed

from mfgd import plan
from mfgd.given import load_problem
from mfgd.kernel import product
from mfgd.lanczos import sharpness
from mfgd.objective import Objective
from mfgd.outputs import Outputs
from mfgd.problem import regression
from mfgd.rank_one import VectorMeasurements
from mfgd.target import Problem
from mfgd.types import Refused

N, M, K, SAMPLES = 4, 5, 2, 9
LEADS = {"single": (), "batch": (3,), "batch of their own": (3, "own")}


def outputs(seed: int = 0) -> Outputs:
    generator = np.random.default_rng(seed)
    Y, X = generator.normal(size=(N, SAMPLES)), generator.normal(size=(M, SAMPLES))
    return Outputs(torch.from_numpy(Y), torch.from_numpy(X), 2.0)


@pytest.fixture(params=LEADS.values(), ids=LEADS)
def case(request):
    """Outputs, X (*, m, N), C and F."""
    lead = request.param
    runs = [outputs(seed if "own" in lead else 0) for seed in range(3)]
    same = [runs[0]] * 3
    seen = Outputs.stack(runs if "own" in lead else same, torch.stack) if lead else runs[0]
    return seen, seen.X.numpy(), factors(lead[:1], rank=K, n=N, m=M)


def test_products_are_numpy_s(case):
    seen, X, (C, F) = case
    Y, P = seen.target.numpy(), (C @ F).numpy()
    assert (seen.shape, seen.count, seen.dilution) == ((N, M), N * SAMPLES, N / 2.0)
    S = seen.residual(C, F)
    assert_allclose(S, P @ X - Y, rtol=1e-11, atol=1e-13)
    Z = S.numpy() @ X.swapaxes(-1, -2)
    assert_allclose(seen.adjoint(S), Z, rtol=1e-11)
    assert_allclose((seen.apply(C, F) * S).sum(), (C @ F * seen.adjoint(S)).sum(), rtol=1e-11)
    assert_allclose(seen.times_transposed(S, F), Z @ F.mT.numpy(), rtol=1e-11)
    assert_allclose(seen.transposed_times(C, S), C.mT.numpy() @ Z, rtol=1e-11)
    missed, size = seen.misfit((C, F))
    assert_allclose(missed, np.linalg.norm(S, axis=(-2, -1)), rtol=1e-12)
    assert_allclose(size, np.linalg.norm(Y, axis=(-2, -1)), rtol=1e-12)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("deficient", [False, True])
def test_least_squares_are_numpy_s(case, ridge, deficient):
    seen, X, (C, F) = case
    if deficient:
        C, F = torch.cat([C, C], -1), torch.cat([F, F], -2)
    k = C.shape[-1]
    left, right = seen.solve_left(F, ridge), seen.solve_right(C, ridge)
    for run in np.ndindex(*C.shape[:-2]):
        inputs, Y = X[run] if X.ndim == 3 else X, seen.target[run].numpy()
        for found, design in (
            (left[run], np.kron(np.eye(N), (F[run].numpy() @ inputs).T)),
            (right[run], np.kron(C[run].numpy(), inputs.T)),
        ):
            below = np.sqrt(ridge) * np.eye(design.shape[1])
            sides = np.append(Y.ravel(), np.zeros(len(below)))
            expected = np.linalg.lstsq(np.vstack([design, below]), sides, rcond=1e-10)[0]
            assert_allclose(found.numpy().ravel(), expected, rtol=1e-8, atol=1e-10)
    assert (left.shape[-1], right.shape[-2]) == (k, k)


def test_what_is_not_finite_stays_in_its_run():
    seen, (C, _) = Outputs.stack([outputs()] * 2, torch.stack), factors((2,), rank=K, n=N, m=M)
    expected = seen.solve_right(C, 0.0)
    C[0] = torch.nan
    found = seen.solve_right(C, 0.0)
    assert found[0].isnan().all()
    assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("name", ["squared", "huber"])
@pytest.mark.parametrize("depth", [2, 3])
def test_gradient_and_sharpness_are_those_of_measurements_by_vectors(name, depth):
    """Y_ij = e_iᵀ D x_j."""
    seen = outputs()
    a = torch.eye(N, dtype=torch.float64).repeat_interleave(SAMPLES, 0)
    listed = VectorMeasurements(seen.target.reshape(1, -1), a, seen.X.mT.repeat(N, 1))
    used, start = loss(name, penalty=0.1), factors((), depth, rank=K, n=N, m=M)
    one, other = (Objective(Problem(each), used) for each in (seen, listed))
    assert_allclose(one.value(start), other.value(start), rtol=1e-12)
    for G, H in zip(one.gradient(start), other.gradient(start), strict=True):
        assert_allclose(G, H, rtol=1e-10, atol=1e-12)
    assert_allclose(sharpness(one, start), sharpness(other, start), rtol=1e-6)


def test_inputs_have_their_covariance():
    values = [5.0, 1.0, 0.5, 0.1, 3.0]
    given = regression(**REGRESSION | {"covariance": values, "noise": 0.1})
    X, D = given.observation.X.numpy(), given.truth.target.numpy()
    assert_allclose(np.linalg.eigvalsh(X @ X.T / 12), sorted(values), rtol=1e-12)
    assert_allclose(np.linalg.svd(D, compute_uv=False)[:3], [1, 0.5, 0], atol=1e-12)
    noise = given.D.numpy() - D @ X
    assert 0.06 < noise.std() < 0.14
    expected = np.linalg.lstsq(X.T, given.D.numpy().T, rcond=None)[0].T
    assert_allclose(given.observation.estimate(), expected, rtol=1e-8, atol=1e-10)
    with pytest.raises(Refused, match=r"problem\.covariance: .*; allowed are lr_unit=absolute"):
        _ = given.observation.dilution
    white = regression(**REGRESSION | {"covariance": [2.0] * 5})
    assert white.observation.dilution == 7 / 2.0
    assert_allclose(white.observation.top_singular_value(), 24, rtol=1e-12)


def test_samples_are_held_out():
    whole, given = regression(**REGRESSION), regression(**REGRESSION | {"heldout": 0.25})
    assert given.observation.X.shape == (5, 9)
    assert given.heldout.X.shape == (5, 3)
    for part in (given.observation, given.heldout):
        assert_allclose(part.target, whole.truth.target @ part.X, rtol=1e-12)


def test_white_inputs_are_the_matrix_seen_in_full():
    keys = (
        "problem.n=8 problem.m=6 rank=2 init=normal init.scale=0.3 steps=80 lr=0.5 lr_unit=sigma1"
    )
    inputs = "problem=regression problem.samples=20 loss.scale=0.025"
    rows = [
        solve([composed(*line.split(), *keys.split())])[0]
        for line in (inputs, "problem=synthetic loss.scale=0.5 problem.rank=2")
    ]
    for measure in ("relative_error", "sigma.1", "gradient_norm", "balance"):
        first, second = (row.trajectory[measure] for row in rows)
        assert_allclose(first, second, rtol=1e-8, atol=1e-12)
    assert rows[0].values["lr_absolute"] == pytest.approx(rows[1].values["lr_absolute"])


LINES = {
    "gd": "lr=0.002 steps=300",
    "deep": "depth=3 lr=0.002 steps=100 init.scale=0.5",
    "als": "optimizer=als steps=4",
    "alt_gd_min": "optimizer=alt_gd_min lr=0.002 steps=50",
    "rank one, float32": "rank=1 lr=0.002 dtype=float32 steps=100 diagnostics=full record.points=4",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_run_alone_and_in_a_batch_agree_bit_for_bit(line):
    base = f"problem=regression problem.heldout=0.1 init=normal init.scale=0.1 {line}"
    others = ("", "seed=1", "problem.seed=1", "problem.seed=1 seed=2", "seed=3")
    points = [composed(*f"{base} {other}".split()) for other in others]
    for company in (points, [points[0], points[1], points[4]]):
        rows = solve(company + [replace(points[0], seed=seed) for seed in range(10, 14)])
        for point, row in zip(company, rows, strict=False):
            (alone,) = solve([point])
            for measure in alone.trajectory.keys() - {"seconds"}:
                left, right = alone.trajectory[measure], row.trajectory[measure]
                assert left.tobytes() == right.tobytes(), measure
            assert all(map(torch.equal, alone.factors, row.factors))


def test_descent_finds_the_truth_under_a_covariance():
    values = ",".join(str(value) for value in np.linspace(2, 0.2, 10))
    line = (
        f"problem=regression problem.n=8 problem.m=10 problem.covariance=[{values}] rank=2 "
        "init=normal init.scale=0.01 loss.scale=0.005 lr=0.2 steps=3000"
    )
    point = composed(*line.split())
    (row,) = solve([point])
    truth = load_problem(point.problem).truth.target
    assert float((product(row.factors) - truth).norm() / truth.norm()) < 1e-6
    (spectral,) = solve([composed(*line.split(), "init=spectral", "init.scale=1", "steps=1")])
    assert spectral.trajectory["relative_error"][0] < 1e-12


@pytest.mark.parametrize(
    ("line", "reason"),
    {
        "problem.covariance=[1,2]": r"problem\.covariance of length 2: must be of length m = 30",
        "problem.samples=29": r"problem\.samples=29: must be at least m = 30",
        "problem.symmetric=true": r"problem\.n=20, problem\.m=30: must be square",
        "problem.heldout=0.001": "holds out 0 of 100 samples; must be 1 to 99",
        "problem.samples=1000000000": r"problem\.samples=1000000000: 1000000000×80 entries take",
        "init=uniform optimizer=mu": "mu: allowed are problems whose entries are observed",
    }.items(),
)
def test_what_is_refused(line, reason):
    with pytest.raises(Refused, match=reason):
        plan.group_points([composed("problem=regression", *line.split())])
