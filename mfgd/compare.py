"""Runs side by side: the functions of the module in Python, and the command `mfgd-compare`.

Each function takes the table of `mfgd.load_runs`; `mfgd.sweep_plots` draws it.
"""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mfgd import listing, passwords
from mfgd.columns import NoColumn, choose_measure, find_column, short_name
from mfgd.effects import effect
from mfgd.environment import search_here_last
from mfgd.errors import Parser, Refused, exit_if_refused, refuse_odd_arguments
from mfgd.listing import table
from mfgd.selection import best, drop_repeats, where
from mfgd.summaries import group, importance
from mfgd.terminal import say

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from mfgd.sweep_reader import SweepReader

__all__ = ["best", "drop_repeats", "effect", "group", "importance", "table", "where"]

CONVERGED = 'outcome == "converged"'
PICTURES = (".png", ".pdf", ".svg", ".pgf")
SUFFIXES = {
    "csv": (".csv",),
    "parquet": (".parquet",),
    "latex": (".tex",),
    "html": (".html",),
    "figure": PICTURES,
    "curves": PICTURES,
    "phase": PICTURES,
    "floor": PICTURES,
}
"""Option → the suffixes of its file."""


def main() -> None:
    """`mfgd-compare`: tracked runs as tables, figures and a page."""
    sys.excepthook = passwords.print_error
    gc.disable()  # while MLflow is imported it takes a sixth of the time, and frees nothing
    with exit_if_refused():
        refuse_odd_arguments()
        options = _read_arguments()
        for option, suffixes in SUFFIXES.items():
            _check_file(option, getattr(options, option), suffixes)
        if options.film:
            _film(options)
            return
        try:
            say(_compare(options, whole=False))
        except NoColumn:
            # What was logged to a run after its sweep is in the run alone.
            say(_compare(options, whole=True))


def _read_arguments() -> argparse.Namespace:
    parser = Parser("mfgd-compare", description="Compares tracked runs.")
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN_ID", help="these runs, or the children of these sweeps")
    default = "(default: MLFLOW_EXPERIMENT_NAME, else mfgd)"
    experiment = f"all runs of an MLflow experiment; may be repeated {default}"
    add("--experiment", action="append", default=[], metavar="NAME", help=experiment)
    add("--uri", help="tracking URI (default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)")
    condition = "only runs such as 'rank == 10 and outcome != \"diverged\"'"
    add("--where", metavar="CONDITION", help=condition)

    show = parser.add_argument_group("what is printed; columns have short names, such as lr")
    add = show.add_argument
    measure = "sort by this column, which is the measure of all else too"
    add("--sort", metavar="COLUMN", help=f"{measure} (default: the excess if known, else an error)")
    add("--columns", metavar="NAME,NAME", help="the columns of the table")
    add("--top", type=int, default=10, metavar="N", help="how many lines (default: 10)")
    add("--by", metavar="KEY,KEY", help="each setting of these keys: median, quartiles, shares")
    add("--effect", metavar="KEY", help="each two options of a key in pairs of equal draws")
    add("--importance", action="store_true", help="how much of the variance each key explains")
    add("--diff", nargs=2, metavar="RUN_ID", help="two runs; --figure draws both")

    write = parser.add_argument_group(f"what is written; a figure is {', '.join(PICTURES)}")
    add = write.add_argument
    add("--csv", type=Path, metavar="FILE", help="all columns of these runs")
    add("--parquet", type=Path, metavar="FILE", help="the same")
    add("--latex", type=Path, metavar="FILE", help="the table as printed, for LaTeX (booktabs)")
    add(
        "--html", type=Path, metavar="FILE", help="the comparison as one page that needs no network"
    )
    add("--figure", type=Path, metavar="FILE", help="the overview of these runs")
    add("--curves", type=Path, metavar="FILE", help="their curves with quartiles and theory")
    add("--phase", type=Path, metavar="FILE", help="the share of successes over two keys (--by)")
    success = f"which runs succeed (default: success_rate of replicates, else {CONVERGED})"
    add("--success", metavar="CONDITION", help=success)
    add(
        "--floor",
        type=Path,
        metavar="FILE",
        help="final error against rank, and the least possible",
    )
    add("--film", nargs=2, metavar=("RUN_ID", "FILE"), help="a run step by step, as .gif or .html")
    return parser.parse_args()


def _check_file(option: str, file: Path | None, suffixes: tuple[str, ...]) -> None:
    """Refuses a file that cannot be written, before anything is read."""
    if file is None:
        return
    if file.suffix.lower() not in suffixes:
        raise Refused(f"--{option}={file}: unknown suffix; allowed are {', '.join(suffixes)}")
    if not file.absolute().parent.is_dir():
        raise Refused(f"--{option}={file}: there is no folder {file.parent}")


def _film(options: argparse.Namespace) -> None:
    from mfgd.film import film
    from mfgd.mlflow_reader import load_run

    search_here_last()  # the functions of the user's own that a run names are there
    run_id, name = options.film
    _check_file("film", Path(name), (".gif", ".html"))
    film(load_run(run_id, options.uri), Path(name))


