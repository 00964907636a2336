"""conf/ agrees with the code, and the real command line refuses what it must refuse."""

import inspect
import pickle
import shlex
import subprocess
from importlib import import_module
from typing import Any, TypedDict, Unpack

import hypothesis
import numpy as np
import pytest
import torch
from cases import solve
from conftest import UNMEASURED, mfgd, obey_modes
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mfgd import config, init, loss, optimizer, problem, record, refusals, schedule, schema
from mfgd.component import MAPS, list_options
from mfgd.point import Point, Scalars
from mfgd.types import Positive, Refused

OPTIONS = [
    (group, path.stem)
    for group in config.GROUPS
    for path in sorted((config.CONF / group).glob("*.yaml"))
]
EXPERIMENTS = sorted(path.stem for path in (config.CONF / "experiment").glob("*.yaml"))


def composed(*overrides: str) -> Point:
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        whole = compose("config", list(overrides), return_hydra_config=True)
    task = OmegaConf.masked_copy(whole, [key for key in whole if key != "hydra"])
    return config.read(task, whole.hydra)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_yaml_agrees_with_its_function(group, option):
    node = OmegaConf.to_container(OmegaConf.load(config.CONF / group / f"{option}.yaml"))
    assert node.pop("_target_") == f"mfgd.{group}.{option}"
    function = getattr(import_module(f"mfgd.{group}"), option)
    kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
    assert kinds <= {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}
    fields = schema.keys_of(function).model_fields
    assert {key: field.is_required() for key, field in fields.items()} == dict.fromkeys(node, True)


def test_schema_agrees_with_the_top_level():
    keys = {
        key
        for key in OmegaConf.load(config.CONF / "config.yaml")
        if key not in ("defaults", "hydra")
    }
    assert keys == {*Scalars.model_fields, *MAPS}


def test_every_group_of_conf_is_read():
    assert {path.name for path in config.CONF.iterdir() if path.is_dir()} == {
        *config.GROUPS,
        "experiment",
        "hydra",
    }


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs(experiment):
    point = composed(f"experiment={experiment}", "steps=20", "record.steps=null")
    (row,) = solve([point])
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


class NoKeys(TypedDict):
    """No keys."""


class WidthKeys(TypedDict):
    """A key that several functions share."""

    width: Positive


def narrow(*, width: Positive = 1.0, **none: Unpack[NoKeys]) -> Any:
    """Takes no key of any option."""


def shared(*, height: Positive = 1.0, **widths: Unpack[WidthKeys]) -> Any:
    """Takes a shared key, and no key of any option."""


def open_ended(*, width: Positive = 1.0, **rest: Any) -> Any:
    """Takes what the option takes whose place it takes."""


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_a_users_function_takes_the_place_of_any_option(group, option):
    line = (f"{group}={option}", f"{group}._target_=test_config.narrow", f"+{group}.width=2")
    point = composed(*line)
    component = getattr(point, group)
    assert component.name == component.target == "test_config.narrow"
    assert component.arguments == {"width": 2.0}
    assert pickle.loads(pickle.dumps(component)) == component
    params = {key: value for key, value in point.params().items() if key.split(".")[0] == group}
    assert params == {group: "test_config.narrow", f"{group}.width": 2.0}
    assert point.resolved[group] == {"_target_": "test_config.narrow", "width": 2.0}


NAMED = {
    "problem=synthetic": ("n", "100"),
    "init=normal": ("scale", "1.0"),
    "loss=huber": ("delta", "1.0"),
    "optimizer=momentum": ("beta", "0.9"),
    "gradient=noisy": ("std", "0.1"),
    "schedule=geometric": ("decay", "0.999"),
    "record=geometric": ("points", "40"),
    "tracking=store": ("points", "50000"),
}


def test_every_group_has_a_named_key():
    assert [line.partition("=")[0] for line in NAMED] == list(config.GROUPS)


