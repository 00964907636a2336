"""Trackers keep the runs of a shell line: `store` in MLflow, `memory` in this process.

A tracker of one's own is a function that returns an object with the verbs of `Tracker`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, runtime_checkable

from annotated_types import Ge, MaxLen, MinLen

from mfgd.artifacts import Run
from mfgd.memory import MemoryTracker
from mfgd.mlflow_client import choose_uri
from mfgd.mlflow_experiment import attach
from mfgd.mlflow_reader import load_run, load_runs
from mfgd.mlflow_store import MlflowTracker
from mfgd.point import Point
from mfgd.record import Row
from mfgd.target import Problem
from mfgd.tracked import Earlier, Written
from mfgd.types import Count

if TYPE_CHECKING:
    import pandas

__all__ = ["Run", "Tracker", "attach", "load_run", "load_runs", "memory", "store"]


class Tracker(Protocol):
    """What keeps the runs of a shell line. Nothing is written before `open`."""

    shared: bool
    """Whether several processes may write at once. Each process then writes to a pickled copy."""
    parent: str | None
    """Id of the sweep's own run; None before `open`, and for a single run."""

    def open(self, sweep: Sequence[str] | None) -> None:
        """Connects, and starts the sweep's own run.

        Args:
            sweep: the arguments of the shell line; None for a single run.

        Raises:
            Refused: the tracker cannot be used.
        """

    def expect(self, runs: int) -> None:
        """Announces, once and before any is written, how many runs come, as far as is known."""

    def write(self, point: Point, result: Row | Exception, problem: Problem | None) -> str:
        """Writes one run and returns its id.

        Args:
            point: the config of the run.
            result: what the run left behind, or the error that it raised.
            problem: what was factored; None if the run raised.

        Raises:
            DrawingError: a figure function of the user raised. Nothing is written, and the runner
                writes the run again with this error as its result.
            NotWritten: the run cannot be kept; the sweep goes on.
        """

    def finish(
        self, status: str, written: Mapping[str, Written], unfinished: Sequence[Point]
    ) -> pandas.DataFrame:
        """Ends the sweep's own run, if there is one.

        Args:
            status: FINISHED, FAILED or KILLED.
            written: id of each run that was written → what is known of it.
            unfinished: the points that were not run.

        Returns:
            The runs, in the columns of `load_runs`.
        """

    def location(self) -> str:
        """The last line of the command: how to look at the runs."""


@runtime_checkable
class Resumable(Protocol):
    """A tracker that keeps a sweep for the next process; `Tracker` has the other verbs."""

    unsent: int
    """How many runs wait on the disk once the tracker has finished."""

    def resume(self, sweep: Sequence[str], given: str | bool) -> None:
        """Connects as `Tracker.open` does, and goes on with an earlier sweep.

        Args:
            sweep: the arguments of the shell line, without resume.
            given: the id of the sweep's own run; True for the newest one of this shell line.

        Raises:
            Refused: there is no such sweep, or its process lives.
        """

    def find_finished(self, known: Collection[str]) -> Sequence[Earlier]:
        """The finished runs of the sweep, without those that are known by their ids."""


@runtime_checkable
class KeepsFiles(Protocol):
    """A tracker that keeps files of a sweep; `Tracker` has the other verbs."""

    def keep_files(self, write: Callable[[Path], None]) -> None:
        """Has files written into a folder of the sweep's own run when `Tracker.finish` ends it."""


@runtime_checkable
class Together(Protocol):
    """A tracker that can write the runs of a batch together; `Tracker` has the other verbs."""

    def write_together(
        self, runs: Sequence[tuple[Point, Row | Exception, Problem | None]]
    ) -> list[str] | None:
        """Writes runs, all or none of them.

        Args:
            runs: each as `Tracker.write` takes it.

        Returns:
            Their ids; None if nothing is written and each run has to be written by itself.
        """


def store(
    *,
    uri: str | None,
    experiment: Annotated[str, MinLen(1), MaxLen(500)] | None,
    figures: bool | Annotated[int, Ge(0)],
    points: Count,
) -> Tracker:
    """Runs are tracked in MLflow.

    Args:
        uri: a database (sqlite, postgresql, mysql, mssql) or a tracking server (http, https). If
            null: the URI in MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the working directory.
        experiment: name of the MLflow experiment, which is made if there is none. If null: the
            experiment of MLFLOW_RUN_ID, MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID, else mfgd.
            Runs become children of the run MLFLOW_RUN_ID.
        figures: whether each run is drawn, as figures and as image series: always (true), never
            (false), or in sweeps of up to so many runs.
        points: how many metric points a sweep logs in all. If they do not suffice for every record,
            a run logs the last value of each measure, and loss and relative_error at records spread
            evenly over the run, the first and the last among them. Its trajectory.parquet has
            everything.
    """
    limit = math.inf if figures is True else int(figures)
    return MlflowTracker(choose_uri(uri), experiment, limit, points)


def memory(*, experiment: str) -> Tracker:
    """Runs are kept in this process and printed at its end; nothing is written to the disk.

    One process solves all runs. From Python, `MemoryTracker.runs` has their results.

    Args:
        experiment: a name for the runs, as under tracking=store; it changes nothing.
    """
    return MemoryTracker(experiment)
