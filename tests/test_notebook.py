"""The numeric core alone gives every number that the founding notebook printed."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import mfgd
from mfgd.descent import State, descent
from mfgd.objective import product

D = [
    [0.0456, 0.1537, 0.0830, 0.0980],
    [0.2683, 0.4260, 0.4277, 0.4913],
    [0.4779, 0.7156, 0.7563, 0.8673],
]
C = [[0.9721, 0.2518], [0.0386, 0.5858], [0.4206, 0.2610]]
F = [[0.8656, 0.0336, 0.1317, 0.2444], [0.4919, 0.4990, 0.4563, 0.7689]]
START = [
    [0.9654, 0.1583, 0.2429, 0.4312],
    [0.3215, 0.2936, 0.2724, 0.4599],
    [0.4925, 0.1443, 0.1745, 0.3034],
]
GRADIENT_C = [[1.7976, 1.5676], [0.0270, -0.2698], [-0.4419, -1.9538]]
GRADIENT_F = [[1.8045, -0.4818, -0.1906, 0.1710], [0.5332, -0.4509, -0.4052, -0.1633]]
STEPPED_C = [[0.9541, 0.2361], [0.0383, 0.5885], [0.4250, 0.2805]]
STEPPED_F = [[0.8476, 0.0384, 0.1336, 0.2426], [0.4866, 0.5036, 0.4603, 0.7705]]
LOSSES = [1.8741, 0.0223, 0.0060, 0.0028, 0.0020, 0.0017, 0.0016, 0.0015, 0.0015, 0.0014, 0.0014]
FINAL = [
    [0.0497, 0.1423, 0.0869, 0.1019],
    [0.2768, 0.4008, 0.4364, 0.5000],
    [0.4724, 0.7316, 0.7508, 0.8618],
]
RESIDUAL = 1e-2 * np.array(
    [
        [0.4044, -1.1402, 0.3885, 0.3853],
        [0.8437, -2.5201, 0.8680, 0.8727],
        [-0.5418, 1.6038, -0.5506, -0.5531],
    ]
)
RECORDS = [0, 1, *range(1000, 10001, 1000)]
PRINTED = 0.5e-4 + 1e-9
"""Half a unit of the last of four decimals."""


@pytest.fixture(scope="module")
def objective() -> mfgd.Objective:
    squared = mfgd.loss.squared(scale=1.0, reduction="sum", penalty=0.0)
    return mfgd.Objective(mfgd.problem.notebook(), squared)


@pytest.fixture(scope="module")
def states(objective) -> dict[int, State]:
    start = mfgd.init.notebook()(objective.problem, (3, 2, 4), torch.Generator())
    stream = descent(
        objective, mfgd.optimizer.gd(alternating=False), start, lr=[0.01, 0.001], records=RECORDS
    )
    return {state.step: state for state in stream}


def test_before_the_first_step(objective, states):
    assert_allclose(objective.problem.D, D, rtol=0)
    for ours, printed in zip(states[0].factors, (C, F), strict=True):
        assert_allclose(ours, printed, rtol=0, atol=PRINTED)
    assert_allclose(product(states[0].factors), START, rtol=0, atol=1e-4)
    assert_allclose(states[0].loss, 2.0110, rtol=0, atol=PRINTED)


def test_loss_of_the_rounded_factors(objective):
    rounded = tuple(torch.tensor(X, dtype=torch.float64) for X in (C, F))
    assert_allclose(objective.value(rounded), 2.0109, rtol=0, atol=1e-4)


def test_gradients(objective, states):
    for ours, printed in zip(
        objective.gradient(states[0].factors), (GRADIENT_C, GRADIENT_F), strict=True
    ):
        assert_allclose(ours, printed, rtol=0, atol=2e-4)


def test_after_the_first_step(states):
    for ours, printed in zip(states[1].factors, (STEPPED_C, STEPPED_F), strict=True):
        assert_allclose(ours, printed, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("iteration", "printed"), zip([1, *RECORDS[2:]], LOSSES, strict=True))
def test_loss_history(states, iteration, printed):
    assert_allclose(states[iteration].loss, printed, rtol=0, atol=1e-4)


def test_what_was_learned(objective, states):
    estimate = product(states[10000].factors)
    assert_allclose(estimate, FINAL, rtol=0, atol=3e-4)
    assert_allclose(estimate - objective.problem.D, RESIDUAL, rtol=0, atol=3e-4)


def test_the_core_needs_neither_hydra_nor_mlflow():
    others = {"hydra", "omegaconf", "mlflow", "pydantic"}
    code = f"import sys, mfgd; sys.exit(not {others}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
