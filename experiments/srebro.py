"""Srebro, Rennie, Jaakkola 2005, Maximum-margin matrix factorization.

Penalizing the squared norms of the factors is penalizing the nuclear norm: the product is D with
σ_i thresholded at λ.

‖X‖_* is the smallest ½(‖C‖² + ‖F‖²) over all factors of X (lemma 1). So the minimizer of ½‖D − CF‖²
+ λ/2 (‖C‖² + ‖F‖²) also minimizes ½‖D − X‖² + λ‖X‖_* over X of rank ≤ k: it has the singular
vectors of D and the singular values max(σ_i − λ, 0), i ≤ k. Here σ_i = 10·0.8^i, i = 0, 1, …, λ =
2, 60 × 40.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas
import torch
from matplotlib.figure import Figure

from experiments import Claim, between, loaded, over_steps
from mfgd.palette import BLUE, GREEN, VERMILLION

SWEEPS = {"srebro": ()}


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    for run in sorted(loaded(runs), key=lambda run: run.config.rank):
        C, F, D = (run.matrices[name] for name in ("C", "F", "D"))
        k, penalty = run.config.rank, run.config.loss.penalty
        sigma = torch.linalg.svdvals(C @ F)
        expected = (torch.linalg.svdvals(D) - penalty).clamp(min=0)
        expected[k:] = 0
        yield between(
            f"k = {k}: largest |σ_i(CF) − max(σ_i − λ, 0)|",
            float((sigma - expected).abs().max()),
            high=1e-8,
        )
        gap = (C.square().sum() + F.square().sum()) / 2 - sigma.sum()
        yield between(f"k = {k}: | ½(‖C‖² + ‖F‖²) − ‖CF‖_* |", float(gap.abs()), high=1e-8)


def figure(runs: pandas.DataFrame) -> Figure:
    canvas = Figure(figsize=(10, 3.8), layout="constrained", dpi=110)
    left, right = canvas.subplots(1, 2)
    tracked = sorted(loaded(runs), key=lambda run: run.config.rank)
    target, penalty = (
        torch.linalg.svdvals(tracked[0].matrices["D"]).numpy(),
        tracked[0].config.loss.penalty,
    )
    along = np.linspace(0, target[0], 100)
    looks = zip("sox", (VERMILLION, BLUE, GREEN), ("-", "-.", ":"), strict=True)
    for run, (marker, colour, dash) in zip(tracked, looks, strict=True):
        k = run.config.rank
        sigma = torch.linalg.svdvals(run.matrices["C"] @ run.matrices["F"]).numpy()[:k]
        left.plot(
            target[:k],
            sigma,
            marker,
            color=colour,
            fillstyle="none",
            markersize=5 + 10 / k,
            label=f"k = {k}",
        )
        nuclear = run.trajectory["nuclear_norm"]
        right.plot(run.trajectory["step"], nuclear, dash, color=colour, label=f"k = {k}")
        right.axhline(
            np.maximum(target[:k] - penalty, 0).sum(), color="black", linestyle="--", linewidth=1
        )
    left.plot(along, np.maximum(along - penalty, 0), "k--", linewidth=1, label="max(σ − λ, 0)")
    left.set(
        xlabel="singular value of D",
        ylabel="singular value of CF",
        title="Soft-thresholded at λ = 2, up to rank k",
    )
    right.set(ylabel=r"$\|CF\|_*$", title="Nuclear norm, and that of the minimizer (dashed)")
    over_steps(right)
    left.grid(alpha=0.3)
    for axes in (left, right):
        axes.legend(fontsize=8)
    return canvas
