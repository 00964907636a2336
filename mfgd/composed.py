"""What Hydra composes for all jobs of a sweep that choose the same options, and what else such jobs
set."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mfgd.component import GROUPS
from mfgd.internals import set_value
from mfgd.job import SEED
from mfgd.schema import Values

_UNKNOWN = object()


class JobLine(NamedTuple):
    """One override of a job."""

    text: str
    override: Override
    key: str
    path: tuple[str, ...]
    value: Any
    sets: bool
    """Whether it sets a key, and does not choose an option."""
    plain: bool
    """Whether it sets a key that is there to a plain value."""


class Composed:
    """What Hydra composes for all jobs that choose the same options."""

    def __init__(self, config: DictConfig) -> None:
        # Pickled, a config is copied five times as fast as by deepcopy.
        self._pickled = pickle.dumps(config, pickle.HIGHEST_PROTOCOL)
        self._spare: DictConfig | None = None
        self.names = config.hydra.job.config.override_dirname
        self.choices: Any = OmegaConf.to_container(config.hydra.runtime.choices, resolve=True)
        keys = [str(key) for key in config if key != "hydra"]
        content: Any = OmegaConf.to_container(OmegaConf.masked_copy(config, keys))
        self.moving = tuple(
            (group, key)
            for group in GROUPS
            if isinstance(content.get(group), dict)
            for key, value in content[group].items()
            if value == SEED
        )
        """Groups and keys that are the seed."""
        known = not _refers(content, self.moving) and self._follow_seed()
        self._content: Values | None = content if known else None
        """The config without its hydra node; None if a value of it may depend on another value,
        unless it is the seed."""
        self._values: dict[str, Any] = {}
        """Line → the value that a config gives back once the line has set it, `_UNKNOWN` if it
        cannot."""

    def _copy(self) -> DictConfig:
        config: DictConfig = pickle.loads(self._pickled)
        return config

    def _follow_seed(self) -> bool:
        """Whether the keys that move are the seed, whatever it is."""
        if not self.moving:
            return True
        copy, told = self._copy(), []
        for seed in (1, 2):
            copy.seed = seed
            told += [OmegaConf.select(copy, f"{group}.{key}") == seed for group, key in self.moving]
        return all(told)

    def make_config(self, lines: Sequence[JobLine]) -> DictConfig | None:
        """A config with what plain lines set; None if it cannot be set."""
        config = self._copy()
        done = all(_set_line(config, line) for line in lines if line.plain)
        return config if done else None

    def make_content(self, lines: Sequence[JobLine]) -> Values | None:
        """The content of `make_config`, resolved; None if only the config can tell. Jobs share the
        parts of it in which they are equal."""
        if self._content is None:
            return None
        content = dict(self._content)
        for line in lines:
            if line.plain:
                value = self._find_value(line)
                if value is _UNKNOWN:
                    return None
                node = content
                for name in line.path[:-1]:
                    node[name] = dict(node[name])
                    node = node[name]
                node[line.path[-1]] = value
        for group, key in self.moving:
            if content[group][key] == SEED:
                content[group] = content[group] | {key: content["seed"]}
        return None if "???" in content.values() else content

    def find_moving(self, lines: Sequence[JobLine]) -> tuple[tuple[str, str], ...]:
        """The groups and keys that are the seed, but for those that a line sets: it may set such a
        key to the number that the seed has too."""
        given = {line.path for line in lines if line.plain}
        return tuple(place for place in self.moving if place not in given)

    def _find_value(self, line: JobLine) -> Any:
        if line.text not in self._values:
            self._values[line.text] = self._read_back(line)
        return self._values[line.text]

    def _read_back(self, line: JobLine) -> Any:
        node: Any = self._content
        for name in line.path:
            if not isinstance(node, dict) or name not in node:
                return _UNKNOWN
            node = node[name]
        config = self._spare or self._copy()
        self._spare = None
        if not _set_line(config, line):
            return _UNKNOWN
        value = OmegaConf.select(config, line.key)
        # A number or text in the place of another one leaves the config as good as new.
        if isinstance(value, bool | int | float | str) and not isinstance(node, dict | list):
            self._spare = config
        return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _set_line(config: DictConfig, line: JobLine) -> bool:
    """Sets a config to what a plain line says. Returns whether it could."""
    try:
        if not set_value(config, line.path, line.value):
            OmegaConf.update(config, line.key, line.value, merge=True)
    except OmegaConfBaseException:
        return False
    return True


def _refers(value: Any, known: Collection[tuple[str, ...]] = (), at: tuple[str, ...] = ()) -> bool:
    """Whether an interpolation is anywhere in a value, but for known places in it."""
    if isinstance(value, dict):
        return any(_refers(item, known, (*at, key)) for key, item in value.items())
    if isinstance(value, list):
        return any(map(_refers, value))
    return isinstance(value, str) and "${" in value and at not in known
