"""A store that fails: requests are made again, and what is not taken waits on the disk."""

import itertools
import json
import math
import os
import re
import subprocess
import sys

import pandas
import pytest
from conftest import UNMEASURED
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE

from mfgd import interrupts, retry, sync
from mfgd.mlflow_sender import Sender
from mfgd.mlflow_store import MlflowTracker
from mfgd.outbox import FOLDER, Outbox

LINE = ("--multirun", "problem=synthetic", "problem.n=8", "problem.m=7", "rank=1,2,3", "steps=20")
QUICK = ("workers=1", "batch_bytes=1")
AWAY = MlflowException("server closed the connection", TEMPORARILY_UNAVAILABLE)
WRONG = MlflowException("the run must be in the 'active' state", INVALID_PARAMETER_VALUE)
SENT = ("create_run", "log_batch", "log_inputs", "log_image", "set_terminated")


@pytest.fixture
def fail(monkeypatch):
    """Has requests to MLflow fail: fail(name, error, begin, count) those from the begin-th on."""
    monkeypatch.setattr(retry, "PAUSES", (0.001,))

    def have_fail(name: str, error: Exception, begin: int = 0, count: float = math.inf) -> None:
        request, asked = getattr(MlflowClient, name), itertools.count()

        def ask(self, *arguments, **keys):
            if have_fail.failing and begin <= next(asked) < begin + count:
                raise error
            return request(self, *arguments, **keys)

        monkeypatch.setattr(MlflowClient, name, ask)

    have_fail.failing = True
    yield have_fail
    retry._outage.since, retry._outage.told = None, False


@pytest.fixture
def send(tmp_path, monkeypatch, capfd):
    """mfgd-sync in this process: its exit status, and what it printed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mfgd-sync", *arguments])
        try:
            sync.main()
            code = 0
        except SystemExit as ended:
            code = ended.code
        return (code, *capfd.readouterr())

    return run


def read_sweep(folder) -> dict:
    """What a store has of a sweep, by rank, but for ids and times; the sweep's own run is 0."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = {}
    for run in client.search_runs(experiments, "attributes.status != 'KILLED'"):
        info, data = run.info, run.data
        child = "mlflow.parentRunId" in data.tags
        rank = int(data.params["rank"]) if child else 0
        assert rank not in found
        found[rank] = {
            "info": (info.status, info.run_name if child else "sweep"),
            "params": data.params,
            "tags": {key: data.tags.get(key) for key in ("outcome", "fingerprint", "overrides")},
            "keys of tags": set(data.tags),
            "metrics": {
                name: sorted((point.step, repr(point.value)) for point in points)
                for name in data.metrics
                if "seconds" not in name
                for points in [client.get_metric_history(info.run_id, name)]
            },
            "data": [one.dataset.digest for one in run.inputs.dataset_inputs],
            "files": read_files(folder, info.run_id),
        }
    return found


def read_files(folder, run_id) -> dict:
    """The artifacts of a run, without what tells the time, or an id."""
    place = next(folder.glob(f"mlartifacts/*/{run_id}/artifacts"))
    found = {}
    for file in place.rglob("*.*"):
        name, content = str(file.relative_to(place)), file.read_bytes()
        if name.startswith("images"):
            name = re.sub(r"\+timestamp.*?(?=\+compressed|[.])", "", name)
        elif name == "trajectory.parquet":
            content = pandas.read_parquet(file).drop(columns="seconds").to_csv()
        elif "/" in name or name.startswith(("summary", "curves", "compare")):
            content = None
        found[name] = content
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("undisturbed")


@pytest.fixture
def expected(here, folder, monkeypatch):
    """What a store has without a fault."""
    if not (folder / "mlflow.db").exists():
        with monkeypatch.context() as there:
            there.chdir(folder)
            assert here(*LINE, *QUICK).returncode == 0
    return read_sweep(folder)


def list_said(done) -> list[str]:
    """What mfgd said above its bar."""
    return [text for text in re.split(r"[\r\n]", done.stderr) if text.startswith("mfgd: ")]


def list_left(folder) -> set[str]:
    return {file.name for file in folder.iterdir()} - {
        "mlflow.db", "mlartifacts", "mlflow.db-wal", "mlflow.db-shm"
    }  # fmt: skip


def end_process(folder) -> None:
    """Has the outbox say that its process has ended."""
    (state,) = folder.glob("mfgd-unsent/*/sweep.json")
    state.write_text(json.dumps(json.loads(state.read_text()) | {"pid.started": "long ago"}))


