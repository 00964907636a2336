import re

import numpy as np
import pandas
import pytest
from mlflow import MlflowClient

import mfgd
from mfgd import sweep_summary
from mfgd.sweep_summary import find_effects, main_keys
from mfgd.tracked import Written


@pytest.fixture
def parent(store):
    """The sweep's own run, and a client."""
    runs = mfgd.load_runs(experiment="demo")
    client = MlflowClient(store)
    return client.get_run(runs["parent"].dropna().unique()[0]), client


@pytest.fixture
def runs(store):
    return mfgd.load_runs(experiment="demo").dropna(subset="parent")


def test_the_description_says_what_came_out(parent, runs):
    note = parent[0].data.tags["mlflow.note.content"]
    links, counts, line, table = note.split("\n\n")
    assert "viewStateShareKey=" in links
    assert "compare.html" in links
    told = dict(re.findall(r"(\d+) (\w+)(?:,|$)", counts.partition(": ")[2]))
    expected = runs["tags.outcome"].value_counts()
    assert told == {str(n): outcome for outcome, n in expected.items()}
    command = "mfgd --multirun experiment=demo rank=2,3 lr=4e-4,1e-3 loss=squared,huber"
    assert line.startswith(f"```\n{command}")
    head, _, *lines = table.splitlines()
    assert head.split("|")[1:3] == [" init ", " lr "]
    errors = runs["metrics.final_relative_error"].fillna(np.inf)
    medians = errors.groupby([runs["params.init"], runs["params.lr"].astype(float)]).median()
    found = {
        (cells[1].strip(), float(cells[2])): float(cells[3])
        for cells in (line.split("|") for line in lines)
    }
    assert found == {key: pytest.approx(value, rel=1e-2) for key, value in medians.items()}


def test_the_sweep_has_the_keys_that_vary(parent):
    assert parent[0].data.params == {
        "rank": "2, 3",
        "lr": "0.0004, 0.001",
        "loss": "huber, squared",
        "init": "normal, spectral",
    }
    (used,) = parent[0].inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.source_type) == ("digits", "generated")


def test_runs_are_shown_by_what_varies(parent, runs):
    client = parent[1]
    for run_id, outcome in zip(runs["run_id"], runs["tags.outcome"], strict=True):
        run = client.get_run(run_id)
        params = run.data.params
        name = " ".join(params[key] for key in ("rank", "lr", "loss", "init"))
        mark = "× " if outcome == "diverged" else ""
        assert sorted(run.info.run_name.removeprefix("× ").split()) == sorted(name.split())
        assert run.info.run_name.startswith(mark)
        colours = {"normal": "#0072B2", "spectral": "#D55E00"}
        assert run.data.tags["mlflow.runColor"] == colours[params["init"]]
        assert run.data.metrics["rank"] == float(params["rank"])
        assert not {"workers", "device", "batch_bytes", "tracking", "record"} & set(params)


def test_files_of_a_sweep(parent, runs):
    run, client = parent
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"summary.csv", "summary.parquet", "curves.parquet", "compare.html", "figures"}
    curves = pandas.read_parquet(client.download_artifacts(run.info.run_id, "curves.parquet"))
    assert set(curves["run_id"]) == set(runs["run_id"])


def test_effects_of_every_key(runs):
    assert main_keys(runs) == ["init", "lr"]
    assert {one["key"] for one in find_effects(runs)} == {"rank", "lr", "loss", "init"}
    assert {one["n"] for one in find_effects(runs)} == {8}


def test_curves_are_joined_as_pandas_joins_them():
    def curve(count, *names):
        measures = {name: np.arange(count, dtype="float32") for name in names}
        return {"step": np.arange(count), **measures}

    given = {"a": curve(3, "loss"), "b": curve(1, "loss", "excess_loss"), "d": curve(2, "loss")}
    written = {run_id: Written("budget", found) for run_id, found in given.items()}
    written["c"] = Written("error", {})
    joined = sweep_summary.join_curves(written, pandas.DataFrame(), "")
    tables = [pandas.DataFrame(found).assign(run_id=run_id) for run_id, found in given.items()]
    expected = pandas.concat(tables, ignore_index=True)[list(joined)]
    pandas.testing.assert_frame_equal(joined, expected)
