import re
import subprocess
import sys

import numpy as np
import pandas
import pytest

import mfgd
from mfgd import compare


@pytest.fixture
def command(demo, monkeypatch, capfd):
    """The command in this process and in the folder of the demo."""
    monkeypatch.chdir(demo)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["mfgd-compare", *arguments])
        try:
            compare.main()
            code = 0
        except SystemExit as ended:
            code = ended.code
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return run


def test_table_csv_and_figure(demo, tmp_path):
    csv, figure = tmp_path / "runs.csv", tmp_path / "overview.png"
    line = (
        "-c",
        "from mfgd.compare import main; main()",
        "--experiment=demo",
        "--top=5",
        f"--csv={csv}",
    )
    done = subprocess.run(
        [sys.executable, *line, f"--figure={figure}"], cwd=demo, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    runs = pandas.read_csv(csv)
    assert len(runs) == 16
    assert runs["metrics.final_relative_error"].dropna().is_monotonic_increasing
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_sweep_or_single_runs(command, store):
    runs = mfgd.load_runs(experiment="demo").dropna(subset="parent")
    done = command("--experiment=demo", "--top=99", runs["parent"].iloc[0])
    assert len(done.stdout.splitlines()) == 17
    two = runs["run_id"].tolist()[:2]
    done = command("--experiment=demo", *two)
    assert set(re.findall(r"[0-9a-f]{32}", done.stdout)) == set(two)


def test_sorting_by_another_column(command):
    done = command("--experiment=demo", "--sort=params.lr", "--top=99")
    rates = [float(line.split()[1]) for line in done.stdout.splitlines()[1:]]
    assert rates == sorted(rates)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--experiment=nope"],
            "mfgd: experiment nope: none of that name is tracked here; allowed are Default,",
        ),
        (["--experiment=demo", "deadbeef"], "mfgd: deadbeef: no such run in experiment demo"),
        (
            ["--experiment=demo", "--sort=loss"],
            "mfgd: --sort=loss: no such column; allowed are metrics.",
        ),
        (["--uri=ftp://example.org"], "mfgd: tracking.uri=ftp://example.org: not supported"),
    ],
)
def test_refused(command, arguments, message):
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_best_sorts_runs_without_a_number_last():
    runs = pandas.DataFrame(
        {"metrics.final_relative_error": [np.nan, 0.3, 1.797e308, 0.1], "run_id": list("abcd")}
    )
    assert "".join(compare.best(runs)["run_id"]) == "dbac"


def test_held_out_error_has_a_column_if_a_run_has_one():
    runs = pandas.DataFrame({"run_id": ["a", "b"], "metrics.heldout_error": [0.25, np.nan]})
    lines = [re.split(r"  +", line) for line in compare.table(runs).splitlines()]
    column = lines[0].index("held out")
    assert [line[column] for line in lines[1:]] == ["0.25", "–"]
    assert "held out" not in compare.table(runs.drop(columns="metrics.heldout_error"))
