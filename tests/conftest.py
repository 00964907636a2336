import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.pop("MLFLOW_TRACKING_URI", None)
torch.set_num_threads(1)


def mfgd(*arguments: str, cwd: Path, **options) -> subprocess.CompletedProcess:
    """The command as a person runs it, in a folder of its own."""
    command = [sys.executable, "-W", "error::UserWarning:mfgd", "-m", "mfgd", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """A folder with a small tracked sweep in it, made by the real command: 2 ranks × 3 rates × 2 losses × 2 starts."""
    folder = tmp_path_factory.mktemp("demo")
    sweep = ("rank=2,3", "lr=1e-4,4e-4,1e-3", "loss=squared,huber", "init=normal,spectral", "steps=60")
    done = mfgd("--multirun", "experiment=demo", *sweep, cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    (folder / "stderr.txt").write_text(done.stderr)
    return folder


@pytest.fixture
def store(demo, monkeypatch) -> str:
    """The tracking URI of the demo, from inside its folder."""
    monkeypatch.chdir(demo)
    return "sqlite:///mlflow.db"
