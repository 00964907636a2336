"""A penalty on several factors, beside SciPy's minimizers and what descent finds."""

import numpy as np
import pytest
import torch
from cases import factors, loss, problem
from scipy.optimize import minimize_scalar
from test_oracles import LOW, solve_line

from mfgd import theory
from mfgd.schatten import shrink


def g(x, s, w, penalty, depth):
    return w * (s - x) ** 2 + penalty * depth / 2 * x ** (2 / depth)


@pytest.mark.parametrize("depth", [2, 3, 4, 7])
@pytest.mark.parametrize("penalty", [1e-3, 0.1, 0.5, 3.0])
@pytest.mark.parametrize(("s", "w"), [(1.0, 0.5), (0.3, 2.0), (20.0, 1.0)])
def test_the_root_is_the_minimum_beside_zero(depth, penalty, s, w):
    found = shrink(s, penalty / (2 * w), depth)
    # Between neighbours of the least local minimum of a fine grid SciPy finds a minimum.
    grid = np.linspace(1e-9 * s, 1.01 * s, 20_001)
    values = g(grid, s, w, penalty, depth)
    (inner,) = np.nonzero((values[1:-1] < values[:-2]) & (values[1:-1] < values[2:]))
    if len(inner) == 0:
        assert found < grid[1]
        return
    around = grid[inner[-1]], grid[inner[-1] + 2]
    best = minimize_scalar(g, bounds=around, args=(s, w, penalty, depth), method="bounded")
    assert found == pytest.approx(best.x, rel=1e-4)
    slope = -2 * w * (s - found) + penalty * found ** (2 / depth - 1)
    assert abs(slope) < 1e-10 * (1 + penalty)


@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("penalty", [0.003, 0.05])
def test_the_optimum_is_the_least_value_of_torch_s_lbfgs(depth, reduction, penalty):
    given, rank = problem("full"), 2
    D = given.D
    w = 0.5 / (D.numel() if reduction == "mean" else 1)
    penalty = penalty * 2 * w
    U, sigma, Vh = torch.linalg.svd(D, full_matrices=False)
    reached = []
    for seed in range(3):
        root = sigma[:rank] ** (1 / depth)
        start = (U[:, :rank] * root, *[torch.diag(root)] * (depth - 2), root[:, None] * Vh[:rank])
        noise = factors((), depth, rank, seed=seed)
        Ws = [
            (W + 0.05 * X).contiguous().requires_grad_() for W, X in zip(start, noise, strict=True)
        ]
        search = torch.optim.LBFGS(
            Ws,
            max_iter=2000,
            tolerance_grad=1e-14,
            tolerance_change=1e-18,
            line_search_fn="strong_wolfe",
        )

        def value(Ws=Ws):
            squares = sum(W.square().sum() for W in Ws)
            product = torch.linalg.multi_dot(Ws)
            return w * (product - D).square().sum() + penalty / 2 * squares

        def closure(Ws=Ws, search=search, value=value):
            search.zero_grad()
            out = value()
            out.backward()
            return out

        search.step(closure)
        reached.append(value().item())
    optimum = theory.optimum(
        given, loss("squared", scale=0.5, penalty=penalty, reduction=reduction), rank, depth
    )
    assert min(reached) == pytest.approx(optimum, rel=1e-7)


DEEP = (*LOW, "depth=3", "init.scale=0.3", "lr=0.3", "steps=4000", "loss.penalty=0.02")


@pytest.mark.parametrize(
    ("expected", "line"),
    [
        ("agrees", DEEP),
        ("agrees", (*DEEP, "depth=4", "lr=0.1", "steps=8000")),
        ("agrees", (*DEEP, "problem.noise=0.02", "init=spectral", "init.scale=1.0")),
        ("agrees", (*DEEP, "init.scale=0.01", "lr=1")),  # all of them stay at 0
        ("deviates", (*DEEP, "steps=20")),
        (None, (*DEEP, "depth=2")),
        (None, (*DEEP, "loss.penalty=0")),
        (None, (*DEEP, "problem.observed=0.9")),
        (None, (*DEEP, "loss=huber", "steps=20")),
    ],
)
def test_verdict(expected, line):
    row = solve_line(*line)
    assert row.tags.get("oracle.deep_penalty") == expected
    assert expected is None or not np.isnan(row.trajectory["loss_gap"]).any()
