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
from mfgd.named_arrays import read_finite, read_named
from mfgd.observe import hold_out
from mfgd.outputs import Outputs
from mfgd.rank_one import VectorMeasurements
from mfgd.reading import Source
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


def regression(
    *,
    n: Count,
    m: Count,
    rank: Count,
    spectrum: list[Positive] | None,
    condition: Positive,
    symmetric: bool,
    samples: Count,
    covariance: list[Positive] | None,
    noise: NonNegative,
    heldout: Share,
    seed: Seed,
) -> Problem:
    """Y = D X + noise of N inputs X with X Xᵀ/N of given eigenvalues, and D = U diag(σ) Vᵀ: the
    regression of a deep linear network.

    X = √N W diag(√λ) Qᵀ with random orthonormal W and Q. The loss is of the n N numbers of Y; the
    plain sum of squares is N ‖(D̂ − D) (X Xᵀ/N)^{1/2}‖² without noise, so that ½ of its mean over
    the inputs is loss.scale = 1/2N. A step costs 8 N k (n + m) operations, X takes 8 m N bytes.

    Source: Saxe, McClelland, Ganguli 2014, Exact solutions to the nonlinear dynamics of learning in
    deep linear neural networks, section 1.

    Args:
        n: rows of D, outputs.
        m: columns of D, inputs.
        rank: number of non-zero singular values, which fall linearly from 1 to 1/condition.
        spectrum: the singular values themselves; if given, they win over rank and condition, and
            the params have the rank and the condition that result.
        condition: σ_1 / σ_rank, at least 1.
        symmetric: whether V = U, so that D is symmetric and positive semidefinite.
        samples: N, at least m.
        covariance: the m eigenvalues λ of X Xᵀ/N; null: all are 1.
        noise: standard deviation of the Gaussian noise on each number of Y.
        heldout: share of the samples that is held out: descent does not see them. The covariance
            is then that of all samples.
        seed: moves every random draw of the problem.

    Raises:
        Refused: a rank, spectrum, condition or shape that cannot be, fewer samples than columns,
            another number of eigenvalues, inputs that do not fit into memory, or a share that
            leaves nothing.
    """
    generator = stream("problem data", seed)
    truth = draw_truth(
        lambda size, r: orthonormal(size, r, generator), n, m, rank, spectrum, condition, symmetric
    )
    values = covariance or [1.0] * m
    if len(values) != m:
        raise Refused(f"problem.covariance of length {len(values)}: must be of length m = {m}")
    if samples < m:
        raise Refused(f"problem.samples={samples}: must be at least m = {m}")
    refuse_large_array((samples, 2 * m + n), f"problem=regression with problem.samples={samples}")
    source = stream("problem operator", seed)
    W, Q = orthonormal(m, m, source), orthonormal(samples, m, source)
    X = (W * (samples * torch.tensor(values, dtype=torch.float64)).sqrt()) @ Q.mT
    draws = {"data": truth.hash(), "operator": hash_tensors(X)}
    variance = values[0] if len(set(values)) == 1 else None
    D = torch.matmul(*truth.factors)
    found = disturb(Outputs(D @ X, X, variance), noise, heldout, seed, draws, "samples")
    return replace(
        found,
        truth=AllEntries(D),
        rank=None if noise else truth.rank,
        generated=True,
        overruled=truth.overrule(spectrum),
    )


def sensing_file(*, path: str, heldout: Share, seed: Seed) -> Problem:
    """y_i = ⟨A_i, D⟩ of an unknown D, with y and A_i from a .npz, .pt or .safetensors file.

    The file has y (N,), and A (N, n, m), or vectors a (N, n) and b (N, m) of A_i = a_i b_iᵀ, or a
    alone of A_i = a_i a_iᵀ. The `matrices.safetensors` of a run is such a file, if it has kept
    them. The spectral start and lr_unit=sigma1 take the A_i as random ones without a preferred
    direction, of the mean square that they have, and a alone as normal.

    Args:
        path: the file.
        heldout: share of the measurements that is held out: descent does not see them.
        seed: moves which measurements are held out.

    Raises:
        Refused: no such file, another format, arrays that are missing or too many, of other shapes
            or not finite, or a share that leaves nothing.
    """
    source = f"problem.path={path}"
    arrays = read_named(path, source)
    names = [name for name in ("A", "a", "b") if name in arrays]
    if "y" not in arrays or names not in (["A"], ["a"], ["a", "b"]):
        there = ", ".join(sorted(arrays)) or "none"
        allowed = "needed are y and A, or y, a and b, or y and a"
        raise Refused(f"{source}: arrays {there}; {allowed}")
    y = read_finite(arrays, "y", source).flatten()
    kept = {name: read_finite(arrays, name, source) for name in names}
    for name, array in kept.items():
        form = "N×n×m" if name == "A" else "N×" + {"a": "n", "b": "m"}[name]
        if array.ndim != form.count("×") + 1 or len(array) != len(y) or not array.numel():
            shape = "×".join(map(str, array.shape))
            needed = f"{name} is {shape}; needed is {form} with N = {len(y)}, as many as y"
            raise Refused(f"{source}: {needed}")
        if not array.any():
            raise Refused(f"{source}: {name} is 0 everywhere, so that nothing is measured")
    seen = _measure_by(y[None], **kept)
    (n, m), how = seen.shape, "matrices" if names == ["A"] else "vectors"
    said = f"{len(y)} measurements of a {n}×{m} matrix by {how} {' and '.join(names)}"
    found = disturb(seen, 0.0, heldout, seed, {})
    digest = hash_tensors(y, *kept.values())
    return replace(found, source=Source(path, digest, f"{path}: {said}"))


def _measure_by(
    y: Tensor, A: Tensor | None = None, a: Tensor | None = None, b: Tensor | None = None
) -> Measurements:
    """Given measurements, whose dilution follows from the mean square of A_i."""
    if A is None:
        assert a is not None
        if b is None or torch.equal(a, b):
            b = a
        power = float(a.square().mean() * b.square().mean())
        return VectorMeasurements(y, a, b, power)
    n, m = A.shape[1:]
    symmetric = n == m and torch.equal(A, A.mT)
    dimension = n * (n + 1) / 2 if symmetric else n * m
    return MatrixMeasurements(y, A, dimension * len(A) / float(A.square().sum()))


def disturb(
    clean: Measurements,
    noise: float,
    heldout: float,
    seed: int,
    draws: dict[str, str],
    what: str = "measurements",
) -> Problem:
    """The problem of measurements with noise, some of them, or of what else, held out."""
    rows, count = clean.target.shape
    if noise:
        drawn = _draw_rows(rows, count, stream("problem noise", seed))
        clean.target = clean.target + noise * drawn
        draws["noise"] = hash_tensors(drawn)
    held = hold_out(count, heldout, seed, draws, what)
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
