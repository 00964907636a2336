"""A problem kept sparse against the same one kept dense: the same draws, numbers, steps and
errors."""

from functools import partial

import numpy as np
import pytest
import torch
from cases import (
    FILE,
    INITS,
    LOSSES,
    READING,
    SYNTHETIC,
    factors,
    loss,
    make_problem,
    mask_of,
    optimizer,
    solve,
    sparsely,
)
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse.linalg import svds
from test_config import composed

import mfgd
from mfgd import (
    Objective,
    Problem,
    draws,
    heatmaps,
    init,
    lanczos,
    metrics,
    plan,
    problem,
    sparse,
    theory,
)
from mfgd import (
    optimizer as methods,
)
from mfgd.dense import MaskedEntries
from mfgd.descent import descent
from mfgd.given import load_problem
from mfgd.kernel import product
from mfgd.sparse import ListedEntries

SHAPE = N, M = 60, 50
KEYS = SYNTHETIC | {"n": N, "m": M, "observed": 0.3, "noise": 0.1}
LEADS = pytest.mark.parametrize("lead", [(), (1,)], ids=["single", "batch of one"])
DEPTHS = pytest.mark.parametrize("depth", [2, 3])


def twins(**keys) -> tuple[Problem, Problem]:
    """A problem dense, and sparse."""
    dense = problem.synthetic(**KEYS | keys)
    with sparsely():
        return dense, problem.synthetic(**KEYS | keys)


def matrix(given: Problem) -> torch.Tensor:
    """The sparse matrix of listed entries."""
    return given.observation.matrix


def close(found, expected) -> None:
    for X, Y in zip(found, expected, strict=True):
        assert X.shape == Y.shape
        assert float((X - Y).norm()) <= 1e-12 * float(Y.norm())


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"noise": 0.0},
        {"heldout": 0.25},
        {"outliers": 0.2, "outlier_scale": 3.0, "heldout": 0.1},
        {"snr": 2.0},
    ],
)
def test_how_a_problem_is_kept_moves_no_draw(keys):
    if "snr" in keys:
        keys = keys | {"noise": 0.0}
    dense, given = twins(**keys)
    assert isinstance(given.observation, ListedEntries)
    assert (given.complete, dense.complete) == (False, False)
    assert_allclose(matrix(given).to_dense(), dense.D, atol=1e-15)
    assert_array_equal(matrix(given).to_dense() != 0, mask_of(dense) == 1)
    assert given.count == int(dense.count)
    assert given.draws == dense.draws
    assert given.noise == (dense.noise and pytest.approx(dense.noise, rel=1e-12))
    assert given.rank == dense.rank
    assert_allclose(given.truth.left @ given.truth.right, dense.truth.target, atol=1e-15)
    assert_allclose(given.spectrum, dense.spectrum[:3], rtol=1e-12)
    if dense.heldout is None:
        assert given.heldout is None
    else:
        assert_allclose(given.heldout.matrix.to_dense(), dense.heldout.target, atol=1e-15)


def test_what_is_kept_sparse():
    assert sparse.use_sparse(1024, 1024, 104_857)
    assert not sparse.use_sparse(1024, 1024, 104_858)
    assert not sparse.use_sparse(1023, 1024, 10)
    large = problem.synthetic(**KEYS | {"n": 1100, "m": 1000, "observed": 5000})
    assert isinstance(large.observation, ListedEntries)
    assert large.count == 5000
    many = problem.synthetic(**KEYS | {"n": 1100, "m": 1000, "observed": 0.2})
    assert isinstance(many.observation, MaskedEntries)


def test_entries_that_are_zero_are_entries():
    with sparsely():
        given = problem.from_matrix([[0.0, np.nan], [np.nan, 2.0]])
    assert given.count == 2
    assert_array_equal(given.D, [0, 2])


def test_another_dtype():
    _, given = twins(heldout=0.2)
    moved = given.to(torch.float32, "cpu")
    assert {
        X.dtype for X in (moved.D, moved.heldout.target, moved.truth.left, moved.truth.right)
    } == {torch.float32}
    assert_allclose(moved.D, given.D, rtol=1e-7)


@LEADS
@DEPTHS
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_objective_and_gradient(lead, depth, name, reduction):
    dense, given = (
        Objective(p, loss(name, scale=0.5, reduction=reduction, penalty=0.1))
        for p in twins(heldout=0.2)
    )
    made = factors(lead, depth, n=N, m=M)
    close([given.value(made)], [dense.value(made)])
    close(given.gradient(made), dense.gradient(made))
    close(given.preallocate(made).gradient(made, 1), dense.gradient(made, 1))
    mask = mask_of(dense.problem) == 1
    assert_allclose(
        given.residual(made).flatten(),
        dense.residual(made)[..., mask].flatten(),
        rtol=1e-12,
        atol=1e-13,
    )


