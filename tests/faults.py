"""Does to a sweep what terminals, schedulers and accidents do, and counts what is lost.

`python tests/faults.py` does each fault 20 times at random moments and prints a table;
`--trials N` and names of faults say otherwise. After each fault the sweep is resumed. `lost` are
configs that are then not finished, or with other matrices than without a fault; `doubled` are
configs that are finished twice; `open` is what is left: processes, runs that are RUNNING, locks and
temporary files, and what was printed as a traceback. `seconds` is the longest time from the fault
to the end of all processes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pty
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from threading import Thread
from typing import NamedTuple

SWEEP = (
    *("--multirun", "seed=range(100)", "rank=1,2,3", "steps=2000", "init.scale=0.1"),
    *("problem=synthetic", "problem.n=20", "problem.m=20", "batch_bytes=100000"),
    "tracking.figures=0",
)
COUNT = 300
PATIENCE = 300


class Result(NamedTuple):
    """What came of a fault."""

    lost: int
    doubled: int
    left: list[str]
    seconds: float


class Command:
    """mfgd in a terminal of its own, as the leader of a process group."""

    def __init__(self, folder: Path, *line: str) -> None:
        self.folder, self.output = folder, b""
        (folder / "tmp").mkdir(exist_ok=True)
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.environ["TMPDIR"] = str(folder / "tmp")
            os.execv(sys.executable, [sys.executable, "-m", "mfgd", *line])
        self.reader = Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # the terminal was closed
            while said := os.read(self.terminal, 65536):
                self.output += said

    def wait(self) -> int:
        """The exit status, once no process is left whose working directory is the folder."""
        _, status = os.waitpid(self.pid, 0)
        until = time.monotonic() + 20
        while list_processes(self.folder) and time.monotonic() < until:
            time.sleep(0.05)
        return os.waitstatus_to_exitcode(status)

    def press_ctrl_c(self) -> None:
        with suppress(OSError):
            os.write(self.terminal, b"\x03")


def list_processes(folder: Path) -> list[str]:
    """The processes that work in a folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if Path(os.readlink(place / "cwd")) == folder:
                found.append(place.name)
    return found


def query(folder: Path, text: str) -> list[tuple]:
    """Lines of the database, none if there is no such table yet."""
    file = folder / "mlflow.db"
    if not file.exists():
        return []
    with suppress(sqlite3.Error), closing(sqlite3.connect(file, timeout=20)) as connection:
        return connection.execute(text).fetchall()
    return []


def count_finished(folder: Path) -> int:
    finished = "SELECT COUNT(*) FROM runs WHERE status = 'FINISHED'"
    return next(iter(query(folder, finished)), (0,))[0]


def press_several_times(command: Command) -> None:
    for _ in range(random.randint(1, 3)):
        command.press_ctrl_c()
        time.sleep(random.choice([0, 0.05, 0.5]))


def end_one(command: Command) -> None:
    os.kill(command.pid, signal.SIGTERM)


def end_all(command: Command) -> None:
    os.killpg(command.pid, signal.SIGTERM)


def close_terminal(command: Command) -> None:
    os.kill(command.pid, signal.SIGHUP)
    os.close(command.terminal)


def kill_all(command: Command) -> None:
    for process in list_processes(command.folder):
        with suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)


FAULTS: dict[str, Callable[[Command], None]] = {
    "Ctrl-C": press_several_times,
    "SIGTERM": end_one,
    "SIGTERM to all": end_all,
    "closed terminal": close_terminal,
    "kill -9": kill_all,
}


def read_matrices(folder: Path) -> dict[str, list[str]]:
    """Fingerprint → a digest of the matrices of each finished run."""
    lines = query(
        folder,
        "SELECT t.value, r.artifact_uri FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid "
        "WHERE r.status = 'FINISHED' AND t.key = 'fingerprint'",
    )
    found: dict[str, list[str]] = {}
    for fingerprint, uri in lines:
        file = Path(uri.removeprefix("file://"), "matrices.safetensors")
        digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "none"
        found.setdefault(fingerprint, []).append(digest)
    return found


def list_left(folder: Path) -> list[str]:
    """What a command leaves that it should not."""
    running = query(folder, "SELECT run_uuid FROM runs WHERE status = 'RUNNING'")
    found = [f"process {pid}" for pid in list_processes(folder)]
    found += [f"RUNNING {run_id}" for (run_id,) in running]
    found += [str(file) for file in (folder / "tmp").iterdir()]
    found += [file.name for file in folder.iterdir() if file.suffix in (".lock", ".new")]
    return found


def try_fault(name: str, expected: dict[str, list[str]], moment: int) -> Result:
    """Does a fault to a sweep of which so many runs are finished, and resumes the sweep."""
    folder = Path(tempfile.mkdtemp(prefix="faults-")).resolve()
    command = Command(folder, *SWEEP)
    until = time.monotonic() + PATIENCE
    while count_finished(folder) < moment and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(random.random())
    start = time.monotonic()
    FAULTS[name](command)
    status = command.wait()
    seconds = time.monotonic() - start
    left = [] if name == "kill -9" else list_left(folder)
    if name != "kill -9" and status not in (130, 0):  # 0: all runs were written
        left.append(f"exit status {status}")
    if name == "kill -9":
        shutil.rmtree(folder / "tmp")  # nobody was left to remove it
    outputs = [command.output]
    if status != 0:
        if next(iter(query(folder, "SELECT COUNT(*) FROM tags WHERE key = 'pid'")), (0,))[0]:
            again = Command(folder, *SWEEP, "resume=true")
        else:
            again = Command(folder, *SWEEP)
        if code := again.wait():
            left.append(f"exit status {code} of the resumed sweep")
        left += list_left(folder)
        outputs.append(again.output)
    left += ["traceback" for output in outputs if b"Traceback" in output]
    found = read_matrices(folder)
    lost = sum(found.get(key, ["none"])[0] != same[0] for key, same in expected.items())
    doubled = sum(len(same) > 1 for same in found.values())
    if not (lost or doubled or left):
        shutil.rmtree(folder)
    return Result(lost, doubled, left, seconds)


def solve_undisturbed() -> dict[str, list[str]]:
    """What the sweep gives without a fault."""
    folder = Path(tempfile.mkdtemp(prefix="faults-")).resolve()
    command = Command(folder, *SWEEP)
    assert command.wait() == 0, command.output.decode()
    expected = read_matrices(folder)
    assert len(expected) == COUNT
    shutil.rmtree(folder)
    return expected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("faults", nargs="*", help=f"some of {', '.join(FAULTS)}")
    parser.add_argument("--trials", type=int, default=20)
    options = parser.parse_args()
    expected = solve_undisturbed()
    print(f"{'fault':16}{'trials':>8}{'lost':>6}{'doubled':>9}{'open':>6}{'seconds':>9}")
    for name in options.faults or FAULTS:
        results = [
            # From before the first run is written to shortly before the last.
            try_fault(name, expected, random.randint(0, COUNT - 50))
            for _ in range(options.trials)
        ]
        lost, doubled = (sum(result[i] for result in results) for i in (0, 1))
        left = Counter(text for result in results for text in result.left)
        longest = max(result.seconds for result in results)
        numbers = f"{len(results):8}{lost:6}{doubled:9}{left.total():6}{longest:9.1f}"
        print(f"{name:16}{numbers}", *left, flush=True)


if __name__ == "__main__":
    main()
