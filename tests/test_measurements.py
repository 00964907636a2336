"""Linear measurements of a matrix, against NumPy and autograd on explicit A₁ … A_N."""

import numpy as np
import pytest
import torch
from cases import factors, loss, optimizer
from numpy.testing import assert_allclose, assert_array_equal

from mfgd.dense import AllEntries
from mfgd.descent import descent
from mfgd.draws import stream
from mfgd.init import spectral
from mfgd.kernel import product
from mfgd.lanczos import sharpness
from mfgd.measurements import MatrixMeasurements, Measurements
from mfgd.objective import Objective
from mfgd.rank_one import VectorMeasurements
from mfgd.target import Problem
from mfgd.types import Refused

N, M, K, COUNT = 6, 5, 2, 40
KINDS = ["matrices", "vectors", "quadratic"]
LEADS = {"single": (), "batch": (3,), "batch of their own": (3, "own")}


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def measure(kind: str, seed: int = 0) -> Measurements:
    """Measurements without leading dimensions."""
    y = torch.from_numpy(numbers(seed + 10, 1, COUNT))
    if kind == "matrices":
        return MatrixMeasurements(y, torch.from_numpy(numbers(seed, COUNT, N, M)), 1.0)
    a, b = torch.from_numpy(numbers(seed, COUNT, N)), torch.from_numpy(numbers(seed + 1, COUNT, M))
    return VectorMeasurements(y, a, a if kind == "quadratic" else b)


def explicit(seen: Measurements) -> np.ndarray:
    """A₁ … A_N as matrices, (*, N, n, m)."""
    if isinstance(seen, MatrixMeasurements):
        return seen.A.numpy()
    return np.einsum("...in,...im->...inm", seen.a, seen.b)


@pytest.fixture(params=LEADS.values(), ids=LEADS)
def lead(request):
    return request.param


@pytest.fixture(params=KINDS)
def case(request, lead):
    """Measurements, A₁ … A_N (*, N, n, m), C and F."""
    runs = [measure(request.param, seed if "own" in lead else 0) for seed in range(3)]
    if lead == ():
        seen = runs[0]
    elif "own" in lead:
        seen = type(runs[0]).stack(runs, torch.stack)
    else:
        seen = type(runs[0]).stack([runs[0]] * 3, torch.stack)
    n, m = seen.shape
    return seen, explicit(seen), factors(lead[:1], rank=K, n=n, m=m)


def test_products_are_numpy_s(case):
    seen, A, (C, F) = case
    P = (C @ F).numpy()
    measured = np.einsum("...inm,...nm->...i", A, P)[..., None, :]
    assert_allclose(seen.apply(C, F), measured, rtol=1e-12)
    S = seen.residual(C, F)
    assert_allclose(S, measured - seen.target.numpy(), rtol=1e-11, atol=1e-13)
    Z = np.einsum("...inm,...i->...nm", A, S[..., 0, :].numpy())
    assert_allclose(seen.adjoint(S), Z, rtol=1e-11)
    for form in (S, seen.pull_back(S)):
        assert_allclose(seen.times_transposed(form, F), Z @ F.mT.numpy(), rtol=1e-11)
        assert_allclose(seen.transposed_times(C, form), C.mT.numpy() @ Z, rtol=1e-11)
    missed, size = seen.misfit((C, F))
    assert_allclose(missed, np.linalg.norm(S, axis=(-2, -1)), rtol=1e-12)
    assert_allclose(size, np.linalg.norm(seen.target, axis=(-2, -1)), rtol=1e-12)
    assert_allclose(seen.scaled_residual(2.0)(C, F, torch.matmul), 2 * S, rtol=1e-12)


def test_the_adjoint_is_the_adjoint(case):
    seen, _, (C, F) = case
    S = torch.from_numpy(numbers(5, *C.shape[:-2], 1, COUNT))
    left = (seen.apply(C, F) * S).sum((-2, -1))
    right = (C @ F * seen.adjoint(S)).sum((-2, -1))
    assert_allclose(left, right, rtol=1e-11)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_least_squares_are_numpy_s(case, ridge):
    seen, A, (C, F) = case
    lead, k = C.shape[:-2], K
    left, right = seen.solve_left(F, ridge), seen.solve_right(C, ridge)
    for run in np.ndindex(*lead):
        matrices = A[run] if A.ndim == 4 else A
        y = seen.target[run].numpy().ravel()
        for found, design in (
            (left[run], np.einsum("inm,km->ink", matrices, F[run])),
            (right[run], np.einsum("inm,nk->ikm", matrices, C[run])),
        ):
            flat = design.reshape(COUNT, -1)
            below = np.sqrt(ridge) * np.eye(flat.shape[1])
            sides = np.append(y, np.zeros(len(below)))
            expected = np.linalg.lstsq(np.vstack([flat, below]), sides, rcond=None)[0]
            assert_allclose(found.numpy().ravel(), expected, rtol=1e-9, atol=1e-11)
    assert left.shape == (*lead, seen.shape[0], k)
    assert right.shape == (*lead, k, seen.shape[1])


