"""What is seen of a matrix: observed entries, noise, outliers, held-out entries."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from cases import FILE, OBSERVATION, mask_of, synthetic
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import kstest
from sklearn.datasets import load_digits

from mfgd import draws, problem
from mfgd.types import Refused

NAN = np.nan


def file(**keys) -> problem.Problem:
    return problem.file(**FILE | keys)


def saved(folder, array, name="D.npy") -> str:
    np.save(folder / name, array)
    return str(folder / name)


def held_out(given: problem.Problem) -> torch.Tensor:
    """Whether each entry is held out."""
    return ~given.heldout.with_nan().isnan()


# Observed entries


@given(
    n=st.integers(1, 12),
    m=st.integers(2, 12),
    share=st.floats(0.05, 1.0),
    seed=st.integers(0, 9),
    data=st.data(),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_exactly_the_observed_share_or_count(n, m, share, seed, data):
    count = data.draw(st.integers(2, n * m))
    for asked, expected in ((share, round(share * n * m)), (count, count)):
        assume(expected > 0)
        made = synthetic(n=n, m=m, rank=1, observed=asked, seed=seed)
        assert int(made.count) == expected
        assert (mask_of(made) is None) == (expected == n * m)


def test_masks_are_nested_in_the_share():
    masks = [mask_of(synthetic(observed=share)) for share in (0.1, 0.3, 200, 0.9)]
    assert all((small <= large).all() for small, large in pairwise(masks))
    assert not torch.equal(masks[0], mask_of(synthetic(observed=0.1, seed=1)))


def test_mask_is_uniform_over_entries():
    shares = torch.stack(
        [mask_of(synthetic(n=6, m=5, observed=0.3, seed=seed)) for seed in range(800)]
    ).mean(0)
    assert (shares - 0.3).abs().max() < 4.5 * np.sqrt(0.3 * 0.7 / 800)


def test_a_given_mask(tmp_path):
    mask = np.where(np.random.default_rng(0).random((30, 20)) < 0.4, -2.5, 0)
    mask[0, :5] = NAN
    given = synthetic(mask=saved(tmp_path, mask), noise=0.1)
    assert_array_equal(mask_of(given), (mask != 0) & ~np.isnan(mask))
    assert_array_equal(given.D, synthetic(noise=0.1).D * mask_of(given))
    assert set(given.draws) == {"data", "noise"}
    assert mask_of(synthetic(mask=saved(tmp_path, np.ones((30, 20))))) is None
    np.savetxt(tmp_path / "mask.csv", mask, delimiter=",")
    assert_array_equal(mask_of(synthetic(mask=str(tmp_path / "mask.csv"))), mask_of(given))


@pytest.mark.parametrize(
    ("array", "keys", "reason"),
    [
        (np.ones((20, 30)), {}, r"a mask of shape \(20, 30\); must be the shape of D, \(30, 20\)"),
        (np.zeros((30, 20)), {}, "observes no entry"),
        (
            np.ones((30, 20)),
            {"observed": 0.5},
            r"beside problem\.observed=0\.5: allowed is one of the two",
        ),
        (np.ones((30, 20)), {"observed": 7}, "beside problem.observed=7"),
    ],
)
def test_masks_that_are_refused(array, keys, reason, tmp_path):
    path = saved(tmp_path, array, "mask.npy")
    with pytest.raises(Refused, match=rf"^problem\.mask={path}:? .*{reason}"):
        synthetic(mask=path, **keys)


# Noise and outliers


@pytest.mark.parametrize("noise", [0.01, 3.0])
def test_noise_is_gaussian_of_its_standard_deviation(noise):
    given = synthetic(n=200, m=100, noise=noise)
    z = ((given.D - given.truth.target) / noise).numpy()
    assert abs(z.mean()) < 4.5 / np.sqrt(z.size)
    assert abs(z.std() - 1) < 4.5 / np.sqrt(2 * z.size)
    assert abs((z**4).mean() - 3) < 4.5 * np.sqrt(96 / z.size)
    assert given.rank is None


def test_noise_is_independent_of_the_data():
    """Noise made of the numbers of U would lie in the column space of the truth, 20 of 30
    dimensions."""
    given = synthetic(rank=20, noise=1.0)
    noise = (given.D - given.truth.target).numpy()
    inside = np.linalg.qr(given.truth.target.numpy())[0].T @ noise
    share = (inside**2).sum() / (noise**2).sum()
    assert abs(share - 2 / 3) < 4.5 * np.sqrt(2 * (2 / 3) * (1 / 3) / 600)


def test_signal_to_noise_ratio():
    given = synthetic(n=200, m=100, snr=4.0)
    power = float(given.truth.target.square().sum() / (given.D - given.truth.target).square().sum())
    assert abs(power / 4 - 1) < 4.5 * np.sqrt(2 / 20_000)
    assert_allclose(
        given.noise, np.sqrt((np.linspace(1, 0.25, 3) ** 2).sum() / 4 / 20_000), rtol=1e-12
    )
    assert_array_equal(given.D, synthetic(n=200, m=100, noise=given.noise).D)
    assert given.rank is None


def test_outliers_replace_exactly_their_share(tmp_path):
    """Outliers are uniform between ± the largest entry of the truth times the scale."""
    given = synthetic(n=200, m=100, outliers=0.3, outlier_scale=2.0, noise=1e-9)
    struck = ((given.D - given.truth.target).abs() > 1e-7).numpy()
    bound = 2 * float(given.truth.target.abs().max())
    assert abs(struck.sum() - 6000) <= 1  # an outlier may by chance be close to the truth
    drawn = given.D.numpy()[struck] / bound
    assert kstest(drawn, "uniform", (-1, 2)).pvalue > 1e-3
    assert (given.noise, given.rank) == (None, None)
    assert struck.mean(0).max() < 0.3 + 4.5 * np.sqrt(0.21 / 200)


def test_outliers_are_nested_and_scale_one_draw():
    few, many, loud = (
        synthetic(outliers=p, outlier_scale=s) for p, s in ((0.1, 1.0), (0.4, 1.0), (0.1, 3.0))
    )
    moved = few.truth.target != few.D
    assert_array_equal(many.D[moved], few.D[moved])
    assert_allclose(loud.D[moved], 3 * few.D[moved], rtol=1e-15)
    assert_array_equal(loud.D[~moved], loud.truth.target[~moved])
    assert few.draws["outliers"] == many.draws["outliers"]
    masked = synthetic(outliers=0.1, observed=0.5)
    assert_array_equal(masked.D, few.D * mask_of(masked))


# Held-out entries


def test_held_out_entries_are_a_share_of_the_observed_entries():
    plain, given = (synthetic(observed=0.5, noise=0.1, heldout=share) for share in (0.0, 0.3))
    aside = held_out(given)
    assert int(aside.sum()) == 90
    assert int(given.count) == 210
    assert_array_equal(mask_of(given) + aside, mask_of(plain))
    assert_array_equal(given.D + given.heldout.with_nan().nan_to_num(), plain.D)
    assert (given.D[aside] == 0).all()
    assert (aside <= held_out(synthetic(observed=0.5, heldout=0.6))).all()
    assert not torch.equal(aside, held_out(synthetic(observed=0.5, heldout=0.3, seed=1)))
    assert int(synthetic(heldout=0.1).count) == 540


def test_held_out_entries_are_uniform_over_the_observed_entries():
    made = [synthetic(n=6, m=5, observed=0.5, heldout=0.4, seed=seed) for seed in range(800)]
    shares = torch.stack([held_out(given).double() for given in made]).mean(0)
    assert (shares - 0.2).abs().max() < 4.5 * np.sqrt(0.2 * 0.8 / 800)


# All draws


def test_the_draws_of_a_seed_are_those_of_the_first_release():
    """U, V, noise and mask of a seed stay what they were."""
    given = synthetic(rank=4, condition=5.0, noise=0.3, observed=0.4, seed=7)
    data, noise, mask = (draws.stream(f"problem {kind}", 7) for kind in ("data", "noise", "mask"))
    U, V = (draws.orthonormal(size, 4, data) for size in (30, 20))
    truth = (U * torch.linspace(1, 0.2, 4, dtype=torch.float64)) @ V.mT
    order = torch.rand(600, generator=mask, dtype=torch.float64).argsort()
    assert_array_equal(mask_of(given).flatten().nonzero()[:, 0], order[:240].sort().values)
    noisy = truth + 0.3 * draws.standard_normal((30, 20), noise)
    assert_array_equal(given.D, noisy * mask_of(given))
    assert_array_equal(given.truth.target, truth)


def test_noise_and_mask_never_move_the_data():
    plain, noisy, masked = synthetic(), synthetic(noise=0.5), synthetic(observed=0.4)
    both, louder = synthetic(noise=0.5, observed=0.4), synthetic(noise=1.0)
    for other in (plain, noisy, masked, both, louder):
        assert torch.equal(plain.D, other.truth.target)
    assert torch.equal(mask_of(masked), mask_of(both))
    assert torch.equal(both.D, noisy.D * mask_of(both))
    assert_allclose(louder.D - plain.D, 2 * (noisy.D - plain.D), atol=1e-15)
    assert not torch.equal(plain.D, synthetic(seed=1).D)


def test_each_draw_has_a_hash_that_others_do_not_move():
    assert set(synthetic().draws) == {"data"}
    assert problem.notebook().draws == {}
    base = {"noise": 0.1, "observed": 0.5, "outliers": 0.1, "heldout": 0.2}
    first = synthetic(**base).draws
    assert set(first) == {"data", "noise", "mask", "outliers", "heldout"}
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in first.values())
    for change in (
        {"noise": 0.7},
        {"noise": 0.0, "snr": 9.0},
        {"outliers": 0.3},
        {"outlier_scale": 5.0},
    ):
        assert synthetic(**base | change).draws == first
    assert {**synthetic(**base | {"observed": 0.8}).draws, "heldout": first["heldout"]} == first
    other = synthetic(**base | {"seed": 1}).draws
    assert all(other[kind] != first[kind] for kind in first)


# Given data


WHOLE = np.random.default_rng(1).normal(size=(30, 20))


@pytest.mark.parametrize(
    "keys",
    [
        {"observed": 0.3},
        {"observed": 100},
        {"noise": 0.5},
        {"snr": 3.0},
        {"outliers": 0.2},
        {"noise": 0.1, "observed": 0.5, "heldout": 0.2},
    ],
    ids=str,
)
def test_given_data_hidden_or_disturbed_is_the_truth(keys, tmp_path):
    given = file(path=saved(tmp_path, WHOLE), **keys)
    assert_array_equal(given.truth.target, WHOLE)
    assert not given.generated
    assert given.noise == (
        None if "outliers" in keys else pytest.approx(keys.get("noise", given.noise))
    )
    if "observed" in keys and "noise" not in keys:
        assert_array_equal(given.D, WHOLE * mask_of(given).numpy())
        assert int(given.count) in (180, 100)
        assert given.noise == 0


def test_undisturbed_data_has_no_truth(tmp_path):
    given = file(path=saved(tmp_path, WHOLE))
    assert (given.truth, mask_of(given), given.noise, given.draws) == (None, None, None, {})
    split = file(path=saved(tmp_path, WHOLE), heldout=0.2)
    assert split.truth is None
    assert int(split.count) == 480
    assert_array_equal(np.where(mask_of(split) == 1, split.D, split.heldout.with_nan()), WHOLE)


def test_missing_entries_stay_missing(tmp_path):
    holed = np.where(np.random.default_rng(2).random(WHOLE.shape) < 0.5, WHOLE, NAN)
    size = int(np.isfinite(holed).sum())
    path = saved(tmp_path, holed)
    given = file(path=path, observed=0.5, noise=0.1, outliers=0.1, heldout=0.1)
    seen = (mask_of(given) == 1).numpy() | held_out(given).numpy()
    assert seen.sum() == round(0.5 * size)
    assert np.isfinite(holed[seen]).all()
    assert (given.truth, given.noise) == (None, None)
    assert int(file(path=path, observed=17).count) == 17
    mask = saved(tmp_path, np.eye(30, 20), "mask.npy")
    assert_array_equal(mask_of(file(path=path, mask=mask)), np.isfinite(holed) * np.eye(30, 20))


def test_digits_observed_in_part():
    given = problem.digits(**OBSERVATION | {"observed": 0.1, "noise": 1.0, "heldout": 0.5})
    assert_array_equal(given.truth.target, load_digits().data)
    assert int(given.count) == 11501 - round(0.5 * 11501)
    assert set(given.draws) == {"noise", "mask", "heldout"}
