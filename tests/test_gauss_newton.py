"""Gauss–Newton and Levenberg–Marquardt, against their formulas in NumPy and against SciPy."""

import numpy as np
import pytest
import scipy.optimize
import torch
from cases import BATCHES, factors, loss, make_problem, mask_of, optimizer, problem
from numpy.testing import assert_allclose

from mfgd import Objective
from mfgd.descent import descent
from mfgd.gauss_newton import LARGEST
from mfgd.kernel import product
from mfgd.problem import sensing
from mfgd.tied import TiedObjective, tie
from mfgd.types import Refused

HALF = loss("squared", scale=0.5)
KINDS = pytest.mark.parametrize("kind", ["full", "noisy"])


def flat(Ws):
    return np.concatenate([np.asarray(W).ravel() for W in Ws])


def residual_of(D, M, Ws):
    """x → the residual at the observed entries, and its Jacobian by autograd."""

    def residual(x):
        parts = x.split([W.numel() for W in Ws])
        X = product(tuple(p.reshape(W.shape) for p, W in zip(parts, Ws, strict=True)))
        return (M * (X - D)).ravel()

    def evaluate(x):
        return residual(torch.from_numpy(x)).numpy()

    def jacobian(x):
        return torch.autograd.functional.jacobian(residual, torch.from_numpy(x)).numpy()

    return evaluate, jacobian


def runs_of(given, start, batch):
    """D, mask and start of each run."""
    seen = given.observation
    mask = torch.ones_like(seen.target) if mask_of(given) is None else mask_of(given)
    for b in range(batch[0]) if batch else [...]:
        yield b, *residual_of(seen.target[b], mask[b], [W[b] for W in start])


@pytest.mark.parametrize("depth", [2, 3])
@KINDS
@BATCHES
def test_gauss_newton_is_its_formula(batch, kind, depth):
    given, start = problem(kind, batch), factors(batch, depth)
    method = optimizer("gauss_newton")
    *_, state = descent(Objective(given, HALF), method, start, lr=0.5, records=[0, 4])
    for b, residual, jacobian in runs_of(given, start, batch):
        x = flat(W[b] for W in start)
        for _ in range(4):
            x = x - 0.5 * np.linalg.pinv(jacobian(x), rcond=1e-13) @ residual(x)
        assert_allclose(flat(W[b] for W in state.factors), x, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("depth", [2, 3])
@KINDS
@BATCHES
def test_levenberg_marquardt_is_its_formula(batch, kind, depth):
    given, start = problem(kind, batch), factors(batch, depth)
    method = optimizer("levenberg_marquardt", damping=1e-4, factor=3.0)
    *_, state = descent(Objective(given, HALF), method, start, lr=0.7, records=[0, 8])
    for b, residual, jacobian in runs_of(given, start, batch):
        x, d = flat(W[b] for W in start), 1e-4
        for _ in range(8):
            J, r = jacobian(x), residual(x)
            ridge = d * np.linalg.norm(J, 2) ** 2
            tried = x - np.linalg.solve(J.T @ J + ridge * np.eye(len(x)), J.T @ r)
            fell = np.sum(residual(tried) ** 2) < np.sum(r**2)
            x, d = (tried, d / 3) if fell else (x, d * 3)
        assert_allclose(flat(W[b] for W in state.factors), x, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", ["gauss_newton", "levenberg_marquardt"])
def test_the_end_is_that_of_scipy(name):
    """Noisy data under a mask: the same minimum as SciPy's trust region finds from there."""
    given, start = problem("noisy"), factors()
    *_, state = descent(Objective(given, HALF), optimizer(name), start, lr=1.0, records=[0, 200])
    ((_, residual, jacobian),) = runs_of(given, start, ())
    end = flat(state.factors)
    near = end + 1e-3 * np.random.default_rng(0).normal(size=len(end))
    options = {"method": "trf", "xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-12}
    theirs = scipy.optimize.least_squares(residual, near, jacobian, **options)
    assert_allclose(float(state.loss), theirs.cost, rtol=1e-8, atol=1e-20)
    assert np.abs(jacobian(end).T @ residual(end)).max() < 1e-6


def test_above_the_rank_of_the_matrix_the_step_is_the_shortest():
    """D of rank 1 and k = 3: of all changes that solve the linear problem none is shorter."""
    given = make_problem(torch.outer(torch.arange(1.0, 8.0), torch.arange(1.0, 6.0)).double())
    start = factors()
    method = optimizer("gauss_newton")
    *_, state = descent(Objective(given, HALF), method, start, lr=1.0, records=[0, 1])
    ((_, residual, jacobian),) = runs_of(given, start, ())
    x = flat(start)
    change = flat(state.factors) - x
    shortest, *_ = np.linalg.lstsq(jacobian(x), -residual(x), rcond=1e-13)
    assert_allclose(change, shortest, rtol=1e-8, atol=1e-9)


def test_tied_factors_take_the_step_of_u_alone():
    """U ← U − lr J⁺ r, if J is the Jacobian of U Uᵀ with respect to U."""
    D = torch.randn((6, 6), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    D, (U, _) = D + D.mT, factors()
    U = U[:6].contiguous()
    *_, state = descent(
        TiedObjective(make_problem(D), HALF),
        tie(optimizer("gauss_newton")),
        (U, U.mT),
        lr=0.5,
        records=[0, 3],
    )

    def residual(x):
        V = x.reshape(U.shape)
        return (V @ V.mT - D).ravel()

    x = U.flatten()
    for _ in range(3):
        J = torch.autograd.functional.jacobian(residual, x)
        x = x - 0.5 * torch.from_numpy(np.linalg.pinv(J.numpy(), rcond=1e-13)) @ residual(x)
    assert_allclose(state.factors[0].flatten(), x, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["gauss_newton", "levenberg_marquardt"])
def test_linear_measurements_are_refused(name):
    keys = {"n": 6, "m": 5, "rank": 1, "spectrum": None, "condition": 1.0, "symmetric": False}
    more = {"ensemble": "gaussian", "measurements": 40, "oversampling": 3.0, "noise": 0.0}
    given = sensing(**keys, **more, heldout=0.0, seed=0)
    with pytest.raises(Refused, match=rf"^optimizer={name}: allowed are problems whose entries"):
        optimizer(name).check(Objective(given, HALF), factors())


REFUSED = {
    "loss": ("huber", {}, "allowed is loss=squared"),
    "penalty": ("squared", {"penalty": 0.1}, "allowed is loss.penalty=0"),
}


@pytest.mark.parametrize("name", ["gauss_newton", "levenberg_marquardt"])
@pytest.mark.parametrize(("kind", "keys", "said"), REFUSED.values(), ids=REFUSED)
def test_other_losses_are_refused(name, kind, keys, said):
    with pytest.raises(Refused, match=rf"^optimizer={name}: {said}$"):
        optimizer(name).check(Objective(problem("full"), loss(kind, **keys)), factors())


@pytest.mark.parametrize("name", ["gauss_newton", "levenberg_marquardt"])
def test_a_jacobian_that_is_too_large_is_refused(here, name):
    line = ("problem=synthetic", "problem.n=200", "problem.m=200", "rank=10", "steps=1")
    done = here(*line, f"optimizer={name}", "tracking=memory")
    assert (done.returncode, done.stdout) == (2, "")
    said = f"the Jacobian of a 200×200 matrix has 160,000,000 entries; allowed are {LARGEST:,}"
    assert done.stderr == f"mfgd: optimizer={name}: {said}\n"