def test_a_worker_keeps_the_process_of_the_command(here, tmp_path, fail, monkeypatch):
    write, kept = MlflowTracker.write, []

    def write_as_worker(self, *run):
        with monkeypatch.context() as worker:
            worker.setattr(os, "getpid", lambda: 1)
            run_id = write(self, *run)
        (state,) = tmp_path.glob("mfgd-unsent/*/sweep.json")
        kept.append(json.loads(state.read_text())["pid"])
        return run_id

    monkeypatch.setattr(MlflowTracker, "write", write_as_worker)
    fail("create_run", WRONG, begin=1, count=1)
    assert here(*LINE, *QUICK, "tracking.figures=true").returncode == 0
    assert set(kept) == {str(os.getpid())}


@pytest.mark.parametrize("name", SENT)
def test_a_store_that_answers_again_gets_all(name, here, tmp_path, expected, fail):
    fail(name, AWAY, begin=2, count=3)
    done = here(*LINE, *QUICK)
    assert (done.returncode, done.stderr.count("mfgd: ")) == (0, 0)
    assert read_sweep(tmp_path) == expected
    assert list_left(tmp_path) == set()


@pytest.mark.parametrize("name", SENT)
def test_a_run_that_was_refused_is_sent_at_the_end(name, here, tmp_path, expected, fail):
    fail(name, WRONG, begin=0 if name == "log_inputs" else 2, count=1)
    done = here(*LINE, *QUICK)
    assert done.returncode == 0
    (line,) = list_said(done)
    assert "waits in" in line
    assert "must be in the 'active' state" in line
    assert read_sweep(tmp_path) == expected
    assert list_left(tmp_path) == set()


def test_a_store_that_stays_away_gets_all_from_mfgd_sync(
    here, send, tmp_path, expected, fail, monkeypatch
):
    monkeypatch.setattr(retry, "PATIENCE", 0.01)
    for name in SENT:
        fail(name, AWAY, begin=int(name == "create_run"))
    done = here(*LINE, *QUICK)
    assert done.returncode == 1
    assert len(list_said(done)) == 3
    assert "Traceback" not in done.stderr
    code, _, said = send()
    assert code == 2  # this process has not ended
    assert f"process {os.getpid()} still writes" in said
    end_process(tmp_path)
    assert send()[0] == 1
    end_process(tmp_path)
    fail.failing = False
    code, out, _ = send(str(tmp_path))
    assert code == 0
    assert "3 of 3 runs were sent" in out
    assert read_sweep(tmp_path) == expected
    assert list_left(tmp_path) == set()
    code, _, said = send()
    assert code == 2
    assert "nothing waits there" in said


@pytest.mark.parametrize(("failing", "waiting"), [(SENT, 6), (["set_terminated"], 0)])
def test_what_a_search_found_waits_too(here, send, tmp_path, fail, monkeypatch, failing, waiting):
    """The second store takes the runs, but not the end of the sweep."""
    monkeypatch.setattr(retry, "PATIENCE", 0.01)
    for name in failing:
        fail(name, AWAY, begin=int(name == "create_run"))
    line = ("--multirun", "hydra/sweeper=frontier", "lr=interval(0.01,10)", "seed=0,1", "steps=50")
    done = here(*line, "hydra.sweeper.resolution=6", "workers=1", "tracking.figures=0")
    assert done.returncode == 1
    assert len(list(tmp_path.glob("mfgd-unsent/*/unsent-*"))) == waiting
    assert "where outcome" in done.stdout
    fail.failing = False
    end_process(tmp_path)
    assert send()[0] == 0
    assert list_left(tmp_path) == set()
    (table,) = tmp_path.glob("mlartifacts/*/*/artifacts/frontier.csv")
    cells = pandas.read_csv(table).set_index("seed")
    assert cells["success"].tolist() == ["below"] * 2
    printed = [text.split() for text in done.stdout.splitlines() if " below " in text]
    assert {int(seed): (low, high) for seed, _, low, high, *_ in printed} == {
        seed: (f"{cell['lr.low']:.6g}", f"{cell['lr.high']:.6g}") for seed, cell in cells.iterrows()
    }
    assert (table.parent / "figures" / "frontier.png").exists()
    assert (table.parent / "summary.csv").exists()


def test_a_request_whose_answer_was_lost_is_not_made_twice(here, tmp_path, expected, monkeypatch):
    monkeypatch.setattr(retry, "PATIENCE", 0.0)
    request, asked = MlflowClient.set_terminated, itertools.count()

    def lose(self, *arguments, **keys):
        request(self, *arguments, **keys)
        if next(asked) == 1:
            raise AWAY

    monkeypatch.setattr(MlflowClient, "set_terminated", lose)
    done = here(*LINE, *QUICK)
    retry._outage.since = None
    assert done.returncode == 0
    assert read_sweep(tmp_path) == expected


