"""Which columns of a file of ratings hold user, item and rating."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from mfgd.grid import Grid
from mfgd.labels import has_index_below_short_header
from mfgd.reading import ReadingKeys, find_separator, show
from mfgd.text import Text, take_only_separator
from mfgd.types import Refused

ROLES = {
    "user": "user users uid u customer reviewer member person profile visitor",
    "item": "item items iid i movie film product asin parentasin book isbn anime song track artist "
    "business game recipe joke restaurant beer place",
    "rating": "rating ratings score scores star stars overall value r userrating bookrating",
}
"""Role → the names of its column, in small letters, without other signs and without "id" behind."""
SEPARATORS = ("\t", "::", ";", ",", "|", " ")
TIMES = 1e8
"""Whole numbers from here on are seconds since 1970, and no ratings."""


class Columns(NamedTuple):
    """Where a file has what."""

    header: bool
    names: list[str]
    """The name of each column, empty if it has none."""
    roles: list[int]
    """The positions of user, item and rating."""
    unnamed: bool
    """Whether the header has no name for the last column, which is to be empty."""

    def describe(self) -> list[str]:
        """What is to be said of the columns."""
        parts = []
        for role, at in zip(ROLES, self.roles, strict=True):
            parts.append(f"{role} from {self.names[at] or f'column {at}'}")
        return [*([] if self.header else ["no header"]), *parts]


def choose_separator(text: Text, keys: ReadingKeys) -> str:
    """What stands between the cells of a file of ratings: at least three columns.

    Raises:
        Refused: nothing does, or several signs do.
    """
    given = find_separator(keys)
    possible = []
    for separator in SEPARATORS if given is None else (given,):
        head = text.take_head(separator)
        widths = {len(line.cells) for line in head[1:]} or {len(line.cells) for line in head}
        if head and len(head[0].cells) > 2 and min(widths) > 2:
            possible.append(separator)
    found = take_only_separator(possible)
    if found is None:
        raise Refused("fewer than 3 columns; allowed are at least user, item and rating")
    return found


def find_columns(grid: Grid, header: bool) -> Columns:
    """Where user, item and rating are.

    Raises:
        Refused: the columns may be others; the message names the key that decides.
    """
    keys, first = grid.keys, grid.first
    missing = grid.width - len(first)
    if not header or not missing:
        named = list(first) if header else [""] * grid.width
        skipped, unnamed = int(bool(keys["index"])), False
    elif missing == 1:
        skipped, unnamed = _find_unnamed(grid)
        named = ["", *first] if skipped else [*first, ""]
    else:
        raise Refused(f"{len(first)} names for {grid.width} columns; allowed is one name a column")
    roles = choose_roles(grid, named, skipped, header)
    return Columns(header, named, roles, unnamed)


def has_header(grid: Grid) -> bool:
    """Whether the first line holds names: it names all roles, or has text above numbers."""
    if len(_match_names(grid.first)) == len(ROLES):
        return True
    if not grid.body:
        return False
    return any(map(grid.is_name_of_numbers, range(min(grid.width, len(grid.first)))))


def _find_unnamed(grid: Grid) -> tuple[int, bool]:
    """How many columns at the left hold row names, and whether the last column has no name.

    Raises:
        Refused: either is possible.
    """
    empty = not any(grid.columns[-1])
    if empty and grid.keys["index"] is None:
        return 0, True
    return int(has_index_below_short_header(grid)), empty


def _match_names(names: Sequence[str]) -> dict[str, list[int]]:
    """Role → the positions of the columns with a name of this role; roles without one are left
    out."""
    found: dict[str, list[int]] = {}
    for at, name in enumerate(names):
        # RecBole writes the type of a column behind its name: user_id:token.
        plain = re.sub(r"[^a-z]", "", name.lower().partition(":")[0])
        for role, known in ROLES.items():
            if plain in known.split() or plain.removesuffix("id") in known.split():
                found.setdefault(role, []).append(at)
    return found


def choose_roles(grid: Grid, names: list[str], skipped: int, header: bool) -> list[int]:
    """The positions of user, item and rating: those that the key `columns` gives, those with their
    names, or the first three columns."""
    wanted = grid.keys["columns"]
    if wanted is not None:
        return _take_given(wanted, names, skipped)
    hint = (
        "problem.columns=[A,B,C] says which hold user, item and rating, by name or counted from 0"
    )
    if header:
        found = _match_names(names)
        if len(found) < len(ROLES) or any(len(at) > 1 for at in found.values()):
            raise Refused(f"columns {', '.join(names)}; {hint}")
        return [found[role][0] for role in ROLES]
    roles = [skipped, skipped + 1, skipped + 2]
    counted = grid.width > 3 and grid.keys["index"] is None and grid.first[0] == "0"
    numbers = [grid.first[0], *grid.columns[0]]
    if counted and grid.is_consecutive(numbers) and not _are_times(grid, 3):
        raise Refused(
            "the first column counts the lines: it holds row names (problem.index=true) "
            "or users (problem.index=false)"
        )
    if _are_times(grid, roles[2]):
        raise Refused(f"the third column holds times; {hint}")
    return roles


def _take_given(wanted: object, names: list[str], skipped: int) -> list[int]:
    """The positions of user, item and rating that the key `columns` gives: three columns by name or
    position; or what each column holds, in these three words."""
    name = f"problem.columns={show(wanted)}"
    if isinstance(wanted, list | tuple) and set(ROLES) <= set(wanted) and len(wanted) <= len(names):
        if not set(ROLES) <= set(names):
            return [skipped + wanted.index(role) for role in ROLES]
        wanted = tuple(ROLES)
    if not isinstance(wanted, list | tuple) or len(wanted) != len(ROLES):
        raise Refused(f"{name}: must be three columns: user, item, rating")
    roles = []
    for column in wanted:
        if isinstance(column, int) and 0 <= column < len(names) - skipped:
            roles.append(skipped + column)
        elif names.count(str(column)) == 1:
            roles.append(names.index(str(column)))
        else:
            there = ", ".join(filter(None, names)) or f"0 to {len(names) - skipped - 1}"
            raise Refused(f"{name}: no column {column}; there are {there}")
    return roles


def _are_times(grid: Grid, column: int) -> bool:
    """Whether all numbers of a column are large and whole, like seconds since 1970."""
    below = grid.columns[column] if grid.body else [grid.first[column]]
    numbers = [grid.parse(cell) for cell in below]
    return all(value is not None and value >= TIMES and value % 1 == 0 for value in numbers)
