"""What is tracked of a run can be used again: its shell line, its commit, its options."""

import shlex
import subprocess

import mlflow
import numpy as np
import pytest
from test_config import composed

import mfgd as package
from mfgd.tracked import find_commit, format_params

LOSSES = """
import torch
from mfgd.loss import residual_loss


def cauchy(*, width, scale, reduction, penalty):
    value = lambda r: torch.log1p((r / width) ** 2)
    return residual_loss(value, scale=scale, reduction=reduction, penalty=penalty)
"""
OPTION = "_target_: losses.cauchy\nwidth: 0.5\nscale: 1.0\nreduction: sum\npenalty: 0.0\n"


@pytest.fixture
def own(tmp_path):
    """A loss of one's own, as an option in a folder of configs."""
    (tmp_path / "losses.py").write_text(LOSSES)
    (tmp_path / "my conf" / "loss").mkdir(parents=True)
    (tmp_path / "my conf" / "loss" / "wide.yaml").write_text(OPTION)
    return tmp_path


def tracked() -> dict:
    return package.load_runs(experiment="it's mine; all of it").iloc[0].to_dict()


def test_a_shell_line_can_be_pasted_and_runs_the_same(here, own, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{own}/mlflow.db")
    name = """tracking.experiment="it's mine; all of it\""""
    line = ("--config-dir", "my conf", "loss=wide", "lr=[0.1,0.01]", "steps=2", name)
    assert here(*line, "tracking.figures=0").returncode == 0
    first = tracked()
    pasted = f"printf '%s\\n' {first['tags.overrides']}"
    said = subprocess.run(["sh", "-c", pasted], capture_output=True, text=True, check=True)
    arguments = said.stdout.splitlines()
    assert arguments[2:] == ["loss=wide", "lr=[0.1,0.01]", "steps=2", name, "tracking.figures=0"]
    assert here(*arguments).returncode == 0
    again = tracked()
    assert again["run_id"] != first["run_id"]
    assert again["tags.fingerprint"] == first["tags.fingerprint"]
    # The reference says how params look to MLflow's filter.
    looks = (
        'params.loss = "wide" and params.lr = "[0.1, 0.01]" and params.`init.scale` = "1.0" and '
        'params.tolerance = "0.0" and params.`optimizer.alternating` = "False"'
    )
    assert len(mlflow.search_runs(search_all_experiments=True, filter_string=looks)) == 2


def test_a_sweep_can_be_pasted_too(here, own):
    line = ("-m", "rank=1,2", "steps=2", "lr=[0.1],[0.2]", "tracking.figures=0", "workers=1")
    assert here(*line).returncode == 0
    runs = package.load_runs()
    (parent,) = runs.loc[runs["parent"].isna(), "tags.overrides"]
    assert shlex.split(parent) == list(line)


def git(*arguments, cwd) -> str:
    user = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    done = subprocess.run(
        ["git", *user, *arguments], cwd=cwd, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_commit_is_that_of_the_code_that_ran(here, own):
    def run(loss):
        find_commit.cache_clear()
        line = (f"loss._target_={loss}", "steps=2", "tracking=memory", "+loss.width=1.0")
        if loss == "mfgd.loss.squared":
            line = line[:-1]
        assert here(*line).returncode == 0
        ((line, *_),) = [here.session.tracker.finish("FINISHED", [], []).to_dict("records")]
        return line.get("tags.git_commit.own")

    assert run("losses.cauchy") == "unknown"  # in no repository
    git("init", cwd=own)
    (own / ".gitignore").write_text("*.py\n")
    git("add", ".gitignore", cwd=own)
    git("commit", "-m", "none of it", cwd=own)
    assert run("losses.cauchy") == "unknown"  # in a repository, as an environment may be
    git("add", "-f", "losses.py", cwd=own)
    git("commit", "-m", "the loss", cwd=own)
    commit = git("rev-parse", "HEAD", cwd=own)
    assert run("losses.cauchy") == commit
    assert run("mfgd.loss.squared") is None
    (own / "losses.py").write_text(LOSSES + "\n")
    assert run("losses.cauchy") == f"{commit}-dirty"


def test_params_tell_the_rank_and_the_condition_of_a_spectrum():
    point = composed("problem=synthetic", "problem.spectrum=[0.5,3,1,2]", "problem.noise=0")
    given = point.problem()
    D = given.D.numpy()
    params = format_params(point, given)
    assert int(params["problem.rank"]) == np.linalg.matrix_rank(D) == 4
    sigma = np.linalg.svd(D, compute_uv=False)
    assert float(params["problem.condition"]) == pytest.approx(sigma[0] / sigma[3], rel=1e-12)
    plain = composed("problem=synthetic", "problem.condition=3")
    told = format_params(plain, plain.problem())
    assert (told["problem.rank"], told["problem.condition"]) == ("5", "3.0")


def test_a_package_with_a_file_in_no_commit_is_dirty(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    git("init", cwd=tmp_path)
    git("add", "package", cwd=tmp_path)
    git("commit", "-m", "first", cwd=tmp_path)
    commit = git("rev-parse", "HEAD", cwd=tmp_path)
    (tmp_path / "mlflow.db").touch()  # an output is no code
    assert find_commit(package) == commit
    find_commit.cache_clear()
    (package / "new.py").touch()
    assert find_commit(package) == f"{commit}-dirty"
