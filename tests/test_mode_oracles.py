"""Modes that move by themselves, beside integrals of SciPy and iterated numbers."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.integrate import quad
from test_oracles import solve_line

SIGMA = (4.0, 2.0, 1.0)
ALONG = ("problem=synthetic", "problem.n=8", "problem.m=7", f"problem.spectrum={list(SIGMA)}")
ALONG = (*ALONG, "rank=3", "loss.scale=0.5", "init=spectral", "record.points=60", "lr=1e-3")
MODES = (*ALONG, "diagnostics=dynamics")
DEEP = (*MODES, "depth=3", "init.scale=0.3", "steps=6000")
UNEQUAL = (*MODES, "init.scale=0.05", "init.ratio=8", "steps=6000")
CYCLES = (*MODES, "init.scale=0.9", "lr=0.28", "steps=4000", "record.last=8")

VERDICTS = {
    "aligned_modes": [
        ("agrees", DEEP),
        ("agrees", (*DEEP, "depth=4", "init.scale=0.5")),
        ("agrees", (*DEEP, "loss.scale=2.0")),
        ("agrees", UNEQUAL),
        ("agrees", (*UNEQUAL, "init.ratio=0")),
        ("agrees", (*DEEP, "lr_ratio=[2,4]")),
        ("agrees", (*MODES, "init.scale=0.1", "lr_ratio=5", "steps=6000")),
        (None, (*MODES, "init.scale=0.1", "steps=50")),  # left to saxe
        (None, (*DEEP, "diagnostics=basic", "steps=50")),
        (None, (*DEEP, "lr=0.05", "steps=50")),
        (None, (*DEEP, "problem.noise=1e-6", "steps=50")),
        (None, (*DEEP, "problem.observed=0.9", "steps=50")),
        (None, (*DEEP, "init=normal", "steps=50")),
        (None, (*DEEP, "optimizer=momentum", "steps=50")),
        (None, (*DEEP, "optimizer.alternating=true", "steps=50")),
        (None, (*DEEP, "loss.penalty=0.1", "steps=50")),
    ],
    "period_two": [
        ("agrees", CYCLES),
        ("agrees", (*CYCLES, "depth=3", "lr=0.115")),
        ("agrees", (*CYCLES, "depth=4", "lr=0.067")),
        ("agrees", (*CYCLES, "loss.scale=1.0", "lr=0.14")),
        (None, (*CYCLES, "lr=0.24")),  # below 1/4
        (None, (*CYCLES, "lr=0.315")),  # the cycle doubles
        (None, (*CYCLES, "record.last=3")),
        (None, (*CYCLES, "steps=5")),
        (None, (*CYCLES, "init.ratio=0.9")),
        (None, (*CYCLES, "diagnostics=basic")),
        (None, (*CYCLES, "problem.noise=1e-6")),
        (None, (*CYCLES, "optimizer=momentum", "optimizer.beta=0.1")),
    ],
}


@pytest.mark.parametrize(
    ("oracle", "expected", "line"),
    [(name, *case) for name, cases in VERDICTS.items() for case in cases],
)
def test_verdict(oracle, expected, line):
    assert solve_line(*line).tags.get(f"oracle.{oracle}") == expected


@pytest.mark.parametrize(("depth", "scale"), [(3, 0.3), (4, 0.5)])
def test_half_times_from_equal_factors_are_saxe_s_integral(depth, scale):
    row = solve_line(*DEEP, f"depth={depth}", f"init.scale={scale}")
    for i, s in enumerate(SIGMA, 1):
        start, half = scale * s ** (1 / depth), (s / 2) ** (1 / depth)
        t, _ = quad(lambda w, s=s: 1 / (w ** (depth - 1) * (s - w**depth)), start, half)
        assert row.values[f"theory.half_time.{i}"] == pytest.approx(t / 1e-3, rel=1e-7)
        assert row.values[f"half_time.{i}"] == pytest.approx(t / 1e-3, rel=0.03)


@pytest.mark.parametrize(("scale", "ratio"), [(0.05, 8), (0.02, 0.5), (0.3, 3)])
def test_half_times_from_unequal_factors_are_dominé_s_integral(scale, ratio):
    row = solve_line(*UNEQUAL, f"init.scale={scale}", f"init.ratio={ratio}")
    for i, s in enumerate(SIGMA, 1):
        first, last = scale * s**0.5, scale * ratio * s**0.5
        gap = first**2 - last**2
        t, _ = quad(
            lambda a, s=s, gap=gap: 1 / (np.hypot(gap, 2 * a) * (s - a)), first * last, s / 2
        )
        assert row.values[f"theory.half_time.{i}"] == pytest.approx(t / 1e-3, rel=1e-7)
        assert row.values[f"half_time.{i}"] == pytest.approx(t / 1e-3, rel=0.03)


@pytest.mark.parametrize(("depth", "lr"), [(2, 0.28), (3, 0.115)])
def test_the_cycle_is_that_of_an_iterated_number(depth, lr):
    row = solve_line(*CYCLES, f"depth={depth}", f"lr={lr}")
    for i, s in enumerate(SIGMA, 1):
        onset = 2 / (depth * s ** (2 - 2 / depth))
        assert row.values[f"theory.lr_period_two.{i}"] == pytest.approx(onset, rel=1e-12)
        for times, period in ((0.99, 1), (1.01, 2)):
            w = 0.9 * s ** (1 / depth)
            for _ in range(20_000):
                w -= times * onset * w ** (depth - 1) * (w**depth - s)
            after = w - times * onset * w ** (depth - 1) * (w**depth - s)
            assert (abs(after - w) < 1e-9) == (period == 1)
        w = 0.9 * s ** (1 / depth)
        for _ in range(3996):
            w -= lr * w ** (depth - 1) * (w**depth - s)
        seen = []
        for _ in range(5):
            seen.append(w**depth)
            w -= lr * w ** (depth - 1) * (w**depth - s)
        last = row.trajectory[f"mode.{i}"][-5:]
        assert_allclose(sorted(last[-2:]), sorted(seen[-2:]), rtol=1e-6)
    assert row.values["deviation.period_two"] < 1e-6
