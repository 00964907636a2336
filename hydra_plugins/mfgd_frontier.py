"""The sweeper that finds where an outcome changes along one key. Hydra finds sweepers here only."""

from itertools import product
from typing import Annotated

from annotated_types import MinLen
from hydra.core.override_parser.types import Override
from pydantic import BaseModel

from mfgd import schema
from mfgd.bisection import Axis
from mfgd.frontier import Frontier
from mfgd.search import SearchSweeper
from mfgd.selection import refuse_unreadable
from mfgd.terminal import warn
from mfgd.types import Positive, Refused


class FrontierKeys(BaseModel):
    """The keys below hydra.sweeper."""

    model_config = schema.STRICT

    success: Annotated[str, MinLen(1)]
    resolution: Positive | None


class FrontierSweeper(SearchSweeper):
    """Bisects the interval of one key, in every cell of the other swept keys at once."""

    def sweep(self, arguments: list[str]) -> None:
        keys = schema.check(FrontierKeys, self.keys, "hydra.sweeper.")
        refuse_unreadable(keys["success"])
        overrides = self.parse(arguments)
        axis = self._find_axis(overrides, keys["resolution"])
        names = {one.key_or_group: key for key, one in overrides.items()}
        swept = {
            one.key_or_group: list(one.sweep_string_iterator())
            for one in overrides.values()
            if one.is_discrete_sweep()
        }
        settings = [dict(zip(swept, texts, strict=True)) for texts in product(*swept.values())]
        if not settings:
            warn("the sweep is empty; nothing was run")
            return
        fixed = [str(one.input_line) for one in overrides.values() if not one.is_sweep_override()]
        self.session.search = frontier = Frontier(axis, keys["success"], settings)
        while asked := frontier.ask():
            jobs = []
            for cell, value in asked:
                given = {**cell.setting, axis.key: axis.write(value)}
                jobs.append([*fixed, *(f"{names[key]}={text}" for key, text in given.items())])
            frontier.tell(asked, self.launch(jobs))

    def _find_axis(self, overrides: dict[str, Override], resolution: float | None) -> Axis:
        """The only interval among the overrides."""
        given = [one for one in overrides.values() if one.is_interval_sweep()]
        if len(given) != 1:
            said = " ".join(str(one.input_line) for one in given) or "none"
            what = "bisects the interval of one key"
            example = "'lr=interval(0.01,1)' or 'lr=tag(log,interval(1e-4,1))'"
            raise Refused(f"hydra/sweeper=frontier: {what}; given is {said}, allowed is {example}")
        (one,) = given
        return Axis(one.key_or_group, *self.read_interval(one), resolution)
