"""What the README shows works as shown, and the reference is complete."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mfgd import config
from mfgd.point import Scalars

README = (Path(__file__).parents[1] / "README.md").read_text()
REFERENCE = (config.CONF / "README.md").read_text()
OWN = re.findall(r"```python\n(# (\w+\.py)\n(?s:.*?))```\n\n((?:    mfgd .*\n)+)", REFERENCE)
"""Code, file name and shell lines of each function of one's own in the reference."""
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_notebook_in_ten_lines_without_hydra_or_mlflow():
    (block,) = [block for block in BLOCKS if "init.notebook()" in block]
    code = f"""{block}
import sys
assert not {{'hydra', 'mlflow', 'omegaconf', 'pandas', 'matplotlib'}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    losses = re.findall(r"loss (\S+)", done.stdout)
    printed = [
        "1.8741",
        ".0223",
        ".0060",
        ".0028",
        ".0020",
        ".0017",
        ".0016",
        ".0015",
        ".0015",
        ".0014",
        ".0014",
    ]
    assert [float(loss) for loss in losses] == pytest.approx(
        [2.0110, *map(float, printed)], abs=1e-4
    )


def test_a_users_own_loss(here, tmp_path):
    (block,) = [block for block in BLOCKS if "def cauchy" in block]
    (tmp_path / "losses.py").write_text(block)
    (line,) = re.findall(r"^    mfgd (.*losses\.cauchy.*)$", README, re.MULTILINE)
    done = here(*line.split(), "steps=20", "tracking.figures=0", "workers=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("losses.cauchy") == 3


@pytest.mark.parametrize(("code", "name", "lines"), OWN, ids=[name for _, name, _ in OWN])
def test_own_function_of_every_group(here, tmp_path, code, name, lines):
    (tmp_path / name).write_text(code)
    for line in lines.splitlines():
        arguments = shlex.split(line)[1:]
        if not any(argument.startswith("tracking.") for argument in arguments):
            arguments.append(f"tracking.figures={'+figures' in line}".lower())
        done = here(*arguments, "steps=20", "workers=1")
        assert done.returncode == 0, done.stderr
        assert "error" not in done.stdout.replace("relative error", "")


def test_reference_shows_an_own_function_of_every_group():
    lines = "".join(lines for *_, lines in OWN)
    for group in (*config.GROUPS, "metrics", "figures"):
        assert re.search(rf"\+?{group}(\.\w+)?\._target_=", lines), group


def test_refusal_is_the_one_shown(here):
    line, message = re.search(r"\$ mfgd (.*)\n    (mfgd: .*)\n", README).groups()
    assert here(*line.split()).stderr == message + "\n"


@pytest.mark.parametrize("group", config.GROUPS)
def test_table_of_options_is_complete(group):
    (row,) = re.findall(rf"^\| `{group}` \| (.*?) \|", README, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", row)) == sorted(
        path.stem for path in (config.CONF / group).glob("*.yaml")
    )


def test_table_of_keys_is_complete():
    table = REFERENCE.split("## Top-level keys")[1].split("## What is tracked")[0]
    keys = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    maps = {"metrics", "figures"}
    assert sorted(set(keys) - maps) == sorted(set(Scalars.model_fields) - maps)


def test_readme_is_short():
    assert len(README.splitlines()) <= 150
