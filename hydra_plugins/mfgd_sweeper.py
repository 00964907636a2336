"""The sweeper that lists every combination of the values on the shell line, as Hydra's basic
sweeper does, with keys that move together. Hydra finds sweepers here only."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from mfgd.compose import Composer
from mfgd.pairs import SWEEPER, list_jobs


class ListSweeper(Sweeper):
    """Sends every combination to the launcher, in lots of a size, by default at once."""

    def __init__(self, max_batch_size: int | None, params: Mapping[str, Any] | None) -> None:
        self.size, self.params = max_batch_size, params or {}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.parser = OverridesParser.create(config_loader=hydra_context.config_loader)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[list[JobReturn]]:
        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        lines = [f"{key}={value}" for key, value in self.params.items()]
        overrides = self.parser.parse_overrides([*lines, *arguments])
        jobs = list_jobs(overrides, self.parser.parse_overrides)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        returns = []
        size = max(1, len(jobs)) if self.size is None else self.size
        for first in range(0, max(1, len(jobs)), size):
            lot = jobs[first : first + size]
            # The batch launcher, which composes with a loader of its own, sees that itself.
            if not isinstance(self.hydra_context.config_loader, Composer):
                self.validate_batch_is_legal(lot)
            returns.append([*self.launcher.launch(lot, initial_job_idx=first)])
            for done in returns[-1]:
                _ = done.return_value  # raises what the job raised
        return returns


@dataclass
class ListSweeperConf:
    """Its node in the config."""

    _target_: str = SWEEPER
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


ConfigStore.instance().store(
    group="hydra/sweeper", name="list", node=ListSweeperConf, provider="mfgd"
)
