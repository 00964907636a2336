"""The first lines of a table, and what their cells look like."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cached_property

from mfgd.reading import ReadingKeys, list_writings
from mfgd.text import Line

_INTEGER = re.compile(r"[+-]?\d+")


class Grid:
    """The first lines of a table, of one width but for the first line, which may be one cell
    shorter."""

    def __init__(self, lines: Sequence[Line], keys: ReadingKeys) -> None:
        self.keys = keys
        self.first, self.body = lines[0].cells, [line.cells for line in lines[1:]]
        self.quoted = all(line.named for line in lines[1:] or lines)
        """Whether the first column alone stands in quotes."""
        self.width = len(self.body[0]) if self.body else len(self.first)
        self.writings = list_writings(keys)

    @cached_property
    def columns(self) -> list[list[str]]:
        """The cells below the first line, column by column."""
        if not self.body:
            return [[] for _ in self.first]
        return [list(cells) for cells in zip(*self.body, strict=False)]

    def parse(self, cell: str) -> float | None:
        """The number in a cell by the first writing in which there is one, NaN if the cell is
        missing, None if it is text."""
        for numbers in self.writings:
            value = numbers.parse(cell)
            if value is not None:
                return value
        return None

    def is_text(self, cell: str) -> bool:
        """Whether a cell is neither a number nor missing."""
        return self.parse(cell) is None

    def is_number(self, cell: str) -> bool:
        """Whether a cell is a number, and not missing."""
        value = self.parse(cell)
        return value is not None and not math.isnan(value)

    @property
    def is_numeric(self) -> bool:
        """Whether all cells below the first line and beside the first column are numbers or
        missing; of a single line, all beside its first cell."""
        if not self.body:
            return not any(map(self.is_text, self.first[1:]))
        return not any(self.has_text(column) for column in range(1, self.width))

    @property
    def has_numbers(self) -> bool:
        """Whether any cell is a number."""
        return any(self.is_number(cell) for row in (self.first, *self.body) for cell in row)

    @property
    def is_short(self) -> bool:
        """Whether the first line has one cell less than the others, and has names in it."""
        if len(self.first) != self.width - 1:
            return False
        if self.keys["header"] or any(map(self.is_text, self.first)):
            return True
        named = self.counts_rows or all(map(self.is_text, self.columns[0]))
        return named and self.are_distinct_integers(self.first)

    @property
    def counts_rows(self) -> bool:
        """Whether the first column counts the lines below the first, from 0 or 1 on."""
        names = self.columns[0]
        return bool(names) and names[0] in ("0", "1") and self.is_consecutive(names)

    def has_text(self, column: int) -> bool:
        """Whether there is text in a column below the first line."""
        return any(map(self.is_text, self.columns[column]))

    def is_name_of_numbers(self, column: int) -> bool:
        """Whether the first line has text above a column of numbers."""
        return self.is_text(self.first[column]) and not self.has_text(column)

    def drop_last_column(self) -> None:
        """Leaves the last column out."""
        self.width -= 1
        self.first = self.first[: self.width]
        self.body = [row[: self.width] for row in self.body]
        vars(self).pop("columns", None)

    def are_distinct_integers(self, cells: Sequence[str]) -> bool:
        """Whether cells are integers, and no two the same."""
        return all(map(_INTEGER.fullmatch, cells)) and len(set(cells)) == len(cells)

    def is_consecutive(self, cells: list[str]) -> bool:
        """Whether cells are integers of which each is one more than the one before."""
        if not self.are_distinct_integers(cells):
            return False
        counted = list(map(int, cells))
        return counted == list(range(counted[0], counted[0] + len(counted)))

    def count_on(self, rows: Sequence[Sequence[str]]) -> bool:
        """Whether all cells, row by row or column by column, are one count."""
        across = [cell for row in rows for cell in row]
        down = [cell for column in zip(*rows, strict=True) for cell in column]
        return len(across) > 2 and (self.is_consecutive(across) or self.is_consecutive(down))

    def are_decimal(self, rows: Sequence[Sequence[str]]) -> bool:
        """Whether there are numbers among cells, and none is written as an integer."""
        cells = [cell for row in rows for cell in row if self.is_number(cell)]
        return bool(cells) and not any(map(_INTEGER.fullmatch, cells))
