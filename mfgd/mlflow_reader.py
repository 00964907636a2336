"""Runs read back from MLflow."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mfgd import mlflow_experiment
from mfgd.columns import table_line
from mfgd.database import find_file, first_line
from mfgd.errors import Refused
from mfgd.mlflow_client import PARENT_TAG, children_of, choose_uri, connect, describe
from mfgd.mlflow_experiment import ROOT, local_folder
from mfgd.mlflow_tables import read_runs

if TYPE_CHECKING:
    import pandas
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

    from mfgd.artifacts import Replicates, Run

PAGE = 1000
"""Runs that MLflow is asked for at once."""


def load_run(run_id: str, uri: str | None = None) -> Run:
    """Config, trajectory and matrices of a tracked run.

    Args:
        run_id: as the table and the UI show it.
        uri: where the run was tracked; by default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in
            the working directory.

    Raises:
        Refused: there is no such run, or nothing is tracked at this URI.
    """
    from mfgd.artifacts import CONFIG, MATRICES, TRAJECTORY, read_run  # they import torch

    with _open_files(run_id, uri, [CONFIG, TRAJECTORY, MATRICES]) as folder:
        return read_run(folder)


def load_replicates(run_id: str, uri: str | None = None) -> Replicates:
    """The table of the replicates of a tracked run, and their factors if they were kept.

    Args:
        run_id: as for `load_run`.
        uri: as for `load_run`.

    Raises:
        Refused: the run has no replicates, or as `load_run` does.
    """
    from mfgd.artifacts import REPLICATES, STACKED, read_replicates

    with _open_files(run_id, uri, [REPLICATES], [STACKED]) as folder:
        return read_replicates(folder)


@contextmanager
def _open_files(
    run_id: str, uri: str | None, names: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[Path]:
    """A folder with artifacts of a run.

    Raises:
        Refused: there is no such run or artifact, or nothing is tracked at this URI.
    """
    from mlflow.exceptions import MlflowException

    reader = connect(uri)
    with tempfile.TemporaryDirectory(prefix="mfgd-") as scratch:
        try:
            # A local folder is read ten times as fast as MLflow hands its files over.
            folder = find_artifacts(reader.get_run(run_id).info.artifact_uri, choose_uri(uri))
            if folder is None:
                folder = Path(scratch)
                there = {file.path for file in reader.list_artifacts(run_id)}
                for name in (*names, *there.intersection(optional)):
                    reader.download_artifacts(run_id, name, scratch)
            for name in names:
                if not (folder / name).exists():
                    raise OSError(f"has no artifact {name} in {folder}")
        except (MlflowException, OSError) as error:
            raise Refused(f"run {run_id}: {first_line(error)}") from None
        yield folder


def find_artifacts(artifact_uri: str, uri: str) -> Path | None:
    """The folder of a run's artifacts: the folder that the run names, or its place beside the
    database if both were moved together; None if the artifacts are not on this machine."""
    folder = local_folder(artifact_uri)
    if folder is None or folder.exists() or uri.startswith("http") or ROOT not in folder.parts:
        return folder
    file = find_file(uri, describe(uri))
    if file is None:
        return folder
    inside = folder.parts[folder.parts.index(ROOT) :]
    moved = file.parent.joinpath(*inside)
    return moved if moved.exists() else folder


def load_runs(
    *, experiment: str | None = None, parent: str | None = None, uri: str | None = None
) -> pandas.DataFrame:
    """Tracked runs, one a line, newest first: run_id, status, parent, params.*, metrics.* (last
    values) and tags.*.

    Args:
        experiment: name of the MLflow experiment; if None, the one that MLFLOW_EXPERIMENT_NAME,
            MLFLOW_EXPERIMENT_ID or MLFLOW_RUN_ID says, else "mfgd".
        parent: id of a run, to load its children only.
        uri: where the runs were tracked; as for `load_run`.

    Raises:
        Refused: there is no such experiment, or nothing is tracked at this URI.
    """
    reader = connect(uri)
    experiment_id = find_experiment(reader, mlflow_experiment.choose(reader, experiment))
    return read_table(reader, reader.tracking_uri, experiment_id, parent)


def read_table(
    reader: MlflowClient, uri: str, experiment_id: str, parent: str | None = None
) -> pandas.DataFrame:
    """The table of the runs of an experiment, newest first.

    Args:
        reader: the connection.
        uri: what it is connected to.
        experiment_id: of the experiment.
        parent: id of a run, for its children only.
    """
    runs = read_runs(uri, experiment_id, parent)
    if runs is None:
        runs = table_of(search(reader, [experiment_id], children_of(parent) if parent else ""))
    return runs


def find_experiment(reader: MlflowClient, name: str) -> str:
    """The id of an experiment.

    Raises:
        Refused: there is none of that name.
    """
    known = reader.get_experiment_by_name(name)
    if known is None:
        names = ", ".join(sorted(other.name for other in reader.search_experiments()))
        raise Refused(f"experiment {name}: none of that name is tracked here; allowed are {names}")
    return known.experiment_id


def search(
    reader: MlflowClient, experiment_ids: Sequence[str], condition: str, *, deleted: bool = False
) -> list[MlflowRun]:
    """All runs that fulfil a condition in MLflow's words, newest first."""
    from mlflow.entities import ViewType

    view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
    found: list[MlflowRun] = []
    token = None
    while True:
        page = reader.search_runs(list(experiment_ids), condition, view, PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def table_of(runs: Sequence[MlflowRun]) -> pandas.DataFrame:
    """The table of MLflow's runs, one a line."""
    import pandas

    lines = []
    for run in runs:
        info, data = run.info, run.data
        tags = {key: text for key, text in data.tags.items() if not key.startswith("mlflow.")}
        parent = data.tags.get(PARENT_TAG)
        lines.append(table_line(info.run_id, info.status, parent, data.params, data.metrics, tags))
    return pandas.DataFrame(lines)
