"""Batches → rows → MLflow, in this process or in several side by side."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from types import FrameType
from typing import NamedTuple

import torch

from mfgd import sweep
from mfgd.config import Point
from mfgd.tracking import Store

INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM)
Job = tuple[int, Point]
"""A point and its position in the sweep."""


class Done(NamedTuple):
    """A run that is written."""

    position: int
    run_id: str
    final_loss: float
    """NaN where it failed."""
    failed: bool


Report = Callable[[Done], None]


def perform(batch: Sequence[Job], store: Store, report: Report) -> None:
    """Solves a batch and writes its runs. An interruption waits until all that is solved is written."""
    for results in sweep.outcomes([point for _, point in batch]):
        solved, batch = batch[: len(results)], batch[len(results) :]
        with whole():
            for (position, point), result in zip(solved, results, strict=True):
                failed = isinstance(result, Exception)
                problem = None if failed else sweep.problem_of(point.problem)
                run_id = store.write(point, result, problem)
                loss = (
                    float("nan")
                    if isinstance(result, Exception)
                    else float(result.trajectory["loss"][-1])
                )
                report(Done(position, run_id, loss, failed))


def perform_all(
    batches: Sequence[Sequence[Job]], store: Store, report: Report, workers: int
) -> None:
    """Performs batches, side by side where there are several and workers for them.

    Raises:
        KeyboardInterrupt: on an interruption, once all that was solved is written and reported.
    """
    if min(workers, len(batches)) == 1:
        for batch in batches:
            perform(batch, store, report)
    else:
        _Crew(batches, store, report, workers).work()


class _Crew:
    """Processes that each perform one batch after another; a pipe to each brings batches there and reports back."""

    def __init__(
        self, batches: Sequence[Sequence[Job]], store: Store, report: Report, workers: int
    ) -> None:
        self.waiting = deque(batches)
        self.store, self.report, self.size = store, report, min(workers, len(batches))
        self.hands: dict[Connection, tuple[ForkServerProcess, dict[int, Point]]] = {}

    def work(self) -> None:
        try:
            for _ in range(self.size):
                self._hire()
            self._listen()
        except KeyboardInterrupt:
            self.waiting.clear()
            for process, _ in self.hands.values():
                process.terminate()
            self._listen()
            raise
        finally:
            for process, _ in self.hands.values():
                process.kill()

    def _hire(self) -> None:
        context = multiprocessing.get_context("forkserver")
        ours, theirs = context.Pipe()
        threads = max(1, cores() // self.size)
        process = context.Process(target=_serve, args=(theirs, self.store, threads), daemon=True)
        process.start()
        theirs.close()
        self.hands[ours] = process, {}
        self._assign(ours)

    def _assign(self, connection: Connection) -> None:
        """Gives a process its next batch; None is the end of its work."""
        batch = self.waiting.popleft() if self.waiting else None
        self.hands[connection][1].update(batch or ())
        with suppress(OSError):  # it died: reading from it tells
            connection.send(batch)

    def _listen(self) -> None:
        while self.hands:
            for connection in wait(list(self.hands)):
                assert isinstance(connection, Connection)
                with whole():
                    self._hear(connection)

    def _hear(self, connection: Connection) -> None:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            self._dismiss(connection)
            return
        if isinstance(message, Exception):
            raise message
        if message is None:
            self._assign(connection)
        else:
            del self.hands[connection][1][message.position]
            self.report(message)

    def _dismiss(self, connection: Connection) -> None:
        """Lets a process go that has ended. Of what it did not finish, each is tried again by itself."""
        process, left = self.hands.pop(connection)
        connection.close()
        process.join()
        if process.exitcode == 0:
            return
        if len(left) == 1:
            ((position, point),) = left.items()
            error = RuntimeError(
                f"the process that solved this run died with exit code {process.exitcode}"
            )
            self.report(Done(position, self.store.write(point, error, None), float("nan"), True))
        else:
            self.waiting.extendleft([job] for job in reversed(left.items()))
        if self.waiting:
            self._hire()


def _serve(connection: Connection, store: Store, threads: int) -> None:
    """What a process does: batches in, reports out, until None or an interruption that the first process passes on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        while (batch := connection.recv()) is not None:
            perform(batch, store, connection.send)
            connection.send(None)
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        pass
    except Exception as error:
        connection.send(RuntimeError(f"{type(error).__name__}: {error}"))
    connection.close()
    sys.stdout.flush()
    os._exit(0)


def warm_up() -> None:
    """Starts importing what the processes of a sweep need, while its configs are composed."""
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["mfgd.runner", "mlflow", "mlflow.store.tracking.sqlalchemy_store", "pyarrow.parquet"]
    )
    forkserver.ensure_running()
    atexit.register(_cool_down)


def _cool_down() -> None:
    """Ends the process that imports: until it is through it would hold the pipes of a command that is long refused."""
    from multiprocessing import forkserver

    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def cores() -> int:
    """How many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def whole() -> Iterator[None]:
    """Holds an interruption back until what is being written is written whole; a second one is not held."""
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
