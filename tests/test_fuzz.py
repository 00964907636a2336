"""Shell lines and YAML files end with a result, or are refused in one line; nothing that they name
is executed unless it is an option."""

import shlex

import pytest
from fuzzing import CANARY, NUMBERS, TEXTS, broken, cases, harmless
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mfgd import capacity
from mfgd.component import CONF, GROUPS, list_options
from mfgd.point import Scalars

TINY = ("tracking=memory", "steps=3")


def list_keys() -> list[str]:
    """Every key and group of the config, and some that are none."""
    keys = [*Scalars.model_fields, *GROUPS, "experiment", "metrics", "figures", "nothing"]
    for group in GROUPS:
        for option in list_options(group):
            keys += [f"{group}.{key}" for key in OmegaConf.load(CONF / group / f"{option}.yaml")]
        keys += [f"{group}.nothing", f"{group}._args_"]
    keys += ["metrics.a._target_", "figures.b._target_", "metrics.a", "hydra.nothing"]
    keys += ["hydra.job.name", "hydra/launcher", "hydra.sweeper.max_batch_size", "hydra.verbose"]
    keys += ["hydra.sweeper._target_", "hydra.launcher._target_", "hydra.sweeper.params"]
    keys += ["problem@nothing", "loss@init", "a.b.c", "hydra.mode"]
    return sorted({key for key in keys if not key.startswith("tracking")})


KEYS = list_keys()
OPTIONS = sorted({option for group in GROUPS for option in list_options(group)} - {"store"})
VALUES = st.sampled_from([*NUMBERS, *TEXTS]) | st.sampled_from([*NUMBERS, *OPTIONS])


@st.composite
def arguments(draw: st.DrawFn) -> str:
    """One argument of a shell line."""
    key = draw(st.sampled_from(KEYS))
    sign = draw(st.sampled_from(["", "", "", "+", "++", "~"]))
    if draw(st.integers(0, 15)) == 0:
        key = draw(broken(key.encode())).decode(errors="replace")
    value = draw(VALUES)
    quote = draw(st.sampled_from(["", "", "", "'", '"']))
    return f"{sign}{key}={quote}{value}{quote}".replace("\0", "")


LINES = st.lists(arguments(), min_size=1, max_size=3)


@pytest.fixture
def command(here, tmp_path, monkeypatch):
    """Runs a shell line and fails if it ends in another way than it may."""
    monkeypatch.setattr(capacity, "free_memory", lambda: 3e8)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*line: str) -> None:
        with harmless(tmp_path):
            done = here(*line)
        said = f"{shlex.join(line)}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr, said
        assert done.returncode in (0, 2), said
        lines = [text for text in done.stderr.splitlines() if text.strip() and "run/s" not in text]
        assert all(text.startswith("mfgd: ") for text in lines), said
        if done.returncode == 2:
            assert len(lines) == 1, said

    return run


@pytest.mark.slow
@cases(90)
@given(line=LINES, sweeps=st.booleans())
def test_shell_lines_end_with_a_result_or_are_refused(line, sweeps, command):
    command(*["--multirun"] * sweeps, *line, *TINY)


LOSS = """_target_: mfgd.loss.squared
scale: 0.5
reduction: sum
penalty: 0.0
"""
EXPERIMENT = """# @package _global_
defaults:
  - override /loss: huber
  - _self_
rank: 2
lr: 1e-3
seed: 1
hydra:
  sweeper:
    params:
      rank: 1,2
"""
PLANTED = (
    LOSS.replace("mfgd.loss.squared", "os.mkdir\npath: canary"),
    LOSS.replace("mfgd.loss.squared", "!!python/object/apply:os.mkdir [canary]"),
    f"{LOSS}_convert_: all\n_args_: [{CANARY}]\n",
    LOSS.replace("squared", "torch.os.mkdir"),
)


@cases(40)
@given(text=st.sampled_from([LOSS, *PLANTED]).flatmap(lambda text: broken(text.encode())))
def test_option_files_end_with_a_result_or_are_refused(text, command, tmp_path):
    (tmp_path / "own" / "loss").mkdir(parents=True, exist_ok=True)
    (tmp_path / "own" / "loss" / "mine.yaml").write_bytes(text)
    command("--config-dir", str(tmp_path / "own"), "loss=mine", *TINY)


@pytest.mark.slow
@cases(40)
@given(text=broken(EXPERIMENT.encode()), sweeps=st.booleans())
def test_experiment_files_end_with_a_result_or_are_refused(text, sweeps, command, tmp_path):
    (tmp_path / "own" / "experiment").mkdir(parents=True, exist_ok=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_bytes(text)
    flags = ["--multirun"] * sweeps
    command(*flags, "--config-dir", str(tmp_path / "own"), "experiment=mine", *TINY)
