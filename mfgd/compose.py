"""Shell lines → configs: Hydra's composition, done once for all jobs of a sweep that choose the same options."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf, StringNode, ValueNode


class Composer:
    """Stands in for Hydra's config loader: what a job sets to plain values is set in a copy of what the rest composes.

    The result is what Hydra itself composes. Whatever is not a plain value of a key that is there, such as a choice of
    options, an interpolation, an addition or a deletion, is left to Hydra, and so is a job that sets a key twice.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        self._parser = OverridesParser.create(config_loader=loader)
        self._lines: dict[str, _Line] = {}
        self._apart: dict[tuple[str, ...], bool] = {}
        # Pickled, a config is copied five times as fast as by deepcopy.
        self._bases: dict[tuple[str, ...], tuple[bytes, Any]] = {}
        self._used: dict[Any, DictConfig] | None = None

    def for_checks(self) -> Composer:
        """One whose configs hold until its next: for a sweeper, which composes each job to see that it is legal."""
        twin = Composer(self._loader)
        twin._lines, twin._apart, twin._bases, twin._used = (
            self._lines,
            self._apart,
            self._bases,
            {},
        )
        return twin

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        """A job's config, as Hydra's loader gives it."""
        lines = [self._line(text) for text in sweep_overrides]
        keys = tuple(line.key for line in lines if line.sets)
        if keys not in self._apart:
            self._apart[keys] = _apart(keys)
        if not self._apart[keys]:
            return self._loader.load_sweep_config(master_config, sweep_overrides)
        rest = tuple(line.text for line in lines if not line.plain)
        if rest not in self._bases:
            base = self._loader.load_sweep_config(master_config, list(rest))
            self._bases[rest] = (
                pickle.dumps(base, pickle.HIGHEST_PROTOCOL),
                base.hydra.job.config.override_dirname,
            )
        pickled, names = self._bases[rest]
        config: DictConfig = (self._used or {}).get((rest, keys)) or pickle.loads(pickled)
        if self._used is not None:
            self._used[rest, keys] = config
        for line in lines:
            if line.plain and not assign(config, line.path, line.value):
                ConfigLoaderImpl._apply_overrides_to_config([line.override], config)
        of_task = [line.override for line in lines if not line.override.is_hydra_override()]
        task: Any = config._content["hydra"]._content["overrides"]._content["task"]  # type: ignore[index, union-attr]
        task._content[:] = [
            StringNode(o.input_line, i, task, is_optional=False) for i, o in enumerate(of_task)
        ]
        dirname = get_overrides_dirname(
            overrides=of_task,
            kv_sep=names.kv_sep,
            item_sep=names.item_sep,
            exclude_keys=names.exclude_keys,
        )
        assign(config, ("hydra", "job", "override_dirname"), dirname)
        OmegaConf.copy_cache(from_config=master_config, to_config=config)
        return config

    def _line(self, text: str) -> _Line:
        if text not in self._lines:
            override = self._parser.parse_override(text)
            groups: Any = self._loader
            # A dictionary given to a group's name sets keys, and chooses no option.
            chooses = not isinstance(override.value(), dict) and groups.repository.group_exists(
                override.key_or_group
            )
            plain = (
                not chooses
                and override.type is OverrideType.CHANGE
                and override.package is None
                and not override.is_hydra_override()
                and not override.is_sweep_override()
                and _plain(override.value())
            )
            key, value = override.key_or_group, override.value()
            self._lines[text] = _Line(
                text, override, key, tuple(key.split(".")), value, not chooses, plain
            )
        return self._lines[text]


class _Line(NamedTuple):
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


def assign(config: DictConfig, path: Sequence[str], value: Any) -> bool:
    """Sets a number or text where there is one now, as `OmegaConf.update` would in ten times the time."""
    node: Any = config
    for name in path:
        content = node._content if type(node) is DictConfig else None
        node = content.get(name) if isinstance(content, dict) else None
    fits = isinstance(node, ValueNode) and not isinstance(value, list) and value is not None
    if fits:
        node._set_value(value)
    return fits


def _plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_plain(item) and not isinstance(item, list) for item in value)
    if isinstance(value, str):
        return "${" not in value and value != "???"
    return value is None or isinstance(value, bool | int | float)


def _apart(keys: Sequence[str]) -> bool:
    """Whether no key is another one or lies inside it, so that their order does not matter."""
    paths = sorted(f"{key}." for key in keys)
    return not any(later.startswith(earlier) for earlier, later in pairwise(paths))
