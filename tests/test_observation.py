"""What is seen of a matrix: three classes that answer the same questions, against NumPy."""

import numpy as np
import pytest
import torch
from cases import BATCHES, factors
from numpy.testing import assert_allclose, assert_array_equal

from mfgd.dense import AllEntries, MaskedEntries
from mfgd.kernel import product
from mfgd.observation import Observation
from mfgd.sparse import ListedEntries, compress_entries

N, M, K = 9, 7, 3
D = np.random.default_rng(0).normal(size=(N, M))
SHOWN = np.random.default_rng(1).random((N, M)) < 0.4
KINDS = pytest.mark.parametrize("kind", ["all", "masked", "listed"])
LEADS = pytest.mark.parametrize("lead", [(), (1,)], ids=["single", "batch of one"])


def mask(kind: str) -> np.ndarray:
    return np.ones((N, M)) if kind == "all" else SHOWN.astype(float)


def observation(kind: str) -> Observation:
    seen = torch.from_numpy(D * mask(kind))
    if kind == "all":
        return AllEntries(seen)
    if kind == "masked":
        return MaskedEntries(seen, torch.from_numpy(mask(kind)))
    at = torch.from_numpy(np.flatnonzero(SHOWN))
    return ListedEntries(compress_entries(at, seen.flatten()[at], N, M))


def spread(kind: str, S: torch.Tensor) -> np.ndarray:
    """An array over the observed entries as a full matrix."""
    if kind != "listed":
        return S.numpy()
    full = np.zeros((*S.shape[:-2], N, M))
    full[..., SHOWN] = S.numpy().reshape(*S.shape[:-2], -1)
    return full


@KINDS
@LEADS
def test_products_and_residual_are_numpy_s(kind, lead):
    seen, (L, R) = observation(kind), factors(lead, rank=K, n=N, m=M)
    P = (L @ R).numpy()
    assert seen.shape == (N, M)
    assert int(seen.count) == int(mask(kind).sum())
    assert seen.complete == (kind == "all")
    assert_allclose(spread(kind, seen.apply(L, R)), mask(kind) * P, rtol=1e-13)
    S = seen.residual(L, R)
    residual = mask(kind) * (P - D)
    assert_allclose(spread(kind, S), residual, rtol=1e-12, atol=1e-14)
    assert_allclose(seen.times_transposed(S, R), residual @ R.mT.numpy(), rtol=1e-12, atol=1e-13)
    assert_allclose(seen.transposed_times(L, S), L.mT.numpy() @ residual, rtol=1e-12, atol=1e-13)
    assert_allclose(seen.times_gram(L, R), (mask(kind) * P) @ R.mT.numpy(), rtol=1e-12, atol=1e-13)
    assert_allclose(seen.gram_times(L, R), L.mT.numpy() @ (mask(kind) * P), rtol=1e-12, atol=1e-13)


@KINDS
@LEADS
@pytest.mark.parametrize("c", [1.0, 2.0])
def test_the_fused_residual_is_the_residual(kind, lead, c):
    seen, (L, R) = observation(kind), factors(lead, rank=K, n=N, m=M)
    expected = c * mask(kind) * ((L @ R).numpy() - D)
    for multiply in (torch.matmul, *([torch.bmm] if lead else [])):
        found = seen.scaled_residual(c)(L, R, multiply)
        assert_allclose(spread(kind, found), expected, rtol=1e-12, atol=1e-14)


@KINDS
@LEADS
def test_misfit_is_numpy_s(kind, lead):
    seen, made = observation(kind), factors(lead, 3, rank=K, n=N, m=M)
    missed, size = seen.misfit(made)
    gap = mask(kind) * (product(made).numpy() - D)
    assert_allclose(missed, np.linalg.norm(gap, axis=(-2, -1)), rtol=1e-12)
    assert_allclose(size.item(), np.linalg.norm(mask(kind) * D), rtol=1e-12)


@KINDS
def test_hidden_entries_are_those_that_are_not_observed(kind):
    truth, made = AllEntries(torch.from_numpy(D)), factors(rank=K, n=N, m=M)
    found = observation(kind).hidden_misfit(truth, made)
    if kind == "all":
        assert found is None
        return
    gap, hidden = product(made).numpy() - D, 1 - mask(kind)
    assert_allclose(float(found[0]), np.linalg.norm(hidden * gap), rtol=1e-12)
    assert_allclose(float(found[1]), np.linalg.norm(hidden * D), rtol=1e-12)


@KINDS
def test_the_picture_has_nan_at_the_door_only(kind):
    seen, made = observation(kind), factors(rank=K, n=N, m=M)
    picture, estimate, residual = seen.picture(made, 256)
    shown = np.where(mask(kind) == 1, D, np.nan)
    assert_array_equal(picture, shown)
    assert_allclose(estimate, product(made), rtol=1e-12)
    assert_allclose(residual, product(made).numpy() - shown, rtol=1e-12, atol=1e-14)
    assert torch.isfinite(seen.target).all()


@KINDS
def test_singular_values_are_numpy_s(kind):
    seen = observation(kind)
    share = float(seen.count) / (N * M)
    sigma = np.linalg.svd(mask(kind) * D, compute_uv=False)
    assert_allclose(seen.top_singular_value(), sigma[0], rtol=1e-12)
    for k in (K, min(N, M)):
        U, found, Vh = seen.leading_triplets(k)
        assert_allclose(found, sigma[:k] / share, rtol=1e-10)
        assert_allclose(
            U.mT @ torch.from_numpy(mask(kind) * D) @ Vh.mT, np.diag(sigma[:k]), atol=1e-10
        )


@KINDS
@pytest.mark.parametrize("ridge", [0.3, 2.0])
def test_least_squares_are_numpy_s(kind, ridge):
    seen, (L, R) = observation(kind), factors(rank=K, n=N, m=M)
    below = np.sqrt(ridge) * np.eye(K)

    def solve(basis: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        A = np.vstack([weights[:, None] * basis, below])
        return np.linalg.lstsq(A, np.append(weights * values, np.zeros(K)), rcond=None)[0]

    rows = zip(D, mask(kind), strict=True)
    columns = zip(D.T, mask(kind).T, strict=True)
    left = np.stack([solve(R.mT.numpy(), d, m) for d, m in rows])
    right = np.stack([solve(L.numpy(), d, m) for d, m in columns])
    assert_allclose(seen.solve_left(R, ridge), left, rtol=1e-10)
    assert_allclose(seen.solve_right(L, ridge), right.T, rtol=1e-10)


@KINDS
def test_another_dtype(kind):
    moved = observation(kind).to(torch.float32, "cpu")
    assert type(moved) is type(observation(kind))
    assert moved.target.dtype == torch.float32
    assert_allclose(moved.target, observation(kind).target, rtol=1e-6)


@BATCHES
def test_a_loss_may_be_infinite_at_an_entry_that_is_not_observed(batch):
    seen = observation("masked")
    S = torch.full((*batch, N, M), torch.inf, dtype=torch.float64)
    S[..., torch.from_numpy(SHOWN)] = 1.0
    assert_array_equal(seen.restrict(S).expand(*batch, N, M), np.broadcast_to(SHOWN, S.shape))
