"""The connection to MLflow: a database or a tracking server, probed before it is used."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mfgd.types import Refused

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")
SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https")
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""MLflow would report its use, print two lines and draw bars for every run of a thousand."""
for _name, _value in QUIET.items():
    # MLflow reads these when it is imported, here or in a process that starts from this process.
    os.environ.setdefault(_name, _value)
COLLISIONS = ("database is locked", "UNIQUE constraint", "UniqueViolation", "Duplicate entry")
"""What databases say if two processes write at once."""
PAUSES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Seconds before each new try at a locked database."""
PARENT_TAG = "mlflow.parentRunId"


def choose_uri(uri: str | None) -> str:
    """A given tracking URI, else the URI in MLFLOW_TRACKING_URI, else a database in the working
    directory."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def hide_password(uri: str) -> str:
    """The URI as it may be printed."""
    parts = urlsplit(uri)
    return uri if parts.password is None else uri.replace(f":{parts.password}@", ":***@")


def connect(uri: str | None = None, *, writing: bool = False) -> MlflowClient:
    """The MLflow client of a tracking URI, known to answer.

    Args:
        uri: as `choose_uri` takes it.
        writing: whether a SQLite file is set up if there is none.

    Raises:
        Refused: MLflow does not support the URI, or it cannot be reached, read or (to write)
            written to.
    """
    uri = choose_uri(uri)
    name = f"tracking.uri={hide_password(uri)}"
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme not in SCHEMES:
        raise Refused(f"{name}: not supported; allowed are {', '.join(SCHEMES)} URIs")
    if scheme.startswith("http"):
        _probe_server(uri, name)
    else:
        uri = _probe_database(uri, name, writing)
        _skip_disk_syncs()
    with _silence_logging():
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        client = MlflowClient(uri)
        try:
            client.search_experiments(max_results=1)  # MLflow sets a new database up here
        except MlflowException as error:
            raise Refused(f"{name}: {first_line(error)}") from None
    return client


def _probe_server(uri: str, name: str) -> None:
    """Asks a server once; MLflow itself would try again for minutes."""
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=5)
    except requests.RequestException as error:
        raise Refused(f"{name}: no tracking server answers ({type(error).__name__})") from None


def _probe_database(uri: str, name: str, writing: bool) -> str:
    """The URI with the absolute path of a SQLite file.

    MLflow keeps the connection of a URI if the working directory changes.
    """
    import sqlalchemy

    try:
        url = sqlalchemy.make_url(uri)
        sqlite = url.get_backend_name() == "sqlite"
        if sqlite and url.database:
            file = Path(url.database).resolve()
            url = url.set(database=str(file))
            _probe_file(file, name, writing)
        engine = sqlalchemy.create_engine(url)
        with engine.connect() as connection:
            if sqlite:
                connection.exec_driver_sql("PRAGMA schema_version")
            if sqlite and writing:
                # Kept in the file: readers and a writer do not wait for each other, and commits are
                # cheap.
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        engine.dispose()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        raise Refused(f"{name}: {first_line(error)}") from None
    return url.render_as_string(hide_password=False)


def _probe_file(file: Path, name: str, writing: bool) -> None:
    if writing and not os.access(file if file.exists() else file.parent, os.W_OK):
        raise Refused(
            f"{name}: {file} cannot be written to; allowed is a file in a writable folder"
        )
    if not writing and not file.exists():
        raise Refused(f"{name}: no such file; allowed is a database that holds tracked runs")


@cache
def _skip_disk_syncs() -> None:
    """Lets SQLite commit without waiting for the disk: a power cut may lose the last runs, and
    harms no other run."""
    import sqlalchemy

    @sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "connect")
    def relax(connection: Any, record: Any) -> None:
        if "sqlite" in type(connection).__module__:
            connection.execute("PRAGMA synchronous=NORMAL")


@contextmanager
def _silence_logging() -> Iterator[None]:
    """Keeps MLflow's notes on the set-up of a database off the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)


def retry_collisions(request: Callable[[], T]) -> T:
    """Repeats a request that collides with another process: SQLite refuses a writer that it cannot
    queue, and a dataset that both processes find missing is made twice."""
    from mlflow.exceptions import MlflowException

    for pause in PAUSES:
        try:
            return request()
        except MlflowException as error:
            if not any(sign in str(error) for sign in COLLISIONS):
                raise
            time.sleep(pause * (1 + random.random()))
    return request()


def local_artifacts(info: Any) -> Path | None:
    """The folder of a run's artifacts, None if it is not on this machine."""
    place = urlsplit(info.artifact_uri)
    if place.scheme != "file" or place.netloc:
        return None
    return Path(url2pathname(place.path))


def children_of(parent: str) -> str:
    """MLflow's filter for the children of a run."""
    return f"tags.`{PARENT_TAG}` = '{parent}'"


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return str(error).splitlines()[0]
