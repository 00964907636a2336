"""Arora, Cohen, Hu, Luo 2019, Implicit regularization in deep matrix factorization.

Unconstrained in rank, completion from a small start finds the matrix of low rank, the better the
deeper.

Factors as wide as the matrix can fit the observed entries with any values elsewhere. Gradient
descent fits the observed entries from any start. The smaller the scale α of the start, the smaller
are the effective rank exp(−Σ p ln p), p = σ/Σσ, of the product and the held-out error ‖D̂ −
D*‖/‖D*‖ over the entries that are not observed. At depth 2 the entries of C and F have standard
deviation α/√n; D* is 60 × 60 of rank 2, κ = 1.2, with 1000 observed entries.

With few entries two factors do not find the matrix, and three factors do: 100 × 100, rank 5, 2000
entries, standard deviation 10⁻³ at either depth. The published errors are errors of another draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import THEORY, Claim, between, loaded, over_steps
from mfgd.palette import BLUE, VERMILLION
from mfgd.tracking import Run

SWEEPS = {
    "arora2019": (
        "init.scale=1.291e-1,1.291e-2,1.291e-3,1.291e-4,1.291e-5",
        "seed=0",
        "steps=700",
        "record.points=12",
    ),
    "arora2019_depth3": (
        "problem.n=40",
        "problem.m=40",
        "problem.rank=2",
        "problem.observed=480",
        "rank=40",
        "init.scale=3e-3",
        "seed=0",
        "steps=600",
        "record.points=12",
    ),
}
ERRORS = {
    1.0: (5.0, 5.0),
    0.1: (0.51, 0.53),
    0.01: (0.09, 0.12),
    1e-3: (0.019, 0.025),
    1e-4: (0.004, 0.006),
}
"""α → the published range of held-out errors at depth 2."""
RANKS = {1.0: (42, 42), 0.1: (14, 15.5), 0.01: (2.9, 3.0), 1e-3: (2.1, 2.1), 1e-4: (2.0, 2.0)}
"""α → the published range of effective ranks at depth 2."""


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    tracked = group_runs(start_scale, runs, "arora2019")
    errors = {
        alpha: [last_value(run, "heldout_error") for run in same] for alpha, same in tracked.items()
    }
    for larger, smaller in pairwise(errors):
        text = (
            f"α = {smaller:g}: largest held-out error of any start, "
            f"against the least at α = {larger:g}"
        )
        holds = max(errors[smaller]) < min(errors[larger])
        yield Claim(text, f"< {min(errors[larger]):.3g}", f"{max(errors[smaller]):.3g}", holds)
    largest, least = max(errors), min(errors)
    text = f"held-out error at α = {largest:g} over that at {least:g}, the least of any two starts"
    yield between(text, min(errors[largest]) / max(errors[least]), low=100)
    for alpha, same in tracked.items():
        ranks = [last_value(run, "effective_rank") for run in same]
        low, high = RANKS[alpha]
        published = f"{low:g} to {high:g}" if high > low else f"{low:g}"
        text = f"α = {alpha:g}: mean effective rank, published {published}, ± 10 %"
        yield between(text, sum(ranks) / len(ranks), 0.9 * low, 1.1 * high)

    deep = group_runs(lambda run: run.config.depth, runs, "arora2019_depth3")
    two, three = ([last_value(run, "heldout_error") for run in deep[depth]] for depth in (2, 3))
    yield between("few entries, depth 2: least held-out error of any start", min(two), low=0.1)
    yield between(
        "few entries, depth 3: largest held-out error over the least at depth 2",
        max(three) / min(two),
        high=0.1,
    )


def group_runs(
    key: Callable[[Run], float], runs: pandas.DataFrame, sweep: str
) -> dict[float, list[Run]]:
    """Key → the runs of a sweep from each start, the largest key first."""
    groups: dict[float, list[Run]] = {}
    for run in loaded(runs[runs["sweep"] == sweep]):
        groups.setdefault(key(run), []).append(run)
    return dict(sorted(groups.items(), reverse=True))


def start_scale(run: Run) -> float:
    """α, to as many digits as the sweep gives."""
    return float(f"{run.config.init.scale * math.sqrt(run.config.rank):.2g}")


def last_value(run: Run, measure: str) -> float:
    return float(run.trajectory[measure].iloc[-1])


def figure(runs: pandas.DataFrame) -> Figure:
    canvas = Figure(figsize=(12, 3.9), layout="constrained", dpi=110)
    left, middle, right = canvas.subplots(1, 3)
    tracked = group_runs(start_scale, runs, "arora2019")
    for axes, measure, published in (
        (left, "heldout_error", ERRORS),
        (middle, "effective_rank", RANKS),
    ):
        draw_dots(axes, tracked, measure)
        for alpha, (low, high) in published.items():
            axes.plot([alpha, alpha], [low, high], "_-", color="black", markersize=14, linewidth=1)
        axes.plot([], [], "_-", color="black", markersize=14, label="published, another draw")
        axes.set(xscale="log", yscale="log", xlabel="scale α of the start")
    rank = tracked[min(tracked)][0].config.problem.rank
    middle.axhline(rank, **THEORY, label="rank of the truth")
    middle.set(yticks=[2, 3, 5, 10, 20, 40], yticklabels=["2", "3", "5", "10", "20", "40"])
    middle.minorticks_off()
    left.set(ylabel="held-out error", title="The smaller the start, the better …")
    middle.set(ylabel="effective rank", title="… for the lower is the rank")
    colours, dashes = {2.0: BLUE, 3.0: VERMILLION}, {2.0: "--", 3.0: "-"}
    for depth, same in group_runs(lambda run: run.config.depth, runs, "arora2019_depth3").items():
        for run in same:
            right.plot(
                run.trajectory["step"],
                run.trajectory["heldout_error"],
                color=colours[depth],
                linestyle=dashes[depth],
                linewidth=1.2,
            )
        right.plot([], [], dashes[depth], color=colours[depth], label=f"depth {depth:g}")
    shown = run.config.problem
    right.set(yscale="log", ylabel="held-out error")
    right.set_title(f"{shown.observed} entries of {shown.n} × {shown.m}, rank {shown.rank}")
    over_steps(right)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return canvas


def draw_dots(axes: Axes, tracked: Mapping[float, Sequence[Run]], measure: str) -> None:
    """Draws the last value of a measure over α, for each start."""
    for alpha, same in tracked.items():
        axes.plot(
            [alpha] * len(same),
            [last_value(run, measure) for run in same],
            "o",
            color=BLUE,
            markersize=6,
            alpha=0.7,
        )
    axes.plot([], [], "o", color=BLUE, label="measured, each start")
