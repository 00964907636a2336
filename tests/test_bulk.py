"""Runs that are written together: the same lines in every table as if MLflow had logged them."""

import dataclasses
import math

import numpy as np
import pandas
import pytest
import sqlalchemy
from dump_schema import dump, dump_own
from mlflow import MlflowClient

from mfgd import database, mlflow_bulk
from mfgd.mlflow_bulk import REVISIONS
from mfgd.mlflow_store import MlflowTracker
from mfgd.tracked import MetricPoint

LINE = ("--multirun", "problem=synthetic", "problem.n=8", "problem.m=7", "rank=1,2", "seed=1,2")
QUICK = ("workers=1", "tracking.figures=0", "steps=20")
ODD = [
    MetricPoint("odd", math.nan, 5, 0),
    MetricPoint("odd", math.inf, 5, 1),
    MetricPoint("odd", -math.inf, 6, 1),
    MetricPoint("odd", 1e-320, 6, 1),
    MetricPoint("twice", 1.0, 5, 2),
    MetricPoint("twice", 1.0, 5, 2),
    MetricPoint("last is nan", 2.0, 5, 2),
    MetricPoint("last is nan", math.nan, 5, 3),
]


@pytest.fixture
def odd_points(monkeypatch):
    """Every run has further metric points, with all that is odd in a metric."""
    pack = MlflowTracker._pack

    def add(self, *run):
        parcel = pack(self, *run)
        return dataclasses.replace(parcel, points=[*parcel.points, *ODD])

    monkeypatch.setattr(MlflowTracker, "_pack", add)


def read_tables(folder) -> dict[str, list]:
    """Every table, without ids and times, which differ: a run by its name."""
    engine = sqlalchemy.create_engine(f"sqlite:///{folder}/mlflow.db")
    with engine.connect() as connection:
        tables = {
            name: pandas.read_sql_query(sqlalchemy.text(f'SELECT * FROM "{name}"'), connection)
            for name in sqlalchemy.inspect(engine).get_table_names()
        }
    runs = tables["runs"]
    names = dict(zip(runs["run_uuid"], runs["name"], strict=True))
    times = ("start_time", "end_time", "timestamp", "creation_time", "last_update_time")
    found = {}
    for name, table in tables.items():
        text = table.astype(object).drop(columns=[time for time in times if time in table])
        sweeps = {name: "sweep" for name in runs["name"] if name.startswith("sweep ")}
        shorts = {**names, **sweeps, str(folder): "folder"}
        text = text.map(lambda value, shorts=shorts: shorten(value, shorts))
        if "key" in text and "value" in text:
            text = text[~text["key"].isin(["pid", "pid.started", "mlflow.note.content"])]
            text = text[~text["key"].str.contains("seconds|sharedViewState")]
        drop = [column for column in text if name in LINKS and column in OWN]
        found[name] = sorted(map(repr, text.drop(columns=drop).itertuples(index=False)))
    return found


LINKS = ("inputs", "datasets", "input_tags")
"""Tables whose lines have ids of their own."""
OWN = ("input_uuid", "dataset_uuid", "source_id")


def shorten(value, shorts):
    """A text in which ids and folders have other names."""
    if isinstance(value, str):
        for text, short in shorts.items():
            value = value.replace(text, short)
    return value


def test_every_table_is_as_mlflow_writes_it(
    here, tmp_path, tmp_path_factory, monkeypatch, odd_points
):
    alone = tmp_path_factory.mktemp("alone")
    assert here(*LINE, *QUICK).returncode == 0
    with monkeypatch.context() as there:
        there.chdir(alone)
        there.setattr(MlflowTracker, "write_together", lambda self, runs: None)
        assert here(*LINE, *QUICK).returncode == 0
    together, expected = read_tables(tmp_path), read_tables(alone)
    assert len(expected["runs"]) == 5
    assert len(expected["metrics"]) > 100
    for name, lines in expected.items():
        assert together[name] == lines, name


def test_the_schema_is_known(here, tmp_path):
    """If it is not, runs arrive as fast as before: compare the tables, and add the revision."""
    assert here("rank=1", "steps=2", "tracking.figures=0").returncode == 0
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/mlflow.db")
    with engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    assert found in REVISIONS


def test_mlflow_reads_what_was_written_together(here, tmp_path, odd_points):
    assert here(*LINE, *QUICK).returncode == 0
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs(["1"], "metrics.odd < 1 and params.rank = '2'")
    assert {run.data.params["seed"] for run in runs} == {"1", "2"}
    run = runs[0]
    assert run.data.metrics["odd"] == 1e-320
    assert np.isnan(run.data.metrics["last is nan"])
    history = client.get_metric_history(run.info.run_id, "odd")
    assert len(history) == 4
    client.set_tag(run.info.run_id, "mine", "x")
    client.log_metric(run.info.run_id, "mine", 3.0)
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"config.yaml", "trajectory.parquet", "matrices.safetensors"}


