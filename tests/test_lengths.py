"""Steps whose length follows from the objective, against NumPy and SciPy."""

from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
import torch
from cases import BATCHES, column, factors, loss, mask_of, one, optimizer, problem, run
from numpy.testing import assert_allclose
from scipy.integrate import solve_ivp
from scipy.optimize import minimize_scalar

import mfgd
from mfgd import Objective
from mfgd.descent import descent
from mfgd.kernel import product
from mfgd.lengths import _minimize_polynomial

HALF = loss("squared", scale=0.5)


def states(objective, method, start, lr, records):
    return list(descent(objective, method, start, lr=lr, records=records))


def shift(factors, gradients, t):
    return tuple(W - t * G for W, G in zip(factors, gradients, strict=True))


@pytest.mark.parametrize("kind", ["full", "masked"])
@pytest.mark.parametrize("penalty", [0.0, 0.3])
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_exact_line_search_finds_the_least_value_along_the_gradient(depth, penalty, kind):
    objective = Objective(problem(kind), loss("squared", scale=0.7, penalty=penalty))
    method = optimizer("exact_line_search")
    path = states(objective, method, factors(depth=depth), 1.0, range(6))
    for here, there in pairwise(path):
        gradients = objective.gradient(here.factors)

        def along(t, here=here, gradients=gradients):
            return float(objective.value(shift(here.factors, gradients, t)))

        values = [along(t) for t in np.geomspace(1e-6, 10, 400)]
        assert float(there.loss) <= min(values)
        moved, G = here.factors[0] - there.factors[0], gradients[0]
        t = float((moved * G).sum() / (G * G).sum())
        near = minimize_scalar(along, bounds=(0.9 * t, 1.1 * t), options={"xatol": 1e-12})
        assert_allclose(t, near.x, rtol=1e-5)
        slope = sum(
            (A * B).sum() for A, B in zip(objective.gradient(there.factors), gradients, strict=True)
        )
        scale = sum(G.square().sum() for G in gradients)
        assert abs(float(slope / scale)) < 1e-8


@BATCHES
def test_alternating_exact_line_search_is_that_of_least_squares(batch):
    """Along one factor f is a parabola: t = ‖G‖² / ‖M∘(G F)‖² for f = ½‖M∘(CF − D)‖²."""
    given, (C, F) = problem("masked", batch), factors(batch)
    objective, M = Objective(given, HALF), mask_of(given)
    method = optimizer("exact_line_search", alternating=True)
    *_, state = states(objective, method, (C, F), 1.0, [0, 1])
    G = M * (C @ F - given.D) @ F.mT
    t = (G**2).sum((-2, -1), keepdim=True) / ((M * (G @ F)) ** 2).sum((-2, -1), keepdim=True)
    assert_allclose(state.factors[0], C - t * G, rtol=1e-10)


def test_exact_line_search_rests_at_the_answer_and_at_zero():
    start = factors()
    objective = Objective(mfgd.problem.from_matrix(product(start), "D"), HALF)
    for rest in (start, tuple(map(torch.zeros_like, start))):
        *_, state = states(objective, optimizer("exact_line_search"), rest, 1.0, [0, 3])
        assert all(map(torch.equal, state.factors, rest))


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_the_minimizer_of_a_polynomial_is_numpy_s(unit):
    generator = np.random.default_rng(0)
    for degree in (2, 4, 6, 8):
        for _ in range(50):
            c = generator.normal(size=degree + 1)
            c[-1], c[1] = abs(c[-1]), -abs(c[1])
            scaled = c / unit ** np.arange(degree + 1)
            found = float(_minimize_polynomial(torch.from_numpy(scaled)[None]))
            polynomial = np.polynomial.Polynomial(c)
            roots = polynomial.deriv().roots()
            real = roots.real[(abs(roots.imag) < 1e-9) & (roots.real > 0)]
            assert_allclose(polynomial(found / unit), polynomial(real).min(), rtol=1e-9, atol=1e-9)


def test_a_polynomial_that_is_not_finite_leaves_its_neighbours_alone():
    c = torch.tensor([[1.0, -2.0, 1.0], [torch.inf, 1.0, 1.0], [0.0, 0.0, 0.0]])
    found = _minimize_polynomial(c.double())
    assert_allclose(found, [1.0, np.nan, 0.0])


@pytest.mark.parametrize("name", ["squared", "huber"])
def test_armijo_is_its_formula(name):
    objective = Objective(problem("full"), loss(name))
    method = mfgd.optimizer.armijo(sufficient=0.3, shrink=0.5)
    *_, state = states(objective, method, factors(), 2.0, [0, 15])
    Ws = factors()
    for _ in range(15):
        G = objective.gradient(Ws)
        size = float(sum(g.square().sum() for g in G))
        t, before = 2.0, float(objective.value(Ws))
        while float(objective.value(shift(Ws, G, t))) > before - 0.3 * t * size:
            t /= 2
        Ws = shift(Ws, G, t)
    for W, V in zip(state.factors, Ws, strict=True):
        assert_allclose(W, V, rtol=1e-9)


def test_armijo_never_rises_whatever_the_rate():
    objective, start = Objective(problem("noisy", (3,)), HALF), factors((3,))
    path = states(objective, optimizer("armijo"), start, column(1e-3, 1.0, 1e8), range(40))
    losses = torch.stack([state.loss for state in path])
    assert (losses.diff(dim=0) <= 0).all()
    assert (losses[-1] < 0.5 * losses[0])[1:].all()


@pytest.mark.parametrize("depth", [2, 3])
def test_flow_is_scipy_s_solution_of_the_equation(depth):
    given, start = problem("masked"), tuple(0.5 * W for W in factors(depth=depth))
    objective = Objective(given, HALF)
    shapes = [W.shape for W in start]
    cuts = np.cumsum([shape.numel() for shape in shapes])[:-1]

    def velocity(_, x):
        parts = np.split(x, cuts)
        Ws = [torch.from_numpy(p.reshape(s)) for p, s in zip(parts, shapes, strict=True)]
        grown = [W.requires_grad_() for W in Ws]
        (mask_of(given) * (reduce(torch.matmul, grown) - given.D)).square().sum().mul(
            0.5
        ).backward()
        return -np.concatenate([W.grad.numpy().ravel() for W in grown])

    x = np.concatenate([W.numpy().ravel() for W in start])
    exact = solve_ivp(velocity, (0, 1), x, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    errors = []
    for steps in (100, 200):
        *_, state = states(objective, mfgd.optimizer.flow(), start, 1 / steps, [0, steps])
        found = np.concatenate([W.numpy().ravel() for W in state.factors])
        errors.append(abs(found - exact).max())
    assert errors[1] < 1e-6
    assert 12 < errors[0] / errors[1] < 20  # the order is 4


def test_a_run_of_exact_line_search_has_the_same_bits_beside_other_runs():
    """The last bit of a root differs for about 1 % of the runs."""
    whole, start, method = problem("noisy", (40,)), factors((40,)), optimizer("exact_line_search")
    together = states(Objective(whole, HALF), method, start, 1.0, [0, 40])[-1]
    for b in range(40):
        alone = states(Objective(one(whole, b), HALF), method, run(start, b), 1.0, [0, 40])[-1]
        for W, V in zip(alone.factors, together.factors, strict=True):
            assert torch.equal(W[0], V[b])
