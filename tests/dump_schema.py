"""Writes mfgd/mlflow_schema.sql: MLflow's tables as MLflow's own steps make them in an empty SQLite
file."""

import sqlite3
import tempfile
from contextlib import closing

from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from mfgd.database import SCHEMA


def dump(uri: str) -> str:
    """The statements that make the tables of a SQLite file, with their lines.

    The line of the default experiment, which names a folder and a time, MLflow adds to any empty
    store.
    """
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        statements = [*connection.iterdump()]
    kept = [text for text in statements if not text.startswith('INSERT INTO "experiments"')]
    return "\n".join(kept) + "\n"


def dump_own(folder: str) -> str:
    """The same of a file that MLflow sets up in a folder."""
    uri = f"sqlite:///{folder}/own.db"
    SqlAlchemyStore(uri, folder).engine.dispose()
    return dump(uri)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        SCHEMA.write_text(dump_own(scratch), encoding="utf-8")
