"""The database of a store: its address, its schema, and its first set-up."""

from __future__ import annotations

import atexit
import os
import shlex
import shutil
import sqlite3
import tempfile
from contextlib import closing
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from mfgd.errors import Refused

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory
    from sqlalchemy import URL, Connection

MLFLOW = "MLFLOW_DISABLE_TELEMETRY=true mlflow"
"""MLflow's command for a shell, which by itself would report its use."""
PATIENCE = 120
"""Seconds that a command waits while another command sets a store up."""
LOCKS = {
    "postgresql": "SELECT pg_advisory_lock(6704100)",
    "mysql": f"SELECT GET_LOCK('mfgd', {PATIENCE})",
    "mssql": "EXEC sp_getapplock @Resource='mfgd', @LockMode='Exclusive', @LockOwner='Session'",
}
"""The lock of a database server, which the end of the connection opens."""
DRIVERS = {
    "postgresql": {
        "psycopg2": ("psycopg2", "psycopg2-binary"),
        "psycopg": ("psycopg", "psycopg[binary]"),
    },
    "mysql": {"mysqldb": ("MySQLdb", "mysqlclient"), "pymysql": ("pymysql", "pymysql")},
    "mssql": {"pyodbc": ("pyodbc", "pyodbc"), "pymssql": ("pymssql", "pymssql")},
}
"""Database → driver → the module that it needs, and the package that has the module."""
SCHEMA = Path(__file__).with_name("mlflow_schema.sql")
"""The tables of an empty SQLite store of one revision of MLflow's schema (`make schema`)."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, the error's name if it has none."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # the message would name the file again
    return (str(error).splitlines() or [type(error).__name__])[0]


def resolve(uri: str, name: str) -> str:
    """The URI of a database, with the absolute path of a SQLite file.

    Args:
        uri: the given URI.
        name: the key and the URI as a message shows them.

    Raises:
        Refused: this is no URI of a database that several processes can share.
    """
    file = find_file(uri, name)
    if file is None:
        return _choose_driver(uri, name)
    _, mark, query = uri.partition("?")
    return _address(file, name) + mark + query


def find_file(uri: str, name: str) -> Path | None:
    """The SQLite file of a URI, None for another database.

    Raises:
        Refused: as `resolve` does.
    """
    url = _parse(uri, name)
    if url.get_backend_name() != "sqlite":
        return None
    database = url.database or ":memory:"
    if database == ":memory:" or database.startswith("file:"):
        raise Refused(
            f"{name}: names no file, and each process would have a database of its own; allowed "
            "are sqlite:///FILE and tracking=memory"
        )
    if "\0" in database:
        raise Refused(f"{name}: the file has a NUL in its name; allowed is any other name")
    return Path(os.path.abspath(database))


def _choose_driver(uri: str, name: str) -> str:
    """The URI of a database server with the first of its drivers that is installed, unless the URI
    names one.

    Raises:
        Refused: no driver is installed.
    """
    dialect, mark, rest = uri.partition("://")
    drivers = DRIVERS.get(dialect, {})
    for driver, (module, _) in drivers.items():
        if find_spec(module):
            return f"{dialect}+{driver}{mark}{rest}"
    if drivers:
        packages = " or ".join(package for _, package in drivers.values())
        raise Refused(f"{name}: no driver of {dialect} is installed; needed is {packages}")
    return uri


def _parse(uri: str, name: str) -> URL:
    import sqlalchemy

    try:
        url = sqlalchemy.make_url(uri)
    except (sqlalchemy.exc.SQLAlchemyError, ValueError):
        url = None
    if url is None or "@" in (url.host or ""):
        # What SQLAlchemy or a driver says of a password cut in two would show one half of it.
        form = "SCHEME://USER:PASSWORD@HOST/NAME, with %40 for an @ in the password"
        raise Refused(f"{name}: is no URI of a database; allowed is {form}")
    return url


def _address(file: Path, name: str) -> str:
    """The URI of a SQLite file, in words that SQLAlchemy and MLflow read alike: SQLAlchemy decodes
    what is encoded, MLflow makes the folder that the words name."""
    for path in (str(file), os.path.relpath(file)):
        if _parse(f"sqlite:///{path}", name).database == path:
            return f"sqlite:///{path}"
    raise Refused(f"{name}: MLflow cannot open {file}; allowed is a path without ? and %")


def prepare(uri: str, name: str, *, writing: bool) -> str:
    """The URI by which MLflow opens a database, which then is set up and has MLflow's schema.

    Args:
        uri: as `resolve` gives it.
        name: the key and the URI as a message shows them.
        writing: whether a database is set up if there is none.

    Raises:
        Refused: the database cannot be reached, read or (to write) written to, or another version
            of MLflow has made it.
    """
    import sqlalchemy
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException

    faults = sqlalchemy.exc.SQLAlchemyError, MlflowException, CommandError
    file = find_file(uri, name)
    try:
        if file and writing:
            _set_up_file(file, name)
        elif file:
            uri = _find_readable(file, uri, name)
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
        with closing(engine.connect()) as connection:
            _check_schema(connection, uri, name, writing)
            if file and writing:
                # Kept in the file: readers and a writer do not wait for each other, and commits are
                # cheap.
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    except (*faults, sqlite3.Error, ImportError, OSError) as error:
        raise Refused(f"{name}: {first_line(error)}") from None
    return uri


def _set_up_file(file: Path, name: str) -> None:
    """Makes a SQLite database if the file is missing or empty.

    A command that dies meanwhile leaves no half of a database: the file gets its name at the end.
    """
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise Refused(
            f"{name}: {file} cannot be written to; allowed is a file in a writable folder"
        )
    if _is_filled(file):
        return
    place = Path(f"{file}.lock")
    try:
        place.touch()  # where no file can be made, a lock would be waited for
        with FileLock(place, timeout=PATIENCE):
            if not _is_filled(file):
                draft = file.with_name(f"{file.name}.new")
                for left in (draft, Path(f"{draft}-journal"), Path(f"{draft}-wal")):
                    left.unlink(missing_ok=True)
                _make_schema(_address(draft, name))
                draft.replace(file)
            place.unlink(missing_ok=True)
    except Timeout:
        raise Refused(f"{name}: another command sets it up; if none runs, remove {place}") from None
    except OSError as error:
        raise Refused(f"{name}: cannot be set up: {error}") from None


def _find_readable(file: Path, uri: str, name: str) -> str:
    """The URI of a SQLite file, or of a copy if SQLite cannot write beside the file, as it does
    even to read."""
    if not file.exists():
        raise Refused(f"{name}: no such file; allowed is a database that holds tracked runs")
    if os.access(file, os.W_OK) and os.access(file.parent, os.W_OK):
        return uri
    beside = [Path(f"{file}{suffix}") for suffix in ("-wal", "-journal")]
    pending = tuple(path for path in beside if path.exists() and path.stat().st_size)
    versions = tuple(path.stat().st_mtime_ns for path in (file, *pending))
    return _address(_copy(file, bool(pending), versions), name)


@lru_cache(maxsize=4)
def _copy(file: Path, pending: bool, versions: tuple[int, ...]) -> Path:
    """A copy of a SQLite file, with what another process has not moved into the file yet."""
    folder = tempfile.mkdtemp(prefix="mfgd-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = Path(folder, "mlflow.db")
    mode = "mode=ro" if pending else "immutable=1"
    with (
        closing(sqlite3.connect(f"{file.as_uri()}?{mode}", uri=True)) as source,
        closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)
    return copy


def _is_filled(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def _make_schema(uri: str) -> None:
    """Makes MLflow's tables and its default experiment."""
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    if file := find_file(uri, uri):
        _copy_schema(file)
    store = SqlAlchemyStore(uri, DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)  # type: ignore[no-untyped-call]
    store.engine.dispose()


