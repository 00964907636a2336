"""How the command refuses an input: exit status 2 and one line."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import (
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from yaml import MarkedYAMLError, YAMLError
from yaml.reader import ReaderError

from mfgd.component import CONF, GROUPS, MAPS, list_options, option_keys
from mfgd.pairs import unpair
from mfgd.passwords import hide_passwords
from mfgd.point import Scalars
from mfgd.terminal import warn
from mfgd.types import Refused

FORM = "must be KEY=VALUE, without blanks; mfgd --help shows all keys"
OF_INPUTS = (Refused, HydraException, OmegaConfBaseException, YAMLError)
"""What is raised of an input only."""
BARE = (ValueError, TypeError, AssertionError, AttributeError, KeyError, RuntimeError)
"""What Hydra and OmegaConf raise too if they cannot read an argument."""
FUNCTION = r"(choice|range|interval|glob|shuffle|sort|tag|int|float|str|bool)\(.*\)"
"""A value that Hydra computes."""


@contextmanager
def exit_on_refusal() -> Iterator[None]:
    """Turns an error of ours, of Hydra or of OmegaConf about an input into one line on stderr.

    Raises:
        SystemExit: with status 2, instead of such an error. Any other error passes.
    """
    try:
        yield
    except (*OF_INPUTS, *BARE) as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        raised_in = frames[-1].f_globals["__name__"].partition(".")[0]
        if not isinstance(error, OF_INPUTS) and raised_in not in ("hydra", "omegaconf", "codecs"):
            raise  # a fault of mfgd or of a user's function
        warn(hide_passwords(explain(error)))
        raise SystemExit(2) from None


def explain(error: Exception) -> str:
    """Returns the error in one line, with the key, the value given and what is allowed."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _explain_missing_file(error.missing_cfg_file, error.options)
    if isinstance(error, OverrideParseException):
        return _explain_unreadable(error.override, text)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: has no value; give {error.full_key}=VALUE"
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        place = error.problem_mark
        return f"{place.name}, line {place.line + 1}: is not YAML: {error.problem}"
    if isinstance(error, UnicodeDecodeError):
        return f"a file of the config is not UTF-8: {text}"
    if isinstance(error, ReaderError):
        return f"{error.name}: is not YAML: {error.reason} at position {error.position}"
    if isinstance(error, InterpolationResolutionError):
        return f"{_find_argument(error.full_key or '')}: {text.splitlines()[0]}"
    for pattern, explanation in EXPLANATIONS.items():
        if match := re.search(pattern, text):
            return explanation(text, *match.groups())
    if type(error) in BARE:
        return f"Hydra cannot read these arguments ({error!r}); mfgd --help shows their form"
    return " ".join(text.split())


def _explain_missing_file(path: str, options: Sequence[str] | None) -> str:
    group, _, option = path.rpartition("/")
    if not group:
        return f"--config-name={option}: no such file; allowed are config and those of --config-dir"
    if not options:
        return f"{group}={option}: no such {'option' if group in GROUPS else 'group'}"
    near = suggest(option, options)
    if group == "experiment" and not near:
        near = f"; a name in MLflow is tracking.experiment={option}"
    return f"{group}={option}: allowed are {', '.join(options)}{near}"


def _explain_unreadable(given: str, text: str) -> str:
    """Why Hydra cannot read an argument, and how to write it: its values know few signs."""
    key, equals, value = given.partition("=")
    if not equals or not re.fullmatch(r"[+~]{0,2}[A-Za-z_][\w./@:-]*(?<![.])", key):
        return f"{given}: {FORM}"
    if value.startswith("="):
        return f"{given}: has two signs =; write {key}={value.lstrip('=')}"
    if value[:1] in ("[", "{", "'", '"') or re.fullmatch(FUNCTION, value):
        return f"{given}: {' '.join(text.split())}"
    return f"{given}: such a value needs quotes of its own; write {quote(key, value)}"


def quote(key: str, value: str) -> str:
    """An argument as it is pasted into a shell, in quotes for the shell and for Hydra, to whom a
    backslash is special only before ${, and as `quote_value` says."""
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return shlex.quote(f"{key}={quote_value(value)}")


def quote_value(value: str) -> str:
    """A value in quotes for Hydra, to whom a backslash is special only before a quote."""
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    return f'"{escaped}"'


def _explain_null_group(_: str) -> str:
    for argument in sys.argv[1:]:
        key, equals, value = argument.partition("=")
        if key in GROUPS and value in ("", "null"):
            return f"{key}=null: allowed are {', '.join(list_options(key))}"
        if equals and not key:
            return f"{argument}: {FORM}"
    return "a group has no option; mfgd --help shows the options"


