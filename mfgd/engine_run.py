"""A sweep whose batches are solved by an engine: sent there, received, and tried again."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from mfgd import interrupts
from mfgd.compose import forget_job
from mfgd.engines import Answer, Engine, Task
from mfgd.environment import pass_on_search, search_here_last
from mfgd.kernel import flush_denormals
from mfgd.recovery import Recovery, Share, share_out
from mfgd.runner import Finished, Job, Report, run_batch
from mfgd.tracking import Tracker


class EngineRun:
    """A sweep on an engine.

    Args:
        tracker: keeps the runs.
        report: is told of each run that is written.
        engine: where the runs are solved.
        threads: of torch, in each process.
        folder: of the checkpoints; None: there are none.
    """

    def __init__(
        self,
        tracker: Tracker,
        report: Report,
        engine: Engine,
        threads: int,
        folder: Path | None = None,
    ) -> None:
        self._tracker, self._engine = tracker, engine
        self._threads, self._folder = threads, folder
        self._recovery = Recovery(tracker, report)
        self._running: list[tuple[Task, Share]] = []

    def work(self, batches: Sequence[Sequence[Job]]) -> None:
        """Runs all batches.

        Raises:
            KeyboardInterrupt: on an interruption, once the runs that are written are reported.
        """
        waiting = deque(share_out(batches))
        try:
            while waiting or self._running:
                with self._engine.group(), pass_on_search():
                    while waiting and self._has_room(waiting[0]):
                        self._submit(waiting.popleft())
                for task in self._engine.find_ended([task for task, _ in self._running]):
                    with interrupts.defer():
                        waiting.extendleft(self._receive(task))
        except KeyboardInterrupt:
            self._engine.stop()
            for _, share in self._running:
                self._recovery.match(share)
            raise

    def _has_room(self, share: Share) -> bool:
        """Whether the engine takes a batch now: a suspect alone, if others would fall with it."""
        if not self._running:
            return True
        shares = [share, *(other for _, other in self._running)]
        if not self._engine.isolated and any(other.is_suspect for other in shares):
            return False
        return len(self._running) < self._engine.size

    def _submit(self, share: Share) -> None:
        # A process takes it before it knows where to look for what is imported from there.
        content = pickle.dumps((list(share.jobs.items()), self._tracker, self._folder))
        call = partial(serve_batch, content, os.getcwd(), dict(os.environ), self._threads)
        self._running.append((self._engine.submit(call), share))

    def _receive(self, task: Task) -> list[Share]:
        """Reports the runs of a task that has ended; what is left of them if its process died."""
        (share,) = (share for other, share in self._running if other is task)
        self._running = [pair for pair in self._running if pair[0] is not task]
        try:
            answer = task.result()
        except Exception as error:  # each engine has its own errors of a process that died
            why = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            return self._recovery.try_again(share, f": {why}")
        if isinstance(answer, Exception):
            raise answer
        for finished in answer:
            self._recovery.tell(share, finished)
        return []


def serve_batch(content: bytes, place: str, environment: Mapping[str, str], threads: int) -> Answer:
    """The work of another process: runs a batch.

    Args:
        content: batch, tracker and folder of checkpoints, pickled.
        place: the working directory.
        environment: that of the command.
        threads: of torch.
    """
    if threading.current_thread() is threading.main_thread():
        interrupts.listen([signal.SIGTERM])  # submitit would have it ignored
    os.environ.update(environment)
    os.chdir(place)
    search_here_last()
    torch.set_num_threads(threads)
    forget_job()
    answer: list[Finished] = []
    try:
        batch, tracker, folder = pickle.loads(content)
        with flush_denormals():
            run_batch(batch, tracker, answer.append, folder)
    except Exception as error:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return answer
