"""conf/ agrees with the code, and what is refused is refused as the design says, through the real command line."""

import ctypes
import inspect
import pickle
from importlib import import_module

import numpy as np
import pytest
from conftest import UNMEASURED, mfgd
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mfgd import config, sweep

OPTIONS = [
    (group, path.stem)
    for group in config.GROUPS
    for path in sorted((config.CONF / group).glob("*.yaml"))
]
EXPERIMENTS = sorted(path.stem for path in (config.CONF / "experiment").glob("*.yaml"))


def composed(*overrides: str) -> config.Point:
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        whole = compose("config", list(overrides), return_hydra_config=True)
    task = OmegaConf.masked_copy(whole, [key for key in whole if key != "hydra"])
    return config.read(task, whole.hydra)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_yaml_agrees_with_its_function(group, option):
    node = OmegaConf.to_container(OmegaConf.load(config.CONF / group / f"{option}.yaml"))
    assert node.pop("_target_") == f"mfgd.{group}.{option}"
    parameters = inspect.signature(
        getattr(import_module(f"mfgd.{group}"), option)
    ).parameters.values()
    assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty} == set(
        node
    )
    assert len(node) == len(parameters)


def test_schema_agrees_with_the_top_level():
    keys = {
        key
        for key in OmegaConf.load(config.CONF / "config.yaml")
        if key not in ("defaults", "hydra")
    }
    assert keys == set(config.Scalars.model_fields)


def test_every_group_of_conf_is_read():
    assert {path.name for path in config.CONF.iterdir() if path.is_dir()} == {
        *config.GROUPS,
        "experiment",
    }


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs(experiment):
    point = composed(f"experiment={experiment}", "steps=20", "record.steps=null")
    (row,) = sweep.solve([point])
    assert row.outcome != "diverged"
    assert row.trajectory["step"][-1] <= 20
    assert experiment.startswith(point.tracking().experiment)


def test_params_are_the_resolved_config_flattened():
    params = composed(
        "loss=huber", "loss.delta=2", "problem=synthetic", "problem.spectrum=[3,1]"
    ).params()
    assert params["loss"] == "huber"
    assert params["loss.delta"] == 2.0
    assert params["problem.spectrum"] == [3, 1]
    assert params["lr"] == 0.001
    assert not [key for key in params if "_target_" in key or key == "tracking.uri"]


def test_fingerprint_sees_what_changes_a_number_and_nothing_else():
    prints = {
        composed(*line).fingerprint
        for line in ([], ["seed=1"], ["lr=0.01"], ["loss.scale=0.5"], ["steps=9"])
    }
    assert len(prints) == 5
    same = [[], ["tracking.experiment=other"], ["tracking.figures=0"], ["batch_bytes=1"]]
    assert len({composed(*line).fingerprint for line in same}) == 1


def test_a_missing_password_stays_missing():
    point = composed("tracking.uri=https://me:secret@example.org")
    assert "secret" not in str(point.resolved) + str(point.params())


