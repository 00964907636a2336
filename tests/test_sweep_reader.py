import sqlite3

import pandas
import pytest
from mlflow import MlflowClient

import mfgd
from mfgd.sweep_reader import CURVES, SUMMARY, SweepReader


@pytest.fixture
def swept(here, tmp_path):
    """A sweep of two runs and a single run, the sweep's id, and a client."""
    line = ("steps=20", "tracking.figures=0", "workers=1")
    assert here("-m", "rank=1,2", *line).returncode == 0
    assert here("rank=3", *line).returncode == 0
    runs = mfgd.load_runs()
    (parent,) = runs["parent"].dropna().unique()
    return parent, MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


def ranks(runs: pandas.DataFrame) -> list[str]:
    return sorted(runs["params.rank"])


def test_the_summary_is_what_mlflow_has(swept):
    fast, whole = SweepReader().read_experiments([]), SweepReader(whole=True).read_experiments([])
    assert ranks(fast) == ["1", "2", "3"]
    columns = sorted(fast.columns)
    assert columns == sorted(whole.columns)
    left, right = (t.sort_values("run_id")[columns].reset_index(drop=True) for t in (fast, whole))
    pandas.testing.assert_frame_equal(left, right, check_dtype=False, check_exact=True)


def test_a_run_deleted_since_is_left_out(swept):
    _, client = swept
    runs = mfgd.load_runs()
    client.delete_run(runs.loc[runs["params.rank"] == "2", "run_id"].iloc[0])
    assert ranks(SweepReader().read_experiments([])) == ["1", "3"]


def test_a_sweep_without_a_summary_is_read_run_by_run(swept, tmp_path):
    parent, _ = swept
    (summary,) = tmp_path.rglob(f"{parent}/artifacts/{SUMMARY}")
    summary.unlink()
    assert ranks(SweepReader().read_runs([parent])) == ["1", "2"]


def test_a_sweep_that_goes_on_is_read_run_by_run(swept, tmp_path):
    parent, _ = swept
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("UPDATE runs SET status = 'RUNNING' WHERE run_uuid = ?", (parent,))
    assert ranks(SweepReader().read_runs([parent])) == ["1", "2"]


def test_what_was_logged_later_is_found_by_its_name(swept, monkeypatch, capfd):
    """A metric of one's own, logged after the sweep, is in the runs and not in the summary."""
    _, client = swept
    runs = mfgd.load_runs().dropna(subset="parent")
    for i, run_id in enumerate(runs["run_id"]):
        client.log_metric(run_id, "score", 10.0 + i)
    monkeypatch.setattr("gc.disable", lambda: None)
    monkeypatch.setattr("sys.argv", ["mfgd-compare", "--columns=rank,score", "--where=score > 10"])
    mfgd.compare.main()
    assert capfd.readouterr().out.splitlines()[1].split()[1] == "11"


def test_runs_of_a_foreign_parent(here, tmp_path, monkeypatch):
    """A sweep inside a run of the user's own is found below that run."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert here("steps=2", "tracking.figures=0").returncode == 0
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("mfgd").experiment_id
    own = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", own)
    assert here("-m", "rank=4,5", "steps=2", "tracking.figures=0", "workers=1").returncode == 0
    monkeypatch.delenv("MLFLOW_RUN_ID")
    assert ranks(SweepReader().read_runs([own])) == ["4", "5"]
    assert ranks(SweepReader().read_experiments([])) == ["2", "4", "5"]


def test_curves_are_those_of_the_runs(swept, tmp_path):
    """Of the sweep from its artifact, of the single run from its own."""
    reader = SweepReader()
    runs = reader.read_experiments([])
    curves = reader.read_curves(runs)
    assert set(curves["run_id"]) == set(runs["run_id"])
    (kept,) = tmp_path.rglob(CURVES)
    assert set(pandas.read_parquet(kept)["run_id"]) == set(runs.dropna(subset="parent")["run_id"])
    for run_id, found in curves.groupby("run_id"):
        whole = mfgd.load_run(run_id).trajectory.set_index("step")["loss"]
        assert found["loss"].tolist() == pytest.approx(whole[found["step"]].tolist(), rel=1e-6)


def test_a_sweep_in_parts_is_shown_as_one(here, tmp_path):
    """Names, colours and numbers are those of a sweep that came at once."""
    line = ("-m", "rank=1,2,10", "steps=2", "tracking.figures=0", "workers=1")
    shown = []
    for part in ("null", "2"):
        name = f"in parts of {part}"
        more = (f"hydra.sweeper.max_batch_size={part}", f"tracking.experiment={name}")
        assert here(*line, *more).returncode == 0
        client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
        runs = client.search_runs(
            [client.get_experiment_by_name(name).experiment_id],
            "tags.`mlflow.parentRunId` IS NOT NULL",
            order_by=["metrics.rank DESC"],
        )
        shown.append(
            [
                (run.info.run_name, run.data.tags["mlflow.runColor"], run.data.metrics["rank"])
                for run in runs
            ]
        )
    assert shown[0] == shown[1]
    assert [name for name, _, _ in shown[0]] == ["10", "2", "1"]