def _copy_schema(file: Path) -> None:
    """Makes MLflow's tables in a SQLite file, unless the installed MLflow has another revision of
    them than the copy: MLflow's own way, from revision to revision, takes a second."""
    statements = SCHEMA.read_text(encoding="utf-8")
    if f"'{_revisions().get_current_head()}'" in statements:
        with closing(sqlite3.connect(file)) as connection:
            connection.executescript(statements)


def _revisions() -> ScriptDirectory:
    """The versions of the schema that the installed MLflow knows."""
    import mlflow
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))


def _check_schema(connection: Connection, uri: str, name: str, writing: bool) -> None:
    """Refuses a schema of another version of MLflow, which MLflow would change without a word;
    makes the schema if there is none."""
    import mlflow
    from alembic.migration import MigrationContext

    script = _revisions()
    found = MigrationContext.configure(connection).get_current_revision()
    if found == script.get_current_head():
        return
    known = {revision.revision for revision in script.walk_revisions()}
    version = f"MLflow {mlflow.__version__}"
    if found is None and writing:
        if lock := LOCKS.get(connection.dialect.name):
            connection.exec_driver_sql(lock)
        if MigrationContext.configure(connection).get_current_revision() is None:
            connection.rollback()
            _make_schema(uri)
    elif found is None:
        raise Refused(f"{name}: holds no tables of MLflow; allowed is a store of tracked runs")
    elif found in known:
        upgrade = f"{MLFLOW} db upgrade {shlex.quote(name.partition('=')[2])}"
        raise Refused(
            f"{name}: an older MLflow than {version} made it; keep a copy, and run: {upgrade}"
        )
    else:
        raise Refused(f"{name}: a newer MLflow than {version} made it; allowed is that MLflow")
