"""Product, objective, gradient, the loop, and the published results that they reproduce."""

from itertools import pairwise

import cases
import numpy as np
import pytest
import torch
from cases import (
    BATCHES,
    DEPTHS,
    LOSSES,
    OBSERVATION,
    OPTIMIZERS,
    PROBLEMS,
    QUADRATIC,
    RISING,
    M,
    N,
    column,
    factors,
    loss,
    make_problem,
    mask_of,
    one,
    problem,
    run,
)
from numpy.testing import assert_allclose
from sklearn.datasets import load_digits

import mfgd
from mfgd import Objective, lanczos, metrics, theory
from mfgd.descent import Outcome, descent
from mfgd.kernel import product

HALF = loss("squared", scale=0.5)
DESCENTS = OPTIMIZERS.keys() - QUADRATIC
BY_ENTRY = {"adam", "rmsprop", "sign"}
"""The optimizers that go entry by entry."""
GD = mfgd.optimizer.gd(alternating=False)


def states(objective, start, lr, records, optimizer=GD, **keys):
    return list(descent(objective, optimizer, start, lr=lr, records=records, **keys))


def equal(left, right) -> bool:
    return all(torch.equal(X, Y) for X, Y in zip(left, right, strict=True))


# Objective


@BATCHES
@DEPTHS
def test_product(batch, depth):
    made = factors(batch, depth)
    runs = zip(*(W.reshape(-1, *W.shape[-2:]).numpy() for W in made), strict=True)
    expected = np.stack([np.linalg.multi_dot(Ws) for Ws in runs])
    assert_allclose(product(made), expected.reshape(*batch, N, M), rtol=1e-12)


@BATCHES
@DEPTHS
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize(
    "keys", [{}, {"scale": 0.5, "reduction": "mean", "penalty": 0.3}], ids=["plain", "weighted"]
)
def test_gradient_is_autograd(batch, depth, name, kind, keys):
    objective, start = Objective(problem(kind, batch), loss(name, **keys)), factors(batch, depth)
    expected = torch.func.grad(lambda Ws: objective.value(Ws).sum())(start)
    for G, H in zip(objective.gradient(start), expected, strict=True):
        assert_allclose(G, H, rtol=1e-11, atol=1e-11)


@BATCHES
@DEPTHS
@pytest.mark.parametrize("name", LOSSES)
def test_what_lies_under_the_mask_is_never_seen(batch, depth, name):
    given, start = problem("noisy", batch), factors(batch, depth)
    mask = mask_of(given)
    other = make_problem(given.D + 1e6 * (1 - mask), mask)
    ours, theirs = (Objective(p, loss(name, reduction="mean")) for p in (given, other))
    assert torch.equal(theirs.value(start), ours.value(start))
    assert equal(theirs.gradient(start), ours.gradient(start))


@BATCHES
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("optimizer", sorted(DESCENTS - BY_ENTRY - RISING))
def test_descent_commutes_with_a_rotation_of_the_factors(batch, name, optimizer):
    objective, (C, F) = Objective(problem("noisy", batch), loss(name, penalty=0.1)), factors(batch)
    Q = torch.linalg.qr(factors(seed=1, n=3, m=3)[0]).Q
    method = cases.optimizer(optimizer)
    plain, turned = (
        states(objective, W, 0.01, range(31), method) for W in ((C, F), (C @ Q, Q.mT @ F))
    )
    for here, there in zip(plain, turned, strict=True):
        assert_allclose(product(there.factors), product(here.factors), rtol=1e-9, atol=1e-9)


# The loop


@BATCHES
def test_one_step_moves_both_factors_at_once(batch):
    given, start = problem("masked", batch), factors(batch)
    C, F, D, mask = (X.numpy() for X in (*start, given.D, mask_of(given)))
    R = mask * (C @ F - D)
    (state,) = states(Objective(given, loss("squared")), start, 0.05, [1])
    assert_allclose(state.factors[0], C - 0.1 * R @ F.swapaxes(-1, -2), rtol=1e-13)
    assert_allclose(state.factors[1], F - 0.1 * C.swapaxes(-1, -2) @ R, rtol=1e-13)


