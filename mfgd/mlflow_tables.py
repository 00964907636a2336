"""The table of runs out of an MLflow database, by one query a table and none a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mfgd.mlflow_bulk import open_known
from mfgd.mlflow_client import PARENT_TAG

if TYPE_CHECKING:
    import pandas
    from sqlalchemy import Connection, Select

LOT = 10_000
"""Lines of a table that are fetched at once."""


def read_runs(uri: str, experiment_id: str, parent: str | None = None) -> pandas.DataFrame | None:
    """The table of the runs of an experiment, newest first, as `mfgd.load_runs` gives it.

    Args:
        uri: where the runs were tracked.
        experiment_id: of the experiment.
        parent: id of a run, for its children only.

    Returns:
        The table; None if it has to be read as MLflow does it: through a server, or from a schema
        that is not known.
    """
    engine = open_known(uri)
    if engine is None:
        return None
    import sqlalchemy
    from mlflow.store.tracking.dbmodels.models import SqlRun, SqlTag

    run, tag = SqlRun.__table__.c, SqlTag.__table__.c
    of_experiment = run.experiment_id == int(experiment_id), run.lifecycle_stage == "active"
    runs = sqlalchemy.select(run.run_uuid, run.status).where(*of_experiment)
    if parent is not None:
        children = sqlalchemy.select(tag.run_uuid).where(tag.key == PARENT_TAG, tag.value == parent)
        runs = runs.where(run.run_uuid.in_(children))
    try:
        with engine.connect() as connection:
            return _read_table(connection, runs.order_by(run.start_time.desc(), run.run_uuid))
    finally:
        engine.dispose()


def _read_table(connection: Connection, chosen: Select[Any]) -> pandas.DataFrame:
    """The table of the runs that a query of ids and statuses chooses."""
    import pandas
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlParam, SqlTag

    runs = connection.execute(chosen).all()
    if not runs:
        return pandas.DataFrame()
    places = {run_id: i for i, (run_id, _) in enumerate(runs)}
    columns: dict[str, list[Any]] = {"run_id": list(places)}
    columns |= {"status": [status for _, status in runs], "parent": [None] * len(runs)}
    ids = chosen.order_by(None).with_only_columns(chosen.selected_columns.run_uuid)
    for kind, model in {"params": SqlParam, "metrics": SqlLatestMetric, "tags": SqlTag}.items():
        found = _read_columns(connection, model, ids, places)
        if kind == "tags":
            columns["parent"] = found.get(PARENT_TAG, columns["parent"])
            found = {key: texts for key, texts in found.items() if not key.startswith("mlflow.")}
        columns |= {f"{kind}.{key}": values for key, values in found.items()}
    return pandas.DataFrame(columns)


def _read_columns(
    connection: Connection, model: Any, ids: Select[Any], places: Mapping[str, int]
) -> dict[str, list[Any]]:
    """Key → the value of each run, NaN if it has none."""
    import sqlalchemy

    table = model.__table__.c
    is_nan = table.is_nan if "is_nan" in table else sqlalchemy.false()
    lines = sqlalchemy.select(table.run_uuid, table.key, table.value, is_nan)
    lines = lines.where(table.run_uuid.in_(ids)).execution_options(yield_per=LOT)
    columns: dict[str, list[Any]] = {}
    texts: dict[str, str] = {}  # few texts stand in many lines
    for run_id, key, value, nan in connection.execute(lines):
        if key not in columns:
            columns[key] = [math.nan] * len(places)
        if run_id in places:  # a run may be written since
            told = texts.setdefault(value, value) if isinstance(value, str) else value
            columns[key][places[run_id]] = math.nan if nan else told
    return columns
