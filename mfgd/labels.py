"""Which line and column of a table hold names instead of entries.

The rules are those of the table in conf/README.md. A table that may be read in two ways is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mfgd.grid import Grid
from mfgd.reading import ReadingKeys, show
from mfgd.types import Refused

INDEX_NAMES = frozenset(
    ("", "unnamed: 0", "index", "level_0", "row", "rownames", "row.names", "rowname", "id")
)
"""Names that people's programs give to a column of row names, in small letters."""
_NAMES_LIKE = re.compile(r"(.*[ _.-])?(id|no|nr|key|code|date|year|time)\.?|.*[a-z]I[dD]")
"""Names of columns that may hold names of the rows."""
_NUMBERS_LIKE = re.compile(
    r"[<>$€£¥(]*\s*[+-]?\d[\d.,']*\s*([eEdD][+-]?\d+)?\s*[%)$€£¥]*|0x[0-9a-f]+|true|false|\d+/\d+",
    re.IGNORECASE,
)
"""Text that may be numbers in another writing, and no names."""
YEARS = range(1500, 2101)


class Labels(NamedTuple):
    """Where the names of a table are."""

    header: bool
    """Whether the first line holds names of the columns."""
    named_rows: bool
    """Whether the first column holds names of the rows."""
    names: list[str]
    """The names of the columns of entries; empty without a header."""
    width: int
    """How many columns of entries there are, before any is chosen."""


def find_labels(grid: Grid) -> Labels:
    """Where the names are.

    Raises:
        Refused: the table can be read in two ways; the message names the key that decides.
    """
    _drop_trailing_separators(grid)
    index = _has_index_of_text(grid)
    if len(grid.first) == grid.width - 1:
        index = index or has_index_below_short_header(grid)
        return Labels(True, index, grid.first[0 if index else 1 :], grid.width - index)
    header = _has_header(grid, index)
    if not index:
        index, header = _has_index_of_numbers(grid, header)
    names = grid.first[index:] if header else []
    return Labels(header, index, names, grid.width - index)


def _drop_trailing_separators(grid: Grid) -> None:
    """Drops last columns in which no line has a cell, and which have no name.

    Raises:
        Refused: such a column may be there, and missing everywhere.
    """
    wanted = grid.keys["columns"]
    if isinstance(wanted, list | tuple) or not grid.has_numbers:
        return
    while grid.width > 1 and grid.width != wanted:
        named = len(grid.first) == grid.width and grid.first[-1]
        if named or any(row[-1] for row in grid.body):
            return
        headed = bool(grid.body) and any(map(grid.is_text, grid.first[grid.has_text(0) :]))
        if not headed and wanted is None:
            raise Refused(
                "each line ends with a separator: the last column is missing everywhere, or there "
                f"is none; problem.columns={grid.width} or problem.columns={grid.width - 1} decides"
            )
        grid.drop_last_column()


def _has_index_of_text(grid: Grid) -> bool:
    if grid.keys["index"] is not None:
        return grid.keys["index"]
    if grid.width == 1:
        return False
    if grid.quoted and grid.are_distinct_integers(grid.columns[0] or grid.first[:1]):
        return True
    if not grid.body:
        numbers = grid.first[1:]
        return grid.is_text(grid.first[0]) and not any(map(grid.is_text, numbers))
    if not grid.has_text(0):
        return False
    headed = grid.is_text(grid.first[0]) or any(map(grid.is_text, grid.first[1:]))
    names = grid.columns[0] if headed else [grid.first[0], *grid.columns[0]]
    for name in names:
        if grid.is_number(name):
            text = next(filter(grid.is_text, names))
            raise Refused(
                f"the first column has numbers and text, {name} and {text}: it holds row names "
                f"(problem.index=true), or entries (problem.missing=[{text}])"
            )
    if all(map(_NUMBERS_LIKE.fullmatch, filter(None, names))):
        raise Refused(
            f"the first column, {', '.join(names[:3])}…, holds row names (problem.index=true), or "
            "numbers in a writing that is not read"
        )
    return True


def has_index_below_short_header(grid: Grid) -> bool:
    """Whether the first column has names if the header has one name less than there are
    columns, as R writes it.

    Raises:
        Refused: the last column may be one without a name.
    """
    if grid.keys["index"] is not None:
        return grid.keys["index"]
    if grid.counts_rows:
        return True
    raise Refused(
        "the header has one name less than there are columns: the first column holds row names "
        "(problem.index=true) or the last has no name (problem.index=false)"
    )


def _has_header(grid: Grid, index: bool) -> bool:
    given = grid.keys["header"]
    if given is not None:
        return given
    cells = grid.first[index:]
    if not grid.body:
        return any(map(grid.is_text, cells))
    if index and not grid.first[0]:
        return True
    numbers = list(filter(grid.is_number, cells))
    above = [at for at in range(index, grid.width) if grid.is_name_of_numbers(at)]
    if above:
        corner = above == [0] and grid.first[0][0].isalpha()
        corner = corner and grid.are_distinct_integers(numbers)
        if numbers and not corner:
            raise _doubt_header(cells)
        return True
    if any(map(grid.is_text, cells)):
        return not numbers
    corner = not grid.first[0] and grid.width > 1 and grid.keys["index"] is not False
    if not (corner and _has_numbered_corner(grid)) and _looks_like_labels(grid, cells, index):
        raise _doubt_header(cells)
    return False


