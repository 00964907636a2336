"""Tables of runs, of settings and of effects as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mfgd.columns import ERRORS, FIRST, INFINITE, find_column, find_swept, is_lost, short_name
from mfgd.effects import CONFIDENCE, Effect
from mfgd.selection import drop_repeats
from mfgd.terminal import show_plain

if TYPE_CHECKING:
    import pandas

TITLES = {
    "metrics.final_relative_error": "relative error",
    "metrics.heldout_error": "held out",
    "metrics.excess_loss": "to optimum",
    "metrics.loss_gap": "gap",
    "metrics.steps_run": "steps",
    "run_id": "run id",
}
"""Column → its title, if that is not its short name."""


def table(
    runs: pandas.DataFrame, top: int = 10, columns: Sequence[str] = (), sort: str | None = None
) -> str:
    """The first runs as text: what the sweep varies, how near each run came, and how it ended.

    Runs that repeat another run, such as the seeds of a start that draws nothing, are one line.

    Args:
        runs: the table of `mfgd.load_runs`.
        top: how many lines.
        columns: whole or short names; if empty, the swept keys and the results: ``to
            optimum`` is the relative excess, ``gap`` the absolute one, shown if an optimum is 0.
        sort: the column that the runs are sorted by, which is shown in any case.

    Raises:
        Refused: there is no such column.
    """
    return align(_choose_cells(runs, top, columns, sort))


def latex(
    runs: pandas.DataFrame, top: int = 10, columns: Sequence[str] = (), sort: str | None = None
) -> str:
    """The same as `table`, for LaTeX with booktabs."""
    import pandas

    cells = _choose_cells(runs, top, columns, sort)
    texts = {title: [*map(_format_cell, values)] for title, values in cells.items()}
    return pandas.DataFrame(texts).to_latex(index=False, escape=True)


def _choose_cells(
    runs: pandas.DataFrame, top: int, columns: Sequence[str], sort: str | None
) -> dict[str, list[object]]:
    """Title → values of the columns that a table shows."""
    shown = [find_column(runs, name) for name in columns] or _choose_columns(runs, top)
    if sort is not None and (column := find_column(runs, sort)) not in shown:
        shown.append(column)
    runs = drop_repeats(runs)
    if (runs["equal"] > 1).any():
        shown.append("equal")
    shown.append("run_id")
    lost = is_lost(runs).head(top)
    cells: dict[str, list[object]] = {}
    for name in dict.fromkeys(shown):
        values = runs[name].head(top)
        if short_name(name) in ERRORS and name.startswith("metrics."):
            values = values.mask(lost)  # how far a run got before it was lost says nothing
        cells[TITLES.get(name) or short_name(name) or name] = list(values)
    return cells


def _choose_columns(runs: pandas.DataFrame, top: int) -> list[str]:
    shown = [f"params.{key}" for key in dict.fromkeys([*FIRST, *find_swept(runs)])]
    shown.append("metrics.final_relative_error")
    for name in ("metrics.heldout_error", "metrics.excess_loss"):
        if name in runs and runs[name].notna().any():
            shown.append(name)
    first = runs.head(top)
    if "metrics.loss_gap" in runs:
        gap = first["metrics.loss_gap"]
        relative = first.get("metrics.excess_loss", gap * math.nan)
        if (relative.isna() & gap.notna()).any():
            shown.append("metrics.loss_gap")
    shown += ["metrics.steps_run", "tags.outcome"]
    return [name for name in shown if name in runs]


def groups(settings: pandas.DataFrame, measure: str, top: int) -> str:
    """The table of `summaries.group` as text."""
    first = settings.head(top)
    cells: dict[str, Sequence[object]] = {}
    for name in map(str, first.columns):
        cells[name] = list(first[name])
    for name in ("converged", "diverged"):
        cells[name] = [f"{share:.0%}" for share in first[name]]
    cells["tied"] = ["=" if tied else "" for tied in first["tied"]]
    note = "= as good as the best: its quartiles hold the median of the best"
    left = f"; {len(settings) - top} more settings" if len(settings) > top else ""
    return f"{_words(measure)} of each setting, best first\n{align(cells)}\n{note}{left}"


def effects(found: Sequence[Effect], measure: str) -> str:
    """Effects as text, with what the interval is, or that there are no pairs."""
    key, by = found[0].key, found[0].by
    cells: dict[str, list[object]] = {key: [f"{one.first} / {one.second}" for one in found]}
    if by is not None:
        cells[by] = [one.where for one in found]
    cells["ratio"] = [one.ratio for one in found]
    if not any(one.n for one in found):
        note = "no two runs share their draws and all other settings: these are ratios of medians"
        return f"{_words(measure)}, {key}: {note}\n{align(cells)}"
    cells[f"{CONFIDENCE:.0%} interval"] = [_format_interval(one) for one in found]
    for name in ("wins", "ties", "losses", "n"):
        cells[name] = [getattr(one, name) for one in found]
    note = "median ratio within pairs of equal draws; the interval is that of the sign test"
    return f"{_words(measure)}, {key}: {note}\n{align(cells)}"


def _format_interval(one: Effect) -> str:
    if one.n == 0:
        return "no pairs: medians"
    if math.isnan(one.low):
        return "too few pairs"
    return f"{_format_cell(one.low)} to {_format_cell(one.high)}"


def shares(table: pandas.DataFrame, measure: str) -> str:
    """The table of `summaries.importance` as text."""
    cells = {"key": list(table["key"]), "share": [f"{share:.1%}" for share in table["share"]]}
    runs = int(table["n"].max()) if len(table) else 0
    return (
        f"share of the variance of log {_words(measure)} that each key explains, {runs} runs\n"
        f"{align(cells)}"
    )


def _words(column: str) -> str:
    return (short_name(column) or column).replace("_", " ")


def align(columns: Mapping[str, Sequence[object]]) -> str:
    """Titled columns as lines of text."""
    lines: list[str] = []
    for title, values in columns.items():
        cells = [show_plain(title), *map(_format_cell, values)]
        width = max(map(len, cells))
        lines = lines or [""] * len(cells)
        lines = [f"{line}{cell.ljust(width)}  " for line, cell in zip(lines, cells, strict=True)]
    return "\n".join(line.rstrip() for line in lines)


def _format_cell(value: object) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return show_plain(str(value))
    if value != value:
        return "–"
    if abs(value) >= INFINITE:
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}"
