"""The MLflow experiment of a shell line, and the place of its artifacts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mfgd.database import first_line
from mfgd.errors import Refused
from mfgd.mlflow_client import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

RUN_ID = "MLFLOW_RUN_ID"
EXPERIMENT_NAME = "MLFLOW_EXPERIMENT_NAME"
EXPERIMENT_ID = "MLFLOW_EXPERIMENT_ID"
ROOT = "mlartifacts"
"""The folder of all artifacts, where a database is first used."""


def choose(client: MlflowClient, given: str | None) -> str:
    """The name of an experiment: as given, else that of MLFLOW_RUN_ID, MLFLOW_EXPERIMENT_NAME or
    MLFLOW_EXPERIMENT_ID, else "mfgd".

    Raises:
        Refused: the variables name what is not there, or contradict each other or the given name.
    """
    from mlflow.exceptions import MlflowException

    names = {"tracking.experiment": given, EXPERIMENT_NAME: os.environ.get(EXPERIMENT_NAME)}
    if given:
        del names[EXPERIMENT_NAME]  # as in MLflow, what is said goes before what is set
    for variable, find in ((RUN_ID, _experiment_of_run), (EXPERIMENT_ID, _experiment_of_id)):
        value = os.environ.get(variable)
        if not value or (variable == EXPERIMENT_ID and given):
            continue
        try:
            names[f"{variable}={value}"] = find(client, value)
        except MlflowException as error:
            raise Refused(f"{variable}={value}: {first_line(error)}") from None
    named = {key: name for key, name in names.items() if name}
    if len(set(named.values())) > 1:
        said = ", ".join(f"{key} says {name}" for key, name in named.items())
        raise Refused(f"{said}; allowed is one experiment")
    return next(iter(named.values()), "mfgd")


def _experiment_of_run(client: MlflowClient, run_id: str) -> str:
    run = client.get_run(run_id)
    if run.info.lifecycle_stage != "active":
        raise Refused(f"{RUN_ID}={run_id}: was deleted; allowed is a run that is there")
    return client.get_experiment(run.info.experiment_id).name


def _experiment_of_id(client: MlflowClient, experiment_id: str) -> str:
    return client.get_experiment(experiment_id).name


def find_or_create(client: MlflowClient, name: str, root: Path | None) -> str:
    """The id of an experiment whose artifacts can be written.

    Args:
        client: the connection.
        name: of the experiment.
        root: the folder for the artifacts of a new experiment; None if the server has a place.

    Raises:
        Refused: the experiment cannot be made, was deleted, or its artifacts cannot be written.
    """
    known = client.get_experiment_by_name(name) or _create(client, name, root)
    if known.lifecycle_stage != "active":
        raise Refused(f"tracking.experiment={name}: was deleted; allowed is a name not in use")
    find_place(known)
    return known.experiment_id


def find_place(experiment: Experiment) -> None:
    """Makes the folder of an experiment's artifacts, if they are on this machine.

    Raises:
        Refused: the folder was moved, or cannot be made or written to.
    """
    folder = local_folder(experiment.artifact_location)
    if folder is None:
        return
    # mlartifacts/NAME may be missing, as for an experiment without runs.
    if not folder.parent.parent.exists():
        raise Refused(
            f"tracking.experiment={experiment.name}: its artifacts were in {folder}, which is "
            "gone; allowed is another name, or to move them back"
        )
    _make_writable(folder)


def _create(client: MlflowClient, name: str, root: Path | None) -> Experiment:
    from mlflow.exceptions import MlflowException

    place, reason = None, ""
    if root:
        folder = root / _folder_name(name)
        _make_writable(folder)
        place = folder.as_uri()
    try:
        client.create_experiment(name, place)
    except MlflowException as error:
        reason = first_line(error)
    known = client.get_experiment_by_name(name)  # perhaps another command has made it
    if known is None:
        raise Refused(f"tracking.experiment={name}: {reason}")
    return known


def _folder_name(experiment: str) -> str:
    """The name of an experiment as the name of one folder, on any file system."""
    name = re.sub(r"[^\w .,+=@-]", "_", experiment)[:60].strip()
    return name if name.strip(".") else "_"


def _make_writable(folder: Path) -> None:
    """Makes a folder for artifacts.

    Raises:
        Refused: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"{folder}: cannot be made for artifacts: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise Refused(f"{folder}: cannot be written to; allowed is a writable folder for artifacts")


def local_folder(uri: str) -> Path | None:
    """The folder of an artifact URI, None if it is not on this machine."""
    place = urlsplit(uri)
    if place.scheme not in ("file", "") or place.netloc:
        return None
    return Path(url2pathname(place.path if place.scheme else uri))


def attach(run_id: str, folder: Path, uri: str | None = None) -> None:
    """Adds the files of a folder to the artifacts of a tracked run.

    Args:
        run_id: as the table and the UI show it.
        folder: its files are added, and its folders.
        uri: where the run was tracked; as for `load_run`.
    """
    client = connect(uri, writing=True)
    experiment_id = client.get_run(run_id).info.experiment_id
    find_place(client.get_experiment(experiment_id))
    client.log_artifacts(run_id, str(folder))
