"""The schema of conf/, and what is refused.

A composed config becomes a `Point`, every value of it checked: top-level keys against `Scalars`, the keys of a group
against the annotations of the function that the group's ``_target_`` names.
"""

from __future__ import annotations

import atexit
import hashlib
import inspect
import json
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Literal, get_type_hints

import torch
from annotated_types import Ge, Gt, MinLen
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from mfgd.types import Count, NonNegative, Positive, Refused, Seed

# An installed package carries conf/ inside; a checkout has it beside.
CONF = next(
    p for p in (Path(__file__).parent / "conf", Path(__file__).parents[1] / "conf") if p.is_dir()
)
GROUPS = ("problem", "init", "loss", "optimizer", "schedule", "record", "tracking")


class Scalars(BaseModel):
    """The top-level keys."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    rank: Count
    lr: Positive | Annotated[list[Positive], MinLen(1)]
    lr_unit: Literal["absolute", "sigma1", "sharpness"]
    steps: Count
    tolerance: NonNegative
    divergence: Annotated[float, Gt(1)]
    seed: Seed
    depth: Annotated[int, Ge(2)]
    dtype: Literal["float64", "float32"]
    device: str
    diagnostics: Literal["basic", "dynamics", "full"]
    batch_bytes: Count
    workers: Count | None


@dataclass(frozen=True)
class Component:
    """A function of a group and the values of its keys."""

    name: str
    """The option, or the dotted path of a user's own function."""
    target: str
    """The dotted path of the function."""
    function: Callable[..., Any]
    items: tuple[tuple[str, Any], ...]

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.items)

    def __call__(self) -> Any:
        return self.function(**self.arguments)

    def __reduce__(self) -> Any:
        # By its path: what a path names, a lambda or a partial, need not be something that can be pickled.
        return _found, (self.name, self.target, self.items)


@dataclass(frozen=True)
class Point:
    """One run of a sweep, checked."""

    rank: int
    lr: tuple[float, ...]
    """The rates of the first steps; the last one holds."""
    lr_unit: str
    steps: int
    tolerance: float
    divergence: float
    seed: int
    depth: int
    dtype: torch.dtype
    device: str
    diagnostics: str
    batch_bytes: int
    workers: int | None
    problem: Component
    init: Component
    loss: Component
    optimizer: Component
    schedule: Component
    record: Component
    tracking: Component
    experiment: str | None
    overrides: tuple[str, ...]
    """What the shell line said of this run."""

    @property
    def resolved(self) -> dict[str, Any]:
        """The config as composed and resolved, without the address where it is tracked: that may hold a password."""
        values: dict[str, Any] = {key: getattr(self, key) for key in Scalars.model_fields}
        values |= {
            "lr": list(self.lr) if len(self.lr) > 1 else self.lr[0],
            "dtype": str(self.dtype)[len("torch.") :],
        }
        for group in GROUPS:
            component: Component = getattr(self, group)
            values[group] = {"_target_": component.target} | {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in component.items
            }
        del values["tracking"]["uri"]
        return values

    @property
    def choices(self) -> dict[str, str]:
        """Group → chosen option, or the dotted path of a user's own function."""
        chosen = {group: getattr(self, group).name for group in GROUPS}
        return chosen | ({"experiment": self.experiment} if self.experiment else {})

    @property
    def fingerprint(self) -> str:
        """Hash of the resolved config without what cannot change a number: where it is tracked, how it is batched."""
        beside = ("tracking", "batch_bytes", "workers")
        content = {key: value for key, value in self.resolved.items() if key not in beside}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def params(self) -> dict[str, Any]:
        """The resolved config flattened with dots; a group's own name holds its option."""
        return dict(self.choices) | {
            key: value
            for key, value in _flat(self.resolved)
            if not key.endswith("_target_") and key not in self.choices
        }


def read(config: DictConfig, hydra: DictConfig) -> Point:
    """The point that a composed config describes.

    Args:
        config: the job's config; a hydra node in it is passed over.
        hydra: the job's hydra node, for its choices and overrides.

    Raises:
        Refused: naming the key, the value and what is allowed.
    """
    content = {str(key): _plain(config[key]) for key in config if key != "hydra"}
    scalars = _checked(
        Scalars, {key: value for key, value in content.items() if key not in GROUPS}, ""
    )
    if scalars["device"] not in _devices():
        raise Refused(f"device={scalars['device']}: allowed here are {', '.join(_devices())}")
    options: Mapping[str, str | None] = hydra.runtime.choices
    lr = scalars.pop("lr")
    components: dict[str, Any] = {
        group: _component(group, content.get(group), options.get(group)) for group in GROUPS
    }
    return Point(
        **scalars | {"dtype": getattr(torch, scalars["dtype"])},
        lr=tuple(lr) if isinstance(lr, list) else (lr,),
        **components,
        experiment=options.get("experiment"),
        overrides=tuple(hydra.overrides.task),
    )


def _plain(value: Any) -> Any:
    return (
        OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
        if OmegaConf.is_config(value)
        else value
    )


