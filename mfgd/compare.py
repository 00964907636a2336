"""Runs side by side, in the shell: the table at the end of a sweep, and `mfgd-compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mfgd import config

if TYPE_CHECKING:
    import pandas

COLUMNS = {
    "rank": "params.rank",
    "lr": "params.lr",
    "loss": "params.loss",
    "init": "params.init",
    "relative error": "metrics.final_relative_error",
    "held out": "metrics.heldout_error",
    "to optimum": "to optimum",
    "steps": "metrics.steps_run",
    "outcome": "tags.outcome",
    "run id": "run_id",
}


def best(runs: pandas.DataFrame, by: str = "metrics.final_relative_error") -> pandas.DataFrame:
    """The runs by a column, least first; those that have no number there come last."""
    import numpy as np
    import pandas

    if by not in runs:
        return runs
    key = (
        pandas.to_numeric(runs[by], errors="coerce")
        if by.startswith(("metrics.", "params."))
        else runs[by]
    )
    if key.isna().all():
        key = runs[by]
    elif by.startswith("metrics."):
        key = key.where(key < 1e300, np.nan)  # MLflow keeps infinity as the largest number
    return runs.loc[key.sort_values(kind="stable", na_position="last").index]


def table(runs: pandas.DataFrame, top: int = 10) -> str:
    """The first runs as text: what the design of a sweep varies, how near each came, and how it ended.

    ``held out`` is shown where entries are; ``to optimum`` is excess_loss where the optimum is known and positive, the
    loss itself where it is 0.
    """
    import pandas

    from mfgd.plots import swept

    shown = runs.head(top).copy()
    empty = pandas.Series(float("nan"), index=shown.index)
    excess, gap = (shown.get(f"metrics.{name}", empty) for name in ("excess_loss", "loss_gap"))
    shown["to optimum"] = excess.fillna(gap).where(shown.get("tags.outcome", empty) != "diverged")
    known = list(COLUMNS.values())
    extra = {name: f"params.{name}" for name in swept(runs) if f"params.{name}" not in known}
    columns = dict(list(COLUMNS.items())[:4]) | extra | dict(list(COLUMNS.items())[4:])
    if shown.get("metrics.heldout_error", empty).isna().all():
        del columns["held out"]
    cells = {
        title: [_cell(value) for value in shown.get(name, empty)] for title, name in columns.items()
    }
    widths = (
        {title: max(len(title), *map(len, column)) for title, column in cells.items()}
        if len(shown)
        else {}
    )
    lines = ["  ".join(title.ljust(widths[title]) for title in widths)]
    lines += [
        "  ".join(cells[title][i].ljust(widths[title]) for title in widths)
        for i in range(len(shown))
    ]
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        if value != value or abs(value) >= 1e300:
            return "–"
        return str(int(value)) if value == int(value) and abs(value) < 1e6 else f"{value:.4g}"
    return "–" if value is None else str(value)


def main() -> None:
    """`mfgd-compare`: tracked runs as a table, and as a figure."""
    from mfgd import plots, tracking
    from mfgd.types import Refused

    parser = argparse.ArgumentParser(
        prog="mfgd-compare", description="Compares tracked runs, best first."
    )
    parser.add_argument(
        "runs", nargs="*", metavar="RUN_ID", help="these runs, or the children of these sweeps"
    )
    parser.add_argument("--experiment", default="mfgd", help="MLflow experiment (default: mfgd)")
    parser.add_argument(
        "--uri", help="tracking URI (default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)"
    )
    parser.add_argument(
        "--sort",
        default="metrics.final_relative_error",
        metavar="COLUMN",
        help="metrics.*, params.*",
    )
    parser.add_argument(
        "--top", type=int, default=10, metavar="N", help="how many lines (default: 10)"
    )
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="write all columns of all these runs"
    )
    parser.add_argument(
        "--figure", type=Path, metavar="FILE", help="draw the overview of these runs"
    )
    options = parser.parse_args()
    with config.refusals():
        runs = tracking.load_runs(experiment=options.experiment, uri=options.uri)
        if options.runs and len(runs):
            wanted = set(options.runs)
            if unknown := wanted - set(runs["run_id"]):
                raise Refused(f"{min(unknown)}: no such run in experiment {options.experiment}")
            runs = runs[runs["run_id"].isin(wanted) | runs["parent"].isin(wanted)]
        if len(runs):
            runs = runs[~runs["run_id"].isin(set(runs["parent"].dropna()))]
        if not len(runs):
            raise Refused(f"experiment {options.experiment}: no runs in it")
        if options.sort not in runs:
            raise Refused(
                f"--sort={options.sort}: no such column; allowed are {', '.join(sorted(runs.columns))}"
            )
        runs = best(runs, options.sort)
        print(table(runs, options.top))
        if options.csv:
            runs.to_csv(options.csv, index=False)
        if options.figure:
            plots.overview(runs).savefig(options.figure)
