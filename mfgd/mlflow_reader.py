"""Runs read back from MLflow."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfgd.artifacts import CONFIG, MATRICES, TRAJECTORY, Run, read_run
from mfgd.mlflow_client import PARENT_TAG, children_of, connect, first_line, local_artifacts
from mfgd.tracked import table_line
from mfgd.types import Refused

if TYPE_CHECKING:
    import pandas

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
    from mlflow.exceptions import MlflowException

    reader = connect(uri)
    with tempfile.TemporaryDirectory(prefix="mfgd-") as scratch:
        try:
            # A local folder is read ten times as fast as MLflow hands its files over.
            folder = local_artifacts(reader.get_run(run_id).info)
            for name in (CONFIG, TRAJECTORY, MATRICES):
                if folder is None:
                    reader.download_artifacts(run_id, name, scratch)
                elif not (folder / name).exists():
                    raise OSError(f"has no artifact {name}")
        except (MlflowException, OSError) as error:
            raise Refused(f"run {run_id}: {first_line(error)}") from None
        return read_run(folder or Path(scratch))


def load_runs(
    *, experiment: str = "mfgd", parent: str | None = None, uri: str | None = None
) -> pandas.DataFrame:
    """Tracked runs, one a line, newest first: run_id, status, parent, params.*, metrics.* (last
    values) and tags.*.

    Args:
        experiment: name of the MLflow experiment.
        parent: id of a run, to load its children only.
        uri: where the runs were tracked; as for `load_run`.

    Raises:
        Refused: there is no such experiment, or nothing is tracked at this URI.
    """
    reader = connect(uri)
    known = reader.get_experiment_by_name(experiment)
    if known is None:
        names = ", ".join(sorted(other.name for other in reader.search_experiments()))
        raise Refused(
            f"experiment {experiment}: none of that name is tracked here; allowed are {names}"
        )
    wanted = children_of(parent) if parent else ""
    found: list[Any] = []
    ids, token = [known.experiment_id], None
    while True:
        page = reader.search_runs(ids, wanted, max_results=PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return table_of(found)


def table_of(runs: Sequence[Any]) -> pandas.DataFrame:
    """The table of MLflow's runs, one a line."""
    import pandas

    lines = []
    for run in runs:
        info, data = run.info, run.data
        tags = {key: text for key, text in data.tags.items() if not key.startswith("mlflow.")}
        parent = data.tags.get(PARENT_TAG)
        lines.append(table_line(info.run_id, info.status, parent, data.params, data.metrics, tags))
    return pandas.DataFrame(lines)
