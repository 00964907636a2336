"""Ratings from files of users, items and ratings, one rating a line."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from mfgd.frames import spell_out
from mfgd.grid import Grid
from mfgd.reading import WORDS, Listing, ReadingKeys, choose_writing, count
from mfgd.roles import ROLES, Columns, choose_roles, choose_separator, find_columns, has_header
from mfgd.text import Line, Text, refuse_ragged
from mfgd.types import Refused

if TYPE_CHECKING:
    import pandas

LINES_AT_ONCE = 1 << 20
NETFLIX = re.compile(r"\d+:\n")
"""How the files of the Netflix prize begin: an item, and below it its users, ratings and dates."""


def read_rating_lines(content: bytes, keys: ReadingKeys) -> tuple[Listing, list[str]]:
    """The matrix of users × items in a text file, and what is to be said of it.

    Raises:
        Refused: a line without user, item or rating, or columns that may be others.
    """
    text = Text(content)
    if NETFLIX.match(text.body):
        listing, remarks = place_ratings(_split_netflix(_read_chunks(text, ",", 3, 0)), keys, None)
        return listing, ["users below each item", *remarks]
    separator = choose_separator(text, keys)
    head = text.take_head(separator)
    grid = Grid(head, keys)
    header = has_header(grid) if keys["header"] is None else keys["header"]
    refuse_ragged(head, short=header)
    columns = find_columns(grid, header)

    def find_line(row: int) -> int:
        lines = (line.number for line in text.split(separator) if any(line.cells))
        return next(islice(lines, row + columns.header, None))

    _refuse_skipped_ratings(text, separator, columns)
    skipped = head[0].number - text.comments if header else 0
    chunks = _read_chunks(text, separator, len(columns.names), skipped)
    listing, remarks = place_ratings(_choose(chunks, columns), keys, find_line)
    if text.comments:
        remarks.append(f"{count(text.comments, 'line')} of comment skipped")
    return listing, columns.describe() + remarks


def _refuse_skipped_ratings(text: Text, separator: str, columns: Columns) -> None:
    """Raises `Refused` if a line that is skipped as a comment may be a rating."""
    for number, line in enumerate(text.skipped.splitlines(), 1):
        cells = line.split(separator)
        if len(cells) == len(columns.names) and cells[columns.roles[2]].strip().isdecimal():
            raise Refused(f"line {number} begins like a comment, and may be a rating: {line!r}")


def _read_chunks(
    text: Text, separator: str, width: int, skipped: int
) -> Iterator[pandas.DataFrame]:
    """The cells below so many lines as text, some lines at once.

    Raises:
        ParserError: a line with more cells than columns.
    """
    import pandas

    body = text.body.split("\n", skipped)[-1] if skipped else text.body
    if not body.strip():
        return
    delimiter = {"::": "\x1f", " ": r"\s+"}.get(separator, separator)
    if separator == "::":
        body = body.replace("::", delimiter)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pandas.errors.ParserWarning)  # cells would be lost
        yield from pandas.read_csv(
            io.StringIO(body),
            sep=delimiter,
            header=None,
            names=range(width),
            index_col=False,
            dtype=str,
            na_filter=False,
            skipinitialspace=True,
            chunksize=LINES_AT_ONCE,
        )


def _choose(chunks: Iterable[pandas.DataFrame], columns: Columns) -> Iterator[list[pandas.Series]]:
    """User, item and rating of the lines.

    Raises:
        Refused: there is something in a last column without a name.
    """
    for chunk in chunks:
        if columns.unnamed and (chunk.iloc[:, -1] != "").any():
            raise Refused("cells in a last column that has no name, and is empty at first")
        yield [chunk.iloc[:, at] for at in columns.roles]


def _split_netflix(chunks: Iterable[pandas.DataFrame]) -> Iterator[list[pandas.Series]]:
    """User, item and rating of the lines below each item."""
    item = ""
    for chunk in chunks:
        users, ratings = chunk.iloc[:, 0], chunk.iloc[:, 1]
        heads = users.str.endswith(":")
        items = users.where(heads).ffill().fillna(item)
        item = items.iloc[-1]
        yield [users[~heads], items[~heads].str.rstrip(":"), ratings[~heads]]


class Numbering:
    """The names that are met in a column, numbered in the order in which they are met."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.parts: list[np.ndarray] = []

    def add(self, column: pandas.Series) -> None:
        """Numbers the names of some lines."""
        codes, names = column.factorize()
        met = [self.numbers.setdefault(str(name), len(self.numbers)) for name in names]
        self.parts.append(np.array(met, dtype=np.int32)[codes])

    @property
    def column(self) -> np.ndarray:
        """(N,), the number of each line."""
        return np.concatenate(self.parts) if self.parts else np.empty(0, dtype=np.int32)

    def sort(self, role: str) -> np.ndarray:
        """(N,), the number of each line if whole numbers are in their order, and text in that of
        its letters.

        Raises:
            Refused: names that are one number in two writings.
        """
        names = list(self.numbers)
        whole = [re.sub(r"\.0+$", "", name.strip()) for name in names]
        if len(set(whole)) < len(whole):
            twice = next(name for name, other in zip(names, whole, strict=True) if name != other)
            what = "is there without blanks or .0 too"
            raise Refused(f"{role} {twice!r}: {what}; allowed is one writing")
        for name in names:
            if "\n" in name:
                raise Refused(f"{role} {name!r}: a name of several lines; is a quote not closed?")
        known = [name for name in whole if name.lower() not in WORDS]
        integers = all(re.fullmatch(r"0|-?[1-9]\d*", name) for name in known)
        if integers and len(known) < len(whole):
            raise Refused(f"a line without {role}: {min(set(whole) - set(known))!r}")
        order = sorted(range(len(names)), key=lambda at: int(whole[at]) if integers else names[at])
        rank = np.empty(len(names), dtype=np.int64)
        rank[order] = np.arange(len(names))
        return rank[self.column]


