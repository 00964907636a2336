import gc
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
    monkeypatch.setattr(gc, "disable", lambda: None)

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
        (["--experiment=demo", "deadbeef"], "mfgd: deadbeef: no such run"),
        (
            ["--experiment=demo", "--sort=los_gap"],
            "mfgd: los_gap: no such column; did you mean loss_gap",
        ),
        (
            ["--experiment=demo", "--sort=loss"],
            "mfgd: loss: params.loss and metrics.loss are called so",
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


def test_a_film_of_one_run(command, store, tmp_path):
    run_id = mfgd.load_runs(experiment="demo").dropna(subset="parent")["run_id"].iloc[0]
    film = tmp_path / "run.gif"
    done = command("--film", run_id, str(film))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert film.read_bytes().startswith(b"GIF89a")
    done = command("--film", run_id, "run.mp4")
    assert done.returncode == 2
    assert done.stderr == "mfgd: --film=run.mp4: unknown suffix; allowed are .gif, .html\n"


def test_settings_effects_and_shares(command):
    """The demo has 2 ranks × 2 rates × 2 losses × 2 starts, of equal data."""
    title, head, *lines, _ = command("--experiment=demo", "--by=init,lr").stdout.splitlines()
    assert title == "final relative error of each setting, best first"
    assert head.split()[:3] == ["init", "lr", "q25"]
    assert len(lines) == 4
    _, head, *lines = command("--experiment=demo", "--effect=init", "--by=lr").stdout.splitlines()
    assert head.split()[-4:] == ["wins", "ties", "losses", "n"]
    assert [line.split()[-1] for line in lines] == ["8", "4", "4"]
    lines = command("--experiment=demo", "--importance").stdout.splitlines()
    assert {line.split()[0] for line in lines[2:]} == {"rank", "lr", "loss", "init"}


def test_a_condition_and_columns(command):
    arguments = ("--where", 'rank == 2 and loss == "squared" and outcome != "diverged"')
    done = command("--experiment=demo", *arguments, "--columns=rank,outcome", "--sort=excess_loss")
    head, *lines = [re.split(r"  +", line) for line in done.stdout.splitlines()]
    assert head == ["rank", "outcome", "to optimum", "run id"]
    assert [line[0] for line in lines] == ["2", "2"]
    excess = [float(line[2]) for line in lines]
    assert excess == sorted(excess)


def test_two_runs_beside_each_other(command, store, tmp_path):
    runs = mfgd.load_runs(experiment="demo").dropna(subset="parent")
    pair = runs[(runs["params.rank"] == "2") & (runs["params.lr"] == "0.0004")]
    pair = pair[pair["params.loss"] == "squared"]
    figure = tmp_path / "both.png"
    done = command("--diff", *pair["run_id"], f"--figure={figure}")
    text = done.stdout
    assert done.returncode == 0
    keys = text.split("\n\n")[0].splitlines()
    assert [line.split() for line in keys[1:]] == [["init", *pair["params.init"]]]
    errors = pair["metrics.final_relative_error"].tolist()
    (line,) = (line for line in text.splitlines() if line.startswith("final_relative_error"))
    assert [float(cell) for cell in line.split()[1:3]] == pytest.approx(errors, rel=1e-3)
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_every_file(command, tmp_path):
    names = {
        "csv": "runs.csv",
        "parquet": "runs.parquet",
        "latex": "runs.tex",
        "html": "page.html",
        "figure": "overview.pdf",
        "curves": "curves.svg",
        "phase": "phase.png",
        "floor": "floor.png",
    }
    files = {option: tmp_path / name for option, name in names.items()}
    done = command("--experiment=demo", *(f"--{option}={file}" for option, file in files.items()))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(pandas.read_csv(files["csv"])) == 16
    assert len(pandas.read_parquet(files["parquet"])) == 16
    assert "\\toprule" in files["latex"].read_text()
    assert files["figure"].read_bytes().startswith(b"%PDF")
    assert "<svg" in files["curves"].read_text()
    assert "http" not in re.sub(r"<script.*?</script>", "", files["html"].read_text(), flags=re.S)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--figure=x.jpg"], "mfgd: --figure=x.jpg: unknown suffix; allowed are .png, .pdf"),
        (["--csv=nowhere/x.csv"], "mfgd: --csv=nowhere/x.csv: there is no folder nowhere"),
        (["--columns=nope"], "mfgd: nope: no such column"),
        (["--by=nope"], "mfgd: nope: no such column"),
        (["--effect=seed"], "mfgd: --effect=seed: all runs have seed=0; nothing to compare"),
        (["--effect=init", "--by=lr,rank"], "mfgd: --by=lr,rank: with --effect; allowed is one"),
        (["--where=rank > 99"], "mfgd: --where=rank > 99: no run is like that"),
        (["--success=nope == 1", "--phase=x.png"], "mfgd: --success=nope == 1: nope: no such"),
    ],
)
def test_refused_in_one_line(command, arguments, message):
    done = command("--experiment=demo", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_comparing_takes_no_torch(demo):
    code = "import sys; from mfgd.compare import main; main(); print('torch' in sys.modules)"
    arguments = ["--experiment=demo", "--by=init"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=demo, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "False", done.stderr
