"""What is factored, and what is known of its answer.

Each function here is an option of ``problem=``; its keyword arguments are the keys of that option,
and it returns a `Problem`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from mfgd import files
from mfgd.capacity import refuse_large_array
from mfgd.dense import AllEntries
from mfgd.draws import hash_tensors, orthonormal, standard_normal, stream
from mfgd.matrix import as_matrix, join_rows
from mfgd.observe import (
    ObservationKeys,
    hold_out,
    observe,
    place_entries,
)
from mfgd.reading import Decimal, ReadingKeys
from mfgd.response import Response
from mfgd.sensing import regression, sensing, sensing_file
from mfgd.sparse import LowRank
from mfgd.target import Problem
from mfgd.truths import draw_truth, refuse_oblong
from mfgd.types import Count, Entry, Positive, Seed, Share
from mfgd.whole import positions_unless_all

__all__ = [
    "Problem",
    "digits",
    "explicit",
    "file",
    "from_matrix",
    "gaussian",
    "notebook",
    "ratings",
    "regression",
    "sensing",
    "sensing_file",
    "synthetic",
]


def from_matrix(data: Any, source: str = "D") -> Problem:
    """The problem of a given matrix whose missing entries are NaN.

    Args:
        data: (n, m), anything that `torch.as_tensor` takes.
        source: the name of the matrix in an error.

    Raises:
        Refused: no matrix, an empty matrix, entries that are infinite or no real numbers, or
            nothing observed.
    """
    D = as_matrix(data, source)
    present = positions_unless_all(~D.flatten().isnan())
    if present is None:
        return Problem(AllEntries(D))  # D itself, and not a copy in another layout
    return place_entries(D.flatten()[present], (D.shape[0], D.shape[1]), present, None)


def notebook() -> Problem:
    """The 3×4 matrix of rank 2 that the founding notebook printed, to its four decimals."""
    D = [
        [0.0456, 0.1537, 0.0830, 0.0980],
        [0.2683, 0.4260, 0.4277, 0.4913],
        [0.4779, 0.7156, 0.7563, 0.8673],
    ]
    return from_matrix(torch.tensor(D, dtype=torch.float64))


def synthetic(
    *,
    n: Count,
    m: Count,
    rank: Count,
    spectrum: list[Positive] | None,
    condition: Positive,
    basis: Literal["random", "identity"],
    symmetric: bool,
    response: Response,
    **observation: Unpack[ObservationKeys],
) -> Problem:
    """D = U diag(σ) Vᵀ with orthonormal U and V, seen through `observe`.

    Args:
        n: rows.
        m: columns.
        rank: number of non-zero singular values, which fall linearly from 1 to 1/condition (Tong,
            Ma, Chi 2021, section 4).
        spectrum: the singular values themselves; if given, they win over rank and condition, and
            the params have the rank and the condition that result.
        condition: σ_1 / σ_rank, at least 1.
        basis: random: U and V are drawn; identity: they are the first columns of the identity, and
            D is diagonal.
        symmetric: whether V = U, so that D is symmetric and positive semidefinite; noise and
            outliers are not symmetric.
        response: gaussian: D and its noise are observed; one_bit: 1 and −1 are, 1 with the
            probability 1/(1 + e^{−x}) for an entry x of D; poisson: counts of mean e^x are.

    Raises:
        Refused: a rank or spectrum beyond min(n, m), a condition below 1, a symmetric D with n ≠ m,
            or a key that `observe` refuses.
    """
    generator = stream("problem data", observation["seed"])

    def columns(size: int, r: int) -> Tensor:
        if basis == "identity":
            return torch.eye(size, r, dtype=torch.float64)
        return orthonormal(size, r, generator)

    truth = draw_truth(columns, n, m, rank, spectrum, condition, symmetric)
    D = LowRank(*truth.factors)
    seen = observe(D, rank=truth.rank, generated=True, response=response, **observation)
    draws = {"data": truth.hash()} | seen.draws
    return replace(seen, overruled=truth.overrule(spectrum), draws=draws)


def gaussian(
    *,
    n: Count,
    m: Count,
    scale: Positive,
    symmetric: bool,
    response: Response,
    **observation: Unpack[ObservationKeys],
) -> Problem:
    """Independent Gaussian entries of mean 0, seen through `observe`.

    The largest singular value is about scale (√n + √m), of a symmetric D about 2 scale √n.

    Source: Geman 1980, A limit theorem for the norm of random matrices; for a symmetric D Füredi,
    Komlós 1981, The eigenvalues of random symmetric matrices.

    Args:
        n: rows.
        m: columns.
        scale: standard deviation of an entry.
        symmetric: whether D is (G + Gᵀ)/√2 of such a G, whose diagonal has the deviation √2 scale.
        response: as for problem=synthetic.

    Raises:
        Refused: a symmetric D with n ≠ m, a matrix that cannot fit into memory, or a key that
            `observe` refuses.
    """
    refuse_oblong(n, m, symmetric)
    refuse_large_array((n, m), "problem=gaussian", hint="allowed are smaller n and m")
    G = standard_normal((n, m), stream("problem data", observation["seed"]))
    D = scale * ((G + G.mT) / math.sqrt(2) if symmetric else G)
    seen = observe(D, generated=True, response=response, **observation)
    return replace(seen, draws={"data": hash_tensors(G)} | seen.draws)


def explicit(*, matrix: list[list[Entry]], **observation: Unpack[ObservationKeys]) -> Problem:
    """A matrix on the shell line, seen through `observe`.

    Args:
        matrix: D, row by row; null or NaN is a missing entry.

    Raises:
        Refused: rows of several lengths, no observed entry, or a key that `observe` refuses.
    """
    source = "problem.matrix"
    return observe(as_matrix(join_rows(matrix, source), source), **observation)


def digits(**observation: Unpack[ObservationKeys]) -> Problem:
    """The 1797 handwritten digits of scikit-learn, one a row of 64 pixels from 0 to 16, seen
    through `observe`."""
    from sklearn.datasets import load_digits

    return observe(as_matrix(load_digits().data, "problem=digits"), **observation)


def file(
    *,
    path: str,
    variable: str | None,
    unlisted: files.Unlisted,
    truth: bool,
    header: bool | None,
    index: bool | None,
    separator: str | None,
    decimal: Decimal | None,
    missing: list[str | int | float] | None,
    columns: int | list[str | int] | None,
    **observation: Unpack[ObservationKeys],
) -> Problem:
    """A matrix from a file, seen through `observe`.

    The formats, and how each is read, are [in a table](#files). NaN, or an empty cell, is a missing
    entry. A file that can be read in two ways is refused, and the message names the key that
    decides. No pickled object is ever loaded.

    Args:
        path: the file.
        variable: which array of a file with several is read; null: the only one, or D.
        unlisted: what an entry is that a sparse matrix does not list.
        truth: whether D is right at the entries that problem.mask hides; if not, these are unknown,
            and errors are those of the observed entries.

    Raises:
        Refused: no such file, another format, no matrix, unusable contents, a file that can be read
            in two ways, or a key that `observe` refuses.
    """
    keys = ReadingKeys(
        header=header,
        index=index,
        separator=separator,
        decimal=decimal,
        missing=missing,
        columns=columns,
    )
    name = f"problem.path={path}"
    matrix, source = files.read_matrix(path, name, keys, variable=variable, unlisted=unlisted)
    return replace(observe(matrix, truth_under_mask=truth, **observation), source=source)


def ratings(*, path: str, heldout: Share, seed: Seed, **keys: Unpack[ReadingKeys]) -> Problem:
    """Users × items from a file with one rating a line, such as those of MovieLens (u.data,
    u1.base, ratings.dat, ratings.csv), LIBMF, RecBole and the Netflix prize.

    Columns are found by the names in the header; without a header they are user, item and rating,
    in this order. Ids are whole numbers or text, and never floats; users and items are numbered in
    the order of their ids. A pair without a rating is missing; a pair that is rated twice keeps its
    last rating.

    Args:
        path: the file.
        heldout: share of the ratings that is held out: descent does not see them.
        seed: moves which ratings are held out.

    Raises:
        Refused: no such file, another format, a line without user, item or rating, columns that may
            be others, or a share that leaves nothing.
    """
    listing, source = files.read_ratings(path, f"problem.path={path}", keys)
    n, m = listing.shape
    draws: dict[str, str] = {}
    held = hold_out(len(listing.at), heldout, seed, draws)
    positions = None if len(listing.at) == n * m else listing.at
    placed = place_entries(listing.values, listing.shape, positions, held)
    return replace(placed, draws=draws, source=source)
