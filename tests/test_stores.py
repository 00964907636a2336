"""Where runs are tracked: paths, first set-ups, servers, databases of others."""

import base64
import datetime
import hashlib
import json
import os
import shutil
import sqlite3
import ssl
import subprocess
import sys
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from threading import Thread

import mlflow
import pytest
import sqlalchemy
from alembic.script import ScriptDirectory
from conftest import UNMEASURED, obey_modes
from conftest import mfgd as run_mfgd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

import mfgd
from mfgd import database
from mfgd.types import Refused

RUN = ("steps=2", "tracking.figures=0")


def refusal(done) -> str:
    """The only line of a command that was refused."""
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("mfgd: ")
    return line.removeprefix("mfgd: ")


def names(folder) -> set[str]:
    """What is in a folder, without what SQLite keeps there while a database is open."""
    return {path.name for path in folder.iterdir() if not path.name.endswith(("-wal", "-shm"))}


@pytest.mark.slow
def test_a_folder_of_any_name_has_its_store(here, tmp_path, monkeypatch):
    odd, odder = (tmp_path / name for name in ("mü @&+'#[1] 50%", "what? %41"))
    for folder in (odd, odder):
        folder.mkdir()
    monkeypatch.chdir(odd)
    assert here("rank=1", *RUN).returncode == 0
    # A process of its own, because MLflow knows this database by its path from here alone.
    assert run_mfgd("rank=1", *RUN, cwd=odder).returncode == 0
    assert [names(folder) for folder in (odd, odder)] == [{"mlflow.db", "mlartifacts"}] * 2
    assert names(tmp_path) == {odd.name, odder.name}
    # Plain MLflow finds what was tracked.
    got = subprocess.run(
        [sys.executable, "-c", PLAIN], cwd=odder, capture_output=True, text=True, timeout=100
    )
    assert (got.returncode, got.stdout) == (0, "True\n"), got.stderr


PLAIN = """
import mlflow
mlflow.set_tracking_uri("sqlite:///mlflow.db")
run_id = mlflow.search_runs(experiment_names=["mfgd"])["run_id"].iloc[0]
print("rank: " in mlflow.artifacts.load_text(f"runs:/{run_id}/config.yaml"))
"""


def test_the_name_of_an_experiment_is_no_path(here, tmp_path):
    (tmp_path / "inside").mkdir()
    os.chdir(tmp_path / "inside")
    for name in ("/Users/me/exp", "../../x", "..", "a:b", "n" * 300):
        assert here(*RUN, f'tracking.experiment="{name}"').returncode == 0
        run = mfgd.load_runs(experiment=name).iloc[0]
        assert len(mfgd.load_run(run["run_id"]).trajectory) == 3
    assert names(tmp_path) == {"inside"}
    assert names(tmp_path / "inside") == {"mlflow.db", "mlartifacts"}
    assert len(names(tmp_path / "inside" / "mlartifacts")) == 5
    line = refusal(here(*RUN, "tracking.experiment=" + "n" * 501))
    assert line.endswith("must have at most 500 characters")
    with pytest.raises(MlflowException, match="'name' exceeds the maximum length of 500"):
        MlflowClient(f"sqlite:///{tmp_path}/inside/mlflow.db").create_experiment("n" * 501)


def test_a_moved_folder_is_read_and_not_written_to(here, tmp_path, monkeypatch):
    (tmp_path / "first").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    assert here(*RUN).returncode == 0
    os.chdir(tmp_path)
    (tmp_path / "first").rename(tmp_path / "moved")
    os.chdir(tmp_path / "moved")
    line = refusal(here(*RUN))
    assert f"its artifacts were in {tmp_path}/first/mlartifacts/mfgd, which is gone" in line
    assert names(tmp_path) == {"moved"}
    run_id = mfgd.load_runs()["run_id"].iloc[0]
    assert len(mfgd.load_run(run_id).trajectory) == 3
    with pytest.raises(Refused, match="which is gone"):
        mfgd.tracking.attach(run_id, tmp_path)
    shutil.rmtree("mlartifacts")
    with pytest.raises(Refused, match=f"has no artifact config.yaml in {tmp_path}/first"):
        mfgd.load_run(run_id)


def test_the_store_is_where_the_shell_is(here, tmp_path):
    line = ("--multirun", "rank=1,2", "hydra.job.chdir=true", "hydra.sweep.dir=out")
    done = here(*line, *RUN)
    assert done.returncode == 0
    assert "--backend-store-uri sqlite:///mlflow.db " in done.stdout
    assert names(tmp_path) == {"mlflow.db", "mlartifacts", "out"}
    assert not list((tmp_path / "out").rglob("ml*"))
    runs = mfgd.load_runs().dropna(subset="parent")
    assert [len(mfgd.load_run(run_id).trajectory) for run_id in runs["run_id"]] == [3, 3]


def run_python(program: str, cwd) -> subprocess.CompletedProcess:
    """Runs a program as someone who must obey the modes of files."""
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=UNMEASURED,
        timeout=100,
        preexec_fn=obey_modes,
    )


