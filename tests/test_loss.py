"""ρ, ρ′ and the weights around them."""

import numpy as np
import pytest
import torch
from cases import BATCHES, LOSSES, PROBLEMS, column, factors, loss, one, options, problem, run
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch.nn.functional import huber_loss

import mfgd
from mfgd import Objective

NAMES = pytest.mark.parametrize("name", LOSSES)
DECADES = np.concatenate(
    [-np.geomspace(1e-6, 1e4, 45), [-0.7, 0, 0.7], np.geomspace(1e-6, 1e4, 45)]
)


def test_every_option_is_a_case():
    assert options("loss") == set(LOSSES)


@NAMES
def test_value_is_the_formula(name):
    assert_allclose(
        loss(name).value(torch.from_numpy(DECADES)),
        LOSSES[name].reference(DECADES),
        rtol=1e-12,
        atol=1e-15,
    )


@NAMES
@BATCHES
def test_derivative_is_autograd(name, batch):
    r = torch.from_numpy(DECADES).reshape(3, 31).expand(*batch, 3, 31).clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(name).value(r).sum(), r)
    assert_allclose(loss(name).derivative(r.detach()), expected, rtol=1e-12, atol=1e-15)


@NAMES
def test_an_entry_does_not_depend_on_its_neighbours(name):
    """Some of torch's kernels, softplus and sinh among them, round the last few entries of an array otherwise."""
    made, r = (
        loss(name),
        torch.randn(100, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    )
    for function in (made.value, made.derivative):
        assert torch.equal(function(r), torch.stack([function(part.clone()) for part in r]))


@NAMES
@given(r=st.floats(-1e100, 1e100))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_least_at_zero(name, r):
    made = loss(name)
    values = made.value(torch.tensor([r, 0.0], dtype=torch.float64))
    assert values[0] >= 0
    assert values[1] == 0
    assert made.derivative(torch.tensor(0.0)) == 0


@NAMES
def test_curvature_is_the_second_derivative_wherever_it_is_claimed(name):
    made, r = loss(name), torch.from_numpy(DECADES)
    second = torch.func.vmap(torch.func.grad(made.derivative))(r)
    constant = bool((second == second[0]).all()) and bool((second > 0).all())
    assert made.curvature == (float(second[0]) if constant else None)


@pytest.mark.parametrize("delta", [0.01, 1.0, 30.0])
def test_huber_is_torch_s(delta):
    r = torch.from_numpy(DECADES)
    expected = huber_loss(r, torch.zeros_like(r), reduction="none", delta=delta)
    assert_allclose(loss("huber", delta=delta).value(r), expected, rtol=1e-13, atol=1e-18)


def test_logcosh_where_cosh_does_not_overflow():
    r = np.linspace(-30, 30, 201)
    assert_allclose(
        loss("logcosh").value(torch.from_numpy(r)), np.log(np.cosh(r)), rtol=1e-12, atol=1e-15
    )


@NAMES
@BATCHES
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("kind", PROBLEMS)
def test_objective_is_the_weighted_sum_over_observed_entries(name, batch, reduction, kind):
    given, (C, F) = problem(kind, batch), factors(batch)
    objective = Objective(given, loss(name, scale=0.3, reduction=reduction, penalty=0.2))
    mask = np.ones(given.D.shape) if given.mask is None else given.mask.numpy()
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
    value_only = closed._replace(derivative=None, curvature=None)
    for G, H in zip(
        Objective(given, closed).gradient(start),
        Objective(given, value_only).gradient(start),
        strict=True,
    ):
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


def test_a_loss_that_is_not_least_at_zero_is_an_error():
    with pytest.raises(ValueError, match="0 at 0"):
        Objective(
            problem("masked"), mfgd.loss.Loss(lambda r: (r - 1).square(), lambda r: 2 * (r - 1))
        )


@NAMES
@given(seed=st.integers(0, 1000), depth=st.integers(2, 4), kind=st.sampled_from(sorted(PROBLEMS)))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_taylor_error_of_the_gradient_has_slope_two(name, seed, depth, kind):
    objective = Objective(problem(kind), loss(name, scale=0.5, reduction="mean", penalty=0.1))
    start, direction = factors(depth=depth, seed=seed), factors(depth=depth, seed=seed + 5000)
    steps = np.geomspace(1e-5, 1e-3, 9)
    R = objective.residual(start).abs()
    # Where a kink is crossed there is no Taylor expansion to speak of.
    assume(name != "absolute" or R[R > 0].min() > 0.05)
    slope = sum((G * V).sum() for G, V in zip(objective.gradient(start), direction, strict=True))
    moved = [tuple(W + t * V for W, V in zip(start, direction, strict=True)) for t in steps]
    errors = [
        abs(objective.value(W) - objective.value(start) - t * slope)
        for t, W in zip(steps, moved, strict=True)
    ]
    assert np.polyfit(np.log(steps), np.log(errors), 1)[0] > 1.9
