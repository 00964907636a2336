"""A long batch goes on from its last checkpoint, bit for bit, in another process."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

import mfgd
from mfgd import interrupts
from mfgd.descent import Position
from mfgd.nested import Form
from mfgd.point import Point
from mfgd.record import Trace
from mfgd.terminal import say, warn
from mfgd.types import Refused

FOLDER = "mfgd-checkpoints"
"""The folder of checkpoints in the shell's folder."""
EVERY = 30.0
"""Seconds from one checkpoint of a batch to the next."""
SHARE = 20.0
"""The seconds are at least so many times those that it took to write a checkpoint."""
WORTH = 3.0
"""An interruption leaves a checkpoint of what took at least so many seconds."""
PATIENCE = 10.0
"""Seconds that an interruption waits for the end of a step."""
TICK, PACE = 0.01, 64
"""Seconds between two looks at the clock, roughly, and at most so many steps: to look takes a
hundredth of a small step."""
VERSIONS = f"mfgd {mfgd.__version__}, torch {torch.__version__}"
SUFFIX = ".safetensors"


def place(folder: Path, points: Sequence[Point]) -> Path:
    """The file of a batch's checkpoint."""
    prints = " ".join(point.fingerprint for point in points)
    return folder / f"{hashlib.sha256(prints.encode()).hexdigest()[:16]}{SUFFIX}"


def require(folder: Path, point: Point) -> None:
    """Refuses to go on with a run that has no checkpoint.

    Raises:
        Refused: there is none, or `resume` names a sweep.
    """
    if point.resume is not True:
        raise Refused(f"resume={point.resume}: allowed with --multirun; allowed is resume=true")
    if not place(folder, [point]).exists():
        raise Refused(f"resume=true: no checkpoint of this line in {folder}")


def remove(file: Path) -> None:
    """Removes a checkpoint, if there is one, and what a killed process left of the next one."""
    with suppress(OSError):
        file.unlink(missing_ok=True)
        _aside(file).unlink(missing_ok=True)


def clean(folder: Path, points: Iterable[Point]) -> None:
    """Removes the checkpoints of runs that are all written, whatever batches they were in, and the
    folder if it is empty.

    Args:
        folder: of the checkpoints.
        points: the runs that are written.
    """
    written: set[str] = set()
    for file in folder.glob(f"*{SUFFIX}"):
        written = written or {point.fingerprint for point in points}
        with suppress(Exception):  # a file that cannot be read is not of these runs
            with safe_open(file, framework="pt") as opened:
                runs = opened.metadata()["runs"].split()
            if written.issuperset(runs):
                remove(file)
    with suppress(OSError):
        folder.rmdir()


def _aside(file: Path) -> Path:
    """Where a checkpoint is written before it has its name: a kill leaves no half of one."""
    return file.with_suffix(".new")


class Saved(NamedTuple):
    """What a checkpoint holds."""

    about: dict[str, str]
    """The runs, what their last bits depend on, a digest, and the text of `Form.pack`."""
    tensors: list[Tensor]


class Checkpoint:
    """The checkpoint of one batch, a `mfgd.descent.Keeper`.

    It is taken up if `resume` says so, and only by the same runs under the same versions, with the
    same numbers at the start.
    """

    def __init__(self, folder: Path | None, points: Sequence[Point]) -> None:
        """
        Args:
            folder: where the checkpoint is; None: nothing is kept.
            points: the runs of the batch.
        """
        self.points = points
        self.trace = Trace()
        """What is seen of the runs so far, which is kept too."""
        self.constants: list[Tensor] = []
        """Numbers of the runs that follow from their data."""
        self.pace = 1
        self._file = None if folder is None else place(folder, points)
        self._began = self._asked = self._next = math.inf
        self._saved: Saved | None = None
        if self._file is not None and points[0].resume and self._file.exists():
            try:
                self._saved = _read(self._file)
            except Exception as error:  # a damaged file can be anything
                self._start_afresh(error)

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Uses as many threads as the process that wrote the checkpoint: last bits depend on it."""
        before = torch.get_num_threads()
        if self._saved is not None:
            torch.set_num_threads(int(self._saved.about["threads"]))
        self._threads = torch.get_num_threads()
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def restore(self, start: Position, loss: Tensor) -> Position:
        self._form = Form((start, self.trace.content))
        self._origin = _digest("", [X.cpu() for X in (loss, *self.constants)])
        self._began = self._asked = time.monotonic()
        self._next = math.inf if self._file is None else self._began + EVERY
        saved, self._saved = self._saved, None
        if saved is None:
            return start
        try:
            if saved.about["origin"] != self._origin:
                raise ValueError(
                    "the loss at the start was another one, of other data or functions"
                )
            position, content = self._form.unpack(saved.about["text"], saved.tensors)
        except Exception as error:
            self._start_afresh(error)
            return start
        self.trace.content = content
        which = "" if len(self.points) == 1 else f"a batch of {len(self.points)} runs "
        say(f"{which}goes on from step {position.step:,} of {self.points[0].steps:,}")
        return Position(*position)

    def is_due(self) -> bool:
        now = time.monotonic()
        self.pace = min(2 * self.pace, PACE) if now < self._asked + TICK else max(1, self.pace // 2)
        self._asked = now
        return now >= self._next or interrupts.waits()

    def keep(self, position: Position) -> None:
        """Writes a checkpoint.

        Raises:
            KeyboardInterrupt: an interruption waited for it.
        """
        ends = interrupts.take()
        began = time.monotonic()
        if self._file is not None and not (ends and began < self._began + WORTH):
            try:
                with interrupts.defer():
                    self._write(self._file, position)
                now = time.monotonic()
                self._next = now + max(EVERY, SHARE * (now - began))
            except Exception as error:  # an optimizer's memory and a disk can be anything
                warn(f"no checkpoint, the run goes on: {error}")
                self._file, self._next = None, math.inf
            self.trace.start_clock()
        if ends:
            raise KeyboardInterrupt

    def _write(self, file: Path, position: Position) -> None:
        position.outcome.cpu()  # a device has done all steps then, as the clock should know
        text, tensors = self._form.pack((position, self.trace.content))
        about = {
            "runs": " ".join(point.fingerprint for point in self.points),
            "versions": VERSIONS,
            "threads": str(self._threads),
            "origin": self._origin,
            "digest": _digest(text, tensors),
            "text": text,
        }
        content = save({str(i): X for i, X in enumerate(tensors)}, about)
        file.parent.mkdir(exist_ok=True)
        with open(_aside(file), "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(_aside(file), file)

    def _start_afresh(self, reason: object) -> None:
        warn(f"{self._file}: {reason}; what it holds starts afresh")


def _read(file: Path) -> Saved:
    """What a file holds.

    Raises:
        Exception: the file is damaged, or of other versions.
    """
    with safe_open(file, framework="pt") as opened:
        about, count = opened.metadata(), len(opened.keys())
        # A copy: what the file is mapped to would change with the file.
        tensors = [opened.get_tensor(str(i)).clone() for i in range(count)]
    if about["digest"] != _digest(about["text"], tensors):
        raise ValueError("damaged")
    if about["versions"] != VERSIONS:
        raise ValueError(f"written by {about['versions']}")
    return Saved(about, tensors)


def _digest(text: str, tensors: Sequence[Tensor]) -> str:
    """A hash of a text and of tensors on the host."""
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for X in tensors:
        digest.update(f"{X.dtype} {X.shape}".encode())
        if X.numel():
            digest.update(X.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
