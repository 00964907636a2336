"""A shell line: jobs → points → batches → rows → tracker."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import chdir
from pathlib import Path
from typing import cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from tqdm import tqdm

from mfgd import checkpoint, compare, config, devices, interrupts, naming, pace, plan, refusals
from mfgd.compose import forget_job
from mfgd.continuation import find_sources
from mfgd.descent import Outcome
from mfgd.engines import Engine, make_engine
from mfgd.given import forget_problems
from mfgd.job import JobConfig, resolve_job
from mfgd.kernel import flush_denormals
from mfgd.point import Point
from mfgd.pool import WorkerPool, run_batches
from mfgd.runner import Finished, RunFailed, match_finished
from mfgd.search import Search, end_search
from mfgd.sweep_size import read_size
from mfgd.terminal import say
from mfgd.tracking import Resumable, Tracker
from mfgd.types import Refused

UNKNOWN = 1000
"""The size of a sweep whose sweeper does not say how many jobs it will send."""


class Session:
    """One shell line: a single run, or a sweep, whose jobs Hydra may send all at once, in lots or
    one by one."""

    def __init__(self) -> None:
        self.folder = os.getcwd()
        """The shell's folder, where tracking is at home whatever hydra.job.chdir does."""
        self.checkpoints: Path | None = None
        """The folder of checkpoints; None if the tracker is for this process alone."""
        self.uris: dict[str, str] = {}
        """Hidden URI → URI, as `hide_arguments` gives it."""
        self.flags: tuple[str, ...] = ()
        self.launcher: DictConfig | None = None
        """The launcher's node of the config."""
        self.engine: Engine | None = None
        """None until it is made, and if processes are started here."""
        self.pool = WorkerPool()
        """Started here, for several lots."""
        self.resumed = False
        """Whether an earlier sweep goes on."""
        self.tracker: Tracker | None = None
        """None until it is open."""
        self.tracking: config.Component | None = None
        self.finished: list[Finished] = []
        self.unwritten: list[Finished] = []
        """The runs that the tracker could not keep."""
        self.unfinished: list[Point] = []
        self.solved: dict[str, Point] = {}
        """The points of the runs that are written, by id."""
        self.whole = False
        """Whether the runs can be labelled as they are written: the sweep comes as a whole, or its
        first lot tells what it varies. Hydra may send it in other parts."""
        self.said: set[str] = set()
        """What was printed of files that were read."""
        self.search: Search | None = None

    def run(self, given: DictConfig | Iterator[JobConfig]) -> float | list[float | RunFailed]:
        """Hydra's task: solves and tracks one job, or a stream of jobs together.

        Returns:
            The final loss of the job; of a stream, what each job gave.

        Raises:
            RunFailed: the only job raised.
        """
        if not isinstance(given, DictConfig):
            return self._run(given, multirun=True)
        forget_problems()
        node = cast(DictConfig, HydraConfig.get())
        jobs = map(resolve_job, [given], [node])
        (result,) = self._run(jobs, multirun=node.mode == RunMode.MULTIRUN)
        if isinstance(result, RunFailed):
            raise result
        return result

    def _run(self, jobs: Iterable[JobConfig], *, multirun: bool) -> list[float | RunFailed]:
        """Solves and tracks jobs; what each gave, in their order."""
        with refusals.exit_on_refusal(), chdir(self.folder):  # the user's own functions are there
            points, whole = [], False
            for job in jobs:
                self._find_shared(job.hydra)
                points.append(config.read_job(job, self.flags))
                whole = whole or (len(points) > 1 and config.sends_all_at_once(job.hydra))
            self.whole = whole or self.search is not None
        with flush_denormals():  # not before: 1e-308 would be read as 0
            return self._solve(points, multirun)

    def _solve(self, points: list[Point], multirun: bool) -> list[float | RunFailed]:
        """Solves and tracks points; what each gave, in their order."""
        with refusals.exit_on_refusal():
            with chdir(self.folder):
                tracker = self._make_tracker(points)
                points = find_sources(points, getattr(tracker, "uri", None))
            if len(points) > 1:
                forget_job()
            if self.whole:
                known = [*self.solved.values()]
                points = naming.label_points([*known, *points])[len(known) :]
            workers = 1
            if tracker.shared:
                workers = points[0].workers or self._choose_workers(points)
            batches = plan.group_points(points, workers)
            if self.engine is None and multirun and self.launcher is not None:
                self.engine = make_engine(self.launcher, workers, tracker.shared)
            if self.tracker is None:
                self._open(tracker, points[0], multirun)
                tracker.expect(self._count_runs(len(points)) if multirun else 1)
        plan.announce_sources(points, self.said)
        if self.search is None:  # which tries such rates
            plan.announce_unstable(points)
        results = self._run_batches(points, batches, tracker, workers)
        return [results[i] for i in range(len(points))]

    def _choose_workers(self, points: Sequence[Point]) -> int:
        """How many processes solve side by side, if the shell line does not say."""
        engine = None if self.launcher is None else self.launcher.get("engine")
        return devices.choose_workers({point.device for point in points}, engine)

    def _find_shared(self, node: DictConfig) -> None:
        """Finds what all jobs of the shell line share: its flags, and the launcher."""
        if self.launcher is None:
            self.flags, self.launcher = config.find_flags(node), node.launcher

    def _make_tracker(self, points: Sequence[Point]) -> Tracker:
        """The tracker of this session."""
        if any(point.resume != points[0].resume for point in points):
            raise Refused("resume: differs from run to run; allowed is one value")
        self.tracking = self.tracking or points[0].tracking
        if any(point.tracking != self.tracking for point in points):
            raise Refused("tracking: differs from run to run; allowed is one store for a sweep")
        if self.tracker is not None:
            return self.tracker
        keys = self.tracking.arguments
        for key, value in keys.items():
            if isinstance(value, str) and key != "experiment":  # a name, which is kept
                keys[key] = self.uris.get(value, value)
        made: Tracker = self.tracking.function(**keys)
        return made

    def _open(self, tracker: Tracker, first: Point, multirun: bool) -> None:
        """Opens the tracker, with a parent run, which may be an earlier one, if this is a sweep."""
        line = [text for text in sys.argv[1:] if not text.startswith(config.RESUME)]
        with interrupts.defer(), chdir(self.folder):
            if isinstance(tracker, Resumable):
                self.checkpoints = Path(self.folder, checkpoint.FOLDER)
            if not first.resume:
                tracker.open(line if multirun else None)
            elif not isinstance(tracker, Resumable):
                raise Refused(f"resume={first.resume}: this tracking keeps nothing to go on with")
            elif multirun:
                tracker.resume(line, first.resume)
                self.resumed = True
            else:
                checkpoint.require(Path(self.folder, checkpoint.FOLDER), first)
                tracker.open(None)
            self.tracker = tracker

    def _count_runs(self, first: int) -> int:
        """How many runs a sweep has, whose first lot has so many; a guess if nobody knows."""
        if self.search is not None:
            return self.search.most
        return max(first, read_size() or UNKNOWN)

    def _run_batches(
        self,
        points: Sequence[Point],
        batches: Sequence[Sequence[int]],
        tracker: Tracker,
        workers: int,
    ) -> dict[int, float | RunFailed]:
        """Runs batches of positions under a progress bar; position → what the run gave."""
        results: dict[int, float | RunFailed] = {}
        unwritten: set[int] = set()
        interval = 0.1 if sys.stderr.isatty() else 5.0  # a log keeps every line
        alone = len(points) == 1
        with tqdm(total=len(points), unit="run", mininterval=interval, disable=alone) as progress:

            def report(finished: Finished) -> None:
                results[finished.position] = finished.result
                if finished.run_id:
                    self.finished.append(finished)
                    self.solved[finished.run_id] = points[finished.position]
                else:
                    self.unwritten.append(finished)
                    unwritten.add(finished.position)
                progress.update()

            def note(finished: Finished) -> None:
                report(finished)
                sweep.note(finished.position)

            try:
                if self.resumed:
                    known = {finished.run_id for finished in self.finished}
                    for finished in match_finished(enumerate(points), tracker, known):
                        report(finished)
                rest = [[i for i in batch if i not in results] for batch in batches]
                rest = [batch for batch in rest if batch]
                sweep = pace.Pace(rest, workers)
                jobs = [[(i, points[i]) for i in batch] for batch in rest]
                place = self.engine or self.pool
                run_batches(jobs, tracker, note, workers, self.checkpoints, place)
            finally:
                done = results.keys() - unwritten
                self.unfinished = [point for i, point in enumerate(points) if i not in done]
        return results

    @property
    def failures(self) -> int:
        """How many runs raised."""
        return sum(isinstance(finished.result, RunFailed) for finished in self.finished)

    @property
    def complete(self) -> bool:
        """Whether no run raised, and each is where it is tracked."""
        tracker = self.tracker
        waiting = tracker.unsent if isinstance(tracker, Resumable) else 0
        return not (self.failures or self.unwritten or waiting)

    def close(self, status: str | None) -> None:
        """Ends the sweep, and prints its best runs and how to look at them.

        Args:
            status: how the command ended; None if it went through.
        """
        (self.engine or self.pool).stop()
        tracker = self.tracker
        if tracker is None:
            return
        if status is None:
            status = "FAILED" if self.failures or self.unwritten else "FINISHED"
        written = {finished.run_id: finished.written for finished in self.finished}
        if tracker.parent and not self.whole and len(written) > 1:
            written = naming.label_written(written, [*self.solved.values()])
        if self.search is not None:
            end_search(self.search, tracker)
        runs = tracker.finish(status, written, self.unfinished)
        if len(runs):
            say(compare.table(compare.best(runs)))
            undefined = int((runs["tags.outcome"] == Outcome.UNDEFINED.label).sum())
            if undefined:
                say(f"{undefined} of {len(runs)} runs are undefined: {Outcome.UNDEFINED.sentence}")
        self._say_what_is_missing(tracker, len(runs))
        if self.checkpoints:
            checkpoint.clean(self.checkpoints, self.solved.values())
            if not tracker.parent and checkpoint.place(self.checkpoints, self.unfinished).exists():
                say("the run is not done; the same line with resume=true goes on")
        say(tracker.location())

    def _say_what_is_missing(self, tracker: Tracker, count: int) -> None:
        """Prints how many of the runs raised, could not be written, or were not done."""
        if self.failures:
            say(f"{self.failures} of {count} runs FAILED; the traceback of each says why")
        if self.unwritten:
            say(f"{len(self.unwritten)} runs could not be written: {self.unwritten[0].result}")
        if self.unfinished and tracker.parent:
            left = len(self.unfinished)
            say(f"{left} runs were not done; unfinished.txt of the sweep's own run lists them")
