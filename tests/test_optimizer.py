"""One step, against torch.optim, scikit-learn's NMF, NumPy's least squares and the formulas in
NumPy."""

import warnings

import numpy as np
import pytest
import torch
from cases import (
    BATCHES,
    OBSERVATION,
    ONE_WAY,
    OPTIMIZERS,
    PROBLEMS,
    check_descends_to_stationary_point,
    column,
    factors,
    loss,
    make_problem,
    mask_of,
    one,
    optimizer,
    options,
    problem,
    run,
)
from numpy.testing import assert_allclose
from sklearn.decomposition import NMF

import mfgd
from mfgd import Objective
from mfgd.descent import Outcome, descent
from mfgd.kernel import product
from mfgd.method import Method, Optimizer, descend, forget
from mfgd.streams import Streams
from mfgd.types import Refused

NAMES = pytest.mark.parametrize("name", OPTIMIZERS)
KNOWN = pytest.mark.parametrize(
    "name", [name for name, case in OPTIMIZERS.items() if case.reference]
)
KINDS = pytest.mark.parametrize("kind", PROBLEMS)
TURNS = pytest.mark.parametrize("alternating", [False, True], ids=["at once", "alternating"])
HALF = loss("squared", scale=0.5)


def test_every_option_is_a_case():
    assert options("optimizer") == set(OPTIMIZERS)


@BATCHES
def test_adam_without_decay_is_torch_s_adam(batch):
    """Alone, and beside runs with a decay."""
    given, start = problem("noisy", batch), factors(batch)
    decay = column(0.0, 0.5, 0.0) if batch else 0.0
    method = optimizer("adam", weight_decay=decay)
    *_, state = descent(Objective(given, HALF), method, start, lr=0.01, records=[0, 50])
    for b in (0, 2) if batch else [...]:
        Ws = [W[b].clone().requires_grad_() for W in start]
        theirs = torch.optim.Adam(Ws, lr=0.01, betas=(0.8, 0.95), eps=1e-3)
        for _ in range(50):
            theirs.zero_grad()
            residual = given.observation.mask[b] * (
                product(tuple(Ws)) - given.observation.target[b]
            )
            (residual.square().sum() / 2).backward()
            theirs.step()
        for ours, W in zip(state.factors, Ws, strict=True):
            torch.testing.assert_close(ours[b], W.detach(), rtol=1e-9, atol=1e-11)


