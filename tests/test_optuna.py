"""hydra/sweeper=optuna: the best setting, by lots of trials."""

import math
import shlex
import sqlite3
import sys
from contextlib import closing

import pandas
import pytest
from mlflow import MlflowClient

import mfgd
from mfgd.columns import LOST
from mfgd.search import SearchSweeper

OPTUNA = ("--multirun", "hydra/sweeper=optuna")
MEASURE = """
import torch

def distance(problem, factors, *, x: float):
    place = (factors[0] * 0 + x).mean((-2, -1))
    return torch.where(place > 3, torch.nan, (place - 0.7) ** 2)
"""
OWN = ("+metrics.own._target_=measures.distance", "+metrics.own.x=${init.scale}", "lr=1e-9")
SCALE = "init.scale=interval(0.1,4)"
QUICK = ("steps=3", "tracking.figures=0", "workers=1")


@pytest.fixture
def optuna():
    return pytest.importorskip("optuna")


def read_trials(client):
    """trials.csv of the only sweep, and the id of its run."""
    (parent,) = client.search_runs(["1"], "tags.pid != ''")
    run_id = parent.info.run_id
    file = client.download_artifacts(run_id, "trials.csv")
    return pandas.read_csv(file, dtype={"lr": str}), run_id


def test_the_least_value_is_found_in_lots_whatever_trials_fail(here, tmp_path, monkeypatch, optuna):
    (tmp_path / "measures.py").write_text(MEASURE)
    lots, launch = [], SearchSweeper.launch
    monkeypatch.setattr(
        SearchSweeper, "launch", lambda self, jobs: lots.append(len(jobs)) or launch(self, jobs)
    )
    options = ("hydra.sweeper.objective=own", "hydra.sweeper.n_trials=45", "hydra.sweeper.batch=10")
    line = (*OPTUNA, *OWN, SCALE, *options, *QUICK)
    done = here(*line)
    assert done.returncode == 0, done.stderr
    assert lots == [10, 10, 10, 10, 5]

    client = MlflowClient()
    trials, run_id = read_trials(client)
    x = trials["init.scale"]
    assert (trials["state"] == "complete").equals(x <= 3)
    assert (trials["state"] == "fail").equals(x > 3)
    assert 0 < (x > 3).sum() < 30
    known = trials[x <= 3]
    pandas.testing.assert_series_equal(known["own"], (x[x <= 3] - 0.7) ** 2, check_names=False)
    assert known["own"].is_monotonic_increasing
    # The trials are those of a study that is asked and told without runs.
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    values = trials.set_index("trial")["own"]
    for lot in lots:
        for trial in [study.ask() for _ in range(lot)]:
            asked = trial.suggest_float("init.scale", 0.1, 4)
            assert asked == pytest.approx(x[trials["trial"] == trial.number].item(), rel=1e-12)
        for number in range(trial.number + 1 - lot, trial.number + 1):
            value = values[number]
            failed = {"state": optuna.trial.TrialState.FAIL} if math.isnan(value) else {}
            study.tell(number, **failed or {"values": value})
    with open(client.download_artifacts(run_id, "best.txt")) as file:
        best = file.read()
    assert shlex.split(best) == ["mfgd", *OWN, *QUICK, f"init.scale={float(x.iloc[0])!r}"]
    said = [text for text in done.stdout.splitlines() if text.startswith("best of 45 trials")]
    assert len(said) == 1
    assert f"own {known['own'].iloc[0]:.6g} at" in said[0]

    # The same trials are asked for again, and none is solved again.
    assert here(*line, "resume=true").returncode == 0
    assert len(client.search_runs(["1"])) == 1 + 45
    pandas.testing.assert_frame_equal(read_trials(client)[0], trials)


