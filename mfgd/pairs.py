"""Keys of a sweep that move together: `zip.lr=0.1,0.2 zip.optimizer.beta=0.5,0.9` is two runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import product

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from mfgd.types import Refused

SWEEPER = "hydra_plugins.mfgd_sweeper.ListSweeper"
"""The sweeper that lists every combination, and the only one that moves keys together."""
PAIRED = re.compile(r"(\+{0,2})zip\.")
"""How an override begins whose key moves with others."""


def unpair(text: str) -> str:
    """An override as it is of its key alone, without `zip.`."""
    return PAIRED.sub(r"\1", text, count=1) if PAIRED.match(text) else text


def refuse_pairs(lines: Iterable[str], sweeper: str) -> None:
    """Refuses keys that move together under a sweeper that asks for values one by one."""
    if given := [line for line in lines if PAIRED.match(line)]:
        allowed = "allowed is hydra/sweeper=list"
        raise Refused(f"{' '.join(given)}: hydra/sweeper={sweeper} moves keys alone; {allowed}")


def list_jobs(
    overrides: Iterable[Override], parse: Callable[[list[str]], list[Override]]
) -> list[list[str]]:
    """The jobs of a sweep: every combination of its keys, of which those under `zip.` count as one.

    Args:
        overrides: what the config and the shell line say; of a key the last one holds.
        parse: texts → overrides.

    Raises:
        HydraException: an override has no list of values.
        Refused: keys that move together have unequal numbers of values, or are given alone too.
    """
    columns: dict[str, Sequence[tuple[str, ...]]] = {}
    together: dict[str, tuple[str, Override]] = {}
    for override in overrides:
        text = str(override.input_line)
        if unpair(text) == text:
            columns[override.get_key_element()] = [(line,) for line in _list_values(override)]
        else:
            columns["zip"] = ()
            (one,) = parse([unpair(text)])
            together[one.get_key_element()] = text, one
    if together:
        columns["zip"] = _move_together(together, [key.lstrip("+~") for key in columns])
    return [[line for lines in job for line in lines] for job in product(*columns.values())]


def _move_together(
    together: Mapping[str, tuple[str, Override]], alone: Collection[str]
) -> list[tuple[str, ...]]:
    """The lines of each job of keys that move together."""
    for said, one in together.values():
        if one.is_hydra_override():
            raise Refused(f"{said}: allowed are keys of the run, and no key of Hydra's")
        if one.key_or_group in alone:
            allowed = "allowed is one of both"
            raise Refused(f"{said}: {one.key_or_group} is given without zip. too; {allowed}")
    values = {said: _list_values(one) for said, one in together.values()}
    if len({len(lines) for lines in values.values()}) > 1:
        given = ", ".join(f"{said} has {len(lines)}" for said, lines in values.items())
        raise Refused(f"{given}: keys that move together need equally many values")
    return list(zip(*values.values(), strict=True))


def _list_values(override: Override) -> list[str]:
    """KEY=VALUE for each value of an override."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        assert override.value_type is not None
        raise HydraException(f"the sweeper does not support sweep type {override.value_type.name}")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]
