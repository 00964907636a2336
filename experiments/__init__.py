"""Published results as runnable claims.

An experiment is one file in this folder, named by citation, and its sweep
``conf/experiment/NAME.yaml``; nothing else is touched to add one. The file holds

- a docstring of paragraphs: the paper; the claim, in one line; then whatever explains both;
- ``SWEEPS``: the YAMLs that the file runs → the overrides with which ``--quick`` makes them
  smaller, None if ``--quick`` leaves them out;
- ``claims(runs)``, which measures and gives a `Claim` for every number that is compared with a
  published number;
- ``figure(runs)``, which draws the figure of the paper from our runs, and theory or published
  values over it;
- any start or problem that only this experiment needs: a function that the YAML names by
  ``_target_``.

``runs`` is the pandas table of the tracked runs, as `mfgd.load_runs` gives it;
``sweep`` is the YAML of each run. `loaded` gives config, trajectory and matrices.
Claims know no other source than these two.
"""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import mfgd
from mfgd.types import Refused

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mfgd.tracking import Run


class Claim(NamedTuple):
    """A number held against a published one."""

    text: str
    expected: str
    got: str
    holds: bool

    @property
    def verdict(self) -> str:
        return "holds" if self.holds else "DEVIATES"


def within(text: str, got: float, expected: float, tolerance: float) -> Claim:
    """Claims expected ± tolerance; NaN deviates."""
    return Claim(
        text, f"{expected:.6g} ± {tolerance:.2g}", f"{got:.6g}", abs(got - expected) <= tolerance
    )


def between(text: str, got: float, low: float = -math.inf, high: float = math.inf) -> Claim:
    """Claims low ≤ got ≤ high, of which one may be left out; NaN deviates."""
    expected = f"{low:.4g} to {high:.4g}"
    if math.isinf(low) or math.isinf(high):
        expected = f"≤ {high:.4g}" if math.isinf(low) else f"≥ {low:.4g}"
    return Claim(text, expected, f"{got:.4g}", low <= got <= high)


THEORY: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.0}
"""How a figure draws what theory says, over the colours of what was measured."""


def over_steps(axes: Axes) -> None:
    """Has the x axis show steps: step 0 in its place, logarithmic from 1 on."""
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=0)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)


def loaded(runs: pandas.DataFrame) -> list[Run]:
    """The tracked runs of a table, in the order of its lines: config, trajectory and matrices of
    each."""
    return [_loaded(run_id) for run_id in runs["run_id"]]


@lru_cache(maxsize=1000)
def _loaded(run_id: str) -> Run:
    return mfgd.load_run(run_id)


def step_at(trajectory: pandas.DataFrame, measure: str, bound: float) -> float:
    """The step at which a measure comes down to a bound, NaN if it never does.

    Between two records the logarithm of the measure is taken as a line.
    """
    step, values = trajectory["step"].to_numpy(), trajectory[measure].to_numpy()
    below = np.flatnonzero(values <= bound)
    if not len(below):
        return math.nan
    i = below[0]
    if i == 0 or values[i] <= 0 or not math.isfinite(values[i - 1]):
        return float(step[i])
    share = math.log(values[i - 1] / bound) / math.log(values[i - 1] / values[i])
    return float(step[i - 1] + share * (step[i] - step[i - 1]))


class Experiment(NamedTuple):
    """What an experiment's file holds."""

    name: str
    paper: str
    claim: str
    """In one line."""
    sweeps: Mapping[str, Sequence[str] | None]
    """YAML → overrides of --quick; None: it leaves that one out."""
    claims: Callable[[pandas.DataFrame], Iterator[Claim]]
    figure: Callable[[pandas.DataFrame], Figure]


def names() -> list[str]:
    """The experiments that there are, by name."""
    return sorted(
        module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")
    )


def load(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        Refused: there is none.
    """
    if name not in names():
        raise Refused(f"{name}: no such experiment; allowed are {', '.join(names())}")
    module: Any = import_module(f"{__name__}.{name}")
    paper, claim, *_ = (" ".join(part.split()) for part in module.__doc__.split("\n\n"))
    return Experiment(name, paper, claim, module.SWEEPS, module.claims, module.figure)
