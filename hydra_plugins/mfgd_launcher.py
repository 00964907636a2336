"""The launcher that hands a whole multirun to its task at once; Hydra finds launchers in this namespace only."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from mfgd.compose import Composer


class BatchLauncher(Launcher):
    """Composes every job of a multirun, then calls the task function once, with the list of (config, hydra config)."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config
        # The sweeper composes every job too, to see that it is legal, and does so through this context.
        hydra_context.config_loader = Composer(hydra_context.config_loader)  # type: ignore[assignment]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """A return per job, in order; its value is what the task function gave for that job."""
        setup_globals()
        before = HydraConfig.instance().cfg
        jobs: list[tuple[DictConfig, DictConfig]] = []
        returns: list[JobReturn] = []
        try:
            for number, overrides in enumerate(job_overrides, initial_job_idx):
                config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
                with open_dict(config):
                    config.hydra.job.id, config.hydra.job.num = str(number), number
                    HydraConfig.instance().set_config(config)
                    self.context.callbacks.on_job_start(config=config, task_function=self.task)
                    hydra = cast(DictConfig, HydraConfig.instance().cfg)
                    task = deepcopy(config)
                    del task["hydra"]
                    OmegaConf.resolve(task)  # while ${hydra:…} still means this job
                jobs.append((task, hydra.hydra))
                returns.append(JobReturn(list(overrides), task, hydra, None, config.hydra.job.name))
            values: Any = self.task(jobs)
            for value, (_, hydra), job in zip(values, jobs, returns, strict=True):
                job.return_value, job.status = value, JobStatus.COMPLETED
                self.context.callbacks.on_job_end(config=OmegaConf.create({"hydra": hydra}), job_return=job)
            return returns
        finally:
            HydraConfig.instance().cfg = before


@dataclass
class BatchLauncherConf:
    """Its node in the config."""

    _target_: str = "hydra_plugins.mfgd_launcher.BatchLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="batch", node=BatchLauncherConf, provider="mfgd")
