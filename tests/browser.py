"""Headless Chromium, and MLflow's server for it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NO_ASSISTANT = """
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
"""
"""A script that keeps MLflow's assistant closed, which opens by itself in a new profile."""


@contextmanager
def launch() -> Iterator[Any]:
    """Chromium as Playwright drives it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address of an MLflow server that shows the store of a folder."""
    port = find_free_port()
    options = ["--backend-store-uri", "sqlite:///mlflow.db", "--port", str(port), "--workers", "1"]
    environment = {name: text for name, text in os.environ.items() if "COVERAGE" not in name}
    environment["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # Five more processes would wait for jobs of evaluations.
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(address, server)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # the server and its worker
        server.wait(timeout=60)


def find_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_until_healthy(address: str, server: subprocess.Popen[Any]) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and server.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
            return
        time.sleep(0.1)
    raise AssertionError("the server does not answer: see its server.log")


def find_link(stdout: str) -> str:
    """The page that the last line of a sweep says to open, without the server's address."""
    (link,) = re.findall(r"http://127\.0\.0\.1:5000/(\S+)\n$", stdout)
    return str(link)