@cache
def _devices() -> list[str]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ["cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]


def _component(group: str, node: Any, option: str | None) -> Component:
    """The checked component of a group. Runs of a sweep share theirs: there may be 100,000 of them."""
    key = group, option, repr(node)  # not the node itself: 1 and 1.0 are equal and not the same
    if key not in _SHARED:
        _SHARED[key] = _checked_component(group, node, option)
    return _SHARED[key]


_SHARED: dict[tuple[str, str | None, str], Component] = {}


def _checked_component(group: str, node: Any, option: str | None) -> Component:
    if not isinstance(node, dict) or "_target_" not in node:
        raise Refused(
            f"{group}={'null' if node is None else node}: allowed are {', '.join(_options(group))}"
        )
    target = node["_target_"]
    try:
        function = resolve_name(target)
    except Exception as error:  # importing runs a user's file, where anything can go wrong
        raise Refused(
            f"{group}._target_={target}: {error!r}; allowed is the dotted path of a function"
        ) from None
    if not callable(function):
        raise Refused(
            f"{group}._target_={target}: not a function; allowed is the dotted path of one"
        )
    own = getattr(import_module(f"mfgd.{group}"), option or "", None)
    given = {key: value for key, value in node.items() if key != "_target_"}
    values = _checked(_schema(function, own, tuple(given)), given, f"{group}.")
    items = tuple(
        (key, tuple(value) if isinstance(value, list) else value) for key, value in values.items()
    )
    return Component(option if option and own is function else target, target, function, items)


def _found(name: str, target: str, items: tuple[tuple[str, Any], ...]) -> Component:
    return Component(name, target, resolve_name(target), items)


@cache
def _schema(
    function: Callable[..., Any], own: Callable[..., Any] | None, given: tuple[str, ...]
) -> type[BaseModel]:
    """What a function takes, as its annotations say."""
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    fields: dict[str, Any] = {
        p.name: (hints.get(p.name, Any), ... if p.default is p.empty else p.default)
        for p in parameters
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }
    if own is not None and any(p.kind is p.VAR_KEYWORD for p in parameters):
        # A user's function that takes the rest as **keywords takes what the option it stands in for takes.
        rest = get_type_hints(own, include_extras=True)
        fields = {key: (hint, ...) for key, hint in rest.items() if key in given} | fields
    return create_model("Keys", __config__=Scalars.model_config, **fields)


def _checked(model: type[BaseModel], values: dict[str, Any], prefix: str) -> dict[str, Any]:
    try:
        checked = model.model_validate(values)
    except ValidationError as errors:
        # Of a union the last branch is the list.
        error = errors.errors()[
            -1 if any(isinstance(e["input"], list) for e in errors.errors()) else 0
        ]
        key = str(error["loc"][0])
        if error["type"] == "extra_forbidden":
            raise Refused(
                f"{prefix}{key}={values[key]}: no such key; allowed are {_listed(model)}"
            ) from None
        if error["type"] == "missing":
            raise Refused(f"{prefix}{key}: has no value; needed are {_listed(model)}") from None
        message = (
            error["msg"]
            .replace("Input should be", "allowed is")
            .replace("a valid integer", "an integer")
        )
        message = message.replace("a valid ", "a ").replace(
            "List should have", "allowed is a list of"
        )
        raise Refused(f"{prefix}{key}={values[key]}: {message}") from None
    return {key: getattr(checked, key) for key in model.model_fields}


def _listed(model: type[BaseModel]) -> str:
    return ", ".join(model.model_fields) or "none"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _keys(group: str) -> list[str]:
    """The keys that the config or one of its groups knows, of the option that the shell line chose if it is one."""
    if group not in (*GROUPS, ""):
        return []
    if not group:
        return [*Scalars.model_fields, *GROUPS, "experiment"]
    chosen = next(
        (arg.partition("=")[2] for arg in sys.argv[1:] if arg.startswith(f"{group}=")), "*"
    )
    paths = list((CONF / group).glob(f"{chosen}.yaml")) or (CONF / group).glob("*.yaml")
    return sorted({key for path in paths for key in OmegaConf.load(path)} - {"_target_"})  # type: ignore


@contextmanager
def refusals() -> Iterator[None]:
    """Turns what is refused, by us or by Hydra, into exit status 2 and one line."""
    try:
        yield
    except (Refused, HydraException, OmegaConfBaseException, ValueError) as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        if type(error) is ValueError and not frames[-1].f_globals["__name__"].startswith("hydra."):
            raise  # a fault of ours, or of a user's function
        print(f"mfgd: {explain(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def explain(error: Exception) -> str:
    """The error in one line, with the key, the value given and what is allowed."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        allowed = f"allowed are {', '.join(error.options)}" if error.options else "no such group"
        return f"{group}={option}: {allowed}"
    if match := re.search(r"Could not override '([^']*)'", text):
        key = match[1]
        given = next((arg for arg in sys.argv[1:] if arg.lstrip("+~").startswith(f"{key}=")), key)
        parent = key.rpartition(".")[0]
        allowed = ", ".join(f"{parent}.{key}" if parent else key for key in _keys(parent)) or "none"
        return f"{given}: no such key; allowed are {allowed}"
    if "Config group override" in text:
        group = next(
            (arg.partition("=")[0] for arg in sys.argv[1:] if arg.partition("=")[0] in GROUPS),
            "group",
        )
        return f"{group}=null: allowed are {', '.join(_options(group))}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: has no value; allowed is {error.full_key}=VALUE"
    return " ".join(text.split())


_SCRATCH: list[str] = []


def _scratch() -> str:
    """A folder for the files that Hydra insists on writing, gone with the process: the record of a run is in MLflow."""
    if not _SCRATCH:
        _SCRATCH.append(tempfile.mkdtemp(prefix="mfgd-"))
        atexit.register(shutil.rmtree, _SCRATCH[0], ignore_errors=True)
    return _SCRATCH[0]


OmegaConf.register_new_resolver("mfgd.scratch", _scratch, replace=True)
