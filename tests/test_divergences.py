"""Losses of prediction and target: values, slopes, domains, and multiplicative updates of them."""

import warnings

import numpy as np
import pytest
import torch
from cases import (
    BATCHES,
    DEPTHS,
    LIKELIHOODS,
    OBSERVATION,
    RANK,
    check_descends_to_stationary_point,
    column,
    factors,
    find_taylor_slope,
    loss,
    make_problem,
    mask_of,
    one,
    problem,
    run,
    solve,
)
from numpy.testing import assert_allclose
from scipy import integrate, special
from sklearn.decomposition import NMF
from sklearn.decomposition._nmf import _beta_divergence
from test_config import composed
from torch.nn.functional import binary_cross_entropy_with_logits, poisson_nll_loss

import mfgd
from mfgd import Objective, plan, theory
from mfgd.batch import Batch
from mfgd.descent import Outcome, descent
from mfgd.divergences import beta_divergence, beta_divergence_slope, kullback_leibler
from mfgd.kernel import product
from mfgd.sparse import ListedEntries
from mfgd.target import Problem
from mfgd.types import Refused

NAMES = pytest.mark.parametrize("name", LIKELIHOODS)
CONFINED = {"kullback_leibler", "beta"}
"""The losses of positive predictions."""
BETAS = [-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0]


def sample(name: str, shape: tuple[int, ...] = (41, 37), seed: int = 0):
    """Predictions and targets from far below to far above each other."""
    draw = np.random.default_rng(seed)
    p, t = draw.normal(size=shape) * 4, np.exp(draw.normal(size=shape) * 2)
    if name in CONFINED:
        p = np.exp(p)
    if name == "logistic":
        t = draw.choice([-1.0, 1.0], shape)
    if name in ("poisson", "kullback_leibler"):
        t = np.where(draw.random(shape) < 0.3, 0.0, np.ceil(t))
    return torch.from_numpy(p), torch.from_numpy(t)


def fitting(name: str, kind: str, batch: tuple[int, ...] = ()):
    """A problem whose targets fit the loss, and a start inside of its domain."""
    given = problem(kind, batch)
    D = given.D.sign() + (given.D == 0) if name == "logistic" else 5 * given.D.abs() + 0.1
    mask = mask_of(given)
    if mask is not None:
        D = D * mask
    start = factors(batch)
    return make_problem(D, mask), tuple(W.abs() for W in start) if name in CONFINED else start


@NAMES
def test_value_is_scipy_s(name):
    p, t = sample(name)
    expected = LIKELIHOODS[name].reference(p.numpy(), t.numpy())
    assert_allclose(loss(name).value(p, t), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ["poisson", "kullback_leibler", "beta"])
@pytest.mark.parametrize("gap", [1e-12, 1e-7, 1e-3, 0.25, 0.35])
def test_value_near_its_minimum_keeps_its_digits(name, gap):
    """SciPy's own formulas lose theirs there; the integral of the slope does not."""
    t = 3.0
    p = t * (1 + gap)
    at, end = (np.log(t), np.log1p(gap)) if name == "poisson" else (t, p - t)
    slope = {
        "poisson": lambda u: t * np.expm1(u),
        "kullback_leibler": lambda u: u / (t + u),
        "beta": lambda u: u / (t + u) ** 2,
    }[name]
    expected, _ = integrate.quad(slope, 0, end, epsabs=0, epsrel=1e-13)
    found = loss(name).value(
        torch.tensor([at + end], dtype=torch.float64), torch.tensor([t], dtype=torch.float64)
    )
    rounding = 4e-16 * max(1, abs(at)) / abs(end)  # of the prediction itself
    assert_allclose(found, [expected], rtol=1e-12 + 3 * rounding)


def test_logistic_is_torch_s():
    p, t = sample("logistic")
    expected = binary_cross_entropy_with_logits(p, (t + 1) / 2, reduction="none")
    assert_allclose(
        loss("logistic").value(p, t), expected, rtol=1e-13, atol=1e-14
    )  # torch cancels x


