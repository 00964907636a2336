"""Runs that the store did not take, on the disk: mfgd-unsent/SWEEP/RUN."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from mfgd.mlflow_parcel import Parcel, read_parcel, write_parcel

FOLDER = "mfgd-unsent"
"""In the working directory of the shell."""
RUN = "unsent-"
"""How the name of a run begins that waits to be sent, and of its folder."""
STATE, TRIES = "sweep.json", "tries.txt"
FILES = "files"
"""The folder of what the sweep's own run has beside its table."""


class Outbox:
    """The folder of what one shell line could not send; it is made when it is needed.

    Args:
        folder: the path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, parcel: Parcel, tries: Sequence[str]) -> str:
        """Keeps a run, whole or not at all.

        Args:
            parcel: the run.
            tries: ids of the runs as which sending it began.

        Returns:
            The name of the run here.

        Raises:
            OSError: it cannot be written.
        """
        name = RUN + uuid4().hex
        draft = self.folder / f".{name}"
        try:
            write_parcel(draft, parcel)
            for run_id in tries:
                _note(draft, run_id)
            draft.rename(self.folder / name)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return name

    def names(self) -> list[str]:
        """The names of the runs that wait."""
        return sorted(place.name for place in self.folder.glob(f"{RUN}*"))

    def read(self, name: str) -> Parcel:
        """A run that waits."""
        return read_parcel(self.folder / name)

    def list_tries(self, name: str) -> list[str]:
        """The ids of the runs as which sending a run began."""
        file = self.folder / name / TRIES
        return file.read_text().split() if file.exists() else []

    def note_try(self, name: str, run_id: str) -> None:
        """Notes that sending a run begins."""
        _note(self.folder / name, run_id)

    def remove(self, name: str) -> None:
        """Removes a run that was sent."""
        shutil.rmtree(self.folder / name)

    def close(self) -> None:
        """Removes the folder, and the folder of all of them if this was the last one."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # another sweep has a folder there
            self.folder.parent.rmdir()

    @property
    def state(self) -> dict[str, Any]:
        """What is needed to go on with the sweep."""
        return dict(json.loads((self.folder / STATE).read_text(encoding="utf-8")))

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Keeps what is needed to go on with the sweep."""
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f".{STATE}{uuid4().hex}"
        draft.write_text(json.dumps(state, indent=1), encoding="utf-8")
        draft.replace(self.folder / STATE)

    def keep_files(self, write: Callable[[Path], None]) -> None:
        """Keeps files of the sweep's own run."""
        (self.folder / FILES).mkdir(parents=True, exist_ok=True)
        write(self.folder / FILES)

    def write_files(self, folder: Path) -> None:
        """Writes the files that are kept here into a folder."""
        if (self.folder / FILES).exists():
            shutil.copytree(self.folder / FILES, folder, dirs_exist_ok=True)


def _note(folder: Path, run_id: str) -> None:
    with open(folder / TRIES, "a") as file:
        file.write(f"{run_id}\n")


def find_outboxes(folder: Path) -> list[Outbox]:
    """What waits in a working directory."""
    return [Outbox(file.parent) for file in sorted((folder / FOLDER).glob(f"*/{STATE}"))]
