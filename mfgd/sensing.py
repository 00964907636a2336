"""Problems of linear measurements y_i = ⟨A_i, D⟩ of a matrix D of low rank."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from mfgd.capacity import NUMBER, refuse_large_array
from mfgd.dense import AllEntries
from mfgd.draws import hash_tensors, orthonormal, standard_normal, stream
from mfgd.measurements import MatrixMeasurements, Measurements
from mfgd.observe import hold_out
from mfgd.rank_one import VectorMeasurements
from mfgd.target import Problem
from mfgd.truths import draw_truth
from mfgd.types import Count, NonNegative, Positive, Refused, Seed, Share

Ensemble = Literal["gaussian", "symmetric", "rank_one", "rank_one_symmetric"]
UNIT = 16
"""torch draws normal numbers sixteen at a time: rows of a multiple of that are the same numbers,
however many rows are drawn."""


def sensing(
    *,
    n: Count,
    m: Count,
    rank: Count,
    spectrum: list[Positive] | None,
    condition: Positive,
    symmetric: bool,
    ensemble: Ensemble,
    measurements: Count | None,
    oversampling: Positive,
    noise: NonNegative,
    heldout: Share,
    seed: Seed,
) -> Problem:
    """y_i = ⟨A_i, D⟩ + noise, i = 1 … N, with D = U diag(σ) Vᵀ and random A_i.

    gaussian: A_i has independent standard normal entries G; symmetric: A_i = (G + Gᵀ)/2; rank_one:
    y_i = a_iᵀ D b_i with standard normal vectors, as in blind deconvolution; rank_one_symmetric:
    y_i = a_iᵀ D a_i, as in phase retrieval. But for the last, the mean of ⟨A_i, D⟩² is ‖D‖², so
    that the mean of squares over the measurements takes the place of ‖D̂ − D‖². Matrices A_i take
    8 N n m bytes, and a step 4 N n m operations, each run by itself; vectors 8 N (n + m) bytes, and
    a step 12 N k (n + m) operations. At one seed more measurements have the fewer ones among them.

    Source: Recht, Fazel, Parrilo 2010, Guaranteed minimum-rank solutions of linear matrix equations
    via nuclear norm minimization, section 4; for rank_one Cai, Zhang 2015, ROP: matrix recovery via
    rank-one projections; for rank_one_symmetric Candès, Strohmer, Voroninski 2013, PhaseLift.

    Args:
        n: rows.
        m: columns.
        rank: number of non-zero singular values, which fall linearly from 1 to 1/condition.
        spectrum: the singular values themselves; if given, they win over rank and condition, and
            the params have the rank and the condition that result.
        condition: σ_1 / σ_rank, at least 1.
        symmetric: whether V = U, so that D is symmetric and positive semidefinite; the symmetric
            ensembles see nothing else of D, and need it.
        ensemble: how the A_i are drawn.
        measurements: N; if given, it wins over oversampling, and the params have the oversampling
            that results.
        oversampling: N over r (n + m), r the rank of D.
        noise: standard deviation of the Gaussian noise on each measurement.
        heldout: share of the measurements that is held out: descent does not see them.
        seed: moves every random draw of the problem.

    Raises:
        Refused: a rank, spectrum, condition or shape that cannot be, a symmetric ensemble with a D
            that need not be symmetric, A_i that do not fit into memory, or a share that leaves
            nothing.
    """
    generator = stream("problem data", seed)
    truth = draw_truth(
        lambda size, r: orthonormal(size, r, generator), n, m, rank, spectrum, condition, symmetric
    )
    if ensemble.endswith("symmetric") and not symmetric:
        only = "sees only the symmetric part of D"
        raise Refused(f"problem.ensemble={ensemble}: {only}; allowed with problem.symmetric=true")
    overruled = truth.overrule(spectrum)
    freedom = truth.rank * (n + m)
    if measurements is None:
        count = overruled["measurements"] = max(1, round(oversampling * freedom))
        said = f"problem.oversampling={oversampling:g}, {count} measurements"
    else:
        count, overruled["oversampling"] = measurements, measurements / freedom
        said = f"problem.measurements={count}"
    draws = {"data": truth.hash()}
    copies = 2 if heldout else 1
    numbers = n * m if ensemble in ("gaussian", "symmetric") else n + m
    refuse_large_array(
        (count, numbers),
        f"problem=sensing with {said}",
        number=copies * NUMBER,
        hint="allowed are fewer measurements, smaller n and m, and problem.ensemble=rank_one",
    )
    clean = _draw_measurements(ensemble, count, (n, m), seed, draws)
    clean.target = clean.apply(*truth.factors)
    found = disturb(clean, noise, heldout, seed, draws)
    return replace(
        found,
        truth=AllEntries(torch.matmul(*truth.factors)),
        rank=None if noise else truth.rank,
        generated=True,
        overruled=overruled,
    )


def disturb(
    clean: Measurements, noise: float, heldout: float, seed: int, draws: dict[str, str]
) -> Problem:
    """The problem of measurements with noise, some of them held out."""
    count = clean.count
    if noise:
        drawn = _draw_rows(1, count, stream("problem noise", seed))
        clean.target = clean.target + noise * drawn
        draws["noise"] = hash_tensors(drawn)
    held = hold_out(count, heldout, seed, draws, "measurements")
    if held is None:
        return Problem(clean, draws=draws)
    seen = torch.ones(count, dtype=torch.bool)
    seen[held] = False
    return Problem(clean.select(seen), heldout=clean.select(held), draws=draws)


def _draw_measurements(
    ensemble: Ensemble,
    count: int,
    shape: tuple[int, int],
    seed: int,
    draws: dict[str, str],
) -> Measurements:
    """A₁ … A_N, without y."""
    (n, m), nothing = shape, torch.zeros(1, count, dtype=torch.float64)
    generator = stream("problem operator", seed)
    if ensemble in ("gaussian", "symmetric"):
        A = _draw_rows(count, n * m, generator).view(count, n, m)
        if ensemble == "symmetric":
            for start in range(0, count, UNIT):  # in pieces, so that A has no second copy
                piece = A[start : start + UNIT]
                piece.copy_((piece + piece.mT) / 2)
        draws["operator"] = hash_tensors(A)
        return MatrixMeasurements(nothing, A, 1.0)
    a = _draw_rows(count, n, generator)
    b = a
    if ensemble == "rank_one":
        b = _draw_rows(count, m, stream("problem operator, right", seed))
    draws["operator"] = hash_tensors(a, b)
    return VectorMeasurements(nothing, a, b)


def _draw_rows(count: int, size: int, generator: torch.Generator) -> Tensor:
    """So many rows of standard normal numbers; more rows begin with the same rows."""
    padded = -(-size // UNIT) * UNIT
    rows = standard_normal((count, padded), generator)
    return rows if padded == size else rows[:, :size].contiguous()
