"""What a run takes from a composed config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from mfgd.component import GROUPS, MAPS
from mfgd.schema import Values
from mfgd.types import Refused

SEED = "${seed}"
"""The value of a key that moves with the seed."""


class JobConfig(NamedTuple):
    """What a run takes from a composed config."""

    content: Values
    """The config without its hydra node, resolved; a missing value of a group is "???"."""
    choices: Mapping[str, str | None]
    """Group → chosen option."""
    overrides: Sequence[str]
    """What the shell line says of this job, interpolations resolved, but for `SEED`."""
    hydra: DictConfig
    """The hydra node of the job or of its sweep, for what all jobs of a sweep share."""
    moving: tuple[tuple[str, str], ...] = ()
    """Of replicates: groups and keys that are `SEED`."""


def resolve_job(config: DictConfig, hydra: DictConfig) -> JobConfig:
    """Returns the job that a composed config describes.

    Args:
        config: the job's config; a hydra node in it is ignored.
        hydra: the job's hydra node.

    Raises:
        OmegaConfBaseException: an interpolation cannot be resolved, or a top-level key has no
            value.
        Refused: a key of replicates depends on the seed, and is not `SEED`.
    """
    content = {str(name): _resolve(config[name]) for name in config if name != "hydra"}
    moving = () if content.get("replicates") in (1, None) else _find_moving(config, content)
    choices = _resolve(hydra.runtime.choices)
    written: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    overrides = [
        line if line.endswith(f"={SEED}") else resolved
        for line, resolved in zip(written, hydra.overrides.task, strict=True)
    ]
    return JobConfig(content, choices, overrides, hydra, moving)


def _find_moving(config: DictConfig, content: Values) -> tuple[tuple[str, str], ...]:
    """The keys of groups that are `SEED`, and move with it.

    Raises:
        Refused: a key depends on the seed in another way.
    """
    seed, moving = content["seed"], []
    if not isinstance(seed, int):
        return ()  # it is refused
    config.seed = seed + 1
    for group in (*GROUPS, *MAPS):
        moved, kept = ({group: _resolve(config[group])}, {group: content[group]})
        leaves = dict(flatten(kept))
        for key, value in flatten(moved):
            if repr(value) != repr(leaves[key]):  # NaN is no change
                name = key.removeprefix(f"{group}.")
                if (leaves[key], value) != (seed, seed + 1) or group in MAPS or "." in name:
                    only = f"allowed with replicates is {key}={SEED}"
                    raise Refused(f"{key}: depends on seed; {only}")
                moving.append((group, name))
    config.seed = seed
    return tuple(moving)


def _resolve(value: Any) -> Any:
    """Returns a node of a config as plain Python; a missing value stays "???"."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def flatten(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of a tree with their dotted keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
