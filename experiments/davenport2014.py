"""Davenport, Plan, van den Berg, Wootters 2014, 1-bit matrix completion.

The likelihood of the signs alone gives the matrix back, and some noise in them helps.

Each entry of the data is 1 with probability 1/(1 + e^{−x}) and −1 else, x an entry of a matrix of
rank 1. Entries that are small beside the noise say little; entries that are large all have the same
sign, whatever their size: the error is least between the two. For many entries the error of the
maximum of the likelihood is that of the Fisher information H = Jᵀ diag(p (1 − p)) J of the factors,
E ‖X̂ − X‖² = tr(J H⁺ Jᵀ), J the Jacobian of C F, and half of the entries give twice the square of
the error.

D is 300 × 300 of rank 1; its entries have the size σ₁/300. The paper bounds entries and nuclear
norm in place of the rank, and measures its figures at other sizes; of the text abstract and
conclusion were at hand. At 600 numbers and 90,000 signs the error is 6 to 17 % above that of the
information, which is the limit of many signs; at σ₁ = 1200 the signs of whole rows are alike, and
the descent is far from an end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from experiments import THEORY, Claim, between, loaded, within
from mfgd.palette import BLUE
from mfgd.problem import synthetic
from mfgd.tracking import Run

SWEEPS = {
    "davenport2014": ("problem.spectrum=[150.0],[300.0]", "steps=30"),
    "davenport2014_half": ("steps=30",),
}


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    tracked = by_size(runs)
    for size in sorted(tracked.keys() & {300.0, 450.0}):
        ratio = error(tracked[size]) / error_by_information(tracked[size])
        yield between(
            f"σ₁ = {size:g}: error over that of the Fisher information", ratio, 0.95, 1.15
        )
    best = error(tracked.get(450.0, tracked[300.0]))
    yield between("more noise, σ₁ = 150: error over the least", error(tracked[150.0]) / best, 1.5)
    if 1200.0 in tracked:
        text = "less noise, σ₁ = 1200: error over the least"
        yield between(text, error(tracked[1200.0]) / best, 1.15)
    half, whole = by_share(runs)
    text = "error from half of the signs over that from all: √2 ± 15 %"
    yield within(text, error(half) / error(whole), 2**0.5, 0.15 * 2**0.5)


def by_size(runs: pandas.DataFrame) -> dict[float, Run]:
    """σ₁ → run, the smallest first."""
    tracked = loaded(runs[runs["sweep"] == "davenport2014"])
    return {
        float(s): run for s, run in sorted((run.config.problem.spectrum[0], run) for run in tracked)
    }


def by_share(runs: pandas.DataFrame) -> list[Run]:
    """The runs of half of the signs, and of all."""
    tracked = loaded(runs[runs["sweep"] == "davenport2014_half"])
    return sorted(tracked, key=lambda run: float(run.config.problem.observed))


def error(run: Run) -> float:
    """The relative error at the end."""
    return float(run.trajectory["relative_error"].iloc[-1])


def error_by_information(run: Run) -> float:
    """The relative error by the Fisher information of all signs."""
    keys: Any = OmegaConf.to_container(run.config.problem)
    del keys["_target_"]
    truth = synthetic(**keys).truth
    assert truth is not None
    U, V = (Q[:, 0].numpy() for Q in truth.singular_vectors())
    root = float(truth.singular_values()[0]) ** 0.5
    c, f = root * U, root * V
    X = np.outer(c, f)
    weights = 1 / (2 + np.exp(X) + np.exp(-X))
    H = join_blocks(weights @ f**2, weights * X, weights.T @ c**2)
    G = join_blocks(np.full(len(c), f @ f), X, np.full(len(f), c @ c))
    return float(np.sqrt(np.trace(np.linalg.pinv(H, rcond=1e-12) @ G)) / np.linalg.norm(X))


def join_blocks(first: np.ndarray, corner: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Jᵀ diag(w) J for the factors c and f: diagonals (n,) and (m,), and w c fᵀ beside them."""
    return np.block([[np.diag(first), corner], [corner.T, np.diag(last)]])


def figure(runs: pandas.DataFrame) -> Figure:
    canvas = Figure(figsize=(6, 4), layout="constrained", dpi=110)
    axes = canvas.subplots()
    tracked = by_size(runs)
    errors = [error(run) for run in tracked.values()]
    axes.loglog(list(tracked), errors, "o-", color=BLUE, markersize=7, label="measured")
    theory = [error_by_information(run) for run in tracked.values()]
    axes.loglog(list(tracked), theory, **THEORY, label="by the Fisher information")
    axes.set(xlabel="σ₁ of D: the larger, the less noise", ylabel="relative error")
    axes.set_title("From signs alone: some noise helps")
    axes.set(xticks=list(tracked), xticklabels=[f"{size:g}" for size in tracked])
    axes.set(yticks=[0.2, 0.3, 0.4], yticklabels=["0.2", "0.3", "0.4"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return canvas
