"""Engines solve a sweep as its own processes do: one parent, one table, the same bits."""

import importlib.util
import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import UNMEASURED, mfgd
from faults import count_finished, list_processes, read_matrices
from omegaconf import OmegaConf
from servers import FileStore, find_port

import mfgd as package
from mfgd.engines import make_engine
from mfgd.types import Refused

pytestmark = pytest.mark.slow
CLUSTER = UNMEASURED | {
    # Its processes look for mfgd where this one finds it.
    "PYTHONPATH": str(Path(package.__file__).parents[1]),
    "RAY_USAGE_STATS_ENABLED": "0",
    # Nodes do not agree by themselves on whether they ask each other for a token.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
LINE = (
    *("--multirun", "problem=synthetic", "problem.n=8", "problem.m=7", "rank=1,2", "seed=range(9)"),
    *("steps=20", "workers=2", "batch_bytes=12000", "tracking.figures=0"),
)
ENGINES = [
    pytest.param(
        name, marks=pytest.mark.skipif(not importlib.util.find_spec(module), reason=f"no {module}")
    )
    for name, module in {
        "joblib": "joblib",
        "submitit_local": "submitit",
        "ray": "ray",
    }.items()
]
STARTS = """
import os, signal
from pathlib import Path
from mfgd.init import normal

def once(*, number):
    return _start(lambda died: number == 3 and not died.exists())

def always(*, number):
    return _start(lambda died: number == 3)

def _start(dies):
    def start(problem, widths, stream):
        main, died = Path("main"), Path("died")
        if not main.exists():  # the process of the command is the first that draws
            main.write_text(str(os.getpid()))
        elif main.read_text() != str(os.getpid()) and dies(died):
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return normal(scale=0.1, ratio=1.0)(problem, widths, stream)
    return start
"""
DYING = ("+init.number=1,3", "~init.scale")
SBATCH = """#!{python}
import os, re, shlex, subprocess, sys
script = open(sys.argv[-1]).read()
open("script.sh", "w").write(script)  # submitit moves its own one
tasks = re.search("--array=0-([0-9]+)", script)
for number in range(int(tasks[1]) + 1 if tasks else 1):
    there = {{"JOB_ID": 12, "ARRAY_JOB_ID": 12, "ARRAY_TASK_ID": number, "NTASKS": 1, "LOCALID": 0,
             "NODEID": 0, "PROCID": 0, "JOB_NUM_NODES": 1, "JOB_NODELIST": "n1"}}
    if not tasks:
        del there["ARRAY_JOB_ID"], there["ARRAY_TASK_ID"]
    environment = os.environ | {{f"SLURM_{{key}}": str(value) for key, value in there.items()}}
    subprocess.Popen(["bash", "script.sh"], env=environment, stdout=subprocess.DEVNULL,
                     stderr=subprocess.DEVNULL)
print("Submitted batch job 12")
"""
SRUN = """#!{python}
import os, sys
first = next(i for i, word in enumerate(sys.argv) if "python" in os.path.basename(word) and i)
os.execv(sys.argv[first], sys.argv[first:])
"""
SACCT = """#!/bin/sh
echo 'JobID|State|NodeList'
echo '12|RUNNING|n1'
"""


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, list[str]]:
    """What the processes of mfgd give: fingerprint → digest of the matrices."""
    folder = tmp_path_factory.mktemp("batch")
    assert mfgd(*LINE, cwd=folder, env=UNMEASURED).returncode == 0
    return read_matrices(FileStore(folder))


def check_sweep(folder, expected):
    """One parent, which ended, and every run once."""
    assert read_matrices(FileStore(folder)) == expected
    runs = package.load_runs(uri=f"sqlite:///{folder}/mlflow.db")
    assert set(runs["status"]) == {"FINISHED"}
    assert runs["parent"].isna().sum() == 1
    assert len(list(folder.glob("mlartifacts/*/*/artifacts/summary.csv"))) == 1
    until = time.monotonic() + 30  # the last jobs of an engine have told all, and end
    while list_processes(folder) and time.monotonic() < until:
        time.sleep(0.1)
    assert list_processes(folder) == []


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_gives_the_same_bits_under_one_parent(name, expected, tmp_path):
    done = mfgd(*LINE, f"hydra/launcher={name}", cwd=tmp_path, env=UNMEASURED)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    check_sweep(tmp_path, expected)


@pytest.mark.parametrize("name", ENGINES)
def test_a_process_that_is_killed_loses_nothing(name, tmp_path):
    (tmp_path / "starts.py").write_text(STARTS)
    line = (*LINE, "seed=range(3)", "init._target_=starts.once", *DYING, f"hydra/launcher={name}")
    done = mfgd(*line, cwd=tmp_path, env=UNMEASURED)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    found = read_matrices(FileStore(tmp_path))
    assert sorted(map(len, found.values())) == [1] * 12


def test_a_run_that_kills_its_process_fails_alone(tmp_path):
    (tmp_path / "starts.py").write_text(STARTS)
    line = (*LINE, "rank=1", "seed=range(2)", "init._target_=starts.always", *DYING)
    done = mfgd(*line, "hydra/launcher=joblib", cwd=tmp_path, env=UNMEASURED)
    assert done.returncode == 1
    runs = package.load_runs(uri=f"sqlite:///{tmp_path}/mlflow.db")
    runs = runs[runs["parent"].notna()]
    assert dict(runs.groupby("params.init.number")["status"].agg(set)) == {
        "1": {"FINISHED"},
        "3": {"FAILED"},
    }
    assert len(runs) == 4
    (text, *_) = tmp_path.glob("mlartifacts/*/*/artifacts/traceback.txt")
    assert "the process that solved this run died" in text.read_text()


