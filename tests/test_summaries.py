import numpy as np
import pandas
import pytest

from mfgd import compare, listing
from mfgd.types import Refused

RNG = np.random.default_rng(3)


@pytest.fixture
def runs():
    lines = [
        {"params.init": init, "params.lr": lr, "params.seed": str(seed)}
        for init in ("normal", "spectral")
        for lr in ("0.1", "0.01", "1.0")
        for seed in range(5)
    ]
    frame = pandas.DataFrame(lines)
    frame["metrics.final_relative_error"] = RNG.lognormal(size=len(frame))
    frame["tags.outcome"] = "converged"
    frame.loc[frame["params.lr"] == "0.01", "tags.outcome"] = "budget"
    frame["run_id"] = [f"r{i}" for i in frame.index]
    return frame


def test_groups_are_those_of_pandas(runs):
    found = compare.group(runs, ["init", "lr"])
    groups = runs.astype({"params.lr": float}).groupby(["params.init", "params.lr"])
    error = groups["metrics.final_relative_error"]
    expected = pandas.DataFrame({q: error.quantile(x) for q, x in (("q25", 0.25), ("median", 0.5))})
    expected = expected.sort_values("median")
    assert list(zip(found["init"], found["lr"], strict=True)) == list(expected.index)
    np.testing.assert_allclose(found[["q25", "median"]], expected)
    assert set(found["n"]) == {5}
    assert set(found.loc[found["lr"] == 0.01, "converged"]) == {0.0}


def test_a_lost_run_counts_as_infinite(runs):
    runs.loc[(runs["params.lr"] == "1.0") & (runs["params.seed"] < "3"), "tags.outcome"] = (
        "diverged"
    )
    found = compare.group(runs, ["lr"])
    last = found.iloc[-1]
    assert (last["lr"], last["median"], last["diverged"]) == (1.0, np.inf, 0.6)
    text = listing.groups(found, "metrics.final_relative_error", 10)
    assert text.splitlines()[4].split()[2:] == ["∞", "∞", "10", "40%", "60%"]


def test_settings_that_the_best_cannot_beat_are_tied():
    runs = pandas.DataFrame(
        {
            "params.init": ["a"] * 3 + ["b"] * 3 + ["c"] * 3,
            "metrics.final_relative_error": [1, 2, 3, 1.5, 2.5, 9, 5, 6, 7.0],
        }
    )
    assert compare.group(runs, ["init"])["tied"].tolist() == [True, True, False]


def test_importance_is_that_of_an_analysis_of_variance():
    """log₁₀ error = 3 [init] + lr-dependent part + noise, in a balanced design."""
    lines = []
    for i, init in enumerate("ab"):
        for j, lr in enumerate(("0.1", "1.0", "10.0")):
            for seed in range(4):
                error = 10.0 ** (3 * i + j + RNG.normal())
                lines.append((init, lr, str(seed), error))
    names = ["params.init", "params.lr", "params.seed", "metrics.final_relative_error"]
    runs = pandas.DataFrame(lines, columns=names)
    y = np.log10(runs["metrics.final_relative_error"])
    between = {}
    for key in ("init", "lr", "seed"):
        groups = y.groupby(runs[f"params.{key}"])
        between[key] = (groups.size() * (groups.mean() - y.mean()) ** 2).sum() / (
            (y - y.mean()) ** 2
        ).sum()
    found = compare.importance(runs).set_index("key")["share"]
    assert list(found.index[:2]) == ["init", "lr"]
    for key, share in between.items():
        np.testing.assert_allclose(found[key], share)


def test_importance_of_nothing_is_refused(runs):
    runs["metrics.final_relative_error"] = 1.0
    with pytest.raises(Refused, match="no two runs have different finite values"):
        compare.importance(runs)


def test_relative_and_absolute_excess_are_columns_of_their_own():
    runs = pandas.DataFrame(
        {
            "run_id": ["a", "b", "c"],
            "metrics.excess_loss": [1e-3, np.nan, 5.0],
            "metrics.loss_gap": [0.25, 0.5, 1.0],
            "tags.outcome": ["budget", "budget", "diverged"],
        }
    )
    head, *lines = [line.split() for line in compare.table(runs).splitlines()]
    assert head[:3] == ["to", "optimum", "gap"]
    assert [line[:2] for line in lines] == [["0.001", "0.25"], ["–", "0.5"], ["–", "–"]]


def test_the_column_of_the_order_is_shown(runs):
    head = compare.table(runs, columns=["lr"], sort="seed").splitlines()[0].split()
    assert head == ["lr", "seed", "run", "id"]
