"""One batch → rows → tracker."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mfgd import checkpoint, interrupts
from mfgd.artifacts import DrawingError
from mfgd.attempt import solve_or_report
from mfgd.errors import NotWritten
from mfgd.given import load_problem
from mfgd.point import Point
from mfgd.record import Row
from mfgd.replicates import Ensemble, solve_ensembles
from mfgd.result import Result
from mfgd.target import Problem
from mfgd.tracked import Earlier, Written, last_values, outcome_of, thin_curves
from mfgd.tracking import Resumable, Together, Tracker

Job = tuple[int, Point]
"""A point and its position in the sweep."""


LOT = 250
"""Runs that are written together."""


class RunFailed(Exception):
    """A run raised; the traceback is an artifact of the run."""


class Finished(NamedTuple):
    """A run that is written."""

    position: int
    run_id: str
    """Empty if the tracker could not keep the run."""
    result: Result | RunFailed
    """What the run gave, or the error that it raised."""
    written: Written


Report = Callable[[Finished], None]


def run_batch(
    batch: Sequence[Job], tracker: Tracker, report: Report, folder: Path | None = None
) -> None:
    """Solves a batch and writes its runs.

    An interruption waits until all runs that are solved are written.

    Args:
        batch: the runs.
        tracker: keeps them.
        report: is told of each run that is written.
        folder: of the checkpoints; None: there are none.
    """
    solve = solve_ensembles if batch[0][1].replicates > 1 else solve_or_report
    for results in solve([point for _, point in batch], folder):
        solved, batch = batch[: len(results)], batch[len(results) :]
        with interrupts.defer():
            for finished in _write_results(solved, results, tracker):
                report(finished)
            if folder is not None:
                checkpoint.remove(checkpoint.place(folder, [point for _, point in solved]))


def match_finished(jobs: Iterable[Job], tracker: Tracker, known: Collection[str]) -> list[Finished]:
    """The jobs whose runs another process has written, except for runs that are known by their
    ids."""
    if not isinstance(tracker, Resumable):
        return []
    earlier: dict[str, list[Earlier]] = {}
    for run in tracker.find_finished(known):
        earlier.setdefault(run.fingerprint, []).append(run)
    found = []
    for position, point in jobs:
        if same := earlier.get(point.fingerprint):
            run = same.pop()
            result = Result(run.loss, run.outcome, run.values)
            found.append(Finished(position, run.run_id, result, Written(run.outcome, {})))
    return found


def _write_results(
    jobs: Sequence[Job], results: Sequence[Row | Exception], tracker: Tracker
) -> Iterator[Finished]:
    """Writes what runs left behind, in lots."""
    done = list(zip(jobs, results, strict=True))
    for begin in range(0, len(done), LOT):
        yield from _write_lot(done[begin : begin + LOT], tracker)


def _write_lot(done: Sequence[tuple[Job, Row | Exception]], tracker: Tracker) -> Iterable[Finished]:
    """Writes runs together if the tracker can, else one after another."""
    run_ids = None
    if isinstance(tracker, Together):
        run_ids = tracker.write_together(
            [(job[1], result, _problem_of(job, result)) for job, result in done]
        )
    if run_ids is None:
        return (write_result(job, result, tracker) for job, result in done)
    return [
        _finish(job, run_id, result) for (job, result), run_id in zip(done, run_ids, strict=True)
    ]


def _problem_of(job: Job, result: Row | Exception) -> Problem | None:
    if isinstance(result, Exception):
        return None
    point = result.chosen if isinstance(result, Ensemble) else job[1]
    return load_problem(point.problem)


def write_result(job: Job, result: Row | Exception, tracker: Tracker) -> Finished:
    """Writes what a run left behind, or the error that it raised."""
    try:
        return _write_once(job, result, tracker)
    except NotWritten as error:
        return Finished(job[0], "", RunFailed(str(error)), Written("", {}))


def _write_once(job: Job, result: Row | Exception, tracker: Tracker) -> Finished:
    _, point = job
    try:
        return _finish(job, tracker.write(point, result, _problem_of(job, result)), result)
    except DrawingError as error:
        return _finish(job, tracker.write(point, error, None), error)


def _finish(job: Job, run_id: str, result: Row | Exception) -> Finished:
    """What is reported of a run that is written."""
    position, point = job
    if isinstance(result, Row):
        loss, values = result.trajectory["loss"][-1], last_values(result, point.tolerance)
        told = Result(loss, result.outcome, values)
        return Finished(position, run_id, told, Written(result.outcome, thin_curves(result)))
    said = " ".join(str(result).split())
    failed = RunFailed(f"{type(result).__name__}: {said}")
    return Finished(position, run_id, failed, Written(outcome_of(result), {}))
