"""The connection to MLflow: a database or a tracking server, probed before it is used."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from mfgd import database
from mfgd.database import first_line
from mfgd.environment import change_environment
from mfgd.errors import Refused
from mfgd.passwords import HIDDEN, hide_password
from mfgd.retry import PersistentClient

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from mfgd.tracked import MetricPoint

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
METRICS_A_REQUEST = 1000
PARAMS_A_REQUEST = 100
PARENT_TAG = "mlflow.parentRunId"
AT_ONCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Lets a request fail that a server does not answer; MLflow would try again for minutes."""
UNTRUSTED = (
    "its certificate is not trusted; MLFLOW_TRACKING_SERVER_CERT_PATH names certificates to trust, "
    "MLFLOW_TRACKING_INSECURE_TLS=true trusts any"
)
LOGIN = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD decide, or MLFLOW_TRACKING_TOKEN"


def choose_uri(uri: str | None) -> str:
    """A given tracking URI, else the URI in MLFLOW_TRACKING_URI, else a database in the working
    directory."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def check_uri(uri: str) -> str:
    """Returns the URI with the absolute path of a SQLite file: MLflow keeps the connection of a URI
    if the working directory changes.

    Raises:
        Refused: MLflow does not support the URI.
    """
    name = describe(uri)
    allowed = f"allowed are {', '.join(SCHEMES)} URIs"
    try:
        scheme = urlsplit(uri).scheme.partition("+")[0]
    except ValueError as error:
        raise Refused(f"{name}: {error}; {allowed}") from None
    if scheme not in SCHEMES:
        raise Refused(f"{name}: not supported; {allowed}")
    if f"{HIDDEN}@" in uri or f"={HIDDEN}" in uri:
        raise Refused(f"{name}: {HIDDEN} stands for a password; allowed is the password itself")
    return uri if scheme.startswith("http") else database.resolve(uri, name)


def describe(uri: str) -> str:
    """The key and the URI, as a message shows them."""
    return f"tracking.uri={hide_password(uri)}"


def connect(
    uri: str | None = None, *, writing: bool = False, shown: str | None = None
) -> MlflowClient:
    """The MLflow client of a tracking URI, known to answer.

    Args:
        uri: as `choose_uri` takes it.
        writing: whether a database is set up if there is none, and requests are made again if they
            fail (`mfgd.retry`).
        shown: the URI as messages show it, if not as it is.

    Raises:
        Refused: MLflow does not support the URI, or it cannot be reached, read or (to write)
            written to.
    """
    given = choose_uri(uri)
    name, uri = describe(shown or given), check_uri(given)
    with _silence_logging():
        if not uri.startswith("http"):
            uri = database.prepare(uri, name, writing=writing)
            _skip_disk_syncs()
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        client = MlflowClient(uri)
        try:
            with change_environment(AT_ONCE):
                client.search_experiments(max_results=1)
        except MlflowException as error:
            raise Refused(f"{name}: {_say_why(error)}") from None
    # MLflow logs what it raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return cast("MlflowClient", PersistentClient(client)) if writing else client


def _say_why(error: MlflowException) -> str:
    """Why the first request failed, and which variables decide."""
    text = str(error)
    if "SSLError" in text or "CERT_PATH" in text:
        return UNTRUSTED
    status = re.search(r"(?:too many|error code) (\d{3})\b", text)
    code = int(status[1]) if status else 0
    if code in (401, 403):
        return f"the server answers {code}; {LOGIN}"
    if code:
        return f"the server answers {code}"
    if "valid JSON" in text:
        return "what answers is no tracking server"
    if cause := re.search(r"Caused by (\w+)", text):
        return f"no tracking server answers ({cause[1]})"
    return first_line(error)


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


def children_of(parent: str) -> str:
    """MLflow's filter for the children of a run."""
    return f"tags.`{PARENT_TAG}` = '{parent}'"


def log_batches(
    client: MlflowClient,
    run_id: str,
    texts: Mapping[str, str],
    points: Iterable[MetricPoint],
    tags: Mapping[str, str],
) -> None:
    """Logs params, metric points and tags of a run, in requests of a size that MLflow takes."""
    from mlflow.entities import Metric, Param, RunTag

    marks = [RunTag(key, text) for key, text in tags.items()]
    params = [Param(key, text) for key, text in texts.items()]
    metrics = [Metric(*values) for values in points]
    while params or metrics or marks:
        lot = metrics[:METRICS_A_REQUEST], params[:PARAMS_A_REQUEST], marks
        client.log_batch(run_id, *lot)
        params, metrics, marks = params[PARAMS_A_REQUEST:], metrics[METRICS_A_REQUEST:], []
