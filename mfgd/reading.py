"""How a file is read: the keys that decide, numbers as people write them, and what is said of what
was read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypedDict

import numpy as np
from torch import Tensor

from mfgd.types import Refused

WORDS = frozenset(
    (
        "",
        "na",
        "n/a",
        "nan",
        "-nan",
        "null",
        "none",
        "?",
        "<na>",
        "#n/a",
        "#na",
        "1.#qnan",
        "1.#ind",
    )
)
"""What means a missing entry in a text file, in small letters."""
_SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "colons": "::"} | {
    "blank": " ",
    "\\t": "\t",
}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE)
_SET_APART = re.compile(r"[+-]?\d{1,3}([ '\u00a0\u202f]\d{3})+([.,]\d+)?")
"""Numbers whose thousands are set apart by blanks or apostrophes, which are no decimal marks."""
_GROUPED = {
    ".": re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?"),
    ",": re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+(,\d+)?"),
}
"""Decimal mark → numbers whose thousands are set apart by the other mark."""


Decimal = Literal[".", ",", "point", "comma"]


class ReadingKeys(TypedDict):
    """How a file is read. Null: as the file itself says; a file that can be read in two ways is
    refused.

    Keys:
        header: whether the first line of a text file holds names of the columns.
        index: whether the first column of a table holds names of the rows.
        separator: what stands between the cells of a text file: comma, semicolon, tab, bar (|),
            colons (::), blank (any number of blanks), or another character.
        decimal: the decimal mark of a text file, a point or a comma; the other mark may then set
            thousands apart.
        missing: words and numbers that mean a missing entry, beside empty cells, NaN, NA, N/A,
            null, none and ?.
        columns: the columns of a table to read, by name or counted from 0; one number: how many
            there are.
    """

    header: bool | None
    index: bool | None
    separator: str | None
    decimal: Decimal | None
    missing: list[str | int | float] | None
    columns: int | list[str | int] | None


AS_IT_SAYS = ReadingKeys(
    header=None, index=None, separator=None, decimal=None, missing=None, columns=None
)
"""A file is read as the file itself says."""


class Source(NamedTuple):
    """The file that a problem was read from."""

    path: str
    """As the user wrote it."""
    digest: str
    """A hash of the matrix that was read."""
    summary: str
    """What was read, in one line."""


class Listing(NamedTuple):
    """A matrix of which some entries are listed, and the others missing."""

    values: Tensor
    """(N,), in float64."""
    at: Tensor
    """(N,), the ascending positions of the entries in the flattened matrix."""
    shape: tuple[int, int]


def refuse_keys(keys: Mapping[str, object], taken: Sequence[str], what: str) -> None:
    """Raises `Refused` if a key is given that decides nothing for such a file.

    Args:
        keys: the keys.
        taken: the names of the keys that such a file takes.
        what: such a file, as in "a .npy file".
    """
    for name, value in keys.items():
        if value is not None and name not in taken:
            allowed = ", ".join(f"problem.{key}" for key in taken)
            given = f"problem.{name}={show(value)}"
            raise Refused(f"{given}: decides nothing for {what}; allowed: {allowed}")


def find_separator(keys: ReadingKeys) -> str | None:
    """The characters that the key `separator` names; None if it is not given."""
    given = keys["separator"]
    if given is None:
        return None
    separator = _SEPARATORS.get(given, given)
    if len(separator) != 1 and separator != "::":
        allowed = f"one character, or {', '.join(name for name in _SEPARATORS if name.isalpha())}"
        raise Refused(f"problem.separator={given}: must be {allowed}")
    return separator


def find_decimal(keys: ReadingKeys) -> str | None:
    """The mark that the key `decimal` names; None if it is not given."""
    return {"point": ".", "comma": ","}.get(keys["decimal"] or "", keys["decimal"])


class Numbers(NamedTuple):
    """How numbers are written."""

    decimal: str
    grouped: bool
    """Whether the other mark may set thousands apart."""
    words: frozenset[str]
    """What means a missing entry, in small letters."""
    values: tuple[float, ...]
    """Numbers that mean a missing entry."""

    @classmethod
    def read_keys(cls, keys: ReadingKeys, decimal: str = ".", grouped: bool = False) -> Numbers:
        """The way of writing with a decimal mark, with the missing entries that the keys name."""
        given = keys["missing"] or ()
        words = {item.strip().lower() for item in given if isinstance(item, str)}
        values = tuple(float(item) for item in given if not isinstance(item, str))
        return cls(decimal, grouped, WORDS | words, values)

    def parse(self, cell: str) -> float | None:
        """The number in a cell, NaN if the cell is missing, None if the cell is text."""
        if cell.lower() in self.words:
            return np.nan
        cell = cell.replace("\u2212", "-")
        if _SET_APART.fullmatch(cell):
            cell = re.sub("[ '\u00a0\u202f]", "", cell)
        other = "," if self.decimal == "." else "."
        if other in cell:
            if not (self.grouped and _GROUPED[self.decimal].fullmatch(cell)):
                return None
            cell = cell.replace(other, "")
        cell = cell.replace(",", ".")
        if not _NUMBER.fullmatch(cell):
            return None
        number = float(cell)
        return np.nan if number in self.values else number

    @property
    def plain(self) -> bool:
        """Whether `float` reads every number that `parse` reads."""
        return self.decimal == "." and not self.grouped and not self.values and self.words == WORDS


def list_writings(keys: ReadingKeys) -> list[Numbers]:
    """The ways in which a text file may write its numbers: plain, with thousands set apart, with a
    decimal comma; or the one way that the key `decimal` names."""
    given = find_decimal(keys)
    if given is not None:
        return [Numbers.read_keys(keys, given, grouped=True)]
    marks = ((".", False), (".", True), (",", True))
    return [Numbers.read_keys(keys, decimal, grouped) for decimal, grouped in marks]


def choose_writing(cells: Iterable[str], keys: ReadingKeys) -> Numbers | None:
    """The way of writing in which all cells are numbers or missing; None if there is none.

    Raises:
        Refused: the cells are other numbers with a decimal comma than with a decimal point.
    """
    possible = list_writings(keys)
    for cell in cells:
        left = [numbers for numbers in possible if numbers.parse(cell) is not None]
        if len(left) < len(possible):
            possible, doubted = left, cell
    if not possible:
        return None
    first, *others = possible
    if not first.grouped or not others:
        return first
    raise Refused(
        f"{doubted} has a decimal comma, or a comma between its thousands; "
        "problem.decimal=comma or problem.decimal=point decides"
    )


def drop_values(array: np.ndarray, keys: ReadingKeys) -> np.ndarray:
    """A float array with NaN for each number that means a missing entry."""
    values = Numbers.read_keys(keys).values
    return np.where(np.isin(array, values), np.nan, array) if values else array


def find_sentinel(entries: np.ndarray) -> float | None:
    """A number that may stand for a missing entry; None if there is none.

    It is the least or the largest entry, and made of nines, like -999 and 99; it is further from
    the next entry than all other entries are from each other. Or it is -1, and the only negative
    one of at least four numbers.
    """
    for extreme in (float(entries.min()), float(entries.max())):
        others = entries[entries != extreme]
        if not len(others):
            continue
        if re.fullmatch(r"-?99+\.0", str(extreme)) or extreme in (-9.0, 9.0):
            if np.abs(others - extreme).min() > np.ptp(others):
                return extreme
        elif extreme == -1 and others.min() >= 0 and len(np.unique(others)) > 2:
            return extreme
    return None


def show(value: object) -> str:
    """The value of a key as the shell line has it."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(str, value))}]"
    return str(value)


def count(number: int, singular: str, plural: str = "") -> str:
    """A number with its noun."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"