@pytest.mark.parametrize("name", ENGINES)
def test_an_interrupted_engine_ends_the_sweep(name, tmp_path):
    line = [sys.executable, "-m", "mfgd", *LINE, "seed=range(300)", f"hydra/launcher={name}"]
    command = subprocess.Popen(
        line, cwd=tmp_path, env=UNMEASURED, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 120
    while count_finished(FileStore(tmp_path)) < 10 and time.monotonic() < until:
        time.sleep(0.1)
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=120)
    assert (command.returncode, "Traceback" in said) == (130, False), said
    runs = package.load_runs(uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert (runs["status"] == "RUNNING").sum() == 0
    (unfinished,) = tmp_path.glob("mlartifacts/*/*/artifacts/unfinished.txt")
    written = (runs["status"] == "FINISHED").sum()
    assert len(unfinished.read_text().splitlines()) + written == 600
    assert list_processes(tmp_path) == []


@pytest.fixture
def cluster(tmp_path_factory):
    """A Ray cluster on loopback, as the reference says how to start one: a head that solves
    nothing, and two nodes of one processor; its address, and the first processes of the nodes."""
    folder, port = tmp_path_factory.mktemp("ray"), find_port()
    program, processes = str(Path(sys.executable).with_name("ray")), []

    def start(*options: str) -> None:
        line = [program, "start", "--block", "--node-ip-address=127.0.0.1", *options]
        file = folder / f"{len(processes)}.log"
        with open(file, "w") as log:
            processes.append(
                subprocess.Popen(line, cwd=folder, stdout=log, stderr=log, env=CLUSTER)
            )
        while "Ray runtime started" not in file.read_text():
            assert processes[-1].poll() is None, file.read_text()
            time.sleep(0.2)

    try:
        start("--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false")
        for _ in range(2):  # one after the other
            start(f"--address=127.0.0.1:{port}", "--num-cpus=1")
        yield f"127.0.0.1:{port}", processes[1:]
    finally:
        for process in reversed(processes):
            kill_tree(process.pid)
            process.wait()


def kill_tree(pid: int) -> None:
    """Kills a process, and then those that it started."""
    started = list_children(pid)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    for child in started:
        kill_tree(child)


def list_children(pid: int) -> list[int]:
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            _, _, rest = file.read_text().rpartition(")")
            if int(rest.split()[1]) == pid:
                found.append(int(file.parent.name))
    return found


@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="no ray")
def test_a_node_of_a_cluster_that_is_killed_loses_nothing(cluster, tmp_path):
    address, (node, _) = cluster
    options = ("hydra/launcher=ray", f"hydra.launcher.address={address}")
    line = [sys.executable, "-m", "mfgd", *LINE, "seed=range(100)", *options]
    with open(tmp_path / "said", "w") as said:
        command = subprocess.Popen(line, cwd=tmp_path, env=CLUSTER, stdout=said, stderr=said)
    try:
        until = time.monotonic() + 180
        while count_finished(FileStore(tmp_path)) < 20 and time.monotonic() < until:
            time.sleep(0.05)
        written = count_finished(FileStore(tmp_path))
        kill_tree(node.pid)
        assert command.wait(timeout=200) == 0, (tmp_path / "said").read_text()
    finally:
        command.kill()
    assert 20 <= written < 200
    found = read_matrices(FileStore(tmp_path))
    assert sorted(map(len, found.values())) == [1] * 200
    runs = package.load_runs(uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert set(runs["status"]) <= {"FINISHED", "KILLED"}  # the half of one may be there
    assert (runs["status"] == "FINISHED").sum() == 201
    assert len(list(tmp_path.glob("mlartifacts/*/*/artifacts/summary.csv"))) == 1
    # Without an address the cluster is not asked, though it is there.
    done = mfgd(*LINE, "hydra/launcher=ray", "tracking.experiment=own", cwd=tmp_path, env=CLUSTER)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not importlib.util.find_spec("submitit"), reason="no submitit")
def test_slurm_gets_an_array_with_what_was_asked_for(expected, tmp_path):
    """A sbatch of our own runs the script of submitit on this machine."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT}.items():
        (programs / name).write_text(text.format(python=sys.executable))
        (programs / name).chmod(0o755)
    asked = {"timeout_min": 90, "gpus_per_node": 1, "mem_gb": 3, "slurm_partition": "short"}
    keys = [f"hydra.launcher.{key}={value}" for key, value in asked.items()]
    environment = UNMEASURED | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    line = (*LINE, "hydra/launcher=submitit_slurm", *keys)
    done = mfgd(*line, cwd=tmp_path, env=environment)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    check_sweep(tmp_path, expected)
    script = (tmp_path / "script.sh").read_text()
    options = dict(
        text.removeprefix("#SBATCH --").partition("=")[::2]
        for text in script.splitlines()
        if text.startswith("#SBATCH")
    )
    assert (options["partition"], options["time"], options["mem"]) == ("short", "90", "3GB")
    assert (options["gpus-per-node"], options["array"][-2:]) == ("1", "%2")


def test_what_cannot_be_had_is_refused(here, monkeypatch):
    for name in ("ray", "submitit_local"):
        module = name.partition("_")[0]
        monkeypatch.setitem(sys.modules, module, None)
        done = here("--multirun", "rank=1,2", f"hydra/launcher={name}")
        assert done.returncode == 2
        assert f"{module} is not installed" in done.stderr
        assert f"pip install 'mfgd[{module}]'" in done.stderr
    with pytest.raises(Refused, match="allowed is hydra/launcher=batch"):
        make_engine(OmegaConf.create({"engine": "joblib"}), 2, shared=False)
    assert make_engine(OmegaConf.create({}), 2, shared=False) is None
