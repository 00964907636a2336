"""Norms at any scale, solves of singular Gram matrices, and leading triplets, against NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array

from mfgd import linalg

GENERATOR = np.random.default_rng(0)


def laplacian(n: int) -> np.ndarray:
    """Of a path: rows and columns sum to 0."""
    edges = np.diff(np.eye(n), axis=0)
    return edges.T @ edges


def centred(n: int, m: int) -> np.ndarray:
    made = GENERATOR.normal(size=(n, m))
    made -= made.mean(0)
    return made - made.mean(1, keepdims=True)


MATRICES = {
    "Laplacian": laplacian(220),
    "incidence": np.diff(np.eye(230), axis=0),
    "centred, tall": centred(260, 210),
    "centred, wide": centred(210, 260),
    "± pairs": np.kron(np.diag(np.arange(1.0, 111)), [[0, 1], [1, 0]]),
    "constant": np.full((210, 200), 3.0),
    "rank 1": np.outer(np.arange(1.0, 211), np.ones(220)),
    "identity": np.eye(205),
    "one entry": np.pad([[5.0]], ((0, 209), (0, 219))),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("scale", [1.0, 1e-300, 1e300])
@pytest.mark.parametrize("kind", [np.array, csr_array])
def test_top_singular_value(name, scale, kind):
    D = MATRICES[name] * scale
    expected = np.linalg.norm(MATRICES[name], 2) * scale
    found = linalg.top_singular_value(kind(D))
    assert found == pytest.approx(expected, rel=1e-12)
    assert linalg.top_singular_value(kind(D)) == found


def test_leading_triplets_rebuild_the_best_approximation():
    D = centred(240, 210)
    U, sigma, Vh = linalg.leading_triplets(D, 5)
    left, values, right = np.linalg.svd(D)
    assert_allclose(sigma, values[:5], rtol=1e-12)
    assert_allclose((U * sigma) @ Vh, (left[:, :5] * values[:5]) @ right[:5], atol=1e-10)


@given(
    n=st.integers(1, 6),
    m=st.integers(1, 6),
    exponent=st.integers(-300, 300),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_norms_at_any_scale(n, m, exponent, seed, dtype):
    if dtype == torch.float32:
        exponent //= 9
    made = (
        np.random.default_rng(seed).normal(size=(2, n, m))
        * np.array([10.0**exponent, 1.0])[:, None, None]
    )
    X = torch.from_numpy(made).to(dtype)
    # The long double of NumPy has a wider range of exponents.
    wide = X.numpy().astype(np.longdouble)
    expected = np.sqrt((wide**2).sum((-2, -1)))
    found = linalg.frobenius_norm(X)
    assert_allclose(found, expected.astype(float), rtol=1e-14)
    assert_array_equal(linalg.frobenius_norm(X[:1]), found[:1])  # alone, the same bits
    joined = linalg.join_norms([found, 3 * found])
    assert_allclose(joined, (np.sqrt(np.longdouble(10)) * expected).astype(float), rtol=1e-14)


@given(
    k=st.integers(1, 7),
    rank=st.integers(0, 7),
    exponent=st.integers(-60, 60),
    seed=st.integers(0, 99),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_solution_of_least_norm(k, rank, exponent, seed):
    generator = np.random.default_rng(seed)
    basis = generator.normal(size=(12, min(rank, k))) @ generator.normal(size=(min(rank, k), k))
    basis *= 10.0**exponent
    target = generator.normal(size=(12, 3))
    A, X = torch.from_numpy(basis.T @ basis), torch.from_numpy(basis.T @ target)
    found = linalg.solve_least_norm(A, X, 0.0, 12)
    expected = np.linalg.lstsq(basis, target, rcond=1e-9)[0]
    assert_allclose(found, expected, atol=1e-7 * np.abs(expected).max(initial=0.0))
    _, singular = linalg.solve_positive(A, X, 0.0, 12)
    assert bool(singular) == (rank < k)
