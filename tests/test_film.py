"""A tracked run as a film."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from cases import solve
from omegaconf import OmegaConf
from PIL import Image
from test_config import composed

from mfgd import artifacts, film
from mfgd.given import load_problem
from mfgd.types import Refused

LINE = (
    "problem=synthetic",
    "problem.n=8",
    "problem.m=6",
    "problem.rank=2",
    "lr=0.3",
    "loss.scale=0.5",
    "init.scale=0.01",
    "steps=100",
    "record.points=6",
)


def tracked(folder, *overrides: str) -> artifacts.Run:
    """A run of its own batch, written and read back."""
    point = composed(*LINE, *overrides)
    (row,) = solve([point])
    artifacts.write_config(folder, point)
    artifacts.write_row(folder, row, load_problem(point.problem))
    return artifacts.read_run(folder)


def test_animation_has_a_frame_for_each_record(tmp_path):
    run = tracked(tmp_path)
    film.film(run, tmp_path / "run.gif")
    with Image.open(tmp_path / "run.gif") as animation:
        assert animation.n_frames == len(run.trajectory)


def test_page_needs_no_network(tmp_path):
    run = tracked(tmp_path)
    film.film(run, tmp_path / "run.html")
    page = (tmp_path / "run.html").read_text()
    assert "http" not in page
    steps = re.search(r"const steps = \[([\d, ]+)\]", page)[1]
    assert steps == ", ".join(map(str, run.trajectory["step"]))
    pictures = re.findall(r'"(iVBOR[^"]+)"', page)
    assert len(pictures) == len(run.trajectory)
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as frame:
            assert frame.width > 500


def test_a_film_is_short(tmp_path, monkeypatch):
    run = tracked(tmp_path, "steps=30", "record.points=1000")
    monkeypatch.setattr(film, "FRAMES", 4)
    row = film.solve_again(run, film.read_point(run.config))
    assert [step for step, _ in row.snapshots] == [0, 10, 20, 30]


@pytest.mark.parametrize(
    "overrides",
    [
        ("patience=5", "diagnostics=full"),
        ("depth=3", "optimizer=momentum", "schedule=cosine"),
        ("lr=[0.1,0.2]", "loss=huber", "dtype=float32", "problem.observed=0.7"),
        ("lr=1e5",),
        ("problem.m=20", "problem.n=20", "problem.symmetric=true", "symmetric=true"),
        ("tolerance=1e-3", "optimizer=als"),
    ],
)
def test_a_run_is_solved_again_as_it_was(tmp_path, overrides):
    run = tracked(tmp_path, *overrides)
    row = film.solve_again(run, film.read_point(run.config))
    np.testing.assert_array_equal(row.trajectory["loss"], run.trajectory["loss"])


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_path_in_mode_space_is_that_of_the_run(tmp_path, rank):
    run = tracked(tmp_path, f"rank={rank}", "problem.rank=3", "diagnostics=dynamics")
    point = film.read_point(run.config)
    row = film.solve_again(run, point)
    screen = film.Screen(point, row, load_problem(point.problem))
    for _ in screen.frames():
        pass
    assert len(screen.paths) == rank - 1
    for i, (line, _, _) in enumerate(screen.paths, 2):
        np.testing.assert_allclose(line.get_xdata(), run.trajectory["mode.1"], rtol=1e-9)
        np.testing.assert_allclose(line.get_ydata(), run.trajectory[f"mode.{i}"], rtol=1e-9)


def test_a_run_that_ends_elsewhere_is_refused(tmp_path):
    run = tracked(tmp_path)
    C = run.matrices["C"]
    run.matrices["C"] = torch.nextafter(C, C + 1)
    with pytest.raises(Refused, match=r"^--film: the run solved again ends elsewhere"):
        film.film(run, tmp_path / "run.gif")


def test_a_run_whose_function_is_gone_is_refused(tmp_path):
    run = tracked(tmp_path)
    OmegaConf.update(run.config, "loss._target_", "gone.cauchy")
    with pytest.raises(Refused, match=r"^loss\._target_=gone\.cauchy: ") as refused:
        film.film(run, tmp_path / "run.html")
    assert "\n" not in str(refused.value)


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"run\.mp4: allowed are names that end in \.gif or \.html$"):
        film.film(tracked(tmp_path), tmp_path / "run.mp4")


def test_a_config_without_a_later_key_has_its_usual_value():
    point = composed("init=normal", "init.scale=0.5")
    saved = OmegaConf.create(point.resolved)
    del saved.init["ratio"]
    assert film.read_point(saved).init.arguments == {"scale": 0.5, "ratio": 1.0}