READ = """
import mfgd
run_id = mfgd.load_runs(parent=None)["run_id"].iloc[0]
print(run_id, len(mfgd.load_run(run_id).trajectory))
"""


@pytest.mark.slow
def test_a_read_only_folder_is_read_and_left_as_it_is(here, tmp_path):
    assert here(*RUN).returncode == 0
    run_id = mfgd.load_runs()["run_id"].iloc[0]
    folder = tmp_path / "archive"
    with closing(sqlite3.connect("mlflow.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copytree(
        tmp_path, folder, ignore=lambda *_: ["archive", "mlflow.db-wal", "mlflow.db-shm"]
    )
    digest = hashlib.sha256((folder / "mlflow.db").read_bytes()).hexdigest()
    (folder / "mlflow.db").chmod(0o444)
    folder.chmod(0o555)
    try:
        got = run_python(READ, cwd=folder)
        # Plain MLflow cannot.
        plain = (
            "from mlflow import MlflowClient as C; C('sqlite:///mlflow.db').search_experiments()"
        )
        assert run_python(plain, cwd=folder).returncode == 1
    finally:
        folder.chmod(0o755)
    assert (got.returncode, got.stdout) == (0, f"{run_id} 3\n"), got.stderr
    assert names(folder) == {"mlflow.db", "mlartifacts"}
    assert hashlib.sha256((folder / "mlflow.db").read_bytes()).hexdigest() == digest


@pytest.mark.slow
def test_artifacts_that_cannot_be_written_are_refused_before_solving(tmp_path):
    (tmp_path / "mlartifacts").mkdir(mode=0o555)
    line = ("rank=1", *RUN, "steps=1000000000")
    done = run_mfgd(*line, cwd=tmp_path, preexec_fn=obey_modes)
    place = tmp_path / "mlartifacts" / "mfgd"
    assert refusal(done) == f"{place}: cannot be made for artifacts: Permission denied"


@pytest.mark.slow
def test_commands_at_once_in_a_fresh_folder_all_arrive(tmp_path):
    lines = (["rank=1"], ["rank=2"], ["--multirun", "rank=1,2"])
    commands = [
        subprocess.Popen(
            [sys.executable, "-m", "mfgd", *line, *RUN],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=UNMEASURED,
        )
        for line in lines
    ]
    errors = [command.communicate(timeout=200)[1].decode() for command in commands]
    assert [command.returncode for command in commands] == [0, 0, 0], errors
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        statuses = [status for (status,) in connection.execute("SELECT status FROM runs")]
    assert statuses == ["FINISHED"] * 5
    assert names(tmp_path) == {"mlflow.db", "mlartifacts"}


def test_what_a_killed_set_up_left_is_no_obstacle(here, tmp_path):
    for left in ("mlflow.db", "mlflow.db.lock"):
        (tmp_path / left).touch()
    for left in ("mlflow.db.new", "mlflow.db.new-journal"):
        (tmp_path / left).write_text("half of a database")
    assert here(*RUN).returncode == 0
    assert names(tmp_path) == {"mlflow.db", "mlartifacts"}


def test_a_schema_of_another_mlflow_is_refused_and_left_as_it_is(here, tmp_path):
    assert here(*RUN).returncode == 0
    migrations = Path(mlflow.__file__).parent / "store" / "db_migrations"
    older = list(ScriptDirectory(str(migrations)).walk_revisions())[5].revision

    def stamp(revision):
        with sqlite3.connect(tmp_path / "mlflow.db") as connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
            connection.execute("DROP TABLE IF EXISTS webhooks")  # MLflow migrates what lacks one

    for revision, said in ((older, "an older MLflow"), ("f" * 12, "a newer MLflow")):
        stamp(revision)
        digest = hashlib.sha256((tmp_path / "mlflow.db").read_bytes()).hexdigest()
        line = refusal(here(*RUN))
        assert said in line
        with pytest.raises(Refused, match=said):
            mfgd.load_runs()
        assert hashlib.sha256((tmp_path / "mlflow.db").read_bytes()).hexdigest() == digest
        if revision == older:
            assert line.endswith(
                "run: MLFLOW_DISABLE_TELEMETRY=true mlflow db upgrade sqlite:///mlflow.db"
            )
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("INSERT INTO alembic_version VALUES ('another')")
    assert "more than one head" in refusal(here(*RUN))


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?uri=true"])
def test_a_database_of_one_process_is_refused(here, tmp_path, uri):
    line = refusal(here(*RUN, f"tracking.uri='{uri}'"))
    assert line.startswith(f"tracking.uri={uri}: names no file")
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("installed", "uri"),
    [
        ({"psycopg2", "psycopg"}, "postgresql+psycopg2://me@host/runs?sslmode=require"),
        ({"psycopg"}, "postgresql+psycopg://me@host/runs?sslmode=require"),
    ],
)
def test_a_database_server_is_reached_by_the_driver_that_is_installed(monkeypatch, installed, uri):
    monkeypatch.setattr(database, "find_spec", lambda name: name in installed)
    given = "postgresql://me@host/runs?sslmode=require"
    assert database.resolve(given, "") == uri
    assert sqlalchemy.make_url(uri).get_dialect().driver == uri[len("postgresql+") :].split(":")[0]
    explicit = given.replace("postgresql", "postgresql+pg8000")
    assert database.resolve(explicit, "") == explicit


