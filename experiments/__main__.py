"""`python -m experiments` lists the published results, `python -m experiments verify [NAME…]`
checks them."""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import experiments
from experiments import Claim, Experiment
from mfgd import refusals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
LEDGER = HERE / "ledger.json"
QUICK = ("tracking.figures=false", "tracking.points=1000", "workers=1")
"""What --quick spares every sweep."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments", description="Published results as runnable claims."
    )
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("list", help="name, paper, claim and cost of each (the default)")
    verify = commands.add_parser(
        "verify", help="run, read the tracked runs back, compare; exit 1 if a number deviates"
    )
    verify.add_argument("names", nargs="*", metavar="NAME", help="these experiments (default: all)")
    verify.add_argument(
        "--quick",
        action="store_true",
        help="smaller sizes that carry the claim; no ledger is written",
    )
    options = parser.parse_args()
    with refusals.exit_on_refusal():
        if options.command != "verify":
            print(listing())
            return
        chosen = [experiments.load(name) for name in options.names or experiments.names()]
    deviating = verified(chosen, quick=options.quick)
    if deviating:
        raise SystemExit(1)


def listing() -> str:
    """Name, claim, paper and cost of every experiment; the cost is what the last full verification
    took."""
    known = ledger()
    lines = []
    for name in experiments.names():
        experiment = experiments.load(name)
        cost = f"{known[name]['seconds']:.0f} s" if name in known else "not yet verified"
        lines += [f"{name} ({cost})", f"    {experiment.claim}", f"    {experiment.paper}"]
    return "\n".join(lines)


def verified(chosen: Sequence[Experiment], *, quick: bool) -> int:
    """Runs experiments and prints their tables; in full they enter the ledger. How many numbers
    deviate."""
    from mfgd.command import set_up_process

    sys.argv = [sys.argv[0], "--multirun"]
    set_up_process()
    if quick:
        torch.set_num_threads(
            1
        )  # threads that share small work wait for each other where the cores have other work
    begun, counted, deviating = time.perf_counter(), 0, []
    for experiment in chosen:
        start = time.perf_counter()
        claims, figure = verify(experiment, quick=quick)
        seconds = time.perf_counter() - start
        print(
            f"\n{experiment.name} ({seconds:.1f} s): {experiment.claim}\n{table(claims)}",
            flush=True,
        )
        counted += len(claims)
        deviating += [(experiment.name, claim) for claim in claims if not claim.holds]
        if not quick:
            enter(experiment, claims, figure, seconds)
    seconds = time.perf_counter() - begun
    print(f"\n{counted - len(deviating)} of {counted} numbers hold, in {seconds:.0f} s")
    for name, claim in deviating:
        print(f"{name}: {claim.text}: expected {claim.expected}, got {claim.got}")
    return len(deviating)


def verify(experiment: Experiment, *, quick: bool = False) -> tuple[list[Claim], Figure | None]:
    """Runs the sweeps of an experiment and holds what was tracked against its claims.

    The table and the figure become artifacts of each sweep's own run. A sweep in which a run raises
    is a claim that deviates, and there is no figure then.
    """
    import pandas

    import mfgd
    from mfgd.command import execute
    from mfgd.mlflow_store import MlflowTracker
    from mfgd.tracking import attach

    parents, tables, claims, figure = [], [], [], None
    for sweep, smaller in experiment.sweeps.items():
        if quick and smaller is None:
            continue
        sys.argv = [
            "mfgd",
            "--multirun",
            f"experiment={sweep}",
            *((*QUICK, *(smaller or ())) if quick else ()),
        ]
        with redirect_stdout(
            io.StringIO()
        ):  # the best runs of a sweep: here others are of interest
            session = execute()
        store = session.tracker
        assert isinstance(store, MlflowTracker)
        assert store.parent is not None
        parents.append((store.parent, store.uri))
        runs = mfgd.load_runs(experiment=store.experiment, parent=store.parent, uri=store.uri)
        tables.append(runs.assign(sweep=sweep))
        if session.failures:
            claims.append(
                Claim(f"every run of {sweep} ends", "0 failed", f"{session.failures} failed", False)
            )
    if not claims:
        runs = pandas.concat(tables, ignore_index=True)
        claims = [
            claim._replace(holds=bool(claim.holds)) for claim in experiment.claims(runs)
        ]  # NumPy has its own bool
        figure = experiment.figure(runs)
    with tempfile.TemporaryDirectory(prefix="mfgd-") as name:
        pandas.DataFrame([claim._asdict() for claim in claims]).to_csv(
            Path(name, "claims.csv"), index=False
        )
        Path(name, "claims.txt").write_text(table(claims) + "\n", encoding="utf-8")
        if figure is not None:
            Path(name, "figures").mkdir()
            figure.savefig(Path(name, "figures", f"{experiment.name}.png"))
        for parent, uri in parents:
            attach(parent, Path(name), uri)
    return claims, figure


def table(claims: Sequence[Claim]) -> str:
    """Claim, expected, got and verdict, aligned."""
    lines = [
        ("claim", "expected", "got", "verdict"),
        *((c.text, c.expected, c.got, c.verdict) for c in claims),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(f"  {line}".rstrip() for line in padded)


def ledger() -> dict[str, Any]:
    """What each experiment gave when it was last verified in full: date, seconds and claims."""
    return json.loads(LEDGER.read_text(encoding="utf-8")) if LEDGER.exists() else {}


def enter(
    experiment: Experiment, claims: Sequence[Claim], figure: Figure | None, seconds: float
) -> None:
    """Replaces an experiment's entry in the ledger and its figure; README.md is written anew from
    the whole ledger."""
    if figure is not None:
        (HERE / "figures").mkdir(exist_ok=True)
        figure.savefig(HERE / "figures" / f"{experiment.name}.png")
    entry = {
        "date": f"{date.today()}",
        "seconds": round(seconds, 1),
        "claims": [list(claim) for claim in claims],
    }
    entries = {name: content for name, content in ledger().items() if name in experiments.names()}
    entries = dict(sorted((entries | {experiment.name: entry}).items()))
    LEDGER.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (HERE / "README.md").write_text(page(entries), encoding="utf-8")


def page(entries: dict[str, Any]) -> str:
    """README.md: all experiments in a table, then the numbers of each."""
    lines = [
        "# Published results",
        "",
        "What the literature says of gradient descent on D ≈ C F, run and measured. "
        "`python -m experiments verify`",
        "writes this page, and nobody else does; a claim that fails stays in it as failed.",
        "",
        "| experiment | claim | numbers | date | figure |",
        "|---|---|---|---|---|",
    ]
    details = []
    for name in experiments.names():
        experiment = experiments.load(name)
        entry = entries.get(name, {"date": "not yet verified", "seconds": 0, "claims": []})
        claims = [Claim(*claim) for claim in entry["claims"]]
        wrong = sum(not claim.holds for claim in claims)
        picture = f"figures/{name}.png"
        thumbnail = f'<a href="{picture}"><img src="{picture}" width="160" alt="{name}"></a>'
        count = f"**{wrong} of {len(claims)} deviate**" if wrong else f"{len(claims)} hold"
        lines.append(_row(f"[{name}](#{name})", experiment.claim, count, entry["date"], thumbnail))
        details += ["", f"## {name}", "", experiment.paper, "", f"Claim: {experiment.claim}", ""]
        details += [f"    python -m experiments verify {name}"]
        details += [f"    mfgd --multirun experiment={sweep}" for sweep in experiment.sweeps]
        if not claims:
            continue
        details += [
            "",
            f"{entry['date']}, in {entry['seconds']:.0f} s:",
            "",
            "| | expected | measured | verdict |",
            "|---|---|---|---|",
        ]
        for claim in claims:
            verdict = claim.verdict if claim.holds else f"**{claim.verdict}**"
            details.append(_row(claim.text, claim.expected, claim.got, verdict))
        details += ["", f"![{name}]({picture})"]
    return "\n".join([*lines, *details]) + "\n"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    main()
