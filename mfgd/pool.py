"""Batches in this process, or in several processes side by side."""

from __future__ import annotations

import atexit
import math
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

import torch

from mfgd import interrupts
from mfgd.compose import forget_job
from mfgd.engine_run import EngineRun
from mfgd.engines import Engine
from mfgd.environment import pass_on_search
from mfgd.internals import start_forkserver, stop_forkserver
from mfgd.kernel import cores, flush_denormals
from mfgd.mlflow_store import AT_THE_END, MODULES
from mfgd.recovery import Recovery, Share, share_out
from mfgd.runner import Job, Report, run_batch
from mfgd.tracking import Tracker

PATIENCE = 60
"""Seconds that the processes of an interrupted sweep have to write what is solved."""


def run_batches(
    batches: Sequence[Sequence[Job]],
    tracker: Tracker,
    report: Report,
    workers: int,
    folder: Path | None,
    place: Engine | WorkerPool,
) -> None:
    """Runs batches as `run_batch` does, side by side if there are several batches and workers.

    Args:
        batches: the runs.
        tracker: keeps them.
        report: is told of each run that is written.
        workers: how many processes at most.
        folder: of the checkpoints; None: there are none.
        place: where the processes are.

    Raises:
        KeyboardInterrupt: on an interruption, once all runs that are solved are written and
            reported.
    """
    size = min(workers, len(batches))
    threads = max(1, cores() // max(1, size))
    if not isinstance(place, WorkerPool):
        EngineRun(tracker, report, place, threads, folder).work(batches)
    elif size == 1:
        for batch in batches:
            run_batch(batch, tracker, report, folder)
    else:
        place.work(batches, tracker, report, Equipment(tracker, folder, threads), size)


class Equipment(NamedTuple):
    """What a process needs beside its batches."""

    tracker: Tracker
    folder: Path | None
    """Of the checkpoints."""
    threads: int
    """Of torch."""


@dataclass
class Worker:
    """A process and what it has been given."""

    process: ForkServerProcess
    equipment: bytes = b""
    """A pickled `Equipment`."""
    share: Share | None = None
    """None while it waits for a batch."""


class WorkerPool:
    """Processes that each run one batch after another, and wait between the lots of a search; a
    pipe to each process brings batches there and reports back.

    loky starts as fast if its processes are forked as these are (two of them: 5.1 s of processor
    time, 4.7 s here; 11 s by its own way), but all its processes end with one that dies, and so do
    those of `concurrent.futures`: the batches of the others would be solved again. Both tell of a
    batch when it ends, and not of each of its runs.
    """

    def __init__(self) -> None:
        self.workers: dict[Connection, Worker] = {}
        self.waiting: deque[Share] = deque()
        self.stopping = False

    def work(
        self,
        batches: Sequence[Sequence[Job]],
        tracker: Tracker,
        report: Report,
        equipment: Equipment,
        size: int,
    ) -> None:
        """Runs all batches in so many processes.

        Raises:
            KeyboardInterrupt: as `run_batches` does.
        """
        self.waiting.extend(share_out(batches))
        self.recovery, self.equipment = Recovery(tracker, report), pickle.dumps(equipment)
        self.size = size
        try:
            self._hand_out()
            with interrupts.defer():
                for module in AT_THE_END:  # while this process would wait
                    import_module(module)
            self._listen()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                self._wind_up()
            for worker in self.workers.values():
                worker.process.kill()
            raise

    def stop(self) -> None:
        """Ends the processes, which wait for a batch."""
        for connection, worker in self.workers.items():
            with suppress(OSError):  # the process died
                connection.send(None)
            connection.close()
            worker.process.join()
        self.workers = {}

    def _wind_up(self) -> None:
        """Has each process write what it has solved."""
        self.stopping = True
        self.waiting.clear()
        for worker in self.workers.values():
            worker.process.terminate()
        self._listen(PATIENCE)

    def _hand_out(self) -> None:
        """Gives batches to the processes that wait for one, and to new ones."""
        for connection in [connection for connection, one in self.workers.items() if not one.share]:
            with interrupts.defer():
                self._assign(connection)
        while self.waiting and len(self.workers) < self.size:
            with interrupts.defer():
                self._start_worker()

    def _start_worker(self) -> None:
        context = multiprocessing.get_context("forkserver")
        ours, theirs = context.Pipe()
        arguments = theirs, dict(os.environ)
        process = context.Process(target=_serve, args=arguments, daemon=True)
        with pass_on_search():
            process.start()
        theirs.close()
        self.workers[ours] = Worker(process)
        self._assign(ours)

    def _assign(self, connection: Connection) -> None:
        """Sends a process its next batch, if one is left."""
        worker = self.workers[connection]
        worker.share = self.waiting.popleft() if self.waiting else None
        if worker.share is None:
            return
        equipment = self.equipment if worker.equipment != self.equipment else None
        worker.equipment = self.equipment
        with suppress(OSError):  # the process died, as reading from it will tell
            connection.send((equipment, [*worker.share.jobs.items()]))

    def _listen(self, patience: float = math.inf) -> None:
        """Receives until all processes wait, or for so many seconds."""
        until = time.monotonic() + patience
        while (left := until - time.monotonic()) > 0:
            busy = [connection for connection, one in self.workers.items() if one.share]
            if not busy:
                return
            for connection in wait(busy, None if math.isinf(left) else left):
                assert isinstance(connection, Connection)
                with interrupts.defer():
                    self._receive(connection)

    def _receive(self, connection: Connection) -> None:
        """Takes one message: a finished run, None at the end of a batch, or an error of ours."""
        try:
            message = connection.recv()
        except (EOFError, OSError):
            self._retire(connection)
            return
        if isinstance(message, Exception):
            raise message
        if message is None:
            self._assign(connection)
        else:
            share = self.workers[connection].share
            assert share is not None
            self.recovery.tell(share, message)

    def _retire(self, connection: Connection) -> None:
        """Removes a process that has ended; what is left of its batch goes to another process."""
        worker = self.workers.pop(connection)
        connection.close()
        worker.process.join()
        if worker.share is None or self.stopping:
            return
        why = f" with exit code {worker.process.exitcode}"
        self.waiting.extendleft(reversed(self.recovery.try_again(worker.share, why)))
        self._hand_out()


def _serve(connection: Connection, environment: Mapping[str, str]) -> None:
    """The work of a process: receives batches and sends reports.

    It ends after None, or after an interruption that the first process passes on: what a terminal
    sends to all processes is not for this one. Its environment is that of the first process, and
    not that of the process which forked it.
    """
    os.environ.clear()
    os.environ.update(environment)
    interrupts.listen([signal.SIGTERM])
    code = 0
    forget_job()
    try:
        with flush_denormals():
            while (message := connection.recv()) is not None:
                if message[0] is not None:
                    equipment: Equipment = pickle.loads(message[0])
                    torch.set_num_threads(equipment.threads)
                run_batch(message[1], equipment.tracker, connection.send, equipment.folder)
                connection.send(None)
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        code = interrupts.EXIT_STATUS
    except Exception as error:
        connection.send(RuntimeError(f"{type(error).__name__}: {error}"))
    connection.close()
    sys.stdout.flush()
    os._exit(code)


def warm_up() -> None:
    """Starts to import what the processes of a sweep need, while its configs are composed."""
    modules = ["mfgd.pool", *MODULES]
    with interrupts.shield(), pass_on_search():
        if sys.platform == "linux":
            start_forkserver(modules)
        else:  # libraries of other systems do not survive a fork
            multiprocessing.get_context("forkserver").set_forkserver_preload(modules)
            forkserver.ensure_running()
    # The process that imports would hold the pipes of a refused command until it is done.
    atexit.register(stop_forkserver)