@KNOWN
@TURNS
@BATCHES
@pytest.mark.parametrize("depth", [2, 3])
def test_trajectory_is_torch_s(name, batch, depth, alternating):
    given, start = problem("noisy", batch), factors(batch, depth)
    # A number and a column take different kernels.
    rates = column(0.001, 0.002, 0.004) if batch else 0.003
    method = optimizer(name, alternating=alternating)
    states = descent(Objective(given, HALF), method, start, lr=rates, records=range(201))
    ours = torch.stack([product(state.factors) for state in states])

    parameters = [
        [W.clone().requires_grad_() for W in Ws]
        for Ws in ([*zip(*start, strict=True)] if batch else [start])
    ]
    turns = [(level,) for level in range(depth)] if alternating else [range(depth)]
    optimizers = [
        [OPTIMIZERS[name].reference([run[level] for level in levels], lr=lr) for levels in turns]
        for run, lr in zip(parameters, rates.flatten().tolist() if batch else [rates], strict=True)
    ]
    theirs = []
    for _ in range(201):
        theirs.append(
            torch.stack([product(tuple(Ws)).detach() for Ws in parameters]).reshape(given.D.shape)
        )
        for turn in range(len(turns)):
            estimate = torch.stack([product(tuple(Ws)) for Ws in parameters]).reshape(given.D.shape)
            (0.5 * (mask_of(given) * (estimate - given.D)).square().sum()).backward()
            for group in optimizers:
                group[turn].step()
            for Ws in parameters:
                for W in Ws:
                    W.grad = None
    assert_allclose(ours, torch.stack(theirs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["gd", "momentum", "nesterov", "adam"])
@pytest.mark.parametrize("shares", [(1.0, 8.0), (1.0, 0.25, 3.0)])
def test_factors_with_rates_of_their_own_are_torch_s_parameter_groups(name, shares):
    given, start = problem("full"), factors(depth=len(shares))
    records, rates = range(31), tuple(0.002 * share for share in shares)
    states = descent(
        Objective(given, HALF), optimizer(name), start, lr=lambda step: rates, records=records
    )
    parameters = [W.clone().requires_grad_() for W in start]
    groups = [{"params": [W], "lr": lr} for W, lr in zip(parameters, rates, strict=True)]
    theirs = OPTIMIZERS[name].reference(groups, lr=0.1)
    for state in states:
        for W, V in zip(state.factors, parameters, strict=True):
            assert_allclose(W, V.detach(), rtol=1e-9, atol=1e-12)
        theirs.zero_grad()
        (0.5 * (product(tuple(parameters)) - given.D).square().sum()).backward()
        theirs.step()


@TURNS
def test_scaled_gd_takes_rates_of_their_own(alternating):
    given, (C, F) = problem("full"), factors()
    method = mfgd.optimizer.scaled_gd(damping=0.3, damped_by="number", alternating=alternating)
    *_, state = descent(
        Objective(given, HALF), method, (C, F), lr=lambda step: (0.1, 0.3), records=[0, 20]
    )
    D, C, F = given.D.numpy(), C.numpy(), F.numpy()
    for _ in range(20):
        before = C
        C = C - 0.1 * scaled(C, F, 0.3)[0](C @ F - D)
        at = C if alternating else before
        F = F - 0.3 * scaled(at, F, 0.3)[1](at @ F - D)
    assert_allclose(state.factors[0], C, rtol=1e-10)
    assert_allclose(state.factors[1], F, rtol=1e-10)


def scaled(C, F, damping):
    """The direction of scaled gradient descent on ½‖CF − D‖², as its formula stands."""
    right, left = F @ F.T + damping * np.eye(len(F)), C.T @ C + damping * np.eye(len(F))
    return lambda R: R @ F.T @ np.linalg.inv(right), lambda R: np.linalg.inv(left) @ C.T @ R


@pytest.mark.parametrize("damped_by", ["number", "error"])
@TURNS
def test_scaled_gd_is_its_formula(damped_by, alternating):
    given, (C, F) = problem("full"), factors()
    method = mfgd.optimizer.scaled_gd(damping=0.3, damped_by=damped_by, alternating=alternating)
    *_, state = descent(Objective(given, HALF), method, (C, F), lr=0.2, records=[0, 30])
    D, C, F = given.D.numpy(), C.numpy(), F.numpy()

    def damping():
        return 0.3 if damped_by == "number" else 0.3 * np.linalg.norm(C @ F - D)

    for _ in range(30):
        along_C, along_F = scaled(C, F, damping())
        step_C = 0.2 * along_C(C @ F - D)
        if alternating:
            C = C - step_C
            F = F - 0.2 * scaled(C, F, damping())[1](C @ F - D)
        else:
            C, F = C - step_C, F - 0.2 * along_F(C @ F - D)
    assert_allclose(state.factors[0], C, rtol=1e-10)
    assert_allclose(state.factors[1], F, rtol=1e-10)


@BATCHES
def test_scaled_gd_does_not_see_how_the_product_is_split(batch):
    # Tong, Ma, Chi 2021: C, F → C Q, Q⁻¹ F leaves the products of all iterates alone.
    given, (C, F) = problem("full", batch), factors(batch)
    Q = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.5, -1.0], [0.3, 0.0, 1.5]], dtype=torch.float64)
    method = mfgd.optimizer.scaled_gd(damping=0.0, damped_by="number", alternating=False)
    ends = []
    for start in ((C, F), (C @ Q, torch.linalg.inv(Q) @ F)):
        *_, state = descent(Objective(given, HALF), method, start, lr=0.3, records=[0, 50])
        ends.append(product(state.factors))
    assert_allclose(ends[0], ends[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("metric", ["euclidean", "scaled"])
def test_polyak_is_its_formula(metric):
    given, (C, F) = problem("full"), factors()
    method = mfgd.optimizer.polyak(floor=0.05, metric=metric, damping=0.0, alternating=False)
    *_, state = descent(Objective(given, loss("absolute")), method, (C, F), lr=0.7, records=[0, 25])
    D, C, F = given.D.numpy(), C.numpy(), F.numpy()
    for _ in range(25):
        S, gap = np.sign(C @ F - D), abs(C @ F - D).sum() - 0.05
        G, H = S @ F.T, C.T @ S
        along = scaled(C, F, 0.0) if metric == "scaled" else (lambda S: G, lambda S: H)  # noqa: B023
        P, Q = (direction(S) for direction in along)
        length = 0.7 * gap / ((G * P).sum() + (H * Q).sum())
        C, F = C - length * P, F - length * Q
    assert_allclose(state.factors[0], C, rtol=1e-8)
    assert_allclose(state.factors[1], F, rtol=1e-8)


def test_polyak_rests_at_the_answer():
    start = factors()
    method = mfgd.optimizer.polyak(floor=0.0, metric="euclidean", damping=0.0, alternating=False)
    *_, state = descent(
        Objective(make_problem(product(start)), HALF), method, start, lr=1.0, records=[0, 3]
    )
    assert all(map(torch.equal, state.factors, start))


@KINDS
@pytest.mark.parametrize("penalty", [0.1, 2.0])
@BATCHES
def test_als_is_least_squares(kind, penalty, batch):
    given, (C, F) = problem(kind, batch), factors(batch)
    objective = Objective(given, loss("squared", scale=0.7, reduction="mean", penalty=penalty))
    *_, state = descent(objective, mfgd.optimizer.als(), (C, F), lr=1.0, records=[0, 3])
    for b in range(max(1, *batch)) if batch else [...]:
        D, mask = (
            given.D[b].numpy(),
            np.ones(given.D[b].shape) if mask_of(given) is None else mask_of(given)[b].numpy(),
        )
        X, Y = C[b].numpy(), F[b].numpy()
        # Rows of √λ I below, as w‖M∘(XY − D)‖² + λ/2 ‖X‖² is one sum of squares.
        ridge = np.sqrt(penalty / 2 / (0.7 / mask.sum())) * np.eye(X.shape[1])

        def fitted(basis, D, mask, ridge=ridge):
            return np.stack(
                [
                    np.linalg.lstsq(
                        np.vstack([m[:, None] * basis, ridge]),
                        np.append(m * d, np.zeros(len(ridge))),
                        rcond=None,
                    )[0]
                    for d, m in zip(D, mask, strict=True)
                ]
            )

        for _ in range(3):
            X = fitted(Y.T, D, mask)
            Y = fitted(X, D.T, mask.T).T
        assert_allclose(state.factors[0][b], X, rtol=1e-8, atol=1e-10)
        assert_allclose(state.factors[1][b], Y, rtol=1e-8, atol=1e-10)


def low_rank(n: int, m: int, rank: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, rank)) @ generator.normal(size=(rank, m))


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_one_step_of_als_solves_at_every_rank_from_the_true_one(rank):
    D = low_rank(9, 6, rank)
    objective = Objective(make_problem(torch.from_numpy(D)), HALF)
    for k in range(1, 9):
        start = factors(rank=k, n=9, m=6)
        *_, state = descent(objective, mfgd.optimizer.als(), start, lr=1.0, records=[0, 1])
        C = np.linalg.lstsq(start[1].numpy().T, D.T, rcond=1e-10)[0].T
        F = np.linalg.lstsq(C, D, rcond=1e-10)[0]
        assert_allclose(product(state.factors), C @ F, atol=1e-9)
        if k >= rank:
            assert_allclose(product(state.factors), D, atol=1e-9)


def test_als_of_rows_with_fewer_entries_than_the_rank_is_the_least_norm_solution():
    D, mask = low_rank(8, 6, 2), np.ones((8, 6))
    mask[0], mask[1, 1:], mask[:, 5], mask[2, 3] = 0, 0, 0, 0
    given = make_problem(torch.from_numpy(D * mask), torch.from_numpy(mask))
    X, Y = (W.numpy() for W in factors(rank=4, n=8, m=6))
    start = torch.from_numpy(X.copy()), torch.from_numpy(Y.copy())
    *_, state = descent(Objective(given, HALF), mfgd.optimizer.als(), start, lr=1.0, records=[0, 3])
    for _ in range(3):
        pairs = zip(mask, D, strict=True)
        rows = [np.linalg.lstsq(m[:, None] * Y.T, m * d, rcond=1e-7)[0] for m, d in pairs]
        X = np.stack(rows)
        pairs = zip(mask.T, D.T, strict=True)
        columns = [np.linalg.lstsq(m[:, None] * X, m * d, rcond=1e-7)[0] for m, d in pairs]
        Y = np.stack(columns, 1)
    assert_allclose(mask * (state.factors[0] @ state.factors[1]).numpy(), mask * (X @ Y), atol=1e-6)
    assert not state.factors[0][0].any()
    assert not state.factors[1][:, 5].any()


@pytest.mark.parametrize("name", ["scaled_gd", "polyak"])
def test_a_run_whose_method_is_undefined_stays_where_it_was(name):
    """F of rank 2 has no (FFᵀ)⁻¹ of rank 3; the neighbours of the run are left alone."""
    keys = {"damping": 0.0} | ({"metric": "scaled"} if name == "polyak" else {})
    given, start = problem("full", (3,)), factors((3,))
    start[1][1, 2] = start[1][1, 0] + start[1][1, 1]
    objective = Objective(given, HALF)
    *_, last = descent(objective, optimizer(name, **keys), start, lr=0.1, records=[0, 5, 10])
    assert last.outcome.tolist() == [Outcome.BUDGET, Outcome.UNDEFINED, Outcome.BUDGET]
    assert torch.equal(last.factors[0][1], start[0][1])
    assert torch.equal(last.factors[1][1], start[1][1])
    assert torch.isfinite(last.loss).all()
    for b in (0, 2):
        alone = Objective(one(given, b), HALF)
        *_, state = descent(alone, optimizer(name, **keys), run(start, b), lr=0.1, records=[0, 10])
        assert all(map(torch.equal, run(last.factors, b), state.factors))
    damped = optimizer(name, **keys | {"damping": 0.1})
    *_, state = descent(objective, damped, start, lr=0.1, records=[0, 10])
    assert state.outcome.tolist() == [Outcome.BUDGET] * 3


def test_above_the_true_rank_no_seed_makes_a_difference():
    """Scaled descent loses its definition once the surplus of the rank is gone: it converges if
    the tolerance comes first, and is undefined if not."""
    D = torch.from_numpy(low_rank(40, 30, 5) / 20)
    objective = Objective(make_problem(D), HALF)
    for seed in range(5):
        start = factors(rank=8, seed=seed, n=40, m=30)
        for name in ("als", "scaled_gd"):
            method = optimizer(name, **({"damping": 0.0} if name == "scaled_gd" else {}))
            records = [0, *range(5, 400, 5)]
            *_, last = descent(
                objective, method, start, lr=0.5, records=records, reached=lambda s: s.loss < 1e-6
            )
            assert last.outcome == Outcome.CONVERGED, (name, seed)


def test_alternating_scaled_gd_at_rate_1_is_als():
    given, start = problem("full"), factors()
    method = mfgd.optimizer.scaled_gd(damping=0.0, damped_by="number", alternating=True)
    ends = [
        [*descent(Objective(given, HALF), used, start, lr=1.0, records=[0, 4])][-1]
        for used in (method, mfgd.optimizer.als())
    ]
    assert_allclose(product(ends[0].factors), product(ends[1].factors), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["full", "masked"])
def test_alt_gd_min_is_its_formula(kind):
    given, (C, F) = problem(kind), factors()
    *_, state = descent(
        Objective(given, HALF), mfgd.optimizer.alt_gd_min(), (C, F), lr=0.1, records=[0, 20]
    )
    mask = np.ones((7, 5)) if mask_of(given) is None else mask_of(given).numpy()
    D, C, F = given.D.numpy(), C.numpy(), F.numpy()
    for _ in range(20):
        C, _ = np.linalg.qr(C - 0.1 * (mask * (C @ F - D)) @ F.T)
        pairs = zip(mask.T, D.T, strict=True)
        columns = [np.linalg.lstsq(m[:, None] * C, m * d, rcond=1e-7)[0] for m, d in pairs]
        F = np.stack(columns, 1)
    assert_allclose(product(state.factors), C @ F, atol=1e-9)
    assert_allclose(state.factors[0].mT @ state.factors[0], np.eye(3), atol=1e-14)


def test_mu_is_scikit_learn_s():
    D = mfgd.problem.digits(**OBSERVATION)
    generator = np.random.default_rng(0)
    C, F = (generator.uniform(0.1, 1.1, shape) for shape in ((1797, 10), (10, 64)))
    *states, state = descent(
        Objective(D, HALF),
        mfgd.optimizer.mu(),
        tuple(map(torch.tensor, (C, F))),
        lr=1.0,
        records=range(0, 201, 10),
    )
    losses = np.array([float(s.loss) for s in (*states, state)])
    assert (np.diff(losses) <= 0).all()
    model = NMF(10, init="custom", solver="mu", tol=0, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged, which tol=0 forbids
        expected = model.fit_transform(D.D.numpy(), W=C.copy(), H=F.copy()) @ model.components_
    assert_allclose(product(state.factors), expected, atol=1e-8)


@BATCHES
def test_mu_under_a_mask_descends_to_a_stationary_point(batch):
    given = problem("masked", batch)
    given = make_problem(given.D.abs(), mask_of(given))
    start = tuple(W.abs() for W in factors(batch))
    objective = Objective(given, loss("squared", penalty=0.1))
    states = [
        *descent(objective, mfgd.optimizer.mu(), start, lr=1.0, records=[0, *range(1, 100), 20_000])
    ]
    check_descends_to_stationary_point(states, objective)


def test_what_cannot_be_used_is_refused():
    objective, start = Objective(problem("full"), HALF), factors()
    with pytest.raises(Refused, match="D has negative entries"):
        mfgd.optimizer.mu().check(objective, start)
    positive = Objective(make_problem(problem("full").D.abs()), HALF)
    with pytest.raises(Refused, match="the start has negative entries"):
        mfgd.optimizer.mu().check(positive, start)
    mfgd.optimizer.mu().check(positive, tuple(W.abs() for W in start))
    with pytest.raises(Refused, match=r"allowed is loss\.penalty=0"):
        mfgd.optimizer.alt_gd_min().check(
            Objective(problem("full"), loss("squared", penalty=0.1)), start
        )
    with pytest.raises(Refused, match="allowed is rank ≤ 7"):
        mfgd.optimizer.alt_gd_min().check(objective, factors(rank=8))
    with pytest.raises(Refused, match="allowed is loss=squared"):
        optimizer("exact_line_search").check(Objective(problem("full"), loss("huber")), start)
    for made in (mfgd.optimizer.mu(), mfgd.optimizer.als(), mfgd.optimizer.alt_gd_min()):
        with pytest.raises(Refused, match=r"allowed (is|are) loss=squared"):
            made.check(Objective(problem("full"), loss("huber")), start)
        with pytest.raises(Refused, match="allowed is depth=2"):
            made.check(positive, factors(depth=3))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - ONE_WAY))
