"""The command: config → batches → rows → MLflow. `mfgd` runs one, `mfgd --multirun` sweeps."""

from __future__ import annotations

import gc
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from tqdm import tqdm

from mfgd import compare, config, sweep
from mfgd.tracking import Store
from mfgd.types import Refused

Job = tuple[DictConfig, DictConfig]
"""A job's config and its hydra node."""
INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM)


class Session:
    """One shell line: a single run, or a sweep, whose jobs Hydra may send all at once, in lots or one by one."""

    def __init__(self) -> None:
        self.store: Store | None = None
        self.tracking: config.Component | None = None

    def run(self, given: DictConfig | Iterator[Job]) -> float | list[float]:
        """Hydra's task: solves and tracks one job, or a stream of them. The final loss of each, NaN where it raised."""
        jobs = [(given, HydraConfig.get())] if isinstance(given, DictConfig) else given
        with config.refusals():
            points = [config.read(*job) for job in jobs]
            batches = sweep.batches(points)
            store = self.open(points)
        losses = [math.nan] * len(points)
        with tqdm(total=len(points), unit="run", disable=len(points) == 1) as progress:
            for batch in batches:
                for i, result in zip(batch, sweep.outcomes([points[i] for i in batch]), strict=True):
                    problem = None if isinstance(result, Exception) else sweep.problem_of(points[i].problem)
                    with whole():
                        store.write(points[i], result, problem)
                    if not isinstance(result, Exception):
                        losses[i] = float(result.trajectory["loss"][-1])
                    progress.update()
        return losses[0] if isinstance(given, DictConfig) else losses

    def open(self, points: Sequence[config.Point]) -> Store:
        """The store of this session, opened, and with a parent run if this is a sweep."""
        self.tracking = self.tracking or points[0].tracking
        if any(point.tracking != self.tracking for point in points):
            raise Refused("tracking: differs from run to run; allowed is one store for a sweep")
        if self.store is None:
            store: Store = self.tracking()
            store.open()
            with whole():
                self.store = store
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    store.begin(sys.argv[1:])
        return self.store

    def close(self, status: str | None) -> None:
        """Ends what is open, prints the best runs and how to look at them."""
        if self.store is None:
            return
        self.store.finish(status)
        runs = self.store.runs()
        if len(runs):
            print(compare.table(compare.best(runs)))
            if self.store.failures:
                print(f"{self.store.failures} of {len(runs)} runs FAILED; their traceback.txt says why")
        print(f"compare in the browser:  {self.store.ui}")


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


def main() -> None:
    """The console script."""
    sys.path.insert(0, os.getcwd())  # where a user's own functions are
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's errors come to us, not to the terminal
    for number in INTERRUPTIONS:
        signal.signal(number, signal.default_int_handler)
    torch.set_flush_denormal(True)
    gc.freeze()  # what the imports made is no garbage: looking for it again and again would cost a tenth of composition
    session, status = Session(), None
    try:
        with config.refusals():
            hydra.main(version_base="1.3", config_path=str(config.CONF), config_name="config")(session.run)()
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        if status == "KILLED":
            raise SystemExit(130) from None
        raise
    finally:
        with whole():
            session.close(status)
    if session.store is not None and session.store.failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
