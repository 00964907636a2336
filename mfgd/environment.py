"""What a process is started with: where Python looks for modules, and the environment's variables.

Python itself imports what this module imports, so that no file in the working directory can stand
in for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

HOME = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
"""The folder that this package is in."""


def search_here_last() -> None:
    """Has Python look for modules in the working directory, after all other places: a file such as
    requests.py, beside the data, must not run where an installed module is meant.

    A checkout that mfgd comes from keeps its place.
    """
    here = os.getcwd()
    before = [entry for entry in sys.path if entry not in ("", here)]
    if here != HOME or len(before) == len(sys.path):
        sys.path[:] = [*before, here]


@contextmanager
def pass_on_search() -> Iterator[None]:
    """Has a Python that is started in the block look for modules where this one does. By itself it
    would look in the working directory first."""
    places = os.pathsep.join(filter(None, sys.path))
    with change_environment({"PYTHONSAFEPATH": "1", "PYTHONPATH": places}):
        yield


@contextmanager
def change_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets variables of the environment to values, within the block."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