@pytest.mark.parametrize("name", ["squared", "huber", "logcosh"])
@pytest.mark.parametrize("depth", [2, 3])
def test_value_and_gradient_are_those_of_autograd(case, name, depth):
    seen, A, (C, _) = case
    n, m = seen.shape
    used = loss(name, scale=0.5, reduction="mean", penalty=0.1)
    objective = Objective(Problem(seen), used)
    start = tuple(W.requires_grad_() for W in factors(C.shape[:-2], depth, rank=K, n=n, m=m))
    predicted = torch.einsum("...inm,...nm->...i", torch.from_numpy(A), product(start))
    values = used.value(predicted[..., None, :], seen.target).mean((-2, -1))
    total = 0.5 * values + 0.05 * sum(W.square().sum((-2, -1)) for W in start)
    expected = torch.autograd.grad(total.sum(), start)
    with torch.no_grad():
        assert_allclose(objective.value(start), total.detach(), rtol=1e-12)
        for G, E in zip(objective.gradient(start), expected, strict=True):
            assert_allclose(G, E, rtol=1e-10, atol=1e-12)
        (last,) = objective.gradient(start, depth - 1)
        assert_allclose(last, expected[-1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["squared", "logcosh"])
def test_sharpness_is_the_largest_eigenvalue_of_autograd_s_hessian(kind, name):
    seen = measure(kind)
    n, m = seen.shape
    made = factors(rank=K, n=n, m=m)
    A, used = torch.from_numpy(explicit(seen)), loss(name)

    def value(flat):
        C, F = flat[: n * K].view(n, K), flat[n * K :].view(K, m)
        return used.value(torch.einsum("inm,nm->i", A, C @ F)[None], seen.target).sum()

    flat = torch.cat([W.flatten() for W in made])
    H = torch.autograd.functional.hessian(value, flat)
    expected = torch.linalg.eigvalsh(H)[-1]
    assert_allclose(sharpness(Objective(Problem(seen), used), made), expected, rtol=1e-6)


def test_unit_matrices_are_the_entries():
    """A_i = e_j e_kᵀ for all j and k: every number is that of the matrix seen in full."""
    D = torch.from_numpy(numbers(7, N, M))
    units = torch.eye(N * M, dtype=torch.float64).view(N * M, N, M)
    seen, full = MatrixMeasurements(D.view(1, -1), units, N * M), AllEntries(D)
    assert seen.dilution == full.dilution
    C, F = factors(rank=K, n=N, m=M)
    for one, other in zip(seen.leading_triplets(3), full.leading_triplets(3), strict=True):
        assert_array_equal(one, other)
    assert_allclose(seen.top_singular_value(), full.top_singular_value(), rtol=1e-14)
    assert_allclose(seen.solve_left(F, 0.1), full.solve_left(F, 0.1), rtol=1e-11)
    assert_allclose(seen.solve_right(C, 0.1), full.solve_right(C, 0.1), rtol=1e-11)
    for name in ("gd", "scaled_gd", "exact_line_search", "als", "alt_gd_min", "lbfgs"):
        used, ends = loss("squared", scale=0.5, reduction="mean"), []
        for given in (Problem(seen), Problem(full)):
            *_, last = descent(
                Objective(given, used), optimizer(name), (C, F), lr=0.1, records=[0, 20]
            )
            ends.append(last)
        assert_allclose(ends[0].loss, ends[1].loss, rtol=1e-9)
        assert_allclose(product(ends[0].factors), product(ends[1].factors), rtol=1e-7, atol=1e-9)


def test_as_many_measurements_of_one_row_as_columns():
    """An array over the measurements has the shape of the matrix then."""
    A = torch.from_numpy(numbers(3, M, 1, M))
    seen = MatrixMeasurements(torch.from_numpy(numbers(4, 1, M)), A, 1.0)
    C, F = factors(rank=1, n=1, m=M)
    S = seen.pull_back(seen.residual(C, F))
    residual = A[:, 0].numpy() @ (C @ F).numpy().ravel() - seen.target.numpy().ravel()
    assert_allclose(seen.transposed_times(C, S), C.item() * residual[None] @ A[:, 0].numpy())


def test_a_shared_operator_is_not_copied():
    one, other = measure("matrices"), measure("matrices", 1)
    shared = MatrixMeasurements.stack([one, one], torch.stack)
    assert shared.A is one.A
    assert shared.target.shape == (2, 1, COUNT)
    own = MatrixMeasurements.stack([one, other], torch.stack)
    assert_array_equal(own.A, np.stack([one.A, other.A]))
    a = measure("quadratic")
    assert VectorMeasurements.stack([a, a], torch.stack).quadratic
    assert VectorMeasurements.stack([a, measure("quadratic", 1)], torch.stack).quadratic
    assert a.layout != VectorMeasurements(a.target, a.a, a.a.clone()).layout


@pytest.mark.parametrize("kind", KINDS)
def test_another_dtype(kind):
    seen = measure(kind)
    moved = seen.to(torch.float32, "cpu")
    assert {X.dtype for X in (moved.target, *moved.operator.values())} == {torch.float32}
    assert moved.layout == seen.layout
    C, F = factors(rank=K, n=seen.shape[0], m=seen.shape[1])
    assert_allclose(moved.apply(C.float(), F.float()), seen.apply(C, F), rtol=1e-3, atol=1e-4)
    assert seen.to(torch.float64, "cpu").target is seen.target


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_and_drawn(kind):
    seen = measure(kind)
    n, m = seen.shape
    kept = seen.arrays()
    assert_array_equal(kept.pop("y"), seen.target.ravel())
    names = {"matrices": ["A"], "vectors": ["a", "b"], "quadratic": ["a"]}[kind]
    assert list(kept) == names
    assert seen.with_nan().isnan().all()
    assert seen.with_nan().shape == (n, m)
    made = factors(rank=K, n=n, m=m)
    D, estimate, residual = seen.picture(made, 256)
    Z = np.einsum("inm,i->nm", explicit(seen), seen.target.numpy().ravel()) / COUNT
    if kind == "quadratic":
        Z = (Z - seen.target.numpy().mean() * np.eye(n)) / 2
    assert_allclose(D, Z, rtol=1e-12, atol=1e-14)
    assert_allclose(estimate, product(made), rtol=1e-14)
    assert_allclose(residual, estimate - D, rtol=1e-14)
    name, pictured = Problem(seen).pictured
    assert (name, pictured) == ("A*(y)", seen)
    truth = AllEntries(torch.from_numpy(numbers(0, n, m)))
    assert Problem(seen, truth).pictured == ("D*", truth)


@pytest.mark.parametrize("kind", KINDS)
def test_the_spectral_start_is_the_best_approximation_of_the_estimate(kind):
    seen = measure(kind)
    n, m = seen.shape
    C, F = spectral(scale=1.0, ratio=1.0)(Problem(seen), (n, K, m), stream("init", 0))
    D, *_ = seen.picture((C, F), 256)
    U, sigma, Vh = np.linalg.svd(D)
    assert_allclose(C @ F, U[:, :K] * sigma[:K] @ Vh[:K], rtol=1e-10, atol=1e-12)


def test_what_needs_entries_is_refused():
    objective = Objective(Problem(measure("matrices")), loss("squared"))
    made = tuple(W.abs() for W in factors(rank=K, n=N, m=M))
    with pytest.raises(Refused, match="optimizer=mu: allowed are problems whose entries are obs"):
        optimizer("mu").check(objective, made)
    with pytest.raises(Refused, match=r"rank_one_symmetric: .*; allowed are lr_unit=absolute"):
        _ = measure("quadratic").dilution


def test_least_squares_that_cannot_fit_are_refused(monkeypatch):
    objective = Objective(Problem(measure("matrices")), loss("squared"))
    made = factors(rank=K, n=N, m=M)
    for name in ("als", "alt_gd_min"):
        optimizer(name).check(objective, made)
        with monkeypatch.context() as patch:
            patch.setattr("mfgd.capacity.free_memory", lambda: 5e3)
            with pytest.raises(Refused, match=rf"^optimizer={name} at rank=2: least squares .* 0"):
                optimizer(name).check(objective, made)
