"""The tracker that writes runs to MLflow."""

from __future__ import annotations

import getpass
import json
import math
import os
import shlex
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfgd import artifacts, mlflow_client, mlflow_experiment
from mfgd.config import Point
from mfgd.mlflow_reader import load_runs, table_of
from mfgd.reading import Source
from mfgd.record import Row
from mfgd.target import Problem
from mfgd.tracked import MetricPoint, find_commit, format_params, name_run, run_tags, select_points

if TYPE_CHECKING:
    import pandas
    from mlflow import MlflowClient

METRICS_A_REQUEST = 1000
PARAMS_A_REQUEST = 100
NAME_LENGTH = 250
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
        self.expected = 0
        self.logged: set[tuple[str, Source]] = set()

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        state.pop("client", None)  # each process has its own connection
        return state

    @cached_property
    def client(self) -> MlflowClient:
        """The connection."""
        return mlflow_client.connect(self.uri, writing=True, shown=self.given)

    def open(self, sweep: Sequence[str] | None) -> None:
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
        if sweep is not None:
            tags = self.tags | {"overrides": shlex.join(sweep)}
            name = f"sweep {time.strftime('%Y-%m-%d %H:%M:%S')}"
            run = self.client.create_run(self.experiment_id, tags=tags, run_name=name)
            self.parent = run.info.run_id

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
            points = select_points(row, point.tolerance, info.start_time, most)
            self._log(info.run_id, format_params(point, problem), points)
            if problem.source is not None:
                self._log_source(
                    info.run_id if drawn else self.parent or info.run_id, problem.source
                )
            with self._artifacts(info) as folder:
                artifacts.write_config(folder, point)
                artifacts.write_row(folder, row, problem)
                if drawn:
                    artifacts.write_figures(folder, row, problem, own)
            if drawn:
                self._log_images(info, row, problem)
        return info.run_id

    def _write_error(self, point: Point, error: Exception) -> str:
        with self._new_run(point, error, 0.0) as info:
            self._log(info.run_id, format_params(point, None), [])
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
        name = name_run(point)[:NAME_LENGTH]
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

    def _log(self, run_id: str, texts: Mapping[str, str], points: Iterable[MetricPoint]) -> None:
        from mlflow.entities import Metric, Param

        params = [Param(key, text) for key, text in texts.items()]
        metrics = [Metric(*values) for values in points]
        while params or metrics:
            lot = metrics[:METRICS_A_REQUEST], params[:PARAMS_A_REQUEST]
            mlflow_client.retry_collisions(partial(self.client.log_batch, run_id, *lot))
            params, metrics = params[PARAMS_A_REQUEST:], metrics[METRICS_A_REQUEST:]

    def _log_source(self, run_id: str, source: Source) -> None:
        """Logs the file of a problem as MLflow's dataset, with the digest of the matrix in it.

        In a large sweep the dataset is with the sweep's own run alone: it would take a third of the
        time that a run takes.
        """
        if (run_id, source) in self.logged:
            return
        self.logged.add((run_id, source))
        from mlflow.entities import Dataset, DatasetInput, InputTag

        path = Path(source.path).expanduser()
        dataset = Dataset(
            name=path.name,
            digest=source.digest,
            source_type="local",
            source=json.dumps({"uri": str(path.absolute())}),
            profile=json.dumps({"read": source.summary}, ensure_ascii=False),
        )
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "factored")])]
        mlflow_client.retry_collisions(partial(self.client.log_inputs, run_id, inputs))

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
        from mfgd import plots

        for step, factors in row.snapshots:
            at = {"step": step, "timestamp": info.start_time}
            for name, picture in plots.pictures(problem, factors).items():
                self.client.log_image(info.run_id, picture, key=name, synchronous=True, **at)

    def finish(
        self, status: str, run_ids: Sequence[str], unfinished: Sequence[Point]
    ) -> pandas.DataFrame:
        if self.parent is None:
            return table_of([self.client.get_run(run_id) for run_id in run_ids])
        try:
            self._kill_unended_children(self.parent)
            runs = load_runs(parent=self.parent, experiment=self.experiment, uri=self.uri)
            self._summarize(self.parent, runs, unfinished)
        finally:
            self.client.set_terminated(self.parent, status)
        return runs

    def _kill_unended_children(self, parent: str) -> None:
        """Ends the runs that a process which died was writing."""
        running = f"attributes.status = 'RUNNING' and {mlflow_client.children_of(parent)}"
        for run in self.client.search_runs([self.experiment_id], running):
            self.client.set_terminated(run.info.run_id, "KILLED")

    def _summarize(self, parent: str, runs: pandas.DataFrame, unfinished: Sequence[Point]) -> None:
        from mfgd.sweep_plots import overview

        counts = {}
        with self._artifacts(self.client.get_run(parent).info) as folder:
            if len(runs):
                counts = dict(runs["tags.outcome"].value_counts())
                runs.to_csv(folder / "summary.csv", index=False)
                (folder / "figures").mkdir()
                overview(runs).savefig(folder / "figures" / "overview.png")
            if unfinished:
                counts["unfinished"] = len(unfinished)
                lines = [shlex.join(point.arguments) + "\n" for point in unfinished]
                (folder / "unfinished.txt").write_text("".join(lines), encoding="utf-8")
        for outcome, count in counts.items():
            self.client.log_metric(parent, f"runs.{outcome}", count)

    def location(self) -> str:
        # The table of runs is not the page that the UI opens by itself.
        page = f"#/experiments/{self.experiment_id}/runs"
        address = mlflow_client.hide_password(self.given)
        if address.startswith("http"):
            where = f"{address.rstrip('/')}/{page}"
        else:
            ui = f"mlflow ui --backend-store-uri {shlex.quote(address)}"
            where = f"{ui}  and open  http://127.0.0.1:5000/{page}"
        return f"compare in the browser:  {where}"


def attach(run_id: str, folder: Path, uri: str | None = None) -> None:
    """Adds the files of a folder to the artifacts of a tracked run.

    Args:
        run_id: as the table and the UI show it.
        folder: its files are added, and its folders.
        uri: where the run was tracked; as for `load_run`.
    """
    client = mlflow_client.connect(uri, writing=True)
    experiment_id = client.get_run(run_id).info.experiment_id
    mlflow_experiment.find_place(client.get_experiment(experiment_id))
    client.log_artifacts(run_id, str(folder))
