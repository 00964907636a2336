"""What holds of any run: odd shapes and numbers, every loss and optimizer, both precisions. NumPy
in extended precision says what is right."""

from dataclasses import replace
from functools import reduce
from itertools import count

import cases
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_config import composed

import mfgd
from mfgd import plan
from mfgd.attempt import solve_or_report
from mfgd.config import Component
from mfgd.given import forget_problems
from mfgd.types import Refused

DTYPES = [torch.float64, torch.float32]
OUTCOMES = {"converged", "budget", "plateau", "diverged", "undefined"}
LOSSES, OPTIMIZERS = sorted(cases.LOSSES), sorted(cases.OPTIMIZERS)
NUMBERS = count()
WIDE = np.finfo(np.longdouble).nmant > 52
pytestmark = pytest.mark.skipif(not WIDE, reason="no extended precision on this machine")


@st.composite
def matrices(draw, exponents):
    """Small matrices D (n, m), among them columns, rows, single numbers, sparse and constant
    ones."""
    n, m = draw(st.sampled_from([(1, 1), (1, 5), (5, 1), (2, 6), (4, 3), (6, 6)]))
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    D = {
        "normal": generator.normal(size=(n, m)),
        "constant rows": np.repeat(generator.normal(size=(n, 1)), m, 1),
        "zeros": np.where(generator.random((n, m)) < 0.7, 0.0, generator.normal(size=(n, m))),
        "zero": np.zeros((n, m)),
        "counts": generator.integers(0, 5, (n, m)).astype(float),
        "far apart": 10.0 ** generator.integers(-8, 8, (n, m)),
    }[draw(st.sampled_from(["normal", "constant rows", "zeros", "zero", "counts", "far apart"]))]
    return D * 10.0 ** draw(exponents)


def wide(X) -> np.ndarray:
    return np.asarray(X, dtype=np.longdouble)


def slope_error(name: str, r: np.ndarray, error: np.ndarray) -> np.ndarray:
    """How far ρ′ can be off at residuals that are off by an error."""
    if name == "squared":
        return 2 * error
    # ρ′ is constant beyond it.
    flat = 0.0 if name in cases.KINKED else {"huber": 0.7, "logcosh": 40.0}[name]
    steep = np.full_like(r, 2.0) if name in cases.KINKED else np.minimum(error, 2.0)
    return np.where(abs(r) - error > flat, 0.0, steep)


def is_smooth(name: str, low: np.ndarray, high: np.ndarray) -> bool:
    """Whether ρ is smooth between residuals, on the scale of their difference."""
    if name == "squared":
        return True
    beyond = np.minimum(abs(low), abs(high)) > 40 + abs(high - low)
    kinks = [0.0] if name in cases.KINKED else {"huber": [-0.7, 0.7], "logcosh": []}[name]
    crossed = np.any([(low <= kink) != (high <= kink) for kink in kinks], 0)
    return bool((beyond | ((abs(high - low) < 1e-3) & ~crossed)).all())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(cases.LOSSES)),
    st.sampled_from(DTYPES),
    st.integers(2, 4),
    st.integers(1, 7),
    st.data(),
)
def test_the_gradient_is_the_difference_quotient_of_numpy_s_loss(name, dtype, depth, rank, data):
    reach = 120 if dtype == torch.float64 else 12
    D = torch.from_numpy(data.draw(matrices(st.integers(-reach, reach)))).to(dtype)
    (n, m), largest = D.shape, float(D.abs().max()) or 1.0
    factors = tuple(
        (W * largest ** (1 / depth)).to(dtype) for W in cases.factors((), depth, rank, 0, n, m)
    )
    objective = mfgd.Objective(cases.make_problem(D), cases.loss(name))
    rho, Ws = cases.LOSSES[name].reference, [*map(wide, factors)]
    rounding = 1e2 * torch.finfo(dtype).eps
    error = rounding * (reduce(np.matmul, map(abs, Ws)) + abs(wide(D)))
    for level, G in enumerate(objective.gradient(factors)):
        for at in np.ndindex(*G.shape):
            h = 1e-6 * abs(Ws[level]).max()
            ends = []
            for move in (-h, h):
                moved = [W.copy() for W in Ws]
                moved[level][at] += move
                ends.append(reduce(np.matmul, moved) - wide(D))
            low, high = ends
            if is_smooth(name, low, high):
                quotient = (rho(high) - rho(low)) / (2 * h)
                off = slope_error(name, (low + high) / 2, error) * abs(high - low) / (2 * h)
                allowed = (1e-6 + rounding) * abs(quotient).sum() + off.sum()
                assert abs(float(G[at]) - quotient.sum()) <= allowed


BASE = composed("init=uniform", "init.scale=0.5", "record.points=6", "steps=12")
"""Its groups are replaced: to compose a config takes longer than to solve so small a run."""