@BATCHES
def test_records_are_where_they_are_asked_for_and_move_nothing(batch):
    objective, start = Objective(problem("full", batch), HALF), factors(batch)
    every, some = (
        states(objective, start, 0.02, records) for records in (range(21), [0, 3, 17, 20])
    )
    assert [state.step for state in some] == [0, 3, 17, 20]
    assert all(equal(state.factors, every[state.step].factors) for state in some)
    assert all(torch.equal(state.loss, objective.value(state.factors)) for state in every)
    assert equal(every[0].factors, start)
    assert (every[-2].outcome == Outcome.RUNNING).all()
    assert (every[-1].outcome == Outcome.BUDGET).all()


@BATCHES
@pytest.mark.parametrize("optimizer", sorted(DESCENTS))
def test_the_factors_given_stay_as_they_are(batch, optimizer):
    start = factors(batch)
    kept = [W.clone() for W in start]
    method = cases.optimizer(optimizer)
    states(
        Objective(problem("masked", batch), loss("squared", scale=0.5, penalty=0.1)),
        start,
        0.02,
        [0, 5],
        method,
    )
    assert equal(start, kept)


@BATCHES
def test_a_list_of_rates_is_for_the_first_steps_and_its_last_one_holds(batch):
    objective, start = Objective(problem("full", batch), HALF), factors(batch)
    (first,) = states(objective, start, 0.05, [1])
    (second,) = states(objective, first.factors, 0.001, [1])
    (last,) = states(objective, second.factors, 0.02, [8])
    (whole,) = states(objective, start, [0.05, 0.001, 0.02], [10])
    assert equal(whole.factors, last.factors)


@pytest.mark.parametrize("optimizer", sorted(DESCENTS))
@pytest.mark.parametrize("name", LOSSES)
@DEPTHS
def test_a_batch_is_its_single_runs_bit_for_bit(optimizer, name, depth):
    given, start, rates = problem("noisy", (3,)), factors((3,), depth), (0.0002, 0.001, 0.0004)
    method = cases.optimizer(optimizer)
    (whole,) = states(Objective(given, loss(name)), start, column(*rates), [20], method)
    for b, lr in enumerate(rates):
        (single,) = states(
            Objective(one(given, b), loss(name)), run(start, b), column(lr), [20], method
        )
        assert equal(run(whole.factors, b), single.factors)
        assert whole.loss[b] == single.loss[0]
        if optimizer in RISING:
            continue
        alone = make_problem(given.D[b], mask_of(given)[b])
        (plain,) = states(
            Objective(alone, loss(name)), tuple(W[b] for W in start), lr, [20], method
        )
        assert_allclose(plain.loss, whole.loss[b], rtol=1e-11)


@pytest.mark.parametrize(
    "divergence", [float("inf"), 1e3, torch.tensor([1e6, 10.0, 1e6], dtype=torch.float64)]
)
def test_a_diverged_run_is_frozen_and_leaves_its_neighbours_alone(divergence):
    objective, start, records = (
        Objective(problem("full", (3,)), HALF),
        factors((3,)),
        [0, 2, 5, 9, 30, 60],
    )
    wild = states(objective, start, column(0.01, 5.0, 0.02), records, divergence=divergence)
    tame = states(objective, start, column(0.01, 0.015, 0.02), records, divergence=divergence)
    assert wild[-1].outcome.tolist() == [Outcome.BUDGET, Outcome.DIVERGED, Outcome.BUDGET]
    for here, there in zip(wild, tame, strict=True):
        for b in (0, 2):
            assert equal(run(here.factors, b), run(there.factors, b))
            assert here.loss[b] == there.loss[b]
    limits = torch.as_tensor(divergence).expand(3)
    over = [
        not state.loss[1].isfinite() or bool(state.loss[1] > limits[1] * wild[0].loss[1])
        for state in wild
    ]
    end = over.index(True)
    assert 0 < end < len(wild) - 1
    assert [int(state.outcome[1]) for state in wild] == [Outcome.RUNNING] * end + [
        Outcome.DIVERGED
    ] * (len(wild) - end)
    # NaN compares unequal to itself, hence NumPy's comparison.
    for state in wild[end:]:
        for W, V in zip(state.factors, wild[end].factors, strict=True):
            np.testing.assert_array_equal(W[1], V[1])


