"""What the sweepers share that choose their runs by what the runs before gave."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from mfgd.pairs import refuse_pairs
from mfgd.result import Result
from mfgd.terminal import say
from mfgd.tracking import KeepsFiles, Tracker


class Interval(NamedTuple):
    """An interval of the shell line."""

    low: float
    high: float
    is_log: bool
    is_whole: bool


class Search(Protocol):
    """What a sweeper looks for, and what it has found so far."""

    @property
    def most(self) -> int:
        """How many runs it takes, unless it finds what it looks for with fewer."""

    def describe(self) -> str:
        """What was found, as lines to print; empty if no run was made."""

    def write(self, folder: Path) -> None:
        """Writes what was found as files of the sweep's own run."""


class SearchSweeper(Sweeper):
    """A sweeper that sends lots of jobs, and is told of each run more than its loss."""

    def __init__(self, params: Mapping[str, Any] | None, **keys: Any) -> None:
        self.params, self.keys = params or {}, keys

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.config, self.loader = config, hydra_context.config_loader
        # Hydra's task is a method of the session, which prints and keeps what is found.
        self.session: Any = getattr(task_function, "__self__", None)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.launched = 0

    @abstractmethod
    def sweep(self, arguments: list[str]) -> Any: ...

    def parse(self, arguments: Sequence[str]) -> dict[str, Override]:
        """Key → what is said of it, on the shell line or else in hydra.sweeper.params."""
        lines = [f"{key}={value}" for key, value in self.params.items()]
        assert self.config is not None
        choices = self.config.hydra.runtime.choices
        refuse_pairs([*lines, *arguments], choices["hydra/sweeper"])
        parser = OverridesParser.create(config_loader=self.loader)
        overrides = parser.parse_overrides([*lines, *arguments])
        return {override.get_key_element(): override for override in overrides}

    def read_interval(self, override: Override) -> Interval:
        """The interval of an override; whole if Hydra says so, or the default of its key."""
        given: Any = override.value()
        low, high = given.start, given.end
        assert self.config is not None
        default = OmegaConf.select(self.config, override.key_or_group)
        counts = isinstance(default, int) and not isinstance(default, bool)
        # interval(1,20) is a pair of floats to Hydra.
        is_whole = isinstance(low, int) or (counts and low.is_integer() and high.is_integer())
        return Interval(low, high, "log" in given.tags, is_whole)

    def launch(self, jobs: Sequence[Sequence[str]]) -> list[Result | None]:
        """Runs jobs together; what each run gave, None if the run raised."""
        assert self.launcher is not None
        returns = self.launcher.launch(jobs, initial_job_idx=self.launched)
        self.launched += len(jobs)
        done = [job.status is JobStatus.COMPLETED for job in returns]
        return [job.return_value if ok else None for job, ok in zip(returns, done, strict=True)]


def end_search(search: Search, tracker: Tracker) -> None:
    """Prints what was found, and has it kept with the sweep's own run."""
    if text := search.describe():
        say(text)
        if isinstance(tracker, KeepsFiles):
            tracker.keep_files(search.write)
