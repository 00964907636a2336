"""Nothing that mfgd starts or prints opens a connection but to the store; files obey the umask."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from browser import find_free_port, wait_until_healthy

RECORDER = """
import os, sys

def record(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        told = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        told = arguments[1][0]
    else:
        return
    with open(os.environ["RECORD"], "a") as file:
        print(told, file=file)
    if told not in ("127.0.0.1", "localhost", None):
        raise OSError("a test asks nobody")

sys.addaudithook(record)
"""
START = "from mfgd.{} import main; main()"
HERE = {"127.0.0.1", "localhost", "None"}
SWEEP = ("rank=1,2", "steps=20", "workers=2")


def modes(folder: Path) -> tuple[set[str], set[str]]:
    """The modes of all files in a folder, and of all folders."""
    paths = list(folder.rglob("*"))
    files = {oct(path.stat().st_mode & 0o777) for path in paths if path.is_file()}
    return files, {oct(path.stat().st_mode & 0o777) for path in paths if path.is_dir()}


@pytest.fixture
def recorded(tmp_path):
    """A function that runs a command whose processes record where they connect to."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(RECORDER)
    (tmp_path / "work").mkdir()
    # MLflow is silent in tests and in CI, which it knows by their variables.
    environment = {
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{tmp_path / 'site'}:{os.environ.get('PYTHONPATH', '')}",
        "RECORD": str(tmp_path / "record.txt"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }

    def start(*command: str, **options) -> subprocess.Popen:
        at = {"cwd": tmp_path / "work", "env": environment, "text": True}
        return subprocess.Popen(command, stdout=-1, stderr=-1, **at, **options)

    return start


def run(process: subprocess.Popen) -> str:
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return stdout


def visited(folder: Path) -> set[str]:
    record = folder / "record.txt"
    return set(record.read_text().split()) if record.exists() else set()


def test_mlflow_reports_its_use_if_it_may(recorded, tmp_path):
    client = "mlflow.telemetry.get_telemetry_client()"
    ask = f"import mlflow, time; {client}.activate(); time.sleep(1)"
    run(recorded(sys.executable, "-c", ask))
    assert visited(tmp_path) - HERE


@pytest.mark.slow
def test_a_sweep_its_comparison_and_the_line_that_it_prints_stay_here(recorded, tmp_path):
    python, page = (sys.executable, "-c"), ("--html", "page.html", "--csv", "runs.csv")
    said = run(recorded(*python, START.format("__main__"), "--multirun", *SWEEP, umask=0o027))
    run(recorded(*python, START.format("compare"), *page, umask=0o027))
    names = {path.name for path in (tmp_path / "work").rglob("*")}
    assert names >= {"mlflow.db", "matrices.safetensors", "compare.html", "page.html", "runs.csv"}
    assert modes(tmp_path / "work") == ({"0o640"}, {"0o750"})
    assert visited(tmp_path) == set()
    (line,) = re.findall(r"compare in the browser:  (.*)  and open  ", said)
    port = find_free_port()
    shell = f"exec env {line} --port {port} --workers 1"
    server = recorded("sh", "-c", shell, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until_healthy(address, server)
        # What a browser asks for first; unless told not to, the server asks MLflow's makers.
        with urllib.request.urlopen(f"{address}/ajax-api/3.0/mlflow/ui-telemetry") as answer:
            assert json.load(answer)["disable_ui_telemetry"] is True
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.communicate(timeout=60)
    assert visited(tmp_path) <= HERE


def test_all_files_of_a_sweep_obey_the_umask(here, tmp_path):
    before = os.umask(0o022)
    try:
        done = here("--multirun", *SWEEP[:2], "workers=1")
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("matrices.safetensors"))) == 2
    assert len(list(tmp_path.rglob("*.png"))) > 6
    assert modes(tmp_path) == ({"0o644"}, {"0o755"})
