"""Keys of a sweep that move together: `zip.KEY=…`."""

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import mfgd
from mfgd.pairs import list_jobs
from mfgd.types import Refused

parse = OverridesParser.create().parse_overrides


def jobs(*lines):
    return list_jobs(parse([*lines]), parse)


ALONE = (
    ("rank=1,2", "lr=0.1", "loss=squared,huber"),
    ("lr=range(0,1,0.25)", "seed=range(3)", "lr=[1,2],[3]"),
    ("+a.b='x y',{c:1}", "~d", "++e=choice(1,2)", "f=sort(3,1,2)"),
    ("rank=range(3,3)", "lr=1"),
    (),
)


@pytest.mark.parametrize("lines", ALONE)
def test_without_pairs_the_jobs_are_those_of_hydras_sweeper(lines):
    (expected,) = BasicSweeper.split_arguments(parse([*lines]), None)
    assert jobs(*lines) == expected


def test_keys_under_zip_count_as_one_key():
    found = jobs("seed=0,1", "zip.lr=range(1,4)", "rank=5", "+zip.x.y=[1,2],[3],[4]", "loss=a,b")
    together = zip(range(1, 4), ("[1,2]", "[3]", "[4]"), strict=True)
    together = [(f"lr={lr}", f"+x.y={y}") for lr, y in together]
    assert found == [
        [f"seed={seed}", lr, y, "rank=5", f"loss={loss}"]
        for seed in (0, 1)
        for lr, y in together
        for loss in "ab"
    ]


def test_the_last_line_of_a_key_holds():
    assert jobs("zip.lr=1,2,3", "zip.seed=4,5", "zip.lr=6,7") == jobs("zip.lr=6,7", "zip.seed=4,5")


REFUSED = {
    "zip.lr=1,2 zip.seed=range(3)": "zip.lr=1,2 has 2, zip.seed=range(3) has 3: keys that move",
    "zip.lr=1,2 zip.seed=3": "zip.lr=1,2 has 2, zip.seed=3 has 1: keys that move together need",
    "zip.lr=1,2 lr=3": "zip.lr=1,2: lr is given without zip. too; allowed is one of both",
    "+lr=3 zip.lr=1,2": "zip.lr=1,2: lr is given without zip. too; allowed is one of both",
    "zip.hydra.job.name=a,b": "zip.hydra.job.name=a,b: allowed are keys of the run",
}


@pytest.mark.parametrize("line", REFUSED)
def test_pairs_that_cannot_be_are_refused_by_name(line):
    with pytest.raises(Refused) as refused:
        jobs(*line.split())
    assert str(refused.value).startswith(REFUSED[line])


LINES = {
    "zip.lr=0.1": (
        "zip.lr=0.1: keys move together with --multirun hydra/sweeper=list only; allowed is lr=0.1"
    ),
    "--multirun zip.lr=1,2 hydra/sweeper=basic": (
        "zip.lr=1,2: keys move together with --multirun hydra/sweeper=list only; allowed is lr=1,2"
    ),
    "--multirun zip.lr=1,2 zip.seed=1,2,3": "zip.lr=1,2 has 2, zip.seed=1,2,3 has 3: keys that",
    "--multirun zip.nope=1,2": "zip.nope=1,2: no such key; allowed are rank,",
    "--multirun zip.lr=interval(1,2)": "zip.lr=interval(1,2): hydra/sweeper=list draws no values",
    "--multirun zip.lr=1,2 hydra/sweeper=optuna rank=1,2": (
        "zip.lr=1,2: hydra/sweeper=optuna moves keys alone; allowed is hydra/sweeper=list"
    ),
    "--multirun zip.lr=1,2 hydra/sweeper=frontier rank=interval(1,2)": (
        "zip.lr=1,2: hydra/sweeper=frontier moves keys alone; allowed is hydra/sweeper=list"
    ),
    "--multirun zip.tracking.uri=http://u:CANARY@h,http://v:w@h": "zip.tracking.uri=http://u:***@h",
}


@pytest.mark.parametrize("line", LINES)
def test_the_command_refuses_in_one_line(here, line):
    done = here(*line.split(), "tracking=memory", "steps=1")
    assert (done.returncode, done.stdout) == (2, "")
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"mfgd: {LINES[line]}")
    assert "CANARY" not in said


@pytest.mark.parametrize("launcher", ["batch", "basic"])
def test_runs_are_those_of_plain_keys_and_go_on(here, launcher):
    """Options that a glob stands for, a list, replicates: every run is known by its plain keys."""
    together = ("zip.init=glob(nor*)", "zip.init.scale=0.25")
    line = ("--multirun", f"hydra/launcher={launcher}", "zip.lr=[0.1,0.01],0.2", "zip.rank=1,2")
    rest = ("seed=0,1", "steps=3", "replicates=2", "optimizer=momentum", "workers=1")
    done = here(*line, *rest)
    assert done.returncode == 0, done.stderr
    runs = mfgd.load_runs().dropna(subset="parent")
    keys = ["params.lr", "params.rank", "params.seed"]
    found = sorted(map(tuple, runs[keys].to_numpy()))
    assert found == sorted(
        (*pair, s) for pair in [("[0.1, 0.01]", "1"), ("0.2", "2")] for s in "01"
    )
    assert not any(".zip" in name or "zip." in name for name in runs)
    assert here(*line, *rest, "resume=true").returncode == 0
    assert len(mfgd.load_runs().dropna(subset="parent")) == 4
    assert here(*line[:-1], *together, *rest).returncode == 2  # two values beside one


def test_a_run_is_the_run_of_the_same_plain_keys(here):
    pair = ("zip.lr=0.1,0.2", "zip.optimizer.beta=0.5,0.9")
    rest = ("optimizer=momentum", "steps=20", "tracking=memory")
    assert here("--multirun", *pair, *rest).returncode == 0
    together = [finished.result for finished in here.session.finished]
    alone = []
    for lr, beta in ((0.1, 0.5), (0.2, 0.9)):
        assert here(f"lr={lr}", f"optimizer.beta={beta}", *rest).returncode == 0
        alone += [finished.result for finished in here.session.finished]
    assert together == alone


def test_pairs_of_an_experiment(here, tmp_path):
    params = {"zip.lr": "0.1,0.2", "zip.seed": "3,4"}
    text = OmegaConf.to_yaml({"hydra": {"sweeper": {"params": params}}})
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text(f"# @package _global_\n{text}")
    line = ("--config-dir", ".", "--multirun", "experiment=own", "steps=1", "tracking=memory")
    assert here(*line).returncode == 0
    settings = [(point.lr, point.seed) for point in here.session.solved.values()]
    assert settings == [((0.1,), 3), ((0.2,), 4)]
