"""±1 and counts that are drawn in place of a matrix of parameters."""

import numpy as np
import pytest
import torch
from cases import mask_of, sparsely, synthetic
from scipy import special
from test_config import composed

from mfgd.types import Refused


def test_one_bit_draws_are_bernoulli():
    given = synthetic(n=300, m=200, spectrum=[400.0, 300.0], response="one_bit", seed=3)
    X, D = given.truth.target, given.D
    assert set(D.unique().tolist()) == {-1.0, 1.0}
    chance = special.expit(X.numpy())
    surprise = ((D.numpy() + 1) / 2 - chance) / np.sqrt(chance * (1 - chance))
    assert abs(surprise.sum()) < 4 * np.sqrt(surprise.size)
    assert abs((surprise * X.numpy()).sum()) < 4 * np.linalg.norm(X)


def test_poisson_draws_are_counts_of_that_mean():
    given = synthetic(n=300, m=200, spectrum=[400.0, 300.0], response="poisson", seed=3)
    X, D = given.truth.target.numpy(), given.D.numpy()
    assert (np.round(D) == D).all()
    assert (D >= 0).all()
    surprise = (D - np.exp(X)) / np.exp(X / 2)
    assert abs(surprise.sum()) < 4 * np.sqrt(surprise.size)
    fourth = 2 + np.exp(-X)  # variance of the square of a standardized Poisson count
    assert abs((surprise**2 - 1).sum()) < 4 * np.sqrt(fourth.sum())


@pytest.mark.parametrize("response", ["one_bit", "poisson"])
def test_a_mask_moves_no_draw_and_a_draw_moves_no_mask(response):
    whole = synthetic(response=response)
    some = synthetic(response=response, observed=0.4)
    mask = mask_of(some) == 1
    assert torch.equal(some.D[mask], whole.D[mask])
    assert torch.equal(mask_of(synthetic(observed=0.4)) == 1, mask)
    assert some.draws["response"] == whole.draws["response"]
    assert some.draws["response"] != synthetic(response=response, seed=1).draws["response"]
    assert torch.equal(whole.truth.target, synthetic().D)
    assert whole.rank is whole.noise is None
    with sparsely():
        listed = synthetic(response=response, observed=0.4)
    assert torch.equal(listed.D, some.D[mask])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"noise": 0.1}, r"problem\.response=one_bit: is drawn without noise; allowed are problem"),
        ({"outliers": 0.1}, r"problem\.response=one_bit: is drawn without noise"),
        ({"response": "poisson", "spectrum": [1e5]}, "response=poisson: the largest entry is"),
    ],
)
def test_what_cannot_be_drawn_is_refused(keys, message):
    with pytest.raises(Refused, match=message):
        synthetic(**{"response": "one_bit"} | keys)


def test_runs_that_draw_no_response_keep_their_fingerprint():
    line = ("problem=synthetic", "problem.n=8", "problem.m=7")
    usual = composed(*line)
    assert composed(*line, "problem.response=gaussian").fingerprint == usual.fingerprint
    assert composed(*line, "problem.response=one_bit").fingerprint != usual.fingerprint
