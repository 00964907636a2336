"""init=run: runs that start where tracked runs ended."""

import re

import numpy as np
import pytest
import torch

import mfgd
from mfgd import continuation, init

PROBLEM = ("problem=synthetic", "problem.n=6", "problem.m=5", "problem.rank=2")
LINE = (*PROBLEM, "lr=0.01", "workers=1", "tracking.figures=0")


def only_id(done):
    assert done.returncode == 0, done.stderr
    return re.search(r"\b[0-9a-f]{32}\b", done.stdout)[0]


def parent_of(here, *line):
    done = here("--multirun", *LINE, *line)
    assert done.returncode == 0, done.stderr
    return here.session.tracker.parent


def ends(parent, *keys):
    """Values of keys → factors at the end, of the runs of a sweep."""
    runs = mfgd.load_runs(parent=parent)
    settings = map(tuple, runs[[f"params.{key}" for key in keys]].to_numpy())
    ids = runs["run_id"]
    return {at: mfgd.load_run(one).matrices for at, one in zip(settings, ids, strict=True)}


@pytest.mark.parametrize("more", [(), ("depth=3",), ("dtype=float32",)])
def test_two_halves_are_the_whole_run(here, more):
    """Gradient descent has no memory: 7 steps and then 13 are 20 steps, to the last bit."""
    line = (*LINE, *more)
    whole = mfgd.load_run(only_id(here(*line, "steps=20")))
    half = only_id(here(*line, "steps=7"))
    rest = mfgd.load_run(only_id(here(*line, "init=run", f"init.run={half}", "steps=13")))
    names = whole.matrices.keys() - {"D"}
    assert len(names) == (3 if "depth=3" in more else 2)
    for name in names:
        assert torch.equal(rest.matrices[name], whole.matrices[name]), name
    assert rest.trajectory["loss"].iloc[0] == mfgd.load_run(half).trajectory["loss"].iloc[-1]


def test_a_start_is_hashed_and_tagged(here):
    half = only_id(here(*LINE, "steps=7"))
    once = only_id(here(*LINE, "init=run", f"init.run={half}", "steps=1"))
    again = only_id(here(*LINE, "init=run", f"init.run={half}", "steps=2"))
    runs = mfgd.load_runs().set_index("run_id")
    hashes = runs["tags.draw.init"]
    assert hashes[once] == hashes[again] != hashes[half]
    assert (runs.loc[[once, again], "tags.init.source"] == half).all()
    assert (runs.loc[[once, again], "params.init.run"] == half).all()


def test_sources_are_swept(here, tmp_path):
    first = parent_of(here, "seed=range(3)", "steps=5")
    ids = mfgd.load_runs(parent=first)["run_id"].tolist()
    second = parent_of(here, "init=run", f"init.run={','.join(ids)}", "steps=1")
    for run_id in mfgd.load_runs(parent=second)["run_id"]:
        run = mfgd.load_run(run_id)
        source = mfgd.load_run(run.config.init.run)
        assert run.trajectory["loss"].iloc[0] == source.trajectory["loss"].iloc[-1]


@pytest.mark.parametrize("more", [(), ("workers=2",), ("hydra/launcher=basic",)])
def test_a_sweep_goes_on_run_by_run(here, more):
    """Keys that both sweeps have decide; what only the second one varies does not."""
    first = parent_of(here, "seed=range(3)", "rank=1,2", "steps=5")
    rest = ("rank=2,1", "optimizer=momentum", "optimizer.beta=0.5,0.9", "steps=1", *more)
    line = ("seed=2,0", "init=run", f"init.sweep={first}", *rest)
    second = parent_of(here, *line)
    before, runs = ends(first, "seed", "rank"), mfgd.load_runs(parent=second)
    assert len(runs) == 8
    for run_id, seed, rank in runs[["run_id", "params.seed", "params.rank"]].to_numpy():
        run = mfgd.load_run(run_id)
        W = before[seed, rank]
        assert run.trajectory["loss"].iloc[0] == pytest.approx(
            float(((W["D"] - W["C"] @ W["F"]) ** 2).sum()), rel=1e-12
        )
    sources = runs.groupby(["params.seed", "params.rank"])["tags.init.source"].nunique()
    assert (sources == 1).all()
    assert runs["tags.init.source"].nunique() == 4
    assert here("--multirun", *LINE, *line, "resume=true").returncode == 0
    assert len(mfgd.load_runs(parent=second)) == 8


def test_another_store_is_read_where_it_is_tracked(here, tmp_path):
    store = "tracking.uri=sqlite:///other.db"
    half = only_id(here(*LINE, "steps=7", store))
    assert here(*LINE, "init=run", f"init.run={half}", store).returncode == 0
    done = here(*LINE, "init=run", f"init.run={half}")
    assert (done.returncode, done.stdout) == (2, "")


def test_what_cannot_be_a_start_is_refused(here):
    half = only_id(here(*LINE, "steps=2"))
    whole = parent_of(here, "seed=0,1", "lr=0.01,0.02", "steps=1")
    only_id(here(*LINE, "steps=1", "replicates=2"))
    many = mfgd.load_runs()["run_id"].iloc[0]
    refused = {
        (): "init=run: allowed is either init.run=ID or init.sweep=ID",
        (f"init.run={half}", f"init.sweep={whole}"): "init=run: allowed is either",
        (f"init.run={half}", "rank=3"): (f"init.run={half}: C is (6, 2); allowed here is (6, 3)"),
        (f"init.run={half}", "problem.m=4"): f"init.run={half}: F is (2, 5); allowed here is",
        (f"init.run={half}", "depth=3"): f"init.run={half}: no array W1 in it; allowed are W1,",
        ("init.run=nothing",): "run nothing: ",
        (f"init.run={whole}",): f"run {whole}: ",
        (f"init.run={many}",): f"init.run={many}: has replicates; allowed is a single run",
        (f"init.sweep={half}",): f"init.sweep={half}: is no sweep; allowed is init.run",
        (f"init.sweep={whole}", "seed=7"): f"init.sweep={whole}: no runs of it fit lr=0.01 seed=7",
    }
    for line, said in refused.items():
        done = here(*LINE, "init=run", *line)
        assert (done.returncode, done.stdout) == (2, ""), line
        assert done.stderr.startswith(f"mfgd: {said}"), (line, done.stderr)
    rest = [text for text in LINE if text != "lr=0.01"]
    done = here(*rest, "init=run", f"init.sweep={whole}", "seed=1")
    assert "2 runs of it fit seed=1; allowed is one; the sweep varies lr too" in done.stderr


def test_a_run_of_python_reads_the_default_store(here):
    half = only_id(here(*LINE, "steps=2"))
    C, F = init.run(run=half, sweep=None)(None, (6, 2, 5), None)
    kept = mfgd.load_run(half).matrices
    np.testing.assert_array_equal(C @ F, kept["C"] @ kept["F"])
    with pytest.raises(mfgd.errors.Refused, match="which of its runs is not said"):
        continuation.run(run=None, sweep=half)(None, (6, 2, 5), None)
