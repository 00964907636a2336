"""A sweep that goes on: the sweep's own run, what its dead process left, and what is finished."""

from __future__ import annotations

import math
import os
import shlex
import socket
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mfgd.columns import short_name
from mfgd.database import first_line
from mfgd.errors import Refused
from mfgd.mlflow_client import children_of
from mfgd.mlflow_reader import read_table, search
from mfgd.retry import http_status, retry
from mfgd.terminal import warn
from mfgd.tracked import Earlier

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun
    from mlflow.entities import RunInfo

FREE = ("workers=", "batch_bytes=", "tracking.", "tracking=")
"""How overrides begin that may differ when a sweep goes on."""
LEFT = "the process that wrote the run died"
MISSING = 404
"""The answer of HTTP for what is not there."""


def identify_process() -> dict[str, str]:
    """The tags by which another process finds out whether this one lives."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": str(pid), "pid.started": _start_of(pid)}


def _start_of(pid: int) -> str:
    """When a process of this machine started, as its kernel counts; empty if there is none, or if
    the system does not say."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return told.rpartition(")")[2].split()[19]  # proc(5): starttime, behind a name of any kind


def find_sweep(client: MlflowClient, experiment_id: str, line: str, given: str | bool) -> MlflowRun:
    """The sweep's own run that a shell line goes on with.

    Args:
        client: the connection.
        experiment_id: where the sweep is.
        line: the shell line, without resume.
        given: the id of the sweep; True for the newest one of this shell line.

    Raises:
        Refused: there is none, or its process lives.
    """
    from mlflow.exceptions import MlflowException

    said = _says_of_runs(line)
    if given is True:
        sweeps = search(client, [experiment_id], "tags.pid != ''")
        same = [run for run in sweeps if _says_of_runs(run.data.tags["overrides"]) == said]
        if not same:
            raise Refused("resume=true: no sweep of this shell line; allowed is resume=ID of one")
        run = same[0]
    else:
        try:
            run = client.get_run(str(given))
        except MlflowException as error:
            raise Refused(f"resume={given}: {first_line(error)}") from None
        if run.info.experiment_id != experiment_id:
            name = client.get_experiment(run.info.experiment_id).name
            raise Refused(f"resume={given}: is of tracking.experiment={name}")
        if "pid" not in run.data.tags:
            raise Refused(f"resume={given}: is no sweep of mfgd; allowed is a sweep's own run")
        if _says_of_runs(run.data.tags["overrides"]) != said:
            # The keys that vary are params of the sweep, which MLflow does not let change.
            raise Refused(f"resume={given}: was mfgd {run.data.tags['overrides']}; allowed is that")
    if run.info.status == "RUNNING":
        _refuse_living(run, given)
    return run


def _says_of_runs(line: str) -> list[str]:
    """What a shell line says of its runs: without how they are solved and tracked."""
    words = [word for word in shlex.split(line) if word not in ("-m", "--multirun")]
    return sorted(word for word in words if not word.lstrip("+").startswith(FREE))


def _refuse_living(run: MlflowRun, given: str | bool) -> None:
    """Refuses a sweep whose process lives, or may live on another machine."""
    tags = run.data.tags
    if lives(tags):
        pid = tags["pid"]
        raise Refused(f"resume={given}: process {pid} runs this sweep; end the process first")
    if tags["host"] != socket.gethostname() and given is True:
        then = f"if it died there, give resume={run.info.run_id}"
        raise Refused(f"resume=true: the sweep runs on {tags['host']}; {then}")


def lives(process: Mapping[str, str]) -> bool:
    """Whether a process of this machine lives, by what `identify_process` gave."""
    host, pid, started = (process.get(key, "") for key in ("host", "pid", "pid.started"))
    return host == socket.gethostname() and bool(started) and _start_of(int(pid)) == started


def take_over(client: MlflowClient, run: MlflowRun, tags: dict[str, str]) -> None:
    """Makes this process the one that runs a sweep.

    Runs that raised go to MLflow's trash, because they are run again.
    """
    experiment_id, parent = run.info.experiment_id, run.info.run_id
    for key, value in (tags | identify_process()).items():
        client.set_tag(parent, key, value)
    client.update_run(parent, status="RUNNING")
    end_children(client, experiment_id, parent)
    for failed in search(client, [experiment_id], _children(parent, "FAILED")):
        client.delete_run(failed.info.run_id)


def end_children(client: MlflowClient, experiment_id: str, parent: str) -> None:
    """Ends the runs that a process which died was writing."""
    for run in search(client, [experiment_id], _children(parent, "RUNNING")):
        end_run(client, run.info.run_id)


def end_run(client: MlflowClient, run_id: str) -> None:
    """Ends a run that nobody writes any more."""
    client.set_tag(run_id, "outcome.reason", LEFT)
    client.set_terminated(run_id, "KILLED")


def find_info(client: MlflowClient, run_id: str) -> RunInfo | None:
    """MLflow's info of a run, None if there is no such run."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info
    except MlflowException as error:
        if http_status(error) == MISSING:
            return None
        raise


def revive(client: MlflowClient, experiment_id: str, parent: str) -> None:
    """Takes a sweep that was deleted while it ran out of MLflow's trash."""
    experiment = client.get_experiment(experiment_id)
    if experiment.lifecycle_stage != "active":
        client.restore_experiment(experiment_id)
        warn(f"experiment {experiment.name} was deleted while the sweep ran, and is restored")
    if client.get_run(parent).info.lifecycle_stage != "active":
        client.restore_run(parent)
        warn("the sweep's own run was deleted while the sweep ran, and is restored")


def find_finished(
    client: MlflowClient, uri: str, experiment_id: str, parent: str, known: Collection[str]
) -> list[Earlier]:
    """The finished runs of a sweep, without those that are known by their ids."""
    runs = retry(partial(read_table, client, uri, experiment_id, parent))
    if "tags.outcome" not in runs:  # none has ended
        return []
    runs = runs[(runs["status"] == "FINISHED") & runs["tags.outcome"].notna()]
    runs = runs[~runs["run_id"].isin(known)]
    metrics = [column for column in map(str, runs.columns) if column.startswith("metrics.")]
    return [
        Earlier(
            line.get("tags.fingerprint", ""),
            line["run_id"],
            line.get("metrics.final_loss", math.nan),
            line["tags.outcome"],
            {short_name(name): line[name] for name in metrics if line[name] == line[name]},
        )
        for line in runs.to_dict("records")
    ]


def _children(parent: str, status: str) -> str:
    """MLflow's filter for the children of a run that have a status."""
    return f"attributes.status = '{status}' and {children_of(parent)}"
