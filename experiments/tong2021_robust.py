"""Tong, Ma, Chi 2021, Low-rank matrix recovery with scaled subgradient methods: fast and robust
convergence without the condition number.

Under gross outliers the scaled subgradient method recovers the matrix at a rate that its condition
number leaves alone.

Numbers uniform between ±10 max |X| replace a fifth of the entries of an n × n matrix X of rank r.
The spectral start takes D without its largest fifth. From there Polyak's step (f − f*)/‖G‖²
descends the loss Σ|CF − D|, in the scaled or in the Euclidean metric. f* is the loss of X: D is
divided by this loss, so that f* = 1 for every draw. n = 100, r = 5, singular values from 1 to 1/κ.
The published numbers are numbers of one draw; here are ten draws.

At κ = 20 some draws do not recover X, because f* is not the smallest loss: take X without its last
component, and one row or column of D in place of its own; this matrix has rank 5 and less loss.
Some descents reach f* on the way to such a matrix, and Polyak's step ends there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas
import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments import THEORY, Claim, between, loaded, step_at
from mfgd import init
from mfgd.dense import AllEntries
from mfgd.draws import orthonormal, stream, uniform_numbers
from mfgd.init import Init
from mfgd.palette import BLUE, SKY, VERMILLION
from mfgd.problem import Problem
from mfgd.tracking import Run
from mfgd.types import Count, Factors, Positive, Seed, Share

SWEEPS = {
    "tong2021_robust": (
        "problem.seed=0",
        "problem.condition=5,20",
        "steps=2000",
        "record.steps=[400,800,1000,1200,1400,1600,1800]",
    )
}
REACHED: dict[float, int] = {1: 2005, 5: 1345, 20: 1301}
"""κ → the published step at which the scaled method is at a relative error of 1e-6."""
PLAIN: dict[float, float] = {1: 4.7e-9, 5: 2.0e-5, 20: 7.8e-4}
"""κ → the published relative error of the plain method after 3000 steps."""


def corrupted(
    *,
    n: Count,
    rank: Count,
    condition: Positive,
    outliers: Share,
    outlier_scale: Positive,
    seed: Seed,
) -> Problem:
    """X = U diag(σ) Vᵀ, n × n, σ linear from 1 to 1/condition, with outliers in place of some
    entries.

    D and X are divided by Σ|D − X|, which is then 1.

    Args:
        n: rows, and columns.
        rank: rank of X.
        condition: condition number σ₁/σ_rank of X.
        outliers: share of the entries that outliers replace.
        outlier_scale: outliers are uniform between ± this multiple of max |X|.
        seed: moves U, V and the outliers.
    """
    data, gross = stream("problem data", seed), stream("problem outliers", seed)
    U, V = orthonormal(n, rank, data), orthonormal(n, rank, data)
    X = (U * torch.linspace(1, 1 / condition, rank, dtype=torch.float64)) @ V.mT
    at = torch.randperm(n * n, generator=gross)[: round(outliers * n * n)]
    D = X.flatten().clone()
    D[at] = outlier_scale * X.abs().max() * (2 * uniform_numbers((len(at),), gross) - 1)
    D = D.view(n, n)
    unit = (D - X).abs().sum()
    return Problem(AllEntries(D / unit), truth=AllEntries(X / unit), generated=True)


def truncated(*, quantile: Share) -> Init:
    """The spectral start of D with 0 in place of every entry above a quantile of |D|."""

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        size = problem.D.abs()
        kept = problem.D * (size <= torch.quantile(size.flatten(), quantile))
        return init.spectral(scale=1.0, ratio=1.0)(Problem(AllEntries(kept)), widths, generator)

    return start


def _by_metric(runs: pandas.DataFrame, metric: str) -> dict[float, list[Run]]:
    """κ → the runs of every draw."""
    found: dict[float, list[Run]] = {}
    for run in loaded(runs):
        if run.config.optimizer.metric == metric:
            found.setdefault(run.config.problem.condition, []).append(run)
    return dict(sorted(found.items()))


def _error_at(run: Run, step: int) -> float:
    """Relative error at the last record up to a step."""
    return float(run.trajectory.loc[run.trajectory["step"] <= step, "relative_error"].iloc[-1])


def _all(text: str, runs: list[Run], holds: Callable[[Run], bool]) -> Claim:
    count = sum(map(holds, runs))
    return Claim(text, f"all of {len(runs)} draws", f"{count} of {len(runs)}", count == len(runs))


def _draw_again(run: Run) -> tuple[Tensor, Tensor]:
    """D and X of a run."""
    keys = {str(key): value for key, value in run.config.problem.items()}
    del keys["_target_"]
    drawn = corrupted(**keys)
    assert isinstance(drawn.truth, AllEntries)
    return drawn.D, drawn.truth.target


def _best(X: Tensor, rank: int) -> Tensor:
    """The best approximation of X of a rank."""
    U, sigma, Vh = torch.linalg.svd(X)
    return (U[:, :rank] * sigma[:rank]) @ Vh[:rank]


def _svd_error(run: Run) -> float:
    """Relative error of the best approximation of D, with its outliers, of the rank of the run."""
    D, X = _draw_again(run)
    return float(torch.linalg.norm(_best(D, run.config.rank) - X) / torch.linalg.norm(X))


def _loss_with_one_line(run: Run) -> float:
    """The loss of X without its last component, and with the row or column of D that lowers the
    loss most."""
    D, X = _draw_again(run)
    misses = (D - _best(X, run.config.rank - 1)).abs()
    return float(misses.sum() - max(misses.sum(0).max(), misses.sum(1).max()))


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    scaled, plain = _by_metric(runs, "scaled"), _by_metric(runs, "euclidean")
    for kappa, same in scaled.items():
        if kappa > 1:
            text = f"scaled, κ = {kappa:g}: relative error < 1e-5 after 2000 steps"
            yield _all(text, same, lambda run: _error_at(run, 2000) < 1e-5)
    steps = max(run.config.steps for run in loaded(runs))
    text = f"plain, κ = 20: relative error > 1e-5 after {steps} steps"
    yield _all(text, plain[20], lambda run: _error_at(run, run.config.steps) > 1e-5)
    for kappa, same in scaled.items():
        if len(same) > 1:
            reached = [step_at(run.trajectory, "relative_error", 1e-6) for run in same]
            yield _among(f"scaled, κ = {kappa:g}: steps to 1e-6", REACHED[kappa], reached, "{:.0f}")
    for kappa, same in plain.items():
        if len(same) > 1:
            ends = [_error_at(run, run.config.steps) for run in same]
            yield _among(
                f"plain, κ = {kappa:g}: relative error after 3000 steps",
                PLAIN[kappa],
                ends,
                "{:.2g}",
            )
    gains = [_loss_with_one_line(run) for run in scaled[20]]
    matrix = "X without σ₅ and with one row or column of D"
    text = f"κ = 20: loss of {matrix}, over f*, largest of all draws"
    yield between(text, max(gains), high=1.0)
    errors = [_svd_error(run) for same in scaled.values() for run in same]
    yield between(
        "least relative error of D's best rank-5 matrix, of all draws", min(errors), low=1.0
    )


def _among(text: str, published: float, values: list[float], form: str) -> Claim:
    """Claims that a published number, a number of another draw, is among the numbers of our
    draws."""
    low, high = np.nanmin(values), np.nanmax(values)
    never = int(np.isnan(values).sum())
    got = f"{form.format(low)} to {form.format(high)}, {len(values)} draws"
    if never:
        got += f" ({never} never)"
    return Claim(text, f"{form.format(published)} among", got, low <= published <= high)


def figure(runs: pandas.DataFrame) -> Figure:
    canvas = Figure(figsize=(10, 4), layout="constrained", dpi=110)
    panels = canvas.subplots(1, 2, sharey=True)
    titles = {"scaled": "Scaled subgradient method", "euclidean": "Plain subgradient method"}
    colours: dict[float, str] = {1: SKY, 5: BLUE, 20: VERMILLION}
    dashes: dict[float, str] = {1: "-", 5: "--", 20: "-."}
    for axes, (metric, title) in zip(panels, titles.items(), strict=True):
        for kappa, same in _by_metric(runs, metric).items():
            for i, run in enumerate(same):
                curve = run.trajectory["step"], run.trajectory["relative_error"]
                label = f"κ = {kappa:g}" if i == 0 else None
                axes.plot(*curve, dashes[kappa], color=colours[kappa], linewidth=1, label=label)
            published = (REACHED[kappa], 1e-6) if metric == "scaled" else (3000, PLAIN[kappa])
            axes.plot(
                *published,
                "X",
                color=colours[kappa],
                markeredgecolor="black",
                markersize=9,
                clip_on=False,
                zorder=3,
            )
        axes.plot(
            [],
            [],
            "X",
            color="white",
            markeredgecolor="black",
            markersize=9,
            label="published, one draw",
        )
        axes.axhline(1e-5, **THEORY)
        axes.set(yscale="log", ylim=(1e-12, 2), xlim=(0, 3000), xlabel="step", title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower left")
    lost = sum(_error_at(run, run.config.steps) > 0.1 for run in _by_metric(runs, "scaled")[20])
    if lost:
        panels[0].text(
            2950,
            0.25,
            f"{lost} draws end elsewhere, with the loss of X",
            ha="right",
            va="top",
            fontsize=8,
        )
    panels[0].set_ylabel("‖CF − X‖ / ‖X‖")
    return canvas
