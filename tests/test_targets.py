"""What a config may name, and that nothing runs that it may not name."""

import os
import subprocess
import sys
from importlib import metadata

import pytest
from conftest import UNMEASURED, mfgd
from omegaconf import OmegaConf
from test_config import composed
from test_film import tracked

from mfgd import film, targets
from mfgd.types import Refused

REFUSED = (
    "os.system",
    "os:system",
    "subprocess.run",
    "builtins.eval",
    "posix.system",
    "importlib.import_module",
    "mlflow.projects.run",
    "mfgd.__main__.main",
    "mfgd.tracking.attach",
    "mfgd.loss.torch.hub.load",
    "mfgd.plots.figures",
    "hydra_plugins.mfgd_launcher._make_folder",
    "hydra.utils.instantiate",
    "experiments.__main__.main",
    "elsewhere.touch",
    "elsewhere",
    "losses.__builtins__.eval",
    "losses..cauchy",
    "losses/cauchy.f",
    "nowhere.cauchy",
    "",
    "3",
    "[os.system]",
    "null",
)
LOSSES = """
import os
import pathlib
from functools import partial

import torch
from mfgd.loss import residual_loss
from mypackage import Maker as Other, cauchy


def make(*, width, **objective):
    return residual_loss(lambda r: torch.log1p((r / width) ** 2), **objective)


bound = partial(make, width=2.0)
plain = lambda *, width, **objective: make(width=width, **objective)


class Maker:
    @staticmethod
    def cauchy(*, width, **objective):
        return make(width=width, **objective)

    def __call__(self, *, width: float, **objective):
        return make(width=width, **objective)


made = Maker()
"""
PACKAGE = """
import torch
from mfgd.loss import residual_loss


def cauchy(*, width, **objective):
    return residual_loss(lambda r: torch.log1p((r / width) ** 2), **objective)


class Maker:
    make = staticmethod(cauchy)
"""
CANARY = "open({file!r}, 'w').close()\n\n\ndef touch(*, command=''):\n    open({file!r}, 'w')\n"


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """The file that appears if a module is imported that nobody allowed; the module is importable,
    and beside it is a package that is allowed."""
    folder = tmp_path / "away"
    (folder / "mypackage").mkdir(parents=True)
    (folder / "elsewhere.py").write_text(CANARY.format(file=str(folder / "sung")))
    (folder / "mypackage" / "__init__.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(folder)
    return folder / "sung"


def forbid_calls(monkeypatch):
    """Has the functions fail that a hostile config would call."""

    def refuse(*given, **named):
        raise AssertionError("called")

    for module, name in ((os, "system"), (subprocess, "run")):
        monkeypatch.setattr(module, name, refuse)


def assert_refused(done, canary, variable="MFGD_TARGETS"):
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert variable in done.stderr
    assert not canary.exists()
    assert not {"elsewhere", "nowhere"} & set(sys.modules)


@pytest.mark.parametrize("target", REFUSED)
def test_a_target_of_the_shell_line_is_refused(here, canary, monkeypatch, target):
    forbid_calls(monkeypatch)
    written = target if target not in ("", "3") else f'"{target}"'
    done = here(f"problem._target_={written}", f"+problem.command=touch {canary}")
    assert_refused(done, canary)
    assert done.stderr.startswith("mfgd: problem._target_=")


@pytest.mark.parametrize("target", REFUSED)
def test_a_target_of_a_file_is_refused(here, canary, monkeypatch, tmp_path, target):
    forbid_calls(monkeypatch)
    for group, head in (("problem", ""), ("experiment", "# @package _global_\nproblem:\n  ")):
        (tmp_path / "conf2" / group).mkdir(parents=True)
        text = f"{head}_target_: {target}\n"
        (tmp_path / "conf2" / group / "own.yaml").write_text(text)
        assert_refused(here("--config-dir=conf2", f"{group}=own"), canary)


@pytest.mark.parametrize("kind", ["metrics", "figures", "tracking", "init", "record"])
def test_every_kind_of_function_is_checked(here, canary, kind):
    key = f"+{kind}.own" if kind in ("metrics", "figures") else kind
    assert_refused(here(f"{key}._target_=elsewhere.touch"), canary)


def test_a_file_cannot_allow_itself(here, canary, tmp_path):
    (tmp_path / "conf2" / "problem").mkdir(parents=True)
    text = "_target_: elsewhere.touch\nMFGD_TARGETS: elsewhere\n"
    (tmp_path / "conf2" / "problem" / "own.yaml").write_text(text)
    line = ("--config-dir=conf2", "problem=own", "+hydra.job.env_set.MFGD_TARGETS=elsewhere")
    assert_refused(here(*line), canary)


def run_own(here, target, *more):
    line = ("loss.scale=2", "steps=3", "tracking=memory", *more)
    done = here(f"loss._target_={target}", *line)
    assert (done.returncode, done.stderr) == (0, "")
    ((point, row),) = here.session.tracker.runs
    assert point.loss.target == target
    return row.trajectory["loss"].tolist()


def test_what_a_users_module_defines_or_imports_by_name_is_allowed(here, canary, tmp_path):
    (tmp_path / "losses.py").write_text(LOSSES)
    (tmp_path / "own" / "deep").mkdir(parents=True)
    (tmp_path / "own" / "deep" / "losses.py").write_text(LOSSES)
    width = "+loss.width=2.0"
    expected = run_own(here, "losses.make", width)
    for target in (
        "losses.plain",
        "losses:plain",
        "losses.cauchy",
        "losses.Maker.cauchy",
        "losses.made",
        "own.deep.losses.make",
        "own.deep.losses:Maker.cauchy",
    ):
        assert run_own(here, target, width) == expected
    assert run_own(here, "losses.bound") == expected
    assert not canary.exists()


@pytest.mark.parametrize(
    "path", ["os.system", "pathlib.Path.cwd", "torch.hub.load", "Other.make", "make.mro"]
)
def test_no_path_leads_out_of_a_users_module(here, canary, monkeypatch, tmp_path, path):
    forbid_calls(monkeypatch)
    (tmp_path / "losses.py").write_text(LOSSES)
    done = here(f"loss._target_=losses.{path}", f"+loss.command=touch {canary}")
    assert_refused(done, canary)
    first = path.partition(".")[0]
    assert f"losses.{first} is no module or class of losses" in done.stderr


def test_a_name_that_is_not_there_is_refused(here, tmp_path):
    (tmp_path / "losses.py").write_text("")
    done = here("loss._target_=losses.cauchy")
    said = (
        "loss._target_=losses.cauchy: losses has no cauchy; must be the dotted path of a function"
    )
    assert done.stderr == f"mfgd: {said}\n"


def test_the_variable_allows_modules_functions_and_what_is_below_them(here, canary, monkeypatch):
    width = "+loss.width=2.0"
    assert_refused(here("loss._target_=mypackage.cauchy", width), canary)
    monkeypatch.setattr(targets, "NAMED", "mypack,mypackage.cauchy.x,mypackage2")
    assert_refused(here("loss._target_=mypackage.cauchy", width), canary)
    for value in ("mypackage", "other, mypackage.cauchy ,"):
        monkeypatch.setattr(targets, "NAMED", value)
        run_own(here, "mypackage.cauchy", width)
    assert_refused(here("loss._target_=mypackage.Maker.make", width), canary)
    monkeypatch.setattr(targets, "NAMED", "mypackage")
    run_own(here, "mypackage.Maker.make", width)
    done = here("loss._target_=mypackage.torch.hub.load", width)
    assert_refused(done, canary)


def test_an_installed_package_offers_what_its_entry_points_name(here, canary, monkeypatch):
    folder = canary.parent / "mypackage-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: mypackage\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[mfgd]\nany = mypackage:cauchy\n")
    assert [point.name for point in metadata.entry_points(group="mfgd")] == ["any"]
    monkeypatch.setattr(targets, "NAMED", "")
    run_own(here, "mypackage.cauchy", "+loss.width=2.0")
    assert_refused(here("loss._target_=mypackage.Maker.make", "+loss.width=2.0"), canary)