@pytest.mark.parametrize("option", NAMED)
def test_a_users_function_is_refused_an_options_key_that_the_shell_line_names(option):
    group = option.partition("=")[0]
    key, value = NAMED[option]
    assert str(getattr(composed(option), group).arguments[key]) == value
    line = (option, f"{group}._target_=test_config.narrow")
    for given in (
        f"{group}.{key}={value}",
        f"++{group}.{key}={value}",
        f"{group}={{{key}:{value}}}",
    ):
        with pytest.raises(Refused) as refusal:
            composed(*line, given)
        assert str(refusal.value) == f"{group}.{key}={value}: no such key; allowed are width"
    assert getattr(composed(*line), group).arguments == {"width": 1.0}


def test_a_users_function_is_refused_a_key_that_an_experiment_changes(tmp_path):
    (tmp_path / "experiment").mkdir()
    for name, scale in (("same", 1.0), ("other", 0.25)):
        text = f"# @package _global_\ninit:\n  _target_: test_config.narrow\n  scale: {scale}\n"
        (tmp_path / "experiment" / f"{name}.yaml").write_text(text)
    searched = f"hydra.searchpath=[{tmp_path}]"
    assert composed("experiment=same", searched).init.arguments == {"width": 1.0}
    with pytest.raises(Refused, match=r"^init.scale=0.25: no such key; allowed are width$"):
        composed("experiment=other", searched)


def test_a_users_function_with_open_keywords_takes_what_the_option_takes():
    loss = composed("loss=huber", "loss._target_=test_config.open_ended", "+loss.width=2").loss
    values = {"scale": 1.0, "reduction": "sum", "penalty": 0.0, "delta": 1.0}
    assert loss.arguments == values | {"width": 2.0}
    with pytest.raises(Refused, match=r"^loss.penalty=-1: must be at least 0$"):
        composed("loss._target_=test_config.open_ended", "loss.penalty=-1")


def test_shared_keys_are_checked_and_required():
    own = "loss._target_=test_config.shared"
    assert composed(own, "+loss.width=2").loss.arguments == {"height": 1.0, "width": 2.0}
    for line, message in (
        ((own,), "loss.width: has no value; needed are height, width"),
        ((own, "+loss.width=0"), "loss.width=0: must be greater than 0"),
        ((own, "+loss.depth=3", "+loss.width=1"), "loss.depth=3: no such key"),
    ):
        with pytest.raises(Refused, match=f"^{message}"):
            composed(*line)


def test_a_missing_value_is_dropped_or_refused():
    assert composed("problem=file", "problem._target_=test_config.narrow").problem.arguments
    with pytest.raises(Refused, match=r"^problem.path: has no value; give problem.path=VALUE$"):
        composed("problem=file")


def own_problem():
    return problem.notebook()


def own_init():
    return init.notebook()


def own_loss():
    return loss.squared(scale=1.0, reduction="sum", penalty=0.0)


def own_optimizer():
    return optimizer.gd(alternating=False)


def own_schedule():
    return schedule.constant()


def own_record():
    return record.geometric(points=40, steps=None, every=None, last=0, snapshots=5, matrices=False)


def test_a_run_of_users_functions_in_every_group():
    groups = ("problem", "init", "loss", "optimizer", "schedule", "record")
    line = [f"{group}._target_=test_config.own_{group}" for group in groups]
    ours, theirs = (composed(*line, "steps=50") for line in (["init=notebook"], line))
    (expected,), (row,) = solve([ours]), solve([theirs])
    assert row.trajectory["loss"].tolist() == expected.trajectory["loss"].tolist()


def spread(problem, factors, *, width: Positive = 1.0):
    return factors[0].mul(width).std(dim=(-2, -1))