def _compare(options: argparse.Namespace, *, whole: bool) -> str:
    """Writes the files that are asked for, and returns what is printed."""
    from mfgd.sweep_reader import SweepReader

    reader = SweepReader(options.uri, whole=whole)
    if options.diff:
        return _diff(options, reader)
    runs = _select(options, reader)
    measure = find_column(runs, options.sort) if options.sort else choose_measure(runs)
    runs = best(runs, options.sort)
    text = _format(options, runs, measure)
    _write_tables(options, runs)
    _write_figures(options, runs, measure, reader)
    return text


def _select(options: argparse.Namespace, reader: SweepReader) -> pandas.DataFrame:
    """The runs that the arguments name."""
    if options.runs:
        runs = reader.read_runs(options.runs)
    else:
        runs = reader.read_experiments(options.experiment)
    if options.where:
        runs = _filter(runs, "where", options.where)
        if not len(runs):
            raise Refused(f"--where={options.where}: no run is like that")
    return runs


def _filter(runs: pandas.DataFrame, option: str, condition: str) -> pandas.DataFrame:
    """The runs that fulfil the condition of an option."""
    try:
        return where(runs, condition)
    except Refused as refused:
        raise type(refused)(f"--{option}={refused}") from None


def _split(names: str | None) -> list[str]:
    return [name.strip() for name in (names or "").split(",") if name.strip()]


def _format(options: argparse.Namespace, runs: pandas.DataFrame, measure: str) -> str:
    """What is printed: settings, effects or shares if they are asked for, else the best runs."""
    keys = _split(options.by)
    if options.effect:
        if len(keys) > 1:
            raise Refused(f"--by={options.by}: with --effect; allowed is one key")
        found = effect(runs, options.effect, keys[0] if keys else None, measure)
        return listing.effects(found, measure)
    if options.importance:
        return listing.shares(importance(runs, measure), measure)
    if keys and not options.phase:
        return listing.groups(group(runs, keys, measure), measure, options.top)
    return table(runs, options.top, _split(options.columns), options.sort)


def _write_tables(options: argparse.Namespace, runs: pandas.DataFrame) -> None:
    if options.csv:
        runs.to_csv(options.csv, index=False)
    if options.parquet:
        runs.to_parquet(options.parquet, index=False)
    if options.latex:
        lines = listing.latex(runs, options.top, _split(options.columns), options.sort)
        options.latex.write_text(lines, encoding="utf-8")


def _write_figures(
    options: argparse.Namespace, runs: pandas.DataFrame, measure: str, reader: SweepReader
) -> None:
    """Draws what is asked for, and imports only what that takes."""
    title = ", ".join(options.experiment or [run_id[:8] for run_id in options.runs])
    curves = reader.read_curves(runs) if options.curves or options.html else None
    if options.figure:
        from mfgd.sweep_plots import overview

        _save(overview(runs, title), options.figure)
    if options.curves and curves is not None:
        from mfgd.sweep_curves import draw_curves

        by = next(iter(_split(options.by)), None)
        curve = None
        if options.sort:
            curve = short_name(measure).removeprefix("final_")
        _save(draw_curves(runs, curves, by, curve), options.curves)
    if options.phase:
        _save(_draw_phase(options, runs), options.phase)
    if options.floor:
        from mfgd.sweep_plots import floor

        _save(floor(runs), options.floor)
    if options.html and curves is not None:
        from mfgd.page import write_page
        from mfgd.sweep_summary import find_effects

        told = f"{len(runs)} runs" + (f", {options.where}" if options.where else "")
        write_page(options.html, runs, curves, find_effects(runs), title or "mfgd", told)


def _draw_phase(options: argparse.Namespace, runs: pandas.DataFrame) -> Figure:
    import pandas

    from mfgd.phase import find_rates, phase

    success = None if options.success else find_rates(runs)
    if success is None:
        condition = options.success or CONVERGED
        succeeded = runs.index.isin(_filter(runs, "success", condition).index)
        success = pandas.Series(succeeded, runs.index, name=condition)
    return phase(runs, success, _split(options.by) or None)


def _diff(options: argparse.Namespace, reader: SweepReader) -> str:
    """What two runs differ in, and their figure if it is asked for."""
    from mfgd.difference import describe_difference, draw_difference
    from mfgd.mlflow_reader import load_run

    runs = reader.read_runs(options.diff)
    if len(runs) != 2:
        raise Refused(f"--diff={' '.join(options.diff)}: {len(runs)} runs; allowed are two")
    if options.figure:
        first, second = (load_run(run_id, options.uri) for run_id in options.diff)
        names = (options.diff[0][:8], options.diff[1][:8])
        _save(draw_difference(first, second, names), options.figure)
    return describe_difference(runs)


def _save(figure: Figure, file: Path) -> None:
    """Saves a figure in the format of its suffix.

    Raises:
        Refused: LaTeX, which .pgf needs, is not there.
    """
    try:
        figure.savefig(file)
    except (OSError, RuntimeError) as error:
        raise Refused(f"{file}: cannot be written: {' '.join(str(error).split())[:200]}") from None
