"""Secant methods, against their formulas in NumPy and torch.optim."""

import numpy as np
import pytest
import torch
from cases import BATCHES, column, factors, loss, mask_of, optimizer, problem
from numpy.testing import assert_allclose

from mfgd import Objective
from mfgd.descent import descent
from mfgd.kernel import product

HALF = loss("squared", scale=0.5)


@pytest.mark.parametrize("variant", ["long", "short"])
def test_barzilai_borwein_is_its_formula(variant):
    given, start = problem("full"), factors()
    method = optimizer("barzilai_borwein", variant=variant)
    *_, state = descent(Objective(given, HALF), method, start, lr=0.01, records=[0, 12])
    D, shapes = given.D.numpy(), [W.shape for W in start]

    def gradient(x):
        C, F = x[:21].reshape(shapes[0]), x[21:].reshape(shapes[1])
        S = C @ F - D
        return np.concatenate([(S @ F.T).ravel(), (C.T @ S).ravel()])

    x = np.concatenate([W.numpy().ravel() for W in start])
    t, last = 0.01, None
    for _ in range(12):
        g = gradient(x)
        if last is not None:
            s, y = x - last[0], g - last[1]
            if s @ y > 0:
                t = (s @ s) / (s @ y) if variant == "long" else (s @ y) / (y @ y)
        last = x, g
        x = x - t * g
    found = np.concatenate([W.numpy().ravel() for W in state.factors])
    assert_allclose(found, x, rtol=1e-7)


@pytest.mark.parametrize("depth", [2, 3])
@BATCHES
def test_lbfgs_is_torch_s(batch, depth):
    given = problem("noisy", batch)
    start = tuple(0.3 * W for W in factors(batch, depth))
    rates = column(0.5, 0.2, 0.1) if batch else 0.3
    method = optimizer("lbfgs")
    path = [*descent(Objective(given, HALF), method, start, lr=rates, records=range(26))]
    for b in range(max(1, *batch)) if batch else [...]:
        Ws = [W[b].clone().requires_grad_() for W in start]
        lr = float(rates[b]) if batch else rates
        theirs = torch.optim.LBFGS(
            Ws, lr=lr, max_iter=1, history_size=4, tolerance_grad=0, tolerance_change=0
        )

        def evaluate(Ws=Ws, theirs=theirs, b=b):
            theirs.zero_grad()
            residual = mask_of(given)[b] * (product(tuple(Ws)) - given.D[b])
            total = residual.square().sum() / 2
            total.backward()
            return total

        for state in path[1:]:
            theirs.step(evaluate)
            ours = product(tuple(W[b] for W in state.factors))
            assert_allclose(ours, product(tuple(Ws)).detach(), rtol=1e-7, atol=1e-9)


def test_lbfgs_solves_what_gradient_descent_does_not():
    """The rate of gd is bound by the largest singular value, that of a secant method is not."""
    given, start = problem("exact"), tuple(0.3 * W for W in factors())
    objective = Objective(given, HALF)
    ends = {}
    for name, lr in (("lbfgs", 1.0), ("gd", 0.1)):
        *_, ends[name] = descent(objective, optimizer(name), start, lr=lr, records=[0, 60])
    assert float(ends["lbfgs"].loss) < 1e-6 < float(ends["gd"].loss)
