"""From a composed config to a checked run of a sweep.

A composed config becomes a `Point`. The top-level keys are checked against `Scalars`; the keys of a
group are checked against the annotations of the function that the group's ``_target_`` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig, OmegaConf

from mfgd import devices, schema
from mfgd.component import CONF as CONF
from mfgd.component import GROUPS as GROUPS
from mfgd.component import MAPS, share_component, share_components
from mfgd.component import Component as Component
from mfgd.job import JobConfig, resolve_job
from mfgd.pairs import SWEEPER
from mfgd.point import Point, Scalars
from mfgd.types import Refused

if TYPE_CHECKING:
    pass


RESUME = "resume="
"""How an override begins that is not of the run."""


def read(config: DictConfig, hydra: DictConfig) -> Point:
    """Returns the point that a composed config describes.

    Args:
        config: as for `resolve_job`.
        hydra: as for `resolve_job`.

    Raises:
        Refused: with the key, the value and what is allowed.
    """
    return read_job(resolve_job(config, hydra))


def read_job(job: JobConfig, flags: tuple[str, ...] = ()) -> Point:
    """Returns the point that a job describes.

    Args:
        job: the job.
        flags: as `find_flags` gives them.

    Raises:
        Refused: with the key, the value and what is allowed.
    """
    content = dict(job.content)
    nodes = {name: content.pop(name, None) for name in (*GROUPS, *MAPS)}
    scalars = schema.check(Scalars, content)
    if scalars["device"] != "cpu":
        # A config that is read back has no launcher.
        engine = OmegaConf.select(job.hydra, "launcher.engine")
        devices.refuse_absent(scalars["device"], engine)
    lr, ratio, depth = scalars.pop("lr"), scalars.pop("lr_ratio"), scalars["depth"]
    ratios = tuple(ratio) if isinstance(ratio, list) else (ratio,)
    if isinstance(ratio, list) and len(ratios) != depth - 1:
        allowed = f"allowed with depth={depth} are a number, and a list of {depth - 1}"
        raise Refused(f"lr_ratio={ratio}: {allowed}")
    if all(each == 1 for each in ratios[:-1]):
        ratios = ratios[-1:]
    scalars["dtype"] = getattr(torch, scalars["dtype"])
    if scalars["success"] is not None and scalars["replicates"] == 1:
        raise Refused("success: is of replicates; allowed with replicates=2 or more")
    overrides = tuple(line for line in job.overrides if not line.startswith(RESUME))
    components: schema.Values = {}
    for group in GROUPS:
        components[group] = share_component(group, nodes[group], job.choices.get(group), overrides)
    for kind in MAPS:
        components[kind] = share_components(kind, nodes[kind])
    rates = tuple(lr) if isinstance(lr, list) else (lr,)
    if scalars["dtype"] == torch.float32:
        given = {f"lr={rate:g}": rate for rate in rates if scalars["lr_unit"] == "absolute"}
        for group in ("loss", "optimizer", "schedule"):
            for key, value in components[group].items:
                if isinstance(value, float):
                    given[f"{group}.{key}={value:g}"] = value
        _refuse_lost_in_single(given)
    return Point(
        **scalars,
        **components,
        lr=rates,
        ratios=ratios,
        experiment=job.choices.get("experiment"),
        overrides=overrides,
        flags=flags,
        moving=job.moving if scalars["replicates"] > 1 else (),
    )


def _refuse_lost_in_single(given: Mapping[str, float]) -> None:
    """Refuses numbers, by what the shell line says of them, that single precision does not have."""
    numbers = torch.finfo(torch.float32)
    for said, number in given.items():
        if number and not numbers.tiny <= abs(number) <= numbers.max:
            what = "0" if abs(number) < 1 else "infinite"
            allowed = f"allowed are {numbers.tiny:.3g} to {numbers.max:.3g}, or dtype=float64"
            raise Refused(f"{said} with dtype=float32: is {what} there; {allowed}")


def find_flags(hydra: DictConfig) -> tuple[str, ...]:
    """--config-dir and --config-name of a shell line, as far as they were given."""
    flags: list[str] = []
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            flags += ["--config-dir", source.path]
    if hydra.job.config_name != "config":
        flags += ["--config-name", hydra.job.config_name]
    return tuple(flags)


def sends_all_at_once(hydra: DictConfig) -> bool:
    """Whether the sweeper of a hydra node launches all of its jobs at once."""
    sweeper = hydra.sweeper
    return sweeper["_target_"] == SWEEPER and sweeper.max_batch_size is None
