"""Replicates: a config at several seeds, solved together and told as one run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mfgd import checkpoint
from mfgd.attempt import solve_or_report
from mfgd.columns import ERRORS, LOST
from mfgd.demand import count_runs
from mfgd.given import load_problem
from mfgd.init import factor_names
from mfgd.metrics import BUILT_IN
from mfgd.point import Point
from mfgd.record import Row
from mfgd.selection import WORDS, where
from mfgd.tracked import last_values
from mfgd.types import Refused

if TYPE_CHECKING:
    import pandas

SUMMED = ("seconds", "solve_seconds")
"""A run takes as long as its replicates together."""
SHARES = {"": 0.5, ".q25": 0.25, ".q75": 0.75}
"""What is added to the name of a measure → which quantile it is."""


@dataclass(kw_only=True)
class Ensemble(Row):
    """What the replicates of a run leave behind: medians with quartiles, matrices of one."""

    chosen: Point
    """The replicate whose final loss is the median, the lower one of two; it has the factors."""
    table: dict[str, np.ndarray]
    """Column → (replicates,): seed, outcome, the last value of each metric, and the tags."""
    stacked: dict[str, Tensor]
    """C and F of all replicates, (replicates, n, k) and (replicates, k, m); empty if only those of
    the median one are kept."""

    @property
    def reason(self) -> str:
        """How many replicates ended as most did, and how that was."""
        ended = self.table["outcome"]
        most = int((ended == self.outcome).sum())
        return f"{most} of {len(ended)} replicates: {super().reason}"

    def summary(self, tolerance: float) -> dict[str, float]:
        """The metrics of one number a run, with quartiles."""
        return self.values


def list_replicates(point: Point) -> list[Point]:
    """The single runs that a point stands for: its seed s and R replicates stand for the seeds
    s R … s R + R − 1, so that no two seeds share a replicate."""
    count = point.replicates
    first = replace(point, replicates=1, success=None, moving=(), label=None)
    runs = []
    for seed in range(point.seed * count, (point.seed + 1) * count):
        moved: dict[str, Any] = {}
        for group, key in point.moving:
            component = moved.get(group) or getattr(point, group)
            items = tuple((name, seed if name == key else old) for name, old in component.items)
            moved[group] = replace(component, items=items)
        runs.append(replace(first, seed=seed, **moved))
    return runs


def solve_ensembles(
    points: Sequence[Point], folder: Path | None = None
) -> Iterator[Sequence[Row | Exception]]:
    """The rows of a batch of points that have replicates, at once.

    A point fails if one of its replicates raises.

    Args:
        points: the runs, each of as many replicates.
        folder: of the checkpoints; None: nothing is kept.
    """
    runs = [run for point in points for run in list_replicates(point)]
    rows: list[Row | Exception] = []
    for chunk in _chunk(runs):
        for results in solve_or_report(chunk, folder):
            rows += results
        if folder is not None:
            checkpoint.remove(checkpoint.place(folder, chunk))
    count = points[0].replicates
    ensembles: list[Row | Exception] = []
    for i, point in enumerate(points):
        ours = slice(i * count, (i + 1) * count)
        ensembles.append(_combine(point, runs[ours], rows[ours]))
    yield ensembles


def _chunk(runs: Sequence[Point]) -> Iterator[Sequence[Point]]:
    """Runs, as many at a time as one batch may have."""
    try:
        problem = load_problem(runs[0].problem)
        seen, arrays = problem.observation, problem.observation.arrays_of_a_step
        if arrays is not None and len({run.problem for run in runs}) > 1:
            arrays += seen.shared_arrays
        size = count_runs(runs[0], *problem.shape, arrays)
    except Exception:  # the problem fails again, as a run of its own
        size = 1
    for begin in range(0, len(runs), size):
        yield runs[begin : begin + size]


def _combine(
    point: Point, runs: Sequence[Point], results: Sequence[Row | Exception]
) -> Row | Exception:
    """What replicates leave behind as one run, or the first error that one of them raised."""
    rows = []
    for result in results:
        if isinstance(result, Exception):
            return result
        rows.append(result)
    try:
        return combine(point, runs, rows)
    except Refused as refused:  # the condition of success names what was not measured
        return refused


def combine(point: Point, runs: Sequence[Point], rows: Sequence[Row]) -> Ensemble:
    """What replicates leave behind as one run.

    A median or quartile is by linear interpolation. A replicate that was lost (diverged or
    undefined) has no loss and no error from there on; unknown values count as the largest, and a
    median among them is unknown.

    Args:
        point: the config.
        runs: its replicates.
        rows: what each left behind.

    Raises:
        Refused: the condition of success cannot be judged.
    """
    metrics = [last_values(row, point.tolerance) for row in rows]
    summaries = [row.summary(point.tolerance) for row in rows]
    outcomes = Counter(row.outcome for row in rows)
    outcome = max(outcomes, key=lambda name: (outcomes[name], name in LOST, name))
    finals = np.array([summary["final_loss"] for summary in summaries])
    middle = int(np.argsort(finals, kind="stable")[(len(rows) - 1) // 2])  # NaN comes last
    values: dict[str, float] = {}
    for name, column in _columns(summaries).items():
        values |= {key: float(value) for key, value in _describe(name, column).items()}
    if point.success is not None:
        values["success_rate"] = _judge(point.success, rows, metrics)
    values |= {f"replicates.{name}": float(count) for name, count in outcomes.items()}
    tags = {
        key: text
        for key, text in rows[0].tags.items()
        if all(row.tags.get(key) == text for row in rows)
    }
    return Ensemble(
        outcome=outcome,
        trajectory=_join_trajectories(rows),
        factors=rows[middle].factors,
        snapshots=rows[middle].snapshots,
        recorded=rows[middle].recorded,
        values=values,
        tags=tags | {"replicates.median_seed": str(runs[middle].seed)},
        chosen=runs[middle],
        table=_tabulate(runs, rows, metrics),
        stacked=_stack_factors(rows) if point.replicates_kept == "all" else {},
    )


def _columns(lines: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Numbers of each replicate as columns (replicates,), NaN if unknown."""
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: np.array([line.get(name, math.nan) for line in lines]) for name in names}