def _explain_unknown_key(_: str, key: str) -> str:
    given = _find_argument(key)
    parent, _, name = key.rpartition(".")
    if unpair(key) != key and not given.startswith("~"):
        where = "keys move together with --multirun hydra/sweeper=list only"
        return f"{given}: {where}; allowed is {unpair(given)}"
    if key in MAPS or parent.partition(".")[0] in MAPS:
        return f"{given}: no such key; add it by +{given}"
    if parent.partition(".")[0] == "hydra":
        return f"{given}: no such key; mfgd --cfg hydra shows them"
    if parent in GROUPS:
        return f"{given}: no such key; {_explain_key_of_group(given, parent, name)}"
    known = [] if parent else [*Scalars.model_fields, *GROUPS, *MAPS, "experiment"]
    if key in known:  # a dictionary was given to a group
        return f"{given}: no such key; add it by +{given}"
    return f"{given}: no such key; allowed are {', '.join(known) or 'none'}{suggest(key, known)}"


def _explain_key_of_group(given: str, group: str, name: str) -> str:
    """Which keys the option in force has, and which options have the key."""
    try:
        config = _compose_choices()
    except Exception:  # what is wrong is elsewhere in the shell line, or in a file
        return f"mfgd {group}=OPTION --cfg job shows the keys of an option"
    known = sorted(f"{group}.{key}" for key in config[group] if key != "_target_")
    option = config.hydra.runtime.choices[group]
    text = f"allowed are {', '.join(known) or 'none'} with {group}={option}"
    having = [other for other in list_options(group) if name in option_keys(group, other)]
    if not having or given.startswith("~"):
        return text + suggest(f"{group}.{name}", known)
    swept = re.findall(r"[\w-]+", _find_argument(group).partition("=")[2].removeprefix("choice("))
    lacking = set(swept) - set(having)
    if len(swept) > 1 and not lacking:
        added = shlex.quote(f"++{given.lstrip('+~')}")
        return f"{text}; the options of the sweep have it: write {added}"
    if len(swept) > 1 and lacking < set(swept):
        return f"{text}; of the sweep's options {', '.join(sorted(lacking))} has it not"
    verb = "have" if len(having) > 1 else "has"
    return f"{text}; {', '.join(having)} {verb} it: write {group}={having[0]} {shlex.quote(given)}"


def _explain_existing_key(_: str, key: str) -> str:
    given = _find_argument(key)
    return f"{given}: is there already; write {given.lstrip('+')}"


def _explain_interval(_: str) -> str:
    given = _find_argument_with("interval(")
    forms = "KEY=1,2,3, KEY='range(1,4)' and KEY='choice(1,2)'"
    others = "hydra/sweeper=frontier bisects it, hydra/sweeper=optuna draws from it"
    return f"{given}: hydra/sweeper=list draws no values; allowed are {forms}; {others}"


def _explain_range(text: str) -> str:
    return f"{_find_argument_with('range(')}: {text}"


EXPLANATIONS: dict[str, Callable[..., str]] = {
    r"Error parsing override '(.*)'\n": lambda text, given: _explain_unreadable(given, text),
    r"Could not override '([^']*)'": _explain_unknown_key,
    r"Could not delete from config. '([^']*)' does not exist": _explain_unknown_key,
    r"An item is already at '([^']*)'": _explain_existing_key,
    r"Multiple values for ([^ ]*)\. To override": _explain_existing_key,
    r"Config group override must be": _explain_null_group,
    r"does not support sweep type": _explain_interval,
    r"^range\(\) arg": _explain_range,
}
"""Pattern in an error of Hydra's → its explanation, of the text and the groups of the pattern."""


def suggest(given: str, allowed: Sequence[str]) -> str:
    """The name that was perhaps meant, as the end of a message."""
    near = get_close_matches(given, allowed, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _find_argument(key: str) -> str:
    """The argument of the shell line that sets a key; the key if there is none."""
    for argument in sys.argv[1:]:
        name = argument.lstrip("+~").partition("=")[0]
        if key in (name, unpair(name)):
            return argument
    return key


def _find_argument_with(part: str) -> str:
    """The argument of the shell line that contains a text; the text if there is none."""
    return next((argument for argument in sys.argv[1:] if part in argument), part)


def _compose_choices() -> DictConfig:
    """The config of what the shell line chooses, without the keys that it sets."""
    flags = argparse.ArgumentParser(add_help=False)
    flags.add_argument("--config-dir", "-cd")
    flags.add_argument("--config-name", "-cn", default="config")
    given, rest = flags.parse_known_args(sys.argv[1:])
    chosen = []
    for argument in rest:
        key, _, value = argument.lstrip("+").partition("=")
        if key in (*GROUPS, "experiment") and "," not in value and "(" not in value:
            chosen.append(f"{key}={value}")
    if given.config_dir:
        chosen.append(f"hydra.searchpath=[{Path(given.config_dir).absolute().as_uri()}]")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(given.config_name, chosen, return_hydra_config=True)
