"""Many runs in one transaction of an MLflow database, without a query a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mfgd.mlflow_experiment import local_folder
from mfgd.retry import retry

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from mfgd.mlflow_parcel import Parcel  # it imports torch

REVISIONS = ("dc11669786a5", "7d34483879f0")
"""The schemas for which tests/test_bulk.py has compared every table with runs that MLflow itself
wrote: of MLflow 3.17 and of 3.12."""
LARGEST = 1.7976931348623157e308
"""MLflow keeps infinity as the largest number."""
KEY, TEXT, NAME = 250, 5000, 250
"""Characters that MLflow takes in any version: of a key, of a value, of a run's name."""


class Numbered(NamedTuple):
    """A parcel with what it gets on its way."""

    run_id: str
    parcel: Parcel
    tags: Mapping[str, str]


class BulkWriter:
    """Writes runs of an experiment, many at once.

    Args:
        engine: the database, of a schema in `REVISIONS`.
        experiment_id: where the runs go.
        location: the URI of the experiment's artifacts.
        folder: the same as a folder of this machine.
    """

    def __init__(self, engine: Engine, experiment_id: int, location: str, folder: Path) -> None:
        self._engine, self._experiment_id = engine, experiment_id
        self._location, self._folder = location.rstrip("/"), folder

    def write(self, runs: Sequence[Numbered]) -> None:
        """Writes runs with their artifacts: all of them or none.

        Raises:
            Exception: the database took none, or a file cannot be written.
        """
        folders = [Path(self._folder, run.run_id, "artifacts") for run in runs]
        try:
            for folder, run in zip(folders, runs, strict=True):
                retry(partial(_write_files, folder, run.parcel.write_files))
            retry(partial(self._insert, runs))
        except Exception:
            for folder in folders:
                shutil.rmtree(folder.parent, ignore_errors=True)
            raise

    def _insert(self, runs: Sequence[Numbered]) -> None:
        with self._engine.begin() as connection:
            if self._engine.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA busy_timeout = 20000")  # as MLflow has it
            self._refuse_deleted(connection)
            for table, lines in self._list_lines(runs):
                if lines:
                    connection.execute(table.insert(), lines)
            if self._engine.dialect.name == "sqlite":
                _count_lines(connection)

    def _refuse_deleted(self, connection: Connection) -> None:
        import sqlalchemy
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
        from mlflow.store.tracking.dbmodels.models import SqlExperiment

        table = SqlExperiment.__table__.c
        stage = sqlalchemy.select(table.lifecycle_stage)
        found = stage.where(table.experiment_id == self._experiment_id)
        if connection.execute(found).scalar() != "active":
            raise MlflowException("the experiment was deleted", INVALID_PARAMETER_VALUE)

    def _list_lines(self, runs: Sequence[Numbered]) -> list[tuple[Any, list[dict[str, Any]]]]:
        """Tables, and the lines that come into each."""
        from mlflow.store.tracking.dbmodels import models

        points = [_list_points(run) for run in runs]
        lines: dict[Any, Iterable[list[dict[str, Any]]]] = {
            models.SqlRun: map(self._list_run, runs),
            models.SqlTag: map(_list_tags, runs),
            models.SqlParam: map(_list_params, runs),
            models.SqlMetric: points,
            models.SqlLatestMetric: map(_choose_latest, points),
        }
        return [(kind.__table__, list(chain.from_iterable(found))) for kind, found in lines.items()]

    def _list_run(self, run: Numbered) -> list[dict[str, Any]]:
        line = {
            "run_uuid": run.run_id,
            "name": run.parcel.name,
            "source_type": "UNKNOWN",
            "source_name": "",
            "entry_point_name": "",
            "user_id": run.tags.get("mlflow.user", "unknown"),
            "status": run.parcel.status,
            "start_time": run.parcel.start,
            "end_time": run.parcel.end,
            "deleted_time": None,
            "source_version": "",
            "lifecycle_stage": "active",
            "artifact_uri": f"{self._location}/{run.run_id}/artifacts",  # as MLflow has it
            "experiment_id": self._experiment_id,
        }
        return [line]


def _count_lines(connection: Connection) -> None:
    """Lets SQLite know how many lines the tables have, in a millisecond.

    If it does not know, MLflow's search for the best runs compares each run with each other one.
    What a connection knew when it was opened it keeps, so few lines are not counted.
    """
    if connection.exec_driver_sql("SELECT 1 FROM runs LIMIT 1 OFFSET 20").scalar():
        connection.exec_driver_sql("PRAGMA analysis_limit = 400")
        connection.exec_driver_sql("ANALYZE")


def _list_tags(run: Numbered) -> list[dict[str, Any]]:
    tags = {"mlflow.runName": run.parcel.name, **run.tags, **run.parcel.outcome}
    return [{"key": key, "value": text, "run_uuid": run.run_id} for key, text in tags.items()]


def _list_params(run: Numbered) -> list[dict[str, Any]]:
    params = run.parcel.params.items()
    return [{"key": key, "value": text, "run_uuid": run.run_id} for key, text in params]


def _list_points(run: Numbered) -> list[dict[str, Any]]:
    """The metric points of a run, each once."""
    lines = {}
    for name, value, milliseconds, step in run.parcel.points:
        is_nan = value != value
        number = 0.0 if is_nan else min(max(value, -LARGEST), LARGEST)
        lines[name, number, is_nan, milliseconds, step] = {
            "key": name,
            "value": number,
            "is_nan": is_nan,
            "timestamp": milliseconds,
            "step": step,
            "run_uuid": run.run_id,
        }
    return list(lines.values())


def _choose_latest(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The point of each metric that MLflow shows: of the last step, time and value."""
    latest: dict[str, dict[str, Any]] = {}
    for point in points:
        known = latest.get(point["key"])
        if known is None or _order(point) > _order(known):
            latest[point["key"]] = point
    return list(latest.values())


def _order(point: Mapping[str, Any]) -> tuple[int, int, float]:
    return point["step"], point["timestamp"], point["value"]


def _write_files(folder: Path, write: Callable[[Path], None]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder)


def fits(parcel: Parcel, tags: Mapping[str, str]) -> bool:
    """Whether no text of a run is so long that MLflow would cut or refuse it."""
    texts = {**tags, **parcel.outcome, **parcel.params}
    names = [*texts, *(point.name for point in parcel.points)]
    return (
        len(parcel.name) <= NAME
        and max(map(len, names), default=0) <= KEY
        and max(map(len, texts.values()), default=0) <= TEXT
    )


def open_known(uri: str) -> Engine | None:
    """A database whose tables are known; None if there is a server before it, or its schema is not
    in `REVISIONS`."""
    if uri.startswith("http"):
        return None
    import sqlalchemy
    from alembic.migration import MigrationContext

    engine = sqlalchemy.create_engine(uri, pool_pre_ping=True)
    with engine.connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
    return engine if revision in REVISIONS else None


def open_bulk(uri: str, experiment_id: str) -> BulkWriter | None:
    """The writer for an experiment; None if it has to be written as MLflow does it: through a
    server, into a schema that is not known, or with artifacts elsewhere."""
    engine = open_known(uri)
    if engine is None:
        return None
    import sqlalchemy
    from mlflow.store.tracking.dbmodels.models import SqlExperiment

    table, number = SqlExperiment.__table__.c, int(experiment_id)
    place = sqlalchemy.select(table.artifact_location).where(table.experiment_id == number)
    with engine.connect() as connection:
        location = connection.execute(place).scalar()
    if location is None or (folder := local_folder(location)) is None:
        return None
    return BulkWriter(engine, number, location, folder)