def test_metrics_and_figures_are_read():
    line = ("+metrics.a._target_=test_config.spread", "+metrics.a.width=3")
    point = composed(*line, "+figures.b._target_=test_config.spread")
    (name, metric), (drawn, figure) = *point.metrics, *point.figures
    assert (name, metric.arguments, drawn, figure.arguments) == (
        *("a", {"width": 3.0}),
        *("b", {"width": 1.0}),
    )
    factors = torch.eye(2)[None], torch.eye(2)[None]
    assert torch.equal(metric.bind()(None, factors), spread(None, factors, width=3.0))
    params = {key: value for key, value in point.params().items() if key.startswith(("me", "fi"))}
    assert params == {
        "metrics.a": "test_config.spread",
        "metrics.a.width": 3.0,
        "figures.b": "test_config.spread",
        "figures.b.width": 1.0,
    }
    assert point.resolved["metrics"] == {"a": {"_target_": "test_config.spread", "width": 3.0}}
    assert pickle.loads(pickle.dumps(point)) == point
    assert hash(point.metrics) == hash(composed(*line).metrics)


# Computed before there were metrics and figures.
PRINTS = {
    "": "8de47df67cfb65f3",
    "rank=3 lr=[0.1,0.01] seed=4": "65fbbba4c11b3982",
    "loss=huber loss.delta=2 optimizer=momentum init=normal dtype=float32": "2d52b38e3c65d408",
    "problem=synthetic problem.spectrum=[3,1] problem.observed=0.5 schedule=cosine depth=3": (
        "03bab74cdbd0f39b"
    ),
    "experiment=demo": "6375e0670bef0ee8",
}


@pytest.mark.parametrize("line", PRINTS)
def test_fingerprints_stay_what_they_were(line):
    assert composed(*line.split()).fingerprint == PRINTS[line]


def test_explicit_matrices_are_params_and_in_the_fingerprint():
    line = ["problem=explicit", "init=explicit", "rank=1", "init.factors=[[[1]],[[2,3]]]"]
    nan, null, other = (
        composed(*line, f"problem.matrix=[[1,{entry}]]") for entry in ("nan", "null", "2")
    )
    assert nan.params()["problem.matrix"] == [[1, None]]
    assert nan.params()["init.factors"] == [[[1]], [[2, 3]]]
    assert nan.fingerprint == null.fingerprint != other.fingerprint
    assert pickle.loads(pickle.dumps(nan)) == nan
    moved = composed(*line[:3], "init.factors=[[[1]],[[2,4]]]", "problem.matrix=[[1,nan]]")
    assert moved.fingerprint != nan.fingerprint


def test_a_ratio_of_rates_is_a_param_and_changes_the_fingerprint_if_it_is_one():
    plain, equal, moved = composed(), composed("lr_ratio=[1]"), composed("lr_ratio=2")
    assert plain.fingerprint == equal.fingerprint != moved.fingerprint
    assert [point.params()["lr_ratio"] for point in (plain, equal, moved)] == [1.0, 1.0, 2.0]
    deep = composed("depth=4", "lr_ratio=[2,3,5]")
    assert (deep.shares, deep.params()["lr_ratio"]) == ((1.0, 2.0, 3.0, 5.0), [2.0, 3.0, 5.0])
    assert composed("depth=4", "lr_ratio=5").shares == (1.0, 1.0, 1.0, 5.0)


def test_a_metric_changes_the_fingerprint_and_a_figure_does_not():
    plain = composed().fingerprint
    assert composed("+metrics.a._target_=test_config.spread").fingerprint != plain
    assert composed("+figures.a._target_=test_config.spread").fingerprint == plain


def test_empty_maps_leave_no_trace():
    point = composed()
    assert (point.metrics, point.figures) == ((), ())
    assert not {"metrics", "figures"} & {*point.resolved, *point.params()}