@pytest.mark.parametrize("optimizer", sorted(DESCENTS))
def test_a_converged_run_is_frozen_while_others_go_on(optimizer):
    objective, start = Objective(problem("exact", (3,)), HALF), factors((3,))
    tolerance = torch.tensor([1.0, 1e-300, 0.3], dtype=torch.float64)
    method = cases.optimizer(optimizer)
    records, rate = range(0, 201, 10), 0.5 if optimizer == "polyak" else 0.02
    free = states(objective, start, rate, records, method)
    held = states(
        objective, start, rate, records, method, reached=lambda state: state.loss <= tolerance
    )
    assert held[-1].outcome.tolist() == [Outcome.CONVERGED, Outcome.BUDGET, Outcome.CONVERGED]
    for b in range(3):
        end = next(
            (i for i, state in enumerate(free) if state.loss[b] <= tolerance[b]), len(free) - 1
        )
        for i, state in enumerate(held):
            assert equal(run(state.factors, b), run(free[min(i, end)].factors, b))
    assert len({len(held), len(free)}) == 1


def test_a_run_on_a_plateau_ends_near_the_best_loss():
    """Noise keeps the loss above 0: the best loss is that of Eckart and Young."""
    D = problem("full", (2,)).D
    objective, start = Objective(make_problem(D), HALF), factors((2,))
    records = range(0, 20_001, 100)
    *_, last = states(objective, start, 0.1, records, patience=500)
    assert last.outcome.tolist() == [Outcome.PLATEAU] * 2
    assert 500 <= last.step < 20_000
    best = 0.5 * (np.linalg.svd(D.numpy(), compute_uv=False)[:, 3:] ** 2).sum(-1)
    assert_allclose(last.loss, best, rtol=1e-3)
    assert (last.loss.numpy() >= best * (1 - 1e-12)).all()


def test_a_plateau_is_judged_over_the_steps_of_patience_or_since_the_last_record():
    objective, start = Objective(problem("full"), HALF), factors()
    losses = {state.step: float(state.loss) for state in states(objective, start, 0.1, range(400))}
    for patience in (1, 7, 60):
        *_, last = states(objective, start, 0.1, range(400), patience=patience)
        flat = [
            step
            for step in range(patience, 400)
            if losses[step] >= (1 - 1e-4) * losses[step - patience]
        ]
        assert last.step == (flat[0] if flat else 399)
    # Records further apart than the patience: the last record counts.
    *_, last = states(objective, start, 0.1, range(0, 4000, 100), patience=1)
    wide = {
        state.step: float(state.loss)
        for state in states(objective, start, 0.1, range(0, 4000, 100))
    }
    flat = [step for step in range(100, 4000, 100) if wide[step] >= (1 - 1e-4) * wide[step - 100]]
    assert last.step == flat[0]


def test_convergence_and_divergence_come_before_a_plateau():
    objective, start = Objective(problem("full"), HALF), factors()
    *_, last = states(
        objective, start, 1e-9, range(10), patience=1, reached=lambda state: state.loss > 0
    )
    assert last.outcome == Outcome.CONVERGED
    *_, last = states(objective, start, 1e-9, range(10), patience=1, divergence=0.5)
    assert last.outcome == Outcome.DIVERGED


@BATCHES
def test_the_stream_ends_when_all_runs_have(batch):
    objective, start = Objective(problem("exact", batch), HALF), factors(batch)
    done = states(
        objective, start, 0.02, range(0, 1000, 10), reached=lambda state: state.loss < 0.5
    )
    assert done[-1].step < 990
    assert (done[-1].outcome == Outcome.CONVERGED).all()
    assert (done[-1].loss < 0.5).all()
    assert (done[-2].loss >= 0.5).any()
    diverged = states(objective, start, 50.0, range(0, 1000, 10))
    assert diverged[-1].step < 990
    assert (diverged[-1].outcome == Outcome.DIVERGED).all()


@BATCHES
def test_a_start_that_is_not_finite_has_diverged(batch):
    start = tuple(W * torch.nan for W in factors(batch))
    # Not even a stopping rule that is content with anything makes it converged.
    keys = {"reached": lambda state: torch.ones_like(state.loss, dtype=torch.bool)}
    (only,) = states(Objective(problem("full", batch), HALF), start, 0.1, [0, 10], **keys)
    assert (only.step, set(only.outcome.flatten().tolist())) == (0, {Outcome.DIVERGED})


