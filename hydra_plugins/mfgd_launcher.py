"""The launcher that gives its task a whole multirun at once. Hydra finds launchers here only.

If a sweep asks for what only a job of its own can have, say a log, the jobs run one by one.
"""

import atexit
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import (
    JobReturn,
    JobRuntime,
    JobStatus,
    configure_log,
    run_job,
    setup_globals,
)
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from mfgd.compose import Composer
from mfgd.internals import set_unparsed, set_value
from mfgd.job import JobConfig, resolve_job
from mfgd.refusals import exit_on_refusal
from mfgd.sweep_size import announce_size, refuse_vast_sweep
from mfgd.terminal import warn
from mfgd.types import Refused

LAUNCHERS = ("batch", "basic", "joblib", "submitit_local", "submitit_slurm", "ray")
"""The launchers whose jobs share one parent run."""
TARGETS = (
    "hydra_plugins.mfgd_launcher.BatchLauncher",
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
)
"""What they are; a plug-in may use the same names for launchers of other processes."""
LISTING = ("list", "basic", "frontier")
"""The sweepers that list every combination of the values on the shell line."""
OUTPUT_DIR = ("hydra", "runtime", "output_dir")


class BatchLauncher(Launcher):
    """Calls the task once for a multirun, with its jobs as a stream.

    Its keys are of the engine that solves the batches, which the task finds in the config.
    """

    def __init__(self, **_: Any) -> None:
        super().__init__()

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config
        self.composer = Composer(hydra_context.config_loader)
        # Through this context a sweeper composes its jobs.
        hydra_context.config_loader = self.composer  # type: ignore[assignment]

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Returns one result per job, in order, with what the task returned for the job."""
        setup_globals()
        jobs = list(enumerate(job_overrides, initial_job_idx))
        if not jobs:
            warn("the sweep is empty; nothing was run")
            return []
        if needs := self._find_needs_of_a_job():
            for job in jobs:  # none runs if one is not legal
                self.compose(*job)
            why = f"{', '.join(needs)}: what only a job of its own can have"
            warn(f"{why}; the jobs run one by one, which is slower")
            return [self._run_alone(self.compose(*job)) for job in jobs]
        return self._run_together(jobs)

    def _find_needs_of_a_job(self) -> list[str]:
        """The keys by which the sweep asks for what a batch of jobs cannot have."""
        node: Any = OmegaConf.to_container(self.config.hydra, resolve=False)
        logging = node["job_logging"]
        hooks = ("on_job_start", "on_job_end")
        needs = {
            "hydra.job.env_set": node["job"]["env_set"],
            "hydra.job.chdir": node["job"]["chdir"],
            "hydra.output_subdir": node["output_subdir"] is not None,
            "hydra/job_logging": logging is None or logging.get("handlers"),
            "hydra.callbacks": any(
                getattr(type(callback), hook, None) is not getattr(Callback, hook)
                for callback in self.context.callbacks.callbacks
                for hook in hooks
            ),
        }
        return [key for key, asked in needs.items() if asked]

    def _run_alone(self, config: DictConfig) -> JobReturn:
        """Runs a job as Hydra's own launcher does."""
        try:
            return run_job(
                hydra_context=self.context,
                task_function=self.task,
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
        finally:
            configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)

    def _run_together(self, jobs: Sequence[tuple[int, Sequence[str]]]) -> Sequence[JobReturn]:
        instance = HydraConfig.instance()
        before = instance.cfg

        def read() -> Iterator[JobConfig]:
            for number, overrides in jobs:
                # While ${hydra:…} means this job.
                instance.cfg = one = _OneJob(self, number, overrides)  # type: ignore[assignment]
                job = self.composer.load_job(self.config, overrides)
                yield job or resolve_job(one.config, one.hydra)

        try:
            values: Any = self.task(read())
        finally:
            instance.cfg = before
        return [
            _Return(value, partial(self.compose, *job))
            for value, job in zip(values, jobs, strict=True)
        ]

    def compose(self, number: int, overrides: Sequence[str]) -> DictConfig:
        """The config of a job, its hydra node included."""
        config = self.composer.load_sweep_config(self.config, list(overrides))
        set_value(config, ("hydra", "job", "id"), str(number))
        set_value(config, ("hydra", "job", "num"), number)
        # Hardly any job asks for its folder, and resolving the folder takes a sixth of composing.
        folder = "${mfgd.folder:${hydra.sweep.dir},${hydra.sweep.subdir}}"
        set_unparsed(config.hydra.runtime, "output_dir", folder)
        return config


class _OneJob:
    """What stands for the config of a job while the job is read. The config is composed on demand,
    because few jobs ask for it."""

    def __init__(self, launcher: BatchLauncher, number: int, overrides: Sequence[str]) -> None:
        self._compose = partial(launcher.compose, number, overrides)

    @cached_property
    def config(self) -> DictConfig:
        return self._compose()

    @property
    def hydra(self) -> DictConfig:
        node: DictConfig = self.config.hydra
        return node


class _Return(JobReturn):
    """What a job returned. Its configs are composed on demand, because the configs of 100,000
    jobs would fill the memory."""

    def __init__(self, value: Any, compose: partial[DictConfig]) -> None:
        self.status = JobStatus.FAILED if isinstance(value, Exception) else JobStatus.COMPLETED
        self.return_value, self._compose = value, compose
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
    because the record of a run is in MLflow, unless a job wrote into it."""
    folder = tempfile.mkdtemp(prefix="mfgd-")
    atexit.register(_remove_scratch_folder, Path(folder))
    return folder


def _remove_scratch_folder(folder: Path) -> None:
    (folder / "multirun.yaml").unlink(missing_ok=True)
    if any(not path.is_dir() for path in folder.rglob("*")):
        kept = f"{folder} keeps what the jobs wrote"
        warn(f"{kept}; hydra.sweep.dir=FOLDER names another place")
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _make_folder(parent: str, name: str) -> str:
    folder = Path(parent, name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


class RefuseSweeps(Callback):
    """Refuses a sweep before Hydra lists its jobs: one with a launcher that takes jobs to other
    processes, where each job would be a sweep of its own, or one of too many jobs."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        launcher = config.hydra.runtime.choices["hydra/launcher"]
        with exit_on_refusal():
            if launcher not in LAUNCHERS or config.hydra.launcher._target_ not in TARGETS:
                allowed = ", ".join(LAUNCHERS)
                why = "takes jobs to other processes, where each would be a sweep of its own"
                raise Refused(f"hydra/launcher={launcher}: {why}; allowed are {allowed}")
            node: Any = OmegaConf.to_container(config.hydra, resolve=False)
            sweeper, runs = node["runtime"]["choices"]["hydra/sweeper"], math.nan
            if sweeper in LISTING:
                params = node["sweeper"]["params"] or {}
                lines = [f"{key}={value}" for key, value in params.items()]
                lines += node["overrides"]["task"]
                runs = refuse_vast_sweep(lines, GlobalHydra.instance().config_loader())
            announce_size(runs if sweeper != "frontier" else math.nan)


@dataclass
class BatchLauncherConf:
    """Its node in the config."""

    _target_: str = "hydra_plugins.mfgd_launcher.BatchLauncher"


OmegaConf.register_new_resolver("mfgd.scratch", _make_scratch_folder, replace=True)
OmegaConf.register_new_resolver("mfgd.folder", _make_folder, replace=True)
ConfigStore.instance().store(
    group="hydra/launcher", name="batch", node=BatchLauncherConf, provider="mfgd"
)
