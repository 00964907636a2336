"""What theory says, against what a long descent finds."""

import numpy as np
import pytest
import torch
from cases import DEPTHS, LOSSES, RANK, M, N, factors, loss, problem
from numpy.testing import assert_allclose

import mfgd
from mfgd import Objective, metrics, oracles
from mfgd.descent import descent

KEYS = pytest.mark.parametrize(
    "keys", [{}, {"scale": 0.5}, {"scale": 3.0, "reduction": "mean"}], ids=["sum", "half", "mean"]
)


def weight(keys) -> float:
    return keys.get("scale", 1.0) / (N * M if keys.get("reduction") == "mean" else 1)


def descended(given, used, rank: int) -> float:
    """The least loss of three starts after many steps."""
    # Twice σ₁ · 2w bounds the curvature at the optimum.
    lr = 0.25 / weight({"scale": used.scale, "reduction": used.reduction}) / float(given.D.norm())
    start = tuple(0.5 * W for W in factors((3,), rank=rank))
    *_, state = descent(Objective(given, used), mfgd.optimizer.gd(alternating=False), start, lr=lr, records=[10_000])
    return float(state.loss.min())


@KEYS
@pytest.mark.parametrize("rank", [1, 2, 4, M, M + 3])
@pytest.mark.parametrize("depth", [2, 3])
def test_eckart_young(keys, rank, depth):
    given = problem("full")
    sigma = np.linalg.svd(given.D.numpy(), compute_uv=False)
    expected = weight(keys) * (sigma[rank:] ** 2).sum()
    assert_allclose(oracles.optimum(given, loss("squared", **keys), rank, depth), expected, rtol=1e-12, atol=1e-28)


@KEYS
@pytest.mark.parametrize("rank", [1, 2, M])
@pytest.mark.parametrize("penalty", [0.02, 0.6])
def test_with_the_penalty_it_is_where_descent_ends(keys, rank, penalty):
    # τ = λ/2w cuts into the spectrum, whose largest value is about 1, in all of these.
    used = loss("squared", penalty=penalty * weight(keys), **keys)
    given = problem("full")
    assert_allclose(oracles.optimum(given, used, rank), descended(given, used, rank), rtol=1e-9)


def test_descent_ends_at_eckart_young():
    given, used = problem("full"), loss("squared", scale=0.5)
    assert_allclose(oracles.optimum(given, used, 2), descended(given, used, 2), rtol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["exact", "masked"])
@pytest.mark.parametrize("depth", [2, 3])
def test_zero_from_the_rank_of_a_noiseless_truth_on(name, kind, depth):
    for rank in (RANK, RANK + 1):
        assert oracles.optimum(problem(kind), loss(name), rank, depth) == 0


def test_zero_from_the_numerical_rank_of_any_data_on():
    """A sum of squared rounding errors would give an excess loss of millions."""
    low = torch.outer(torch.arange(1.0, 8), torch.arange(1.0, 6)).double() / 3
    assert oracles.optimum(mfgd.problem.of(low), loss("squared"), 1) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_data_in_single_precision_has_its_optimum_in_double(dtype):
    D = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
    sigma = np.linalg.svd(D.double().numpy(), compute_uv=False)
    assert_allclose(oracles.optimum(mfgd.problem.of(D), loss("squared"), 3), (sigma[3:] ** 2).sum(), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "kind", "penalty", "rank", "depth"),
    [(name, "full", 0.0, RANK, 2) for name in LOSSES if name != "squared"]
    + [
        ("squared", "noisy", 0.0, RANK, 2),
        ("squared", "masked", 0.0, RANK - 1, 2),
        ("squared", "masked", 0.1, RANK, 2),
        ("squared", "full", 0.1, RANK, 3),
        ("squared", "exact", 0.1, RANK, 3),
        ("huber", "exact", 0.0, RANK - 1, 2),
        ("huber", "exact", 0.1, RANK, 2),
    ],
)
def test_nan_where_theory_does_not_know(name, kind, penalty, rank, depth):
    assert np.isnan(oracles.optimum(problem(kind), loss(name, penalty=penalty), rank, depth))


@pytest.mark.parametrize("kind", ["full", "exact"])
@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_no_state_is_below_the_optimum(kind, penalty):
    given, used = problem(kind), loss("squared", penalty=penalty)
    U, sigma, Vh = np.linalg.svd(given.D.numpy())
    for shrink in np.linspace(0, 0.3, 31):
        root = np.sqrt(np.maximum(sigma[:2] - shrink, 0))
        near = (torch.from_numpy(U[:, :2] * root), torch.from_numpy(root[:, None] * Vh[:2]))
        assert Objective(given, used).value(near) >= oracles.optimum(given, used, 2) * (1 - 1e-12)


@pytest.mark.parametrize(("name", "expected"), [("squared", 2.0), ("huber", 1.0), ("logcosh", 1.0), ("absolute", None)])
def test_curvature_is_the_second_derivative_at_the_answer(name, expected):
    given = problem("full")
    for reduction, weight in (("sum", 0.3), ("mean", 0.3 / given.D.numel())):
        found = oracles.curvature(given, loss(name, scale=0.3, reduction=reduction))
        if expected is None:
            assert np.isnan(found)
        else:
            assert found == pytest.approx(expected * weight, rel=1e-12)


@pytest.mark.parametrize("scale", [0.5, 3.0])
@pytest.mark.parametrize("times", [0.97, 1.03])
@DEPTHS
def test_gradient_descent_converges_up_to_the_limit_and_not_beyond(scale, times, depth):
    # The balanced answer has sharpness c L σ₁^{2−2/L}; a start near it stays below the limit and leaves beyond it.
    given, used = problem("exact"), loss("squared", scale=scale)
    U, sigma, Vh = torch.linalg.svd(2 * given.D, full_matrices=False)
    given = mfgd.Problem(2 * given.D)
    limit = oracles.rate_limit(given, used, depth)
    assert limit == pytest.approx(2 / (2 * scale * depth * float(sigma[0]) ** (2 - 2 / depth)), rel=1e-12)
    root = sigma[:3] ** (1 / depth)
    balanced = (U[:, :3] * root, *[torch.diag(root)] * (depth - 2), root[:, None] * Vh[:3])
    assert 2 / metrics.sharpness(Objective(given, used), balanced) == pytest.approx(limit, rel=1e-9)
    start = tuple(W + 1e-4 * torch.ones_like(W) for W in balanced)
    *_, state = descent(
        Objective(given, used), mfgd.optimizer.gd(alternating=False), start, lr=times * limit, records=[0, 5000]
    )
    assert (state.loss < 1e-20) == (times < 1)


def test_the_limit_is_known_for_complete_matrices_and_quadratic_losses_only():
    assert np.isnan(oracles.rate_limit(problem("masked"), loss("squared"), 2))
    assert np.isnan(oracles.rate_limit(problem("full"), loss("huber"), 2))
    assert np.isnan(oracles.rate_limit(problem("full"), loss("squared", penalty=1.0), 2))


def test_the_largest_singular_value_of_a_large_matrix():
    D = torch.randn(300, 250, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert oracles.largest(D) == pytest.approx(np.linalg.svd(D, compute_uv=False)[0], rel=1e-12)
    assert oracles.largest(torch.zeros_like(D)) == 0
    assert oracles.rate_unit(mfgd.Problem(torch.zeros_like(D)), loss("squared"), 2) == np.inf
