"""No password of a store is printed or kept; the store itself is given it."""

import base64
import pickle
import shutil
import sqlite3
import sys
import urllib.request
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import mlflow
import pandas
import pytest
from browser import serve
from mlflow import MlflowClient

import mfgd
from mfgd import compare, passwords
from mfgd.compose import hide_arguments
from mfgd.mlflow_store import MlflowTracker
from mfgd.types import Refused

# SQLite ignores a password.
pytestmark = pytest.mark.filterwarnings("ignore:Query string argument")
RUN = ("steps=2", "tracking.figures=0")
SHOWN = {
    # A login, with the signs that people forget to encode.
    "https://me:CANARY@example.org/x": "https://me:***@example.org/x",
    "http://me:CAN%40ARY@h:5000": "http://me:***@h:5000",
    "http://me:CAN@ARY:CANARY@h": "http://me:***@h",
    "postgresql+psycopg://me:CAN/ARY?#@h:5432/db": "postgresql+psycopg://me:***@h:5432/db",
    "http://me:CAN 'A\"RY@h": "http://me:***@h",
    "http://me:123@h": "http://me:***@h",
    "http://CANARY@h": "http://***@h",
    "http://CANARY:@h/x": "http://***@h/x",
    "http://:CANARY@h": "http://:***@h",
    "http:///me:CANARY@h": "http:///me:***@h",
    "me:CANARY@h": "me:***@h",
    "CANARY@h": "***@h",
    # A query.
    "sqlite:///a.db?timeout=5&password=CANARY": "sqlite:///a.db?timeout=5&password=***",
    "postgresql://h/db?sslpassword=CAN#ARY&x=1": "postgresql://h/db?sslpassword=***&x=1",
    "mysql://h/db?access_token=CANARY&p%61sswd=CANARY": "mysql://h/db?access_token=***&p%61sswd=***",
    "mssql+pyodbc:///?odbc_connect=PWD%3DCANARY": "mssql+pyodbc:///?odbc_connect=***",
    "mysql://me:CANARY@h/db?password=CANARY": "mysql://me:***@h/db?password=***",
}
PLAIN = (
    "sqlite:///mlflow.db",
    "sqlite:////x:y@z/a@b.db?timeout=5&mode=ro",
    "postgresql://me@h/db?sslmode=require",
    "http://127.0.0.1:5000",
    "https://h/user/me@example.org/proxy",
    "https://h:8000/user/me@example.org/proxy",
)


@pytest.mark.parametrize("uri", [*SHOWN, *PLAIN])
def test_a_uri_is_shown_without_its_passwords(uri):
    shown = SHOWN.get(uri, uri)
    assert passwords.hide_password(uri) == shown
    assert passwords.hide_password(shown) == shown
    if "://" in uri and " " not in uri:
        text = passwords.hide_passwords(f"tracking.uri='{uri}': it fails (see {uri}), (b@c)")
        assert text == f"tracking.uri='{shown}': it fails (see {shown}), (b@c)"


def kept(folder) -> str:
    """All text in a folder: every column of every table of its databases, every file and its
    name."""
    texts = []
    for file in folder.rglob("*"):
        texts.append(str(file))
        if file.suffix == ".db":
            with closing(sqlite3.connect(file)) as connection:
                texts += connection.iterdump()
        elif file.suffix == ".parquet":
            texts.append(pandas.read_parquet(file).to_csv())
        if file.is_file():
            texts.append(file.read_bytes().decode("latin-1"))
    return "\n".join(texts)


def assert_hidden(done, folder) -> str:
    """Asserts that a command kept no canary and printed none; all that it kept."""
    text = kept(folder)
    for place in (done.stdout, done.stderr, text):
        assert "CANARY" not in place
    return text


QUOTED = "'sqlite:///mlflow.db?password=CAN:@CANARY'"


@pytest.mark.parametrize("key", ["tracking.uri", "++tracking.uri"])
def test_a_password_of_a_database_is_in_no_file(here, tmp_path, key):
    done = here(f"{key}={QUOTED}", *RUN)
    assert done.returncode == 0, done.stderr
    assert "sqlite:///mlflow.db?password=***" in done.stdout
    text = assert_hidden(done, tmp_path)
    assert f"{key}='sqlite:///mlflow.db?password=***' steps=2" in text  # the run's name