LONG = "a" * 5000
REFUSED = {
    "rnk=3": "rnk=3: no such key; allowed are rank,",
    "loss.foo=3": "loss.foo=3: no such key; allowed are loss.penalty,",
    "loss.delta=0.5": (
        "loss.delta=0.5: no such key; allowed are loss.penalty, loss.reduction, loss.scale with "
        "loss=squared; huber has it: write loss=huber loss.delta=0.5"
    ),
    "loss.delt=1 loss=huber": (
        "loss.delt=1: no such key; allowed are loss.delta, loss.penalty, loss.reduction, "
        "loss.scale with loss=huber; did you mean loss.delta?"
    ),
    "experiment=tong2021_robust optimizer.beta=1": (
        "optimizer.beta=1: no such key; allowed are optimizer.alternating, optimizer.damping, "
        "optimizer.floor, optimizer.metric with optimizer=polyak; momentum, muon, nesterov, "
        "rmsprop have it: write"
    ),
    "~loss.delta": "~loss.delta: no such key; allowed are loss.penalty,",
    "--multirun optimizer=nesterov,momentum optimizer.beta=0.8": (
        "optimizer.beta=0.8: no such key; allowed are optimizer.alternating with optimizer=gd; the "
        "options of the sweep have it: write ++optimizer.beta=0.8"
    ),
    "rank='2'": "rank=2: must be an integer; quotes make it text, write rank=2",
    "steps=1e3": "steps=1000.0: must be an integer; write steps=1000",
    "rank=null": "rank=null: must be an integer",
    "rank=${nope}": "rank=${nope}: Interpolation key 'nope' not found",
    "tracking.experiment=2024": (
        "tracking.experiment=2024: must be a string; write 'tracking.experiment=\"2024\"'"
    ),
    "problem=file problem.path=true": (
        "problem.path=true: must be a string; write 'problem.path=\"true\"'"
    ),
    "+experiment=x": (
        f"experiment=x: allowed are {', '.join(list_options('experiment'))}; "
        "a name in MLflow is tracking.experiment=x"
    ),
    "+experiment=demo": "+experiment=demo: is there already; write experiment=demo",
    "+rank=3": "+rank=3: is there already; write rank=3",
    "--config-name=nope": "--config-name=nope: no such file; allowed are config and those of",
    "rank==2": "rank==2: has two signs =; write rank=2",
    "rank:2": "rank:2: must be KEY=VALUE, without blanks; mfgd --help shows all keys",
    "rank 2": "rank: must be KEY=VALUE, without blanks",
    "--config-dir=own loss=broken": "",
    "--config-dir=own loss=zero": "",
    "--config-dir=own loss=latin": "a file of the config is not UTF-8: ",
    "--multirun hydra.sweeper._target_=adam": "Hydra cannot read these arguments (RuntimeError(",
    "--multirun hydra.sweeper.params={seed:1}": "Hydra cannot read these arguments (Attribute",
    "--config-dir=own loss=lost": "loss=nothing: no such option",
    "--config-dir=own loss=extra": "loss.foo=1: no such key; allowed are scale,",
    "++=${x": "++=${x: must be KEY=VALUE",
    "--multirun optimizer=choice(nesterov,momentum) optimizer.beta=0.8": (
        "optimizer.beta=0.8: no such key; allowed are optimizer.alternating with optimizer=gd; the "
        "options of the sweep have it: write ++optimizer.beta=0.8"
    ),
    "--multirun optimizer=nesterov,als optimizer.beta=0.8": (
        "optimizer.beta=0.8: no such key; allowed are optimizer.alternating with optimizer=gd; of "
        "the sweep's options als has it not"
    ),
    "--multirun optimizer=[1,2]": "Hydra cannot read these arguments (TypeError",
    "=2": "=2: must be KEY=VALUE, without blanks",
    "--multirun rank=interval(1,3)": "rank=interval(1,3): hydra/sweeper=list draws no values;",
    "--multirun rank=range(1,2,0)": "rank=range(1,2,0): range() arg 3 must not be zero",
    "hydra.nope=1": "hydra.nope=1: no such key; mfgd --cfg hydra shows them",
    "--multirun hydra/launcher=bach": (
        "hydra/launcher=bach: allowed are basic, batch, joblib, ray, submitit_local, "
        "submitit_slurm; did you mean batch?"
    ),
    "optimiser=adam": "optimiser=adam: no such key; allowed are rank,",
    "loss._target_=bad.f": "loss._target_=bad.f: SyntaxError: invalid syntax (bad.py, line 1)",
    "loss=squared loss.delta=3": (
        "loss.delta=3: no such key; allowed are loss.penalty, loss.reduction, loss.scale"
    ),
    "problem=explicit": "problem.matrix: has no value",
    "problem=explicit problem.matrix=[[1,2],[3]]": "problem.matrix: ragged: rows of 1 to 2 numbers",
    "problem=explicit problem.matrix=[[]]": "problem.matrix: empty; allowed are rows of one length",
    "problem=explicit problem.matrix=[1,2]": "problem.matrix=[1, 2]: must be a list",
    "problem=explicit problem.matrix=[[1,a]]": "problem.matrix=[[1, 'a']]: must be a number",
    "problem=explicit problem.matrix=[[1,true]]": "problem.matrix=[[1, True]]: must be a number",
    "problem=explicit problem.matrix=[[1,inf]]": "problem.matrix=[[1, inf]]: must be a finite",
    "problem=explicit problem.matrix=[[nan,null]]": "problem.matrix: every entry is missing",
    "problem=explicit problem.matrix=[[1,1e-310]]": (
        "problem.matrix=[[1.0, 1e-310]]: mfgd rounds it to 0"
    ),
    "init=explicit init.factors=[[[1,nan]]]": "init.factors=[[[1, nan]]]: must be a finite number",
    "init=explicit init.factors=[[[1]],[[1]]] rank=1": (
        "init.factors: C is 1×1; allowed here is 3×1 with rank=1"
    ),
    "problem=notebook problem.n=3": "problem.n=3: no such key; allowed are none",
    "+loss.foo=3": "loss.foo=3: no such key; allowed are scale,",
    "+foo=3": "foo=3: no such key; allowed are rank,",
    "loss=hubber": (
        "loss=hubber: allowed are absolute, beta, huber, kullback_leibler, logcosh, logistic, "
        "poisson, quantile, squared; did you mean huber?"
    ),
    "problem=null": "problem=null: allowed are digits,",
    "~loss": "loss=null: allowed are absolute,",
    "experiment=nope": "experiment=nope: allowed are arora2019,",
    "rank=abc": "rank=abc: must be an integer",
    "rank=1.5": "rank=1.5: must be an integer",
    "rank=0": "rank=0: must be at least 1",
    "rank=-1": "rank=-1: must be at least 1",
    "rank=4 init=spectral": "rank=4 with init=spectral: must be between 1 and min(n, m) = 3",
    "rank=4 init=balanced": "rank=4 with init=balanced: must be between 1 and min(n, m) = 3",
    "rank=4 init=orthogonal": "rank=4 with init=orthogonal: must be between 1 and min(n, m) = 3",
    "rank=3 init=notebook": "init=notebook",
    "lr=0": "lr=0: must be greater than 0",
    "lr=-1": "lr=-1: must be greater than 0",
    "lr=1e-308": "lr=1e-308: mfgd rounds it to 0; must be at least 2.23e-308",
    "lr=[0.1,1e-310]": "lr=[0.1, 1e-310]: mfgd rounds it to 0",
    "--multirun lr=0.1,1e-308": "lr=1e-308: mfgd rounds it to 0",
    "loss.penalty=1e-320": "loss.penalty=1e-320: mfgd rounds it to 0",
    "lr=1e-39 dtype=float32": (
        "lr=1e-39 with dtype=float32: is 0 there; allowed are 1.18e-38 to 3.4e+38, or dtype=float64"
    ),
    "loss=huber loss.delta=1e39 dtype=float32": (
        "loss.delta=1e+39 with dtype=float32: is infinite there; allowed are"
    ),
    "lr_ratio=0": "lr_ratio=0: must be greater than 0",
    "lr_ratio=[1,2]": "lr_ratio=[1.0, 2.0]: allowed with depth=2 are a number, and a list of 1",
    "lr_ratio=2 optimizer=als": "lr_ratio=2.0 with optimizer=als: this method has no rate for each",
    "lr=1e400": "lr=inf: must be a finite number",
    "steps=1e400": "steps=inf: must be an integer",
    "rank=1000000000000000000000000000000": "rank=1000000000000000000000000000000: must be within",
    "seed=99999999999999999999999": "seed=99999999999999999999999: must be within ±92233720368547",
    "problem=synthetic problem.n=9223372036854775808": (
        "problem.n=9223372036854775808: must be within ±9223372036854775807"
    ),
    "lr=nan": "lr=nan: must be a finite number",
    "lr=[0.1,-1]": "lr=[0.1, -1]: must be greater than 0",
    "steps=0": "steps=0: must be at least 1",
    "tolerance=-1": "tolerance=-1: must be at least 0",
    "dtype=int8": "dtype=int8: must be 'float64' or 'float32'",
    "device=tpu": "device=tpu: allowed here are cpu",
    "init.scale=-1": "init.scale=-1: must be at least 0",
    "init.scale=0": "init.scale=0 with init.ratio=1: two factors or more are 0, where",
    "init.ratio=-1": "init.ratio=-1: must be at least 0",
    "init.ratio=0 optimizer=als": "optimizer=als: a factor of the start is 0, which",
    "init.ratio=0 optimizer=mu": "optimizer=mu: a factor of the start is 0, which",
    "loss=huber loss.delta=-1": "loss.delta=-1: must be greater than 0",
    "loss.reduction=max": "loss.reduction=max: must be 'sum' or 'mean'",
    "loss.penalty=-1": "loss.penalty=-1: must be at least 0",
    "optimizer=momentum optimizer.beta=1": "optimizer.beta=1: must be less than 1",
    "problem=synthetic problem.observed=0": "problem.observed=0: must be a share in (0, 1]",
    "problem=synthetic problem.observed=1.5": "problem.observed=1.5: must be a share in (0, 1]",
    "problem=synthetic problem.rank=81": "problem.rank=81: must be between 1 and min(n, m) = 80",
    "record.steps=[99999]": "record.steps=99999: allowed are 0 to steps=10000",
    "problem=file": "problem.path: has no value",
    "problem=file problem.path=missing.npy": "problem.path=missing.npy: no such file",
    "problem=file problem.path=empty.csv": "problem.path=empty.csv: an empty file",
    "problem=file problem.path=ragged.csv": "problem.path=ragged.csv: ragged: rows of 2 to 3 cells",
    "problem=file problem.path=text.csv": "problem.path=text.csv: the first line, 1, x, holds",
    "problem=file problem.path=counted.csv": "problem.path=counted.csv: the first column, 0, 1…, ",
    "problem=file problem.path=pickle.npy problem.header=true": (
        "problem.path=pickle.npy: problem.header=True: decides nothing for a .npy file; allowed: "
    ),
    "problem=file problem.path=text.csv problem.decimal=x": "problem.decimal=x: must be '.', ','",
    "problem=file problem.path=text.csv problem.unlisted=x": "problem.unlisted=x: must be 'zero'",
    "problem=file problem.path=a=b.csv": (
        "problem.path=a=b.csv: such a value needs quotes of its own; "
        "write 'problem.path=\"a=b.csv\"'"
    ),
    "problem=file problem.path=müller[1].csv": (
        "problem.path=müller[1].csv: such a value needs quotes of its own; "
        "write 'problem.path=\"müller[1].csv\"'"
    ),
    "problem=file problem.path=a(1).csv": (
        "problem.path=a(1).csv: such a value needs quotes of its own; "
        "write 'problem.path=\"a(1).csv\"'"
    ),
    "problem=ratings problem.path=counted.csv": (
        "problem.path=counted.csv: fewer than 3 columns; allowed are at least user, item and rating"
    ),
    "problem=file problem.path=nan.csv": "problem.path=nan.csv: every entry is missing",
    "problem=file problem.path=inf.csv": "problem.path=inf.csv: 1 infinite entries",
    "problem=file problem.path=pickle.npy": "problem.path=pickle.npy: not readable as .npy",
    "problem=file problem.path=pickle.pt": "problem.path=pickle.pt: not readable as .pt",
    "problem=file problem.path=matrix.xls": (
        "problem.path=matrix.xls: unknown format; allowed are .csv .tsv"
    ),
    "loss._target_=nowhere.cauchy": (
        "loss._target_=nowhere.cauchy: nowhere is no module of the working directory; allowed are"
    ),
    f"tracking.experiment={LONG}": "tracking.experiment=aaa",
    f"tracking.uri=sqlite:///{LONG}": "tracking.uri=sqlite:///aaa",
    f"problem=file problem.path={LONG}.csv": "problem.path=aaa",
    f"problem=ratings problem.path=/{LONG}/u.data": "problem.path=/aaa",
    f"problem=synthetic problem.mask={LONG}.csv": "problem.mask=aaa",
    f"init=file init.path={LONG}.npz": "init.path=aaa",
    "problem=file problem.path='~nobody-of-this-name/D.csv'": (
        "problem.path=~nobody-of-this-name/D.csv: Could not determine home directory."
    ),
    "tracking.uri=ftp://example.org": (
        "tracking.uri=ftp://example.org: not supported; allowed are sqlite,"
    ),
    "tracking.uri=http://127.0.0.1:9": (
        "tracking.uri=http://127.0.0.1:9: no tracking server answers"
    ),
    "tracking.uri=foo": "tracking.uri=foo: not supported; allowed are sqlite, postgresql,",
    "tracking.uri='http://['": "tracking.uri=http://[: Invalid IPv6 URL; allowed are sqlite,",
    "tracking.uri='http://me:a:b@[::1'": "tracking.uri=http://me:***@[::1: Invalid IPv6 URL;",
    "tracking.uri=postgresql://localhost:port/x": "tracking.uri=postgresql://localhost:port/x: ",
    "tracking.uri='sqlite:////\0'": "tracking.uri=sqlite:////\\x00: the file has a NUL in its name",
    "tracking.uri=sqlite:////proc/a.db": "tracking.uri=sqlite:////proc/a.db: cannot be set up",
    "tracking.uri=sqlite:////nowhere/a.db": (
        "tracking.uri=sqlite:////nowhere/a.db: /nowhere/a.db cannot be written to"
    ),
    "metrics=null": "metrics=null: must be a map; add to it by +metrics.NAME._target_=PATH",
    "figures=3": "figures=3: must be a map; add to it by +figures.NAME._target_=PATH",
    "~metrics": "metrics=null: must be a map",
    "metrics.spread.width=3": (
        "metrics.spread.width=3: no such key; add it by +metrics.spread.width=3"
    ),
    "+metrics.spread.width=3": (
        "metrics.spread={'width': 3}: has no function; add to it by +metrics"
    ),
    "+metrics.spread=null": "metrics.spread=null: has no function",
    "+metrics={2:{_target_:test_config.spread}}": "metrics.2: must be a name of letters, digits,",
    "+metrics.spread._target_=nowhere.spread": "metrics.spread._target_=nowhere.spread: nowhere is",
    "+metrics.spread._target_=test_config.spread +metrics.spread.width=-1": (
        "metrics.spread.width=-1: must be greater than 0"
    ),
    "--multirun +metrics.spread._target_=test_config.spread +metrics.spread.width=1,-1": (
        "metrics.spread.width=-1: must be greater than 0"
    ),
    "+figures.map._target_=test_config.spread +figures.map.problem=1": (
        "figures.map.problem=1: no such key; allowed are width"
    ),
    "record={foo:3}": "record={foo:3}: no such key; add it by +record={foo:3}",
    "rank=1,2": "Ambiguous value for argument 'rank=1,2'",
    "rank=[1": "rank=[1: no viable alternative at input '[1'",
    "--multirun rank=1,2,0": "rank=0: must be at least 1",
    "--multirun rank=1,4 init=spectral": "rank=4 with init=spectral",
    "--multirun tracking.experiment=a,b": (
        "tracking: differs from run to run; allowed is one store for a sweep"
    ),
}


