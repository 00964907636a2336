"""What every tracker keeps of a run: params, tags, metrics, and a line in the table of runs."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mfgd.columns import LOST, is_plumbing
from mfgd.component import CONF, GROUPS, MAPS, Component
from mfgd.point import Point
from mfgd.record import Row
from mfgd.target import Problem

if TYPE_CHECKING:
    from mfgd.naming import Label

Curves = dict[str, np.ndarray]
"""`step` and measures → (records,)."""
CURVES = ("loss", "relative_error", "excess_loss")
"""The measures of which a run of a large sweep has a curve."""
COMPARED = ("loss", "relative_error", "excess_loss", "heldout_error")
"""The measures whose curves are laid over each other."""
CURVE_LENGTH = 40
"""Records of a run in a comparison."""
CLOCKS = ("step", "seconds")
"""The columns of a trajectory that are no measures."""
LONGEST = 6000
"""Characters of a param."""
NAME_LENGTH = 250


def format_params(point: Point, problem: Problem | None) -> dict[str, str]:
    """The params of a run as text, and what its data say unless the run raised."""
    told = {key: value for key, value in point.params().items() if not is_plumbing(key)}
    params = {key: _format_value(value) for key, value in told.items()}
    if problem is not None:
        n, m = problem.shape
        sizes = {"rows": n, "columns": m, "observed": int(problem.count)}
        params |= {f"data.{name}": str(size) for name, size in sizes.items()}
        params |= {f"problem.{key}": str(value) for key, value in problem.overruled.items()}
    return params


def _format_value(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


class Written(NamedTuple):
    """What the process that started a sweep knows of a run that is written."""

    outcome: str
    curves: Curves
    """Empty if the run raised."""
    label: Label | None = None
    """How the run is shown within its sweep, if the sweep was not known when it was written."""


class Earlier(NamedTuple):
    """A run that another process has written."""

    fingerprint: str
    run_id: str
    loss: float
    """At the end."""
    outcome: str
    values: Mapping[str, float]
    """The last value of each metric."""


def name_run(point: Point, result: Row | Exception) -> str:
    """The values of what its sweep varies; else what the shell line said, else its problem."""
    said = [text for text in point.overrides if not text.startswith("experiment=")]
    name = " ".join(said) or point.choices["problem"]
    if point.label is not None:
        name = point.label.name
    return mark_name(name, outcome_of(result))


def mark_name(name: str, outcome: str) -> str:
    """The name of a run, behind a × if the run is lost, to be told from the others at a glance."""
    return f"× {name}"[:NAME_LENGTH] if outcome in LOST else name[:NAME_LENGTH]


def outcome_of(result: Row | Exception) -> str:
    """How a run ended."""
    return result.outcome if isinstance(result, Row) else "error"


def run_tags(point: Point, result: Row | Exception) -> dict[str, str]:
    """The tags of a run, besides the commit of mfgd and how the run ended."""
    tags = {"fingerprint": point.fingerprint, "overrides": shlex.join(point.arguments)}
    if point.source is not None:
        tags["init.source"] = point.source.run_id
    if commits := {find_commit(file) for file in _own_files(point)}:
        tags["git_commit.own"] = ", ".join(sorted(commits))
    return tags | (result.tags if isinstance(result, Row) else {})


def outcome_tags(result: Row | Exception) -> dict[str, str]:
    """The tags that say how a run ended."""
    if isinstance(result, Exception):
        return {"outcome": outcome_of(result)}
    return {"outcome": result.outcome, "outcome.reason": result.reason}


PACKAGE = Path(__file__).parent


@cache
def find_commit(*code: Path) -> str:
    """The commit of code, by default of mfgd: "unknown" if the code is in no repository.

    "-dirty" stands behind a commit if a file of the repository differs from it, or if a file of the
    code is not in it.
    """
    code = code or (PACKAGE, CONF)
    git = partial(_git, code[0].parent)
    paths = [str(path) for path in code]
    # A package inside an environment may lie in a repository of the user, and not be of it.
    if not git("ls-files", "--", *paths):
        return "unknown"
    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    added = git("ls-files", "--others", "--exclude-standard", "--", *paths)
    if commit is None or changed is None or added is None:
        return "unknown"
    return f"{commit}-dirty" if changed or added else commit


def _own_files(point: Point) -> set[Path]:
    """The files of the functions of a point that are the user's own."""
    components: list[Component] = [getattr(point, group) for group in GROUPS]
    components += [component for kind in MAPS for _, component in getattr(point, kind)]
    files = set()
    for component in components:
        name = component.target.partition(":")[0]
        while name and name not in sys.modules:
            name = name.rpartition(".")[0]
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and not name.startswith("mfgd."):
            files.add(Path(file))
    return files


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, None if it fails."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


