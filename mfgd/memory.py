"""The tracker that keeps the runs in this process."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mfgd.columns import table_line
from mfgd.point import Point
from mfgd.record import Row
from mfgd.target import Problem
from mfgd.terminal import say
from mfgd.tracked import Written, find_commit, format_params, last_values, outcome_tags, run_tags

if TYPE_CHECKING:
    import pandas


class MemoryTracker:
    """Keeps the runs as objects; see `mfgd.tracking.Tracker` for its methods."""

    shared = False

    def __init__(self, experiment: str) -> None:
        self.experiment = experiment
        self.parent: str | None = None
        self.runs: list[tuple[Point, Row | Exception]] = []
        """Each run with what it left behind, or the error that it raised."""
        self._lines: list[dict[str, Any]] = []

    def open(self, sweep: Sequence[str] | None) -> None:
        self.tags = {"git_commit": find_commit()}
        if sweep is not None:
            self.parent = uuid4().hex

    def expect(self, runs: int) -> None:
        pass

    def write(self, point: Point, result: Row | Exception, problem: Problem | None) -> str:
        run_id, status, metrics = uuid4().hex, "FAILED", {}
        if isinstance(result, Row):
            status, metrics = "FINISHED", last_values(result, point.tolerance)
            if point.label is not None:
                metrics = point.label.numbers | metrics
        params, tags = (
            format_params(point, problem),
            self.tags | run_tags(point, result) | outcome_tags(result),
        )
        self._lines.append(table_line(run_id, status, self.parent, params, metrics, tags))
        self.runs.append((point, result))
        return run_id

    def finish(
        self, status: str, written: Mapping[str, Written], unfinished: Sequence[Point]
    ) -> pandas.DataFrame:
        import pandas

        errors = [result for _, result in self.runs if isinstance(result, Exception)]
        if errors:
            say("".join(traceback.format_exception(errors[0])).rstrip("\n"), sys.stderr)
        for line in self._lines:
            label = written[line["run_id"]].label if line["run_id"] in written else None
            for key, value in label.numbers.items() if label else ():
                line.setdefault(f"metrics.{key}", value)
        return pandas.DataFrame(self._lines[::-1])

    def location(self) -> str:
        return "kept in memory, gone with this process"