OWN_OPTIONS = {
    "broken": "a: [\n",
    "zero": "a: \0\n",
    "latin": "a: \xe4\n",
    "lost": "defaults:\n  - nothing\n",
    "extra": "_target_: mfgd.loss.squared\nscale: 1\nreduction: sum\npenalty: 0\nfoo: 1\n",
}


class Bomb:
    def __reduce__(self):
        return print, ("a pickle was loaded",)


def spoil(folder):
    (folder / "own" / "loss").mkdir(parents=True)
    for name, content in OWN_OPTIONS.items():
        (folder / "own" / "loss" / f"{name}.yaml").write_text(content, encoding="latin-1")
    (folder / "bad.py").write_text("def f(:\n")
    (folder / "empty.csv").touch()
    (folder / "ragged.csv").write_text("1,2,3\n4,5\n")
    (folder / "text.csv").write_text("1,x\n2,3\n")
    (folder / "counted.csv").write_text("0,1.5\n1,2.5\n")
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
    assert len(done.stderr) < 1100
    if "broken" in line:
        assert f"{tmp_path}/own/loss/broken.yaml, line 2: is not YAML: " in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "line", ["rnk=3", "rank=4 init=spectral", "--multirun rank=1,2,0", "lr=1e-308"]
)
def test_refused_by_a_process_of_its_own(line, tmp_path):
    done = mfgd(*line.split(), cwd=tmp_path, env=UNMEASURED)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"mfgd: {REFUSED[line]}")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_read_only_directory(tmp_path):
    tmp_path.chmod(0o555)
    done = mfgd(cwd=tmp_path, preexec_fn=obey_modes)
    assert (done.returncode, done.stdout) == (2, "")
    place = tmp_path / "mlflow.db"
    assert done.stderr.startswith(
        f"mfgd: tracking.uri=sqlite:///mlflow.db: {place} cannot be written to; allowed is"
    )
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
@hypothesis.given(
    value=st.text("aü 7(),=[]{}'\"\\:#%&;~@*?!", min_size=1).filter(lambda text: text.strip())
)
def test_a_value_quoted_as_advised_is_that_value(value):
    (argument,) = shlex.split(refusals.quote("problem.path", value))
    hypothesis.assume(value != "???")  # a value that is missing
    read = OverridesParser.create().parse_override(argument).value()
    assert OmegaConf.create({"path": read}).path == value


def test_the_advised_line_works_in_a_shell(here, tmp_path):
    name = "data (1), it's #2.csv"
    (tmp_path / name).write_text("1.5,2.5\n3.5,4.5\n")
    line = ("problem=file", "rank=1", "steps=1", "tracking=memory")
    done = here(*line, f"problem.path={name}")
    advised = done.stderr.rpartition("write ")[2].strip()
    said = subprocess.run(["sh", "-c", f"printf %s {advised}"], capture_output=True, text=True)
    done = here(*line, said.stdout)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{name}: 2×2 matrix")


def test_a_fault_of_mfgd_is_not_called_a_refusal():
    with pytest.raises(ValueError, match="ours"), refusals.exit_on_refusal():
        raise ValueError("ours")
