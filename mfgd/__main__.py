"""The command: config → batches → rows → MLflow. `mfgd` runs one, `mfgd --multirun` sweeps."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator, Sequence

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from tqdm import tqdm

from mfgd import compare, config, sweep
from mfgd.runner import INTERRUPTIONS, Done, cores, perform_all, warm_up, whole
from mfgd.tracking import Store
from mfgd.types import Refused

Job = tuple[DictConfig, DictConfig]
"""A job's config and its hydra node."""


class Session:
    """One shell line: a single run, or a sweep, whose jobs Hydra may send all at once, in lots or one by one."""

    def __init__(self) -> None:
        self.store: Store | None = None
        self.tracking: config.Component | None = None
        self.done: list[Done] = []
        self.unfinished: list[config.Point] = []

    def run(self, given: DictConfig | Iterator[Job]) -> float | list[float]:
        """Hydra's task: solves and tracks one job, or a stream of them. The final loss of each, NaN where it raised."""
        jobs = [(given, HydraConfig.get())] if isinstance(given, DictConfig) else given
        with config.refusals():
            points = [config.read(*job) for job in jobs]
            workers = points[0].workers or cores()
            batches = sweep.batches(points, workers)
            store = self.open(points)
        _announce(points)
        losses: dict[int, float] = {}
        pace = 0.1 if sys.stderr.isatty() else 5.0  # a log keeps every line
        with tqdm(
            total=len(points), unit="run", mininterval=pace, disable=len(points) == 1
        ) as progress:

            def report(done: Done) -> None:
                losses[done.position] = done.final_loss
                self.done.append(done)
                progress.update()

            try:
                perform_all(
                    [[(i, points[i]) for i in batch] for batch in batches], store, report, workers
                )
            finally:
                self.unfinished = [point for i, point in enumerate(points) if i not in losses]
        return (
            losses[0] if isinstance(given, DictConfig) else [losses[i] for i in range(len(points))]
        )

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
        self.store.expected += len(points)
        return self.store

    @property
    def failures(self) -> int:
        return sum(done.failed for done in self.done)

    def close(self, status: str | None) -> None:
        """Ends what is open, prints the best runs and how to look at them."""
        if self.store is None:
            return
        if self.store.parent:
            runs = self.store.finish(
                status or ("FAILED" if self.failures else "FINISHED"), self.unfinished
            )
        else:
            runs = self.store.runs([done.run_id for done in self.done])
        if len(runs):
            print(compare.table(compare.best(runs)))
        if self.failures:
            print(f"{self.failures} of {len(runs)} runs FAILED; their traceback.txt says why")
        if self.unfinished and self.store.parent:
            print(
                f"{len(self.unfinished)} runs were not done; unfinished.txt of the sweep's own run lists them"
            )
        print(f"compare in the browser:  {self.store.ui}")


def _announce(points: Sequence[config.Point]) -> None:
    beyond, limit = sweep.unstable(points)
    if beyond:
        rates = ", ".join(f"{rate:g}" for rate in sorted({point.lr[-1] for point in beyond}))
        what = f"{len(beyond)} of {len(points)} runs (lr={rates}) are beyond {limit:.3g}"
        print(
            f"mfgd: {what}, the rate up to which gradient descent can converge to a minimum",
            file=sys.stderr,
        )


def prepare() -> None:
    """Makes this process one that carries out shell lines."""
    sys.path.insert(0, os.getcwd())  # where a user's own functions are
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's errors come to us, not to the terminal
    for number in INTERRUPTIONS:
        signal.signal(number, signal.default_int_handler)
    torch.set_flush_denormal(True)
    if {"-m", "--multirun"} & set(sys.argv):
        warm_up()
    gc.freeze()  # what the imports made is no garbage: looking for it again and again would cost a tenth of composition


def carry_out() -> Session:
    """The shell line in `sys.argv`, solved and tracked; one after another may be carried out in one process.

    Raises:
        SystemExit: 2 where it is refused, 130 where it is interrupted.
    """
    session, status = Session(), None
    try:
        with config.refusals():
            hydra.main(version_base="1.3", config_path=str(config.CONF), config_name="config")(
                session.run
            )()
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        if status == "KILLED":
            raise SystemExit(130) from None
        raise
    finally:
        with whole():
            session.close(status)
    return session


def main() -> None:
    """The console script."""
    prepare()
    if carry_out().failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