@BATCHES
@pytest.mark.parametrize("name", LOSSES)
def test_single_precision_stays_single_precision_and_its_loss_is_double(batch, name):
    given = problem("noisy", batch).to(torch.float32, "cpu")
    start = tuple(W.float() for W in factors(batch))
    rates = torch.full((*batch, 1, 1), 0.01) if batch else 0.01
    state = states(Objective(given, loss(name, penalty=0.1)), start, rates, [0, 20])[-1]
    assert {W.dtype for W in state.factors} == {torch.float32}
    assert state.loss.dtype == torch.float64
    double = states(
        Objective(problem("noisy", batch), loss(name, penalty=0.1)), factors(batch), 0.01, [0, 20]
    )[-1]
    assert_allclose(state.loss, double.loss, rtol=1e-4)


# Published results


def target(sigma, n: int, m: int, seed: int = 0):
    """U, V and D = U diag(σ) Vᵀ, drawn by NumPy."""
    rng = np.random.default_rng(seed)
    U, V = (
        torch.from_numpy(np.linalg.qr(rng.normal(size=(rows, len(sigma))))[0]) for rows in (n, m)
    )
    return U, V, (U * torch.tensor(sigma, dtype=torch.float64)) @ V.mT


def normal(n: int, k: int, m: int, seed: int = 0):
    return factors(rank=k, seed=seed, n=n, m=m)


def test_eckart_young():
    sigma = 10 * 0.8 ** np.arange(80)
    D = target(sigma, 100, 80)[2]
    least = 0.5 * (sigma[5:] ** 2).sum()
    scales, rates = (column(*x.flatten()) for x in np.meshgrid([1e-1, 1e-3, 1e-6], [0.05, 0.09]))
    start = tuple(scales * W for W in normal(100, 5, 80))
    whole = states(Objective(mfgd.problem.from_matrix(D), HALF), start, rates, range(0, 1001, 10))
    excess = torch.stack([state.loss for state in whole]) / least - 1
    assert (excess[-1] < 1e-8).all()
    assert (excess > -1e-12).all()


def test_eckart_young_on_digits():
    D = load_digits().data
    sigma = np.linalg.svd(D, compute_uv=False)
    start = tuple(0.01 * W for W in normal(1797, 10, 64))
    *_, state = descent(
        Objective(mfgd.problem.digits(**OBSERVATION), HALF),
        GD,
        start,
        lr=0.9 / float(sigma[0]),
        records=range(0, 601, 10),
    )
    assert_allclose(state.loss, 0.5 * (sigma[10:] ** 2).sum(), rtol=1e-6)
    assert_allclose(
        metrics.relative_error(mfgd.problem.digits(**OBSERVATION), state.factors),
        0.28922,
        atol=1e-5,
    )


@pytest.fixture(scope="module")
def saxe2014() -> dict[float, np.ndarray]:
    """lr → deviation from theory over s, (records, mode), and what is off the modes."""
    s, a = np.array([4, 2, 1, 0.5]), 1e-3
    U, V, D = target(s, 30, 20)
    deviation = {}
    for lr, every in ((1e-2, 1), (5e-3, 2), (2.5e-3, 4), (1e-3, 10)):
        found = states(
            Objective(mfgd.problem.from_matrix(D), HALF),
            (a**0.5 * U, a**0.5 * V.mT),
            lr,
            range(0, 800 * every + 1, every),
        )
        modes = torch.stack([U.mT @ product(state.factors) @ V for state in found])
        rest = found[-1].factors[0] @ found[-1].factors[1] - U @ modes[-1] @ V.mT
        off = modes - torch.diag_embed(modes.diagonal(dim1=-2, dim2=-1))
        t = lr * np.array([state.step for state in found])[:, None]
        theory = s * np.exp(2 * s * t) / (np.exp(2 * s * t) - 1 + s / a)
        deviation[lr] = (modes.diagonal(dim1=-2, dim2=-1).numpy() - theory) / s
        assert max(off.abs().max(), rest.abs().max()) < 1e-12
    return {lr: float(abs(x).max()) for lr, x in deviation.items()}


