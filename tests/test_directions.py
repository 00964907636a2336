"""Normalized and orthogonalized steps, against their formulas in NumPy, SciPy and torch.optim."""

import numpy as np
import pytest
import scipy
import torch
from cases import factors, loss, optimizer, problem
from numpy.testing import assert_allclose

import mfgd
from mfgd import Objective
from mfgd.descent import descent
from mfgd.directions import POLYNOMIAL
from mfgd.streams import Streams

HALF = loss("squared", scale=0.5)
MATRICES = {
    "tall": np.random.default_rng(0).normal(size=(7, 3)),
    "wide": np.random.default_rng(1).normal(size=(3, 5)),
    "rank 1": np.outer(np.arange(1.0, 8), [2.0, 0.0, -1.0]),
    "zero": np.zeros((4, 3)),
}


def end(name: str, steps: int, lr: float, **keys) -> tuple[np.ndarray, ...]:
    """The factors of the noisy full problem after so many steps."""
    method = optimizer(name, **keys)
    objective = Objective(problem("full"), HALF)
    *_, state = descent(objective, method, factors(), lr=lr, records=[0, steps])
    return tuple(W.numpy() for W in state.factors)


def follow(direction, steps: int, lr: float) -> tuple[np.ndarray, np.ndarray]:
    """The same in NumPy: both factors move along what `direction` makes of both gradients."""
    D, (C, F) = problem("full").D.numpy(), (W.numpy() for W in factors())
    for _ in range(steps):
        S = C @ F - D
        H, J = direction((S @ F.T, C.T @ S))
        C, F = C - lr * H, F - lr * J
    return C, F


def test_sign_is_its_formula():
    expected = follow(lambda gradients: map(np.sign, gradients), 20, 0.01)
    for W, V in zip(end("sign", 20, 0.01), expected, strict=True):
        assert_allclose(W, V, rtol=1e-12)


def test_normalized_is_its_formula():
    def direction(gradients):
        size = np.sqrt(sum((G**2).sum() for G in gradients))
        return [G / size for G in gradients]

    for W, V in zip(end("normalized", 20, 0.1), follow(direction, 20, 0.1), strict=True):
        assert_allclose(W, V, rtol=1e-12)


def test_normalized_steps_have_the_length_of_the_rate_and_rest_at_a_stationary_point():
    start = factors()
    moved = end("normalized", 1, 0.3)
    squares = sum(((W.numpy() - V) ** 2).sum() for W, V in zip(start, moved, strict=True))
    assert_allclose(np.sqrt(squares), 0.3, rtol=1e-12)
    zeros = tuple(map(torch.zeros_like, start))
    objective = Objective(problem("full"), HALF)
    *_, state = descent(objective, optimizer("normalized"), zeros, lr=0.3, records=[0, 2])
    assert not any(W.any() for W in state.factors)


@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_is_its_formula(nesterov):
    kept = [0.0, 0.0]

    def direction(gradients):
        found = []
        for i, G in enumerate(gradients):
            kept[i] = 0.8 * kept[i] + G
            found.append(scipy.linalg.polar(G + 0.8 * kept[i] if nesterov else kept[i])[0])
        return found

    expected = follow(direction, 20, 0.05)
    for W, V in zip(end("muon", 20, 0.05, nesterov=nesterov), expected, strict=True):
        assert_allclose(W, V, rtol=1e-9, atol=1e-9)


def step_along(polar: str, X: np.ndarray) -> np.ndarray:
    """The direction of a first step if the gradient is X."""

    class Linear:
        def gradient(self, factors, only=None):
            return (torch.from_numpy(X),)

    method = mfgd.optimizer.muon(beta=0.0, nesterov=False, polar=polar, alternating=False)
    start = (torch.zeros(X.shape, dtype=torch.float64),)
    (moved,), _ = method.step(Linear(), start, method.init(start, Streams([0], start[0])), 1.0)
    return -moved.numpy()


@pytest.mark.parametrize("kind", MATRICES)
def test_the_polar_factor_is_over_singular_values_that_are_not_zero(kind):
    X = MATRICES[kind]
    U, sigma, Vh = np.linalg.svd(X, full_matrices=False)
    expected = U[:, sigma > 1e-10] @ Vh[sigma > 1e-10]
    assert_allclose(step_along("svd", X), expected, atol=1e-12)


@pytest.mark.parametrize("kind", MATRICES)
def test_newton_schulz_is_its_polynomial_of_the_singular_values(kind):
    X = MATRICES[kind]
    U, sigma, Vh = np.linalg.svd(X, full_matrices=False)
    values = sigma / (np.linalg.norm(sigma) or 1.0)
    for _ in range(5):
        a, b, c = POLYNOMIAL
        values = a * values + b * values**3 + c * values**5
    assert_allclose(step_along("newton_schulz", X), (U * values) @ Vh, atol=1e-9)


@pytest.mark.parametrize("kind", ["tall", "wide"])
def test_newton_schulz_is_torch_s(kind, monkeypatch):
    """torch.optim.Muon scales its rate by the shape, and would iterate in 8 bits."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self)
    X = MATRICES[kind]
    W = torch.zeros(X.shape, dtype=torch.float64, requires_grad=True)
    W.grad = torch.from_numpy(X)
    theirs = torch.optim.Muon([W], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False)
    theirs.step()
    scale = max(1, X.shape[0] / X.shape[1]) ** 0.5
    assert_allclose(scale * step_along("newton_schulz", X), -W.detach().numpy(), rtol=1e-10)


@pytest.mark.parametrize("polar", ["svd", "newton_schulz"])
def test_a_run_that_is_not_finite_leaves_its_neighbours_alone(polar):
    given, start = problem("full", (2,)), factors((2,))
    start[0][1, 0, 0] = torch.nan
    method = optimizer("muon", polar=polar)
    *_, state = descent(Objective(given, HALF), method, start, lr=0.01, records=[0, 3, 6])
    assert state.factors[0][0].isfinite().all()
    assert state.outcome.tolist() == [2, 3]
