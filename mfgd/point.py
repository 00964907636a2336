"""One run of a sweep, checked: its keys and components."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from annotated_types import Ge, Gt, MinLen
from pydantic import BaseModel

from mfgd import schema
from mfgd.component import GROUPS, MAPS, Component
from mfgd.job import SEED, flatten
from mfgd.types import Count, NonNegative, Positive, Seed

if TYPE_CHECKING:
    from mfgd.continuation import End
    from mfgd.naming import Label

UNTOLD = {"patience": None, "replicates": 1, "success": None, "replicates_kept": "median"}
"""Keys that came later, and the values that leave a fingerprint as it was before."""
UNTOLD_OF_OPTIONS: dict[str, dict[str, object]] = {
    "init": {"ratio": 1.0},
    "optimizer": {"weight_decay": 0.0},
    "problem": {
        "basis": "random",
        "symmetric": False,
        "target_rank": None,
        "response": "gaussian",
    },
    "record": {"every": None, "last": 0, "matrices": False},
}
"""The same of keys of options, by group; these keys are params at any value."""


class Scalars(BaseModel):
    """The top-level keys."""

    model_config = schema.STRICT

    rank: Count
    lr: Positive | Annotated[list[Positive], MinLen(1)]
    lr_unit: Literal["absolute", "sigma1", "sharpness"]
    lr_ratio: Positive | Annotated[list[Positive], MinLen(1)]
    steps: Count
    tolerance: NonNegative
    divergence: Annotated[float, Gt(1)]
    patience: Count | None
    seed: Seed
    replicates: Count
    success: Annotated[str, MinLen(1)] | None
    replicates_kept: Literal["median", "all"]
    depth: Annotated[int, Ge(2)]
    symmetric: bool
    dtype: Literal["float64", "float32"]
    device: str
    diagnostics: Literal["basic", "dynamics", "full", "flow"]
    batch_bytes: Count | None
    workers: Count | None
    resume: bool | Annotated[str, MinLen(1)] | None


@dataclass(frozen=True)
class Point:
    """One run of a sweep, checked."""

    rank: int
    lr: tuple[float, ...]
    """The rates of the first steps; the last rate holds from there on."""
    lr_unit: str
    ratios: tuple[float, ...]
    """The rate of the last factor over those of the others, which are one; or the rates of W₂ … W_L
    over that of W₁."""
    steps: int
    tolerance: float
    divergence: float
    patience: int | None
    seed: int
    replicates: int
    success: str | None
    """The condition of a replicate that is a success."""
    replicates_kept: str
    depth: int
    symmetric: bool
    dtype: torch.dtype
    device: str
    diagnostics: str
    batch_bytes: int | None
    workers: int | None
    resume: bool | str | None
    """What goes on: the id of a sweep, or True for what was interrupted of this shell line."""
    problem: Component
    init: Component
    loss: Component
    optimizer: Component
    gradient: Component
    schedule: Component
    record: Component
    tracking: Component
    metrics: tuple[tuple[str, Component], ...]
    """The user's own metrics by name: functions (problem, factors, *, keys…) → Tensor (*,)."""
    figures: tuple[tuple[str, Component], ...]
    """The user's own figures by name: functions (row, problem, *, keys…) → matplotlib Figure."""
    experiment: str | None
    overrides: tuple[str, ...]
    """What the shell line says of this run."""
    flags: tuple[str, ...]
    """The flags of the shell line that say where the config is."""
    moving: tuple[tuple[str, str], ...] = ()
    """Groups and keys that are `SEED`: they move from replicate to replicate."""
    source: End | None = field(default=None, compare=False)
    """Where it starts, if that is where another run ended."""
    label: Label | None = field(default=None, compare=False)
    """How the run is shown within its sweep; None of a single run."""

    @property
    def lr_ratio(self) -> float | list[float]:
        """The key."""
        return [*self.ratios] if len(self.ratios) > 1 else self.ratios[0]

    @property
    def shares(self) -> tuple[float, ...]:
        """The rate of each factor over that of the first."""
        return (1.0,) * (self.depth - len(self.ratios)) + self.ratios

    @property
    def mean_share(self) -> float:
        """The geometric mean of the shares; 2 of tied factors (`mfgd.tied`)."""
        return 2.0 if self.symmetric else math.prod(self.ratios) ** (1 / self.depth)

    @property
    def equal_shares(self) -> bool:
        """Whether all factors have one rate."""
        return all(ratio == 1 for ratio in self.ratios)

    @property
    def resolved(self) -> schema.Values:
        """The config as composed and resolved, without the tracking URI, which may hold a
        password, and without `resume`, which is not of the run."""
        values: schema.Values = {key: getattr(self, key) for key in Scalars.model_fields}
        del values["resume"]
        values["lr"] = list(self.lr) if len(self.lr) > 1 else self.lr[0]
        values["dtype"] = str(self.dtype).removeprefix("torch.")
        for key, usual in UNTOLD.items():
            if values[key] == usual:
                del values[key]
        for group in GROUPS:
            component: Component = getattr(self, group)
            values[group] = component.resolve()
        for group, key in self.moving:
            values[group][key] = SEED
        for kind in MAPS:
            named: tuple[tuple[str, Component], ...] = getattr(self, kind)
            if named:  # an empty map is left out, so that it does not move the fingerprint
                values[kind] = {name: component.resolve() for name, component in named}
        values["tracking"].pop("uri", None)  # a user's own tracker need not have one
        return values

    @property
    def choices(self) -> dict[str, str]:
        """Group → chosen option, or the dotted path of a user's own function."""
        chosen = {group: getattr(self, group).name for group in GROUPS}
        if self.experiment:
            chosen["experiment"] = self.experiment
        return chosen

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of a shell line for this run alone."""
        return (*self.flags, *self.overrides)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the resolved config without what cannot change a number: where the run is
        tracked, how it is drawn and how it is batched."""
        content = self.resolved
        for key in ("tracking", "figures", "batch_bytes", "workers"):
            content.pop(key, None)
        if self.equal_shares:
            del content["lr_ratio"]  # it came later
        if not self.symmetric:
            del content["symmetric"]  # like this key
        if self.gradient.name == "full":
            del content["gradient"]  # it came later too
        for group, keys in UNTOLD_OF_OPTIONS.items():
            for key, usual in keys.items():
                if key in content[group] and content[group][key] == usual:
                    del content[group][key]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def params(self) -> schema.Values:
        """Returns the resolved config flattened with dots. The name of a group holds its option,
        the name of a metric or a figure the dotted path of its function."""
        params: schema.Values = dict(self.choices)
        for kind in MAPS:
            for name, component in getattr(self, kind):
                params[f"{kind}.{name}"] = component.name
        for key, value in flatten(self.resolved):
            if not key.endswith("_target_") and key not in params:
                params[key] = value
        return params