def test_mlflow_sorts_many_runs_by_an_index(here, tmp_path):
    """Without it a search of MLflow's compares each run with each other one: at 100,000 runs it did
    not answer within nine minutes, where it takes a second."""
    assert here(*LINE[:-1], "seed=range(12)", *QUICK).returncode == 0
    plans = []

    @sqlalchemy.event.listens_for(sqlalchemy.Engine, "before_cursor_execute")
    def explain(connection, cursor, statement, parameters, *_):
        if "OUTER JOIN" in statement and "anon_1" in statement:
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.append([line[3] for line in cursor.fetchall()])

    try:
        client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
        runs = client.search_runs(["1"], order_by=["metrics.final_loss ASC"])
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", explain)
    losses = [run.data.metrics["final_loss"] for run in runs if "final_loss" in run.data.metrics]
    assert len(losses) == 24
    assert losses == sorted(losses)
    (plan,) = plans
    assert any("SEARCH anon_1" in step and "INDEX" in step for step in plan)
    assert not any("SCAN anon_1" in step for step in plan)


def test_an_unknown_schema_and_long_texts_are_left_to_mlflow(here, monkeypatch, tmp_path):
    asked = []
    write = mlflow_bulk.BulkWriter.write
    monkeypatch.setattr(
        mlflow_bulk.BulkWriter, "write", lambda self, runs: asked.append(1) or write(self, runs)
    )
    assert here(*LINE, *QUICK).returncode == 0
    assert asked
    del asked[:]
    for setting in ((mlflow_bulk, "REVISIONS", ()), (mlflow_bulk, "TEXT", 10)):
        with monkeypatch.context() as there:
            there.setattr(*setting)
            assert here(*LINE, *QUICK).returncode == 0
    assert not asked
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert len(client.search_runs(["1"])) == 15


@pytest.mark.parametrize(
    ("error", "times", "tried"),
    [
        (sqlalchemy.exc.OperationalError("INSERT", {}, Exception("restarts")), 2, 5),
        (sqlalchemy.exc.IntegrityError("INSERT", {}, Exception("refused")), 1, 3),
    ],
)
def test_runs_that_are_not_taken_together_are_sent_alone(
    here, monkeypatch, tmp_path, error, times, tried
):
    asked = []
    insert = mlflow_bulk.BulkWriter._insert

    def fail(self, runs):
        asked.append([run.run_id for run in runs])
        if len(asked) <= times:
            raise error
        insert(self, runs)

    monkeypatch.setattr(mlflow_bulk.BulkWriter, "_insert", fail)
    seeds = ("rank=1,2,3", "seed=1,2", "workers=1")
    done = here(*LINE[:4], *seeds, "tracking.figures=0", "steps=20")
    assert done.returncode == 0
    assert len(asked) == tried
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs(["1"], "tags.`mlflow.parentRunId` != ''")
    assert [run.info.status for run in runs].count("FINISHED") == 6
    known = {run.info.run_id for run in client.search_runs(["1"])}
    assert {folder.name for folder in tmp_path.glob("mlartifacts/*/*")} == known


def sort_lines(statements: str) -> list[list[str]]:
    """Statements with their lines in order: MLflow's own have another order in each process."""
    lines = (statement.splitlines() for statement in statements.split(";"))
    return sorted(sorted(line.strip().rstrip(",") for line in one) for one in lines)


def test_the_copied_schema_is_that_of_the_pinned_mlflow(tmp_path):
    """If MLflow was updated: `make schema`."""
    head = database._revisions().get_current_head()
    assert f"VALUES('{head}')" in database.SCHEMA.read_text()
    ours = f"sqlite:///{tmp_path}/ours.db"
    database._make_schema(ours)
    assert sort_lines(dump(ours)) == sort_lines(dump_own(str(tmp_path)))
    (experiment,) = MlflowClient(ours).search_experiments()
    assert (experiment.name, experiment.experiment_id) == ("Default", "0")


def test_mlflow_makes_a_schema_that_is_not_copied(tmp_path, monkeypatch):
    other = tmp_path / "other.sql"
    other.write_text("CREATE TABLE alembic_version (version_num VARCHAR(32));")
    monkeypatch.setattr(database, "SCHEMA", other)
    ours = f"sqlite:///{tmp_path}/ours.db"
    database._make_schema(ours)
    assert sort_lines(dump(ours)) == sort_lines(dump_own(str(tmp_path)))
