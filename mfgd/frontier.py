"""Where an outcome changes along one key, in each cell of the other keys, as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mfgd.bisection import Axis, Cell, Reply
from mfgd.columns import table_line
from mfgd.listing import align
from mfgd.result import Result
from mfgd.selection import where

if TYPE_CHECKING:
    import pandas

TABLE, FIGURE = "frontier.csv", "frontier.png"
LINES = 20
"""Cells that are printed."""


class Frontier:
    """The cells of a search; see `mfgd.search.Search` for what becomes of them.

    Args:
        axis: the key along which the outcome changes.
        success: the condition of a success, as `mfgd.selection.where` takes it.
        settings: of each cell, the values of the other swept keys as text.
    """

    def __init__(self, axis: Axis, success: str, settings: Sequence[Mapping[str, str]]) -> None:
        self.axis, self.success = axis, success
        self.cells = [Cell(setting, axis.low, axis.high) for setting in settings]

    @property
    def most(self) -> int:
        return len(self.cells) * self.axis.most

    def ask(self) -> list[tuple[Cell, float]]:
        """The runs of the next round; none if nothing is left to find."""
        return [(cell, value) for cell in self.cells for value in cell.list_asked(self.axis)]

    def tell(self, asked: Sequence[tuple[Cell, float]], results: Sequence[Result | None]) -> None:
        """Takes what the runs of a round gave, None for one that raised.

        Raises:
            Refused: the condition cannot be judged, as `mfgd.selection.where` says.
        """
        import pandas

        lines = []
        for (cell, value), result in zip(asked, results, strict=True):
            params = {**cell.setting, self.axis.key: self.axis.write(value)}
            values, outcome = (result.values, result.outcome) if result else ({}, "error")
            lines.append(table_line("", "", None, params, values, {"outcome": outcome}))
        succeeded = set(where(pandas.DataFrame(lines), self.success).index)
        for i, ((cell, value), result) in enumerate(zip(asked, results, strict=True)):
            limit = self._find_limit(value, result) if result is not None else math.nan
            cell.tell(value, Reply(i in succeeded, limit) if result is not None else None)

    def _find_limit(self, value: float, result: Result) -> float:
        """The largest stable rate by theory, in the unit of the key; NaN if the key is no rate."""
        values = result.values
        if self.axis.key != "lr" or "lr_limit" not in values:
            return math.nan
        return values["lr_limit"] * value / values["lr_absolute"]

    def table(self) -> pandas.DataFrame:
        """One line a cell: its setting, where runs succeed, the bracket in which that changes, what
        theory says of it if it says anything, and how many runs were made.

        The bracket is NaN if the outcome is the same at both ends of the interval, or if a run
        raised.
        """
        import pandas

        key = self.axis.key
        table = pandas.DataFrame(
            [
                {
                    **cell.setting,
                    "success": cell.success,
                    f"{key}.low": cell.low if cell.is_bracket else math.nan,
                    f"{key}.high": cell.high if cell.is_bracket else math.nan,
                    "theory": cell.limit,
                    "runs": cell.runs,
                }
                for cell in self.cells
            ]
        )
        return table if table["theory"].notna().any() else table.drop(columns="theory")

    def describe(self) -> str:
        table = self.table()
        count = int(table["runs"].sum())
        if not count:
            return ""
        interval = f"[{self.axis.low:g}, {self.axis.high:g}]"
        lines = [f"where {self.success} changes along {self.axis.key} in {interval}: {count} runs"]
        first = table.head(LINES)
        lines.append(align({str(name): [*map(_format_bracket, first[name])] for name in first}))
        if len(table) > LINES:
            lines.append(f"{len(table) - LINES} more cells are in {TABLE} of the sweep's own run")
        same = int(table["success"].isin(["everywhere", "nowhere"]).sum())
        if same:
            lines.append(f"{same} of {len(table)} cells: the same at both ends of the interval")
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        from mfgd.frontier_figure import draw

        table = self.table()
        table.to_csv(folder / TABLE, index=False)
        if (figure := draw(table, self.axis, self.success)) is not None:
            (folder / "figures").mkdir(exist_ok=True)
            figure.savefig(folder / "figures" / FIGURE)


def _format_bracket(value: object) -> object:
    """A bracket needs more digits than a measure."""
    return f"{value:.6g}" if isinstance(value, float) and math.isfinite(value) else value
