"""A tracked run as a film: D̂, the residual, the singular values and the modes, step by step.

A run keeps its factors at the end only. The film solves the run again from its config, and holds
the factors at the end against those that were tracked, bit for bit.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.animation import PillowWriter
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from mfgd import config, metrics
from mfgd.artifacts import Run
from mfgd.batch import Batch
from mfgd.component import GROUPS, option_keys
from mfgd.config import Component
from mfgd.given import load_problem
from mfgd.heatmaps import PIXELS, scale_about_0, scale_of
from mfgd.init import factor_names
from mfgd.kernel import flush_denormals
from mfgd.palette import VERMILLION, mode_colours
from mfgd.point import UNTOLD, UNTOLD_OF_OPTIONS, Point
from mfgd.record import Records, Row
from mfgd.target import Problem
from mfgd.types import Factors, Refused

FRAMES = 60
"""A film has at most so many frames, even over the records of the run."""
FPS = 8
"""Frames a second."""
DPI = 80
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>TITLE</title><style>
:root { color-scheme: light dark }
body { font: 15px sans-serif; margin: 1em auto; max-width: 60em; padding: 0 1em }
img { width: 100%; background: white }
div { display: flex; gap: 1em; align-items: center }
input { flex: 1 }
button { width: 5em }
output { min-width: 7em }
</style></head><body>
<img id="frame" alt="D̂, residual, singular values and modes of a run">
<div><button id="play">play</button>
<input id="slider" type="range" min="0" value="0" aria-label="frame">
<output id="step"></output></div>
<script>
const steps = STEPS, frames = PICTURES;
const [frame, play, slider, step] =
  ["frame", "play", "slider", "step"].map((id) => document.getElementById(id));
let timer = 0;
function show() {
  frame.src = "data:image/png;base64," + frames[slider.value];
  step.textContent = "step " + steps[slider.value];
}
function pause() { clearInterval(timer); timer = 0; play.textContent = "play"; }
function next() {
  if (+slider.value < frames.length - 1) slider.value = +slider.value + 1; else pause();
  show();
}
slider.max = frames.length - 1;
slider.oninput = () => { pause(); show(); };
play.onclick = () => {
  if (timer) return pause();
  if (+slider.value === frames.length - 1) slider.value = 0;
  timer = setInterval(next, 1000 / FPS);
  play.textContent = "pause";
  show();
};
show();
</script></body></html>
"""


def film(run: Run, file: Path) -> None:
    """Writes a tracked run as a film: a page with a slider (.html), or an animation (.gif).

    Args:
        run: as `mfgd.load_run` gives it. Functions of the user's own must be where a shell line
            may name them.
        file: the page is one file that needs no network.

    Raises:
        Refused: another suffix, the run cannot be solved again, or it ends elsewhere now.
    """
    writers = {".html": _write_page, ".gif": _write_animation}
    if file.suffix not in writers:
        raise Refused(f"--film={file}: allowed are names that end in .gif or .html")
    point = read_point(run.config)
    row = solve_again(run, point)
    writers[file.suffix](file, Screen(point, row, load_problem(point.problem)))


def read_point(saved: DictConfig) -> Point:
    """The point of a run's config.yaml, without what changes no factor.

    Raises:
        Refused: a function or a key of the config is no longer there.
    """
    absent = {"lr_ratio": 1.0, "symmetric": False, "resume": None}
    task = OmegaConf.create({**UNTOLD, **absent})
    task.merge_with(saved)
    if task.replicates > 1:
        raise Refused(f"replicates={task.replicates}: no film; allowed is a single run by its seed")
    for group, later in UNTOLD_OF_OPTIONS.items():
        name = task[group]["_target_"].removeprefix(f"mfgd.{group}.")
        for key in later.keys() & option_keys(group, name).keys():
            task[group].setdefault(key, later[key])
    task.diagnostics, task.metrics, task.figures = "basic", {}, {}
    task.tracking = {"_target_": "mfgd.tracking.memory", "experiment": "film"}
    job = {"runtime": {"choices": dict.fromkeys(GROUPS)}, "overrides": {"task": []}}
    return config.read(task, OmegaConf.create(job))


def solve_again(run: Run, point: Point) -> Row:
    """The row of a tracked run, with snapshots at up to `FRAMES` of its records.

    Raises:
        Refused: the factors at the end are not those of the run.
    """
    steps = run.trajectory["step"].to_numpy()
    chosen = np.linspace(0, len(steps) - 1, min(FRAMES, len(steps))).round().astype(int)
    snapshots = frozenset(steps[chosen].tolist())
    recorded: Callable[[int], Records] = point.record()

    def record() -> Callable[[int], Records]:
        return lambda budget: Records(recorded(budget).steps, snapshots)

    filmed = replace(point, record=Component("film", "film", record, ()))
    threads = torch.get_num_threads()
    # The last bits of a large problem depend on the threads: one in a sweep, all for a run alone.
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        try:
            with flush_denormals():  # as in the process that solved the run
                (row,) = Batch([filmed]).solve()
        finally:
            torch.set_num_threads(threads)
        if _ends_like(row, run):
            return row
    reason = "ends elsewhere on this machine, or with this mfgd, D or function of your own"
    raise Refused(f"--film: the run solved again {reason}")


def _ends_like(row: Row, run: Run) -> bool:
    """Whether a row has the factors of a tracked run, bit for bit."""
    names = factor_names(len(row.factors))
    return all(
        torch.equal(W.nan_to_num(), run.matrices[name].nan_to_num())
        for name, W in zip(names, row.factors, strict=True)
    )