def option(group: str, name: str, **keys) -> Component:
    function = getattr(getattr(mfgd, group), name)
    return Component(name, f"mfgd.{group}.{name}", function, tuple(sorted(keys.items())))


def check_loss(point, D: np.ndarray, row) -> None:
    """Holds the final loss against NumPy's, if each residual is off by its rounding errors."""
    Ws = [*map(wide, row.factors)]
    numbers, size = torch.finfo(point.dtype), reduce(np.matmul, map(abs, Ws)) + abs(D)
    residual, error = reduce(np.matmul, Ws) - D, 4 * point.rank * numbers.eps * size
    rho = cases.LOSSES[point.loss.name].reference
    ends = rho(residual - error), rho(residual + error)
    low = np.where(abs(residual) < error, 0, np.minimum(*ends)).sum()
    high = np.maximum(*ends).sum()
    if high < np.finfo(float).max and size.max() < numbers.max:
        assert low * (1 - 1e-9) <= row.trajectory["loss"][-1] <= high * (1 + 1e-9)


@st.composite
def runs(draw):
    """D, and a run of any loss and optimizer."""
    optimizer = draw(st.sampled_from(OPTIMIZERS))
    loss = "squared" if optimizer in cases.QUADRATIC else draw(st.sampled_from(LOSSES))
    dtype = draw(st.sampled_from(DTYPES))
    far = [-300, -120, 120, 290] if dtype == torch.float64 else [-25, 25, 50]
    D = draw(matrices(st.sampled_from([*far, *range(-15, 16)])))
    D = abs(D) if optimizer == "mu" else D
    moves = {} if optimizer in cases.ONE_WAY else {"alternating": draw(st.booleans())}
    keys = {"scale": 1.0, "reduction": "sum", "penalty": 0.0} | cases.LOSSES[loss].keys
    problem = Component(f"D{next(NUMBERS)}", "test_properties.D", lambda: torch.from_numpy(D), ())
    return D, replace(
        BASE,
        problem=problem,
        loss=option("loss", loss, **keys),
        optimizer=option("optimizer", optimizer, **cases.OPTIMIZERS[optimizer].keys | moves),
        init=option("init", "uniform", scale=float(np.sqrt(abs(D).max())) or 1.0, ratio=1.0),
        rank=draw(st.integers(1, 7)),
        dtype=dtype,
        depth=2 if optimizer in cases.PAIRS else draw(st.integers(2, 3)),
        lr=(10.0 ** draw(st.integers(-4, 1)),),
        lr_unit=draw(st.sampled_from(["absolute", "sigma1"])),
        tolerance=draw(st.sampled_from([0.0, 0.5])),
        patience=draw(st.sampled_from([None, 4])),
        seed=draw(st.integers(0, 9)),
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(runs())
def test_any_run_ends_as_it_says_and_is_not_altered_by_a_run_that_diverges(drawn):
    D, point = drawn
    forget_problems()
    beside = [replace(point, seed=11, lr=(1e30,)), point, replace(point, seed=12, lr=(1e300,))]
    if point.dtype == torch.float32:
        beside[2] = replace(beside[2], lr=(1e20,))
    try:
        plan.group_points([point])
    except Refused:
        return
    ((row,),) = solve_or_report([point])
    assert not isinstance(row, Exception), row
    assert row.outcome in OUTCOMES
    D = wide(torch.from_numpy(D).to(point.dtype))
    if all(bool(W.isfinite().all()) for W in row.factors):
        check_loss(point, D, row)
    else:
        assert row.outcome == "diverged"
    if row.outcome == "converged":
        assert is_within(point, D, row)
    for results in solve_or_report(beside):
        if len(results) == len(beside):
            other = results[1]
            assert row.outcome == other.outcome
            assert all(map(equal_bits, row.factors, other.factors))
            for name in row.trajectory.keys() - {"seconds"}:
                assert row.trajectory[name].tobytes() == other.trajectory[name].tobytes(), name


def equal_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.numpy().tobytes() == other.numpy().tobytes()


def is_within(point, D: np.ndarray, row) -> bool:
    """Whether the last factors are within the tolerance of the answer: of the optimum of the
    squared loss, that of Eckart and Young, if it is not 0; else of D."""
    slack = 1e-3 if point.dtype == torch.float32 else 1e-9
    size = abs(D).max()
    missed = np.linalg.norm((reduce(np.matmul, map(wide, row.factors)) - D) / size)
    sigma = np.linalg.svd((D / size).astype(float), compute_uv=False)
    rest = float((sigma[point.rank :] ** 2).sum())
    if point.loss.name == "squared" and rest > 1e-20:
        return missed**2 <= rest * (1 + point.tolerance + slack)
    return missed <= (point.tolerance + slack) * np.linalg.norm(D / size)
