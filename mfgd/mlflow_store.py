"""The tracker that writes runs to MLflow."""

from __future__ import annotations

import getpass
import os
import shlex
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from mfgd import mlflow_client, mlflow_experiment, mlflow_resume
from mfgd.database import MLFLOW, first_line
from mfgd.errors import NotWritten
from mfgd.mlflow_parcel import Parcel, pack_error, pack_row
from mfgd.mlflow_reader import table_of
from mfgd.mlflow_sender import Sender
from mfgd.mlflow_sweep import Sweep, end_sweep
from mfgd.outbox import FOLDER, Outbox
from mfgd.passwords import hide_password, hide_passwords
from mfgd.point import Point
from mfgd.record import Row
from mfgd.retry import is_fault_of_store
from mfgd.target import Problem
from mfgd.terminal import warn
from mfgd.tracked import Earlier, Written, find_commit

if TYPE_CHECKING:
    import pandas
    from mlflow import MlflowClient

MODULES = ["mlflow", "mlflow.store.tracking.sqlalchemy_store", "pyarrow.parquet"]
"""The imports of a process that writes."""
AT_THE_END = ["mfgd.page", "mfgd.phase", "mfgd.sweep_plots"]
"""The imports of the process that ends a sweep."""
KEPT = ("experiment", "figures", "points", "parent", "resumed", "expected", "tags", "line", "name")
"""What `MlflowTracker.reopen` takes from an outbox."""


