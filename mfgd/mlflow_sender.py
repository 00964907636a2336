"""The way of runs into MLflow: what the store does not take waits on the disk."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mfgd import interrupts, mlflow_client, mlflow_experiment
from mfgd.database import find_file, first_line
from mfgd.mlflow_bulk import BulkWriter, Numbered, fits, open_bulk
from mfgd.mlflow_client import PARENT_TAG, describe, log_batches
from mfgd.mlflow_dataset import dataset_input
from mfgd.mlflow_parcel import Parcel
from mfgd.mlflow_resume import end_run, find_info
from mfgd.outbox import Outbox
from mfgd.passwords import hide_passwords
from mfgd.retry import Removed, can_pass, retry
from mfgd.terminal import warn

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import RunInfo


class Sender:
    """Sends the runs of a shell line; each process has a pickled copy.

    Args:
        client: the connection of this process.
        uri: as `mlflow_client.check_uri` gives it.
        shown: the URI as messages show it.
        experiment_id: where the runs go.
        parent: id of the sweep's own run.
        outbox: where runs wait that the store does not take.
    """

    def __init__(
        self,
        client: MlflowClient,
        uri: str,
        shown: str,
        experiment_id: str,
        parent: str | None,
        outbox: Outbox,
    ) -> None:
        self.client = client
        self.uri, self.shown = uri, shown
        self.experiment_id, self.parent, self.outbox = experiment_id, parent, outbox
        self.file = None if uri.startswith("http") else find_file(uri, describe(shown))
        self.identity = self._identify()
        self._logged: set[tuple[str, str]] = set()
        self._told = False

    def __getstate__(self) -> dict[str, Any]:
        own = ("client", "_bulk")  # connections, which each process has for itself
        return {key: value for key, value in vars(self).items() if key not in own}

    @cached_property
    def client(self) -> MlflowClient:
        """The connection, which each process has for itself."""
        return retry(partial(mlflow_client.connect, self.uri, writing=True, shown=self.shown))

    def send(self, parcel: Parcel, note: Callable[[str], None]) -> str:
        """Sends a run.

        Args:
            parcel: the run.
            note: is told the id of the run once the store has one.

        Returns:
            The id.

        Raises:
            Exception: the store does not take the run; the half of it is left RUNNING.
        """
        self.refuse_removed()
        tags = self._tags(parcel)
        run = self.client.create_run(self.experiment_id, parcel.start, tags, parcel.name)
        run_id: str = run.info.run_id
        note(run_id)
        log_batches(self.client, run_id, parcel.params, parcel.points, parcel.outcome)
        self._log_data_of_sweep(parcel)
        if parcel.data and parcel.keeps_data:
            self._log_data(run_id, parcel.data)
        with self.open_artifacts(run.info) as folder:
            retry(partial(parcel.write_files, folder))
        for name, step, pixels in parcel.images:
            self.client.log_image(
                run_id, pixels, key=name, step=step, timestamp=parcel.start, synchronous=True
            )
        self.client.set_terminated(run_id, parcel.status, end_time=parcel.end)
        return run_id

    def send_together(self, parcels: Sequence[Parcel]) -> list[str] | None:
        """Sends runs in one transaction: all or none.

        Returns:
            Their ids; None if the store takes runs one by one only, or took none of these.
        """
        self.refuse_removed()
        numbered = [Numbered(uuid4().hex, parcel, self._tags(parcel)) for parcel in parcels]
        if self._bulk is None or not all(fits(run.parcel, run.tags) for run in numbered):
            return None
        for parcel in parcels:
            self._log_data_of_sweep(parcel)
        self._bulk.write(numbered)
        return [run.run_id for run in numbered]

    @cached_property
    def _bulk(self) -> BulkWriter | None:
        return retry(partial(open_bulk, self.uri, self.experiment_id))

    def keep(self, parcel: Parcel, tries: Sequence[str], why: Exception) -> str:
        """Keeps a run on the disk, for `deliver`.

        Args:
            parcel: the run.
            tries: ids of the runs as which sending it began.
            why: the error.

        Returns:
            The name of the run in the outbox.
        """
        name = self.outbox.keep(parcel, tries)
        if not self._told:
            self._told = True
            said = hide_passwords(first_line(why))
            warn(f"the store did not take a run, which waits in {self.outbox.folder}: {said}")
        return name

    def deliver(self) -> tuple[dict[str, str], Exception | None]:
        """Sends what waits in the outbox.

        Returns:
            Name of each run there → its id, of the runs that were sent; and why others were not.
        """
        sent: dict[str, str] = {}
        why = None
        for name in self.outbox.names():
            if interrupts.has_come():
                break
            try:
                sent[name] = self._send_kept(name)
            except Exception as error:
                why = error
                if can_pass(error):
                    break
        return sent, why

    def _send_kept(self, name: str) -> str:
        parcel = self.outbox.read(name)
        sent = None
        for run_id in self.outbox.list_tries(name):
            info = find_info(self.client, run_id)
            if info is None or info.lifecycle_stage != "active":
                continue
            if info.status == parcel.status:  # the store took it, and the answer was lost
                sent = run_id
            elif info.status == "RUNNING":
                end_run(self.client, run_id)
                self.client.delete_run(run_id)
        if sent is None:
            sent = self.send(parcel, partial(self.outbox.note_try, name))
        self.outbox.remove(name)
        return sent

    def _identify(self) -> tuple[int, int] | None:
        """What tells the file of the database from another file of its name."""
        if self.file is None or not self.file.exists():
            return None
        found = self.file.stat()
        return found.st_dev, found.st_ino

    def refuse_removed(self) -> None:
        """Raises `Removed` if the database was removed: what is written to it is lost."""
        if self._identify() != self.identity:
            raise Removed(f"{self.file} was removed or replaced")

    def _tags(self, parcel: Parcel) -> dict[str, str]:
        return parcel.tags | ({PARENT_TAG: self.parent} if self.parent else {})

    def _log_data_of_sweep(self, parcel: Parcel) -> None:
        if parcel.data and self.parent:
            self._log_data(self.parent, parcel.data)

    def _log_data(self, run_id: str, data: Mapping[str, str]) -> None:
        """Logs what is factored as MLflow's dataset, once a run."""
        if (run_id, data["digest"]) not in self._logged:
            self.client.log_inputs(run_id, [dataset_input(data)])
            self._logged.add((run_id, data["digest"]))

    @contextmanager
    def open_artifacts(self, info: RunInfo) -> Iterator[Path]:
        """A folder whose files become the artifacts of a run."""
        if folder := mlflow_experiment.local_folder(info.artifact_uri):
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix="mfgd-") as scratch:
            yield Path(scratch)
            self.client.log_artifacts(info.run_id, scratch)
