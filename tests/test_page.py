"""What the comparison page knows of the runs; tests/test_browser.py opens it."""

import base64
import json
import re
import zlib

import numpy as np
import pandas
import pytest

from mfgd.page import write_page
from mfgd.page.data import (
    LEVELS,
    RECORDS,
    add_excess_error,
    describe_runs,
    find_floors,
    pack_curves,
    to_json,
)


def make_table(count, **columns):
    """A table of so many runs, that ended by their budget unless `columns` say more."""
    table = {"run_id": [f"run{i}" for i in range(count)], "tags.outcome": "budget"}
    return pandas.DataFrame(table | {name.replace("__", "."): v for name, v in columns.items()})


def unpacked(packed, name, runs):
    """A curve as the page reads it, (runs, grid)."""
    codes = np.reshape(packed["curves"][name], (runs, -1)).cumsum(axis=1)
    return np.where(
        codes == 30_000, np.nan, np.where(codes == 20_000, np.inf, 10.0 ** (codes / 1e3))
    )


def test_curves_keep_their_last_value_and_three_digits():
    rng = np.random.default_rng(0)
    curves = pandas.DataFrame(
        {
            "run_id": ["a"] * 6 + ["b"] * 3,
            "step": [0, 1, 2, 4, 8, 16, 0, 1, 4],
            "loss": 10.0 ** rng.uniform(-12, 12, 9),
        }
    )
    shuffled = curves.sample(frac=1, random_state=1)
    packed = pack_curves(["b", "missing", "a"], shuffled)
    table = curves.pivot(index="run_id", columns="step", values="loss").ffill(axis=1)
    assert packed["grid"] == list(table.columns)
    assert packed["ends"] == [4, -1, 16]
    expected = table.reindex(["b", "missing", "a"])
    np.testing.assert_allclose(unpacked(packed, "loss", 3), expected, rtol=1.2e-3)


def test_codes_know_what_is_no_positive_number():
    values = [np.inf, np.nan, 0.0, -1.0, 1e30]
    curves = pandas.DataFrame({"run_id": "a", "step": range(5), "excess_loss": values})
    found = unpacked(pack_curves(["a"], curves), "excess_loss", 1)[0]
    np.testing.assert_array_equal(found, [np.inf, np.nan, 1e-20, 1e-20, np.inf])


def test_curves_are_thinned_evenly():
    step = np.arange(10_001)
    curves = pandas.DataFrame({"run_id": "a", "step": step, "loss": step + 1.0})
    packed = pack_curves(["a"], curves)
    grid = np.array(packed["grid"])
    assert len(grid) <= RECORDS
    assert (grid[0], grid[-1]) == (0, 10_000)
    assert (grid[1:] / np.maximum(grid[:-1], 1) < 2.1).all()
    np.testing.assert_allclose(unpacked(packed, "loss", 1)[0], grid + 1, rtol=1.2e-3)


def test_floor_is_that_of_eckart_and_young():
    rng = np.random.default_rng(0)
    D = rng.normal(size=(8, 6))
    sigma = np.linalg.svd(D, compute_uv=False)
    lines = []
    for rank in (1, 3):
        best = (sigma[rank:] ** 2).sum()
        for loss, excess in (("squared", 0.5), ("squared", 2.0), ("huber", np.nan)):
            final = best * (1 + excess)
            verdict = "agrees" if loss == "squared" else "not applicable"
            error = np.sqrt(final / (sigma**2).sum())
            lines.append((str(rank), loss, excess, final, error, verdict))
    names = ["rank", "loss", "excess", "final", "error", "verdict"]
    columns = dict(zip(names, zip(*lines, strict=True), strict=True))
    runs = make_table(
        6,
        params__rank=columns["rank"],
        params__loss=columns["loss"],
        params__problem__noise="0.0",
        params__problem__outliers="0.0",
        params__problem__snr="null",
        metrics__excess_loss=columns["excess"],
        metrics__final_loss=columns["final"],
        metrics__final_relative_error=columns["error"],
        tags__oracle__eckart_young=columns["verdict"],
    )
    floors = find_floors(runs)
    expected = [np.sqrt((sigma[k:] ** 2).sum() / (sigma**2).sum()) for k in (1, 1, 1, 3, 3, 3)]
    np.testing.assert_allclose(floors["metrics.final_relative_error"], expected, rtol=1e-12)
    losses = [(sigma[k:] ** 2).sum() for k in (1, 1, 3, 3)]
    known = floors["metrics.final_loss"].dropna()
    np.testing.assert_allclose(known, losses, rtol=1e-12)
    # The error is that of the truth, and not of D, if something was added to the truth.
    noisy = runs.assign(**{"params.problem.noise": "0.1"})
    assert find_floors(noisy).keys() == {"metrics.final_loss"}
    # Runs that should have one floor and have several say that it is not the floor.
    assert find_floors(runs.assign(**{"params.rank": "1"})).keys() == {"metrics.final_loss"}


