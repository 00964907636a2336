"""Matrices from text files."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mfgd.grid import Grid
from mfgd.labels import Labels, choose_columns, find_labels
from mfgd.reading import (
    AS_IT_SAYS,
    Numbers,
    ReadingKeys,
    choose_writing,
    count,
    list_writings,
)
from mfgd.text import (
    NAMES,
    USUAL,
    Line,
    Text,
    list_separators,
    ragged,
    refuse_ragged,
    take_only_separator,
)
from mfgd.types import Refused


class TableLayout(NamedTuple):
    """How a table of text is read."""

    separator: str
    numbers: Numbers
    labels: Labels
    chosen: list[int]
    """Positions in a line of the columns that are read."""

    @property
    def cells(self) -> int:
        """How many cells a line has."""
        return self.labels.width + self.labels.named_rows


def read_text_matrix(
    content: bytes, suffix: str, keys: ReadingKeys
) -> tuple[np.ndarray, list[str]]:
    """The matrix (n, m) in a text file, NaN for a missing entry, and what is to be said of it.

    Args:
        content: the file.
        suffix: of the name of the file, in small letters.
        keys: what decides if the file does not.

    Raises:
        Refused: lines of several lengths, a cell that is no number, or a file that can be read in
            two ways.
    """
    text = Text(content)
    layout = _choose_layout(text, suffix, keys)
    numbers = array("d")
    for line in _take_entries(text, layout, keys):
        numbers.extend(_read_line(line, layout))
    matrix = np.frombuffer(numbers).reshape(-1, len(layout.chosen)).copy()
    return matrix, _remark(text, layout, USUAL.get(suffix, layout.separator))


def _choose_layout(text: Text, suffix: str, keys: ReadingKeys) -> TableLayout:
    """How a text is read.

    Raises:
        Refused: in no way, or in several.
    """
    separators = list_separators(text, keys, suffix)
    heads = {separator: text.take_head(separator) for separator in separators}
    possible = [separator for separator, head in heads.items() if _is_possible(head, keys)]
    found = take_only_separator(possible)
    if keys["separator"] is None and found in (",", " ") and _may_be_one_column(text):
        raise Refused(
            f"{NAMES[found]} stand between cells (problem.separator=blank or comma), or in "
            "the numbers of one column (problem.separator=tab)"
        )
    separator = separators[0] if found is None else found
    head = heads[separator]
    if not head:
        raise Refused("a text without a number")
    grid = Grid(head, keys)
    refuse_ragged(head, grid.is_short)
    alone = separator == "," and grid.width == 2 and grid.is_short
    if alone and keys["separator"] is None:
        raise Refused(
            "one name above two columns (problem.separator=comma decides), or above one column "
            "with decimal commas (problem.decimal=comma decides)"
        )
    labels = find_labels(grid)
    chosen = [labels.named_rows + column for column in choose_columns(labels, keys)]
    entries = [line.cells for line in head[labels.header :]]
    numbers = choose_writing((row[at] for row in entries for at in chosen), keys)
    return TableLayout(separator, numbers or Numbers.read_keys(keys), labels, chosen)


def _is_possible(head: Sequence[Line], keys: ReadingKeys) -> bool:
    """Whether lines that are split at a separator are a table of several columns of numbers."""
    widths = {len(line.cells) for line in head[1:]} or {len(line.cells) for line in head}
    if len(widths) != 1 or widths == {1}:
        return False
    grid = Grid(head, keys)
    if len(grid.first) != grid.width and not grid.is_short:
        return False
    return grid.is_numeric or isinstance(keys["columns"], list | tuple)


def _may_be_one_column(text: Text) -> bool:
    """Whether each of the first lines is one number with a decimal comma, some with blanks between
    their thousands."""
    lines = [line.cells[0] for line in text.take_head("\t") if line.cells[0]]
    numbers = [re.fullmatch(r"[+-]?\d{1,3}( \d{3})*,\d+", line) for line in lines]
    return all(numbers) and any(" " in line for line in lines)


def _take_entries(text: Text, layout: TableLayout, keys: ReadingKeys) -> Iterator[Line]:
    """The lines with entries in them.

    Raises:
        Refused: a line of another length, or a blank line in a file of one column.
    """
    alone, blank = layout.cells == 1, None
    skip = layout.labels.header
    trailing = None
    for line in text.split(layout.separator):
        if not line.cells or (line.cells == [""] and not alone):
            blank = blank or line
            continue
        if blank and alone and not skip:
            yield from _fill_blanks(blank, line, keys)
        blank = None
        if skip:
            skip = False
            continue
        if trailing is None:
            trailing = len(line.cells) - layout.cells
        if trailing < 0 or len(line.cells) != layout.cells + trailing:
            raise ragged(line, layout.cells)
        if any(line.cells[layout.cells :]):
            raise Refused(f"line {line.number}: a cell in a column that is empty before")
        yield line


def _fill_blanks(first: Line, after: Line, keys: ReadingKeys) -> Iterator[Line]:
    """Blank lines in a file of one column, as missing entries if the keys say so.

    Raises:
        Refused: the keys do not say whether a blank line is a missing entry.
    """
    if "" not in (keys["missing"] or ()):
        raise Refused(
            f"line {first.number} is blank: a missing entry (problem.missing=['']), or no entry "
            "(then delete the line)"
        )
    for number in range(first.number, after.number):
        yield Line(number, [""])


def _read_line(line: Line, layout: TableLayout) -> list[float]:
    """The entries of a line.

    Raises:
        Refused: a cell that is no number.
    """
    cells = [line.cells[at] for at in layout.chosen]
    if layout.numbers.plain:
        try:
            numbers = list(map(float, cells))
        except ValueError:
            numbers = []
        if numbers and "_" not in "".join(cells):  # to Python, 1_000 is a number
            return numbers
    found = []
    for cell in cells:
        value = layout.numbers.parse(cell)
        if value is None:
            advice = _advise(cell)
            raise Refused(f"line {line.number}: {cell!r} is no number; {advice}")
        found.append(value)
    return found


def _advise(cell: str) -> str:
    """What helps if a cell is no number."""
    allowed = "allowed are numbers and missing entries"
    if re.fullmatch(r"[^\W\d]+|[-.*#?]+", cell):
        return f"{allowed}; problem.missing=[{cell}] adds to them"
    if any(numbers.parse(cell) is not None for numbers in list_writings(AS_IT_SAYS)):
        return f"{allowed}; problem.decimal=point or problem.decimal=comma says what a comma is"
    return f"{allowed}; problem.columns chooses columns"


def _remark(text: Text, layout: TableLayout, usual: str) -> list[str]:
    """What was not read as entries, and what does not go without saying."""
    labels, numbers = layout.labels, layout.numbers
    remarks = []
    if text.comments:
        remarks.append(f"{count(text.comments, 'line')} of comment skipped")
    if labels.header:
        remarks.append("header skipped")
    if labels.named_rows:
        remarks.append("first column taken as row names")
    if len(layout.chosen) < labels.width:
        remarks.append(f"{len(layout.chosen)} of {labels.width} columns read")
    if layout.cells > 1 and layout.separator != usual:
        remarks.append(f"cells between {NAMES.get(layout.separator, layout.separator)}")
    if numbers.decimal == ",":
        remarks.append("decimal comma")
    elif numbers.grouped:
        remarks.append("commas between thousands")
    return remarks
