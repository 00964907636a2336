"""From shell lines to configs, as Hydra composes them, in a hundredth of the time.

Hydra composes once for all jobs of a sweep that choose the same options.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from mfgd.composed import Composed, JobLine
from mfgd.internals import set_task_overrides, set_value
from mfgd.job import JobConfig
from mfgd.pairs import unpair
from mfgd.passwords import HIDDEN, hide_password, hide_passwords
from mfgd.refusals import quote_value
from mfgd.types import Refused

STORAGE = "hydra.sweeper.storage"
INTERPOLATION = r"\$\{(?:[^{}]|\{[^{}]*\})*\}"


def hide_arguments(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """A shell line without the passwords of its store. It takes the place of the line before Hydra
    reads the line, so that neither Hydra nor a store ever has a password to keep or to print.

    Returns:
        The arguments, and hidden URI → URI, for the tracker alone.

    Raises:
        Refused: two URIs differ in their passwords only, or a password stands beside ${…}, where
            no text of it is known before Hydra reads the line.
    """
    shown, uris = [], dict[str, str]()
    for argument in arguments:
        for text in _list_tracking_texts(argument):
            hidden = hide_password(text)
            if "${" in text:
                written = re.sub(INTERPOLATION, HIDDEN, text)
                if written != hide_password(written):
                    why = "a password stands beside ${…}; allowed is ${oc.env:NAME} for it too"
                    raise Refused(f"tracking.uri={hidden}: {why}")
            elif hidden != text:
                if uris.setdefault(hidden, text) != text:
                    raise Refused(f"tracking.uri={hidden}: has two passwords; allowed is one")
                if text not in argument:  # it is written with backslashes
                    argument = f"{argument.partition('=')[0]}={quote_value(hidden)}"
        # What reads as a flag, Hydra would print as it is.
        shown.append(hide_passwords(argument) if argument.startswith("-") else argument)
    for hidden, uri in uris.items():
        shown = [argument.replace(uri, hidden) for argument in shown]
    return shown, uris


def _list_tracking_texts(argument: str) -> Iterator[str]:
    """The texts, as Hydra reads them, that an argument sets keys of the tracker to, or the storage
    of a search."""
    key = unpair(argument).lstrip("+~").partition("=")[0]
    if key.partition(".")[0] != "tracking" and key != STORAGE:
        return
    try:
        override = OverridesParser.create().parse_override(argument)
        values = [override.value()]
        if override.is_choice_sweep():  # a range has numbers, and maybe more than memory holds
            values = list(override.sweep_iterator())
    except HydraException:  # Hydra will say why, and what it says is printed without passwords
        return
    for value in values:
        for text in value.values() if isinstance(value, dict) else [value]:
            if isinstance(text, str | QuotedString):
                yield text.text if isinstance(text, QuotedString) else text


class Composer:
    """Takes the place of Hydra's config loader.

    Hydra composes what a job chooses; a copy of the result is set to the job's plain values. The
    composer leaves to Hydra whatever is not a plain value of an existing key (a choice of options,
    an interpolation, an addition, a deletion), and every job that sets a key twice.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        self._parser = OverridesParser.create(config_loader=loader)
        self._lines: dict[str, JobLine] = {}
        self._groups: dict[str, bool] = {}
        self._apart: dict[tuple[str, ...], bool] = {}
        self._bases: dict[tuple[str, ...], Composed] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        """A job's config, as Hydra's loader gives it."""
        lines = [self._line(text) for text in sweep_overrides]
        base = self._find_base(master_config, lines)
        config = base.make_config(lines) if base is not None else None
        if base is None or config is None:  # Hydra composes it, or says why not
            return self._loader.load_sweep_config(master_config, sweep_overrides)
        of_task = [line.override for line in lines if not line.override.is_hydra_override()]
        set_task_overrides(config, [override.input_line for override in of_task])
        names = base.names
        dirname = override_dirname(of_task, names.kv_sep, names.item_sep, names.exclude_keys)
        set_value(config, ("hydra", "job", "override_dirname"), dirname)
        OmegaConf.copy_cache(from_config=master_config, to_config=config)
        return config

    def load_job(
        self, master_config: DictConfig, sweep_overrides: Sequence[str]
    ) -> JobConfig | None:
        """A job without the config that it would be read from, in a thirtieth of the time; None if
        it has to be read from there."""
        lines = [self._line(text) for text in sweep_overrides]
        base = self._find_base(master_config, lines)
        content = base.make_content(lines) if base is not None else None
        if base is None or content is None:
            return None
        of_task = [line.text for line in lines if not line.override.is_hydra_override()]
        moving = () if content.get("replicates") in (1, None) else base.find_moving(lines)
        return JobConfig(content, base.choices, of_task, master_config.hydra, moving)

    def _find_base(self, master_config: DictConfig, lines: Sequence[JobLine]) -> Composed | None:
        """What a job shares with others; None if the order of its lines matters."""
        keys = tuple(line.key for line in lines if line.sets)
        if keys not in self._apart:
            self._apart[keys] = _are_apart(keys)
        if not self._apart[keys]:
            return None
        rest = tuple(line.text for line in lines if not line.plain)
        if rest not in self._bases:
            self._bases[rest] = Composed(self._loader.load_sweep_config(master_config, list(rest)))
        return self._bases[rest]

    def _is_group(self, name: str) -> bool:
        if name not in self._groups:
            self._groups[name] = bool(self._loader.get_group_options(name))
        return self._groups[name]

    def _line(self, text: str) -> JobLine:
        if text not in self._lines:
            override = self._parser.parse_override(text)
            # A dictionary given to a group's name sets keys, and chooses no option.
            chooses = not isinstance(override.value(), dict) and self._is_group(
                override.key_or_group
            )
            plain = (
                not chooses
                and override.type is OverrideType.CHANGE
                and override.package is None
                and not override.is_hydra_override()
                and not override.is_sweep_override()
                and _is_plain(override.value())
            )
            key, value = override.key_or_group, override.value()
            self._lines[text] = JobLine(
                text, override, key, tuple(key.split(".")), value, not chooses, plain
            )
        return self._lines[text]


class _ManyJobs:
    """What stands for the config of a job while many jobs are solved together."""

    @property
    def hydra(self) -> Any:
        raise Refused(
            "HydraConfig.get(): has no job to tell of, because the batch launcher solves many "
            "jobs at once; allowed is hydra/launcher=basic, or a key of the function, as in "
            "+loss.number='${hydra:job.num}'"
        )


def forget_job() -> None:
    """Makes HydraConfig.get() refuse an answer, which would be that of another job."""
    HydraConfig.instance().cfg = _ManyJobs()  # type: ignore[assignment]


def override_dirname(
    overrides: Sequence[Override], kv_sep: str, item_sep: str, exclude_keys: Sequence[str]
) -> str:
    """Returns a job's hydra.job.override_dirname: its sorted lines without the excluded keys."""
    lines = [str(o.input_line) for o in overrides if o.key_or_group not in exclude_keys]
    return item_sep.join(sorted(lines)).replace("=", kv_sep)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) and not isinstance(item, list) for item in value)
    if isinstance(value, str):
        return "${" not in value and value != "???"
    return value is None or isinstance(value, bool | int | float)


def _are_apart(keys: Sequence[str]) -> bool:
    """Whether no key equals or contains another key, so that their order does not matter."""
    paths = sorted(f"{key}." for key in keys)
    return not any(later.startswith(earlier) for earlier, later in pairwise(paths))