def _doubt_header(cells: Sequence[str]) -> Refused:
    listed = ", ".join(cells[:4]) + (", …" if len(cells) > 4 else "")
    return Refused(
        f"the first line, {listed}, holds names of columns (problem.header=true) "
        "or entries (problem.header=false)"
    )


def _has_index_of_numbers(grid: Grid, header: bool) -> tuple[bool, bool]:
    """Whether the first column, which has no text, holds row names, and whether the first line
    is a header.

    Raises:
        Refused: the first column may be names or entries.
    """
    if grid.keys["index"] is False or grid.width == 1 or (header and not grid.body):
        return False, header
    if not header and grid.keys["header"] is None and _has_numbered_corner(grid):
        return True, True
    names = grid.columns[0] if header else [grid.first[0], *grid.columns[0]]
    consecutive = grid.is_consecutive(names)
    named = header and grid.first[0].lower() in INDEX_NAMES
    if named and consecutive:
        return True, header
    counted = consecutive and (len(names) > 1 or names[0] == "0")
    if header and _NAMES_LIKE.fullmatch(grid.first[0]) and grid.are_distinct_integers(names):
        named = True
    if named or (counted and _is_numbering(grid, names, header)):
        which = f"the column {grid.first[0]!r}" if header and grid.first[0] else "the first column"
        raise Refused(
            f"{which}, {', '.join(names[:3])}…, holds row names (problem.index=true) "
            "or entries (problem.index=false)"
        )
    return False, header


def _is_numbering(grid: Grid, names: list[str], header: bool) -> bool:
    """Whether consecutive integers at the left may be row names: all other cells are written
    with a decimal mark, or the rows are counted from 0."""
    rows = grid.body if header else [grid.first, *grid.body]
    others = [row[1:] for row in rows]
    numbered = any(grid.is_number(cell) for row in others for cell in row)
    if grid.are_decimal(others) or not numbered:
        return True
    if header:
        return len(names) > 2
    return names[0] == "0" and not grid.count_on(rows)


def _has_numbered_corner(grid: Grid) -> bool:
    """Whether rows and columns are numbered, and the cell in the corner is empty."""
    if grid.first[0] or not grid.body or grid.width == 1:
        return False
    across, down = grid.first[1:], grid.columns[0]
    if not (grid.are_distinct_integers(across) and grid.are_distinct_integers(down)):
        return False
    if grid.are_decimal([row[1:] for row in grid.body]):
        return True
    counted = grid.is_consecutive(across) and grid.is_consecutive(down)
    if counted and across[0] == down[0] == "0" and min(len(across), len(down)) > 1:
        return True
    raise Refused(
        "the first line and the first column hold names (problem.header=true "
        "problem.index=true) or entries (problem.header=false problem.index=false)"
    )


def _looks_like_labels(grid: Grid, cells: list[str], index: bool) -> bool:
    """Whether a first line of numbers may be names of the columns: of columns that are counted,
    of years, or of numbers that rise and are far above all others."""
    below = [row[index:] for row in grid.body]
    numbers = [cell for row in below for cell in row if grid.is_number(cell)]
    if not numbers or not all(map(grid.is_number, cells)):
        return False
    heads = np.array([grid.parse(cell) for cell in cells])
    entries = np.array([grid.parse(cell) for cell in numbers])
    counted = grid.is_consecutive(cells) and (len(cells) > 1 or cells[0] == "0")
    if counted and grid.count_on([cells, *below]):
        return False
    decimal = grid.are_decimal(below)
    if counted and (cells[0] == "0" or decimal):
        return True
    if grid.are_distinct_integers(cells) and _are_years(heads).all():
        return counted or decimal or not _are_years(entries).any()
    rising = len(cells) > 2 and bool((np.diff(heads) > 0).all())
    return rising and heads[0] > 10 * np.abs(entries).max()


def choose_columns(labels: Labels, keys: ReadingKeys) -> list[int]:
    """The positions of the columns of entries that are read.

    Raises:
        Refused: a column that is not there.
    """
    wanted = keys["columns"]
    everything = list(range(labels.width))
    if wanted is None:
        return everything
    name = f"problem.columns={show(wanted)}"
    if isinstance(wanted, int):
        if not 1 <= wanted <= labels.width:
            raise Refused(f"{name}: must be between 1 and {labels.width}, the columns of the file")
        return everything[:wanted]
    chosen = []
    for column in wanted:
        position = column if isinstance(column, int) else _find_name(labels, column, name)
        if position not in everything:
            raise Refused(f"{name}: no column {column}; allowed are 0 to {labels.width - 1}")
        chosen.append(position)
    return chosen


def _find_name(labels: Labels, column: str, name: str) -> int:
    if labels.names.count(column) != 1:
        there = ", ".join(labels.names) or "none by name"
        raise Refused(f"{name}: {labels.names.count(column)} columns {column}; there are {there}")
    return labels.names.index(column)


def _are_years(values: np.ndarray) -> np.ndarray:
    return (values >= YEARS.start) & (values < YEARS.stop) & (values == np.round(values))