def test_a_password_of_a_database_is_in_no_file_of_a_sweep(here, tmp_path):
    line = ("rank=1,9", "workers=1", "lr=0.1", f"tracking.uri={QUOTED}", *RUN)
    again = f"tracking={{uri:{QUOTED}}}"
    done = here("--multirun", *line, again, f"tracking.experiment={QUOTED}")
    assert done.returncode == 0, done.stderr
    text = assert_hidden(done, tmp_path)
    # The shell line in a tag, in the description and on the page; the experiment.
    assert text.count("password=***") > 10
    (page,) = tmp_path.rglob("compare.html")
    assert "sqlite:///mlflow.db?password=***" in page.read_text()


def test_a_password_is_in_no_file_of_hydras(here, tmp_path):
    folders = ("hydra.sweep.dir=out", "hydra.sweep.subdir='${hydra:job.override_dirname}'")
    asked = ("hydra.output_subdir=.hydra", "hydra/job_logging=default")
    line = ("--multirun", "rank=1,2", f"tracking.uri={QUOTED}", *folders, *asked, *RUN)
    done = here(*line)
    assert done.returncode == 0, done.stderr
    assert_hidden(done, tmp_path)
    (overrides, *_) = tmp_path.rglob("overrides.yaml")
    assert "password=***" in overrides.read_text()
    shown = here(f"tracking.uri={QUOTED}", "--cfg", "job")
    assert "uri: sqlite:///mlflow.db?password=***" in shown.stdout


