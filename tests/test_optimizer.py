"""One step, against torch.optim."""

import pytest
import torch
from cases import BATCHES, OPTIMIZERS, column, factors, loss, options, problem
from numpy.testing import assert_allclose

import mfgd
from mfgd import Objective
from mfgd.descent import descent, product

NAMES = pytest.mark.parametrize("name", OPTIMIZERS)


def made(name: str) -> mfgd.optimizer.Optimizer:
    return getattr(mfgd.optimizer, name)(**OPTIMIZERS[name].keys)


def test_every_option_is_a_case():
    assert options("optimizer") == set(OPTIMIZERS)


@NAMES
@BATCHES
@pytest.mark.parametrize("depth", [2, 3])
def test_trajectory_is_torch_s(name, batch, depth):
    given, start = problem("noisy", batch), factors(batch, depth)
    # A number and a column take different kernels.
    rates = column(0.001, 0.003, 0.01) if batch else 0.005
    states = descent(Objective(given, loss("squared", scale=0.5)), made(name), start, lr=rates, records=range(201))
    ours = torch.stack([product(state.factors) for state in states])

    parameters = [
        [W.clone().requires_grad_() for W in Ws] for Ws in ([*zip(*start, strict=True)] if batch else [start])
    ]
    optimizers = [
        OPTIMIZERS[name].reference(Ws, lr)
        for Ws, lr in zip(parameters, rates.flatten().tolist() if batch else [rates], strict=True)
    ]
    theirs = []
    for _ in range(201):
        estimate = torch.stack([product(tuple(Ws)) for Ws in parameters]).reshape(given.D.shape)
        theirs.append(estimate.detach())
        (0.5 * (given.mask * (estimate - given.D)).square().sum()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert_allclose(ours, torch.stack(theirs), rtol=1e-10, atol=1e-10)


@NAMES
@BATCHES
def test_a_step_changes_nothing_in_place(name, batch):
    optimizer, start, gradients = made(name), factors(batch), factors(batch, seed=1)
    kept = [X.clone() for X in (*start, *gradients)]
    _, memory = optimizer.step(start, gradients, optimizer.init(start), 0.1)
    before = None if memory is None else [V.clone() for V in memory]
    optimizer.step(start, gradients, memory, 0.1)
    assert all(map(torch.equal, (*start, *gradients), kept))
    assert memory is None or all(map(torch.equal, memory, before))
