"""Nothing that mfgd starts or prints opens a connection but to the store."""

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


def test_a_sweep_its_comparison_and_the_line_that_it_prints_stay_here(recorded, tmp_path):
    python, page = (sys.executable, "-c"), ("--html", "page.html", "--csv", "runs.csv")
    said = run(recorded(*python, START.format("__main__"), "--multirun", *SWEEP))
    run(recorded(*python, START.format("compare"), *page))
    names = {path.name for path in (tmp_path / "work").rglob("*")}
    assert names >= {"mlflow.db", "compare.html", "page.html", "runs.csv"}
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
