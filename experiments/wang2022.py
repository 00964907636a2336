"""Wang, Chen, Zhao, Tao 2022, Large learning rate tames homogeneity: convergence and balancing
effect.

Gradient descent converges at rates up to about twice 2/L, and balances unequal factors the more,
the larger the rate.

L is the sharpness at the start. The paper proves convergence up to about 4/L, and a limit with
‖x − y‖² ≤ 2/η − 2μ for D = μ: an answer of a larger sharpness ‖x‖² + ‖y‖² than 2/η is not stable.
A small rate keeps x² − y², as gradient flow does. Here μ = 1 from (x, y) = (8, 0.2), whose exact
limit is 8/(q + √(q² − 16 μ(p − μ))) with p = xy and q = x² + y² (see liang2026), 2.0023 in units of
2/L; and D of rank 3 with σ = 1, 0.7, 0.4 from Gaussian factors, F at a twentieth of C, where an
answer is stable if σ₁(C)² + σ₁(F)² ≤ 2/η; below 2/L so large a C turns too slowly to arrive within
the budget. Of the text abstract and introduction were at hand, not
the theorems' conditions; rates and starts are not those of the paper's figures.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas
import torch
from matplotlib.figure import Figure

from experiments import THEORY, Claim, between, loaded, within
from experiments.liang2026 import critical_rate
from mfgd.palette import BLUE, VERMILLION, mode_colours
from mfgd.tracking import Run

SWEEPS = {
    "wang2022": ("lr=0.02,1.2,1.8,2.0,2.01", "steps=3000", "record.points=60"),
    "wang2022_matrix": ("lr=0.02,1.8", "record.points=20"),
}
START = (8.0, 0.2)


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    numbers = by_rate(runs, "wang2022")
    unit = rate(numbers[0.02]) / 0.02
    limit = critical_rate(*START) / unit
    tracked = runs[runs["sweep"] == "wang2022"]
    outcomes = dict(zip(tracked["params.lr"].astype(float), tracked["tags.outcome"], strict=True))
    for lr in numbers:
        diverged = outcomes[lr] == "diverged"
        text = f"η = {lr:g} · 2/L, limit at {limit:.4f}: diverges"
        yield Claim(text, f"{lr > limit}", f"{diverged}", diverged == (lr > limit))
    for lr, run in numbers.items():
        if lr < limit:
            x, y = (float(run.matrices[name]) for name in ("C", "F"))
            text = f"η = {lr:g} · 2/L: |xy − μ| in the end"
            yield between(text, abs(x * y - 1), high=1e-10)
            text = f"η = {lr:g} · 2/L: (x − y)² in the end, ≤ 2/η − 2μ"
            yield between(text, (x - y) ** 2, high=2 / rate(run) - 2)
    small = numbers[0.02].trajectory["balance"]
    text = "η = 0.02 · 2/L: |x² − y²| in the end over that at the start"
    yield within(text, small.iloc[-1] / small.iloc[0], 1.0, 0.01)
    matrices = by_rate(runs, "wang2022_matrix")
    for lr, run in matrices.items():
        if lr < 1:
            continue
        where = f"D of rank 3, η = {lr:g} · 2/L"
        yield between(f"{where}: relative error in the end", relative_error(run), high=1e-8)
        yield between(f"{where}: (σ₁(C)² + σ₁(F)²) η/2 in the end", sharpness(run), high=1.0)
    share = "share of ‖CᵀC − FFᵀ‖ that is kept"
    yield within(f"D of rank 3, η = 0.02 · 2/L: {share}", kept(matrices[0.02]), 1.0, 0.01)
    yield between(f"D of rank 3, η = 1.8 · 2/L: {share}", kept(matrices[1.8]), high=0.5)


def by_rate(runs: pandas.DataFrame, sweep: str) -> dict[float, Run]:
    """η in units of 2/L → run, ascending."""
    tracked = loaded(runs[runs["sweep"] == sweep])
    return {run.config.lr: run for run in sorted(tracked, key=lambda run: run.config.lr)}


def rate(run: Run) -> float:
    """η of a run from START, whose L is the largest eigenvalue of a 2 × 2 Hessian."""
    x, y = START
    cross = 2 * x * y - 1
    hessian = torch.tensor([[y**2, cross], [cross, x**2]], dtype=torch.float64)
    return float(run.config.lr * 2 / torch.linalg.eigvalsh(hessian)[-1])


def relative_error(run: Run) -> float:
    return float(run.trajectory["relative_error"].iloc[-1])


def sharpness(run: Run) -> float:
    """The sharpness of the answer, in units of 2/η; η is the rate in units of 2/L at the start."""
    return float(
        run.trajectory["sharpness"].iloc[-1] / run.trajectory["sharpness"].iloc[0] * run.config.lr
    )


def kept(run: Run) -> float:
    balance = run.trajectory["balance"]
    return float(balance.iloc[-1] / balance.iloc[0])


def figure(runs: pandas.DataFrame) -> Figure:
    canvas = Figure(figsize=(12.5, 3.9), layout="constrained", dpi=110)
    left, middle, right = canvas.subplots(1, 3)
    numbers = {lr: run for lr, run in by_rate(runs, "wang2022").items() if lr <= 2}
    for (lr, run), colour in zip(numbers.items(), mode_colours(len(numbers)), strict=True):
        look = {"color": colour, "label": f"{lr:g} · 2/L"}
        left.plot(run.trajectory["step"], run.trajectory["balance"].clip(lower=1e-3), **look)
    left.set(xscale="symlog", yscale="log", xlabel="step", ylabel="|x² − y²|")
    left.set_title("Two numbers, from (8, 0.2)")
    rates = [rate(run) for run in numbers.values()]
    ends = [tuple(float(run.matrices[name]) for name in ("C", "F")) for run in numbers.values()]
    middle.plot(list(numbers), [x**2 + y**2 for x, y in ends], "o", color=BLUE, label="measured")
    middle.plot(list(numbers), [2 / eta for eta in rates], **THEORY, label="2/η: stable below")
    middle.axhline(2, color="0.5", linestyle=":", label="2μ: balanced")
    limit = critical_rate(*START) / (rates[0] / 0.02)
    middle.axvline(limit, color=VERMILLION, linestyle=":", label="diverges beyond")
    middle.set(
        yscale="log", ylim=(1.5, 200), xlabel="η in units of 2/L", ylabel="x² + y² of the answer"
    )
    middle.set_title("The answers have a sharpness below 2/η")
    matrices = by_rate(runs, "wang2022_matrix")
    for (lr, run), colour in zip(matrices.items(), mode_colours(len(matrices)), strict=True):
        balance = run.trajectory["balance"] / run.trajectory["balance"].iloc[0]
        right.plot(run.trajectory["step"], balance, color=colour, label=f"{lr:g} · 2/L")
    right.set(xscale="symlog", xlabel="step", ylabel="‖CᵀC − FFᵀ‖ over its start", ylim=(0, 1.1))
    right.set_title("A matrix of rank 3")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return canvas
