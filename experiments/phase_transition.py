"""Candès, Recht 2009, Exact matrix completion via convex optimization; the algorithm is of Tong,
Ma, Chi 2021, Accelerating ill-conditioned low-rank matrix estimation via scaled gradient descent.

Completion turns from never to always while the entries grow from 1.5 to 3 times the dimension of a
matrix of rank 4.

A matrix n × n of rank r has dof = r(2n − r) dimensions; N of its entries are observed. Damped
ScaledGD descends 1/2p ‖M∘(D − CF)‖², p = N/n², from the spectral start, at rate ½. A run succeeds
if the relative error of the whole matrix is below 1e-3. n = 60, and all singular values are 1.

The lower the rank, the more entries per dimension are needed: no method can complete a row with
fewer observed entries than the rank, and about n log n random entries are needed until no row is
left without an entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
import pandas
import torch
from matplotlib.figure import Figure

from experiments import THEORY, Claim, between
from mfgd.dense import AllEntries, MaskedEntries
from mfgd.draws import orthonormal, stream
from mfgd.problem import Problem
from mfgd.types import Count, Positive, Refused, Seed

SWEEPS = {
    "phase_transition": ("problem.rank=4", "problem.ratio=1.5,3", "steps=500", "record.points=10")
}
PUBLISHED: dict[int, dict[float, float]] = {
    2: {1: 0, 1.5: 0, 2: 0, 3: 0.9, 4: 1, 5: 1},
    4: {1: 0, 1.5: 0.1, 2: 0.9, 3: 1, 4: 1, 5: 1},
}
"""r → N/dof → share of ten trials."""
NOISE = 0.45
"""Two standard deviations of the difference of two shares of ten trials, at most
2 √(2 · ½ · ½ / 10)."""


def sampled(*, n: Count, rank: Count, ratio: Positive, seed: Seed) -> Problem:
    """D = UVᵀ, n × n, with random orthonormal U and V; ratio · rank(2n − rank) random entries are
    observed.

    Draws are nested: at the same seed a larger ratio adds entries and removes none.

    Raises:
        Refused: no entry, or more entries than the matrix has.
    """
    generator = stream("problem data", seed)
    truth = orthonormal(n, rank, generator) @ orthonormal(n, rank, generator).mT
    count = round(ratio * rank * (2 * n - rank))
    if not 1 <= count <= n * n:
        raise Refused(f"problem.ratio={ratio}: asks for {count} entries; allowed are 1 to {n * n}")
    mask = torch.zeros(n * n, dtype=torch.float64)
    mask[torch.randperm(n * n, generator=stream("problem mask", seed))[:count]] = 1
    mask = mask.view(n, n)
    seen = MaskedEntries(mask * truth, mask)
    return Problem(seen, truth=AllEntries(truth), rank=rank, generated=True)


def shares(runs: pandas.DataFrame) -> dict[int, dict[float, float]]:
    """r → N/dof → share of successes, both ascending."""
    found: dict[int, dict[float, float]] = {}
    columns = "params.problem.rank", "params.problem.ratio", "metrics.success_rate"
    cells = zip(*(runs[column].astype(float) for column in columns), strict=True)
    for rank, ratio, share in sorted(cells):
        found.setdefault(int(rank), {})[ratio] = share
    return found


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    share = shares(runs)
    yield between("r = 4: share of successes at N/dof = 1.5", share[4][1.5], high=0.2)
    yield between("r = 4: share of successes at N/dof = 3", share[4][3], low=0.8)
    for rank, published in PUBLISHED.items():
        if rank in share and set(published) <= set(share[rank]):
            apart = max(abs(share[rank][ratio] - value) for ratio, value in published.items())
            yield between(
                f"r = {rank}: largest |share − published| of {len(published)}", apart, high=NOISE
            )


def figure(runs: pandas.DataFrame) -> Figure:
    canvas = Figure(figsize=(11, 4.2), layout="constrained", dpi=110)
    left, right = canvas.subplots(1, 2, width_ratios=(1.1, 1))
    share, n = shares(runs), int(runs["params.problem.n"].iloc[0])

    def rate(ratio: Any, rank: Any) -> Any:
        return ratio * rank * (2 * n - rank) / n**2

    for rank, row in share.items():
        ratios = np.array(list(row))
        middle = (ratios[1:] + ratios[:-1]) / 2
        edges = np.array([2 * ratios[0] - middle[0], *middle, 2 * ratios[-1] - middle[-1]])
        column = np.array(list(row.values()))[:, None]
        cells = left.pcolormesh(
            [rank - 0.5, rank + 0.5], rate(edges, rank), column, cmap="viridis", vmin=0, vmax=1
        )
    canvas.colorbar(cells, ax=left, label="share of successes", pad=0.02)
    along = np.linspace(min(share) - 0.5, max(share) + 0.5, 100)
    for ratio, colour in ((1, "white"), (2, "black"), (3, "black")):
        left.plot(along, rate(ratio, along), **THEORY | {"color": colour})
        left.text(
            along[-3],
            rate(ratio, along[-3]),
            f"N = {ratio} dof ",
            ha="right",
            va="bottom",
            color=colour,
            fontsize=8,
        )
    left.set_facecolor("0.92")  # no runs there
    left.set(
        xlim=(along[0], along[-1]),
        ylim=(0, 1),
        xticks=list(share),
        xlabel="rank",
        ylabel="sampling rate N/n²",
    )
    trials = int(runs["params.replicates"].astype(int).sum())
    left.set_title(f"Completion of {n} × {n} matrices, {trials:,} trials")
    colours = matplotlib.colormaps["plasma"](np.linspace(0, 0.9, len(share)))
    for (rank, row), colour in zip(share.items(), colours, strict=True):
        right.plot(
            list(row),
            list(row.values()),
            "o-",
            color=colour,
            markersize=3,
            linewidth=1.2,
            label=f"r = {rank}",
        )
    for rank, marker in ((2, "x"), (4, "+")):
        if rank in share:
            points = list(PUBLISHED[rank]), list(PUBLISHED[rank].values())
            right.plot(*points, marker, color="black", markersize=9, label=f"published, r = {rank}")
    right.set(
        xlabel="N/dof",
        ylabel="share of successes",
        title="Low ranks need more entries per dimension",
    )
    right.grid(alpha=0.3)
    right.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return canvas
