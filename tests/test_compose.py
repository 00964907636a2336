"""What the composer gives equals what Hydra composes."""

from functools import cache

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mfgd import config
from mfgd.compose import Composer

LINES = [
    *[
        "rank=3",
        "rank=1",
        "lr=1e-4",
        "lr=[0.1,0.01]",
        "steps=7",
        "seed=12",
        "dtype=float32",
        "tolerance=0.5",
        "device=null",
    ],
    *[
        "loss=huber",
        "loss=absolute",
        "init=spectral",
        "init=normal",
        "problem=synthetic",
        "experiment=demo",
    ],
    *[
        "loss.scale=0.5",
        "loss.penalty=2",
        "init.scale=0.01",
        "record.points=5",
        "record.steps=[1,2]",
    ],
    *[
        "tracking.experiment='a b'",
        "tracking.experiment=x-y",
        "record={points:3}",
        "lr=${init.scale}",
        "rank='${seed}'",
    ],
    *[
        "+loss.width=2",
        "++loss.scale=3",
        "+note=hello",
        "~tolerance",
        "~loss.penalty",
        "hydra.verbose=true",
    ],
    *[
        "tracking.uri=???",
        "optimizer=momentum",
        "optimizer.beta=0.5",
        "hydra.job.name=other",
        "batch_bytes=100",
    ],
]


@pytest.fixture(scope="module")
def loaders():
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration(
            "config", ["hydra.verbose=false"], run_mode=RunMode.MULTIRUN
        )
        yield loader, Composer(loader), master


def composed(loader, master, lines):
    try:
        made = loader.load_sweep_config(master, list(lines))
    except HydraException as error:
        return type(error), str(error)
    return (
        repr(OmegaConf.to_container(made, resolve=False)),
        made._get_flag("struct"),
        made._metadata.object_type,
    )


@pytest.mark.slow
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(lines=st.lists(st.sampled_from(LINES), max_size=6))
def test_equals_what_hydra_composes(loaders, lines):
    loader, composer, master = loaders
    expected = composed(loader, master, lines)
    assert composed(composer, master, lines) == expected
    assert composed(checks(composer), master, lines) == expected


@cache
def checks(composer):
    """One for all examples, as its configs are used again."""
    return composer.for_checks()


@pytest.mark.parametrize(
    "lines",
    [
        ("record.points=5", "record={points:3}"),
        ("rank=1", "rank=2"),
        ("loss=huber", "loss.delta=3"),
        ("loss.delta=3",),
        ("rnk=1",),
        ("lr=${rank}", "rank=4"),
        ("+loss.width=2", "loss.width=3"),
    ],
)
def test_order_and_absence_are_hydras(loaders, lines):
    loader, composer, master = loaders
    assert composed(composer, master, lines) == composed(loader, master, lines)


def test_jobs_do_not_share_what_they_set(loaders):
    _, composer, master = loaders
    first = composer.load_sweep_config(master, ["rank=3", "lr=[1,2]"])
    second = composer.load_sweep_config(master, ["rank=4"])
    assert (first.rank, second.rank, list(first.lr), second.lr) == (3, 4, [1, 2], 0.001)


def test_hydra_composes_once_for_each_choice_of_options(loaders, monkeypatch):
    loader, _, master = loaders
    calls = []
    ordinary = loader.load_sweep_config
    monkeypatch.setattr(
        loader, "load_sweep_config", lambda *given: calls.append(given[1]) or ordinary(*given)
    )
    composer = Composer(loader)
    for seed in range(20):
        for loss in ("huber", "squared"):
            composer.load_sweep_config(master, [f"seed={seed}", f"loss={loss}", "init.scale=0.1"])
    assert calls == [["loss=huber"], ["loss=squared"]]
