"""How the command refuses an input: exit status 2 and one line."""

from __future__ import annotations

import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from mfgd.component import CONF, GROUPS, MAPS, list_options
from mfgd.config import Scalars
from mfgd.types import Refused


@contextmanager
def exit_on_refusal() -> Iterator[None]:
    """Turns an error of ours, of Hydra or of OmegaConf about an input into one line on stderr.

    Raises:
        SystemExit: with status 2, instead of such an error. Any other error passes.
    """
    try:
        yield
    except (Refused, HydraException, OmegaConfBaseException, ValueError) as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        if type(error) is ValueError and not frames[-1].f_globals["__name__"].startswith("hydra."):
            raise  # a fault of mfgd or of a user's function
        print(f"mfgd: {explain(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def explain(error: Exception) -> str:
    """Returns the error in one line, with the key, the value given and what is allowed."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if not error.options:
            return f"{group}={option}: no such group"
        return f"{group}={option}: allowed are {', '.join(error.options)}"
    if isinstance(error, OverrideParseException):
        return _explain_unreadable(error.override, text)
    if match := re.match(r"Error parsing override '(.*)'\n", text):
        return _explain_unreadable(match[1], text)
    if match := re.search(r"Could not override '([^']*)'", text):
        return _explain_unknown_key(match[1])
    if "Config group override" in text:
        named = [argument.partition("=")[0] for argument in sys.argv[1:]]
        group = next((name for name in named if name in GROUPS), "group")
        return f"{group}=null: allowed are {', '.join(list_options(group))}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: has no value; give {error.full_key}=VALUE"
    return " ".join(text.split())


def _explain_unreadable(given: str, text: str) -> str:
    """Why Hydra cannot read an argument, and how to quote it: its values know few signs."""
    key, equals, value = given.partition("=")
    if not equals or value[:1] in ("[", "{", "'", '"'):
        return " ".join(text.split())
    escaped = value.replace('"', '\\"')
    quoted = shlex.quote(f'{key}="{escaped}"')
    return f"{given}: such a value needs quotes of its own; write {quoted}"


def _explain_unknown_key(key: str) -> str:
    given = key
    for argument in sys.argv[1:]:
        if argument.lstrip("+~").startswith(f"{key}="):
            given = argument
            break
    parent = key.rpartition(".")[0]
    known = _known_keys(parent)
    if key in known or parent.partition(".")[0] in MAPS:
        return f"{given}: no such key; add it by +{given}"
    if parent:
        known = [f"{parent}.{name}" for name in known]
    return f"{given}: no such key; allowed are {', '.join(known) or 'none'}"


def _known_keys(parent: str) -> list[str]:
    """Returns the keys of the top level ("") or of a group: of the option that the shell line
    chooses, else of all options of the group."""
    if not parent:
        return [*Scalars.model_fields, *GROUPS, *MAPS, "experiment"]
    if parent not in GROUPS:
        return []
    paths = list((CONF / parent).glob("*.yaml"))
    for argument in sys.argv[1:]:
        chosen = CONF / parent / f"{argument.removeprefix(f'{parent}=')}.yaml"
        if argument.startswith(f"{parent}=") and chosen.exists():
            paths = [chosen]
    keys = {str(key) for path in paths for key in OmegaConf.load(path)}
    return sorted(keys - {"_target_"})
