"""Lee, Seung 2001, Algorithms for non-negative matrix factorization.

Multiplicative updates never raise the loss, and stay in step with scikit-learn's from the same
start.

C ← C ∘ DFᵀ / CFFᵀ, then F ← F ∘ CᵀD / CᵀCF: neither update raises ‖D − CF‖² (theorem 1). D is the
digits, k = 10. The published error after 200 updates, .33736, belongs to one start, NumPy's draw of
seed 0; other draws from the same distribution end between .330 and .340.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pandas
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch import Tensor

from experiments import THEORY, Claim, between, loaded, over_steps, within
from mfgd.init import Init
from mfgd.palette import BLUE
from mfgd.problem import Problem, from_matrix
from mfgd.tracking import Run
from mfgd.types import Factors, Positive, Seed

SWEEPS = {"nmf": ("init.draw=0", "record.points=25")}
PUBLISHED = 0.33736
"""The relative error after 200 updates from the start drawn with seed 0."""


def uniform(*, low: Positive, high: Positive, draw: Seed) -> Init:
    """Independent entries, uniform on [low, high), C before F.

    Args:
        low: the smallest value; an entry that is 0 would never move.
        high: the largest value.
        draw: the seed of NumPy's default generator, with which the published start was drawn.
    """

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        numbers = np.random.default_rng(draw)
        return tuple(
            torch.from_numpy(numbers.uniform(low, high, shape)) for shape in pairwise(widths)
        )

    return start


@lru_cache(maxsize=100)
def sklearn(
    low: float, high: float, draw: int, rank: int, updates: int
) -> tuple[np.ndarray, float]:
    """The product of scikit-learn after so many updates from a start, and its relative error."""
    D = load_digits().data
    start = uniform(low=low, high=high, draw=draw)
    widths = len(D), rank, D.shape[1]
    C, F = map(Tensor.numpy, start(from_matrix(D), widths, torch.Generator()))
    model = NMF(rank, init="custom", solver="mu", tol=0, max_iter=updates)
    # Threads would wait for each other if the cores have other work.
    with warnings.catch_warnings(), threadpool_limits(1):
        # tol=0 makes scikit-learn do every update, and warn that it has not converged.
        warnings.simplefilter("ignore", ConvergenceWarning)
        product = model.fit_transform(D, W=C, H=F) @ model.components_
    return product, float(np.linalg.norm(product - D) / np.linalg.norm(D))


def _sklearn(run: Run, updates: int) -> tuple[np.ndarray, float]:
    start = run.config.init
    return sklearn(start.low, start.high, start.draw, run.config.rank, updates)


def _ordered(runs: pandas.DataFrame) -> list[Run]:
    return sorted(loaded(runs), key=lambda run: run.config.init.draw)


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    tracked = _ordered(runs)
    rise = max(run.trajectory["loss"].diff().max() for run in tracked)
    yield between("largest rise of the loss between two records of any run", rise, high=0.0)
    error = tracked[0].trajectory["relative_error"].iloc[-1]
    yield within(
        "relative error after 200 updates from the published start", error, PUBLISHED, 1e-4
    )
    apart = max(
        np.abs(
            (run.matrices["C"] @ run.matrices["F"]).numpy() - _sklearn(run, run.config.steps)[0]
        ).max()
        for run in tracked
    )
    yield between("largest |entry of CF − scikit-learn's| of any run", apart, high=1e-8)


def figure(runs: pandas.DataFrame) -> Figure:
    canvas = Figure(figsize=(10, 4), layout="constrained", dpi=110)
    halves: Any = canvas.subfigures(1, 2, width_ratios=(1.2, 1))
    left, right = halves
    tracked = _ordered(runs)
    axes = left.subplots()
    for run in reversed(tracked):
        steps, error, first = (
            run.trajectory["step"],
            run.trajectory["relative_error"],
            run is tracked[0],
        )
        label = "the published start" if first else "other draws" if run is tracked[1] else None
        axes.plot(
            steps,
            error,
            color=BLUE if first else "0.75",
            linewidth=1.6 if first else 0.8,
            label=label,
        )
    at = [1, 3, 10, 30, 100, tracked[0].config.steps]
    axes.plot(
        at, [_sklearn(tracked[0], step)[1] for step in at], "k+", markersize=9, label="scikit-learn"
    )
    axes.axhline(PUBLISHED, **THEORY, label=f"published after 200: {PUBLISHED}")
    axes.set(ylabel="‖D − CF‖ / ‖D‖", title="Multiplicative updates of the digits, k = 10")
    over_steps(axes)
    axes.legend(fontsize=8)

    C, F = (tracked[0].matrices[name].numpy() for name in ("C", "F"))
    cells = right.subplots(4, 5)
    right.suptitle("The parts, rows of F, and what they make", fontsize="large")
    for cell, picture in zip(cells.flat, [*F, *load_digits().data[:5], *(C[:5] @ F)], strict=True):
        cell.imshow(picture.reshape(8, 8), cmap="gray_r", interpolation="nearest")
        cell.set(xticks=[], yticks=[])
    for row, label in zip(cells[:, 0], ("F", "F", "D", "CF"), strict=True):
        row.set_ylabel(label, rotation=0, ha="right", va="center")
    return canvas
