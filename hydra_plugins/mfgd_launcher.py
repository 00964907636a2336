"""The launcher that hands a whole multirun to its task at once; Hydra finds launchers in this namespace only."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from mfgd.compose import Composer, assign

OUTPUT_DIR = ("hydra", "runtime", "output_dir")


class BatchLauncher(Launcher):
    """Calls the task function once for a multirun, with its jobs as a stream of (config, hydra node)."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config
        self.composer = Composer(hydra_context.config_loader)
        # The sweeper composes every job too, to see that it is legal, and does so through this context.
        hydra_context.config_loader = self.composer.for_checks()  # type: ignore[assignment]

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """A return per job, in order; its value is what the task function gave for that job."""
        setup_globals()
        instance, callbacks = HydraConfig.instance(), self.context.callbacks
        before = instance.cfg
        numbered = list(enumerate(job_overrides, initial_job_idx))

        def jobs() -> Iterator[tuple[DictConfig, DictConfig]]:
            for number, overrides in numbered:
                config = self.compose(number, overrides)
                instance.cfg = config  # type: ignore[assignment]  # while ${hydra:…} means this job
                callbacks.on_job_start(config=config, task_function=self.task)
                yield config, config.hydra

        try:
            values: Any = self.task(jobs())
            returns = []
            for (number, overrides), value in zip(numbered, values, strict=True):
                returns.append(_Return(value, partial(self.compose, number, overrides)))
                if callbacks.callbacks:
                    callbacks.on_job_end(
                        config=self.compose(number, overrides), job_return=returns[-1]
                    )
            return returns
        finally:
            instance.cfg = before

    def compose(self, number: int, overrides: Sequence[str]) -> DictConfig:
        """The config of a job, its hydra node included."""
        config = self.composer.load_sweep_config(self.config, list(overrides))
        assign(config, ("hydra", "job", "id"), str(number))
        assign(config, ("hydra", "job", "num"), number)
        # An interpolation, as hardly any job asks for its folder, and not parsed here: either would add a sixth to what
        # composing a job takes.
        folder: Any = config.hydra.runtime._get_node("output_dir")
        folder._val = "${mfgd.folder:${hydra.sweep.dir},${hydra.sweep.subdir}}"
        return config


class _Return(JobReturn):
    """What a job gave; its configs are composed when they are asked for, as those of 100,000 jobs would fill memory."""

    def __init__(self, value: Any, compose: partial[DictConfig]) -> None:
        self.status, self.return_value, self._compose = JobStatus.COMPLETED, value, compose
        self.working_dir, self.task_name = os.getcwd(), JobRuntime.instance().get("name")

    @property
    def overrides(self) -> list[str]:  # type: ignore[override]
        return list(self.hydra_cfg.hydra.overrides.task)

    @property
    def cfg(self) -> DictConfig:  # type: ignore[override]
        return OmegaConf.masked_copy(
            config := self._compose(), [str(key) for key in config if key != "hydra"]
        )

    @property
    def hydra_cfg(self) -> DictConfig:  # type: ignore[override]
        config = self._compose()
        assign(
            config, OUTPUT_DIR, config.hydra.runtime.output_dir
        )  # resolved while all that it may name is there
        return OmegaConf.masked_copy(config, "hydra")


def _folder(parent: str, name: str) -> str:
    return str(Path(parent, name).absolute())


@dataclass
class BatchLauncherConf:
    """Its node in the config."""

    _target_: str = "hydra_plugins.mfgd_launcher.BatchLauncher"


OmegaConf.register_new_resolver("mfgd.folder", _folder, replace=True)
ConfigStore.instance().store(
    group="hydra/launcher", name="batch", node=BatchLauncherConf, provider="mfgd"
)
