"""Norms and balances of the factors, and the error to a best approximation."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from cases import BATCHES, DEPTHS, RANK, factors, loss, make_problem, problem, solve, sparsely
from numpy.testing import assert_allclose, assert_array_equal
from scipy.linalg import sqrtm
from test_config import composed
from test_metrics import state

from mfgd import Objective, factor_measures, metrics
from mfgd.given import load_problem
from mfgd.types import Refused


def norm(X) -> np.ndarray:
    return np.linalg.norm(np.asarray(X), axis=(-2, -1))


@BATCHES
@DEPTHS
def test_measures_of_the_factors_are_their_formulas(batch, depth):
    made = factors(batch, depth)
    arrays = [W.numpy() for W in made]
    for found, W in zip(factor_measures.factor_norms(made), arrays, strict=True):
        assert_allclose(found, norm(W), rtol=1e-13)
    pairs = [(W.swapaxes(-1, -2) @ W, V @ V.swapaxes(-1, -2)) for W, V in pairwise(arrays)]
    for found, (left, right) in zip(factor_measures.pair_balances(made), pairs, strict=True):
        assert_allclose(found, norm(left - right), rtol=1e-13)
    total = np.linalg.norm(torch.stack(factor_measures.pair_balances(made)), axis=0)
    assert_allclose(metrics.balance(made), total, rtol=1e-13)
    gap = norm(arrays[0]) ** 2 - norm(arrays[-1]) ** 2
    assert_allclose(factor_measures.norm_gap(made), gap, rtol=1e-12)
    squares = np.zeros(batch)
    for left, right in pairs:
        roots = [np.array([sqrtm(one) for one in X.reshape(-1, RANK, RANK)]) for X in (left, right)]
        squares = squares + (norm(roots[0] - roots[1]) ** 2).reshape(batch)
    assert_allclose(factor_measures.root_balance(made), np.sqrt(squares), rtol=1e-9)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e200])
def test_a_run_that_blew_up_leaves_the_norms_of_its_neighbours(bad):
    whole = factors((2,))
    broken = tuple(torch.stack([W[0], bad * W[1]]) for W in whole)
    objective = Objective(problem("exact", (2,)), loss("squared"))
    least = torch.zeros(2)
    good, found = (
        metrics.measure(objective, state(objective, made), least, dynamics=True)
        for made in (whole, broken)
    )
    for name in ("norm.1", "norm_gap", "root_balance"):
        assert_array_equal(found[name][0], good[name][0])
        assert not (abs(found[name][1]) < 1e6), name


@pytest.mark.parametrize("depth", [2, 3])
def test_what_each_level_of_diagnostics_adds(depth):
    line = ("problem=synthetic", "problem.n=7", "problem.m=5", "problem.rank=3", "steps=3")
    levels = {}
    for level in ("basic", "dynamics"):
        (row,) = solve([composed(*line, f"depth={depth}", f"diagnostics={level}")])
        levels[level] = set(row.trajectory)
        for name in row.trajectory:
            with pytest.raises(Refused):
                metrics.refuse_built_in(name)
    pairs = {f"balance.{i}" for i in range(1, depth)} if depth > 2 else set()
    added = {"norm_gap", "root_balance"} | {f"norm.{i}" for i in range(1, depth + 1)} | pairs
    assert added <= levels["dynamics"] - levels["basic"]
    assert {"mode_gap.1", "mode_gap.3"} <= levels["dynamics"]


def test_the_gap_of_a_mode_is_what_is_left_of_it():
    line = ("problem=synthetic", "problem.n=7", "problem.m=5", "problem.spectrum=[3,1]", "rank=2")
    (row,) = solve([composed(*line, "steps=10", "diagnostics=dynamics")])
    found = row.trajectory
    for i, sigma in enumerate((3, 1, 0, 0, 0), 1):
        assert_allclose(found[f"mode_gap.{i}"], sigma - found[f"mode.{i}"], atol=1e-13)


LINE = ("problem=synthetic", "problem.n=9", "problem.m=7", "problem.spectrum=[4,2,1]", "steps=50")
LINE = (*LINE, "lr=0.05", "rank=2")


def best_by_numpy(X: np.ndarray, r: int) -> np.ndarray:
    U, sigma, Vh = np.linalg.svd(X)
    return (U[:, :r] * sigma[:r]) @ Vh[:r]


@pytest.mark.parametrize(
    "more", [(), ("problem.noise=0.2",), ("problem.noise=0.2", "problem.observed=0.7")]
)
@pytest.mark.parametrize("r", [1, 2, 7])
def test_best_rank_error_is_to_the_best_approximation_of_the_truth(more, r):
    point = composed(*LINE, *more, f"problem.target_rank={r}")
    (row,) = solve([point])
    best = best_by_numpy(load_problem(point.problem).truth.target.numpy(), r)
    estimate = (row.factors[0] @ row.factors[1]).numpy()
    expected = np.linalg.norm(estimate - best) / np.linalg.norm(best)
    assert_allclose(row.trajectory["best_rank_error"][-1], expected, rtol=1e-10)
    (plain,) = solve([composed(*LINE, *more)])
    assert "best_rank_error" not in plain.trajectory
    assert_array_equal(plain.trajectory["relative_error"], row.trajectory["relative_error"])


def test_best_rank_error_of_a_given_matrix_is_to_the_matrix():
    point = composed(
        "problem=explicit", "problem.matrix=[[3,1],[0,2],[1,1]]", "problem.target_rank=1", "rank=1"
    )
    (row,) = solve([point])
    best = best_by_numpy(np.array([[3.0, 1], [0, 2], [1, 1]]), 1)
    estimate = (row.factors[0] @ row.factors[1]).numpy()
    expected = np.linalg.norm(estimate - best) / np.linalg.norm(best)
    assert_allclose(row.trajectory["best_rank_error"][-1], expected, rtol=1e-8, atol=1e-14)


def test_best_rank_error_of_listed_entries():
    with sparsely():
        load_problem.cache_clear()
        point = composed(*LINE, "problem.observed=0.7", "problem.target_rank=2")
        (row,) = solve([point])
        truth = load_problem(point.problem).truth
        best = best_by_numpy((truth.left @ truth.right).numpy(), 2)
    load_problem.cache_clear()
    estimate = (row.factors[0] @ row.factors[1]).numpy()
    expected = np.linalg.norm(estimate - best) / np.linalg.norm(best)
    assert_allclose(row.trajectory["best_rank_error"][-1], expected, rtol=1e-10)


def test_runs_of_other_target_ranks_share_no_batch():
    one, two = (load_problem(composed(*LINE, f"problem.target_rank={r}").problem) for r in (1, 2))
    assert one.layout != two.layout
    assert make_problem(one.D).layout == make_problem(two.D).layout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("problem.target_rank=8",), r"must be at most min\(n, m\) = 7"),
        (
            ("problem.spectrum=[2,1,1]", "problem.target_rank=2"),
            "singular values 2 and 3 are equal, so that there are many best approximations",
        ),
    ],
)
def test_a_vague_target_is_refused(more, message):
    with pytest.raises(Refused, match=rf"problem\.target_rank=.: {message}"):
        composed(*LINE, *more).problem()


def test_a_target_that_nobody_knows_is_refused():
    with pytest.raises(Refused, match=r"^problem\.target_rank=1: neither the truth nor all of D"):
        composed(
            "problem=explicit", "problem.matrix=[[1,null],[2,3]]", "problem.target_rank=1"
        ).problem()
