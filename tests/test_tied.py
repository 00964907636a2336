"""D ≈ U Uᵀ: U alone moves, by the gradient of the objective of U."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from cases import LOSSES, ONE_WAY, OPTIMIZERS, PAIRS, column, loss, make_problem, optimizer, solve
from numpy.testing import assert_allclose
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import minimize_scalar
from test_config import composed

from mfgd import metrics, plan
from mfgd.descent import descent
from mfgd.given import draw_start, load_problem
from mfgd.lanczos import sharpness
from mfgd.tied import TiedObjective, tie
from mfgd.types import Refused

N, RANK = 6, 3
METHODS = sorted(OPTIMIZERS.keys() - PAIRS)
SMALL = (
    *("problem=synthetic", "problem.n=9", "problem.m=9", "problem.rank=3", "problem.condition=3"),
    *("problem.symmetric=true", "symmetric=true", "rank=3", "loss.scale=0.25", "init=normal"),
    *("init.scale=0.3", "lr=0.3", "steps=200"),
)


def draw(batch=(), rank=RANK, seed=0):
    """D that is not symmetric, a mask that is not, and U."""
    generator = torch.Generator().manual_seed(seed)
    D = torch.randn(*batch, N, N, generator=generator, dtype=torch.float64)
    mask = (torch.rand(*batch, N, N, generator=generator) < 0.7).double()
    U = torch.randn(*batch, N, rank, generator=generator, dtype=torch.float64)
    return D * mask, mask, U


def value(U, D, mask, name="squared", scale=1.0, penalty=0.0):
    """The objective in torch, for autograd on U alone; the penalty is λ‖U‖²."""
    R = U @ U.mT - D
    entries = {
        "squared": lambda: R**2,
        "huber": lambda: torch.where(R.abs() <= 0.7, R**2 / 2, 0.7 * (R.abs() - 0.35)),
        "logcosh": lambda: torch.log(torch.cosh(R)),
        "absolute": lambda: R.abs(),
        "quantile": lambda: torch.maximum(0.7 * R, -0.3 * R),
    }[name]()
    return (scale * mask * entries).sum((-2, -1)) + penalty * U.square().sum((-2, -1))


def run_descent(name, U, D, lr, steps, mask=None, **keys):
    objective = TiedObjective(make_problem(D, mask), loss("squared", scale=0.5))
    method = tie(optimizer(name, **keys))
    return list(descent(objective, method, (U, U.mT), lr=lr, records=range(steps + 1)))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("penalty", [0.0, 0.4])
@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradient_are_those_of_a_function_of_one_factor(name, penalty, masked):
    D, mask, U = draw()
    given = make_problem(D, mask if masked else None)
    objective = TiedObjective(given, loss(name, scale=0.7, penalty=penalty))
    seen = mask if masked else torch.ones_like(mask)
    X = U.clone().requires_grad_()
    expected = value(X, D, seen, name, 0.7, penalty)
    expected.backward()
    for factors in ((U,), (U, U.mT)):
        assert_allclose(objective.value(factors), expected.detach(), rtol=1e-12)
        (found,) = objective.gradient(factors)
        assert_allclose(found, X.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["squared", "logcosh"])
def test_the_error_of_the_gradient_s_taylor_expansion_falls_like_the_square_of_the_step(name):
    D, mask, U = draw()
    objective = TiedObjective(make_problem(D, mask), loss(name, penalty=0.4))
    V = torch.randn(U.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (G,) = objective.gradient((U, U.mT))
    steps, errors = np.geomspace(1e-5, 1e-2, 7), []
    for h in steps:
        moved = U + h * V
        change = objective.value((moved, moved.mT)) - objective.value((U, U.mT))
        errors.append(abs(float(change - h * (G * V).sum())))
    slopes = np.diff(np.log(errors)) / np.diff(np.log(steps))
    assert_allclose(slopes, 2, atol=0.03)


@pytest.mark.parametrize("name", ["squared", "logcosh"])
@pytest.mark.parametrize("offset", [0.0, 40.0])
def test_hessian_and_sharpness_are_those_of_a_function_of_one_factor(name, offset):
    D, mask, U = draw()
    # Around U = 0 a D of large positive eigenvalues has negative curvatures only.
    D, U = (D + offset * torch.eye(N), U) if not offset else (D + offset * torch.eye(N), 0.01 * U)
    D = mask * D if not offset else D
    seen = mask if not offset else torch.ones_like(mask)
    objective = TiedObjective(make_problem(D, seen), loss(name, penalty=0.3))
    H = torch.func.hessian(lambda X: value(X, D, seen, name, penalty=0.3))(U).reshape(
        U.numel(), U.numel()
    )
    V = torch.randn(U.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found,) = objective.hessian((U, U.mT), (V,))
    assert_allclose(found.flatten(), H @ V.flatten(), rtol=1e-9, atol=1e-9)
    largest = float(torch.linalg.eigvalsh(H)[-1])
    assert (largest < 0) == (name == "squared" and offset > 0)
    assert_allclose(sharpness(objective, (U, U.mT)), largest, rtol=1e-6)


def test_gradient_descent_is_its_formula():
    D, mask, U = draw()
    path = run_descent("gd", U, D, 0.02, 20, mask)
    X, A, M = U.numpy().copy(), D.numpy(), mask.numpy()
    for state in path:
        assert_allclose(state.factors[0], X, rtol=1e-12)
        R = M * (X @ X.T - A)
        X = X - 0.02 * (R + R.T) @ X


@pytest.mark.parametrize("damping", [0.0, 0.2])
@pytest.mark.parametrize("by", ["number", "error"])
def test_scaled_gradient_descent_is_its_formula(damping, by):
    D, mask, U = draw()
    path = run_descent("scaled_gd", U, D, 0.05, 12, mask, damping=damping, damped_by=by)
    X, A, M = U.numpy().copy(), D.numpy(), mask.numpy()
    for state in path:
        assert_allclose(state.factors[0], X, rtol=1e-9)
        R = M * (X @ X.T - A)
        delta = damping * (np.linalg.norm(R) if by == "error" else 1)
        X = X - 0.05 * (R + R.T) @ X @ np.linalg.inv(X.T @ X + delta * np.eye(RANK))


@pytest.mark.parametrize("name", [name for name in METHODS if OPTIMIZERS[name].reference])
def test_methods_of_one_gradient_are_torch_s_on_one_factor(name):
    D, mask, U = draw()
    X = U.clone().requires_grad_()
    theirs = OPTIMIZERS[name].reference([X], lr=0.01)
    for state in run_descent(name, U, D, 0.01, 15, mask):
        assert_allclose(state.factors[0], X.detach(), rtol=1e-9)
        theirs.zero_grad()
        value(X, D, mask, scale=0.5).backward()
        theirs.step()


def test_lbfgs_is_torch_s_on_one_factor():
    D, mask, U = draw()
    X = (0.3 * U).requires_grad_()
    theirs = torch.optim.LBFGS(
        [X], lr=0.3, max_iter=1, history_size=4, tolerance_grad=0, tolerance_change=0
    )

    def evaluate():
        theirs.zero_grad()
        total = value(X, D, mask, scale=0.5)
        total.backward()
        return total

    for state in run_descent("lbfgs", 0.3 * U, D, 0.3, 20, mask):
        assert_allclose(state.factors[0], X.detach(), rtol=1e-7, atol=1e-9)
        theirs.step(evaluate)


def gradient_of(X, A, M):
    R = M * (X @ X.T - A)
    return (R + R.T) @ X


def value_of(X, A, M):
    return 0.5 * (M * (X @ X.T - A) ** 2).sum()


@pytest.mark.parametrize("name", ["barzilai_borwein", "polyak", "normalized", "armijo"])
def test_lengths_count_the_factor_once(name):
    D, mask, U = draw()
    keys = {"polyak": {"metric": "euclidean", "floor": 0.0}}.get(name, {})
    path = run_descent(name, U, D, 0.05, 8, mask, **keys)
    X, A, M = U.numpy().copy(), D.numpy(), mask.numpy()
    t, last = 0.05, None
    for state in path:
        assert_allclose(state.factors[0], X, rtol=1e-8)
        G = gradient_of(X, A, M)
        if name == "polyak":
            t = 0.05 * value_of(X, A, M) / (G * G).sum()
        if name == "normalized":
            t = 0.05 / np.linalg.norm(G)
        if name == "armijo":
            t = 0.05
            while value_of(X - t * G, A, M) > value_of(X, A, M) - 0.1 * t * (G * G).sum():
                t *= 0.6
        if name == "barzilai_borwein" and last is not None:
            s, y = X - last[0], G - last[1]
            t = (s * s).sum() / (s * y).sum() if (s * y).sum() > 0 else t
        last = X, G
        X = X - t * G


def test_exact_line_search_finds_the_least_value_along_the_gradient():
    D, mask, U = draw()
    A, M = D.numpy(), mask.numpy()
    for here, there in pairwise(run_descent("exact_line_search", U, D, 1.0, 6, mask)):
        X, Y = here.factors[0].numpy(), there.factors[0].numpy()
        G = gradient_of(X, A, M)
        t = float(((X - Y) * G).sum() / (G * G).sum())

        def along(t, X=X, G=G):
            return value_of(X - t * G, A, M)

        assert value_of(Y, A, M) <= min(along(t) for t in np.geomspace(1e-6, 1, 300)) * (1 + 1e-12)
        near = minimize_scalar(along, bounds=(0.9 * t, 1.1 * t), options={"xatol": 1e-12})
        assert_allclose(t, near.x, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_second_factor_is_the_transpose_of_the_first_to_the_last_bit(name):
    D, mask, U = draw((3,))
    for state in run_descent(name, U, D, column(0.02, 0.01, 0.005), 9, mask):
        assert torch.equal(state.factors[1], state.factors[0].mT)
    assert not torch.equal(state.factors[0], U)


@pytest.mark.parametrize("name", METHODS)
def test_a_tied_run_has_the_same_bits_alone_and_beside_others(name):
    line = (*SMALL, f"optimizer={name}", "lr=0.05", "steps=20", "problem.observed=0.9")
    points = [composed(*line, f"seed={seed}") for seed in range(3)]
    for point, row in zip(points, solve(points), strict=True):
        (alone,) = solve([point])
        assert torch.equal(row.factors[0], alone.factors[0])
        assert row.trajectory["loss"].tobytes() == alone.trajectory["loss"].tobytes()


@pytest.mark.parametrize("name", ["gd", "scaled_gd", "momentum"])
def test_a_tied_run_of_a_symmetric_matrix_is_the_pair_s_at_twice_the_rate(name):
    keys = ("optimizer.damping=0.1",) if name == "scaled_gd" else ()
    line = (*SMALL, f"optimizer={name}", *keys)
    tied = composed(*line, "lr=0.1")
    untied = composed(
        *line,
        *("symmetric=false", "lr=0.2", "init._target_=test_tied.first_and_transposed"),
    )
    assert plan.group_points([tied, untied]) == [[0], [1]]
    (one,), (other,) = solve([tied]), solve([untied])
    assert_allclose(one.factors[0], other.factors[0], rtol=1e-9, atol=1e-12)


def first_and_transposed(*, scale, ratio):
    """The start of a tied run, for a pair."""

    def start(problem, widths, generator):
        U = scale * torch.randn(widths[:2], generator=generator, dtype=torch.float64)
        return U, U.mT

    return start


def not_transposed(*, scale, ratio):
    """A pair that is not tied."""

    def start(problem, widths, generator):
        return torch.ones(widths[:2]).double(), 2 * torch.ones(widths[1:]).double()

    return start


# Starts


def start_of(*line):
    point = composed(*SMALL, *line)
    return load_problem(point.problem), draw_start(load_problem(point.problem), point)


@pytest.mark.parametrize("name", ["uniform", "normal", "orthogonal", "identity", "sketch"])
def test_a_drawn_start_is_the_first_factor_of_the_pair(name):
    _, (U, F) = start_of(f"init={name}", "init.scale=0.2")
    _, (C, _) = start_of(f"init={name}", "init.scale=0.2", "symmetric=false")
    assert torch.equal(U, C)
    assert torch.equal(F, U.mT)


@pytest.mark.parametrize("observed", [1.0, 0.6])
@pytest.mark.parametrize("problem", ["synthetic", "gaussian"])
def test_the_spectral_start_has_the_largest_eigenvalues(observed, problem):
    kind = () if problem == "synthetic" else ("~problem.rank", "~problem.condition")
    base = [key for key in SMALL if not (kind and key.startswith("problem"))]
    point = composed(
        *base,
        *(f"problem={problem}", "problem.n=9", "problem.m=9", "problem.symmetric=true"),
        *("init=spectral", "init.scale=0.7", f"problem.observed={observed}"),
    )
    given = load_problem(point.problem)
    U, _ = draw_start(given, point)
    A = given.D.numpy() / (float(given.count) / 81)
    values, vectors = np.linalg.eigh((A + A.T) / 2)
    top = np.maximum(values[-3:], 0)
    assert_allclose(U @ U.mT, 0.49 * (vectors[:, -3:] * top) @ vectors[:, -3:].T, atol=1e-12)


def test_given_factors_have_to_be_transposes(tmp_path):
    line = ("init=file", f"init.path={tmp_path / 'a.npz'}", "init.scale=1.0")
    C = np.random.default_rng(0).normal(size=(9, 3))
    np.savez(tmp_path / "a.npz", C=C, F=C.T)
    _, (U, _) = start_of(*line)
    assert_allclose(U, C)
    np.savez(tmp_path / "a.npz", C=C, F=2 * C.T)
    with pytest.raises(Refused, match=r"symmetric=true with init=file: .*; allowed is F = Cᵀ"):
        start_of(*line)


REFUSED = {
    "depth=3": "symmetric=true at depth=3: allowed is depth=2",
    "lr_ratio=2": "symmetric=true with lr_ratio=2.0: U and Uᵀ have one rate",
    "init.ratio=2": "symmetric=true with init.ratio=2: U and Uᵀ have one scale",
    "init=balanced": "symmetric=true with init=balanced: (U, Uᵀ) is balanced in any case",
    "init._target_=test_tied.not_transposed": "the second factor is not the transpose",
    "init=spectral rank=10": "rank=10 with init=spectral: must be between 1 and n = 9",
    "gradient=noisy gradient.std=0.1": "symmetric=true with gradient=noisy: allowed is gradient",
    "optimizer=als": "symmetric=true with optimizer=als: the method moves one factor while",
    "optimizer=mu": "symmetric=true with optimizer=mu: the method moves one factor while",
    "optimizer=alt_gd_min": "symmetric=true with optimizer=alt_gd_min: the method moves one",
    "optimizer.alternating=true": "optimizer=gd: the method with optimizer.alternating=true moves",
    "problem.m=8 problem.symmetric=false": "D is 9×8; allowed is a square D",
    "problem.symmetric=false": "D is not symmetric, even without its noise; allowed is problem.sym",
    "problem=notebook": "symmetric=true with problem=notebook: D is 3×4",
}


@pytest.mark.parametrize(("line", "message"), REFUSED.items())
def test_what_tied_factors_cannot_have_is_refused(line, message):
    base = [key for key in SMALL if not ("notebook" in line and key.startswith("problem"))]
    with pytest.raises(Refused) as refused:
        plan.group_points([composed(*base, *line.split())])
    assert message in str(refused.value)


def test_a_ratio_in_a_sweep_is_refused_beside_one_that_is_none():
    points = [composed(*SMALL, f"lr_ratio={ratio}") for ratio in (1, 2)]
    with pytest.raises(Refused, match=r"lr_ratio=2.0: U and Uᵀ have one rate"):
        plan.group_points(points)


def test_a_spectral_start_without_a_positive_eigenvalue_is_refused():
    line = ("problem=explicit", "problem.matrix=[[-1,0],[0,-2]]", "symmetric=true", "init=spectral")
    with pytest.raises(Refused, match="no eigenvalue of D is positive"):
        plan.group_points([composed(*line, "rank=1")])


def test_noise_need_not_be_symmetric_and_a_given_matrix_has_to_be():
    plan.group_points([composed(*SMALL, "problem.noise=0.1", "problem.observed=0.7")])
    line = ("problem=explicit", "symmetric=true", "rank=1")
    plan.group_points([composed(*line, "problem.matrix=[[1,2],[2,nan]]")])
    plan.group_points([composed(*line, "problem.matrix=[[1,2],[nan,3]]")])
    with pytest.raises(Refused, match=r"allowed is a matrix such as \(D \+ Dᵀ\)/2"):
        plan.group_points([composed(*line, "problem.matrix=[[1,2],[2.1,3]]")])


def test_symmetric_is_a_part_of_the_batch_and_of_the_fingerprint():
    plain, tied, same = (
        composed(*SMALL, f"symmetric={flag}") for flag in ("false", "true", "true")
    )
    assert plan.group_points([plain, tied, same]) == [[0], [1, 2]]
    assert plain.fingerprint != tied.fingerprint == same.fingerprint
    assert [point.params()["symmetric"] for point in (plain, tied)] == [False, True]


# Measures


def test_procrustes_distance_is_scipy_s():
    generator = torch.Generator().manual_seed(0)
    U = torch.randn(3, 7, 4, generator=generator, dtype=torch.float64)
    goal = torch.randn(3, 7, 4, generator=generator, dtype=torch.float64)
    goal[1, :, 2:] = 0
    U[2, 0, 0] = torch.nan
    found = metrics.procrustes_distance(U, goal)
    for b in range(2):
        Q, _ = orthogonal_procrustes(U[b].numpy(), goal[b].numpy())
        expected = np.linalg.norm(U[b].numpy() @ Q - goal[b].numpy()) / np.linalg.norm(goal[b])
        assert_allclose(found[b], expected, rtol=1e-12)
    assert found[2].isnan()


def test_procrustes_distance_does_not_see_a_rotation():
    generator = torch.Generator().manual_seed(0)
    U = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    assert metrics.procrustes_distance(U @ Q, U) < 1e-14
    assert_allclose(metrics.procrustes_distance(1.5 * U @ Q, U), 0.5)


def test_procrustes_distance_of_a_run_is_to_the_factor_of_the_truth():
    line = (*SMALL, "diagnostics=dynamics", "problem.noise=0.01")
    point = composed(*line, "rank=2")
    (row,) = solve([point])
    values, vectors = np.linalg.eigh(load_problem(point.problem).truth.target.numpy())
    goal = vectors[:, -2:] * np.sqrt(values[-2:])
    Q, _ = orthogonal_procrustes(row.factors[0].numpy(), goal)
    expected = np.linalg.norm(row.factors[0].numpy() @ Q - goal) / np.linalg.norm(goal)
    assert_allclose(row.trajectory["procrustes_distance"][-1], expected, rtol=1e-9)
    assert expected < 0.05
    for key in ("symmetric=false", "diagnostics=basic"):
        (row,) = solve([composed(*line, key)])
        assert "procrustes_distance" not in row.trajectory


def test_one_way_methods_have_no_turns():
    """The methods that are refused are those that move one factor at a time."""
    turns = {name for name in ONE_WAY if not optimizer(name).simultaneous}
    assert turns == PAIRS
