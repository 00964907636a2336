"""The trials of a search for the best setting, as a table."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mfgd.columns import INFINITE, LOST
from mfgd.errors import Refused
from mfgd.refusals import suggest
from mfgd.result import Result

TABLE, BEST = "trials.csv", "best.txt"


class Trial(NamedTuple):
    """A setting that was tried."""

    number: int
    setting: Mapping[str, str]
    """Key → its value as text."""
    arguments: Sequence[str]
    """Of a shell line for this run alone."""
    state: str
    """complete, pruned (the run is lost) or fail (it raised, or has no such value)."""
    value: float
    """Of the objective; NaN if the trial is not complete."""


class Trials:
    """What was tried; see `mfgd.search.Search` for what becomes of it.

    Args:
        objective: the final measure, or the swept key, that is to be least or largest.
        maximize: whether it is to be largest.
        most: how many trials are made.
    """

    def __init__(self, objective: str, maximize: bool, most: int) -> None:
        self.objective, self.maximize, self.most = objective, maximize, most
        self.trials: list[Trial] = []
        self.known: set[str] = set()
        """The measures that any run has."""

    def judge(
        self, number: int, setting: Mapping[str, str], arguments: Sequence[str], run: Result | None
    ) -> Trial:
        """Takes what a run gave, None if it raised."""
        value = math.nan
        if run is None:
            state = "fail"
        elif run.outcome in LOST:
            state = "pruned"
        else:
            value = float(run.values.get(self.objective, setting.get(self.objective, math.nan)))
            # MLflow keeps infinity as the largest number.
            state = "complete" if abs(value) < INFINITE else "fail"
        trial = Trial(number, setting, arguments, state, value if state == "complete" else math.nan)
        self.trials.append(trial)
        return trial

    def refuse_unknown(self, runs: Sequence[Result | None]) -> None:
        """Refuses an objective that no run has so far, if any run came to an end.

        Args:
            runs: of the last lot, None for one that raised.

        Raises:
            Refused: with the measures that the runs have.
        """
        for run in runs:
            if run is not None and run.outcome not in LOST:
                self.known.update(run.values)
        if self.known and self.objective not in {*self.known, *self.trials[0].setting}:
            known = sorted(self.known)
            said = f"hydra.sweeper.objective={self.objective}"
            hint = suggest(self.objective, known)
            raise Refused(f"{said}: no run has it; allowed are {', '.join(known)}{hint}")

    @property
    def ranked(self) -> list[Trial]:
        """The trials, the best one first, those without a value last."""
        sign = -1 if self.maximize else 1

        def key(trial: Trial) -> tuple[bool, float]:
            return math.isnan(trial.value), sign * trial.value

        return sorted(self.trials, key=key)

    def describe(self) -> str:
        if not self.trials:
            return ""
        best, count = self.ranked[0], len(self.trials)
        without = sum(trial.state != "complete" for trial in self.trials)
        left = f" ({without} without a value)" if without else ""
        if best.state != "complete":
            return f"none of {count} trials has {self.objective}"
        said = " ".join(f"{key}={text}" for key, text in best.setting.items())
        return f"best of {count} trials{left}: {self.objective} {best.value:.6g} at {said}"

    def write(self, folder: Path) -> None:
        import pandas

        lines = [
            {
                "trial": trial.number,
                "state": trial.state,
                self.objective: trial.value,
                **trial.setting,
            }
            for trial in self.ranked
        ]
        pandas.DataFrame(lines).to_csv(folder / TABLE, index=False)
        if (best := self.ranked[0]).state == "complete":
            (folder / BEST).write_text(f"{shlex.join(['mfgd', *best.arguments])}\n", "utf-8")
