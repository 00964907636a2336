"""Batches on the engines that people have: joblib's loky, submitit (SLURM), Ray."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf

from mfgd import interrupts
from mfgd.database import first_line
from mfgd.runner import Finished
from mfgd.types import Refused

Answer = list[Finished] | Exception
"""What the runs of a batch gave, or an error of ours."""
Call = Callable[[], Answer]
POLL = 0.2
"""Seconds between two looks at the tasks of submitit, of which nobody tells."""
PATIENCE = 30
"""Seconds that tasks of submitit have to write what is solved, once they are stopped."""


class Task(Protocol):
    """A call that an engine has taken."""

    def result(self) -> Answer:
        """What the call returned.

        Raises:
            Exception: its process died.
        """


class Engine(Protocol):
    """Where batches are solved and written, each in a process that sees this working directory."""

    size: int
    """How many calls it takes at a time."""
    isolated: bool
    """Whether a process that dies leaves the other tasks alone."""

    def group(self) -> AbstractContextManager[Any]:
        """What is submitted in the block is submitted together at its end."""

    def submit(self, call: Call) -> Task:
        """Takes a call."""

    def find_ended(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """Waits until a task has ended; those that have."""

    def stop(self) -> None:
        """Ends its processes."""


class Loky:
    """joblib's processes on this machine."""

    isolated = False

    def __init__(self, workers: int) -> None:
        self.size = workers
        self._executor: Any = None

    def group(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def submit(self, call: Call) -> Task:
        from joblib.externals.loky import ProcessPoolExecutor  # type: ignore[import-untyped]

        if self._executor is None:
            # What a terminal sends to all processes is for the command.
            self._executor = ProcessPoolExecutor(
                self.size, initializer=interrupts.listen, initargs=([signal.SIGTERM],)
            )
        task: Task = self._executor.submit(call)
        return task

    def find_ended(self, tasks: Sequence[Any]) -> Sequence[Task]:
        ended = [*futures.wait(tasks, return_when=futures.FIRST_COMPLETED).done]
        if any(task.exception() is not None for task in ended):
            # All its processes end with one of them.
            ended = [*futures.wait(tasks).done]
            self.stop()
        return ended

    def stop(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(kill_workers=True)
        self._executor = None


class Submitit:
    """Jobs of submitit: processes of this machine, or an array of SLURM.

    Args:
        cluster: local or slurm.
        workers: how many jobs run at a time.
        folder: of their scripts and logs, which every node sees.
        parameters: of submitit's executor.
    """

    isolated = True

    def __init__(
        self, cluster: str, workers: int, folder: str, parameters: Mapping[str, Any]
    ) -> None:
        import submitit

        self._executor = submitit.AutoExecutor(folder, cluster)
        self.size, known = workers, dict(parameters)
        self._on_slurm = cluster == "slurm"
        if self._on_slurm:
            self.size = sys.maxsize
            known["slurm_array_parallelism"] = workers
        self._executor.update_parameters(**known)
        self._tasks: list[Any] = []

    def group(self) -> AbstractContextManager[Any]:
        batch: AbstractContextManager[Any] = self._executor.batch()
        return batch

    def submit(self, call: Call) -> Task:
        with interrupts.shield():
            task = self._executor.submit(call)
        self._tasks.append(task)
        return task

    def find_ended(self, tasks: Sequence[Any]) -> Sequence[Task]:
        while not (ended := [task for task in tasks if task.done()]):
            time.sleep(POLL)
        return ended

    def stop(self) -> None:
        left = [task for task in self._tasks if not task.done()]
        self._tasks = []
        for task in left:
            if self._on_slurm:
                task.cancel()
            else:  # to cancel would print a traceback
                os.kill(int(task.job_id), signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and not all(task.done() for task in left):
            time.sleep(POLL)


class RayTask:
    """A call that Ray has taken."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference

    def result(self) -> Answer:
        import ray

        answer: Answer = ray.get(self.reference)
        return answer


class Ray:
    """Tasks of a Ray cluster.

    Args:
        workers: how many tasks run at a time.
        address: of the cluster; None: it is started here, of this machine alone.
        resources: of a task, as `ray.remote` takes them.
    """

    isolated = True

    def __init__(self, workers: int, address: str | None, resources: Mapping[str, Any]) -> None:
        import ray

        self.size = workers
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address or "local",  # by itself it would look for a cluster of this machine
            num_cpus=None if address else workers,
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        # Another task would not know what this one has written.
        self._remote = ray.remote(max_retries=0, **resources)(_call)

    def group(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def submit(self, call: Call) -> Task:
        return RayTask(self._remote.remote(call))

    def find_ended(self, tasks: Sequence[Any]) -> Sequence[Task]:
        import ray

        ended, _ = ray.wait([task.reference for task in tasks])
        return [task for task in tasks if task.reference in ended]

    def stop(self) -> None:
        import ray

        ray.shutdown()


def _call(call: Call) -> Answer:
    return call()


OWN = ("_target_", "engine")
"""Keys of a launcher that are no parameters of its engine."""


def make_engine(launcher: DictConfig, workers: int, shared: bool) -> Engine | None:
    """The engine of a launcher's node of the config; None if mfgd starts processes itself.

    Args:
        launcher: the node.
        workers: how many calls at a time.
        shared: whether several processes can write to the tracker.

    Raises:
        Refused: its package is not installed, or the engine does not take its keys.
    """
    keys: Any = OmegaConf.to_container(launcher, resolve=True)
    kind = keys.get("engine")
    if kind and not shared:
        raise Refused("hydra/launcher: tracking is of one process; allowed is hydra/launcher=batch")
    keys = {key: value for key, value in keys.items() if key not in OWN and value is not None}
    try:
        if kind == "joblib":
            return Loky(workers)
        if kind == "ray":
            return Ray(workers, keys.pop("address", None), keys)
        if kind in ("local", "slurm"):
            return Submitit(kind, workers, keys.pop("submitit_folder"), keys)
    except ModuleNotFoundError as error:
        extra = "ray" if kind == "ray" else "submitit"
        allowed = f"allowed is hydra/launcher=batch, or pip install 'mfgd[{extra}]'"
        raise Refused(f"hydra/launcher: {error.name} is not installed; {allowed}") from None
    except (ValueError, NameError, RuntimeError, ConnectionError) as error:
        raise Refused(f"hydra/launcher: {first_line(error)}") from None
    return None
