"""The tracker that writes runs to MLflow."""

from __future__ import annotations

import getpass
import math
import os
import shlex
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfgd import (
    artifacts,
    mlflow_client,
    mlflow_experiment,
    mlflow_resume,
    mlflow_view,
    sweep_summary,
)
from mfgd.config import Point
from mfgd.database import MLFLOW
from mfgd.mlflow_client import log_batches
from mfgd.mlflow_dataset import dataset_input
from mfgd.mlflow_reader import load_runs, table_of
from mfgd.passwords import hide_password
from mfgd.record import Row
from mfgd.target import Problem
from mfgd.tracked import (
    Earlier,
    MetricPoint,
    Written,
    find_commit,
    format_params,
    mark_name,
    mirror_numbers,
    name_run,
    outcome_tags,
    run_tags,
    select_points,
)

if TYPE_CHECKING:
    import pandas
    from mlflow import MlflowClient

MODULES = ["mlflow", "mlflow.store.tracking.sqlalchemy_store", "pyarrow.parquet"]
"""The imports of a process that writes."""


class MlflowTracker:
    """Writes to an MLflow experiment; see `mfgd.tracking.Tracker` for its methods.

    Args:
        uri: the tracking URI.
        experiment: name of the MLflow experiment; None as `mlflow_experiment.choose` takes it.
        figures: a run is drawn in a sweep of up to so many runs.
        points: how many metric points a sweep logs in all.
    """

    shared = True

    def __init__(self, uri: str, experiment: str | None, figures: float, points: int) -> None:
        self.given, self.uri = uri, mlflow_client.check_uri(uri)
        self.experiment, self.figures, self.points = experiment, figures, points
        self.parent: str | None = None
        self.above: str | None = None
        """Id of the run inside which the shell line is run, MLFLOW_RUN_ID."""
        self.resumed = False
        self.expected = 0
        self.logged: set[tuple[str, str]] = set()
        self.line = self.name = self.view = ""
        """The view is the query of an address that opens the saved view; empty if there is none."""

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        state.pop("client", None)  # each process has its own connection
        return state

    @cached_property
    def client(self) -> MlflowClient:
        """The connection."""
        return mlflow_client.connect(self.uri, writing=True, shown=self.given)

    def open(self, sweep: Sequence[str] | None) -> None:
        self._enter(sweep)
        if sweep is not None:
            self.name = f"sweep {time.strftime('%Y-%m-%d %H:%M:%S')}"
            tags = self.tags | {"overrides": self.line} | mlflow_resume.identify_process()
            run = self.client.create_run(self.experiment_id, tags=tags, run_name=self.name)
            self.parent = run.info.run_id

    def resume(self, sweep: Sequence[str], given: str | bool) -> None:
        self._enter(sweep)
        run = mlflow_resume.find_sweep(self.client, self.experiment_id, self.line, given)
        mlflow_resume.take_over(self.client, run, {"overrides": self.line})
        self.name, self.parent, self.resumed = run.info.run_name, run.info.run_id, True

    def find_finished(self, known: Collection[str]) -> list[Earlier]:
        assert self.parent is not None
        return mlflow_resume.find_finished(self.client, self.experiment_id, self.parent, known)

    def _enter(self, sweep: Sequence[str] | None) -> None:
        """Finds or makes the experiment of the shell line."""
        self.line = shlex.join(sweep or ())
        self.experiment = mlflow_experiment.choose(self.client, self.experiment)
        self.above = os.environ.get(mlflow_experiment.RUN_ID) or None
        root = None if self.uri.startswith("http") else Path.cwd() / mlflow_experiment.ROOT
        self.experiment_id = mlflow_experiment.find_or_create(self.client, self.experiment, root)
        self.tags = {
            "git_commit": find_commit(),
            "mlflow.source.name": "mfgd",
            "mlflow.source.type": "LOCAL",
        }
        with suppress(KeyError, OSError):  # the user of a container may have no name
            self.tags["mlflow.user"] = getpass.getuser()
        if self.above:
            self.tags[mlflow_client.PARENT_TAG] = self.above

    def expect(self, runs: int) -> None:
        self.expected += runs

    def write(self, point: Point, result: Row | Exception, problem: Problem | None) -> str:
        if isinstance(result, Exception):
            return self._write_error(point, result)
        assert problem is not None
        return self._write_row(point, result, problem)

    def _write_row(self, point: Point, row: Row, problem: Problem) -> str:
        own, drawn = {}, self.expected <= self.figures
        if drawn:
            own = artifacts.draw_own_figures(point, row, problem)
        with self._new_run(point, row, float(row.trajectory["seconds"][-1])) as info:
            most = self.points // max(self.expected, 1)
            points = [*select_points(row, point.tolerance, info.start_time, most)]
            points += mirror_numbers(point, points, info.start_time)
            log_batches(
                self.client, info.run_id, format_params(point, problem), points, outcome_tags(row)
            )
            if self.parent:
                self._log_data(self.parent, point, problem)
            # In a large sweep a dataset would take a third of the time that a run takes.
            if problem.source is not None and (drawn or not self.parent):
                self._log_data(info.run_id, point, problem)
            with self._artifacts(info) as folder:
                artifacts.write_config(folder, point)
                artifacts.write_row(folder, row, problem)
                if drawn:
                    artifacts.write_figures(folder, point, row, problem, own)
            if drawn:
                self._log_images(info, row, problem)
        return info.run_id

    def _write_error(self, point: Point, error: Exception) -> str:
        with self._new_run(point, error, 0.0) as info:
            log_batches(
                self.client, info.run_id, format_params(point, None), [], outcome_tags(error)
            )
            with self._artifacts(info) as folder:
                artifacts.write_config(folder, point)
                artifacts.write_traceback(folder, error)
        return info.run_id

    @contextmanager
    def _new_run(self, point: Point, result: Row | Exception, seconds: float) -> Iterator[Any]:
        """MLflow's info of a new run, which ends with the block; FAILED if the block raises."""
        start = int((time.time() - seconds) * 1000)
        tags = self.tags | run_tags(point, result)
        if self.parent:
            tags[mlflow_client.PARENT_TAG] = self.parent
        if point.label is not None:
            tags["mlflow.runColor"] = point.label.colour
        name = name_run(point, result)
        create = partial(self.client.create_run, self.experiment_id, start, tags, name)
        info = mlflow_client.retry_collisions(create).info
        status = "FAILED"
        try:
            yield info
            if isinstance(result, Row):
                status = "FINISHED"
        finally:
            end = start + math.ceil(1000 * seconds)
            terminate = partial(self.client.set_terminated, info.run_id, status, end_time=end)
            mlflow_client.retry_collisions(terminate)

    def _log_data(self, run_id: str, point: Point, problem: Problem) -> None:
        """Logs what is factored as MLflow's dataset, once a run."""
        given = dataset_input(point, problem)
        if (run_id, given.dataset.digest) not in self.logged:
            self.logged.add((run_id, given.dataset.digest))
            mlflow_client.retry_collisions(partial(self.client.log_inputs, run_id, [given]))

    @contextmanager
    def _artifacts(self, info: Any) -> Iterator[Path]:
        """A folder whose files become the artifacts of a run."""
        if folder := mlflow_experiment.local_folder(info.artifact_uri):
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix="mfgd-") as scratch:
            yield Path(scratch)
            self.client.log_artifacts(info.run_id, scratch)

    def _log_images(self, info: Any, row: Row, problem: Problem) -> None:
        from mfgd.heatmaps import pictures

        for step, factors in row.snapshots:
            at = {"step": step, "timestamp": info.start_time}
            for name, picture in pictures(problem, factors).items():
                self.client.log_image(info.run_id, picture, key=name, synchronous=True, **at)

    def finish(
        self, status: str, written: Mapping[str, Written], unfinished: Sequence[Point]
    ) -> pandas.DataFrame:
        if self.parent is None:
            return table_of([self.client.get_run(run_id) for run_id in written])
        try:
            mlflow_resume.end_children(self.client, self.experiment_id, self.parent)
            self._label(written)
            runs = load_runs(parent=self.parent, experiment=self.experiment, uri=self.uri)
            if len(runs):
                runs = runs[runs["status"] != "KILLED"]  # left by a process that died
            curves = sweep_summary.join_curves(written, runs, self.uri)
            self._summarize(self.parent, runs, curves, unfinished)
        finally:
            self.client.set_terminated(self.parent, status)
        return runs

    def _label(self, written: Mapping[str, Written]) -> None:
        """Shows the runs of a sweep that came in parts as runs of one sweep."""
        for run_id, (outcome, _, label) in written.items():
            if label is not None:
                self.client.update_run(run_id, name=mark_name(label.name, outcome))
                self.client.set_tag(run_id, "mlflow.runColor", label.colour)
                now = int(1000 * time.time())
                numbers = [MetricPoint(key, value, now, 0) for key, value in label.numbers.items()]
                log_batches(self.client, run_id, {}, numbers, {})

    def _summarize(
        self,
        parent: str,
        runs: pandas.DataFrame,
        curves: pandas.DataFrame,
        unfinished: Sequence[Point],
    ) -> None:
        """Writes what the sweep's own run keeps, and the view that opens on it."""
        line = f"mfgd {self.line}"
        with self._artifacts(self.client.get_run(parent).info) as folder:
            if len(runs):
                sweep_summary.write_files(folder, runs, curves, self.name, line)
            if unfinished or self.resumed:  # the list of the command before is no longer true
                sweep_summary.write_unfinished(folder, unfinished)
        counts = dict(runs["tags.outcome"].value_counts()) if len(runs) else {}
        if unfinished or self.resumed:
            counts["unfinished"] = len(unfinished)
        for outcome, count in counts.items():
            self.client.log_metric(parent, f"runs.{outcome}", count)
        if len(runs):
            if not unfinished:  # a param cannot change when the sweep goes on
                log_batches(self.client, parent, sweep_summary.swept_params(runs), [], {})
            self.view = mlflow_view.save(
                self.client,
                self.experiment_id,
                runs,
                parent,
                self.name,
                self.expected <= self.figures,
            )
            page = f"#/experiments/{self.experiment_id}/runs"
            links = {
                "charts of this sweep": f"{page}?{self.view}",
                "compare.html": f"{page}/{parent}/artifacts/{sweep_summary.PAGE}",
            }
            note = sweep_summary.write_description(runs, line, links, len(unfinished))
            self.client.set_tag(parent, "mlflow.note.content", note)

    def location(self) -> str:
        # The table of runs is not the page that the UI opens by itself.
        page = f"#/experiments/{self.experiment_id}/runs"
        if self.view:
            page += f"?{self.view}"
        address = hide_password(self.given)
        if address.startswith("http"):
            where = f"{address.rstrip('/')}/{page}"
        else:
            ui = f"{MLFLOW} ui --backend-store-uri {shlex.quote(address)}"
            where = f"{ui}  and open  http://127.0.0.1:5000/{page}"
        return f"compare in the browser:  {where}"
