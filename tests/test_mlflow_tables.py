"""The table of runs out of the tables of a database is the one that MLflow's client gives."""

import math

import pandas
import pytest
from mlflow import MlflowClient

import mfgd
from mfgd import mlflow_bulk, mlflow_reader
from mfgd.mlflow_bulk import LARGEST
from mfgd.mlflow_tables import read_runs

LINE = ("--multirun", "problem=synthetic", "problem.n=8", "problem.m=7", "rank=1,2", "seed=1,2")
QUICK = ("workers=1", "tracking.figures=0", "steps=20")


@pytest.fixture
def odd_store(here, tmp_path):
    """A store with two sweeps, and with all that is odd in a run; its client."""
    sweep = (*LINE, "lr=1e-3,9.0", "loss=squared,huber", *QUICK)
    assert here(*sweep).returncode == 0
    assert here(*LINE, *QUICK).returncode == 0
    assert here("rank=1", "steps=2", "tracking.figures=0").returncode == 0
    assert here("rank=1", "steps=2", "tracking.experiment=other").returncode == 0
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    children = mfgd.load_runs().dropna(subset="parent")["run_id"].tolist()
    client.delete_run(children.pop())
    client.set_terminated(children[0], "KILLED")
    for value in (2.0, math.inf, -math.inf, math.nan, 1e-320):
        client.log_metric(children.pop(), "odd", value)
    client.log_metric(children[0], "mlflow.odd", 1.0)
    client.log_param(children[0], "mlflow.odd", "'; DROP")
    client.set_tag(children[1], "MLFLOW.odd", "%\n\\ü")
    client.create_run("1", run_name="empty")
    return client


def read_by_mlflow(client, parent):
    filter_ = f"tags.`mlflow.parentRunId` = '{parent}'" if parent else ""
    return mlflow_reader.table_of(mlflow_reader.search(client, ["1"], filter_))


def test_the_table_is_the_one_of_mlflows_client(odd_store, monkeypatch):
    whole = read_by_mlflow(odd_store, None)
    parents = whole["parent"].dropna().unique().tolist()
    for parent, count in zip((None, *parents), (23, 4, 15), strict=True):
        ours = read_runs(odd_store.tracking_uri, "1", parent)
        theirs = read_by_mlflow(odd_store, parent)
        assert len(theirs) == count
        # MLflow orders the params of a run by chance.
        assert sorted(ours.columns) == sorted(theirs.columns)
        pandas.testing.assert_frame_equal(ours, theirs[ours.columns], check_exact=True)
    odd = whole["metrics.odd"].dropna().abs().tolist()
    assert sorted(odd) == pytest.approx([1e-320, 2.0, LARGEST, LARGEST])
    assert len(read_runs(odd_store.tracking_uri, "1", "unknown")) == 0
    known = mfgd.load_runs()
    monkeypatch.setattr(mlflow_bulk, "REVISIONS", ())  # so it is read by MLflow
    assert read_runs(odd_store.tracking_uri, "1") is None
    unknown = mfgd.load_runs()
    pandas.testing.assert_frame_equal(known, unknown[known.columns], check_exact=True)


def test_a_sweep_ends_without_a_request_for_its_runs(here, monkeypatch, tmp_path):
    asked = []
    search = MlflowClient.search_runs

    def note(self, *given, **named):
        found = search(self, *given, **named)
        asked.append(len(found))
        return found

    monkeypatch.setattr(MlflowClient, "search_runs", note)
    assert here(*LINE, *QUICK).returncode == 0
    assert sum(asked) == 0
    (summary,) = tmp_path.rglob("summary.csv")
    assert len(pandas.read_csv(summary)) == 4