@DEPTHS
def test_gradient_is_autograd_s(depth):
    _, given = twins()
    made = tuple(W.requires_grad_() for W in factors((), depth, n=N, m=M))
    rows, columns = given.observation.rows, given.observation.columns
    R = product(made)[rows, columns] - given.D
    torch.log(torch.cosh(R)).sum().backward()
    found = Objective(given, loss("logcosh")).gradient(tuple(W.detach() for W in made))
    close(found, [W.grad for W in made])


@LEADS
@pytest.mark.parametrize("name", ["squared", "logcosh"])
def test_sharpness(lead, name):
    made = factors(lead, n=N, m=M)
    values = [lanczos.sharpness(Objective(p, loss(name, penalty=0.1)), made) for p in twins()]
    assert_allclose(values[1], values[0], rtol=1e-9)


@LEADS
@DEPTHS
@pytest.mark.parametrize("heldout", [0.0, 0.2])
def test_errors(lead, depth, heldout):
    dense, given = twins(heldout=heldout)
    made = factors(lead, depth, n=N, m=M)
    for error in (metrics.relative_error, metrics.heldout_error):
        assert error(given, made).shape == lead
        assert_allclose(error(given, made), error(dense, made), rtol=1e-11)


def test_errors_near_the_truth_keep_their_digits():
    """From Gram matrices, ‖D̂‖² − 2⟨D̂, D*⟩ + ‖D*‖², an error below 1e-8 would be rounding."""
    _, given = twins(noise=0.0)
    A, B = given.truth.left, given.truth.right
    moved = (A * (1 + 1e-11), B)
    assert_allclose(metrics.relative_error(given, moved), 1e-11, rtol=1e-4)


def test_errors_of_given_data(tmp_path):
    whole = np.random.default_rng(0).normal(size=SHAPE)
    np.save(tmp_path / "D.npy", whole)
    keys = {
        key: KEYS[key] for key in ("mask", "snr", "outliers", "outlier_scale", "heldout", "seed")
    }
    arguments = FILE | keys | {"path": str(tmp_path / "D.npy"), "observed": 0.3, "noise": 0.1}
    dense = problem.file(**arguments)
    with sparsely():
        given = problem.file(**arguments)
    made = factors(n=N, m=M)
    assert isinstance(given.observation, ListedEntries)
    for error in (metrics.relative_error, metrics.heldout_error):
        assert_allclose(error(given, made), error(dense, made), rtol=1e-12)


@pytest.mark.parametrize("name", ["gd", "nesterov", "adam", "scaled_gd", "mu", "als"])
def test_steps(name):
    """Three steps of each method end where they end on the dense problem."""
    pair = twins()
    if name == "mu":
        dense, given = pair
        pair = (
            make_problem(dense.D.abs(), mask_of(dense)),
            Problem(ListedEntries(given.observation.fill(given.D.abs()))),
        )
    start = tuple(W.abs() for W in factors((1,), n=N, m=M))
    ends = []
    for each in pair:
        objective = Objective(each, loss("squared", scale=0.5, penalty=0.01))
        *_, state = descent(objective, optimizer(name), start, lr=1e-3, records=[0, 3])
        ends.append(state.factors)
    close(ends[1], ends[0])


def test_mu_refuses_negative_entries():
    _, given = twins()
    start = tuple(W.abs() for W in factors(n=N, m=M))
    with pytest.raises(mfgd.types.Refused, match="negative"):
        methods.mu().check(Objective(given, loss("squared")), start)


def test_top_singular_value_and_theory():
    dense, given = twins()
    assert_allclose(given.top_singular_value, np.linalg.norm(dense.D.numpy(), 2), rtol=1e-10)
    for oracle in (theory.curvature, partial(theory.rate_unit, depth=2)):
        assert_allclose(oracle(given, loss("huber")), oracle(dense, loss("huber")), rtol=1e-10)
    assert np.isnan(theory.optimum(given, loss("squared"), 3))
    assert np.isnan(theory.rate_limit(given, loss("squared"), 2))
    assert theory.optimum(twins(noise=0.0)[1], loss("squared"), 3) == 0


@pytest.mark.parametrize("rank", [3, M])
def test_spectral_start(rank):
    dense, given = twins()
    widths = (N, rank, M)
    made, expected = (init.spectral(scale=0.5, ratio=1.0)(p, widths, None) for p in (given, dense))
    assert_allclose(product(made), product(expected), atol=1e-10)
    assert_allclose(made[0].mT @ made[0], made[1] @ made[1].mT, atol=1e-10)