def place_ratings(
    chunks: Iterable[Sequence[pandas.Series]],
    keys: ReadingKeys,
    find_line: Callable[[int], int] | None,
) -> tuple[Listing, list[str]]:
    """The matrix of lines of user, item and rating, and what is to be said of it.

    Users and items are numbered in the order of their ids. Of a pair that is rated twice the last
    rating counts.

    Args:
        chunks: user, item and rating of some lines, as text or whole numbers.
        keys: what means a missing rating, and the decimal mark.
        find_line: position of a line → its number in the file.

    Raises:
        Refused: a line without user, item or rating.
    """
    found = [Numbering() for _ in ROLES]
    for chunk in chunks:
        for numbering, column in zip(found, chunk, strict=True):
            numbering.add(column)
    users, items, ratings = found
    values = _read_values(ratings, keys, find_line)
    for role, numbering in zip(ROLES, found[:2], strict=False):
        if "" in numbering.numbers:
            row = int(np.argmax(numbering.column == numbering.numbers[""]))
            raise Refused(f"{_show_line(row, find_line)}a line without {role}")
    kept = ~np.isnan(values)
    n, m = len(users.numbers), len(items.numbers)
    if not n:
        raise Refused("an empty matrix of shape (0, 0); allowed is at least one rating")
    places, values = (users.sort("user") * m + items.sort("item"))[kept], values[kept]
    # The first place in reverse order is the last rating of a pair.
    at, last = np.unique(places[::-1], return_index=True)
    remarks = []
    if not kept.all():
        remarks.append(f"{count(int((~kept).sum()), 'line')} without a rating")
    if len(at) < len(places):
        again = count(len(places) - len(at), "rating")
        remarks.append(f"{again} dropped for a later one of the same pair")
    rated = torch.from_numpy(values[::-1][last].copy())
    return Listing(rated, torch.from_numpy(at), (n, m)), remarks


def _read_values(
    ratings: Numbering, keys: ReadingKeys, find_line: Callable[[int], int] | None
) -> np.ndarray:
    """The rating of each line, NaN if the keys name it as missing."""
    numbers = choose_writing(ratings.numbers, keys)
    if numbers is None:
        for name, code in ratings.numbers.items():
            if choose_writing([name], keys) is None:
                where = _show_line(int(np.argmax(ratings.column == code)), find_line)
                raise Refused(f"{where}rating {name!r}; allowed are numeric ratings")
        raise Refused("ratings with decimal points and decimal commas; allowed is one of the two")
    parsed = np.array([numbers.parse(name) for name in ratings.numbers], dtype=np.float64)
    for name, value in zip(ratings.numbers, parsed, strict=True):
        if not np.isfinite(value) and (np.isinf(value) or keys["missing"] is None):
            where = _show_line(int(np.argmax(ratings.column == ratings.numbers[name])), find_line)
            hint = f"problem.missing=['{name}'] leaves such lines out"
            raise Refused(f"{where}a line without user, item or rating: {name!r}; {hint}")
    return parsed[ratings.column] if len(parsed) else np.empty(0)


def _show_line(row: int, find_line: Callable[[int], int] | None) -> str:
    return f"line {find_line(row)}: " if find_line else ""


def read_rating_frame(frame: pandas.DataFrame, keys: ReadingKeys) -> tuple[Listing, list[str]]:
    """The matrix of users × items in a table of pandas, and what is to be said of it.

    Raises:
        Refused: as `read_rating_lines`, or ids that are no whole numbers and no text.
    """
    frame = spell_out(frame)
    names = list(map(str, frame.columns))
    rows = [names, *frame.head(2).itertuples(index=False)]
    grid = Grid([Line(0, list(map(str, row))) for row in rows], keys)
    roles = choose_roles(grid, names, int(bool(keys["index"])), header=True)
    columns = [frame.iloc[:, at] for at in roles]
    for role, column in zip(ROLES, columns[:2], strict=False):
        exact = 2**24 if column.dtype == "float32" else 2**53
        if column.dtype.kind == "f" and (column.abs() >= exact).any():
            raise Refused(f"column {column.name}: {role} ids so large are not exact as floats")
    text = [column.astype(str).where(column.notna(), "") for column in columns]
    listing, remarks = place_ratings([text], keys, None)
    return listing, Columns(True, names, roles, False).describe() + remarks
