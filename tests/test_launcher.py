"""A job has what a job of a plain Hydra app has; each test runs such an app beside mfgd."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import UNMEASURED, mfgd

PLAIN = """
import hydra

@hydra.main(version_base="1.3", config_path=None)
def app(config):
    import own
    return own.work(config)

app()
"""
OWN = """
import json, logging, os
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback

def look():
    node = HydraConfig.get()
    seen = {
        "number": node.job.num,
        "folder": os.path.relpath(os.getcwd(), node.runtime.cwd),
        "output": os.path.relpath(node.runtime.output_dir, node.runtime.cwd),
        "KEY": os.environ.get("KEY"),
    }
    logging.getLogger("own").warning(json.dumps(seen))

def work(config):
    look()
    if config.rank == 2:
        raise ArithmeticError("the rank is two")
    return config.rank

def problem():
    import mfgd
    look()
    return mfgd.problem.notebook().D

def init():
    import mfgd
    def draw(D, widths, stream):
        if widths[1] == 2:
            raise ArithmeticError("the rank is two")
        return mfgd.init.normal(scale=1.0, ratio=1.0)(D, widths, stream)
    return draw

class Listener(Callback):
    def on_job_start(self, config, **_):
        print("start", config.hydra.job.num)

    def on_job_end(self, config, job_return, **_):
        print("end", config.hydra.job.num, job_return.status.name)
"""
PLUGINS = """
from dataclasses import dataclass
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore

class Elsewhere(BasicLauncher):
    def launch(self, *given):
        raise AssertionError("launched")

class Tolerant(BasicSweeper):
    '''Ends a sweep, as that of Optuna does, if too many jobs failed.'''
    def __init__(self, max_failure_rate):
        super().__init__(None)
        self.rate = max_failure_rate

    def validate_batch_is_legal(self, batch):
        self.batch = batch

    def sweep(self, arguments):
        jobs = [[*arguments, f"++rank={k}"] for k in (1, 2, 3)]
        returns = self.launcher.launch(jobs, 0)
        failures = [r for r in returns if r.status.name == "FAILED"]
        print([r.status.name for r in returns])
        if len(failures) > self.rate * len(returns):
            failures[0].return_value

@dataclass
class ElsewhereConf:
    _target_: str = "hydra_plugins.own_plugins.Elsewhere"

@dataclass
class TolerantConf:
    _target_: str = "hydra_plugins.own_plugins.Tolerant"
    max_failure_rate: float = 0.0

store = ConfigStore.instance().store
store(group="hydra/launcher", name="elsewhere", node=ElsewhereConf)
store(group="hydra/sweeper", name="tolerant", node=TolerantConf)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Own functions, own plugins and a plain app of Hydra's, side by side."""
    folder = tmp_path_factory.mktemp("launcher")
    (folder / "hydra_plugins").mkdir()
    (folder / "hydra_plugins" / "own_plugins.py").write_text(PLUGINS)
    (folder / "own.py").write_text(OWN)
    (folder / "plain.py").write_text(PLAIN)
    return folder


def plain(*arguments: str, cwd: Path, program: str = "plain.py") -> subprocess.CompletedProcess:
    """The plain app, or another program beside it."""
    command = [sys.executable, program, *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env=UNMEASURED, timeout=100
    )


FAILING = ("init._target_=own.init", "steps=1", "tracking=memory")
"""Keys of mfgd: the job of rank 2 fails, as the plain app's does."""