def test_poisson_is_torch_s_up_to_a_constant():
    p, t = sample("poisson")
    expected = poisson_nll_loss(p, t, log_input=True, reduction="none")
    constant = special.xlogy(t.numpy(), t.numpy()) - t.numpy()
    found = loss("poisson").value(p, t).numpy()
    assert_allclose(found - constant, expected, rtol=1e-11, atol=1e-11)
    rate = poisson_nll_loss(p.exp(), t, log_input=False, eps=0.0, reduction="none")
    found = loss("kullback_leibler").value(p.exp(), t).numpy()
    assert_allclose(found - constant, rate, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("beta", BETAS)
def test_beta_divergence_is_scikit_learn_s(beta):
    p, t = sample("beta")
    row = [np.ones((1, 1)), p.numpy().reshape(1, -1)]  # a product that is the predictions
    expected = _beta_divergence(t.numpy().reshape(1, -1), *row, beta)
    assert_allclose(beta_divergence(beta)(p, t).sum(), expected, rtol=1e-11)


@pytest.mark.parametrize("beta", BETAS)
def test_slope_of_the_beta_divergence_is_its_integral(beta):
    t, ends = 0.7, [0.2, 0.69, 3.0]
    target = torch.tensor([t], dtype=torch.float64)

    def slope(u: np.ndarray) -> np.ndarray:
        return beta_divergence_slope(beta)(torch.from_numpy(u), target).numpy()

    expected = [integrate.fixed_quad(slope, t, p, n=60)[0] for p in ends]
    found = beta_divergence(beta)(torch.tensor(ends, dtype=torch.float64), target)
    assert_allclose(found, expected, rtol=1e-10)


@NAMES
@BATCHES
def test_derivative_is_autograd(name, batch):
    p, t = sample(name, (*batch, 31, 5))
    p.requires_grad_()
    made = loss(name)
    (expected,) = torch.autograd.grad(made.value(p, t).sum(), p)
    assert_allclose(made.derivative(p.detach(), t), expected, rtol=1e-10, atol=1e-13)


@NAMES
@pytest.mark.parametrize("beta", BETAS)
def test_an_entry_does_not_depend_on_its_neighbours(name, beta):
    made = loss(name, **({"beta": beta} if name == "beta" else {}))
    p, t = sample(name, (100, 7, 5))
    for function in (made.value, made.derivative):
        parts = [function(*(X.clone() for X in pair)) for pair in zip(p, t, strict=True)]
        assert torch.equal(function(p, t), torch.stack(parts))
        side_by_side = [X.movedim(0, -1).contiguous().movedim(-1, 0) for X in (p, t)]
        assert torch.equal(function(*side_by_side), torch.stack(parts))


@NAMES
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("kind", ["full", "masked"])
@BATCHES
def test_objective_is_the_weighted_sum_over_observed_entries(name, reduction, kind, batch):
    given, start = fitting(name, kind, batch)
    objective = Objective(given, loss(name, scale=0.3, reduction=reduction, penalty=0.2))
    mask = np.ones(given.D.shape) if mask_of(given) is None else mask_of(given).numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = LIKELIHOODS[name].reference(product(start).numpy(), given.D.numpy())
    rho = np.where(mask == 1, rho, 0).sum((-2, -1))
    weight = 0.3 / mask.sum((-2, -1)) if reduction == "mean" else 0.3
    squares = sum((W.numpy() ** 2).sum((-2, -1)) for W in start)
    assert_allclose(objective.value(start), weight * rho + 0.1 * squares, rtol=1e-12)


@NAMES
@DEPTHS
@BATCHES
@pytest.mark.parametrize("kind", ["full", "masked"])
def test_gradient_and_hessian_are_autograd_s(name, depth, batch, kind):
    given, _ = fitting(name, kind, batch)
    start, turn = factors(batch, depth), factors(batch, depth, seed=1)
    if name in CONFINED:
        start = tuple(W.abs() for W in start)
    objective = Objective(given, loss(name, scale=0.5, penalty=0.3))
    found = torch.func.jvp(torch.func.grad(lambda Ws: objective.value(Ws).sum()), (start,), (turn,))
    for ours, theirs in zip(
        (objective.gradient(start), objective.hessian(start, turn)), found, strict=True
    ):
        for G, H in zip(ours, theirs, strict=True):
            assert_allclose(G, H, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("beta", [(0.0, 1.0, 2.0), (0.5, 1.0, 3.0), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("kind", ["full", "masked"])
def test_a_column_of_betas_is_its_single_runs(beta, kind):
    given, start = fitting("beta", kind, (3,))
    batched = Objective(given, loss("beta", beta=column(*beta)))
    steps = mfgd.optimizer.mu().step
    together, _ = steps(batched, start, None, 1.0)
    for b in range(3):
        single = Objective(one(given, b), loss("beta", beta=beta[b]))
        assert torch.equal(batched.value(start)[b : b + 1], single.value(run(start, b)))
        alone, _ = steps(single, run(start, b), None, 1.0)
        pairs = (
            (run(batched.gradient(start), b), single.gradient(run(start, b))),
            (run(together, b), alone),
        )
        for ours, theirs in pairs:
            for G, H in zip(ours, theirs, strict=True):
                assert torch.equal(G, H)


@NAMES
@pytest.mark.parametrize("kind", ["full", "masked"])
def test_taylor_error_of_the_gradient_has_slope_two(name, kind):
    given, start = fitting(name, kind)
    direction = factors(seed=9)
    objective = Objective(given, loss(name, reduction="mean", penalty=0.1))
    assert find_taylor_slope(objective, start, direction) > 1.9


@NAMES
def test_listed_entries_give_what_a_mask_gives(name):
    given, start = fitting(name, "masked")
    listed = Problem(ListedEntries(given.observation.with_nan().nan_to_num().to_sparse_csr()))
    dense, sparse = (Objective(p, loss(name, penalty=0.1)) for p in (given, listed))
    assert_allclose(sparse.value(start), dense.value(start), rtol=1e-13)
    for G, H in zip(sparse.gradient(start), dense.gradient(start), strict=True):
        assert_allclose(G, H, rtol=1e-12, atol=1e-12)


# The domain


def test_outside_of_its_domain_a_divergence_is_infinite_and_its_slope_unknown():
    p = torch.tensor([-1.0, 0.0, 0.0, 1.0]).double()
    t = torch.tensor([1.0, 1.0, 0.0, 0.0]).double()
    assert_allclose(kullback_leibler(p, t), special.kl_div(t.numpy(), p.numpy()))
    for beta in (-1.0, 0.0, 0.5, 1.0, 1.5, 3.0):
        values, slopes = beta_divergence(beta)(p, t), beta_divergence_slope(beta)(p, t)
        assert values[0] == torch.inf
        assert torch.isnan(slopes[0])
        assert torch.isfinite(values[1]) == (beta > 1)
        assert torch.isfinite(values[2:]).all() == (beta > 0)
    assert_allclose(beta_divergence(2.0)(p, t), (p - t) ** 2 / 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("loss=logistic", r"loss=logistic: D has the entry 0\.0456; allowed are 1 and -1"),
        (
            "problem=explicit problem.matrix=[[1,-2],[3,4]] loss=poisson",
            "loss=poisson: D has the entry -2; allowed are numbers from 0 on",
        ),
        (
            "problem=explicit problem.matrix=[[1,-2],[3,4]] loss=kullback_leibler",
            "loss=kullback_leibler: D has the entry -2; allowed are numbers from 0 on for β=1",
        ),
        (
            "problem=explicit problem.matrix=[[1,0],[3,4]] loss=beta",
            "loss=beta: D has the entry 0; allowed are positive numbers for β=0",
        ),
        (
            "loss=kullback_leibler init=normal",
            r"loss=kullback_leibler: the product of the start has an entry -1\.6\d+; allowed is a "
            "product that is positive where D is observed, for example by init=uniform",
        ),
        ("loss=huber optimizer=mu", "optimizer=mu: allowed are loss=squared, kullback_leibler"),
    ],
)
def test_data_or_a_start_that_do_not_fit_are_refused(line, message):
    with pytest.raises(Refused, match=f"^{message}"):
        plan.group_points([composed(*line.split())])
    if "optimizer" not in line:
        with pytest.raises(Refused, match=f"^{message}"):
            Batch([composed(*line.split())])


def test_what_is_missing_need_not_fit():
    fits = composed("problem=explicit", "problem.matrix=[[1,null],[-1,1]]", "loss=logistic")
    assert plan.group_points([fits]) == [[0]]


def test_each_beta_of_a_sweep_is_checked():
    points = [
        composed("problem=explicit", "problem.matrix=[[1,0],[3,4]]", "loss=beta", f"loss.beta={b}")
        for b in (2.0, 1.0, 0.0)
    ]
    assert plan.group_points(points[:2]) == [[0, 1]]
    with pytest.raises(Refused, match="allowed are positive numbers for β=0"):
        plan.group_points(points)


LEAVES = {"kullback_leibler": 1.1, "beta": 5.2}
"""Rates at which one of two factors changes its sign in the first step."""


@pytest.mark.parametrize("name", sorted(CONFINED))
def test_a_run_that_leaves_the_domain_between_records_ends_as_diverged(name):
    """One step takes the prediction below 0, where 1 − t/p alone would lead back."""
    D = torch.tensor([[[1.0]]]).double()
    start = (torch.tensor([[[2.0]]]).double(), torch.tensor([[[0.5]]]).double() * 5)
    objective = Objective(make_problem(D), loss(name))
    method = mfgd.optimizer.gd(alternating=False)
    first, *_ = descent(objective, method, start, lr=LEAVES[name], records=[1])
    assert product(first.factors) < 0
    for records in ([1], [0, 7]):
        *_, last = descent(objective, method, start, lr=LEAVES[name], records=records)
        assert last.outcome == Outcome.DIVERGED


def test_theory_knows_no_optimum_of_a_loss_that_is_not_0_at_the_target():
    given = problem("exact")
    for name in LIKELIHOODS:
        expected = 0.0 if name in CONFINED else np.nan
        assert_allclose(theory.optimum(given, loss(name), RANK), expected)


# Multiplicative updates


@pytest.mark.parametrize("beta", BETAS)
def test_mu_is_scikit_learn_s(beta):
    draw = np.random.default_rng(0)
    D = draw.uniform(0.5, 3.0, (30, 20))
    C, F = (draw.uniform(0.1, 1.1, shape) for shape in ((30, 5), (5, 20)))
    name = {1.0: "kullback_leibler"}.get(beta, "beta")
    keys = {"beta": beta} if name == "beta" else {}
    objective = Objective(make_problem(torch.from_numpy(D)), loss(name, **keys))
    states = [
        *descent(
            objective,
            mfgd.optimizer.mu(),
            tuple(map(torch.tensor, (C, F))),
            lr=1.0,
            records=range(201),
        )
    ]
    losses = np.array([float(state.loss) for state in states])
    assert (np.diff(losses) <= 1e-12 * losses[0]).all()
    model = NMF(5, init="custom", solver="mu", beta_loss=beta, tol=0, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged, which tol=0 forbids
        W = model.fit_transform(D, W=C.copy(), H=F.copy())
    assert_allclose(states[-1].factors[0], W, rtol=1e-9)
    assert_allclose(states[-1].factors[1], model.components_, rtol=1e-9)
    assert losses[-1] == pytest.approx(model.reconstruction_err_**2 / 2, rel=1e-11)


@pytest.mark.parametrize("beta", [1.0, 1.5])
def test_mu_takes_columns_of_zeros(beta):
    """The digits have pixels that are always 0; there a prediction becomes 0."""
    D = mfgd.problem.digits(**OBSERVATION).D[:200]
    C, F = (torch.rand(shape, dtype=torch.float64) + 0.1 for shape in ((200, 4), (4, 64)))
    objective = Objective(make_problem(D), loss("beta", beta=beta))
    *states, last = descent(objective, mfgd.optimizer.mu(), (C, F), lr=1.0, records=range(51))
    losses = np.array([float(state.loss) for state in (*states, last)])
    assert np.isfinite(losses).all()
    assert (np.diff(losses) <= 0).all()
    assert (last.factors[1][:, D.sum(0) == 0] == 0).all()


def test_mu_under_a_mask_descends_to_a_stationary_point():
    given, start = fitting("kullback_leibler", "masked", (3,))
    objective = Objective(given, loss("kullback_leibler", scale=0.5, penalty=0.5))
    records = [0, *range(1, 100), 3000]
    states = [*descent(objective, mfgd.optimizer.mu(), start, lr=1.0, records=records)]
    check_descends_to_stationary_point(states, objective)


# Draws of the problem


LINES = {
    "logistic": "problem.response=one_bit problem.spectrum=[150,120] lr=0.001",
    "poisson": "problem.response=poisson problem.spectrum=[60,50] lr=0.0003",
}


@pytest.mark.parametrize("name", sorted(LINES))
@pytest.mark.parametrize("depth", [2, 3])
def test_descent_on_draws_nears_the_truth(name, depth):
    line = (
        "problem=synthetic problem.n=120 problem.m=100 rank=2 "
        f"init.scale=0.3 init=normal steps=1000 loss={name} depth={depth} {LINES[name]}"
    )
    points = [composed(*line.split(), f"seed={seed}") for seed in range(3)]
    rows = solve(points)
    for point, row in zip(points, rows, strict=True):
        (alone,) = solve([point])
        assert alone.trajectory["loss"].tolist() == row.trajectory["loss"].tolist()
        assert "draw.response" in row.tags
        assert min(row.trajectory["relative_error"]) < 0.5
        assert not [tag for tag in row.tags if tag.startswith("oracle")]
