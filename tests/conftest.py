import ctypes
import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from browser import CHROMIUM, launch
from filelock import FileLock

from mfgd import command, component, database, session, targets

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.pop("MLFLOW_TRACKING_URI", None)
# They have functions for configs.
targets.NAMED = "test_batch,test_checkpoint,test_config,test_oracles,test_symmetric,test_tied"
torch.set_num_threads(1)


# The fifty processes are not measured for coverage, which would double the time of their start.
UNMEASURED = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}


def mfgd(*arguments: str, cwd: Path, **options) -> subprocess.CompletedProcess:
    """The command as a person runs it, as a process in a folder of its own."""
    command = [sys.executable, "-W", "error::UserWarning:mfgd", "-m", "mfgd", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, **options)


PRCTL = ctypes.CDLL(None).prctl


def obey_modes() -> None:
    """Gives up root's power to write everywhere, CAP_DAC_OVERRIDE, for good before exec."""
    PRCTL(24, 1, 0, 0, 0)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory) -> Path:
    """A database as MLflow sets it up, in which nothing is tracked."""
    file = tmp_path_factory.mktemp("database") / "mlflow.db"
    database._make_schema(f"sqlite:///{file}")
    return file


@pytest.fixture
def here(
    tmp_path, monkeypatch, capfd, empty_database
) -> Callable[..., subprocess.CompletedProcess]:
    """The command in this process, in a folder of its own; `here.session` is its last session.

    Python, its imports and the set-up of a database would take most of the time of a short command.
    """
    monkeypatch.chdir(tmp_path)
    # The command changes these for good, because it takes the process for its own.
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(torch, "set_flush_denormal", lambda _: None)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    monkeypatch.setattr(command, "warm_up", lambda: None)
    make_schema = database._make_schema

    def copy_schema(uri: str) -> None:
        if uri.startswith("sqlite:///"):
            shutil.copy(empty_database, uri.removeprefix("sqlite:///"))
        else:
            make_schema(uri)

    monkeypatch.setattr(database, "_make_schema", copy_schema)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    class KeptSession(session.Session):
        def __init__(self) -> None:
            super().__init__()
            run.session = self

    monkeypatch.setattr(command, "Session", KeptSession)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["mfgd", *arguments])
        modules = set(sys.modules)
        try:
            command.main()
            code = 0
        except SystemExit as ended:
            code = ended.code
        finally:
            for name in set(sys.modules) - modules:
                file = getattr(sys.modules[name], "__file__", None) or "/"
                if Path(file).is_relative_to(tmp_path):
                    del sys.modules[name]
            component._SHARED.clear()  # they hold functions of these modules
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """A folder with a small tracked sweep, made by the real command: 2 ranks × 2 rates × 2 losses
    × 2 starts."""
    together = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        together = together.parent  # all workers share one sweep
    folder = together / "demo"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            sweep = (
                "rank=2,3",
                "lr=4e-4,1e-3",
                "loss=squared,huber",
                "init=normal,spectral",
                "steps=60",
            )
            done = mfgd("--multirun", "experiment=demo", *sweep, cwd=folder)
            (folder / "stdout.txt").write_text(done.stdout)
            (folder / "stderr.txt").write_text(done.stderr)
    assert "mlflow ui" in (folder / "stdout.txt").read_text(), (folder / "stderr.txt").read_text()
    return folder


@pytest.fixture
def store(demo, monkeypatch) -> str:
    """The tracking URI of the demo, from inside its folder."""
    monkeypatch.chdir(demo)
    return f"sqlite:///{demo / 'mlflow.db'}"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Headless Chromium, driven by Playwright; the test is skipped where one of them is missing."""
    pytest.importorskip("playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    with launch() as chromium:
        yield chromium
