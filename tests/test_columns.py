import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfgd import columns, palette
from mfgd.types import Refused


@pytest.fixture
def runs():
    return pandas.DataFrame(
        {
            "run_id": list("abcd"),
            "params.rank": ["10", "2", "2", "10"],
            "metrics.rank": [10.0, 2.0, 2.0, 10.0],
            "params.loss": ["squared", "huber", "huber", "squared"],
            "metrics.loss": [1.0, 2.0, 3.0, np.nan],
            "params.loss.delta": [None, "1.0", "1.0", None],
            "params.init": ["normal", "spectral", "normal", "spectral"],
            "params.init.scale": ["0.01", "null", "0.01", "null"],
            "params.seed": ["0", "0", "1", "1"],
            "params.workers": ["1", "2", "1", "2"],
            "params.data.observed": ["9", "8", "9", "8"],
            "metrics.final_relative_error": [0.5, 0.25, 1.8e308, 0.1],
            "metrics.balance": [1.0, 2.0, 3.0, 4.0],
            "tags.outcome": ["converged", "budget", "converged", "diverged"],
        }
    )


def test_short_names(runs):
    assert columns.find_column(runs, "balance") == "metrics.balance"
    assert columns.find_column(runs, "metrics.loss") == "metrics.loss"
    assert columns.find_column(runs, "outcome") == "tags.outcome"
    assert columns.find_column(runs, "loss", ("params",)) == "params.loss"
    assert columns.find_column(runs, "rank") == "params.rank", "the metric repeats the param"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("loss", "loss: params.loss and metrics.loss are called so; allowed is either"),
        ("balanc", "balanc: no such column; did you mean balance"),
    ],
)
def test_names_that_are_refused(runs, name, message):
    with pytest.raises(Refused) as refused:
        columns.find_column(runs, name)
    assert str(refused.value).startswith(message)


def test_a_lost_run_has_an_infinite_error_and_keeps_its_other_measures(runs):
    assert columns.measured(runs, "final_relative_error").tolist() == [0.5, 0.25, np.inf, np.inf]
    assert columns.measured(runs, "balance").tolist() == [1, 2, 3, 4]


def test_swept_keys(runs):
    """The scale follows from the initialization, delta from the loss; workers change nothing."""
    assert columns.find_swept(runs) == ["rank", "loss", "init", "seed"]
    assert columns.settings(runs, "rank").tolist() == [10, 2, 2, 10]
    assert columns.settings(runs, "loss.delta").tolist() == ["–", "1.0", "1.0", "–"]


def test_the_measure_is_the_excess_if_every_run_that_ended_has_one(runs):
    assert columns.choose_measure(runs) == "metrics.final_relative_error"
    runs["metrics.excess_loss"] = [0.1, 0.2, 0.3, np.nan]
    assert columns.choose_measure(runs) == "metrics.excess_loss"
    runs["metrics.excess_loss"] = [0.1, np.nan, 0.3, 1.0]
    assert columns.choose_measure(runs) == "metrics.final_relative_error"


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9), st.sampled_from([0, 0.25, 0.5, 0.9, 1])
)
def test_quantile_is_numpys_for_finite_values(values, q):
    np.testing.assert_allclose(columns.quantile(values, q), np.quantile(values, q), atol=1e-9)


@pytest.mark.parametrize(
    ("values", "median"),
    [([1, np.inf], np.inf), ([1, 2, np.inf], 2), ([np.nan, 3], 3), ([np.inf, np.inf], np.inf)],
)
def test_a_median_counts_infinity(values, median):
    assert columns.quantile(values, 0.5) == median


def test_numbers_sort_by_size_before_words():
    assert sorted(["10", "b", "2", "1e-3", "a"], key=columns.by_size) == [
        "1e-3", "2", "10", "a", "b",
    ]  # fmt: skip


def test_colours():
    assert palette.colour_of(["b", "a", "b"]) == {"a": "#0072B2", "b": "#D55E00"}
    numbers = palette.colour_of(["10", "2", "0.5"])
    assert list(numbers) == ["0.5", "2", "10"]
    brightness = [sum(bytes.fromhex(colour[1:])) for colour in numbers.values()]
    assert brightness == sorted(brightness), "a sequential map goes from dark to light"
    many = palette.colour_of([f"w{i}" for i in range(12)])
    assert len(set(many.values())) == 12


def test_a_param_that_follows_from_others_is_not_varied():
    runs = pandas.DataFrame(
        {
            "params.rank": ["1", "2", "1"],
            "params.loss": ["huber", "squared", "huber"],
            "params.seed": ["0", "0", "0"],
            "params.loss.delta": ["1.0", None, "1.0"],
            "metrics.loss": [1.0, 2.0, 3.0],
        }
    )
    assert columns.find_varied(runs) == ["rank", "loss"]