def test_a_job_has_its_environment_folder_log_and_callbacks(folder):
    def run(command, place, *more):
        features = (
            "+hydra.job.env_set.KEY=k${hydra:job.num}",
            "hydra.job.chdir=true",
            "hydra.job.name=app",
            "hydra.output_subdir=.hydra",
            "hydra/job_logging=default",
            f"hydra.sweep.dir={place}",
            "hydra.sweep.subdir=${hydra.job.num}",
            "+hydra.callbacks.own._target_=own.Listener",
            "+hydra.callbacks.info._target_=hydra.experimental.callbacks.PickleJobInfoCallback",
        )
        done = command("--multirun", *more, *features, cwd=folder)
        assert done.returncode == 1
        found = [[x for x in done.stdout.splitlines() if x.startswith(("start", "end"))]]
        for job in sorted((folder / place).glob("[0-9]")):
            (log,) = job.glob("*.log")
            seen = [line.partition(" - ")[2] for line in log.read_text().splitlines()]
            looked = [json.loads(line) for line in seen if line.startswith("{")]
            kept = sorted(path.name for path in (job / ".hydra").iterdir())
            told = pickle.loads((job / ".hydra" / "job_return.pickle").read_bytes())
            config = (job / ".hydra" / "config.yaml").read_text()
            rank = [line for line in config.splitlines() if line.startswith("rank:")]
            found.append(
                [log.name, looked, kept, told.status.name, told.hydra_cfg.hydra.job.num, rank]
            )
        return done, json.loads(json.dumps(found).replace(place, "PLACE"))

    _, expected = run(plain, "plainly", "++rank=1,2,3")
    done, got = run(mfgd, "ours", "rank=1,2,3", "problem._target_=own.problem", *FAILING)
    assert len(expected) == 4
    assert expected[0] == [
        "start 0",
        "end 0 COMPLETED",
        "start 1",
        "end 1 FAILED",
        "start 2",
        "end 2 COMPLETED",
    ]
    assert expected[2][1] == [{"number": 1, "folder": "PLACE/1", "output": "PLACE/1", "KEY": "k1"}]
    assert got == expected
    first, *_ = done.stderr.splitlines()
    assert first.startswith("mfgd: hydra.job.env_set, hydra.job.chdir, hydra.output_subdir, ")
    assert first.endswith("the jobs run one by one, which is slower")


@pytest.mark.slow
def test_a_failed_run_is_failed_for_the_sweeper(folder):
    def run(command, rate, *more):
        sweeper = ("hydra/sweeper=tolerant", f"hydra.sweeper.max_failure_rate={rate}")
        done = command("--multirun", *sweeper, *more, cwd=folder)
        told = [line for line in done.stdout.splitlines() if line.startswith("[")]
        said = [line for line in done.stderr.splitlines() if line.startswith("Error executing")]
        return done.returncode, told[-1:], [line.rpartition("=")[2] for line in said]

    statuses = ["['COMPLETED', 'FAILED', 'COMPLETED']"]
    assert run(plain, 0.5) == (0, statuses, [])
    expected = (1, statuses, ["2']"])
    assert run(plain, 0.1) == expected
    # mfgd says by its exit status that a run failed, whatever the sweeper allows.
    assert run(mfgd, 0.5, *FAILING) == (1, statuses, [])
    assert run(mfgd, 0.1, *FAILING) == expected


def test_a_launcher_of_other_processes_is_refused_before_it_launches(folder):
    before = set(folder.iterdir())
    done = mfgd("--multirun", "rank=1,2", "hydra/launcher=elsewhere", cwd=folder)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("mfgd: hydra/launcher=elsewhere: takes jobs to other processes")
    assert line.endswith("allowed are batch, basic, joblib, submitit_local, submitit_slurm, ray")
    assert set(folder.iterdir()) == before


def test_an_empty_sweep_runs_nothing(folder, here, tmp_path):
    for given in ("rank=range(3,3)", "loss=glob(z*)"):
        app = plain("--multirun", f"++{given}", cwd=folder)
        done = here("--multirun", given)
        assert done.returncode == app.returncode == 0
        assert done.stderr == "mfgd: the sweep is empty; nothing was run\n"
        assert list(tmp_path.iterdir()) == []