@pytest.mark.parametrize("name", ["random", "mypackage", "yaml"])
def test_a_module_that_is_hidden_says_so(here, canary, tmp_path, name):
    text = CANARY.format(file=str(canary))
    (tmp_path / f"{name}.py").write_text(text)
    done = here(f"problem._target_={name}.touch")
    assert_refused(done, canary)
    assert f"{name} of the working directory is hidden by another module" in done.stderr


def test_a_film_names_nothing_else(tmp_path, canary):
    run = tracked(tmp_path)
    OmegaConf.update(run.config, "loss._target_", "elsewhere.touch")
    with pytest.raises(Refused, match="MFGD_TARGETS"):
        film.film(run, tmp_path / "run.html")
    assert not canary.exists()


def test_experiments_of_the_checkout_are_allowed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(targets, "NAMED", "")
    assert composed("experiment=saxe2014").init.target == "experiments.saxe2014.along_modes"


HIDING = ("random", "requests", "yaml", "sqlite3", "scipy", "socket", "selectors")
"""Modules of Python and of dependencies that mfgd imports, here or in its workers."""


@pytest.mark.slow
def test_files_beside_the_data_stand_in_for_no_module(tmp_path):
    """As `python -m mfgd`, in several processes, and with a function of the user's own."""
    for name in HIDING:
        text = CANARY.format(file=str(tmp_path / f"{name}.sung"))
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "losses.py").write_text(PACKAGE)
    own = ("loss._target_=losses.cauchy", "+loss.width=1.0")
    line = ("--multirun", *own, "seed=0,1", "batch_bytes=1", "workers=2", "steps=3")
    done = mfgd(*line, "tracking.figures=0", cwd=tmp_path, env=UNMEASURED)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("budget") == 2
    assert not list(tmp_path.glob("*.sung"))
