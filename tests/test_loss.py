"""ρ, ρ′ and the weights around them."""

import numpy as np
import pytest
import torch
from cases import (
    BATCHES,
    KINKED,
    LIKELIHOODS,
    LOSSES,
    PROBLEMS,
    column,
    factors,
    find_taylor_slope,
    loss,
    make_problem,
    mask_of,
    one,
    options,
    problem,
    run,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.metrics import mean_pinball_loss
from torch.nn.functional import huber_loss

from mfgd import Objective
from mfgd.loss import Loss, residual_loss
from mfgd.types import Refused

NAMES = pytest.mark.parametrize("name", LOSSES)
DECADES = np.concatenate(
    [-np.geomspace(1e-6, 1e4, 45), [-0.7, 0, 0.7], np.geomspace(1e-6, 1e4, 45)]
)


def test_every_option_is_a_case():
    assert options("loss") == {*LOSSES, *LIKELIHOODS}


@NAMES
def test_value_is_the_formula(name):
    assert_allclose(
        loss(name).rho(torch.from_numpy(DECADES)),
        LOSSES[name].reference(DECADES),
        rtol=1e-12,
        atol=1e-15,
    )


@NAMES
@BATCHES
def test_derivative_is_autograd(name, batch):
    r = torch.from_numpy(DECADES).reshape(3, 31).expand(*batch, 3, 31).clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(name).rho(r).sum(), r)
    assert_allclose(loss(name).slope(r.detach()), expected, rtol=1e-12, atol=1e-15)


