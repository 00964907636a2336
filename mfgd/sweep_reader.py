"""Runs for a comparison: a finished sweep is read from the files that its end wrote."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mfgd import mlflow_experiment
from mfgd.database import first_line
from mfgd.errors import Refused
from mfgd.mlflow_client import PARENT_TAG, children_of, choose_uri, connect
from mfgd.mlflow_reader import (
    find_artifacts,
    find_experiment,
    load_run,
    read_table,
    search,
    table_of,
)

if TYPE_CHECKING:
    import pandas
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

SUMMARY, CURVES = "summary.parquet", "curves.parquet"
"""Artifacts of a sweep's own run: the table of its runs, and their curves as one long table."""
OWN = "fingerprint"
"""A tag of every run that mfgd solved; a run without it may have children."""


class SweepReader:
    """Reads the runs that a comparison names.

    A sweep that has ended is read from its summary, without the runs that were deleted since: what
    was logged to its runs later is not in it, unless `whole`.

    Args:
        uri: where the runs were tracked; as for `mfgd.load_run`.
        whole: whether to read every run itself.

    Raises:
        Refused: nothing is tracked at this URI.
    """

    def __init__(self, uri: str | None = None, *, whole: bool = False) -> None:
        self.uri, self.whole = uri, whole
        self.client: MlflowClient = connect(uri)

    def read_runs(self, run_ids: Sequence[str]) -> pandas.DataFrame:
        """Single runs, and the children of sweeps.

        Raises:
            Refused: there is no such run.
        """
        from mlflow.exceptions import MlflowException

        runs = []
        for run_id in run_ids:
            try:
                runs.append(self.client.get_run(run_id))
            except MlflowException as error:
                raise Refused(f"{run_id}: no such run ({first_line(error)})") from None
        return _join(self._expand(runs)).drop_duplicates("run_id", ignore_index=True)

    def read_experiments(self, names: Sequence[str]) -> pandas.DataFrame:
        """All runs of experiments, by default of the one that `mfgd.load_runs` takes; sweeps' own
        runs are no runs.

        Raises:
            Refused: there is no such experiment, or no run in it.
        """
        chosen = names or [mlflow_experiment.choose(self.client, None)]
        ids = [find_experiment(self.client, name) for name in chosen]
        above = search(self.client, ids, f"tags.`{PARENT_TAG}` IS NULL")
        runs = _join(self._expand(above))
        if not len(runs):
            raise Refused(f"experiment {', '.join(chosen)}: no runs in it")
        return runs

    def _expand(self, runs: Sequence[MlflowRun]) -> Iterator[pandas.DataFrame]:
        """Tables of runs, and of the children of those that have some."""
        single = [run for run in runs if OWN in run.data.tags]
        for run in runs:
            if OWN in run.data.tags:
                continue
            summary = None if self.whole else self._read_summary(run)
            if summary is not None:
                yield summary
            elif len(children := self._read_children(run)):
                ours = children.reindex(columns=[f"tags.{OWN}"]).notna().any(axis=1)
                yield children[ours]
                others = children.loc[~ours, "run_id"]
                yield from self._expand([self.client.get_run(run_id) for run_id in others])
            elif "mfgd" not in run.data.tags.get("mlflow.source.name", ""):
                single.append(run)
        if single:
            yield table_of(single)

    def _read_children(self, run: MlflowRun) -> pandas.DataFrame:
        info = run.info
        return read_table(self.client, self.client.tracking_uri, info.experiment_id, info.run_id)

    def _read_summary(self, run: MlflowRun) -> pandas.DataFrame | None:
        """The runs of a sweep that has ended, None if its summary is not there."""
        if run.info.status == "RUNNING":
            return None
        runs = self._read_table(run, SUMMARY)
        if runs is None:
            return None
        ids, children = [run.info.experiment_id], children_of(run.info.run_id)
        deleted = search(self.client, ids, children, deleted=True)
        return runs[~runs["run_id"].isin([run.info.run_id for run in deleted])]

    def _read_table(self, run: MlflowRun, name: str) -> pandas.DataFrame | None:
        """A parquet artifact, None if there is none."""
        import pandas
        from mlflow.exceptions import MlflowException

        folder = find_artifacts(run.info.artifact_uri, choose_uri(self.uri))
        with tempfile.TemporaryDirectory(prefix="mfgd-") as scratch:
            if folder is None:
                folder = Path(scratch)
                try:
                    self.client.download_artifacts(run.info.run_id, name, scratch)
                except (MlflowException, OSError):
                    return None
            if not (folder / name).exists():
                return None
            return pandas.read_parquet(folder / name)

    def read_curves(self, runs: pandas.DataFrame) -> pandas.DataFrame:
        """The curves of runs as one long table: run_id, step, loss and errors, and theory.*."""
        import pandas

        found, left = [], set(runs["run_id"])
        for parent in runs["parent"].dropna().unique():
            table = self._read_table(self.client.get_run(parent), CURVES)
            if table is not None:
                found.append(table[table["run_id"].isin(left)])
                left -= set(table["run_id"])
        solved = runs[runs["run_id"].isin(left) & (runs["status"] == "FINISHED")]
        for run_id in solved["run_id"]:
            trajectory = load_run(run_id, self.uri).trajectory
            found.append(trajectory.assign(run_id=run_id))
        if not found:
            return pandas.DataFrame({"run_id": [], "step": []})
        return _join(found)


def _join(tables: Iterable[pandas.DataFrame]) -> pandas.DataFrame:
    """Tables below each other; a column is that of any of them."""
    import pandas

    known = [table.dropna(axis=1, how="all") for table in tables if len(table)]
    return pandas.concat(known, ignore_index=True) if known else pandas.DataFrame()