def test_lost_runs_are_pruned_and_values_are_those_of_the_shell_line(here, optuna):
    keys = {
        "lr": "tag(log,interval(0.001,100))",
        "rank": "interval(1,4)",
        "init": "normal,balanced",
        "problem.condition": "range(2,9,3)",
        "init.scale": "range(0.1,0.6,0.1)",
    }
    problem = ("problem=synthetic", "problem.n=6", "problem.m=5", "steps=30", "workers=1")
    options = ("hydra.sweeper.direction=maximize", "hydra.sweeper.objective=final_loss")
    given = [f"{key}={values}" for key, values in keys.items()]
    done = here(
        *OPTUNA, *given, *problem, *options, "hydra.sweeper.n_trials=30", "tracking.figures=0"
    )
    assert done.returncode == 0, done.stderr
    trials, _ = read_trials(MlflowClient())
    assert set(trials["problem.condition"]) == {2, 5, 8}
    assert set(trials["rank"]) == {1, 2, 3, 4}
    assert set(trials["init"]) == {"normal", "balanced"}
    assert set(trials["init.scale"].round(9)) <= {0.1, 0.2, 0.3, 0.4, 0.5}
    assert trials["lr"].astype(float).between(0.001, 100).all()
    assert (trials["lr"].astype(float) < 0.1).any()
    runs = mfgd.load_runs().dropna(subset="parent")
    both = trials.merge(runs, left_on="lr", right_on="params.lr", validate="1:1")
    assert len(both) == 30
    lost = both["tags.outcome"].isin(LOST)
    assert 0 < lost.sum() < 30
    assert (both["state"] == "pruned").equals(lost)
    assert both["final_loss"].iloc[0] == pytest.approx(runs["metrics.final_loss"].max())


def test_a_study_goes_on_in_its_storage(here, tmp_path, optuna):
    (tmp_path / "measures.py").write_text(MEASURE)
    storage = f"sqlite:///{tmp_path}/study.db"
    options = (f"hydra.sweeper.storage={storage}", "hydra.sweeper.study_name=own")
    more = ("hydra.sweeper.objective=own", "hydra.sweeper.n_trials=7", "tracking=memory", "steps=3")
    for _ in range(2):
        assert here(*OPTUNA, *OWN, SCALE, *options, *more).returncode == 0
    with closing(sqlite3.connect(tmp_path / "study.db")) as connection:
        states = [state for (state,) in connection.execute("SELECT state FROM trials")]
    assert len(states) == 14
    assert set(states) <= {"COMPLETE", "FAIL"}


REFUSED = {
    ("rank=2",): "hydra/sweeper=optuna: nothing is swept",
    ("lr=interval(2,1)",): "lr=interval(2,1): `low <= high` must hold",
    ("lr=interval(0.1,1)", "hydra.sweeper.n_trials=0"): "hydra.sweeper.n_trials=0: must be",
    ("lr=interval(0.1,1)", "hydra.sweeper.sampler=grid"): "hydra.sweeper.sampler=grid: must be",
    ("lr=interval(1e-4,1e-3)", "hydra.sweeper.objective=final_los", "steps=2", "tracking=memory"): (
        "hydra.sweeper.objective=final_los: no run has it; allowed are"
    ),
    ("lr=interval(0.1,1)", "hydra.sweeper.storage=nothing://me:geheim@nowhere/x"): (
        "hydra.sweeper.storage=nothing://me:***@nowhere/x: "
    ),
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_cannot_be_searched_is_refused(here, tmp_path, given, optuna):
    done = here(*OPTUNA, *given)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"mfgd: {REFUSED[given]}")
    assert "geheim" not in done.stderr + done.stdout
    assert list(tmp_path.iterdir()) == []


def test_optuna_is_needed_only_if_it_is_chosen(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = here(*OPTUNA, "lr=interval(0.1,1)")
    assert (done.returncode, done.stderr) == (
        2,
        "mfgd: hydra/sweeper=optuna: needs Optuna; install it by pip install 'mfgd[optuna]'\n",
    )
    assert here("--multirun", "rank=1,2", "steps=2", "tracking=memory").returncode == 0