def test_a_password_of_the_environment_is_in_no_file(here, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", QUOTED.strip("'"))
    done = here("--multirun", "rank=1,9", "workers=1", *RUN)
    assert done.returncode == 0, done.stderr
    assert_hidden(done, tmp_path)
    monkeypatch.setattr(sys, "argv", ["mfgd-compare", "--html", "page.html", "--csv", "runs.csv"])
    compare.main()
    assert (tmp_path / "page.html").exists()
    assert "CANARY" not in "".join(capfd.readouterr()) + kept(tmp_path)


REFUSED = {
    "a wrong key beside it": ("tracking.uri=postgresql://u:CANARY@h/db", "nokey=1"),
    "no driver, or no server": ("tracking.uri=postgresql://u:CANARY@h/db",),
    "two @": ("tracking.uri=postgresql://u:p@CAN@CANARY@h/db",),
    "an @ and a colon": ("tracking.uri=postgresql://u:p@CAN:CANARY@h/db",),
    "nobody listens": ("tracking.uri='http://CANARY@127.0.0.1:9'",),
    "not a URI": ("tracking.uri=http://u:CAN/CANARY@127.0.0.1:9",),
    "no scheme": ("tracking.uri=u:CANARY@h",),
    "another scheme": ("tracking.uri=ftp://CANARY@h",),
    "needs quotes": ("tracking.uri=http://u:CAN&CANARY@h",),
    "another key": ("uri=http://u:CANARY@h",),
    "no key": ("http://u:CANARY@h",),
    "a flag": ("--tracking.uri=http://u:CANARY@h",),
    "deleted": ("~tracking.uri=http://u:CANARY@h",),
    "no such key of the tracker": ("tracking=memory", "tracking.uri=http://u:CANARY@h"),
    "an experiment of that name": (
        "tracking.uri='sqlite:///a?b=1'",
        "+experiment=http://a:CANARY@h",
    ),
    "two stores": ("--multirun", "tracking.uri=http://a:CANARY@h,http://b:CANARY@h"),
    "two passwords": ("--multirun", "tracking.uri=http://a:CANARY@h,http://a:CANARY2@h"),
    "beside an interpolation": ("tracking.uri='http://u:CANARY@${oc.env:HOST}'",),
}


@pytest.mark.parametrize("line", REFUSED.values(), ids=REFUSED)
def test_a_refusal_shows_no_password(here, tmp_path, line):
    done = here(*line, *RUN)
    assert done.returncode == 2
    assert_hidden(done, tmp_path)
    assert line[-1].startswith(("nokey", "--m", "tracking.uri=http://a")) or "***" in done.stderr


def test_arguments_of_the_comparison_are_refused_without_passwords(monkeypatch, capfd):
    for line in (["--uri", "http://CANARY@127.0.0.1:9"], ["--url=http://me:CANARY@h"]):
        monkeypatch.setattr(sys, "argv", ["mfgd-compare", *line])
        with pytest.raises(SystemExit):
            compare.main()
        said = capfd.readouterr().err
        assert "***@" in said
        assert "CANARY" not in said


def test_a_hidden_password_is_asked_for_again(here):
    done = here("tracking.uri='postgresql://me:***@h/db'", *RUN)
    said = "*** stands for a password; allowed is the password itself"
    assert done.stderr == f"mfgd: tracking.uri=postgresql://me:***@h/db: {said}\n"


def test_the_password_reaches_the_tracker_as_hydra_reads_it():
    cases = {
        "tracking.uri=http://me:a%40b@h": "http://me:a%40b@h",
        "tracking.uri=http://me:a@b:c@h": "http://me:a@b:c@h",
        r"tracking.uri=http://me:a\,b@h": "http://me:a,b@h",
        r"""tracking.uri="http://me:a\"b'c\d@h" """.strip(): """http://me:a"b'c\\d@h""",
        """tracking={uri:'http://me:a"b@h'}""": 'http://me:a"b@h',
    }
    for argument, uri in cases.items():
        shown, uris = hide_arguments([argument, "rank=3", argument])
        assert list(uris.values()) == [uri]
        ((hidden, _),) = uris.items()
        assert hidden in shown[0]
        assert shown == [shown[0], "rank=3", shown[0]]
        assert hide_arguments(shown) == (shown, {})
    plain = ["tracking.uri='postgresql://me:${oc.env:PW}@h/db'", "rank=range(1,3)", "-m"]
    assert hide_arguments(plain) == (plain, {})


def test_an_uncaught_error_is_printed_without_passwords(here, capfd):
    assert here(*RUN).returncode == 0
    assert sys.excepthook is passwords.print_error
    with pytest.raises(mlflow.MlflowException) as raised:
        MlflowClient("http://me:CAN/CANARY@h").search_experiments()
    assert "CANARY" in str(raised.value)
    sys.excepthook(raised.type, raised.value, raised.tb)
    said = capfd.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    assert "http://me:***@h/api/" in said
    assert "CANARY" not in said


class Guard(BaseHTTPRequestHandler):
    """Stands before a tracking server, and lets in who has the password."""

    behind, login = "", "Basic " + base64.b64encode(b"me:CAN:@CANARY").decode()

    def forward(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) or None
        status, content = 401, b"no"
        if self.headers["Authorization"] == self.login:
            kind = {"Content-Type": self.headers.get("Content-Type") or "application/json"}
            request = urllib.request.Request(
                self.behind + self.path, body, kind, method=self.command
            )
            try:
                with urllib.request.urlopen(request) as answer:
                    status, content = answer.status, answer.read()
            except urllib.error.HTTPError as error:
                status, content = error.code, error.read()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def guarding(address):
    verbs = dict.fromkeys(("do_GET", "do_POST", "do_PUT"), Guard.forward)
    guard = type("Guarding", (Guard,), {"behind": address, **verbs})
    server = ThreadingHTTPServer(("127.0.0.1", 0), guard)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_server_is_given_the_password_by_every_process(here, tmp_path, empty_database):
    store = tmp_path / "store"
    store.mkdir()
    shutil.copy(empty_database, store)
    with serve(store) as address, guarding(address) as place:
        uri = f"http://me:CAN%3A%40CANARY@{place}"
        done = here("--multirun", "rank=1,2,3,4", "workers=2", f"tracking.uri={uri}", *RUN)
        assert done.returncode == 0, done.stderr
        assert f"compare in the browser:  http://me:***@{place}/#/" in done.stdout
        runs = mfgd.load_runs(uri=uri)
        assert set(runs["params.rank"][runs["parent"].notna()]) == {"1", "2", "3", "4"}
        with pytest.raises(Refused, match="the server answers 401") as refused:
            mfgd.load_runs(uri=uri.replace("CANARY", "CANARIES"))
        assert "CANARI" not in str(refused.value)
        assert len(mfgd.load_run(runs["run_id"].iloc[0], uri).trajectory) == 3
    text = assert_hidden(done, tmp_path)
    assert f"tracking.uri=http://me:***@{place}" in text


def test_a_copy_of_the_tracker_has_the_password():
    tracker = MlflowTracker("http://me:CANARY@h", None, 0, 1)
    assert pickle.loads(pickle.dumps(tracker)).uri == "http://me:CANARY@h"
