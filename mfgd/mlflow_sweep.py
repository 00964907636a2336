"""The sweep's own run: what its end writes for those who compare the runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mfgd import mlflow_view, sweep_summary
from mfgd.mlflow_client import log_batches
from mfgd.mlflow_reader import read_table
from mfgd.mlflow_resume import end_children
from mfgd.mlflow_sender import Sender
from mfgd.retry import retry
from mfgd.tracked import MetricPoint, Written, mark_name

if TYPE_CHECKING:
    import pandas
    from mlflow import MlflowClient


class Sweep(NamedTuple):
    """What is known of a sweep beside its runs."""

    name: str
    line: str
    """The arguments of its shell line."""
    resumed: bool
    drawn: bool
    """Whether its runs have figures and images."""
    write_more: Callable[[Path], None] | None
    """Writes further files of the sweep's own run."""


def end_sweep(
    sender: Sender,
    sweep: Sweep,
    status: str,
    written: Mapping[str, Written],
    unfinished: Sequence[str],
) -> tuple[pandas.DataFrame, str]:
    """Ends the sweep's own run.

    Args:
        sender: the way to the store.
        sweep: the sweep.
        status: FINISHED, FAILED or KILLED.
        written: id of each run that this process wrote → what is known of it.
        unfinished: the shell line of each run that was not done.

    Returns:
        The table of the runs, and the query of an address that opens the sweep's saved view; empty
        if there is none.
    """
    client, parent = sender.client, sender.parent
    assert parent is not None
    view = ""
    try:
        end_children(client, sender.experiment_id, parent)
        _label_runs(client, written)
        runs = retry(partial(read_table, client, sender.uri, sender.experiment_id, parent))
        if len(runs):
            runs = runs[runs["status"] != "KILLED"]  # left by a process that died
        curves = sweep_summary.join_curves(written, runs, sender.uri)
        with sender.open_artifacts(client.get_run(parent).info) as folder:
            if len(runs):
                line = f"mfgd {sweep.line}"
                sweep_summary.write_files(folder, runs, curves, sweep.name, line)
            if sweep.write_more is not None:
                sweep.write_more(folder)
            if unfinished or sweep.resumed:  # the list of the command before is no longer true
                sweep_summary.write_unfinished(folder, unfinished)
        _count_outcomes(client, parent, runs, sweep, unfinished)
        if len(runs):
            view = _describe_sweep(sender, parent, runs, sweep, unfinished)
    finally:
        client.set_terminated(parent, status)
    return runs, view


def _label_runs(client: MlflowClient, written: Mapping[str, Written]) -> None:
    """Shows the runs of a sweep that came in parts as runs of one sweep."""
    for run_id, (outcome, _, label) in written.items():
        if label is not None:
            client.update_run(run_id, name=mark_name(label.name, outcome))
            client.set_tag(run_id, "mlflow.runColor", label.colour)
            now = int(1000 * time.time())
            numbers = [MetricPoint(key, value, now, 0) for key, value in label.numbers.items()]
            log_batches(client, run_id, {}, numbers, {})


def _count_outcomes(
    client: MlflowClient,
    parent: str,
    runs: pandas.DataFrame,
    sweep: Sweep,
    unfinished: Sequence[str],
) -> None:
    """Logs how many runs ended how, as metrics of the sweep's own run."""
    counts = dict(runs["tags.outcome"].value_counts()) if len(runs) else {}
    if unfinished or sweep.resumed:
        counts["unfinished"] = len(unfinished)
    for outcome, count in counts.items():
        client.log_metric(parent, f"runs.{outcome}", count)


def _describe_sweep(
    sender: Sender,
    parent: str,
    runs: pandas.DataFrame,
    sweep: Sweep,
    unfinished: Sequence[str],
) -> str:
    """Saves the view of a sweep, and its description; returns the query that opens the view."""
    client, experiment_id = sender.client, sender.experiment_id
    if not unfinished:  # a param cannot change when the sweep goes on
        log_batches(client, parent, sweep_summary.swept_params(runs), [], {})
    view = mlflow_view.save(client, experiment_id, runs, parent, sweep.name, sweep.drawn)
    page = f"#/experiments/{experiment_id}/runs"
    links = {
        "charts of this sweep": f"{page}?{view}",
        "compare.html": f"{page}/{parent}/artifacts/{sweep_summary.PAGE}",
    }
    line = f"mfgd {sweep.line}"
    note = sweep_summary.write_description(runs, line, links, len(unfinished))
    client.set_tag(parent, "mlflow.note.content", note)
    return view
