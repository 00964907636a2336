"""The stores that people have, for tests and for tests/faults.py: a file, PostgreSQL, a server."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import closing, suppress
from pathlib import Path

import sqlalchemy
from conftest import UNMEASURED

PLACES = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), Path("/usr/bin")]
BIN = next((place for place in PLACES if (place / "pg_ctl").exists()), None)
"""Where Debian's package postgresql has its programs; None if it is not installed."""
USER = "postgres"


def find_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Postgres:
    """A PostgreSQL of its own, with an empty database for each name that is asked for."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self.port = find_port()
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            shutil.chown(self.folder, USER)
        self._run("initdb", "--username=me", "--auth=trust", "--no-sync", "--pgdata", self._data)
        self.start()

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(BIN / program), *arguments]
        if os.getuid() == 0:
            command = ["runuser", "-u", USER, "--", *command]
        subprocess.run(command, check=True, cwd=self.folder, stdout=subprocess.DEVNULL)

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c fsync=off"
        log = str(self.folder / "log")
        self._run("pg_ctl", "start", "--wait", "--pgdata", self._data, "--log", log, "-o", options)

    def stop(self) -> None:
        """Stops it as a restart of the machine does: connections are cut."""
        self._run("pg_ctl", "stop", "--wait", "--mode=fast", "--pgdata", self._data)

    def make(self, name: str) -> str:
        """The URI of a new, empty database."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "me", name)
        return f"postgresql://me@127.0.0.1:{self.port}/{name}"

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)


class FileStore:
    """A SQLite file in the folder of the command, where mfgd tracks by itself."""

    line: tuple[str, ...] = ()
    """What a shell line says of the store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = f"sqlite:///{folder}/mlflow.db"

    def query(self, text: str) -> list:
        """Lines of the database, none if there is no such table yet."""
        if self.database.startswith("sqlite") and not (self.folder / "mlflow.db").exists():
            return []
        engine = sqlalchemy.create_engine(self.database, poolclass=sqlalchemy.NullPool)
        with suppress(sqlalchemy.exc.DBAPIError), engine.connect() as connection:
            return list(connection.exec_driver_sql(text))
        return []

    def find_artifacts(self, uri: str) -> Path:
        """The folder of a run's artifacts."""
        return Path(uri.removeprefix("file://"))

    def restart(self) -> None:
        """Has the store away for a while: another program writes into the file."""
        with closing(sqlite3.connect(self.folder / "mlflow.db", timeout=60)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            time.sleep(25)  # longer than MLflow waits by itself

    def remove(self) -> None:
        pass


class PostgresStore(FileStore):
    """A database of a PostgreSQL of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.postgres = folder, Postgres()
        self.database = self.postgres.make("runs").replace("postgresql:", "postgresql+psycopg:")
        self.line = (f"tracking.uri={self.database}",)

    def restart(self) -> None:
        self.postgres.stop()
        time.sleep(2)
        self.postgres.start()

    def remove(self) -> None:
        self.postgres.remove()


class ServerStore(PostgresStore):
    """`mlflow server`, with PostgreSQL behind and artifacts proxied."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = find_port()
        self.line = (f"tracking.uri=http://127.0.0.1:{self.port}",)
        self.place = Path(tempfile.mkdtemp(prefix="server-"))
        self.start()

    def find_artifacts(self, uri: str) -> Path:
        return self.place / "artifacts" / uri.removeprefix("mlflow-artifacts:/")

    def start(self) -> None:
        arguments = ["--backend-store-uri", self.database, "--artifacts-destination", "artifacts"]
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "2"]
        command = [sys.executable, "-m", "mlflow", "server", *arguments, *where]
        with open(self.place / "log", "ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.place,
                stdout=log,
                stderr=log,
                env={**UNMEASURED, "MLFLOW_DISABLE_TELEMETRY": "true"},
                start_new_session=True,
            )
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5)
            except OSError:
                alive = self.process.poll() is None and time.monotonic() < until
                assert alive, (self.place / "log").read_text()
                time.sleep(0.2)
            else:
                return

    def stop(self) -> None:
        """Stops the server at once, as an accident does."""
        os.killpg(self.process.pid, 9)
        self.process.wait()

    def restart(self) -> None:
        self.stop()
        super().restart()
        self.start()

    def remove(self) -> None:
        self.stop()
        super().remove()
        shutil.rmtree(self.place)


STORES = {"sqlite": FileStore, "postgresql": PostgresStore, "server": ServerStore}