REFUSED = {
    "rnk=3": "rnk=3: no such key; allowed are rank,",
    "loss.foo=3": "loss.foo=3: no such key; allowed are loss.delta,",
    "loss=squared loss.delta=3": "loss.delta=3: no such key; allowed are loss.penalty, loss.reduction, loss.scale",
    "problem=notebook problem.n=3": "problem.n=3: no such key; allowed are none",
    "+loss.foo=3": "loss.foo=3: no such key; allowed are scale,",
    "+foo=3": "foo=3: no such key; allowed are rank,",
    "loss=hubber": "loss=hubber: allowed are absolute, huber, logcosh, squared",
    "problem=null": "problem=null: allowed are digits,",
    "~loss": "loss=null: allowed are absolute,",
    "experiment=nope": "experiment=nope: allowed are arora2019,",
    "rank=abc": "rank=abc: allowed is an integer",
    "rank=1.5": "rank=1.5: allowed is an integer",
    "rank=0": "rank=0: allowed is greater than or equal to 1",
    "rank=-1": "rank=-1: allowed is greater than or equal to 1",
    "rank=4 init=spectral": "rank=4 with init=spectral: allowed is 1 to min(n, m) = 3",
    "rank=4 init=balanced": "rank=4 with init=balanced: allowed is 1 to min(n, m) = 3",
    "rank=4 init=orthogonal": "rank=4 with init=orthogonal: allowed is 1 to min(n, m) = 3",
    "rank=3 init=notebook": "init=notebook",
    "lr=0": "lr=0: allowed is greater than 0",
    "lr=-1": "lr=-1: allowed is greater than 0",
    "lr=nan": "lr=nan: allowed is a finite number",
    "lr=[0.1,-1]": "lr=[0.1, -1]: allowed is greater than 0",
    "steps=0": "steps=0: allowed is greater than or equal to 1",
    "tolerance=-1": "tolerance=-1: allowed is greater than or equal to 0",
    "dtype=int8": "dtype=int8: allowed is 'float64' or 'float32'",
    "device=tpu": "device=tpu: allowed here are cpu",
    "init.scale=-1": "init.scale=-1: allowed is greater than 0",
    "loss=huber loss.delta=-1": "loss.delta=-1: allowed is greater than 0",
    "loss.reduction=max": "loss.reduction=max: allowed is 'sum' or 'mean'",
    "loss.penalty=-1": "loss.penalty=-1: allowed is greater than or equal to 0",
    "optimizer=momentum optimizer.beta=1": "optimizer.beta=1: allowed is less than 1",
    "problem=synthetic problem.observed=0": "problem.observed=0: allowed is a share in (0, 1]",
    "problem=synthetic problem.observed=1.5": "problem.observed=1.5: allowed is a share in (0, 1]",
    "problem=synthetic problem.rank=81": "problem.rank=81: allowed is 1 to min(n, m) = 80",
    "record.steps=[99999]": "record.steps=99999: allowed are 0 to steps=10000",
    "problem=file": "problem.path: has no value",
    "problem=file problem.path=missing.npy": "problem.path=missing.npy: no such file",
    "problem=file problem.path=empty.csv": "problem.path=empty.csv: an empty file",
    "problem=file problem.path=ragged.csv": "problem.path=ragged.csv: ragged: rows of 2 to 3 cells",
    "problem=file problem.path=text.csv": "problem.path=text.csv: row 1: could not convert string to float: 'x'",
    "problem=file problem.path=nan.csv": "problem.path=nan.csv: every entry is missing",
    "problem=file problem.path=inf.csv": "problem.path=inf.csv: 1 infinite entries",
    "problem=file problem.path=pickle.npy": "problem.path=pickle.npy: not readable as .npy",
    "problem=file problem.path=pickle.pt": "problem.path=pickle.pt: not readable as .pt",
    "problem=file problem.path=matrix.xls": "problem.path=matrix.xls: unknown format; allowed are .npy",
    "loss._target_=nowhere.cauchy": "loss._target_=nowhere.cauchy: ModuleNotFoundError",
    "tracking.uri=ftp://example.org": "tracking.uri=ftp://example.org: not supported; allowed are sqlite,",
    "tracking.uri=http://127.0.0.1:9": "tracking.uri=http://127.0.0.1:9: no tracking server answers",
    "tracking.uri=sqlite:////nowhere/a.db": "tracking.uri=sqlite:////nowhere/a.db: /nowhere/a.db cannot be written to",
    "rank=1,2": "Ambiguous value for argument 'rank=1,2'",
    "rank=[1": "no viable alternative at input '[1'",
    "--multirun rank=1,2,0": "rank=0: allowed is greater than or equal to 1",
    "--multirun rank=1,4 init=spectral": "rank=4 with init=spectral",
    "--multirun tracking.experiment=a,b": "tracking: differs from run to run; allowed is one store for a sweep",
}


class Bomb:
    def __reduce__(self):
        return print, ("a pickle was loaded",)


def spoil(folder):
    (folder / "empty.csv").touch()
    (folder / "ragged.csv").write_text("1,2,3\n4,5\n")
    (folder / "text.csv").write_text("1,x\n2,3\n")
    (folder / "nan.csv").write_text("nan,\n,nan\n")
    (folder / "inf.csv").write_text("1,inf\n2,3\n")
    (folder / "matrix.xls").write_text("1")
    np.save(folder / "pickle.npy", np.array([[Bomb()]], dtype=object))
    (folder / "pickle.pt").write_bytes(pickle.dumps(Bomb()))


@pytest.mark.parametrize("line", REFUSED)
def test_refused_in_one_line(line, here, tmp_path):
    spoil(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = here(*line.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"mfgd: {REFUSED[line]}")
    assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("line", ["rnk=3", "rank=4 init=spectral", "--multirun rank=1,2,0"])
def test_refused_by_a_process_of_its_own(line, tmp_path):
    done = mfgd(*line.split(), cwd=tmp_path, env=UNMEASURED)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"mfgd: {REFUSED[line]}")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_read_only_directory(tmp_path):
    """Root writes everywhere, unless it gives that power up first: CAP_DAC_OVERRIDE, dropped for good before exec."""
    tmp_path.chmod(0o555)
    drop = ctypes.CDLL(None).prctl
    done = mfgd(cwd=tmp_path, preexec_fn=lambda: drop(24, 1, 0, 0, 0))
    assert (done.returncode, done.stdout) == (2, "")
    place = tmp_path / "mlflow.db"
    assert done.stderr.startswith(
        f"mfgd: tracking.uri=sqlite:///mlflow.db: {place} cannot be written to; allowed is"
    )
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_fault_of_ours_is_not_dressed_up_as_a_refusal():
    with pytest.raises(ValueError, match="ours"), config.refusals():
        raise ValueError("ours")
