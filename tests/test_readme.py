"""What the README shows works as shown."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mfgd import config

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_notebook_in_ten_lines_without_hydra_or_mlflow():
    (block,) = [block for block in BLOCKS if "init.notebook()" in block]
    code = (
        block
        + "import sys\nassert not {'hydra', 'mlflow', 'omegaconf', 'pandas', 'matplotlib'} & set(sys.modules)\n"
    )
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
    table = README.split("and at the top level")[1].split("`loss=squared` is")[0]
    keys = [
        key
        for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        for key in re.findall(r"`(\w+)`", row)
    ]
    assert sorted(keys) == sorted(config.Scalars.model_fields)
