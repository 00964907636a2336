"""The error of an unusable input, and what a command makes of it."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from mfgd.passwords import hide_passwords
from mfgd.terminal import warn


class Refused(ValueError):
    """An input that cannot be used: one line with the key, its value and what is allowed, without
    passwords."""

    def __init__(self, text: str) -> None:
        super().__init__(hide_passwords(text))


class NotWritten(Exception):
    """A tracker could not keep a run; other runs may fare better."""


class Parser(ArgumentParser):
    """A parser of arguments that prints no passwords."""

    def error(self, message: str) -> NoReturn:
        super().error(hide_passwords(message))


@contextmanager
def exit_if_refused() -> Iterator[None]:
    """Ends a command with one line if an input is refused.

    Raises:
        SystemExit: with status 2, instead of `Refused`. Any other error passes.
    """
    try:
        yield
    except Refused as refused:
        warn(str(refused))
        raise SystemExit(2) from None


def refuse_odd_arguments() -> None:
    """Refuses a flag with a character that does not print, which argparse would print as it is, and
    an argument that no file can be named by.

    Raises:
        Refused: with the argument.
    """
    for argument in sys.argv[1:]:
        try:
            os.fsencode(argument)
        except UnicodeEncodeError:
            raise Refused(f"{argument!a}: is no text; allowed is UTF-8") from None
        if argument.startswith("-") and not argument.isprintable():
            raise Refused(f"{argument}: allowed in a flag are characters that print")
