"""Cohen, Kaur, Li, Kolter, Talwalkar 2021, Gradient descent on neural networks typically occurs at
the edge of stability.

Gradient descent converges exactly where the sharpness stays below 2/lr: at the flattest minimum,
for lr σ₁ < 1.

At a minimum CF = D the largest eigenvalue of the Hessian of ½‖D − CF‖² is σ₁(C)² + σ₁(F)². It is
smallest, 2 σ₁(D), if the factors are balanced (Mulayoff, Michaeli 2020, Unique properties of flat
minima in deep networks).

Starts: the balanced optimum with noise on each entry of the factors. Noise of 1e-3 also unbalances
the factors, and descent ends beside the flattest minimum (9e-6 above 2 σ₁); from noise of 1e-6
descent ends in the flattest minimum.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas
import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments import THEORY, Claim, between, loaded, over_steps
from mfgd.init import Init, normal, spectral
from mfgd.palette import mode_colours
from mfgd.problem import Problem
from mfgd.types import Factors, Positive

SWEEPS = {"edge_of_stability": ("steps=3000", "lr=0.99,1.01,1.3", "record.points=12")}


def beside_the_optimum(*, scale: Positive) -> Init:
    """The balanced optimum plus Gaussian noise of standard deviation ``scale``.

    The spectral start is the balanced optimum if every entry of D is observed.
    """
    optimum, noise = spectral(scale=1.0, ratio=1.0), normal(scale=scale, ratio=1.0)

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        moved = zip(
            optimum(problem, widths, generator), noise(problem, widths, generator), strict=True
        )
        return tuple(W + N for W, N in moved)

    return start


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    outcomes = dict(zip(runs["run_id"], runs["tags.outcome"], strict=True))
    tracked = sorted(
        zip(loaded(runs), runs["run_id"], strict=True),
        key=lambda pair: (-pair[0].config.init.scale, pair[0].config.lr),
    )
    for run, run_id in tracked:
        lr, noise = run.config.lr, run.config.init.scale
        where, last = f"noise {noise:g}, lr σ₁ = {lr:g}", run.trajectory.iloc[-1]
        if lr > 1:
            outcome, loss = outcomes[run_id], last["loss"]
            expected = "diverged" if lr >= 1.3 else "loss > 1e-6"
            holds = outcome == "diverged" if lr >= 1.3 else not loss <= 1e-6
            yield Claim(
                f"{where}: does not converge", expected, f"{outcome}, loss {loss:.2g}", holds
            )
            continue
        yield between(f"{where}: final loss", last["loss"], high=1e-20)
        C, F, D = (_largest(run.matrices[name]) for name in ("C", "F", "D"))
        yield between(
            f"{where}: |sharpness − σ₁(C)² − σ₁(F)²|",
            abs(last["sharpness"] - C**2 - F**2),
            high=1e-6,
        )
        if noise <= 1e-6:
            yield between(
                f"{where}: |sharpness − 2 σ₁(D)|", abs(last["sharpness"] - 2 * D), high=1e-6
            )


def _largest(X: Tensor) -> float:
    return float(torch.linalg.matrix_norm(X, ord=2))


def figure(runs: pandas.DataFrame) -> Figure:
    canvas = Figure(figsize=(10, 3.8), layout="constrained", dpi=110)
    left, right = canvas.subplots(1, 2)
    noisy = [run for run in loaded(runs) if run.config.init.scale > 1e-6]
    tracked = sorted(noisy, key=lambda run: run.config.lr)
    for run, colour in zip(tracked, mode_colours(len(tracked)), strict=True):
        label = f"lr σ₁ = {run.config.lr:g}"
        steps = run.trajectory["step"]
        look = {"color": colour, "linestyle": "-" if run.config.lr < 1 else ":", "label": label}
        left.plot(steps, run.trajectory["loss"].clip(1e-35, 1e3), **look)
        right.plot(steps, run.trajectory["sharpness"] * run.config.lr / 2, **look)
    left.axhline(1e-20, **THEORY)
    right.axhline(1.0, **THEORY)
    left.set(yscale="log", ylabel="½‖D − CF‖²", title="Converges below lr σ₁ = 1 only")
    right.set(
        ylabel="sharpness · lr / 2",
        ylim=(0, 2.5),
        title="The edge of stability is sharpness = 2/lr (dashed)",
    )
    for axes in (left, right):
        over_steps(axes)
    left.legend(fontsize=7, loc="lower left")
    return canvas
