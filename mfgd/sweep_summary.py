"""What a sweep's own run keeps of its runs: files, and a description."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mfgd.columns import (
    REPEATS,
    by_size,
    choose_coloured,
    choose_measure,
    find_swept,
    outcomes,
    settings,
    short_name,
)
from mfgd.effects import effect
from mfgd.summaries import group
from mfgd.sweep_reader import CURVES, SUMMARY, SweepReader
from mfgd.terminal import show_plain
from mfgd.tracked import Curves, Written

if TYPE_CHECKING:
    import pandas

PAGE, UNFINISHED = "compare.html", "unfinished.txt"
OPTIONS = 6
"""A key of more options has no effects on the page: each two would be a line."""
LINES = 12
"""Settings in the description."""
LONGEST = 500
"""Characters of the values of a key."""
SIGNS = r"([\\`*_{}\[\]|~!#])"
"""What Markdown reads as more than text, within a line."""


def join_curves(
    written: Mapping[str, Written], runs: pandas.DataFrame, uri: str
) -> pandas.DataFrame:
    """The curves of runs as one long table: run_id, step, and the measures that are known.

    Those that this process does not know are read: another process has written these runs.
    """
    import pandas

    known = {run_id: run.curves for run_id, run in written.items() if run.curves}
    tables = [_lay_out(known)] if known else []
    if len(runs) and not (ours := runs["run_id"].isin(known)).all():
        tables.append(SweepReader(uri).read_curves(runs[~ours]))
    if not tables:
        return pandas.DataFrame({"run_id": [], "step": []})
    return pandas.concat(tables, ignore_index=True)


def _lay_out(curves: Mapping[str, Curves]) -> pandas.DataFrame:
    """The curves of runs, by id, below each other: NaN if a run has no such measure."""
    import pandas

    lengths = [len(curve["step"]) for curve in curves.values()]
    unknown = np.full(max(lengths), np.nan, "float32")
    table: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(chain.from_iterable(curves.values())):
        parts = zip(curves.values(), lengths, strict=True)
        table[name] = np.concatenate([curve.get(name, unknown[:n]) for curve, n in parts])
    return pandas.DataFrame(table).assign(run_id=np.repeat(np.array([*curves], object), lengths))


def write_files(
    folder: Path, runs: pandas.DataFrame, curves: pandas.DataFrame, title: str, subtitle: str
) -> None:
    """Writes the table, the curves, the page and the overview of a sweep, and the phase diagram of
    replicates over two keys, or of a grid."""
    from mfgd import page
    from mfgd.phase import find_arrivals, find_rates, phase
    from mfgd.sweep_plots import overview

    runs.to_csv(folder / "summary.csv", index=False)
    runs.to_parquet(folder / SUMMARY, index=False)
    curves.to_parquet(folder / CURVES, index=False)
    page.write_page(folder / PAGE, runs, curves, find_effects(runs), title, subtitle)
    (folder / "figures").mkdir(exist_ok=True)
    overview(runs, title).savefig(folder / "figures" / "overview.png")
    rates = find_rates(runs)
    if rates is None:
        rates = find_arrivals(runs)
    if rates is not None and len(set(find_swept(runs)).difference(REPEATS)) > 1:
        phase(runs, rates).savefig(folder / "figures" / "phase.png")


def write_unfinished(folder: Path, lines: Sequence[str]) -> None:
    """Writes the shell lines of the runs that were not done."""
    text = "".join(f"{line}\n" for line in lines)
    (folder / UNFINISHED).write_text(text, encoding="utf-8")


def find_effects(runs: pandas.DataFrame) -> list[dict[str, Any]]:
    """The effect of each swept key with few options, as `effects.Effect`."""
    if choose_measure(runs) not in runs:
        return []
    keys = [key for key in find_swept(runs) if key not in REPEATS]
    few = [key for key in keys if settings(runs, key).nunique() <= OPTIONS]
    return [one._asdict() for key in few for one in effect(runs, key)]


def swept_params(runs: pandas.DataFrame) -> dict[str, str]:
    """The swept keys of a sweep, each with all its values."""
    told = {}
    for key in find_swept(runs):
        values = sorted(runs[f"params.{key}"].dropna().unique(), key=by_size)
        text = ", ".join(map(str, values))
        told[key] = text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    return told


def write_description(
    runs: pandas.DataFrame, line: str, links: Mapping[str, str], unfinished: int
) -> str:
    """The description of a sweep in Markdown: links, its shell line, outcomes, and the median of
    each setting of its main keys."""
    counts = {str(name): int(n) for name, n in outcomes(runs).value_counts().items()}
    if unfinished:
        counts["not run"] = unfinished
    told = ", ".join(f"{n} {name}" for name, n in counts.items())
    parts = [
        " · ".join(f"[{text}]({address})" for text, address in links.items()),
        f"{len(runs)} runs: {told}",
        _fence(line),
    ]
    keys = main_keys(runs)
    if keys and choose_measure(runs) in runs:
        parts.append(_format_medians(runs, keys))
    return "\n\n".join(parts)


def main_keys(runs: pandas.DataFrame) -> list[str]:
    """The two swept keys that say most: the coloured one, and lr or the first other."""
    swept = [key for key in find_swept(runs) if key not in REPEATS]
    coloured = choose_coloured(runs)
    others = [key for key in swept if key != coloured]
    second = ["lr"] if "lr" in others else others[:1]
    return [*([coloured] if coloured else []), *second]


def _format_medians(runs: pandas.DataFrame, keys: Sequence[str]) -> str:
    """The best settings as a table in Markdown."""
    measure = choose_measure(runs)
    name = short_name(measure).replace("_", " ")
    table = group(runs, keys, measure)
    head = [*map(_as_text, keys), f"median {name}", "quartiles", "n", "converged", "diverged"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for line in table.head(LINES).to_dict("records"):
        cells = [_as_text(line[key]) for key in keys]
        cells += [f"{line['median']:.3g}", f"{line['q25']:.3g} to {line['q75']:.3g}"]
        cells += [str(line["n"]), f"{line['converged']:.0%}", f"{line['diverged']:.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    if len(table) > LINES:
        lines.append(f"\n{len(table) - LINES} more settings are in summary.csv.")
    return "\n".join(lines)


def _fence(line: str) -> str:
    """A line as a block of code in Markdown, which no backticks in the line can end."""
    longest = max(map(len, re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{show_plain(line)}\n{fence}"


def _as_text(value: object) -> str:
    """A value as text in Markdown: no sign in it is read as Markdown, or as HTML."""
    return re.sub(SIGNS, r"\\\1", html.escape(show_plain(str(value)), quote=False))