@TURNS
def test_a_run_does_not_depend_on_its_company(name, alternating):
    given, start = problem("noisy", (3,)), factors((3,))
    method = optimizer(name, alternating=alternating)
    rates = column(0.05, 1e9, 0.01)
    *_, state = descent(Objective(given, HALF), method, start, lr=rates, records=[0, 40])
    for b in (0, 2):
        one = make_problem(given.D[b : b + 1], mask_of(given)[b : b + 1])
        run = tuple(W[b : b + 1] for W in start)
        *_, alone = descent(Objective(one, HALF), method, run, lr=rates[b : b + 1], records=[0, 40])
        assert all(
            torch.equal(W, X[b : b + 1]) for W, X in zip(alone.factors, state.factors, strict=True)
        )


@NAMES
@BATCHES
def test_a_step_changes_nothing_in_place(name, batch):
    method, start = optimizer(name), tuple(W.abs() for W in factors(batch))
    objective = Objective(make_problem(problem("full", batch).D.abs()), HALF)

    def tensors(memory):
        return (
            []
            if memory is None
            else [X for X in torch.utils._pytree.tree_leaves(memory) if torch.is_tensor(X)]
        )

    _, memory = method.step(objective, start, method.init(start, Streams([0, 1, 2], start[0])), 0.1)
    kept = [X.clone() for X in (*start, *tensors(memory))]
    method.step(objective, start, memory, 0.1)
    assert all(map(torch.equal, (*start, *tensors(memory)), kept))