class MlflowTracker:
    """Writes to an MLflow experiment; see `mfgd.tracking.Tracker` for its methods.

    Args:
        uri: the tracking URI.
        experiment: name of the MLflow experiment; None as `mlflow_experiment.choose` takes it.
        figures: a run is drawn in a sweep of up to so many runs.
        points: how many metric points a sweep logs in all.
    """

    shared = True

    def __init__(self, uri: str, experiment: str | None, figures: float, points: int) -> None:
        self.given, self.uri = uri, mlflow_client.check_uri(uri)
        self.experiment, self.figures, self.points = experiment, figures, points
        self.parent: str | None = None
        self.resumed = False
        self.expected = self.unsent = 0
        self.tags: dict[str, str] = {}
        """Of each run, and of the sweep's own run."""
        self.process = mlflow_resume.identify_process()
        """The process of the command, which its workers share."""
        self.write_more: Callable[[Path], None] | None = None
        """Writes the files that the sweep's own run has beside its table."""
        self.line = self.name = self.view = ""
        """The view is the query of an address that opens the saved view; empty if there is none."""

    def open(self, sweep: Sequence[str] | None) -> None:
        client, experiment_id = self._enter(sweep)
        if sweep is not None:
            self.name = f"sweep {time.strftime('%Y-%m-%d %H:%M:%S')}"
            self.parent = self._start_sweep(client, experiment_id)
        self._set_out(client, experiment_id)

    def resume(self, sweep: Sequence[str], given: str | bool) -> None:
        client, experiment_id = self._enter(sweep)
        run = mlflow_resume.find_sweep(client, experiment_id, self.line, given)
        mlflow_resume.take_over(client, run, {"overrides": self.line})
        self.name, self.parent, self.resumed = run.info.run_name, run.info.run_id, True
        self._set_out(client, experiment_id)
        self._deliver({})

    def reopen(self, outbox: Outbox) -> None:
        """Goes on where a command left an outbox."""
        state = outbox.state
        for key in KEPT:
            setattr(self, key, state[key])
        client = mlflow_client.connect(self.uri, writing=True, shown=self.given)
        known = mlflow_resume.find_info(client, self.parent) if self.parent else None
        if known is not None:
            experiment_id = known.experiment_id  # whatever its name is now
        else:
            experiment_id = self._find_experiment(client)
            if self.parent:  # the store was made anew
                self.parent = self._start_sweep(client, experiment_id)
        self._set_out(client, experiment_id, outbox)
        self.write_more = outbox.write_files

    def find_finished(self, known: Collection[str]) -> list[Earlier]:
        assert self.parent is not None
        sender, outbox = self.sender, self.sender.outbox
        place = sender.client, sender.uri, sender.experiment_id, self.parent
        found = mlflow_resume.find_finished(*place, known)
        for name in outbox.names():
            kept = outbox.read(name)
            if name not in known and kept.status == "FINISHED":
                fingerprint, outcome = kept.tags["fingerprint"], kept.outcome["outcome"]
                values = {point.name: point.value for point in kept.points}  # the last of each
                found.append(Earlier(fingerprint, name, kept.loss, outcome, values))
        return found

    def _enter(self, sweep: Sequence[str] | None) -> tuple[MlflowClient, str]:
        """The connection, and the experiment of the shell line, which is made if there is none."""
        client = mlflow_client.connect(self.uri, writing=True, shown=self.given)
        self.line = shlex.join(sweep or ())
        self.experiment = mlflow_experiment.choose(client, self.experiment)
        self.tags = {
            "git_commit": find_commit(),
            "mlflow.source.name": "mfgd",
            "mlflow.source.type": "LOCAL",
        }
        with suppress(KeyError, OSError):  # the user of a container may have no name
            self.tags["mlflow.user"] = getpass.getuser()
        if above := os.environ.get(mlflow_experiment.RUN_ID):
            self.tags[mlflow_client.PARENT_TAG] = above
        return client, self._find_experiment(client)

    def _find_experiment(self, client: MlflowClient) -> str:
        assert self.experiment is not None
        root = None if self.uri.startswith("http") else Path.cwd() / mlflow_experiment.ROOT
        return mlflow_experiment.find_or_create(client, self.experiment, root)

    def _start_sweep(self, client: MlflowClient, experiment_id: str) -> str:
        tags = self.tags | {"overrides": self.line} | self.process
        run = client.create_run(experiment_id, tags=tags, run_name=self.name)
        return str(run.info.run_id)

    def _set_out(
        self, client: MlflowClient, experiment_id: str, outbox: Outbox | None = None
    ) -> None:
        outbox = outbox or Outbox(Path.cwd() / FOLDER / (self.parent or uuid4().hex))
        self.sender = Sender(client, self.uri, self.given, experiment_id, self.parent, outbox)

    def expect(self, runs: int) -> None:
        self.expected = runs

    def keep_files(self, write: Callable[[Path], None]) -> None:
        self.write_more = write

    def write(self, point: Point, result: Row | Exception, problem: Problem | None) -> str:
        parcel = self._pack(point, result, problem)
        tries: list[str] = []
        try:
            return self.sender.send(parcel, tries.append)
        except Exception as why:
            try:
                self._write_state("RUNNING", [])
                return self.sender.keep(parcel, tries, why)
            except Exception as error:
                said = f"{hide_passwords(first_line(why))}; on the disk: {first_line(error)}"
                raise NotWritten(f"the run could not be written: {said}") from error

    def write_together(
        self, runs: Sequence[tuple[Point, Row | Exception, Problem | None]]
    ) -> list[str] | None:
        if self.drawn or not self.parent:
            return None
        try:
            return self.sender.send_together([self._pack(*run) for run in runs])
        except Exception as error:
            if not is_fault_of_store(error):
                raise
            return None  # the store says of each run why

    def _pack(self, point: Point, result: Row | Exception, problem: Problem | None) -> Parcel:
        if isinstance(result, Exception):
            return pack_error(point, result, self.tags)
        assert problem is not None
        return pack_row(
            point,
            result,
            problem,
            self.tags,
            drawn=self.drawn,
            # In a large sweep a dataset would take a third of the time that a run takes.
            keeps_data=self.drawn or not self.parent,
            most=self.points // max(self.expected, 1),
        )

    @property
    def drawn(self) -> bool:
        """Whether each run has figures and images."""
        return self.expected <= self.figures

    def _write_state(self, status: str, unfinished: Sequence[str]) -> None:
        """Keeps beside the unsent runs what `mfgd-sync` needs to know."""
        state = {key: getattr(self, key) for key in KEPT}
        state |= {"uri": hide_password(self.uri), "status": status, "unfinished": unfinished}
        self.sender.outbox.write_state(state | self.process)

    def _keep_files(self) -> None:
        """Keeps the files of the sweep's own run for `mfgd-sync`."""
        outbox, write = self.sender.outbox, self.write_more
        if write is not None and write != outbox.write_files:
            outbox.keep_files(write)

    def finish(
        self, status: str, written: Mapping[str, Written], unfinished: Sequence[Point]
    ) -> pandas.DataFrame:
        return self.end(status, written, [shlex.join(point.arguments) for point in unfinished])

    def end(
        self, status: str, written: Mapping[str, Written], unfinished: Sequence[str]
    ) -> pandas.DataFrame:
        """Ends the shell line as `finish` does, if the store takes it; `mfgd-sync` does it later
        otherwise.

        Args:
            status: as for `finish`.
            written: as for `finish`.
            unfinished: the shell line of each run that was not done.
        """
        import pandas

        try:
            self.sender.refuse_removed()
            if self.parent:
                mlflow_resume.revive(self.sender.client, self.sender.experiment_id, self.parent)
            written = self._deliver(written)
            if self.parent:
                sweep = Sweep(self.name, self.line, self.resumed, self.drawn, self.write_more)
                runs, self.view = end_sweep(self.sender, sweep, status, written, unfinished)
            else:
                runs = table_of([self.sender.client.get_run(run_id) for run_id in written])
        except Exception as error:
            if not is_fault_of_store(error):
                raise
            self.unsent = max(len(self.sender.outbox.names()), 1)
            said = hide_passwords(first_line(error))
            warn(f"the store does not take the end of the sweep; mfgd-sync sends it: {said}")
            runs = pandas.DataFrame()
        if self.unsent:
            self._write_state(status, unfinished)
            self._keep_files()
        else:
            self.sender.outbox.close()
        return runs

    def _deliver(self, written: Mapping[str, Written]) -> dict[str, Written]:
        """Sends the runs that wait on the disk.

        Returns:
            The runs that the store has, by their ids there.
        """
        sent, why = self.sender.deliver()
        left = self.sender.outbox.names()
        self.unsent = len(left)
        if left:
            said = hide_passwords(first_line(why)) if why else "interrupted"
            place = self.sender.outbox.folder
            warn(f"{len(left)} runs wait in {place}; mfgd-sync sends them: {said}")
        return {sent.get(key, key): run for key, run in written.items() if key not in left}

    def location(self) -> str:
        # The table of runs is not the page that the UI opens by itself.
        page = f"#/experiments/{self.sender.experiment_id}/runs"
        if self.view:
            page += f"?{self.view}"
        # A database server's URI names the driver that is here; MLflow might choose another one.
        address = hide_password(self.given if self.given.startswith("sqlite") else self.uri)
        if address.startswith("http"):
            where = f"{address.rstrip('/')}/{page}"
        else:
            ui = f"{MLFLOW} ui --backend-store-uri {shlex.quote(address)}"
            where = f"{ui}  and open  http://127.0.0.1:5000/{page}"
        return f"compare in the browser:  {where}"
