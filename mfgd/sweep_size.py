"""How many runs a sweep has, and what is refused because there are too many to list."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException

from mfgd.capacity import refuse_unless_fits
from mfgd.pairs import unpair

RUNS = "mfgd_runs"
"""The name among what Hydra knows of its job."""
POINT = 1700
"""Bytes that each run of a sweep takes in the process that composes it: measured are 262 MB at
1,000 runs and 296 MB at 21,000."""


def refuse_vast_sweep(lines: Sequence[str], loader: ConfigLoader) -> float:
    """Refuses a sweep of more runs than fit into memory, before Hydra lists them.

    Returns:
        How many runs it has; NaN if only Hydra knows.

    Args:
        lines: the overrides of the sweep, as the shell line or the config has them.
        loader: knows the options that a glob stands for.

    Raises:
        Refused: with the overrides and the number of runs.
    """
    try:
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(lines))
    except HydraException:  # Hydra will say why
        return math.nan
    swept = {o.get_key_element(): o for o in overrides if o.is_sweep_override()}
    counts = {key: max(1.0, count_values(override)) for key, override in swept.items()}
    together = {key for key in counts if unpair(key) != key}
    pairs = max((counts[key] for key in together), default=1.0)
    runs = pairs * math.prod(count for key, count in counts.items() if key not in together)
    said = " ".join(str(override.input_line) for override in swept.values())
    number = f"{runs:,.0f}" if runs < 1e15 else f"{runs:.3g}"
    refuse_unless_fits(POINT * runs, f"{said}: {number} runs take", "allowed are fewer runs")
    return runs


def announce_size(runs: float) -> None:
    """Notes how many runs the sweep has that begins; NaN: its sweeper does not say."""
    JobRuntime.instance().set(RUNS, None if math.isnan(runs) else int(runs))


def read_size() -> int | None:
    """How many runs the sweep has, whatever lots they come in; None if its sweeper does not say."""
    runs: int | None = JobRuntime.instance().conf.get(RUNS)
    return runs


def count_values(override: Override) -> float:
    """How many values a sweep override has, none of which is made; 1 if only Hydra knows."""
    values = override.value()
    if isinstance(values, RangeSweep):
        start, stop, step = (Decimal(str(x)) for x in (values.start, values.stop, values.step))
        count = (stop - start) / step if step else Decimal("nan")
        return 1.0 if count.is_nan() else max(0.0, float(count.to_integral_value(ROUND_CEILING)))
    if override.is_choice_sweep():
        given = values.list if isinstance(values, ChoiceSweep) else override.sweep_iterator()
        return float(len(list(given)))
    return 1.0
