"""Measures all parts, or those named: python -m benchmarks [PART …].

Writes bench.json, and the table of README.md if all parts were measured.
"""

import argparse
import gc
import json
import os
import platform
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import chdir
from datetime import date
from pathlib import Path

import torch

from benchmarks import command, gpu, large, peers, scale, solver, sweeps
from benchmarks.timing import Comparison

FOLDER = Path(__file__).parent
PARTS: dict[str, Callable[[], list[Comparison]]] = {
    "tiny": lambda: solver.compare_step(solver.TINY, "≥ 450"),
    "medium": lambda: solver.compare_step(solver.MEDIUM, "≥ 8"),
    "masked": lambda: solver.compare_step(solver.MASKED, "≥ 13"),
    "large": lambda: solver.compare_step(solver.LARGE, "≥ 4", with_vmap=False),
    "peak": solver.compare_operations,
    "workers": solver.compare_workers,
    "records": sweeps.compare_records,
    "replicates": sweeps.compare_replicates,
    "diagnostics": sweeps.compare_diagnostics,
    "memory": large.compare_memory_of_full,
    "ratings": large.compare_ratings,
    "composition": command.compare_composition,
    "tracking": command.compare_tracking,
    "end": command.compare_command,
    "growth": scale.compare_growth,
    "engines": scale.compare_engines,
    "frontier": scale.compare_frontier,
    "svd": peers.compare_svd,
    "nmf": peers.compare_nmf,
    "gpu": gpu.compare_gpu,
}
HEAD = ("| what | ours | baseline | against | ratio | target |", "|---|---|---|---|---|---|")


def describe_machine() -> str:
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        cpu = re.search(r"model name\s*: (.*)", information.read_text())[1]
    return f"{os.cpu_count()} cores of {cpu}, torch {torch.__version__}, {date.today()}"


def measure(parts: Sequence[str]) -> list[Comparison]:
    """Measures the parts in a folder that is deleted at the end, and prints each row at once."""
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    gc.freeze()  # as the command does
    print(*HEAD, sep="\n", flush=True)
    rows: list[Comparison] = []
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for part in parts:
            for row in PARTS[part]():
                rows.append(row)
                print(row.as_row(), flush=True)
    return rows


def write_table(rows: Sequence[Comparison]) -> None:
    """Puts the table between the markers of README.md."""
    lines = [f"On {describe_machine()}:", "", *HEAD, *(row.as_row() for row in rows)]
    page = FOLDER / "README.md"
    before, rest = page.read_text().split("<!-- bench -->\n")
    after = rest.partition("<!-- /bench -->")[2]
    table = "\n".join(lines)
    page.write_text(f"{before}<!-- bench -->\n{table}\n<!-- /bench -->{after}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}")
    parts = parser.parse_args().parts or list(PARTS)
    strangers = set(parts) - set(PARTS)
    if strangers:
        parser.error(f"no part {', '.join(strangers)}: allowed are {', '.join(PARTS)}")
    rows = measure(parts)
    content = {"machine": describe_machine(), "lines": [row._asdict() for row in rows]}
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (FOLDER / "bench.json").write_text(text + "\n")
    if parts == list(PARTS):
        write_table(rows)


if __name__ == "__main__":
    main()
