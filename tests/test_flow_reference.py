"""Gradient flow beside a run, against SciPy's integrator of another kind and Saxe's solution."""

import numpy as np
import pytest
from cases import solve, sparsely
from numpy.testing import assert_allclose, assert_array_equal
from scipy.integrate import solve_ivp
from test_config import composed
from test_mode_oracles import ALONG
from test_oracles import LOW, solve_line

from mfgd.given import draw_start, load_problem

FLOW = (*LOW, "diagnostics=flow", "steps=60", "record.points=12", "lr=0.3", "problem.n=7")
FLOW = (*FLOW, "problem.m=5")


@pytest.mark.parametrize(
    ("more", "shares", "penalty"),
    [((), (1, 1), 0), (("lr_ratio=4", "lr=0.1"), (1, 4), 0), (("loss.penalty=0.2",), (1, 1), 0.2)],
)
def test_the_curve_is_that_of_another_integrator(more, shares, penalty):
    point = composed(*FLOW, *more)
    (row,) = solve([point])
    given = load_problem(point.problem)
    D, (C, F) = given.D.numpy(), (W.numpy() for W in draw_start(given, point))
    (n, k), m = C.shape, D.shape[1]

    def slope(t, x):
        C, F = x[: n * k].reshape(n, k), x[n * k :].reshape(k, m)
        E = C @ F - D
        moves = shares[0] * (E @ F.T + penalty * C), shares[1] * (C.T @ E + penalty * F)
        return -np.concatenate([move.ravel() for move in moves])

    t = point.lr[0] * row.trajectory["step"]
    start = np.concatenate([C.ravel(), F.ravel()])
    found = solve_ivp(slope, (0, t[-1]), start, "Radau", t, rtol=1e-9, atol=1e-12).y.T
    products = [x[: n * k].reshape(n, k) @ x[n * k :].reshape(k, m) for x in found]
    losses = [
        0.5 * np.sum((P - D) ** 2) + penalty / 2 * np.sum(x**2)
        for P, x in zip(products, found, strict=True)
    ]
    assert_allclose(row.trajectory["theory.flow.loss"], losses, rtol=1e-5, atol=1e-12)
    sigma = [np.linalg.svd(P, compute_uv=False)[0] for P in products]
    assert_allclose(row.trajectory["theory.flow.sigma.1"], sigma, rtol=1e-6)
    errors = [np.linalg.norm(P - D) / np.linalg.norm(D) for P in products]
    assert_allclose(row.trajectory["theory.flow.relative_error"], errors, rtol=1e-5, atol=1e-9)


def test_the_curve_of_tied_factors_is_that_of_another_integrator():
    more = ("problem.m=7", "problem.symmetric=true", "symmetric=true", "loss.scale=0.25")
    point = composed(*FLOW, *more)
    (row,) = solve([point])
    given = load_problem(point.problem)
    D, U = given.D.numpy(), draw_start(given, point)[0].numpy()

    def slope(t, x):
        U = x.reshape(len(D), -1)
        return -((U @ U.T - D) @ U).ravel()

    t = point.lr[0] * row.trajectory["step"]
    found = solve_ivp(slope, (0, t[-1]), U.ravel(), "Radau", t, rtol=1e-9, atol=1e-12).y.T
    factors = [x.reshape(len(D), -1) for x in found]
    losses = [np.sum((V @ V.T - D) ** 2) / 4 for V in factors]
    assert_allclose(row.trajectory["theory.flow.loss"], losses, rtol=1e-5, atol=1e-12)


def test_the_curve_is_saxe_s_solution():
    row = solve_line(*ALONG, "init.scale=0.1", "diagnostics=flow", "lr=0.02", "steps=300")
    t = 0.02 * row.trajectory["step"]
    for i, s in enumerate((4.0, 2.0, 1.0), 1):
        expected = s / (1 + (1 / 0.01 - 1) * np.exp(-2 * s * t))
        assert_allclose(row.trajectory[f"theory.flow.sigma.{i}"], expected, rtol=1e-6)


def test_the_flow_is_the_same_at_a_rate_that_diverges():
    small = solve_line(*FLOW, "steps=400", "lr=0.01", f"record.steps={[40 * i for i in range(11)]}")
    large = solve_line(*FLOW, "steps=10", "lr=0.4", f"record.steps={[*range(11)]}")
    for name in ("loss", "sigma.1"):
        first, second = (row.trajectory[f"theory.flow.{name}"] for row in (small, large))
        assert_allclose(first, second, rtol=1e-6)
    assert_allclose(small.trajectory["loss"], small.trajectory["theory.flow.loss"], rtol=0.05)


@pytest.mark.parametrize(
    "more",
    [("diagnostics=full",), ("optimizer=momentum",), ("schedule=cosine",), ("lr=[0.1,0.3]",)],
)
def test_there_is_no_flow_of_other_runs(more):
    row = solve_line(*FLOW, *more)
    assert not [name for name in row.trajectory if name.startswith("theory.flow")]


def test_a_run_has_the_same_flow_in_a_batch_and_of_listed_entries():
    points = [composed(*FLOW, "problem.observed=0.8", f"seed={seed}") for seed in range(2)]
    rows = solve(points)
    (alone,) = solve(points[1:])
    for name in ("theory.flow.loss", "theory.flow.sigma.2"):
        assert_array_equal(rows[1].trajectory[name], alone.trajectory[name])
    with sparsely():
        load_problem.cache_clear()
        (listed,) = solve(points[1:])
    load_problem.cache_clear()
    found = (row.trajectory["theory.flow.loss"] for row in (listed, alone))
    assert_allclose(*found, rtol=1e-6, atol=1e-12)


def test_a_loss_with_kinks_ends():
    row = solve_line(*FLOW, "loss=absolute", "lr=0.01", "steps=200")
    curves = [name for name in row.trajectory if name.startswith("theory.flow")]
    assert all(np.isfinite(row.trajectory[name]).all() for name in curves)
