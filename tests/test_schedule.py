"""How the rate changes, against torch.optim.lr_scheduler."""

import pytest
import torch
from cases import SCHEDULES, options
from numpy.testing import assert_allclose

import mfgd.schedule


def test_every_option_is_a_case():
    assert options("schedule") == set(SCHEDULES)


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_are_torch_s(name):
    case, budget = SCHEDULES[name], 20
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = (
        case.reference(optimizer, budget) if name != "constant" else case.reference(optimizer)
    )
    expected = []
    for _ in range(budget):
        expected += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    change = getattr(mfgd.schedule, name)(**case.keys)
    assert_allclose(
        [1.0 if change is None else change(step, budget) for step in range(budget)],
        expected,
        rtol=1e-12,
    )