def test_a_batch_has_no_config_of_one_job(here, tmp_path, caplog):
    (tmp_path / "own.py").write_text(OWN)
    line = ("--multirun", "rank=1,3", "steps=1", "problem._target_=own.problem", "tracking=memory")
    done = here(*line)
    assert done.returncode == 2
    assert done.stderr.startswith("mfgd: HydraConfig.get(): has no job to tell of")
    assert "hydra/launcher=basic" in done.stderr
    done = here(*line, "hydra/launcher=basic")
    assert done.returncode == 0
    numbers = [json.loads(record.message)["number"] for record in caplog.records]
    assert numbers == [0, 1]  # once a job: what a function gave another job is forgotten


METRIC = """
from pathlib import Path

def metric(problem, factors, *, folder):
    Path(folder, "seen").touch()
    return factors[0].sum((-2, -1))
"""


def test_each_job_of_a_batch_has_a_folder_if_it_asks(here, tmp_path):
    (tmp_path / "own.py").write_text(METRIC)
    own = ("+metrics.own._target_=own.metric", "+metrics.own.folder=${hydra:runtime.output_dir}")
    line = ("--multirun", "rank=1,2", "steps=1", *own, "tracking=memory")
    assert here(*line, "hydra.sweep.dir=out").returncode == 0
    assert sorted(tmp_path.glob("out/*/seen")) == [tmp_path / f"out/{i}/seen" for i in (0, 1)]


PROGRAM = """
import json, os, sys
import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf
from mfgd.config import CONF, resolve_job

def see(config, node):
    return {
        "config": OmegaConf.to_container(config, resolve=True),
        "job": [node.job.num, node.job.id, node.job.override_dirname, list(node.overrides.task)],
        "folder": os.path.relpath(node.runtime.output_dir, node.sweep.dir),
        "problem": node.runtime.choices["problem"],
    }

def task(given):
    jobs = [resolve_job(given, HydraConfig.get())] if isinstance(given, DictConfig) else given
    values = []
    for job in jobs:
        # What a ${hydra:...} means is asked while the job is the current one.
        told = see(OmegaConf.create(job.content), HydraConfig.get())
        values.append([told, job.overrides, job.choices["problem"]])
    return values[0] if isinstance(given, DictConfig) else values

def patch(launcher):
    launch = launcher.launch
    def speak(self, *given, **named):
        returns = launch(self, *given, **named)
        for job in returns:
            told = see(job.cfg, job.hydra_cfg.hydra)
            facts = list(job.overrides), job.status.name, job.task_name, job.working_dir
            print(json.dumps([told, job.return_value, *facts]))
        return returns
    launcher.launch = speak

if __name__ == "__main__":
    for launcher in Plugins.instance().discover(Launcher):
        patch(launcher)
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)()
"""
LINE = [
    "--multirun",
    "rank=1,2",
    "lr=0.5,${init.scale}",
    "loss=huber,squared",
    "+note=a",
    "hydra.sweep.subdir=${rank}/${hydra.job.num}",
]


@pytest.mark.slow
def test_job_numbers_overrides_configs_and_returns_are_those_of_the_basic_launcher(folder):
    (folder / "program.py").write_text(PROGRAM)

    def run(*options: str) -> list:
        done = plain(*LINE, *options, cwd=folder, program="program.py")
        assert (done.returncode, done.stderr) == (0, "")
        return [json.loads(line) for line in done.stdout.splitlines()]

    basic = run("hydra/launcher=basic")
    assert [told["job"][0] for told, *_ in basic] == list(range(8))
    assert run("hydra/launcher=batch") == basic
    assert run("hydra/launcher=batch", "hydra.sweeper.max_batch_size=3") == basic


@pytest.mark.parametrize("more", [(), ("hydra.job.chdir=true",), ("hydra/launcher=basic",)])
def test_no_job_runs_if_one_is_not_legal(here, more):
    line = ("--multirun", "init=normal,spectral", "init.std=0.1,0.2", "steps=1", "tracking=memory")
    done = here(*line, *more)
    assert (done.returncode, done.stdout, here.session.finished) == (2, "", [])
    (said,) = done.stderr.splitlines()
    assert said.startswith("mfgd: init.std=0.1,0.2: no such key; ")