def _tabulate(
    runs: Sequence[Point], rows: Sequence[Row], metrics: Sequence[Mapping[str, float]]
) -> dict[str, np.ndarray]:
    """One line a replicate: its seed, how it ended, its metrics, and its tags, hashes of what was
    drawn among them."""
    tags = dict.fromkeys(key for row in rows for key in row.tags)
    return {
        "seed": np.array([run.seed for run in runs]),
        "outcome": np.array([row.outcome for row in rows]),
        **_columns(metrics),
        **{key: np.array([row.tags.get(key, "") for row in rows]) for key in tags},
    }


def _stack_factors(rows: Sequence[Row]) -> dict[str, Tensor]:
    factors = [torch.stack(runs) for runs in zip(*(row.factors for row in rows), strict=True)]
    return dict(zip(factor_names(len(factors)), factors, strict=True))


def _join_trajectories(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Medians and quartiles by step; a replicate that has ended stays where it ended."""
    longest = max((row.trajectory["step"] for row in rows), key=len)
    joined = {"step": longest}
    for name in dict.fromkeys(name for row in rows for name in row.trajectory if name != "step"):
        columns = np.full((len(rows), len(longest)), math.nan)
        for line, row in zip(columns, rows, strict=True):
            if name in row.trajectory:
                values = row.trajectory[name]
                line[: len(values)] = values
                is_lost = row.outcome in LOST and name in ERRORS
                line[len(values) - is_lost :] = math.nan if is_lost else values[-1]
        joined |= _describe(name, columns)
    return joined


def _describe(name: str, columns: np.ndarray) -> dict[str, np.ndarray]:
    """The median of a measure (replicates, …) with its quartiles."""
    if name in SUMMED:
        return {name: columns.sum(0)}
    ordered, described = np.sort(columns, axis=0), {}
    for label, share in SHARES.items():
        place = share * (len(ordered) - 1)
        low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
        part = place - math.floor(place)
        # A difference of infinities is no number.
        between = low if part == 0 else np.where(low == high, low, low + part * (high - low))
        described[name + label] = between
        if name.startswith("theory."):
            break
    return described


def _judge(condition: str, rows: Sequence[Row], metrics: Sequence[Mapping[str, float]]) -> float:
    """The share of replicates that fulfil the condition of success.

    Raises:
        Refused: it names what was not measured.
    """
    import pandas

    columns = {f"metrics.{name}": column for name, column in _columns(metrics).items()}
    columns["tags.outcome"] = np.array([row.outcome for row in rows], dtype=object)
    return _count_successes(pandas.DataFrame(columns), condition) / len(rows)


def _count_successes(replicates: pandas.DataFrame, condition: str) -> int:
    """How many replicates fulfil a condition, of which a refusal names the key."""
    try:
        return len(where(replicates, condition))
    except Refused as refused:
        raise type(refused)(f"success={refused}") from None


def refuse_unknown_success(point: Point) -> None:
    """Refuses a condition of success that cannot be read, or that names no measure.

    Raises:
        Refused: as said.
    """
    import pandas

    if point.success is None:
        return
    own = {name for name, _ in point.metrics}
    words = (found["quoted"] or found["name"] or "" for found in WORDS.finditer(point.success))
    names = {word.removeprefix("metrics.") for word in words}
    known = [name for name in names if name in own or BUILT_IN.fullmatch(name)]
    columns = {f"metrics.{name}": pandas.Series(dtype=float) for name in sorted(known)}
    columns["tags.outcome"] = pandas.Series(dtype=object)
    _count_successes(pandas.DataFrame(columns), point.success)
