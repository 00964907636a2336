"""A sweep goes on where another process left it: resume=true, resume=ID."""

import os
import sqlite3
from contextlib import closing
from types import SimpleNamespace

import pandas
import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

import mfgd
from mfgd.runner import match_finished
from mfgd.tracked import Earlier

LINE = ("--multirun", "problem=synthetic", "problem.n=8", "problem.m=7", "rank=1,2,3", "steps=20")
QUICK = ("tracking.figures=0", "workers=1")
LOSSES = """
from pathlib import Path

def fragile(*, width: float):
    if Path("broken").exists() and width == 2.0:
        raise RuntimeError("broken")
    from mfgd.loss import huber
    return huber(delta=width)
"""


@pytest.fixture
def left(here, tmp_path):
    """A sweep as a dead process left it: a run of rank 1 is finished, the run of rank 2 was being
    written, and that of rank 3 was not begun."""
    assert here(*LINE, *QUICK).returncode == 0
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = mfgd.load_runs().dropna(subset="parent").set_index("params.rank")["run_id"]
    before = {rank: read_files(tmp_path, run_id) for rank, run_id in runs.items()}
    parent = client.get_run(runs["1"]).data.tags["mlflow.parentRunId"]
    client.delete_run(runs["3"])
    client.delete_tag(runs["2"], "outcome")
    client.set_tag(parent, "pid.started", "before this machine was on")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection, connection:
        cut = "UPDATE runs SET status = 'RUNNING', end_time = NULL WHERE run_uuid IN (?, ?)"
        connection.execute(cut, (parent, runs["2"]))
    for name in ("summary.parquet", "curves.parquet", "summary.csv"):
        find_artifact(tmp_path, parent, name).unlink()
    return SimpleNamespace(client=client, parent=parent, runs=runs, before=before)


def find_artifact(folder, run_id, name):
    (file,) = folder.glob(f"mlartifacts/*/{run_id}/artifacts/{name}")
    return file


def read_files(folder, run_id):
    """The matrices of a run, as bytes, and its measures."""
    trajectory = pandas.read_parquet(find_artifact(folder, run_id, "trajectory.parquet"))
    matrices = find_artifact(folder, run_id, "matrices.safetensors").read_bytes()
    return matrices, trajectory.drop(columns="seconds")


@pytest.mark.parametrize("given", ["true", "ID"])
def test_every_config_is_finished_once(left, here, tmp_path, given):
    resume = f"resume={left.parent if given == 'ID' else given}"
    done = here("-m", *reversed(LINE[1:]), *QUICK, "tracking.points=9999", resume)
    assert done.returncode == 0, done.stderr
    runs = left.client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{left.parent}'")
    by_status = {run.info.run_id: run.info.status for run in runs}
    assert sorted(by_status.values()) == ["FINISHED"] * 3 + ["KILLED"]
    assert by_status[left.runs["1"]] == "FINISHED"
    killed = left.client.get_run(left.runs["2"])
    assert killed.info.status == "KILLED"
    assert "died" in killed.data.tags["outcome.reason"]
    assert left.client.get_run(left.parent).info.status == "FINISHED"
    for run in runs:
        if run.info.status == "FINISHED":
            assert "resume" not in run.data.tags["overrides"]
            matrices, trajectory = read_files(tmp_path, run.info.run_id)
            assert matrices == left.before[run.data.params["rank"]][0]
            pandas.testing.assert_frame_equal(trajectory, left.before[run.data.params["rank"]][1])
    summary = pandas.read_csv(find_artifact(tmp_path, left.parent, "summary.csv"))
    assert sorted(summary["params.rank"]) == [1, 2, 3]
    curves = pandas.read_parquet(find_artifact(tmp_path, left.parent, "curves.parquet"))
    assert set(curves["run_id"]) == set(summary["run_id"])
    # A second resume finds nothing to do.
    again = here(*LINE, *QUICK, "resume=true")
    assert again.returncode == 0
    assert again.stdout.splitlines()[1:4] == done.stdout.splitlines()[1:4]
    assert len(left.client.search_runs(["1"])) == 1 + len(runs)


def test_a_run_that_raised_is_run_again(here, tmp_path):
    (tmp_path / "losses.py").write_text(LOSSES)
    (tmp_path / "broken").touch()
    line = (*LINE[:4], "loss._target_=losses.fragile", "+loss.width=1.0,2.0", "steps=20", *QUICK)
    assert here(*line).returncode == 1
    (tmp_path / "broken").unlink()
    assert here(*line, "resume=true").returncode == 0
    runs = mfgd.load_runs().dropna(subset="parent")
    assert runs["status"].tolist() == ["FINISHED", "FINISHED"]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (deleted,) = client.search_runs(["1"], run_view_type=ViewType.DELETED_ONLY)
    assert deleted.info.status == "FAILED"


def test_what_cannot_go_on_is_refused(left, here, tmp_path):
    def refusal(*line):
        done = here(*line)
        assert done.returncode == 2
        (said,) = done.stderr.splitlines()
        return said

    assert "no sweep of this shell line" in refusal(*LINE, "lr=0.5", *QUICK, "resume=true")
    assert "with --multirun" in refusal("steps=2", f"resume={left.parent}")
    assert "no checkpoint of this line" in refusal("steps=2", "resume=true")
    assert "nothing to go on with" in refusal(*LINE, "tracking=memory", "resume=true")
    longer = [text.replace("1,2,3", "1,2,3,4") for text in LINE]
    assert "allowed is that" in refusal(*longer, *QUICK, f"resume={left.parent}")
    assert "resume=abc" in refusal(*LINE, *QUICK, "resume=abc")
    child = f"resume={left.runs['1']}"
    assert "no sweep of mfgd" in refusal(*LINE, *QUICK, child)
    other = refusal(*LINE, *QUICK, "tracking.experiment=other", f"resume={left.parent}")
    assert "tracking.experiment=mfgd" in other
    left.client.set_tag(left.parent, "host", "elsewhere")
    assert f"give resume={left.parent}" in refusal(*LINE, *QUICK, "resume=true")


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="the system does not say")
def test_a_sweep_whose_process_lives_is_refused(left, here):
    with open("/proc/self/stat") as told:
        started = told.read().rpartition(")")[2].split()[19]
    left.client.set_tag(left.parent, "pid.started", started)
    for given in ("true", left.parent):
        done = here(*LINE, *QUICK, f"resume={given}")
        assert done.returncode == 2
        assert f"process {os.getpid()} runs this sweep" in done.stderr


def test_an_abandoned_sweep_has_outcomes_of_its_finished_runs_only(left, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    runs = mfgd.load_runs(parent=left.parent).set_index("params.rank")
    assert runs["tags.outcome"].notna().to_dict() == {"1": True, "2": False}


def test_equal_configs_are_matched_one_by_one():
    class Tracker:
        unsent = 0

        def resume(self, sweep, given):
            raise AssertionError

        def find_finished(self, known):
            runs = [Earlier("a", name, 0.5, "budget", {"loss": 0.5}) for name in ("1", "2")]
            return [run for run in runs if run.run_id not in known]

    jobs = [(i, SimpleNamespace(fingerprint=name)) for i, name in enumerate("abaa")]
    found = match_finished(jobs, Tracker(), {"2"})
    assert [(one.position, one.run_id, one.result) for one in found] == [(0, "1", 0.5)]
    assert found[0].result.values == {"loss": 0.5}
    assert [one.position for one in match_finished(jobs, Tracker(), set())] == [0, 2]