def test_runs_with_another_loss_have_the_excess_of_their_squared_error():
    error = np.array([0.5, 0.6, np.nan])  # the least is 0.5
    runs = make_table(
        3,
        params__rank="1",
        params__loss=["squared", "huber", "huber"],
        metrics__final_relative_error=error,
        metrics__excess_loss=[1e-9, np.nan, np.nan],
        tags__outcome=["converged", "budget", "diverged"],
    )
    curves = pandas.DataFrame(
        {
            "run_id": ["run0", "run0", "run1", "run1"],
            "step": [0, 5, 0, 5],
            "relative_error": [1.0, 0.5, 1.0, 0.6],
            "excess_loss": [3.0, 1e-9, np.nan, np.nan],
        }
    )
    found, with_excess = add_excess_error(runs, curves)
    np.testing.assert_allclose(found["metrics.excess_error"], [1e-9, 0.44, np.inf], rtol=1e-6)
    np.testing.assert_allclose(with_excess["excess_error"], [3, 1e-9, 3, 0.44], rtol=1e-6)
    start = describe_runs(found)["start"]
    assert start["measure"] == "metrics.excess_error"
    assert start["compared"] == "metrics.final_relative_error"
    same, _ = add_excess_error(runs[:1], curves)
    assert "metrics.excess_error" not in same


def test_lost_runs_count_as_infinite():
    runs = make_table(
        3,
        params__lr=["0.1", "1", "10"],
        metrics__final_relative_error=[0.25, np.nan, 0.125],
        tags__outcome=["budget", "diverged", "undefined"],
    )
    known = describe_runs(runs)
    (measure,) = known["measures"]
    assert measure["values"] == [0.25, 1e300, 1e300]
    assert known["lost"] == [0, 1, 1]


def test_keys_are_sorted_by_size_and_many_numbers_are_cut():
    rng = np.random.default_rng(0)
    lr = 10 ** rng.uniform(-5, 0, 500)
    runs = make_table(
        500,
        params__lr=[str(float(value)) for value in lr],
        params__rank=rng.choice(["10", "2", "null"], 500),
    )
    rank, rate = sorted(describe_runs(runs)["keys"], key=lambda key: key["name"], reverse=True)
    assert rank["levels"] == ["2", "10", "null"]
    texts = [rank["values"][code] for code in rank["codes"]]
    assert texts == runs["params.rank"].tolist()
    level = np.array(rate["level"])[rate["codes"]]
    assert len(set(rate["levels"])) == len(rate["levels"]) <= LEVELS
    span = pandas.Series(np.log10(lr)).groupby(level).agg(["min", "max"])
    assert (span["max"] - span["min"]).max() <= np.ptp(np.log10(lr)) / LEVELS + 1e-9
    assert (span["min"].iloc[1:].to_numpy() > span["max"].iloc[:-1].to_numpy()).all()


@pytest.mark.parametrize(
    ("swept", "expected"),
    [
        ({"lr": "12", "rank": "12", "init": "ab", "seed": "12"}, ("lr", "init", "rank")),
        ({"rank": "12", "seed": "12"}, ("rank", "", "")),
        ({"init": "ab", "loss": "ab"}, ("loss", "init", "")),
        ({"lr": "12", "rank": "12", "depth": "23"}, ("lr", "depth", "rank")),
        ({"seed": "12"}, ("seed", "", "")),
        ({}, ("", "", "")),
    ],
)
def test_axes_at_first(swept, expected):
    count = 2 ** len(swept)
    columns = {
        f"params__{name}": [values[i >> place & 1] for i in range(count)]
        for place, (name, values) in enumerate(swept.items())
    }
    start = describe_runs(make_table(count, **columns))["start"]
    assert (start["x"], start["colour"], start["facet"]) == expected


def test_json_has_no_infinity():
    values = [np.float64(0.5), np.int64(3), np.nan, np.inf, None, "a", True]
    assert json.dumps(list(map(to_json, values))) == '[0.5, 3, null, 1e+300, null, "a", 1]'


def test_names_cannot_leave_the_page(tmp_path):
    hostile = '</script><script>alert("$data")</script>'
    runs = make_table(2, params__init=["a", hostile], metrics__final_relative_error=[0.1, 0.2])
    curves = pandas.DataFrame({"run_id": ["run0"], "step": [0], "loss": [1.0]})
    effect = {"key": "init", "second": hostile, "ratio": np.inf, "n": np.int64(1)}
    file = tmp_path / "page.html"
    write_page(file, runs, curves, [effect], hostile, hostile)
    page = file.read_text(encoding="utf-8")
    assert "alert" not in re.sub(r"&lt;/script&gt;&lt;script&gt;alert\(", "", page)
    assert page.count("</script>") == 3
    data = re.search(r'id="data" type="text/plain">(.*?)<', page).group(1)
    known = json.loads(zlib.decompress(base64.b64decode(data)))
    assert known["keys"][0]["levels"] == [hostile, "a"]
    assert known["effects"][0] == {"key": "init", "second": hostile, "ratio": 1e300, "n": 1}