class MetricPoint(NamedTuple):
    """One value of a metric."""

    name: str
    value: float
    milliseconds: int
    step: int


def select_points(row: Row, tolerance: float, start: int, most: int) -> Iterator[MetricPoint]:
    """The metric points of a run that a tracker logs.

    Args:
        row: the run.
        tolerance: of its config.
        start: when the run began, in milliseconds.
        most: how many points may be logged.
    """
    times = (start + 1000 * row.trajectory["seconds"]).astype(int)
    steps = row.trajectory["step"].astype(int)
    shown, measures = _count_shown(row), _known_measures(row)
    too_many = most < shown * len(measures)
    # The curves share what is left after one point of each measure.
    curves = [name for name in CURVES if name in measures]
    curve_length = min(shown, max(2, (most - len(measures)) // max(len(curves), 1)))
    for name, values in measures.items():
        count = shown
        if too_many:
            count = curve_length if name in curves else 1
        if name.startswith("theory.") and (values == values[0]).all():
            count = min(count, 2)  # the ends of a straight line
        # A sequence that begins with the last record keeps the last record if count is 1.
        kept = np.unique(np.linspace(shown - 1, 0, count).round().astype(int))
        columns = values[kept].tolist(), times[kept].tolist(), steps[kept].tolist()
        for value, time, step in zip(*columns, strict=True):
            yield MetricPoint(name, value, time, step)
    for name, value in row.summary(tolerance).items():
        # MLflow draws one point at step 0 as a bar.
        yield MetricPoint(name, value, int(times[-1]), 0)


def mirror_numbers(
    point: Point, logged: Iterable[MetricPoint], milliseconds: int
) -> Iterator[MetricPoint]:
    """The swept numbers of a run as metrics, by which MLflow can sort and filter: it keeps params
    as text. A measure of the same name goes first."""
    if point.label is not None:
        taken = {metric.name for metric in logged}
        for key, value in point.label.numbers.items():
            if key not in taken:
                yield MetricPoint(key, value, milliseconds, 0)


def thin_curves(row: Row) -> Curves:
    """The curves of a run for a comparison: loss, errors and what theory says of them at no more
    than `CURVE_LENGTH` records, the first and the last among them."""
    shown, measures = _count_shown(row), _known_measures(row)
    kept = np.unique(np.linspace(0, shown - 1, min(shown, CURVE_LENGTH)).round().astype(int))
    names = [name for name in measures if name.removeprefix("theory.") in COMPARED]
    with np.errstate(over="ignore"):  # infinity, for a comparison, is as good as 1e300
        curves = {name: measures[name][kept].astype("float32") for name in names}
    return {"step": row.trajectory["step"][kept].astype("int64"), **curves}


def last_values(row: Row, tolerance: float) -> dict[str, float]:
    """The last value of each metric that `select_points` logs."""
    shown, last = _count_shown(row), {}
    if shown > 0:
        for name, values in _known_measures(row).items():
            last[name] = float(values[shown - 1])
    return last | row.summary(tolerance)


def _count_shown(row: Row) -> int:
    """Records in a chart: without the record at which a run was found diverged, which would hide
    all others."""
    return len(row.trajectory["step"]) - (row.outcome == "diverged")


def _known_measures(row: Row) -> dict[str, np.ndarray]:
    """The measures (records,) that have a value at any record."""
    measures = {name: row.trajectory[name] for name in row.trajectory if name not in CLOCKS}
    return {name: values for name, values in measures.items() if not np.isnan(values).all()}
