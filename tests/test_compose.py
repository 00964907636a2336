"""What the composer gives equals what Hydra composes."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import pytest
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import MISSING, OmegaConf

from mfgd import config
from mfgd.compose import Composer
from mfgd.composed import Composed
from mfgd.config import resolve_job

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


class Colour(Enum):
    RED = 1


@dataclass
class Typed:
    """A node whose values have types, to which OmegaConf turns what is given."""

    whole: int = 1
    number: float = 1.0
    text: str = "a"
    maybe: int | None = None
    colour: Colour = Colour.RED
    many: list[float] = field(default_factory=lambda: [1.0])
    lacking: int = MISSING


@pytest.fixture(scope="module")
def loaders():
    ConfigStore.instance().store(name="typed", node=Typed)
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
    if (job := loaded(composer, master, lines)) is not None:
        assert job == loaded(Resolving(loader), master, lines)


class Resolving(NamedTuple):
    """Reads jobs from whole configs."""

    loader: Any

    def load_job(self, master, lines):
        made = self.loader.load_sweep_config(master, lines)
        return resolve_job(made, made.hydra)


def loaded(source, master, lines):
    """What a job's run takes, or the error."""
    try:
        job = source.load_job(master, list(lines))
    except HydraException as error:
        return type(error), str(error)
    return job and (repr(job.content), job.choices, job.overrides, job.moving)


ALONE = ["rank=3", "lr=[0.1,2]", "loss.scale=2", "device=null", "init=normal", "problem=synthetic"]


@pytest.mark.parametrize("more", [(), ("steps=5", "loss=huber", "record.steps=[1,2]", "+note=x")])
def test_a_job_without_its_config_is_as_with_it(loaders, more):
    loader, composer, master = loaders
    for line in (*ALONE, *ALONE):  # the second time from what is known of the first
        job = loaded(composer, master, [line, *more])
        assert job is not None
        assert job == loaded(Resolving(loader), master, [line, *more])


SEEDED = ("problem=synthetic", "problem.seed=${seed}")


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("replicates=3",),
        ("replicates=3", "seed=5"),
        ("replicates=3", "seed=5", "init.scale=2"),
    ],
)
def test_a_key_that_is_the_seed_needs_no_config(loaders, more):
    loader, composer, master = loaders
    for _ in range(2):
        job = loaded(composer, master, [*SEEDED, *more])
        assert job is not None
        assert job == loaded(Resolving(loader), master, [*SEEDED, *more])
    assert (job[3] == (("problem", "seed"),)) == (more != ())


def test_a_key_that_a_line_sets_does_not_move(loaders):
    """The number that it is set to may be the seed."""
    _, composer, master = loaders
    base = Composed(composer.load_sweep_config(master, list(SEEDED)))
    lines = [composer._line(text) for text in ("replicates=3", "seed=5", "problem.seed=5")]
    assert base.make_content(lines)["problem"]["seed"] == 5
    assert base.find_moving(lines) == ()
    assert base.find_moving(lines[:2]) == (("problem", "seed"),)


def test_what_refers_to_another_value_is_read_from_the_config(loaders):
    _, composer, master = loaders
    for line in ("lr=${rank}", "+note=${hydra:job.num}", "+note=${oc.env:HOME}", "rank=???"):
        assert composer.load_job(master, [line, "seed=3"]) is None
    assert composer.load_job(master, ["seed=3", "seed=4"]) is None


def test_a_job_has_the_types_that_a_config_of_ones_own_gives(loaders):
    loader, _, _ = loaders
    master = loader.load_configuration("typed", [], run_mode=RunMode.MULTIRUN)
    composer = Composer(loader)
    taken = 0
    values = ("1", "2.5", "x", "'3'", "null", "RED", "[1,2]", "true")
    for name in Typed.__dataclass_fields__:
        for value in values:
            lines = [f"{name}={value}", *(["lacking=5"] if name != "lacking" else [])]
            expected = loaded(Resolving(loader), master, lines)
            job = loaded(composer, master, lines)
            taken += job is not None
            if job is not None:
                assert job == expected
            assert composed(composer, master, lines) == composed(loader, master, lines)
    assert taken > 15
    assert composer.load_job(master, ["whole=3"]) is None  # lacking is still without a value


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
