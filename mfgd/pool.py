"""Batches in this process, or in several processes side by side."""

from __future__ import annotations

import atexit
import math
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from mfgd import interrupts
from mfgd.compose import forget_job
from mfgd.config import Point
from mfgd.engine_run import EngineRun
from mfgd.engines import Engine
from mfgd.environment import pass_on_search
from mfgd.internals import stop_forkserver
from mfgd.kernel import cores, flush_denormals
from mfgd.mlflow_store import AT_THE_END, MODULES
from mfgd.runner import Finished, Job, Report, match_finished, run_batch, write_result
from mfgd.tracking import Tracker

PATIENCE = 60
"""Seconds that the processes of an interrupted sweep have to write what is solved."""


def run_batches(
    batches: Sequence[Sequence[Job]],
    tracker: Tracker,
    report: Report,
    workers: int,
    folder: Path | None = None,
    engine: Engine | None = None,
) -> None:
    """Runs batches as `run_batch` does, side by side if there are several batches and workers.

    Args:
        batches: the runs.
        tracker: keeps them.
        report: is told of each run that is written.
        workers: how many processes at most.
        folder: of the checkpoints; None: there are none.
        engine: where the processes are; None: they are started here.

    Raises:
        KeyboardInterrupt: on an interruption, once all runs that are solved are written and
            reported.
    """
    threads = max(1, cores() // max(1, min(workers, len(batches))))
    if engine is not None:
        EngineRun(tracker, report, engine, threads, folder).work(batches)
    elif min(workers, len(batches)) == 1:
        for batch in batches:
            run_batch(batch, tracker, report, folder)
    else:
        WorkerPool(batches, tracker, report, workers, folder).work()


@dataclass
class Worker:
    """A process and what it has been given."""

    process: ForkServerProcess
    unfinished: dict[int, Point] = field(default_factory=dict)
    """The points of its batch, by position, that are not reported yet."""


class WorkerPool:
    """Processes that each run one batch after another; a pipe to each process brings batches there
    and reports back.

    `concurrent.futures` and loky have no such pool: if one of their processes dies, the work that
    waits for the other processes is lost too.
    """

    def __init__(
        self,
        batches: Sequence[Sequence[Job]],
        tracker: Tracker,
        report: Report,
        workers: int,
        folder: Path | None = None,
    ) -> None:
        self.waiting, self.folder = deque(batches), folder
        self.tracker, self.report, self.size = tracker, report, min(workers, len(batches))
        self.workers: dict[Connection, Worker] = {}
        self.known: set[str] = set()
        """The ids of the runs that are reported."""
        self.stopping = False

    def work(self) -> None:
        """Runs all batches.

        Raises:
            KeyboardInterrupt: as `run_batches` does.
        """
        try:
            for _ in range(self.size):
                with interrupts.defer():
                    self.start_worker()
            with interrupts.defer():
                for module in AT_THE_END:  # while this process would wait
                    import_module(module)
            self._listen()
        except KeyboardInterrupt:
            self.stopping = True
            self.waiting.clear()
            for worker in self.workers.values():
                worker.process.terminate()
            self._listen(PATIENCE)
            raise
        finally:
            for worker in self.workers.values():
                worker.process.kill()

    def start_worker(self) -> None:
        """Starts a process and gives it a batch."""
        context = multiprocessing.get_context("forkserver")
        ours, theirs = context.Pipe()
        threads = max(1, cores() // self.size)
        arguments = theirs, self.tracker, self.folder, threads, dict(os.environ)
        process = context.Process(target=_serve, args=arguments, daemon=True)
        with pass_on_search():
            process.start()
        theirs.close()
        self.workers[ours] = Worker(process)
        self._assign(ours)

    def _assign(self, connection: Connection) -> None:
        """Sends a process its next batch, or None if no batch is left."""
        batch = self.waiting.popleft() if self.waiting else None
        self.workers[connection].unfinished.update(batch or ())
        with suppress(OSError):  # the process died, as reading from it will tell
            connection.send(batch)

    def _listen(self, patience: float = math.inf) -> None:
        """Receives until no process is left, or for so many seconds."""
        until = time.monotonic() + patience
        while self.workers and (left := until - time.monotonic()) > 0:
            for connection in wait(list(self.workers), None if math.isinf(left) else left):
                assert isinstance(connection, Connection)
                with interrupts.defer():
                    self.receive(connection)

    def receive(self, connection: Connection) -> None:
        """Takes one message: a finished run, None at the end of a batch, or an error of ours."""
        try:
            message = connection.recv()
        except (EOFError, OSError):
            self.retire(connection)
            return
        if isinstance(message, Exception):
            raise message
        if message is None:
            self._assign(connection)
        else:
            del self.workers[connection].unfinished[message.position]
            self._report(message)

    def _report(self, finished: Finished) -> None:
        self.known.add(finished.run_id)
        self.report(finished)

    def retire(self, connection: Connection) -> None:
        """Removes a process that has ended; each run that it did not finish is tried again, alone
        in a batch."""
        worker = self.workers.pop(connection)
        connection.close()
        worker.process.join()
        code = worker.process.exitcode
        if code == 0 or self.stopping:
            return
        for finished in match_finished(worker.unfinished.items(), self.tracker, self.known):
            del worker.unfinished[finished.position]
            self._report(finished)
        jobs = list(worker.unfinished.items())
        if len(jobs) == 1:
            error = RuntimeError(f"the process that solved this run died with exit code {code}")
            self._report(write_result(jobs[0], error, self.tracker))
        else:
            self.waiting.extendleft([job] for job in reversed(jobs))
        if self.waiting:
            self.start_worker()


def _serve(
    connection: Connection,
    tracker: Tracker,
    folder: Path | None,
    threads: int,
    environment: Mapping[str, str],
) -> None:
    """The work of a process: receives batches and sends reports.

    It ends after None, or after an interruption that the first process passes on: what a terminal
    sends to all processes is not for this one. Its environment is that of the first process, and
    not that of the process which forked it.
    """
    os.environ.clear()
    os.environ.update(environment)
    interrupts.listen([signal.SIGTERM])
    code = 0
    torch.set_num_threads(threads)
    forget_job()
    try:
        with flush_denormals():
            while (batch := connection.recv()) is not None:
                run_batch(batch, tracker, connection.send, folder)
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
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mfgd.pool", *MODULES])
    with interrupts.shield(), pass_on_search():
        forkserver.ensure_running()
    # The process that imports would hold the pipes of a refused command until it is done.
    atexit.register(stop_forkserver)
