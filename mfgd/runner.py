"""Batches → rows → tracker, in this process or in several processes side by side."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from types import FrameType
from typing import NamedTuple

import numpy as np
import torch

from mfgd.artifacts import DrawingError
from mfgd.batch import load_problem, solve_or_report
from mfgd.compose import forget_job
from mfgd.config import Point
from mfgd.internals import stop_forkserver
from mfgd.mlflow_store import MODULES
from mfgd.record import Row
from mfgd.tracked import Written, outcome_of, thin_curves
from mfgd.tracking import Tracker

INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM)
Job = tuple[int, Point]
"""A point and its position in the sweep."""


class RunFailed(Exception):
    """A run raised; the traceback is an artifact of the run."""


class Finished(NamedTuple):
    """A run that is written."""

    position: int
    run_id: str
    result: float | RunFailed
    """The final loss, or the error of a run that raised."""
    written: Written


Report = Callable[[Finished], None]


def run_batch(batch: Sequence[Job], tracker: Tracker, report: Report) -> None:
    """Solves a batch and writes its runs.

    An interruption waits until all runs that are solved are written.
    """
    for results in solve_or_report([point for _, point in batch]):
        solved, batch = batch[: len(results)], batch[len(results) :]
        with defer_interrupts():
            for job, result in zip(solved, results, strict=True):
                report(_write(job, result, tracker))


def _write(job: Job, result: Row | Exception, tracker: Tracker) -> Finished:
    position, point = job
    if isinstance(result, Row):
        try:
            run_id = tracker.write(point, result, load_problem(point.problem))
            loss = float(result.trajectory["loss"][-1])
            written = Written(result.outcome, thin_curves(result))
            return Finished(position, run_id, loss, written)
        except DrawingError as error:
            result = error
    run_id = tracker.write(point, result, None)
    said = " ".join(str(result).split())
    failed = RunFailed(f"{type(result).__name__}: {said}")
    return Finished(position, run_id, failed, Written(outcome_of(result), {}))


def run_batches(
    batches: Sequence[Sequence[Job]], tracker: Tracker, report: Report, workers: int
) -> None:
    """Runs batches, side by side if there are several batches and workers.

    Raises:
        KeyboardInterrupt: on an interruption, once all runs that are solved are written and
            reported.
    """
    if min(workers, len(batches)) == 1:
        for batch in batches:
            run_batch(batch, tracker, report)
    else:
        WorkerPool(batches, tracker, report, workers).work()


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
        self, batches: Sequence[Sequence[Job]], tracker: Tracker, report: Report, workers: int
    ) -> None:
        self.waiting = deque(batches)
        self.tracker, self.report, self.size = tracker, report, min(workers, len(batches))
        self.workers: dict[Connection, Worker] = {}

    def work(self) -> None:
        """Runs all batches.

        Raises:
            KeyboardInterrupt: as `run_batches` does.
        """
        try:
            for _ in range(self.size):
                self.start_worker()
            self._listen()
        except KeyboardInterrupt:
            self.waiting.clear()
            for worker in self.workers.values():
                worker.process.terminate()
            self._listen()
            raise
        finally:
            for worker in self.workers.values():
                worker.process.kill()

    def start_worker(self) -> None:
        """Starts a process and gives it a batch."""
        context = multiprocessing.get_context("forkserver")
        ours, theirs = context.Pipe()
        threads = max(1, cores() // self.size)
        arguments = theirs, self.tracker, threads
        process = context.Process(target=_serve, args=arguments, daemon=True)
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

    def _listen(self) -> None:
        """Receives until no process is left."""
        while self.workers:
            for connection in wait(list(self.workers)):
                assert isinstance(connection, Connection)
                with defer_interrupts():
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
            self.report(message)

    def retire(self, connection: Connection) -> None:
        """Removes a process that has ended; each run that it did not finish is tried again, alone
        in a batch."""
        worker = self.workers.pop(connection)
        connection.close()
        worker.process.join()
        code = worker.process.exitcode
        if code == 0:
            return
        jobs = list(worker.unfinished.items())
        if len(jobs) == 1:
            error = RuntimeError(f"the process that solved this run died with exit code {code}")
            self.report(_write(jobs[0], error, self.tracker))
        else:
            self.waiting.extendleft([job] for job in reversed(jobs))
        if self.waiting:
            self.start_worker()


def _serve(connection: Connection, tracker: Tracker, threads: int) -> None:
    """The work of a process: receives batches and sends reports.

    It ends after None, or after an interruption that the first process passes on.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    torch.set_num_threads(threads)
    flush_denormals()
    forget_job()
    try:
        while (batch := connection.recv()) is not None:
            run_batch(batch, tracker, connection.send)
            connection.send(None)
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        pass
    except Exception as error:
        connection.send(RuntimeError(f"{type(error).__name__}: {error}"))
    connection.close()
    sys.stdout.flush()
    os._exit(0)


def warm_up() -> None:
    """Starts to import what the processes of a sweep need, while its configs are composed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mfgd.runner", *MODULES])
    forkserver.ensure_running()
    # The process that imports would hold the pipes of a refused command until it is done.
    atexit.register(stop_forkserver)


def flush_denormals() -> None:
    """Rounds denormal numbers to 0 in this process: they would slow converged runs down."""
    # An old NumPy warns on stderr if it first looks at its types after that.
    np.finfo(np.float32)
    np.finfo(np.float64)
    torch.set_flush_denormal(True)


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def defer_interrupts() -> Iterator[None]:
    """Defers an interruption to the end of the block, which is then complete; a second interruption
    is not deferred."""
    waiting: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if waiting:
            signal.default_int_handler(number, frame)
        waiting.append(number)

    before = [signal.signal(number, hold) for number in INTERRUPTIONS]
    try:
        yield
    finally:
        for number, handler in zip(INTERRUPTIONS, before, strict=True):
            signal.signal(number, handler)
    if waiting:
        raise KeyboardInterrupt