def test_a_database_server_without_a_driver_is_refused_with_the_packages(here, monkeypatch):
    monkeypatch.setattr(database, "find_spec", lambda name: None)
    line = refusal(here("tracking.uri=postgresql://me:secret@host/runs"))
    assert line == (
        "tracking.uri=postgresql://me:***@host/runs: no driver of postgresql is installed; "
        "needed is psycopg2-binary or psycopg[binary]"
    )


@pytest.mark.slow
def test_variables_of_mlflow_choose_the_experiment_and_the_run_around(here, tmp_path, monkeypatch):
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")

    def newest(name):
        return mfgd.load_runs(experiment=name).iloc[0]

    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "around")
    assert here(*RUN).returncode == 0
    around = mfgd.load_runs()["run_id"].iloc[0]
    assert newest("around")["run_id"] == around
    identity = client.get_experiment_by_name("around").experiment_id
    assert here(*RUN, "tracking.experiment=said").returncode == 0
    assert newest("said")["parent"] is None
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", identity)
    assert here(*RUN).returncode == 0
    assert len(mfgd.load_runs(experiment="around")) == 2
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "said")
    assert "allowed is one experiment" in refusal(here(*RUN))
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_RUN_ID", around)
    assert here(*RUN).returncode == 0
    assert newest("around")["parent"] == around
    assert here("--multirun", "rank=1,2", *RUN).returncode == 0
    parents = mfgd.load_runs(experiment="around").set_index("run_id")["parent"].dropna()
    (sweep,) = set(parents) - {around}
    assert parents[sweep] == around
    assert list(parents).count(sweep) == 2
    line = refusal(here(*RUN, "tracking.experiment=said"))
    assert line.startswith("tracking.experiment says said, MLFLOW_RUN_ID=")
    client.delete_run(around)
    assert refusal(here(*RUN)).endswith("was deleted; allowed is a run that is there")
    monkeypatch.setenv("MLFLOW_RUN_ID", "nothing")
    assert refusal(here(*RUN)).startswith("MLFLOW_RUN_ID=nothing: ")


class Server(BaseHTTPRequestHandler):
    """A tracking server without experiments, for whom the login fits."""

    status, login, text = 200, None, None

    def do_POST(self):
        self.reply({})

    def do_GET(self):
        self.reply({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}, 404)

    def reply(self, content, status=200):
        status = status if self.status == 200 else self.status
        if self.login and self.headers["Authorization"] != self.login:
            status = 401
        body = self.text or (b"no" if status == 401 else json.dumps(content).encode())
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def serving(certificate=None, **kind):
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Kind", (Server,), kind))
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    Thread(target=server.serve_forever, daemon=True).start()
    scheme = "https" if certificate else "http"
    yield f"{scheme}://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def write_certificate(path):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(alternative, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    text = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(pem)
    path.write_bytes(text)


def is_reached(uri) -> bool:
    """Whether mfgd reaches a server, which then has no experiment for it."""
    with pytest.raises(Refused) as refused:
        mfgd.load_runs(uri=uri)
    return "none of that name" in str(refused.value)


@pytest.mark.parametrize(
    ("status", "said"),
    [(503, "the server answers 503"), (404, "the server answers 404"), (200, "no tracking server")],
)
def test_what_is_wrong_with_a_server_is_said_at_once(here, status, said):
    with serving(status=status, text=b"no") as uri:
        assert said in refusal(here(*RUN, f"tracking.uri={uri}"))
    line = refusal(here(*RUN, f"tracking.uri={uri}"))  # nobody listens any more
    assert line == f"tracking.uri={uri}: no tracking server answers (NewConnectionError)"


def test_the_login_of_mlflow_holds(here, monkeypatch):
    login = "Basic " + base64.b64encode(b"me:secret").decode()
    with serving(login=login) as uri:
        line = refusal(here(*RUN, f"tracking.uri={uri}"))
        assert "MLFLOW_TRACKING_USERNAME" in line
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
        assert is_reached(uri)
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name)
    with serving(login="Bearer token") as uri:
        assert not is_reached(uri)
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token")
        assert is_reached(uri)


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_the_tls_settings_of_mlflow_hold(here, tmp_path, monkeypatch):
    certificate = tmp_path / "server.pem"
    write_certificate(certificate)
    with serving(certificate) as uri:
        line = refusal(here(*RUN, f"tracking.uri={uri}"))
        assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in line
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
        assert is_reached(uri)
        monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
        monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        assert is_reached(uri)
