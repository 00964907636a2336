"""Requests to a store are made again, for a while, if what stopped them can pass."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, TypeVar

from mfgd import interrupts
from mfgd.database import first_line
from mfgd.environment import change_environment
from mfgd.errors import Refused
from mfgd.passwords import hide_passwords
from mfgd.terminal import warn

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

T = TypeVar("T")
PATIENCE = 120.0
"""Seconds that a store may stay away before a process stops to wait for it."""
QUIET = 2.0
"""Seconds before the user is told: a collision of two writers passes sooner."""
PAUSES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Seconds before each new try; the last one holds from there on."""
COLLISIONS = ("database is locked", "UNIQUE constraint", "UniqueViolation", "Duplicate entry")
"""What databases say if two processes write at once."""
BUSY = (408, 429)
"""The answers of a server, besides 5xx, that say nothing of the request."""
OURS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
"""MLflow would try again by itself, for minutes and without a word."""


class Removed(Exception):
    """The database is not the file any more that it was: what is written to it is lost."""


@dataclass
class _Outage:
    """What this process knows of its store."""

    since: float | None = None
    """When the store was first found away; None while it answers."""
    told: bool = False


_outage = _Outage()


def http_status(error: MlflowException) -> int:
    """The status by which a tracking server answers with an error."""
    return int(error.get_http_status_code())  # type: ignore[no-untyped-call]


def can_pass(error: Exception) -> bool:
    """Whether the same request may succeed later: another writer was in the way, the database
    restarts, the server does not answer, the disk is full."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    if any(sign in str(error) for sign in COLLISIONS) or isinstance(error, OperationalError):
        return True
    if isinstance(error, MlflowException):
        code = http_status(error)
        return code >= 500 or code in BUSY
    return isinstance(error, OSError | Refused)  # a store that answered before is refused


def is_fault_of_store(error: Exception) -> bool:
    """Whether a store, or the way to it, raised an error, and not a program."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, OSError | Refused | MlflowException | Removed | SQLAlchemyError)


def retry(request: Callable[[], T]) -> T:
    """Makes a request until it succeeds.

    The store has `PATIENCE` from its first failure on; then each request is made once, until the
    store answers again. An interruption ends the patience.

    Raises:
        Exception: the error of the last try.
    """
    for pause in chain(PAUSES, repeat(PAUSES[-1])):
        try:
            result = request()
        except Exception as error:
            if not can_pass(error):
                raise
            now = time.monotonic()
            if _outage.since is None:
                _outage.since = now
            waited = now - _outage.since
            if waited > PATIENCE or interrupts.has_come():
                raise
            if waited > QUIET and not _outage.told:
                _outage.told = True
                said = hide_passwords(first_line(error))
                warn(f"the store does not take a run, and is tried for {PATIENCE:.0f} s: {said}")
            time.sleep(pause * (1 + random.random()))
        else:
            _outage.since, _outage.told = None, False
            return result
    raise AssertionError("the pauses have no end")


class PersistentClient:
    """MLflow's client, each request of which is made as `retry` does."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        request = getattr(self._client, name)

        def persist(*arguments: Any, **keys: Any) -> Any:
            with change_environment(OURS):
                return retry(partial(request, *arguments, **keys))

        return persist