def test_saxe2014_deviation(saxe2014):
    assert saxe2014[1e-3] <= 5e-3
    assert_allclose(
        [saxe2014[lr] for lr in (1e-2, 5e-3, 2.5e-3, 1e-3)],
        [3.125e-2, 1.562e-2, 7.81e-3, 3.12e-3],
        rtol=5e-3,
    )


def test_saxe2014_is_of_first_order_in_the_rate(saxe2014):
    assert_allclose(
        [saxe2014[a] / saxe2014[b] for a, b in pairwise((1e-2, 5e-3, 2.5e-3))], 2.0, atol=0.05
    )


@pytest.mark.parametrize("lr", [0.04, 0.0025])
def test_du2018_one_step_identity(lr):
    objective = Objective(
        mfgd.problem.from_matrix(target([1.0, 0.8, 0.6, 0.4, 0.2], 40, 30)[2]), HALF
    )
    C, F = normal(40, 5, 30)
    start = (0.5 * C, 0.1 * F)
    G, H = objective.gradient(start)
    (state,) = states(objective, start, lr, [1])
    (C, F), (C1, F1) = start, state.factors
    change = (C1.mT @ C1 - F1 @ F1.mT) - (C.mT @ C - F @ F.mT)
    assert_allclose(change, lr**2 * (G.mT @ G - H @ H.mT), atol=1e-12)


def test_du2018_drift_halves_with_the_rate():
    objective = Objective(
        mfgd.problem.from_matrix(target([1.0, 0.8, 0.6, 0.4, 0.2], 40, 30)[2]), HALF
    )
    C, F = normal(40, 5, 30)
    start = (0.5 * C, 0.1 * F)
    drift = []
    for lr in (0.02, 0.01, 0.005):
        (state,) = states(objective, start, lr, [round(40 / lr)])
        imbalance = [W[0].mT @ W[0] - W[1] @ W[1].mT for W in (start, state.factors)]
        drift.append(float((imbalance[1] - imbalance[0]).norm() / imbalance[0].norm()))
    ratios = np.array([a / b for a, b in pairwise(drift)])
    assert ((ratios > 1.9) & (ratios < 2.3)).all()


@pytest.mark.parametrize("k", [5, 20])
def test_srebro(k):
    sigma = 10 * 0.8 ** np.arange(40)
    given, penalized = (
        mfgd.problem.from_matrix(target(sigma, 60, 40)[2]),
        loss("squared", scale=0.5, penalty=2.0),
    )
    (state,) = states(
        Objective(given, penalized), tuple(0.1 * W for W in normal(60, k, 40)), 0.04, [6000]
    )
    shrunk = np.maximum(sigma - 2, 0)[:k]
    found = np.linalg.svd(product(state.factors).numpy(), compute_uv=False)
    assert_allclose(found[:k], shrunk, atol=1e-8)
    assert_allclose(sum(W.square().sum() for W in state.factors) / 2, shrunk.sum(), rtol=1e-8)
    assert_allclose(theory.optimum(given, penalized, k), state.loss, rtol=1e-10)


def test_edge_of_stability():
    s = torch.tensor([1.0, 0.7, 0.4, 0.2], dtype=torch.float64)
    U, V, D = target(s.tolist(), 60, 50)
    objective = Objective(mfgd.problem.from_matrix(D), HALF)
    optimum = (U * s.sqrt(), (V * s.sqrt()).mT)
    assert_allclose(lanczos.sharpness(objective, optimum), 2.0, atol=1e-6)
    start = tuple(
        (W + 1e-3 * X).expand(3, *W.shape) for W, X in zip(optimum, normal(60, 4, 50), strict=True)
    )
    last = states(objective, start, column(0.99, 1.01, 1.3), [0, 2000, 4000], divergence=1e6)[-1]
    assert last.loss[0] < 1e-20
    assert last.loss[1] > 1e-8
    assert last.outcome.tolist() == [Outcome.BUDGET, Outcome.BUDGET, Outcome.DIVERGED]


def test_an_outcome_has_a_label_and_a_sentence():
    labels = ["running", "converged", "budget", "diverged", "undefined", "plateau"]
    assert [outcome.label for outcome in Outcome] == labels
    assert all(outcome.sentence.endswith(".") for outcome in Outcome)
    assert len({outcome.sentence for outcome in Outcome}) == len(Outcome)
