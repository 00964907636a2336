"""How many runs a sweep has, known before they are listed."""

import re
import time

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

import mfgd
from mfgd import capacity, sweep_size

COUNTED = (
    "range(10)",
    "range(3,3)",
    "range(0,1,0.1)",
    "range(1,10,-1)",
    "range(10,1,-3)",
    "range(0.5,-0.5,-0.3)",
    "sort(range(2,9,3))",
    "shuffle(range(7))",
    "1,2,3",
    "choice(a,b)",
)


@pytest.mark.parametrize("text", COUNTED)
def test_values_are_counted_as_hydra_lists_them(text):
    override = OverridesParser.create().parse_override(f"key={text}")
    assert sweep_size.count_values(override) == len(list(override.sweep_iterator()))


VAST = {
    "seed=range(1000000000)": "1,000,000,000 runs take 1.7 TB",
    "seed=shuffle(range(1000000000))": "1,000,000,000 runs take 1.7 TB",
    "seed=range(100000) lr=range(0,1,1e-5)": "10,000,000,000 runs take 17 TB",
    "loss=glob([h*,s*]) seed=range(0,1000000000)": "2,000,000,000 runs take 3.4 TB",
    "seed=range(0,inf)": "inf runs take inf TB",
    "rank=range(0) seed=range(1000000000)": "1,000,000,000 runs take 1.7 TB",
    "tracking.experiment=range(1000000000)": "1,000,000,000 runs take 1.7 TB",
    "hydra/launcher=basic seed=range(1000000000)": "1,000,000,000 runs take 1.7 TB",
    "hydra/sweeper=frontier seed=range(1000000000)": "1,000,000,000 runs take 1.7 TB",
    "hydra.sweeper.max_batch_size=9 seed=range(1000000000)": "1,000,000,000 runs take 1.7 TB",
    "zip.seed=range(500000000) zip.lr=1,2 rank=1,2": "1,000,000,000 runs take 1.7 TB",
}


@pytest.mark.parametrize("line", VAST)
def test_a_sweep_that_cannot_fit_is_refused_before_it_is_listed(here, line, monkeypatch):
    monkeypatch.setattr(capacity, "free_memory", lambda: 6e9)
    start = time.perf_counter()
    done = here("--multirun", *line.split())
    assert time.perf_counter() - start < 10
    assert (done.returncode, done.stdout) == (2, "")
    (said,) = done.stderr.splitlines()
    swept = re.sub(r"^hydra\S* ", "", line)
    assert said == (
        f"mfgd: {swept}: {VAST[line]}; this machine has 6 GB free; allowed are fewer runs"
    )


def test_a_sweep_of_a_config_is_counted_too(here, tmp_path):
    text = "# @package _global_\nhydra: {sweeper: {params: {seed: 'range(1000000000)'}}}\n"
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "vast.yaml").write_text(text)
    done = here("--config-dir", str(tmp_path), "--multirun", "experiment=vast", "rank=1,2")
    assert done.returncode == 2
    assert "seed=range(1000000000) rank=1,2: 2,000,000,000 runs take 3.4 TB" in done.stderr


def test_a_sweep_that_just_fits_goes_on_without_a_word(here, monkeypatch):
    monkeypatch.setattr(sweep_size, "POINT", 1e9)
    monkeypatch.setattr(capacity, "free_memory", lambda: 4e9)
    line = ("--multirun", "steps=2", "rank=1,2", "tracking=memory")
    done = here(*line, "seed=range(2)")
    assert (done.returncode, len(here.session.finished)) == (0, 4)
    assert "GB" not in done.stderr
    done = here(*line, "seed=range(3)")
    assert (done.returncode, here.session.finished) == (2, [])


DRAWN = {
    "hydra.sweeper.max_batch_size=2 rank=1,2,3": 3,
    "hydra/launcher=basic rank=1,2,3": 3,
    "zip.rank=1,2,3 zip.lr=0.1,0.2,0.3": 3,
    "hydra.output_subdir=. rank=1,2,3": 3,
    "hydra/sweeper=optuna rank=1,2,3 hydra.sweeper.n_trials=4 hydra.sweeper.batch=2": 4,
    "hydra/sweeper=frontier rank=interval(1,3) lr=0.1,0.2": 6,
}


@pytest.mark.parametrize("line", DRAWN)
def test_all_lots_of_a_sweep_are_drawn_or_none(here, tmp_path, line):
    if "optuna" in line:
        pytest.importorskip("optuna")
    common: tuple[str, ...] = ("steps=2", "workers=1")
    if "frontier" in line:
        common += ("hydra.sweeper.success='final_loss > 1e9 or rank == 1'",)
    for figures, expected in ((DRAWN[line] - 1, 0), (DRAWN[line], DRAWN[line])):
        name = f"experiment{figures}"
        given = (f"tracking.figures={figures}", f"tracking.experiment={name}")
        assert here("--multirun", *line.split(), *common, *given).returncode == 0
        runs = mfgd.load_runs(experiment=name).dropna(subset="parent")
        assert len(runs) == DRAWN[line]
        drawn = [file.parts[-4] for file in tmp_path.glob("mlartifacts/*/*/artifacts/figures/*")]
        assert len(set(drawn) & set(runs["run_id"])) == expected