def test_sketch_start():
    starts = [
        init.sketch(power=2, scale=0.5, ratio=1.0)(p, (N, 3, M), draws.stream("init", 0))
        for p in twins()
    ]
    for made, expected in zip(*starts, strict=True):
        assert_allclose(made, expected, atol=1e-12)


APART = ("explicit", "file", "notebook", "plane", "run", "sketch", "spectral")


@pytest.mark.parametrize("name", [name for name in INITS if name not in APART])
def test_other_starts_are_the_same(name):
    starts = [
        getattr(init, name)(**INITS[name].keys)(p, (N, 3, M), draws.stream("init", 0))
        for p in twins()
    ]
    assert all(torch.equal(*pair) for pair in zip(*starts, strict=True))


def test_pictures_are_means_over_cells():
    dense, given = twins()
    made = factors(n=N, m=M)
    D, estimate, residual = given.observation.picture(made, 10)
    whole = product(made).numpy()
    seen = np.where(mask_of(dense) == 1, dense.D, np.nan)
    for found, X in ((D, seen), (estimate, whole), (residual, whole - seen)):
        cells = X.reshape(10, 6, 10, 5).transpose(0, 2, 1, 3).reshape(10, 10, -1)
        assert_allclose(found, np.nanmean(cells, -1), rtol=1e-10)


def test_cells_without_an_entry_are_grey():
    _, given = twins(observed=5)
    D, _, residual = given.observation.picture(factors(n=N, m=M), heatmaps.PIXELS)
    assert np.isnan(D).sum() == np.isnan(residual).sum() == N * M - 5
    assert (heatmaps.pictures(given, factors(n=N, m=M))["residual"] == 204).all(-1).sum() > 0


LINE = (
    "problem=synthetic",
    "problem.n=1100",
    "problem.m=1000",
    "problem.observed=20000",
    "problem.heldout=0.1",
)


@pytest.fixture(scope="module")
def solved():
    """Three runs of one sweep: two problems, two starts."""
    lines = (("seed=0",), ("seed=1",), ("problem.seed=1",))
    points = [
        composed(*LINE, *more, "rank=3", "init=orthogonal", "steps=5", "lr=20", "record.steps=[]")
        for more in lines
    ]
    return points, [solve([point])[0] for point in points]


def test_each_run_is_a_batch_of_its_own(solved):
    points, rows = solved
    assert plan.group_points(points) == [[0], [1], [2]]
    for row in rows:
        assert row.outcome == "budget"
        assert np.isfinite(row.trajectory["heldout_error"]).all()
        assert row.trajectory["loss"][-1] < row.trajectory["loss"][0]
    assert {row.factors[0].shape for row in rows} == {(1100, 3)}


def test_the_matrix_that_is_kept_can_be_read_back(solved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (point, *_), (row, *_) = solved
    given = load_problem(point.problem)
    store = point.tracking()
    store.open(None)
    store.expect(1)
    run = mfgd.load_run(store.write(point, row, given))
    D = run.matrices["D"]
    assert D.layout == torch.sparse_csr
    assert D.shape == given.shape
    assert torch.equal(D.values(), given.D)
    assert torch.equal(D.to_dense(), matrix(given).to_dense())
    assert set(run.matrices) == {"C", "F", "D"}
    assert not set(sparse.ARRAYS) & set(run.matrices)


def test_ratings_of_many_users_and_items(tmp_path):
    generator = np.random.default_rng(0)
    flat = np.sort(generator.choice(1100 * 1000, 30_000, replace=False))
    flat = np.union1d(
        flat, np.r_[np.arange(1100) * 1000, np.arange(1000)]
    )  # each user and each item is there
    rating = generator.integers(1, 6, len(flat))
    lines = zip(flat // 1000 + 7, flat % 1000 + 3, rating, strict=True)
    (tmp_path / "u.data").write_text("".join(f"{u}\t{i}\t{r}\t0\n" for u, i, r in lines))
    given = problem.ratings(path=str(tmp_path / "u.data"), heldout=0.0, seed=0, **READING)
    assert given.shape == (1100, 1000)
    expected = np.zeros((1100, 1000))
    expected.flat[flat] = rating
    assert_array_equal(matrix(given).to_dense(), expected)
    assert_allclose(
        given.top_singular_value, svds(expected, 1, return_singular_vectors=False)[0], rtol=1e-10
    )
    split = problem.ratings(path=str(tmp_path / "u.data"), heldout=0.2, seed=0, **READING)
    assert_array_equal((matrix(split) + split.heldout.matrix).to_dense(), expected)
    assert split.heldout.count == round(0.2 * len(flat))