@NAMES
def test_an_entry_does_not_depend_on_its_neighbours(name):
    """Some of torch's kernels, softplus and sinh among them, round the last few entries of an array
    otherwise."""
    made, r = (
        loss(name),
        torch.randn(100, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    )
    for function in (made.rho, made.slope):
        assert torch.equal(function(r), torch.stack([function(part.clone()) for part in r]))


@NAMES
@given(r=st.floats(-1e100, 1e100))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_least_at_zero(name, r):
    made = loss(name)
    values = made.rho(torch.tensor([r, 0.0], dtype=torch.float64))
    assert values[0] >= 0
    assert values[1] == 0
    assert made.slope(torch.tensor(0.0)) == 0


@NAMES
def test_curvature_is_the_second_derivative_wherever_it_is_claimed(name):
    made, r = loss(name), torch.from_numpy(DECADES)
    second = torch.func.vmap(torch.func.grad(made.slope))(r)
    constant = bool((second == second[0]).all()) and bool((second > 0).all())
    assert made.curvature == (float(second[0]) if constant else None)


@pytest.mark.parametrize("delta", [0.01, 1.0, 30.0])
def test_huber_is_torch_s(delta):
    r = torch.from_numpy(DECADES)
    expected = huber_loss(r, torch.zeros_like(r), reduction="none", delta=delta)
    assert_allclose(loss("huber", delta=delta).rho(r), expected, rtol=1e-13, atol=1e-18)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_quantile_is_scikit_learn_s(share):
    expected = [mean_pinball_loss([0.0], [r], alpha=share) for r in DECADES]
    assert_allclose(loss("quantile", share=share).rho(torch.from_numpy(DECADES)), expected)


def test_logcosh_where_cosh_does_not_overflow():
    r = np.linspace(-30, 30, 201)
    assert_allclose(
        loss("logcosh").rho(torch.from_numpy(r)), np.log(np.cosh(r)), rtol=1e-12, atol=1e-15
    )


@NAMES
@BATCHES
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("kind", PROBLEMS)
def test_objective_is_the_weighted_sum_over_observed_entries(name, batch, reduction, kind):
    given, (C, F) = problem(kind, batch), factors(batch)
    objective = Objective(given, loss(name, scale=0.3, reduction=reduction, penalty=0.2))
    mask = np.ones(given.D.shape) if mask_of(given) is None else mask_of(given).numpy()
    rho = (mask * LOSSES[name].reference((C @ F - given.D).numpy())).sum((-2, -1))
    weight = 0.3 / mask.sum((-2, -1)) if reduction == "mean" else 0.3
    squares = sum((X.numpy() ** 2).sum((-2, -1)) for X in (C, F))
    assert_allclose(objective.value((C, F)), weight * rho + 0.1 * squares, rtol=1e-13)


@NAMES
@BATCHES
@pytest.mark.parametrize("kind", ["full", "masked"])
def test_autograd_stands_in_for_a_derivative(name, batch, kind):
    given, start = problem(kind, batch), factors(batch, depth=3)
    closed = loss(name, scale=0.3, penalty=0.2)
    reduction = {"scale": 0.3, "reduction": "sum", "penalty": 0.2}
    of_residual = residual_loss(closed.rho, **reduction)
    of_prediction = Loss(closed.value, **reduction)
    expected = Objective(given, closed).gradient(start)
    for value_only in (of_residual, of_prediction):
        found = Objective(given, value_only).gradient(start)
        for G, H in zip(expected, found, strict=True):
            assert_allclose(H, G, rtol=1e-12, atol=1e-12)


@NAMES
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_column_of_hyperparameters_is_its_single_runs(name, reduction):
    whole, start = problem("masked", (3,)), factors((3,))
    example = {"scale": 0.5, "penalty": 0.1} | LOSSES[name].keys
    values = {key: (value, 2.0, 0.25) for key, value in example.items()}
    batched = Objective(
        whole, loss(name, reduction=reduction, **{key: column(*v) for key, v in values.items()})
    )
    for b in range(3):
        single = Objective(
            one(whole, b),
            loss(name, reduction=reduction, **{key: v[b] for key, v in values.items()}),
        )
        assert torch.equal(batched.value(start)[b : b + 1], single.value(run(start, b)))
        for G, H in zip(
            run(batched.gradient(start), b), single.gradient(run(start, b)), strict=True
        ):
            assert torch.equal(G, H)


@NAMES
@BATCHES
@pytest.mark.parametrize("kind", ["full", "masked"])
def test_a_residual_loss_is_a_loss_of_prediction_and_target(name, batch, kind):
    """Value, gradient and Hessian of the fused residual agree with those of the prediction
    itself."""
    given, start, turn = problem(kind, batch), factors(batch), factors(batch, seed=1)
    made = loss(name, scale=0.3, penalty=0.2)
    plain = made._replace(rho=None, slope=None, curvature=None)
    fused, unfused = Objective(given, made), Objective(given, plain)
    assert_allclose(unfused.value(start), fused.value(start), rtol=1e-13)
    for G, H in zip(unfused.gradient(start), fused.gradient(start), strict=True):
        assert_allclose(G, H, rtol=1e-12, atol=1e-12)
    for G, H in zip(unfused.hessian(start, turn), fused.hessian(start, turn), strict=True):
        assert_allclose(G, H, rtol=1e-12, atol=1e-12)


def poisson() -> Loss:
    """p − t log p, the negative log-likelihood of a count t of mean p: infinite at the prediction
    0."""
    return Loss(lambda p, t: p - torch.xlogy(t, p), lambda p, t: 1 - t / p)


@BATCHES
@pytest.mark.parametrize("autograd", [False, True], ids=["derivative", "autograd"])
@pytest.mark.parametrize("kind", ["full", "masked"])
def test_a_loss_of_prediction_and_target(batch, autograd, kind):
    whole = problem(kind, batch)
    given = make_problem(whole.D.abs(), mask_of(whole))
    C, F = (W.abs() for W in factors(batch))
    made = poisson()._replace(derivative=None) if autograd else poisson()
    objective = Objective(given, made)
    mask = np.ones(given.D.shape) if kind == "full" else mask_of(given).numpy()
    P, D = (C @ F).numpy(), given.D.numpy()
    values = P - D * np.log(P)
    assert_allclose(objective.value((C, F)), (mask * values).sum((-2, -1)), rtol=1e-13)
    S = mask * (1 - D / P)
    G, H = objective.gradient((C, F))
    assert_allclose(G, S @ F.mT.numpy(), rtol=1e-12, atol=1e-12)
    assert_allclose(H, C.mT.numpy() @ S, rtol=1e-12, atol=1e-12)


@BATCHES
def test_a_loss_need_not_be_least_at_zero(batch):
    """The mask is applied by the observation: an entry that is not observed adds no ρ(0)."""
    given, (C, F) = problem("masked", batch), factors(batch)
    made = residual_loss(lambda r: (r - 1).square(), lambda r: 2 * (r - 1))
    objective = Objective(given, made)
    mask, R = mask_of(given).numpy(), (C @ F - given.D).numpy()
    expected = (mask * (R - 1) ** 2).sum((-2, -1))
    assert_allclose(objective.value((C, F)), expected, rtol=1e-13)
    S = 2 * mask * (R - 1)
    G, H = objective.gradient((C, F))
    assert_allclose(G, S @ F.mT.numpy(), rtol=1e-12, atol=1e-12)
    assert_allclose(H, C.mT.numpy() @ S, rtol=1e-12, atol=1e-12)


def test_a_loss_of_the_residual_alone_is_told_where_to_go():
    with pytest.raises(
        Refused, match=r"takes a prediction and a target; mfgd\.loss\.residual_loss"
    ):
        Objective(problem("full"), Loss(lambda r: r.square()))


@NAMES
@given(seed=st.integers(0, 1000), depth=st.integers(2, 4), kind=st.sampled_from(sorted(PROBLEMS)))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_taylor_error_of_the_gradient_has_slope_two(name, seed, depth, kind):
    objective = Objective(problem(kind), loss(name, scale=0.5, reduction="mean", penalty=0.1))
    start, direction = factors(depth=depth, seed=seed), factors(depth=depth, seed=seed + 5000)
    R = objective.residual(start).abs()
    # Where a kink is crossed there is no Taylor expansion to speak of.
    assume(name not in KINKED or R[R > 0].min() > 0.05)
    assert find_taylor_slope(objective, start, direction) > 1.9
