"""Shell lines → configs: Hydra's composition, done once for all jobs of a sweep that choose the same options."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf


class Composer:
    """Stands in for Hydra's config loader: what a job sets to plain values is set in a copy of what the rest composes.

    The result is what Hydra itself composes. Whatever is not a plain value of a key that is there, such as a choice of
    options, an interpolation, an addition or a deletion, is left to Hydra, and so is a job that sets a key twice.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        self._parser = OverridesParser.create(config_loader=loader)
        self._parsed: dict[str, Override] = {}
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """A job's config, as Hydra's loader gives it."""
        overrides = [self._parse(line) for line in sweep_overrides]
        plain = [override for override in overrides if self._is_plain(override)]
        rest = [override for override in overrides if not self._is_plain(override)]
        if not _apart([o.key_or_group for o in overrides if o in plain or not self._is_group(o)]):
            return self._loader.load_sweep_config(master_config, sweep_overrides)
        key = tuple(str(override.input_line) for override in rest)
        if key not in self._bases:
            self._bases[key] = self._loader.load_sweep_config(master_config, list(key))
        config = deepcopy(self._bases[key])
        ConfigLoaderImpl._apply_overrides_to_config(plain, config)
        of_task = [override for override in overrides if not override.is_hydra_override()]
        config.hydra.overrides.task = [override.input_line for override in of_task]
        names = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            overrides=of_task, kv_sep=names.kv_sep, item_sep=names.item_sep, exclude_keys=names.exclude_keys
        )
        OmegaConf.copy_cache(from_config=master_config, to_config=config)
        return config

    def _parse(self, line: str) -> Override:
        if line not in self._parsed:
            self._parsed[line] = self._parser.parse_override(line)
        return self._parsed[line]

    def _is_group(self, override: Override) -> bool:
        """Whether it chooses an option; a dictionary given to a group's name sets keys instead."""
        groups: Any = self._loader
        return not isinstance(override.value(), dict) and groups.repository.group_exists(override.key_or_group)

    def _is_plain(self, override: Override) -> bool:
        if override.type is not OverrideType.CHANGE or override.package is not None or override.is_hydra_override():
            return False
        return not override.is_sweep_override() and _plain(override.value()) and not self._is_group(override)


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
