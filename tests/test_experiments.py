"""Published results: what an experiment is, the verify command and its ledger, by a toy in a
temporary folder."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient

import experiments
from experiments import Claim, __main__, between, step_at, within
from mfgd import config
from mfgd.types import Refused

ROOT = Path(__file__).parents[1]
YAMLS = {path.stem for path in (config.CONF / "experiment").glob("*.yaml")} - {"demo"}
"""All but the demo, which claims nothing."""

TOY_YAML = """
# @package _global_
defaults:
  - override /loss: squared
lr: 0.1
steps: 50
tracking: {experiment: toy, figures: 0}
hydra: {sweeper: {params: {rank: "1,2"}}}
"""
TOY = '''
"""Nobody 2026, A toy.

The loss falls | rises.
"""
from matplotlib.figure import Figure
from experiments import between, loaded

SWEEPS = {"toy": ("steps=20",)}


def claims(runs):
    for run in sorted(loaded(runs), key=lambda run: run.config.rank):
        loss = run.trajectory["loss"]
        name, ratio = f"k = {run.config.rank}: last over first loss", loss.iloc[-1] / loss.iloc[0]
        yield between(name, ratio, high=1.0)
        yield between("steps", run.config.steps, low=BOUND)


def figure(runs):
    figure = Figure()
    figure.subplots().plot(loaded(runs)[0].trajectory["loss"])
    return figure
'''


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what a checkout holds, to which a toy is added: a YAML and one file."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("mfgd", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "experiments").mkdir()
    for name in ("__init__.py", "__main__.py"):
        shutil.copy(ROOT / "experiments" / name, folder / "experiments")
    (folder / "conf" / "experiment" / "toy.yaml").write_text(TOY_YAML)
    (folder / "experiments" / "toy.py").write_text(TOY.replace("BOUND", "50"))
    return folder


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "experiments", *arguments]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(
        line, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_adding_one_takes_a_yaml_and_one_file(checkout, monkeypatch):
    """From the sweep to the ledger: full, it holds; --quick, it deviates, exits with 1 and leaves
    the ledger alone."""
    done = command("verify", "toy", folder=checkout)
    assert done.returncode == 0, done.stderr
    assert [line.split()[-1] for line in done.stdout.splitlines() if "  " in line] == [
        "verdict",
        *["holds"] * 4,
    ]
    page = (checkout / "experiments" / "README.md").read_text()
    assert "| [toy](#toy) | The loss falls \\| rises. | 4 hold |" in page
    assert "mfgd --multirun experiment=toy" in page
    assert (checkout / "experiments" / "figures" / "toy.png").read_bytes().startswith(b"\x89PNG")

    quick = command("verify", "--quick", folder=checkout)
    assert quick.returncode == 1
    assert "2 of 4 numbers hold" in quick.stdout
    assert "toy: steps: expected ≥ 50, got 20" in quick.stdout
    assert (checkout / "experiments" / "README.md").read_text() == page

    monkeypatch.chdir(checkout)
    import mfgd

    runs = mfgd.load_runs(experiment="toy").dropna(subset="parent")
    assert len(runs) == 4
    client, parent = MlflowClient("sqlite:///mlflow.db"), runs["parent"].iloc[0]
    table = pandas.read_csv(client.download_artifacts(parent, "claims.csv"))
    assert table["holds"].tolist() == [True, False, True, False]
    assert "≥ 50" in Path(client.download_artifacts(parent, "claims.txt")).read_text()
    assert "figures/toy.png" in {file.path for file in client.list_artifacts(parent, "figures")}


def test_list_names_paper_claim_and_cost(monkeypatch):
    monkeypatch.setattr(
        __main__, "ledger", lambda: {"srebro": {"date": "2026-01-01", "seconds": 7.2, "claims": []}}
    )
    text = __main__.listing()
    assert "srebro (7 s)\n    Penalizing the squared norms" in text
    assert "Srebro, Rennie, Jaakkola 2005" in text
    assert "notebook (not yet verified)" in text


def test_unknown_name_is_refused(capsys):
    with pytest.raises(Refused, match="nope: no such experiment; allowed are arora2019,"):
        experiments.load("nope")


@pytest.mark.parametrize("name", experiments.names())
def test_an_experiment_has_what_it_must_have(name):
    experiment = experiments.load(name)
    assert experiment.paper[-1] == experiment.claim[-1] == "."
    assert len(experiment.claim) <= 120
    assert callable(experiment.claims)
    assert callable(experiment.figure)
    assert set(experiment.sweeps) <= YAMLS
    assert next(iter(experiment.sweeps)) == name


def test_every_sweep_belongs_to_an_experiment():
    assert {
        sweep for name in experiments.names() for sweep in experiments.load(name).sweeps
    } == YAMLS


def test_claims():
    assert within("x", 1.0009, 1.0, 1e-3) == Claim("x", "1 ± 0.001", "1.0009", True)
    assert within("x", 1.0011, 1.0, 1e-3).verdict == "DEVIATES"
    assert between("x", 2.0, 1.0, 3.0) == Claim("x", "1 to 3", "2", True)
    assert between("x", 2.0, high=1.0) == Claim("x", "≤ 1", "2", False)
    assert between("x", 2.0, low=1.0) == Claim("x", "≥ 1", "2", True)
    assert not any(
        claim.holds for claim in (within("x", math.nan, 1, 1), between("x", math.nan, 0, 1))
    )


def test_step_at_interpolates_the_logarithm():
    trajectory = pandas.DataFrame({"step": [0, 10, 20], "loss": [1.0, 1e-2, 1e-6]})
    assert step_at(trajectory, "loss", 1e-4) == pytest.approx(15)
    assert step_at(trajectory, "loss", 1e-2) == pytest.approx(10)
    assert step_at(trajectory, "loss", 2.0) == 0
    assert math.isnan(step_at(trajectory, "loss", 1e-7))


def test_ledger_replaces_what_was_verified_and_keeps_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(__main__, "HERE", tmp_path)
    monkeypatch.setattr(__main__, "LEDGER", tmp_path / "ledger.json")
    first, second = experiments.load("notebook"), experiments.load("srebro")
    __main__.enter(first, [Claim("a|b", "1", "1", True)], Figure(), 1.0)
    __main__.enter(second, [Claim("c", "1", "1", True)], None, 2.0)
    __main__.enter(
        first, [Claim("a|b", "1", "2", False), Claim("d", "1", "1", True)], Figure(), 3.0
    )
    entries = json.loads((tmp_path / "ledger.json").read_text())
    assert {name: len(entry["claims"]) for name, entry in entries.items()} == {
        "notebook": 2,
        "srebro": 1,
    }
    page = (tmp_path / "README.md").read_text()
    assert "**1 of 2 deviate**" in page
    assert "| a\\|b | 1 | 2 | **DEVIATES** |" in page
    assert "| c | 1 | 1 | holds |" in page
    assert (tmp_path / "figures" / "notebook.png").exists()