def langevin(temperature: float) -> Optimizer:
    """Gradient descent with Gaussian noise on each step: an own method that draws random
    numbers."""

    def init(factors, streams):
        return streams

    def step(objective, factors, streams, lr):
        moved = []
        for W, G in zip(factors, objective.gradient(factors), strict=True):
            moved.append(descend(W, G, lr) + temperature * streams.normal(W.shape[-2:]))
        return tuple(moved), streams

    return Optimizer(init, step)


def test_a_method_draws_from_the_stream_of_each_run():
    """The numbers follow the seed of a run, alone and in a batch, and are standard normal."""
    given, start = problem("full", (3,)), factors((3,))
    objective, seeds = Objective(given, HALF), [4, 7, 4]

    def end(objective, start, seeds):
        states = descent(objective, langevin(0.1), start, lr=0.01, records=[0, 20], seeds=seeds)
        *_, state = states
        return state.factors

    whole = end(objective, start, seeds)
    assert all(map(torch.equal, whole, end(objective, start, seeds)))
    for b, seed in enumerate(seeds):
        alone = end(Objective(one(given, b), HALF), run(start, b), [seed])
        assert all(torch.equal(W[b : b + 1], V) for W, V in zip(whole, alone, strict=True))
    draws = Streams(seeds, start[0]).normal((200, 50))
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])
    assert abs(float(draws[0].mean())) < 0.05
    assert abs(float(draws[0].std()) - 1) < 0.03
    uniform = Streams(seeds, start[0]).uniform((200, 50))
    assert 0 <= float(uniform.min()) < 0.01 < 0.99 < float(uniform.max()) < 1
    single = Streams([4], factors()[0].float()).normal((2, 3))
    assert single.shape == (2, 3)
    assert single.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "keys", "method"),
    [
        ("gd", {}, Method.GRADIENT),
        ("momentum", {}, Method.HEAVY_BALL),
        ("nesterov", {}, Method.NESTEROV),
        ("scaled_gd", {"damping": 0.0}, Method.PRECONDITIONED),
        ("scaled_gd", {"damping": 0.1}, Method.OTHER),
        ("adam", {}, Method.OTHER),
        ("polyak", {}, Method.OTHER),
        ("mu", {}, Method.OTHER),
        ("als", {}, Method.LEAST_SQUARES),
        ("sign", {}, Method.OTHER),
        ("exact_line_search", {}, Method.OTHER),
    ],
)
def test_what_theory_may_assume_of_a_method(name, keys, method):
    assert optimizer(name, **keys).method is method
    if name not in ONE_WAY:
        assert optimizer(name, **keys).simultaneous
        assert not optimizer(name, **keys | {"alternating": True}).simultaneous
    assert Optimizer(forget, langevin(0.1).step).method is Method.OTHER
