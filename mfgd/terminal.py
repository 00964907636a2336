"""What is printed: names and messages of others cannot command the terminal."""

from __future__ import annotations

import sys
from typing import TextIO

LONGEST = 1000
"""Characters of a line on stderr; a longer one is cut in its middle."""


def show_plain(text: str) -> str:
    r"""The text in one line, a character that does not print as its escape, such as \x1b or \n."""
    if text.isprintable():
        return text
    return "".join(map(_show_character, text))


def _show_character(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def say(text: str, file: TextIO | None = None) -> None:
    """Prints lines, by default to stdout."""
    print("\n".join(map(show_plain, text.split("\n"))), file=file, flush=True)


def warn(text: str) -> None:
    """Prints one line to stderr, as said by mfgd."""
    from tqdm import tqdm

    line = show_plain(text)
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"
    tqdm.write(f"mfgd: {line}", file=sys.stderr)  # above a bar, if one is drawn
    sys.stderr.flush()