class Screen:
    """What a film shows: a figure that goes from snapshot to snapshot of a run.

    Every frame has the scales of D: D̂ as `plots.matrices` draws it, the residual from −max |D| to
    max |D|.
    """

    def __init__(self, point: Point, row: Row, problem: Problem) -> None:
        self.row, self.problem = row, problem
        self.name = f"rank {point.rank}, lr {', '.join(f'{lr:g}' for lr in point.lr)}"
        self.figure = Figure(figsize=(9, 7.4), layout="constrained", dpi=DPI)
        (estimate, residual), (spectrum, path) = self.figure.subplots(2, 2)
        drawn, self.pictured = problem.pictured
        D, *_ = self.pictured.picture(row.factors, PIXELS)
        self.maps = []
        for axes, name, scale in (
            (estimate, "D̂", scale_of(D)),
            (residual, f"D̂ − {drawn}", scale_about_0(D)),
        ):
            image = axes.imshow(D, aspect="auto", interpolation="nearest", **scale)
            axes.set_facecolor("0.8")
            axes.set(title=name, xticks=[], yticks=[])
            self.figure.colorbar(image, ax=axes)
            self.maps.append(image)
        self._draw_spectrum(spectrum)
        self._draw_path(path)
        self.figure.suptitle(self.name)
        # To arrange the figure anew in every frame would take as long as to draw it.
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")

    @property
    def steps(self) -> list[int]:
        """The step of each frame."""
        return [step for step, _ in self.row.snapshots]

    def frames(self) -> Iterator[Figure]:
        """The figure at each snapshot."""
        for i, (step, factors) in enumerate(self.row.snapshots):
            self.figure.suptitle(f"{self.name}: step {step}")
            _, *pictures = self.pictured.picture(factors, PIXELS)
            for image, X in zip(self.maps, pictures, strict=True):
                low, high = image.get_clim()
                image.set_data(np.clip(np.where(np.isfinite(X), X, np.nan), low, high))
            self.now.set_xdata([step, step])
            for line, dot, values in self.paths:
                line.set_data(values[: i + 1].T)
                dot.set_data(values[i : i + 1].T)
            yield self.figure

    def _draw_spectrum(self, axes: Any) -> None:
        found = self.row.trajectory
        names = [name for name in found if name.startswith("sigma.")]
        for name, colour in zip(names, mode_colours(len(names)), strict=True):
            shown = np.isfinite(found[name]) & (found[name] > 0)
            label = name.replace("sigma.", "σ")
            axes.plot(found["step"][shown], found[name][shown], color=colour, label=label)
        self.now = axes.axvline(0, color=VERMILLION, linewidth=1)
        axes.set_xscale("symlog", linthresh=1)
        axes.set(xlim=(0, None), yscale="log", xlabel="step", title="singular values of D̂")
        axes.legend(fontsize=8)

    def _draw_path(self, axes: Any) -> None:
        """Modes 2, 3 … over mode 1, if there are two to four; × of the target."""
        self.paths: list[tuple[Any, Any, np.ndarray]] = []
        target = self.problem.reference
        count = 0
        if target is not None:
            count = min(self.row.factors[0].shape[-1], int((target.sigma > 0).sum()))
        if target is None or not 2 <= count <= 4:
            axes.remove()
            return
        goal = target.sigma[:count].tolist()
        passed = self._measure_modes(count)
        for i, colour in zip(range(1, count), mode_colours(count - 1), strict=True):
            values = passed[:, [0, i]]
            axes.plot(*values.T, color=colour, alpha=0.25)
            (line,) = axes.plot([], [], color=colour, label=f"mode {i + 1}")
            (dot,) = axes.plot([], [], "o", color=colour)
            axes.plot(goal[0], goal[i], "x", color=colour, markersize=9)
            self.paths.append((line, dot, values))
        axes.set(xlabel="mode 1", title="modes $u_i^T \\hat{D} v_i$ (× of the target)")
        axes.set_ylabel("mode 2" if count == 2 else "modes 2, 3 …")
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)

    def _measure_modes(self, count: int) -> np.ndarray:
        """The modes at each snapshot, (frames, count); NaN if they are not finite."""
        assert self.problem.reference is not None
        target = type(self.problem.reference)(
            *(X[..., :count].to(torch.float64) for X in self.problem.reference)
        )
        passed = [
            metrics.modes(_in_double(factors), target).numpy() for _, factors in self.row.snapshots
        ]
        values = np.stack(passed)
        return np.where(np.isfinite(values), values, np.nan)


def _in_double(factors: Factors) -> Factors:
    return tuple(W.to(torch.float64) for W in factors)


def _write_animation(file: Path, screen: Screen) -> None:
    writer = PillowWriter(fps=FPS)
    with writer.saving(screen.figure, str(file), DPI):
        for _ in screen.frames():
            writer.grab_frame()


def _write_page(file: Path, screen: Screen) -> None:
    pictures = []
    for figure in screen.frames():
        content = io.BytesIO()
        figure.savefig(content, format="png")
        pictures.append(base64.b64encode(content.getvalue()).decode())
    page = PAGE.replace("TITLE", screen.name).replace("FPS", str(FPS))
    page = page.replace("STEPS", json.dumps(screen.steps)).replace("PICTURES", json.dumps(pictures))
    file.write_text(page, encoding="utf-8")
