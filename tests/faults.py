"""Does to a sweep what terminals, schedulers and accidents do, and counts what is lost.

`python tests/faults.py` does each fault 20 times at random moments and prints a table; names of
faults, `--trials N` and `--store sqlite|postgresql|server` say otherwise. A sweep that did not end
by itself is resumed. `lost` are configs that are then not finished, or with other matrices than
without a fault; `doubled` are configs that are finished twice; `open` is what is left: processes,
runs that are RUNNING, locks and temporary files, runs that were not sent, and what was printed as a
traceback. `seconds` is the longest time from the fault to the end of all processes.

`first start` starts four commands at once where nothing was tracked before.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pty
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import NamedTuple

from servers import STORES, FileStore

SWEEP = (
    *("--multirun", "seed=range(100)", "rank=1,2,3", "steps=2000", "init.scale=0.1"),
    *("problem=synthetic", "problem.n=20", "problem.m=20", "batch_bytes=100000"),
    "tracking.figures=0",
)
COUNT = 300
FEWER = tuple(text.replace("range(100)", "range(20)") for text in SWEEP)
"""The sweep for a store that takes a second a run."""
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


def count_finished(store: FileStore) -> int:
    finished = "SELECT COUNT(*) FROM runs WHERE status = 'FINISHED'"
    return next(iter(store.query(finished)), (0,))[0]


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
RESTART, FIRST = "store restarts", "first start"


def read_matrices(store: FileStore) -> dict[str, list[str]]:
    """Fingerprint → a digest of the matrices of each finished run."""
    lines = store.query(
        "SELECT t.value, r.artifact_uri FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid "
        "WHERE r.status = 'FINISHED' AND t.key = 'fingerprint'",
    )
    found: dict[str, list[str]] = {}
    for fingerprint, uri in lines:
        file = store.find_artifacts(uri) / "matrices.safetensors"
        digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "none"
        found.setdefault(fingerprint, []).append(digest)
    return found


def list_left(folder: Path, store: FileStore) -> list[str]:
    """What a command leaves that it should not."""
    running = store.query("SELECT run_uuid FROM runs WHERE status = 'RUNNING'")
    found = [f"process {pid}" for pid in list_processes(folder)]
    found += [f"RUNNING {run_id}" for (run_id,) in running]
    found += [str(file) for file in (folder / "tmp").iterdir()]
    left = (".lock", ".new")
    found += [
        file.name for file in folder.iterdir() if file.suffix in left or file.name == "mfgd-unsent"
    ]
    return found


def try_fault(
    name: str,
    expected: dict[str, list[str]],
    moment: int,
    kind: str = "sqlite",
    sweep: tuple[str, ...] = SWEEP,
) -> Result:
    """Does a fault to a sweep of which so many runs are finished, and resumes the sweep if that did
    not end by itself."""
    folder = Path(tempfile.mkdtemp(prefix="faults-")).resolve()
    store = STORES[kind](folder)
    try:
        result = _do_fault(name, expected, moment, store, sweep)
    finally:
        store.remove()
    if not (result.lost or result.doubled or result.left):
        shutil.rmtree(folder)
    return result


def _do_fault(
    name: str,
    expected: dict[str, list[str]],
    moment: int,
    store: FileStore,
    sweep: tuple[str, ...],
) -> Result:
    folder = store.folder
    command = Command(folder, *sweep, *store.line)
    until = time.monotonic() + PATIENCE
    while count_finished(store) < moment and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(random.random())
    start = time.monotonic()
    if name == RESTART:
        store.restart()
    else:
        FAULTS[name](command)
    status = command.wait()
    seconds = time.monotonic() - start
    left = [] if name == "kill -9" else list_left(folder, store)
    if name == "kill -9":
        shutil.rmtree(folder / "tmp")  # nobody was left to remove it
    elif status != 0 and (name == RESTART or status != 130):  # 0: all runs were written
        left.append(f"exit status {status}")
    outputs = [command.output]
    if status != 0:
        begun = next(iter(store.query("SELECT COUNT(*) FROM tags WHERE key = 'pid'")), (0,))[0]
        again = Command(folder, *sweep, *store.line, *(["resume=true"] if begun else []))
        if code := again.wait():
            left.append(f"exit status {code} of the resumed sweep")
        left += list_left(folder, store)
        outputs.append(again.output)
    left += ["traceback" for output in outputs if b"Traceback" in output]
    found = read_matrices(store)
    lost = sum(found.get(key, ["none"])[0] != same[0] for key, same in expected.items())
    doubled = sum(len(same) > 1 for same in found.values())
    return Result(lost, doubled, left, seconds)


def start_four_at_once(kind: str) -> Result:
    """Starts four commands at once in a fresh store."""
    folder = Path(tempfile.mkdtemp(prefix="faults-")).resolve()
    store = STORES[kind](folder)
    try:
        start = time.monotonic()
        single = ("problem=synthetic", "problem.n=8", "problem.m=7", "steps=9", *store.line)
        commands = [Command(folder, f"rank={rank}", *single) for rank in range(1, 5)]
        codes = [command.wait() for command in commands]
        seconds = time.monotonic() - start
        left = [f"exit status {code}" for code in codes if code] + list_left(folder, store)
        left += ["traceback" for command in commands if b"Traceback" in command.output]
        found = read_matrices(store)
    finally:
        store.remove()
    doubled = sum(len(same) > 1 for same in found.values())
    if len(found) == 4 and not left:
        shutil.rmtree(folder)
    return Result(4 - len(found), doubled, left, seconds)


def solve_undisturbed(sweep: tuple[str, ...] = SWEEP) -> dict[str, list[str]]:
    """What the sweep gives without a fault."""
    folder = Path(tempfile.mkdtemp(prefix="faults-")).resolve()
    command = Command(folder, *sweep)
    assert command.wait() == 0, command.output.decode()
    expected = read_matrices(FileStore(folder))
    assert len(expected) == (COUNT if sweep == SWEEP else COUNT // 5)
    shutil.rmtree(folder)
    return expected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [*FAULTS, RESTART, FIRST]
    parser.add_argument("faults", nargs="*", help=f"some of {', '.join(names)}")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--store", choices=list(STORES), default="sqlite")
    options = parser.parse_args()
    chosen = options.faults or names
    expected = {} if chosen == [FIRST] else solve_undisturbed()
    print(f"{'fault':16}{'trials':>8}{'lost':>6}{'doubled':>9}{'open':>6}{'seconds':>9}")
    for name in chosen:
        results = []
        for _ in range(options.trials):
            if name == FIRST:
                results.append(start_four_at_once(options.store))
            else:  # from before the first run is written to shortly before the last
                moment = random.randint(0, COUNT - 50)
                results.append(try_fault(name, expected, moment, options.store))
        lost, doubled = (sum(result[i] for result in results) for i in (0, 1))
        left = Counter(text for result in results for text in result.left)
        longest = max(result.seconds for result in results)
        numbers = f"{len(results):8}{lost:6}{doubled:9}{left.total():6}{longest:9.1f}"
        print(f"{name:16}{numbers}", *left, flush=True)


if __name__ == "__main__":
    main()
