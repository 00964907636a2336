"""Wang, Jacot 2024, Implicit bias of SGD in L2-regularized linear DNNs: one-way jumps from high to
low rank.

Plain descent rests at a minimum of rank 3; with noise in its gradients it falls to rank 1, and
never gets back up.

Beyond depth 2 the penalized loss has minima of several ranks: the penalty pulls a singular value s
to 0 with the force λ s^{2/L − 1}, which outgrows at a small s the pull of the data, so that 0 is a
minimum beside the one at which s fits the data. Descent without noise stays where its start leads
it. Noise carries s over the barrier between the two sooner or later, and at 0 the factors are so
small that its share in the gradient vanishes with them: it does not carry s back. The paper proves
both for SGD with small λ and rate: from anywhere there is a chance to get to rank r or less, and
there is none to leave again.

D is 10 × 10 with 60 entries observed, of rank 1 (σ₁ = 10) plus noise of 0.3; four factors of full
width. Label noise takes the place of minibatches, whose noise is as small as the residuals: with
one entry a step, at rates of 0.01 to 0.1, a run kept rank 3 or more for 20,000 steps or diverged.
Of the text the abstract was at hand; the numbers here are ours, and the claims are its statements.
All runs start at random, with or without noise. Nothing is said about the error: label noise moves
σ₁ as well, between 1.8 and 26. The rate must be small indeed: at 0.2 noise of 4 throws σ₁ below
0.01 now and then, from where it comes back. Descent without noise goes at 0.2, to be at its minimum
in as many steps.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas
from matplotlib.figure import Figure

from experiments import THEORY, Claim, between, loaded, within
from mfgd.palette import mode_colours
from mfgd.tracking import Run

SWEEPS = {"wang2024": ("zip.gradient.std=1e-6,5", "zip.lr=0.2,0.1", "seed=1,2", "steps=6000")}
CUTOFF = 0.01
"""The singular values above it are the rank."""
BACK = 0.1
"""A value that gets here has come back: those that fall waver a little."""
VANISHING, STRONG = 1e-6, 5.0
"""Standard deviations of the label noise."""
TRUE_RANK = 1
SHOWN = 4
"""How many singular values the figure shows."""


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    tracked = by_noise(runs)
    plain = tracked.pop(VANISHING)
    least = min(ranks(run)[-1] for run in plain)
    slopes = [run.trajectory["gradient_norm"].iloc[-1] for run in plain]
    yield between(
        "vanishing noise: largest norm of the gradient at the end", max(slopes), high=1e-4
    )
    yield between(f"vanishing noise: least rank at the end, of {len(plain)} seeds", least, low=2)
    for std, noisy in tracked.items():
        ends = [ranks(run)[-1] for run in noisy]
        if std == STRONG:
            text = f"noise {std:g}: seeds of {len(noisy)} that end at rank {TRUE_RANK}"
            yield within(text, ends.count(TRUE_RANK), len(noisy), 0)
        else:
            text = f"noise {std:g}: greatest rank at the end, below the least without noise"
            yield between(text, max(ends), low=TRUE_RANK, high=least - 1)
        after = [largest for run in noisy for largest in largest_after_fall(run)]
        text = f"noise {std:g}: {len(after)} values fell below {CUTOFF}; the largest of them later"
        yield between(text, max(after), high=BACK)


def by_noise(runs: pandas.DataFrame) -> dict[float, list[Run]]:
    """Standard deviation of the label noise, the smallest first → its runs, by seed."""
    tracked: dict[float, list[Run]] = {}
    for run in sorted(loaded(runs), key=lambda run: (run.config.gradient.std, run.config.seed)):
        tracked.setdefault(float(run.config.gradient.std), []).append(run)
    return tracked


def singular_values(run: Run) -> np.ndarray:
    """(records, values), the largest first."""
    return run.trajectory.filter(regex=r"^sigma\.\d+$").to_numpy()


def ranks(run: Run) -> np.ndarray:
    """The rank at each record."""
    return (singular_values(run) > CUTOFF).sum(1)


def largest_after_fall(run: Run) -> list[float]:
    """Of each singular value that falls below the cutoff, the largest that it is later."""
    values = singular_values(run).T
    falls = [(each, np.flatnonzero(each < CUTOFF)) for each in values]
    return [float(each[below[0] :].max()) for each, below in falls if len(below)]


def figure(runs: pandas.DataFrame) -> Figure:
    canvas = Figure(figsize=(13, 3.9), layout="constrained", dpi=110)
    tracked = by_noise(runs)
    plain, *_, strong = tracked
    left, middle, right = canvas.subplots(1, 3)
    for axes, std in ((left, plain), (middle, strong)):
        run = tracked[std][0]
        for i, colour in enumerate(mode_colours(SHOWN)):
            values = singular_values(run)[:, i]
            axes.semilogy(run.trajectory["step"], values, color=colour, lw=1, label=f"σ{i + 1}")
        axes.axhline(CUTOFF, **THEORY)
        axes.set(xlabel="step", ylabel="singular value", ylim=(1e-5, 30))
    left.set_title(f"Label noise {plain:g}: rank {ranks(tracked[plain][0])[-1]} stays")
    middle.set_title(f"Label noise {strong:g}: one by one down, and not up")
    for (std, group), colour in zip(tracked.items(), mode_colours(len(tracked)), strict=True):
        for i, run in enumerate(group):
            right.step(
                run.trajectory["step"],
                ranks(run) + 0.04 * (i - (len(group) - 1) / 2),
                where="post",
                color=colour,
                linewidth=1,
                label=None if i else f"label noise {std:g}",
            )
    right.axhline(TRUE_RANK, **THEORY, label="rank of the truth")
    right.set_xscale("symlog", linthresh=100)
    right.set(xlabel="step", ylabel="rank (seeds side by side)", xlim=(0, None))
    right.set_title("Rank of each run")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return canvas
