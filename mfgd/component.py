"""The functions that a config names, with their keys checked."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from mfgd import schema, targets
from mfgd.types import Refused

if TYPE_CHECKING:
    from torch import Tensor

CONF = Path(__file__).parent / "conf"
"""The folder of the options: inside an installed package, beside the package in a checkout."""
if not CONF.is_dir():
    CONF = Path(__file__).parents[1] / "conf"
MAPS = ("metrics", "figures")
"""The maps of the user's own functions by name."""
Items = tuple[tuple[str, Any], ...]
"""The keys of a function and their values; a list is a tuple."""
GROUPS = ("problem", "init", "loss", "optimizer", "gradient", "schedule", "record", "tracking")


@dataclass(frozen=True)
class Component:
    """A function of a group and the values of its keys."""

    name: str
    """The option, or the dotted path of a user's own function."""
    target: str
    """The dotted path of the function."""
    function: Callable[..., Any]
    items: Items

    @property
    def arguments(self) -> schema.Values:
        return dict(self.items)

    def __call__(self) -> Any:
        return self.function(**self.arguments)

    def bind(self) -> partial[Any]:
        """Returns the function with its keys bound, which takes the remaining arguments."""
        return partial(self.function, **self.arguments)

    def __reduce__(self) -> Any:
        # Pickled by its path, because a lambda or a partial that a path names cannot be pickled.
        return _load_component, (self.name, self.target, self.items)

    def resolve(self) -> schema.Values:
        """Returns the component's node of the resolved config."""
        node: schema.Values = {"_target_": self.target}
        for key, value in self.items:
            node[key] = _thaw(value)
        return node


def _freeze(value: Any) -> Any:
    """A value with a tuple for every list in it, so that components can be compared and hashed."""
    return tuple(map(_freeze, value)) if isinstance(value, list) else value


def _thaw(value: Any) -> Any:
    return list(map(_thaw, value)) if isinstance(value, tuple) else value


def _load_component(name: str, target: str, items: Items) -> Component:
    # The process that pickled it has checked the target; a pickle could name anything by itself.
    return Component(name, target, targets.load_target(target), items)


def batch_identity(component: Component) -> Hashable:
    """What the components of one batch have in common: the function and every key that is not a
    float."""
    keys = tuple(
        (key, None if isinstance(value, float) else value) for key, value in component.items
    )
    return component.function, keys


def build_component(
    components: Sequence[Component], column: Callable[[list[float]], Tensor]
) -> Any:
    """What the common function of components gives if each float becomes a column of the runs'
    values.

    Args:
        components: one a run, of equal `batch_identity`.
        column: B numbers → a column (B, 1, 1).
    """
    arguments = dict(components[0].items)
    for key, value in arguments.items():
        if isinstance(value, float):
            arguments[key] = column([dict(component.items)[key] for component in components])
    return components[0].function(**arguments)


