"""Runs that start where tracked runs ended."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
from annotated_types import MinLen
from torch import Tensor

from mfgd.matrix import pick_matrices
from mfgd.types import Factors, Refused

if TYPE_CHECKING:
    import pandas

    from mfgd.point import Point

TARGET = "mfgd.init.run"
FACTOR = re.compile(r"C|F|W\d+")
"""Names of factors among the matrices of a run."""
Id = Annotated[str, MinLen(1)]


class End(NamedTuple):
    """The end of a tracked run."""

    run_id: str
    arrays: dict[str, Tensor]
    """C and F, W1 … WL beyond depth 2."""


def run(*, run: Id | None, sweep: Id | None) -> Callable[..., Factors]:
    """The factors at which a tracked run ended. Step, momentum and random numbers begin anew.

    With ``sweep`` each run starts at the end of one run of an earlier sweep: of the one that has
    the same value of every key that the sweep varied and this shell line gives.

    Args:
        run: its id, in the store in which this run is tracked; may be swept.
        sweep: the id of the earlier sweep's own run, instead of ``run``.

    Raises:
        Refused: no such run, a run of replicates, factors of another shape, or none or several runs
            of the sweep with these values.
    """

    def start(problem: Any, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        # From a shell line the factors come with the point, as `find_sources` attaches them.
        if run is None:
            allowed = "allowed beyond a shell line is init.run=ID"
            raise Refused(f"init.sweep={sweep}: which of its runs is not said; {allowed}")
        return choose_factors(_read_end(run, None), widths)

    return start


def find_sources(points: Sequence[Point], uri: str | None) -> list[Point]:
    """The points, of which those that start where a run ended know the run and its factors.

    Args:
        points: of a shell line.
        uri: of the store; None as `mfgd.load_run` takes it.

    Raises:
        Refused: as `run` does.
    """
    ends: dict[str, End] = {}
    sweeps: dict[str, _Sweep] = {}
    found: list[Point] = []
    for point in points:
        if point.init.target != TARGET:
            found.append(point)
            continue
        keys = point.init.arguments
        run_id, parent = keys["run"], keys["sweep"]
        if (run_id is None) == (parent is None):
            raise Refused("init=run: allowed is either init.run=ID or init.sweep=ID")
        if run_id is None:
            if parent not in sweeps:
                sweeps[parent] = _Sweep(parent, uri)
            run_id = sweeps[parent].find(point)
        if run_id not in ends:
            ends[run_id] = _read_end(run_id, uri)
        found.append(replace(point, source=ends[run_id]))
    return found


def _read_end(run_id: str, uri: str | None) -> End:
    """What a tracked run has kept of its end."""
    from mfgd.mlflow_reader import load_run  # it reads points

    kept = load_run(run_id, uri)
    if kept.config.get("replicates", 1) > 1:
        raise Refused(f"init.run={run_id}: has replicates; allowed is a single run")
    factors = {name: W for name, W in kept.matrices.items() if FACTOR.fullmatch(name)}
    return End(run_id, factors)


class _Sweep:
    """The runs of an earlier sweep, by the values of keys."""

    def __init__(self, parent: str, uri: str | None) -> None:
        from mfgd.columns import find_varied
        from mfgd.sweep_reader import SweepReader

        self.parent = parent
        self.runs: pandas.DataFrame = SweepReader(uri).read_runs([parent])
        if "parent" not in self.runs or (self.runs["parent"] != parent).any():
            raise Refused(f"init.sweep={parent}: is no sweep; allowed is init.run for a single run")
        # Where the earlier runs started says nothing of a run that starts where they ended.
        varied = find_varied(self.runs)
        self.varied = [key for key in varied if key != "init" and not key.startswith("init.")]
        self.known: dict[tuple[str, ...], dict[tuple[str, ...], list[str]]] = {}
        """Keys → their values → ids of the runs."""

    def find(self, point: Point) -> str:
        """The id of the run with the values of a point."""
        from mfgd.tracked import format_params

        given = {line.lstrip("+").partition("=")[0] for line in point.overrides}
        shared = tuple(key for key in self.varied if key in given)
        if shared not in self.known:
            table = self.runs[[f"params.{key}" for key in shared]].astype(str)
            self.known[shared] = {}
            for values, run_id in zip(table.to_numpy(), self.runs["run_id"], strict=True):
                self.known[shared].setdefault(tuple(values), []).append(run_id)
        params = format_params(point, None)
        found = self.known[shared].get(tuple(params[key] for key in shared), [])
        if len(found) != 1:
            told = " ".join(f"{key}={params[key]}" for key in shared) or "keys of this shell line"
            rest = ", ".join(key for key in self.varied if key not in shared)
            why = f"the sweep varies {rest} too, which this line has to give" if rest else ""
            count = f"{len(found) or 'no'} runs of it fit {told}; allowed is one"
            raise Refused(f"init.sweep={self.parent}: {count}" + (f"; {why}" if why else ""))
        return found[0]


def choose_factors(source: End, widths: tuple[int, ...]) -> Factors:
    """The factors W₁ (n, k) … W_L (k, m) at which a run ended.

    Raises:
        Refused: they have other shapes than the widths (n, k, …, k, m), or are not finite.
    """
    from mfgd.init import factor_names

    shapes = dict(zip(factor_names(len(widths) - 1), pairwise(widths), strict=True))
    return pick_matrices(source.arrays, shapes, f"init.run={source.run_id}")
