import numpy as np
import pandas
import pytest
from scipy import stats

from mfgd import compare
from mfgd.effects import median_interval
from mfgd.types import Refused

RNG = np.random.default_rng(15)


def sweep(ratio, seeds=9, rates=("0.1", "0.01")):
    """Pairs of runs of two initializations; those of `b` are worse by known ratios."""
    lines = []
    for lr in rates:
        for seed in range(seeds):
            base = float(RNG.lognormal())
            for init, error in (("a", base), ("b", base * ratio(lr, seed))):
                lines.append(
                    {
                        "run_id": f"{init}{lr}{seed}",
                        "params.init": init,
                        "params.lr": lr,
                        "params.seed": str(seed),
                        "metrics.final_relative_error": error,
                        "tags.outcome": "budget",
                        "tags.draw.init": f"{init}{seed}",
                        "tags.draw.data": "one",
                    }
                )
    return pandas.DataFrame(lines).sample(frac=1, random_state=1)


@pytest.mark.parametrize("n", [1, 5, 6, 7, 20, 101, 1200])
def test_the_interval_is_scipys(n):
    values = RNG.normal(size=n)
    test = stats.quantile_test(values, p=0.5)
    np.testing.assert_array_equal(
        median_interval(values), test.confidence_interval(confidence_level=0.95)
    )


def test_the_interval_holds_the_median_as_often_as_it_says():
    """Of 2,000 samples at least 95 % less three standard deviations."""
    samples = RNG.normal(size=(2000, 15))
    held = [low <= 0 <= high for low, high in map(median_interval, samples)]
    assert np.mean(held) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 2000)


def test_known_ratios_are_found_in_pairs():
    """The errors scatter over decades; within a pair b is twice a at 0.1, and half at 0.01."""
    runs = sweep(lambda lr, seed: 2.0 if lr == "0.1" else 0.5)
    all_of_it, small, large = compare.effect(runs, "init", by="lr")
    assert (small.where, large.where) == ("0.01", "0.1")
    np.testing.assert_allclose([small.ratio, small.low, small.high], 2.0)
    np.testing.assert_allclose([large.ratio, large.low, large.high], 0.5)
    assert (large.wins, large.ties, large.losses, large.n) == (9, 0, 0, 9)
    assert (all_of_it.wins, all_of_it.ties, all_of_it.losses, all_of_it.n) == (9, 0, 9, 18)


def test_pairs_agree_with_pandas_and_scipy():
    runs = sweep(lambda lr, seed: float(np.exp(np.sin(7 * seed) + 0.3)))
    (found,) = compare.effect(runs, "init")
    wide = runs.pivot(
        index=["params.lr", "params.seed"],
        columns="params.init",
        values="metrics.final_relative_error",
    )
    ratios = wide["a"] / wide["b"]
    interval = stats.quantile_test(ratios, p=0.5).confidence_interval(confidence_level=0.95)
    np.testing.assert_allclose(found.ratio, ratios.median())
    np.testing.assert_allclose((found.low, found.high), interval)
    counts = int((ratios < 1).sum()), 0, int((ratios > 1).sum())
    assert (found.wins, found.ties, found.losses) == counts


def test_lost_runs_tie_and_lose():
    runs = sweep(lambda lr, seed: 2.0, seeds=3, rates=("0.1",)).set_index("run_id", drop=False)
    runs.loc[["b0.10", "a0.11", "b0.11"], "tags.outcome"] = "diverged"
    (found,) = compare.effect(runs, "init")
    assert (found.wins, found.ties, found.losses, found.n) == (2, 1, 0, 3)
    assert found.ratio == 0.5
    assert np.isnan(found.low), "three pairs are too few for 95 %"


def test_repeats_of_equal_draws_count_once():
    """The start draws nothing, so that nine seeds are one run."""
    runs = sweep(lambda lr, seed: 2.0).assign(**{"tags.draw.init": "none"})
    runs["metrics.final_relative_error"] = runs["params.lr"].astype(float)
    (found,) = compare.effect(runs, "lr")
    assert (found.first, found.second, found.n) == ("0.01", "0.1", 2), "one of each init"
    np.testing.assert_allclose(found.ratio, 0.1)


def test_runs_of_other_draws_are_no_pairs():
    """Without pairs the medians are compared, and n is 0."""
    runs = sweep(lambda lr, seed: 2.0, rates=("0.1",))
    runs["tags.draw.data"] = runs["params.init"]
    (found,) = compare.effect(runs, "init")
    medians = runs.groupby("params.init")["metrics.final_relative_error"].median()
    assert found.n == 0
    np.testing.assert_allclose(found.ratio, medians["a"] / medians["b"])
    assert np.isnan([found.low, found.high]).all()


def test_noise_of_the_gradients_pairs_with_none_by_its_seed():
    runs = sweep(lambda lr, seed: 3.0, rates=("0.1",))
    runs = runs.rename(columns={"params.init": "params.gradient"})
    runs["tags.draw.init"] = runs["params.seed"]
    noisy = runs["params.gradient"] == "a"
    runs["tags.draw.gradient"] = runs["params.seed"].where(noisy)
    (found,) = compare.effect(runs, "gradient")
    assert found.n == noisy.sum() > 0


def test_a_key_of_the_problem_moves_its_draws():
    """Problems of several sizes have other data by nature; their seeds make pairs."""
    runs = sweep(lambda lr, seed: 3.0, rates=("0.1",))
    runs = runs.rename(
        columns={"params.init": "params.problem.n", "params.seed": "params.problem.seed"}
    )
    runs["params.problem.n"] = runs["params.problem.n"].map({"a": "10", "b": "20"})
    runs["tags.draw.data"] = runs["tags.draw.init"]
    (found,) = compare.effect(runs, "problem.n")
    assert (found.n, found.wins) == (9, 9)


@pytest.mark.parametrize(
    ("key", "by", "message"),
    [
        ("loss", None, "loss: no such column"),
        ("init", "init", "--by=init: is the key of the effect"),
        ("init", "nope", "nope: no such column"),
    ],
)
def test_effects_that_are_refused(key, by, message):
    with pytest.raises(Refused) as refused:
        compare.effect(sweep(lambda lr, seed: 2.0), key, by)
    assert str(refused.value).startswith(message)


def test_one_option_has_no_effect():
    runs = sweep(lambda lr, seed: 2.0, rates=("0.1",))
    with pytest.raises(Refused, match=r"all runs have lr=0\.1; nothing to compare"):
        compare.effect(runs, "lr")