@pytest.mark.parametrize("what", ["sweep", "experiment", "name"])
def test_a_sweep_that_is_deleted_or_renamed_has_its_summary(
    what, here, tmp_path, expected, monkeypatch
):
    request, asked = MlflowClient.log_batch, itertools.count()

    def act(self, run_id, *arguments, **keys):
        if next(asked) == 1:
            if what == "sweep":
                self.delete_run(self.get_run(run_id).data.tags["mlflow.parentRunId"])
            elif what == "experiment":
                self.delete_experiment("1")
            else:
                self.rename_experiment("1", "other")
        return request(self, run_id, *arguments, **keys)

    monkeypatch.setattr(MlflowClient, "log_batch", act)
    done = here(*LINE, *QUICK)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert ("restored" in done.stderr) == (what != "name")
    assert read_sweep(tmp_path) == expected


@pytest.mark.slow
def test_a_removed_database_is_made_anew_by_mfgd_sync(here, tmp_path, expected, monkeypatch):
    request, asked = MlflowClient.set_terminated, itertools.count()

    def remove(self, *arguments, **keys):
        request(self, *arguments, **keys)
        if next(asked) == 0:
            for file in tmp_path.glob("mlflow.db*"):
                file.unlink()

    monkeypatch.setattr(MlflowClient, "set_terminated", remove)
    done = here(*LINE, *QUICK)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "mlflow.db was removed or replaced" in list_said(done)[0]
    end_process(tmp_path)
    # In this process MLflow still has the file that is gone.
    command = [sys.executable, "-c", "from mfgd.sync import main; main()", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=UNMEASURED)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 of 2 runs were sent" in done.stdout
    (tmp_path / "here").symlink_to(tmp_path)
    found = read_sweep(tmp_path / "here")
    assert {rank: found[rank] for rank in (2, 3)} == {rank: expected[rank] for rank in (2, 3)}
    assert found[0]["metrics"] == {"runs.budget": [(0, "2.0")]}


def test_a_run_that_can_be_kept_nowhere_fails_alone(here, tmp_path, expected, fail):
    (tmp_path / "mfgd-unsent").touch()
    fail("log_batch", WRONG, begin=1, count=1)
    done = here(*LINE, *QUICK)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "1 runs could not be written" in done.stdout
    found = read_sweep(tmp_path)
    assert {rank: found[rank] for rank in (1, 3)} == {rank: expected[rank] for rank in (1, 3)}
    assert b"rank=2" in found[0]["files"]["unfinished.txt"]
    assert found[0]["info"][0] == "FAILED"
    assert here(*LINE, *QUICK, "resume=true").returncode == 0
    assert read_sweep(tmp_path)[2] == expected[2]


def test_a_single_run_waits_too(here, send, tmp_path, fail, monkeypatch):
    monkeypatch.setattr(retry, "PATIENCE", 0.0)
    fail("log_batch", AWAY)
    done = here("rank=2", "steps=5", "tracking.figures=0")
    assert done.returncode == 1
    assert "mfgd-sync sends them" in done.stderr
    fail.failing = False
    end_process(tmp_path)
    assert send()[0] == 0
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert [run.info.status for run in client.search_runs(["1"])] == ["FINISHED"]


def test_a_password_is_nowhere_kept_and_asked_for(tmp_path, send, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = "http://me:CANARY@127.0.0.1:9"
    tracker = MlflowTracker(uri, "x", 0, 1)
    outbox = Outbox(tmp_path / FOLDER / "1")
    tracker.sender = Sender(None, tracker.uri, uri, "1", None, outbox)
    tracker._write_state("FAILED", [])
    end_process(tmp_path)
    assert "CANARY" not in (outbox.folder / "sweep.json").read_text()
    code, _, said = send()
    assert code == 2
    assert "its password was not kept; give it again by --uri" in said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    code, _, said = send()
    assert code == 2
    assert "no tracking server answers" in said
    assert "CANARY" not in said


def test_an_interruption_ends_the_patience(fail, monkeypatch):
    monkeypatch.setattr(interrupts._state, "came", True)
    asked = []

    def request():
        asked.append(1)
        raise AWAY

    with pytest.raises(MlflowException):
        retry.retry(request)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("error", "passes"),
    {
        "a server restarts": (MlflowException("error code 503"), True),
        "the database is locked": (MlflowException("database is locked", 1), True),
        "a disk is full": (OSError(28, "No space left on device"), True),
        "a run is deleted": (WRONG, False),
        "a fault of ours": (TypeError("x"), False),
    }.values(),
)
def test_what_can_pass(error, passes):
    assert retry.can_pass(error) is passes
