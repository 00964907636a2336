"""The launcher that gives its task a whole multirun at once. Hydra finds launchers here only."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from mfgd.compose import Composer
from mfgd.internals import set_unparsed, set_value

OUTPUT_DIR = ("hydra", "runtime", "output_dir")


class BatchLauncher(Launcher):
    """Calls the task once for a multirun, with the jobs as a stream of (config, hydra node)."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config
        self.composer = Composer(hydra_context.config_loader)
        # Through this context the sweeper composes every job, to check that the job is legal.
        hydra_context.config_loader = self.composer.for_checks()  # type: ignore[assignment]

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Returns one result per job, in order, with what the task returned for the job."""
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
        set_value(config, ("hydra", "job", "id"), str(number))
        set_value(config, ("hydra", "job", "num"), number)
        # Hardly any job asks for its folder, and resolving the folder takes a sixth of composing.
        folder = "${mfgd.folder:${hydra.sweep.dir},${hydra.sweep.subdir}}"
        set_unparsed(config.hydra.runtime, "output_dir", folder)
        return config


class _Return(JobReturn):
    """What a job returned. Its configs are composed on demand, because the configs of 100,000
    jobs would fill the memory."""

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
        # Resolved now, while everything that the folder may name is in the config.
        set_value(config, OUTPUT_DIR, config.hydra.runtime.output_dir)
        return OmegaConf.masked_copy(config, "hydra")


@cache
def _make_scratch_folder() -> str:
    """A folder for the files that Hydra insists on writing. The folder goes with the process,
    because the record of a run is in MLflow."""
    folder = tempfile.mkdtemp(prefix="mfgd-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _folder(parent: str, name: str) -> str:
    return str(Path(parent, name).absolute())


@dataclass
class BatchLauncherConf:
    """Its node in the config."""

    _target_: str = "hydra_plugins.mfgd_launcher.BatchLauncher"


OmegaConf.register_new_resolver("mfgd.scratch", _make_scratch_folder, replace=True)
OmegaConf.register_new_resolver("mfgd.folder", _folder, replace=True)
ConfigStore.instance().store(
    group="hydra/launcher", name="batch", node=BatchLauncherConf, provider="mfgd"
)
