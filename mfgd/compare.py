"""Runs side by side, in the shell: the table at the end of a sweep, and `mfgd-compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mfgd import refusals

if TYPE_CHECKING:
    import pandas

DESIGN = {
    "rank": "params.rank",
    "lr": "params.lr",
    "loss": "params.loss",
    "init": "params.init",
}
"""Title → column of what a table shows first; then come the other params that vary."""
RESULTS = {
    "relative error": "metrics.final_relative_error",
    "held out": "metrics.heldout_error",
    "to optimum": "to optimum",
    "steps": "metrics.steps_run",
    "outcome": "tags.outcome",
    "run id": "run_id",
}
"""Title → column of what a table shows last."""
INFINITE = 1e300
"""MLflow keeps infinity as the largest number."""


def best(runs: pandas.DataFrame, by: str = "metrics.final_relative_error") -> pandas.DataFrame:
    """The runs sorted by a column, the least value first; runs without a number there come last."""
    import numpy as np
    import pandas

    if by not in runs:
        return runs
    key = runs[by]
    if by.startswith(("metrics.", "params.")):
        key = pandas.to_numeric(key, errors="coerce")
    if key.isna().all():
        key = runs[by]
    elif by.startswith("metrics."):
        key = key.where(key < INFINITE, np.nan)
    return runs.loc[key.sort_values(kind="stable", na_position="last").index]


def table(runs: pandas.DataFrame, top: int = 10) -> str:
    """The first runs as text: what the sweep varies, how near each run came, and how it ended.

    ``held out`` is shown if entries are held out; ``to optimum`` is excess_loss if the optimum is
    known and positive, the loss itself if the optimum is 0.
    """
    import pandas

    from mfgd.sweep_plots import find_varied

    shown = runs.head(top).copy()
    unknown = pandas.Series(float("nan"), index=shown.index)
    excess = shown.get("metrics.excess_loss", unknown)
    gap = shown.get("metrics.loss_gap", unknown)
    ended = shown.get("tags.outcome", unknown) != "diverged"
    shown["to optimum"] = excess.fillna(gap).where(ended)
    varied = {name: f"params.{name}" for name in find_varied(runs)}
    columns = DESIGN | varied | RESULTS
    if shown.get("metrics.heldout_error", unknown).isna().all():
        del columns["held out"]
    lines = [""] * (len(shown) + 1)
    for title, name in columns.items():
        cells = [title, *map(_format_cell, shown.get(name, unknown))]
        width = max(map(len, cells))
        for i, cell in enumerate(cells):
            lines[i] += f"{cell.ljust(width)}  "
    return "\n".join(line.rstrip() for line in lines)


def _format_cell(value: object) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    if value != value or abs(value) >= INFINITE:
        return "–"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}"


def main() -> None:
    """`mfgd-compare`: tracked runs as a table, and as a figure."""
    from mfgd import sweep_plots
    from mfgd.mlflow_reader import load_runs

    options = _read_arguments()
    with refusals.exit_on_refusal():
        runs = load_runs(experiment=options.experiment, uri=options.uri)
        runs = best(_select(runs, options), options.sort)
        print(table(runs, options.top))
        if options.csv:
            runs.to_csv(options.csv, index=False)
        if options.figure:
            sweep_plots.overview(runs).savefig(options.figure)


def _read_arguments() -> argparse.Namespace:
    program = "mfgd-compare"
    parser = argparse.ArgumentParser(program, description="Compares tracked runs, best first.")
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN_ID", help="these runs, or the children of these sweeps")
    default = "(default: MLFLOW_EXPERIMENT_NAME, else mfgd)"
    add("--experiment", metavar="NAME", help=f"MLflow experiment {default}")
    add("--uri", help="tracking URI (default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)")
    sort = "metrics.final_relative_error"
    add("--sort", default=sort, metavar="COLUMN", help="metrics.*, params.*")
    add("--top", type=int, default=10, metavar="N", help="how many lines (default: 10)")
    add("--csv", type=Path, metavar="FILE", help="write all columns of all these runs")
    add("--figure", type=Path, metavar="FILE", help="draw the overview of these runs")
    return parser.parse_args()


def _select(runs: pandas.DataFrame, options: argparse.Namespace) -> pandas.DataFrame:
    """The runs that the arguments name, without the sweeps' own runs.

    Raises:
        Refused: there are none, or no such run or column.
    """
    from mfgd.types import Refused

    place = f"experiment {options.experiment}" if options.experiment else "the experiment"
    if options.runs and len(runs):
        wanted = set(options.runs)
        if unknown := wanted - set(runs["run_id"]):
            raise Refused(f"{min(unknown)}: no such run in {place}")
        runs = runs[runs["run_id"].isin(wanted) | runs["parent"].isin(wanted)]
    if len(runs):
        runs = runs[~runs["run_id"].isin(set(runs["parent"].dropna()))]
    if not len(runs):
        raise Refused(f"{place}: no runs in it")
    if options.sort not in runs:
        columns = ", ".join(sorted(runs.columns))
        raise Refused(f"--sort={options.sort}: no such column; allowed are {columns}")
    return runs
