"""What is measured of a state."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from cases import (
    BATCHES,
    DEPTHS,
    KINKED,
    LOSSES,
    PROBLEMS,
    RANK,
    M,
    N,
    factors,
    loss,
    make_problem,
    mask_of,
    problem,
)
from numpy.testing import assert_allclose, assert_array_equal
from scipy.linalg import subspace_angles
from scipy.optimize import minimize

from mfgd import Objective, State, lanczos, metrics
from mfgd.dense import MaskedEntries
from mfgd.kernel import product
from mfgd.spectra import Triplets, singular_triplets
from mfgd.types import Refused

KINDS = pytest.mark.parametrize("kind", PROBLEMS)


def norm(X) -> np.ndarray:
    return np.sqrt((np.asarray(X) ** 2).sum((-2, -1)))


def state(objective: Objective, Ws, step: int = 0) -> State:
    value = objective.value(Ws)
    return State(step, Ws, value, torch.zeros(value.shape, dtype=torch.int64))


@BATCHES
@KINDS
def test_relative_error(batch, kind):
    given, made = problem(kind, batch), factors(batch)
    expected = norm(product(made) - given.truth.target) / norm(given.truth.target)
    assert_allclose(metrics.relative_error(given, made), expected, rtol=1e-13)


@BATCHES
@KINDS
def test_relative_error_is_over_observed_entries_if_the_truth_is_unknown(batch, kind):
    given, made = problem(kind, batch), factors(batch)
    blind = make_problem(given.D, mask_of(given))
    mask = np.ones_like(given.D) if mask_of(given) is None else mask_of(given).numpy()
    expected = norm(mask * (product(made) - given.D).numpy()) / norm(mask * given.D.numpy())
    assert_allclose(metrics.relative_error(blind, made), expected, rtol=1e-13)
    assert metrics.heldout_error(blind, made) is None


@BATCHES
def test_heldout_error_is_over_the_entries_that_are_not_observed(batch):
    given, made = problem("noisy", batch), factors(batch)
    hidden, truth = mask_of(given).numpy() == 0, given.truth.target.numpy()
    expected = norm(np.where(hidden, product(made).numpy() - truth, 0)) / norm(
        np.where(hidden, truth, 0)
    )
    assert_allclose(metrics.heldout_error(given, made), expected, rtol=1e-13)
    right = make_problem(
        given.D, mask_of(given), torch.where(mask_of(given) == 0, product(made), 1e3)
    )
    assert (metrics.heldout_error(right, made) == 0).all()
    assert metrics.heldout_error(problem("full", batch), made) is None


@BATCHES
def test_heldout_error_is_over_the_held_out_entries(batch):
    given, made = problem("heldout", batch), factors(batch)
    heldout = given.heldout.with_nan().numpy()
    gaps = np.where(~np.isnan(heldout), product(made).numpy() - heldout, 0)
    expected = norm(gaps) / norm(np.nan_to_num(heldout))
    assert_allclose(metrics.heldout_error(given, made), expected, rtol=1e-13)
    blind = replace(given, truth=None)
    assert_allclose(metrics.heldout_error(blind, made), expected, rtol=1e-13)
    shown = given.heldout.mask
    moved = replace(blind, heldout=MaskedEntries(given.heldout.target + 1e3 * shown, shown))
    assert_array_equal(metrics.relative_error(moved, made), metrics.relative_error(blind, made))


@KINDS
def test_errors_of_large_matrices_are_taken_a_few_rows_at_a_time(kind, monkeypatch):
    given, made = problem(kind, (3,)), factors((3,))
    whole = metrics.relative_error(given, made), metrics.heldout_error(given, made)
    monkeypatch.setattr("mfgd.kernel.BLOCK", 2 * given.shape[1])
    for error, expected in zip(
        (metrics.relative_error(given, made), metrics.heldout_error(given, made)),
        whole,
        strict=True,
    ):
        assert (error is None) == (expected is None)
        if error is not None:
            assert_allclose(error, expected, rtol=1e-14)


@BATCHES
@DEPTHS
def test_balance(batch, depth):
    made = factors(batch, depth)
    gaps = [norm(W.mT @ W - V @ V.mT) for W, V in pairwise(made)]
    assert_allclose(metrics.balance(made), np.linalg.norm(gaps, axis=0), rtol=1e-13)


@BATCHES
@DEPTHS
@pytest.mark.parametrize("rank", [1, 3, M, N + 2])
def test_singular_values(batch, depth, rank):
    made = factors(batch, depth, rank)
    expected = np.linalg.svd(product(made).numpy(), compute_uv=False)[..., : min(rank, N, M)]
    found = metrics.singular_values(made)
    assert found.shape == expected.shape
    assert_allclose(found, expected, rtol=1e-10)


@DEPTHS
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_run_that_is_not_finite_has_nan_and_its_neighbours_their_values(depth, bad):
    whole = factors((3,), depth)
    broken = tuple(W.clone() for W in whole)
    broken[depth // 2][1, 0, 0] = bad
    objective = Objective(problem("noisy", (3,)), loss("squared"))
    optimum = torch.full((3,), torch.nan, dtype=torch.float64)
    good, found = (
        metrics.measure(objective, state(objective, W), optimum, full=True) for W in (whole, broken)
    )
    assert set(good) == set(found)
    for name in good:
        assert_array_equal(found[name][[0, 2]], good[name][[0, 2]], err_msg=name)
        assert not found[name][1].isfinite(), name
    assert_array_equal(metrics.singular_values(broken)[1], np.full(3, np.nan))


@DEPTHS
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e200])
def test_lapack_sees_finite_matrices_only(depth, bad, monkeypatch):
    """Else it raises, or MKL prints to stdout. Finite factors of 1e200 have an infinite product."""
    seen = []

    def watch(name):
        function = getattr(torch.linalg, name)

        def watched(X, *args, **keys):
            seen.append(X.isfinite().all())
            return function(X, *args, **keys)

        monkeypatch.setattr(torch.linalg, name, watched)

    for name in ("svd", "svdvals", "eigh", "eigvalsh"):
        watch(name)
    goal, whole = target()[0], factors((2,), depth)
    broken = tuple(torch.stack([W[0], bad * W[1]]) for W in whole)
    objective = Objective(problem("exact", (2,)), loss("squared"))
    optimum = torch.full((2,), torch.nan, dtype=torch.float64)
    good, found = (
        metrics.measure(objective, state(objective, W), optimum, goal, full=True)
        for W in (whole, broken)
    )
    assert len(seen) > 4
    assert all(seen)
    for name in good:
        assert_array_equal(found[name][0], good[name][0], err_msg=name)
    for name in ("sigma.1", "effective_rank", "angle.left"):
        assert found[name][1].isnan()


@pytest.mark.parametrize(
    ("sigma", "expected"),
    [
        ([2.0] * 5, 5.0),
        ([3.0, 0, 0], 1.0),
        ([0.0, 0, 0], 0.0),
        # entropy of (1/2, 1/4, 1/4) is 3/2 log 2
        ([4.0, 2, 2], 2**1.5),
        ([torch.nan, 1], torch.nan),
    ],
)
@BATCHES
def test_effective_rank(sigma, expected, batch):
    values = torch.tensor(sigma, dtype=torch.float64).expand(*batch, len(sigma))
    assert_allclose(metrics.effective_rank(values), np.full(batch, expected), rtol=1e-14)


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - KINKED))
@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("kind", ["full", "noisy"])
@BATCHES
def test_sharpness_is_the_largest_eigenvalue_of_the_hessian(name, depth, kind, batch):
    objective = Objective(
        problem(kind, batch), loss(name, scale=0.5, reduction="mean", penalty=0.2)
    )
    made = factors(batch, depth)
    shapes = [W.shape[-2:] for W in made]
    lead = made[0].shape[:-2]

    def value(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([shape.numel() for shape in shapes], dim=-1)
        # The Hessian of the sum over runs has the Hessians of the runs as blocks.
        return objective.value(
            tuple(p.reshape(*lead, *s) for p, s in zip(parts, shapes, strict=True))
        ).sum()

    flat = torch.cat([W.flatten(-2) for W in made], dim=-1)
    H = torch.func.hessian(value)(flat)
    blocks = H if not batch else torch.stack([H[b, :, b] for b in range(*batch)])
    expected = np.linalg.eigvalsh(blocks.numpy())[..., -1]
    assert_allclose(lanczos.sharpness(objective, made), expected, rtol=1e-9)


def test_sharpness_by_autograd_s_derivative():
    given, made = problem("noisy"), factors()
    closed = loss("logcosh")
    values = [
        lanczos.sharpness(Objective(given, used), made)
        for used in (closed, closed._replace(derivative=None))
    ]
    assert_allclose(values[1], values[0], rtol=1e-9)


def test_sharpness_if_lanczos_ends_early():
    """At C = F = 0 under a penalty alone the Hessian has few eigenvalues: λ ± 2w σ_i, λ."""
    given = problem("full")
    objective = Objective(given, loss("squared", scale=0.5, penalty=3.0))
    start = tuple(torch.zeros_like(W) for W in factors())
    sigma = np.linalg.svd(given.D.numpy(), compute_uv=False)
    assert_allclose(lanczos.sharpness(objective, start), 3 + sigma[0], rtol=1e-12)


def test_sharpness_of_a_large_problem_in_few_iterations():
    """Lanczos stops far below the number of parameters; balanced optimum: 2 σ₁."""
    U, V = (
        torch.linalg.qr(torch.randn(n, 4, generator=torch.Generator().manual_seed(n)).double()).Q
        for n in (60, 50)
    )
    s = torch.tensor([1.0, 0.7, 0.4, 0.2], dtype=torch.float64)
    objective = Objective(make_problem((U * s) @ V.mT), loss("squared", scale=0.5))
    optimum = (U * s.sqrt(), (V * s.sqrt()).mT)
    assert_allclose(lanczos.sharpness(objective, optimum, iterations=30), 2.0, rtol=1e-9)


@BATCHES
@KINDS
@DEPTHS
def test_measure(batch, kind, depth):
    objective, made = (
        Objective(problem(kind, batch), loss("huber", penalty=0.1)),
        factors(batch, depth),
    )
    optimum = torch.full(batch, 0.5, dtype=torch.float64)
    found = metrics.measure(objective, state(objective, made), optimum)
    sigma = np.linalg.svd(product(made).numpy(), compute_uv=False)
    value = objective.value(made).numpy()
    gradients = torch.func.grad(lambda Ws: objective.value(Ws).sum())(made)
    expected = {
        "loss": value,
        "excess_loss": value / 0.5 - 1,
        "loss_gap": value - 0.5,
        "gradient_norm": np.linalg.norm([norm(G) for G in gradients], axis=0),
        "nuclear_norm": sigma.sum(-1),
        **{f"sigma.{i + 1}": sigma[..., i] for i in range(3)},
    }
    elsewhere = {"relative_error", "balance", "effective_rank"}
    assert set(found) == set(expected) | elsewhere | (
        {"heldout_error"} if kind in ("masked", "noisy", "heldout") else set()
    )
    for name, values in expected.items():
        assert_allclose(found[name], values, rtol=1e-10, err_msg=name)
        assert found[name].shape == batch, name


@BATCHES
def test_at_most_eight_singular_values_are_measured(batch):
    given = torch.ones(*batch, 20, 15, dtype=torch.float64)
    objective, made = (
        Objective(make_problem(given), loss("squared")),
        factors(batch, rank=12, n=20, m=15),
    )
    found = metrics.measure(objective, state(objective, made), torch.zeros(batch), full=True)
    assert {name for name in found if name.startswith("sigma.")} == {
        f"sigma.{i}" for i in range(1, 9)
    }
    assert "sharpness" in found


@pytest.mark.parametrize(
    ("optimum", "excess"), [(0.5, 3.0), (0.0, torch.nan), (torch.nan, torch.nan)]
)
@BATCHES
def test_excess_loss_and_distance_to_answer(optimum, excess, batch):
    objective, made = Objective(problem("full", batch), loss("squared")), factors(batch)
    at = state(objective, made)._replace(loss=torch.full(batch, 2.0, dtype=torch.float64))
    least = torch.full(batch, optimum, dtype=torch.float64)
    assert_array_equal(metrics.excess_loss(at.loss, least), np.full(batch, excess))
    relative = metrics.relative_error(objective.problem, made)
    assert_array_equal(
        metrics.distance_to_answer(objective, at, least),
        np.full(batch, excess) if optimum > 0 else relative,
    )


# Against the target


def target(rank: int = RANK) -> tuple[Triplets, np.ndarray, np.ndarray, np.ndarray]:
    """Targets of two runs, as triplets and in NumPy."""
    generator = torch.Generator().manual_seed(3)
    D = (
        torch.randn(2, N, rank, generator=generator).double()
        @ torch.randn(2, rank, M, generator=generator).double()
    )
    U, sigma, Vh = np.linalg.svd(D.numpy(), full_matrices=False)
    sigma[:, rank:] = 0
    return (
        Triplets(*map(torch.from_numpy, (U, sigma, Vh.swapaxes(1, 2).copy()))),
        U,
        sigma,
        Vh.swapaxes(1, 2),
    )


@DEPTHS
def test_modes_are_projections_of_the_product(depth):
    goal, U, _, V = target()
    made = factors((2,), depth)
    expected = np.einsum("bni,bnm,bmi->bi", U, product(made).numpy(), V)
    assert_allclose(metrics.modes(made, goal), expected, rtol=1e-11, atol=1e-13)


@DEPTHS
@pytest.mark.parametrize("rank", [2, RANK])
def test_angles_are_scipy_s(depth, rank):
    goal, U, _, V = target(rank)
    made = factors((2,), depth)
    found = metrics.angles(singular_triplets(made), goal)
    for b in range(2):
        left, _, right = np.linalg.svd(product(made)[b].numpy())
        for angle, ours, theirs in zip(found, (U, V), (left, right.T), strict=True):
            expected = subspace_angles(ours[b][:, :rank], theirs[:, :rank]).max()
            assert_allclose(angle[b], expected, rtol=1e-10)


def test_small_angles_keep_their_digits():
    goal, U, sigma, _ = target()
    turned = U[:, :, :RANK] + 1e-11 * U[:, :, RANK:].sum(-1, keepdims=True)
    made = (torch.from_numpy(turned * sigma[:, None, :RANK]), goal.V[..., :RANK].mT)
    left, right = metrics.angles(singular_triplets(made), goal)
    # Each of RANK columns moved by √(M − RANK) · 1e-11 in one direction: together √RANK times that.
    assert_allclose(left, np.full(2, 1e-11 * np.sqrt((M - RANK) * RANK)), rtol=1e-4)
    assert (right < 1e-15).all()


@pytest.mark.parametrize("apart", [1e-3, 0.1, 0.5])
def test_factor_distance_is_the_least_over_invertible_matrices(apart):
    goal, U, sigma, V = target()
    root = np.sqrt(sigma[:, None, :RANK])
    C0, F0 = U[..., :RANK] * root, (V[..., :RANK] * root).swapaxes(1, 2)
    noise = [apart * W.numpy() for W in factors((2,), seed=1)]
    turn = factors((2,), n=RANK, seed=2)[0].numpy()
    C, F = (C0 + noise[0]) @ turn, np.linalg.inv(turn) @ (F0 + noise[1])
    found = metrics.factor_distance((torch.from_numpy(C), torch.from_numpy(F)), goal)
    for b in range(2):

        def squares(q, b=b):
            Q = q.reshape(RANK, RANK)
            right = F[b].T @ np.linalg.inv(Q).T
            return (((C[b] @ Q - C0[b]) * root[b]) ** 2).sum() + (
                ((right - F0[b].T) * root[b]) ** 2
            ).sum()

        scale = squares(np.linalg.inv(turn[b]).ravel())  # BFGS stops at absolute sizes
        least = minimize(
            lambda q, b=b, s=scale: squares(q, b) / s, np.linalg.inv(turn[b]).ravel(), method="BFGS"
        )
        expected = np.sqrt(least.fun * scale) / np.linalg.norm(sigma[b])
        assert_allclose(found[b], expected, rtol=1e-4)


def test_factor_distance_does_not_see_an_invertible_transform():
    goal, _, sigma, _ = target()
    root = torch.from_numpy(np.sqrt(sigma[:, None, :RANK]))
    turn = factors((2,), n=RANK, seed=2)[0]
    made = (
        goal.U[..., :RANK] * root @ turn,
        torch.linalg.solve(turn, (goal.V[..., :RANK] * root).mT),
    )
    assert (metrics.factor_distance(made, goal) < 1e-13).all()


def test_factor_distance_needs_a_target_of_the_rank_of_the_factors():
    goal = target(2)[0]
    assert metrics.factor_distance(factors((2,)), goal).isnan().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 0.0])
def test_measures_against_the_target_leave_neighbours_alone(bad):
    goal, whole = target()[0], factors((2,))
    broken = tuple(W.clone() for W in whole)
    broken[0][1] *= bad
    for one in (
        metrics.factor_distance,
        metrics.modes,
        lambda made, goal: metrics.angles(singular_triplets(made), goal)[0],
    ):
        assert_array_equal(one(broken, goal)[0], one(whole, goal)[0])
    assert metrics.factor_distance(broken, goal)[1].isnan()


# Measures of one's own


def measure_own(measure, batch=(), name="spread", **keys) -> dict[str, torch.Tensor]:
    objective, made = Objective(problem("noisy", batch), loss("squared")), factors(batch)
    optimum = torch.full(batch, torch.nan)
    return metrics.measure(objective, state(objective, made), optimum, own={name: measure}, **keys)


@BATCHES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_own_measure_comes_last(batch, dtype):
    def spread(given, Ws):
        assert given.shape == (N, M)
        return Ws[0].std((-2, -1)).to(dtype)

    found = measure_own(spread, batch)
    assert list(found)[-1] == "spread"
    assert_array_equal(found["spread"], factors(batch)[0].std((-2, -1)).to(dtype))


@pytest.mark.parametrize(
    "name", ["loss", "sharpness", "sigma.3", "mode.1", "angle.left", "final_loss", "theory.loss"]
)
def test_the_name_of_a_built_in_measure_is_refused(name):
    message = rf"^metrics\.{name}: the name of a built-in measure; choose another$"
    with pytest.raises(Refused, match=message):
        measure_own(lambda given, Ws: Ws[0].sum((-2, -1)), name=name)


def test_every_measure_is_built_in():
    objective, made = Objective(problem("noisy", (2,)), loss("squared")), factors((2,))
    at = state(objective, made)
    for name in metrics.measure(objective, at, torch.zeros(2), target()[0], full=True):
        with pytest.raises(Refused):
            metrics.refuse_built_in(name)
    metrics.refuse_built_in("losses")


@pytest.mark.parametrize(
    ("batch", "own", "shapes"),
    [
        ((3,), lambda given, Ws: Ws[0].sum(), r"\(\); needed is one number a run, \(3,\)"),
        ((), lambda given, Ws: Ws[0], rf"\({N}, {RANK}\); needed is one number a run, \(\)"),
        ((3,), lambda given, Ws: 1.0, r"\(\); needed is one number a run, \(3,\)"),
    ],
)
def test_an_own_measure_of_another_shape_is_an_error(batch, own, shapes):
    with pytest.raises(ValueError, match=rf"^metrics\.spread gave shape {shapes}$"):
        measure_own(own, batch)
