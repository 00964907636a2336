"""The comparison page of a sweep: one HTML file that needs no network.

It is drawn in the browser, from the runs' settings, results and thinned curves, so that axes,
measure and filter can be chosen there.
"""

from __future__ import annotations

import base64
import html
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from mfgd.page.data import add_excess_error, describe_runs, pack_curves, to_json

if TYPE_CHECKING:
    import pandas

HERE = Path(__file__).parent
LIBRARIES = "vega.min.js", "vega-lite.min.js"
SCRIPTS = (
    "statistics.js",
    "charts.js",
    "winners.js",
    "phase.js",
    "curves.js",
    "tables.js",
    "page.js",
)


def write_page(
    file: Path,
    runs: pandas.DataFrame,
    curves: pandas.DataFrame,
    effects: Sequence[Mapping[str, Any]],
    title: str,
    subtitle: str,
) -> None:
    """Writes the page of these runs.

    Args:
        file: the page's file; its folder exists.
        runs: the table of `mfgd.load_runs`, without the sweeps' own runs.
        curves: one line a record: run_id, step, and of `mfgd.page.data.CURVES` and their
            ``theory.`` those that are known. Records are thinned.
        effects: what each swept key changes: the fields of `mfgd.effects.Effect` by name.
        title: the page's heading.
        subtitle: a line below it.
    """
    runs, curves = add_excess_error(runs, curves)
    known = describe_runs(runs) | pack_curves(runs["run_id"], curves)
    known["effects"] = [{key: to_json(value) for key, value in row.items()} for row in effects]
    # As lists of Python's, all curves at once would take several times the memory.
    text = json.dumps(known, separators=(",", ":"), allow_nan=False, default=np.ndarray.tolist)
    page = Template(_read_asset("page.html")).substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        # Base64 has no "<": no name in the runs can close the element that holds it.
        libraries=_pack("\n".join(map(_read_asset, LIBRARIES))),
        data=_pack(text),
        script="\n".join(map(_read_asset, SCRIPTS)),
    )
    file.write_text(page, encoding="utf-8")


def _read_asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _pack(text: str) -> str:
    """The text deflated, in base64; the page inflates it."""
    return base64.b64encode(zlib.compress(text.encode())).decode()