def list_options(group: str) -> list[str]:
    """Returns the names of the options of a group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


_SHARED: dict[Hashable, Component] = {}


def share_components(kind: str, node: object) -> tuple[tuple[str, Component], ...]:
    """Returns the names and the checked components of a map of the user's own functions.

    Args:
        kind: the name of the map: metrics or figures.
        node: name → {_target_: path, key: value, …}.

    Raises:
        Refused: with the key, the value and what is allowed.
    """
    addition = f"add to it by +{kind}.NAME._target_=PATH"
    if not isinstance(node, dict):
        raise Refused(f"{kind}={schema.as_written(node)}: must be a map; {addition}")
    components = []
    for name, entry in node.items():
        if not re.fullmatch(r"[A-Za-z_][\w-]*", str(name)):
            raise Refused(f"{kind}.{name}: must be a name of letters, digits, _ and -")
        if not isinstance(entry, dict) or "_target_" not in entry:
            raise Refused(f"{kind}.{name}={schema.as_written(entry)}: has no function; {addition}")
        components.append((name, share_component(f"{kind}.{name}", entry)))
    return tuple(components)


def share_component(
    group: str, node: object, option: str | None = None, overrides: Sequence[str] = ()
) -> Component:
    """Returns the checked component of a group. The runs of a sweep, up to 100,000, share equal
    components."""
    named: frozenset[str] = frozenset()
    if isinstance(node, dict) and node.get("_target_") != f"mfgd.{group}.{option}":
        named = _named_keys(group, overrides)
    # The key has the node's text instead of the node, because 1 and 1.0 are equal.
    key = (group, option, repr(node), named)
    if key not in _SHARED:
        _SHARED[key] = _check_component(group, node, option, named)
    return _SHARED[key]


def _named_keys(group: str, overrides: Sequence[str]) -> frozenset[str]:
    """Returns the keys of a group that the shell line names, as in group.key=1 or group={key:1}."""
    named: set[str] = set()
    for line in overrides:
        name, _, value = line.lstrip("+~").partition("=")
        if name.startswith(f"{group}."):
            named.add(name.split(".")[1])
        elif name == group and value.startswith("{"):
            given: Any = OverridesParser.create().parse_override(line).value()
            named.update(given)
    return frozenset(named)


def _check_component(
    group: str, node: object, option: str | None, named: frozenset[str]
) -> Component:
    """Returns the component of a node.

    Args:
        group: the name of the group.
        node: the group's part of the config.
        option: the option chosen, which a user's own function stands in for.
        named: the keys of the group that the shell line names.

    Raises:
        Refused: if the node has no function, or the function does not take the keys.
    """
    if not isinstance(node, dict) or "_target_" not in node:
        raise Refused(
            f"{group}={schema.as_written(node)}: allowed are {', '.join(list_options(group))}"
        )
    given = dict(node)
    target = given.pop("_target_")
    function = _load_function(f"{group}._target_", target)
    own = None
    if option:
        own = getattr(import_module(f"mfgd.{group}"), option, None)
    # What a metric or a figure takes by position, mfgd gives it.
    try:
        model = schema.keys_of(function, own, tuple(given), keyword_only=group not in GROUPS)
    except Exception as error:  # Python, and pydantic, refuse annotations in many ways
        reason = f"its keys cannot be read ({type(error).__name__}: {error})"
        raise Refused(f"{group}._target_={target}: {reason}") from None
    if option and function is not own:
        # A key of the option that the user's function does not take is dropped if nobody set it.
        for key, value in option_keys(group, option).items():
            unset = key not in named and repr(given.get(key)) == repr(value)
            if unset and key not in model.model_fields:
                given.pop(key, None)
    for key, value in given.items():
        if value == "???":
            raise Refused(f"{group}.{key}: has no value; give {group}.{key}=VALUE")
    items: list[tuple[str, Any]] = []
    where = f" with {group}={option}" if option and function is own else ""
    for key, value in schema.check(model, given, f"{group}.", where).items():
        items.append((key, _freeze(value)))
    # The name of a user's own option file stands for what the file says, the function too.
    from_file = own is None and "_target_" not in named
    name = option if option and (from_file or own is function) else target
    return Component(name, target, function, tuple(items))


def _load_function(key: str, target: str) -> Callable[..., Any]:
    try:
        if not _is_option(target):
            targets.check_target(target)
        function = targets.load_target(target)
    except Refused as refused:
        raise Refused(f"{key}={target}: {refused}") from None
    except Exception as error:  # importing runs a user's file, where anything can go wrong
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f" ({last.filename}, line {last.lineno})" if Path(last.filename).exists() else ""
        if isinstance(error, SyntaxError):  # its text has the place
            place = ""
        reason = f"{type(error).__name__}: {error}{place}; {targets.FORM}"
        raise Refused(f"{key}={target}: {reason}") from None
    if not callable(function):
        raise Refused(f"{key}={target}: {targets.FORM}")
    if inspect.isbuiltin(function) or getattr(function, "__module__", None) == "builtins":
        raise Refused(f"{key}={target}: is built in; must be the dotted path of a Python function")
    return function


def _is_option(target: object) -> bool:
    """Whether a dotted path is that of an option of mfgd."""
    found = re.fullmatch(rf"mfgd\.({'|'.join(GROUPS)})\.(\w+)", str(target))
    return found is not None and (CONF / found[1] / f"{found[2]}.yaml").exists()


@cache
def option_keys(group: str, option: str) -> schema.Values:
    """Returns the keys that stand in the YAML of an option; empty if mfgd has no such option."""
    path = CONF / group / f"{option}.yaml"
    if not path.exists():
        return {}
    keys: Any = OmegaConf.to_container(OmegaConf.load(path))
    del keys["_target_"]
    return keys
