"""Text files: what stands between their cells, and how their numbers are written."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mfgd.reading import ReadingKeys, find_decimal, find_separator
from mfgd.types import Refused

HEAD = 1000
"""Lines from which it is decided how a text file is read; fewer, but at least `FEWEST`, if they
have more than `CELLS` cells."""
FEWEST, CELLS = 20, 50_000
NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", "::": "colons", " ": "blanks"}
USUAL = {".csv": ",", ".tsv": "\t"}
"""Suffix → the separator that goes without saying."""
_UNIT = "\x1f"
"""Takes the place of a separator of two characters, which `csv` does not know."""


class Line(NamedTuple):
    """A line with cells in it."""

    number: int
    """Its number in the file, counted from 1."""
    cells: list[str]
    """Empty if the line is blank."""
    named: bool = False
    """Whether its first cell stands in quotes and its last cell does not: R quotes names so."""


class Text:
    """A text file without the comments at its head.

    Raises:
        Refused: the contents are no text.
    """

    def __init__(self, content: bytes) -> None:
        text = decode(content).replace("\r\n", "\n").replace("\r", "\n")
        self.comments = 0
        at = 0
        while text[at : at + 1] in ("#", "%"):
            at = text.find("\n", at) + 1 or len(text)
            self.comments += 1
        self.skipped, self.body = text[:at], text[at:]

    def split(self, separator: str, lines: int | None = None) -> Iterator[Line]:
        """The lines, or the first lines, each split into its cells without blanks around them."""
        body = self.body if lines is None else _take_lines(self.body, lines)
        stream: Iterator[str] = io.StringIO(body, newline="")
        delimiter = separator
        named = False

        def watch(lines: Iterator[str]) -> Iterator[str]:
            nonlocal named
            for line in lines:
                named = line.startswith('"') and not line.rstrip().endswith('"')
                yield line

        if separator == "::":
            stream, delimiter = (line.replace("::", _UNIT) for line in stream), _UNIT
        elif separator == " ":
            stream = (" ".join(re.split(r"[ \t]+", line.strip(" \t\n"))) for line in stream)
        reader = csv.reader(watch(stream), delimiter=delimiter, skipinitialspace=True)
        for cells in reader:
            yield Line(reader.line_num + self.comments, [cell.strip() for cell in cells], named)

    def take_head(self, separator: str) -> list[Line]:
        """The first lines that are not blank; none if they cannot be split."""
        head: list[Line] = []
        cells = 0
        try:
            for line in self.split(separator, HEAD):
                if any(line.cells) or line.cells[1:]:
                    head.append(line)
                cells += len(line.cells)
                if cells > CELLS and len(head) >= FEWEST:
                    break
        except csv.Error:
            return []
        return head


def decode(content: bytes) -> str:
    """Text in UTF-8, in UTF-16 with its mark, or else in Latin 1.

    Raises:
        Refused: the contents are no text.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    if b"\0" in content:
        raise Refused("no text: it has zero bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _take_lines(text: str, count: int) -> str:
    at = 0
    for _ in range(count):
        at = text.find("\n", at) + 1
        if not at:
            return text
    return text[:at]


def list_separators(text: Text, keys: ReadingKeys, suffix: str) -> list[str]:
    """The separators that a file may have, the usual one of its suffix first, and blanks last."""
    given = find_separator(keys)
    if given is not None:
        return [given]
    signs = sorted((",", ";", "\t", "|"), key=lambda sign: sign != USUAL.get(suffix))
    found = [separator for separator in signs if separator in text.body]
    if find_decimal(keys) == "," and not re.search(r'"[^"\n]*,[^"\n]*"', text.body):
        found = [separator for separator in found if separator != ","]  # commas are decimal marks
    if "\t" not in found:  # blanks beside tabs are blanks around cells
        found.append(" ")
    return found


def take_only_separator(possible: Sequence[str]) -> str | None:
    """The only one of several possible separators, where blanks beside another one are none; None
    if nothing is possible.

    Raises:
        Refused: there are several.
    """
    signs = [separator for separator in possible if separator != " "] or list(possible)
    if len(signs) > 1:
        names = " or ".join(NAMES.get(separator, separator) for separator in signs)
        raise Refused(f"cells stand between {names}; problem.separator decides")
    return signs[0] if signs else None


def refuse_ragged(head: Sequence[Line], short: bool) -> None:
    """Raises `Refused` if lines differ in length, but for a first line that is to be short."""
    for line in head[short:]:
        if len(line.cells) != len(head[-1].cells):
            raise ragged(line, len(head[-1].cells))


def ragged(line: Line, width: int) -> Refused:
    """The refusal of a line that has not as many cells as another."""
    cells = sorted((len(line.cells), width))
    which = f"line {line.number} has {len(line.cells)}"
    return Refused(
        f"ragged: rows of {cells[0]} to {cells[1]} cells, {which}; allowed is one length"
    )
