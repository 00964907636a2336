"""What is seen of a matrix: some of its entries, disturbed by noise and outliers, and some of them
held out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from mfgd import files
from mfgd.dense import AllEntries, MaskedEntries
from mfgd.draws import (
    HashedStream,
    draw_at,
    draw_smallest,
    locate,
    standard_normal,
    uniform_numbers,
)
from mfgd.observation import Observation
from mfgd.reading import Listing
from mfgd.response import Response, draw_response
from mfgd.sparse import ListedEntries, LowRank, compress_entries, use_sparse
from mfgd.target import Problem
from mfgd.types import Count, NonNegative, Positive, Refused, Seed, Share
from mfgd.whole import Whole, positions_unless_all

EPSILON = torch.finfo(torch.float64).eps
"""The rounding error of a number."""


class ObservationKeys(TypedDict):
    """What is seen of a matrix.

    Noise, outliers, mask and held-out entries have a random stream each, so that none moves
    another. Draws are nested: at the same seed a larger share adds entries and removes none.

    Keys:
        observed: share of the entries that is observed, in (0, 1], or their number as an integer
            above 1.
        mask: path of a given mask instead, a matrix file whose entries are neither 0 nor NaN if D
            is observed there.
        noise: standard deviation of the Gaussian noise on each entry.
        snr: signal-to-noise ratio instead, ‖matrix‖² over the expected ‖noise‖².
        outliers: share of the entries that outliers replace.
        outlier_scale: an outlier is uniform between ± this multiple of the largest entry in
            absolute value (Tong, Ma, Chi 2021, Low-rank matrix recovery with scaled subgradient
            methods).
        heldout: share of the observed entries that is held out: descent does not see them.
        target_rank: rank r of the best approximation T of the truth, or of a complete D without
            known truth; `best_rank_error` is measured to T, and all other errors stay as they are.
        seed: moves every random draw of the problem.
    """

    observed: float | int
    mask: str | None
    noise: NonNegative
    snr: Positive | None
    outliers: Share
    outlier_scale: NonNegative
    heldout: Share
    target_rank: Count | None
    seed: Seed


def observe(
    matrix: Tensor | LowRank | Listing,
    *,
    rank: int | None = None,
    generated: bool = False,
    truth_under_mask: bool = True,
    response: Response = "gaussian",
    **keys: Unpack[ObservationKeys],
) -> Problem:
    """The problem of a matrix that is seen in part.

    Args:
        matrix: (n, m), NaN for a missing entry; or its factors, which are multiplied out unless D
            is sparse; or a list of its entries, of which all others are missing.
        rank: rank of the matrix, if it is known.
        generated: whether the matrix was drawn. A given matrix is the truth only if it differs
            from what is observed.
        truth_under_mask: whether a given matrix is right at the entries that a given mask hides.
        response: what is observed of an entry; the truth stays the matrix.
        keys: `ObservationKeys`.

    Raises:
        Refused: two ways to say one thing, noise or outliers beside a response of another kind, a
            mask of another shape, or no entry left to observe or to hold out.
    """
    if keys["snr"] is not None and keys["noise"]:
        both = f"problem.snr={keys['snr']} beside problem.noise={keys['noise']}"
        raise Refused(f"{both}: allowed is one of the two")
    draws: dict[str, str] = {}
    whole = Whole(matrix)
    seen = _choose_entries(whole, keys, draws)
    at = whole.positions(seen)
    whole = whole.multiply_out(at)
    matrix = whole.matrix

    clean = whole.values_at(at)
    values, deviation = _add_noise(clean, whole, seen, keys, draws)
    values = _add_outliers(values, whole, seen, keys, draws)
    if response != "gaussian":
        if values is not clean:
            allowed = "allowed are problem.noise=0 problem.snr=null problem.outliers=0"
            raise Refused(f"problem.response={response}: is drawn without noise; {allowed}")
        values = draw_response(clean, response, whole.size, seen, keys["seed"], draws)
    held = hold_out(len(values.flatten()), keys["heldout"], keys["seed"], draws)

    disturbed = values is not clean
    known = whole.present is None and (truth_under_mask or not keys["mask"])
    hides = known and (seen is not None or disturbed)
    clear = AllEntries(matrix) if isinstance(matrix, Tensor) else matrix
    truth = None
    if not isinstance(clear, Listing) and (generated or hides):
        truth = clear
    if at is None and held is None and not disturbed and isinstance(clear, AllEntries):
        problem = Problem(clear)  # D is the matrix itself, and not a copy
    else:
        problem = place_entries(values, whole.shape, at, held)
    problem = replace(problem, truth=truth)
    if keys["target_rank"] is not None:
        refuse_vague_target(problem, keys["target_rank"])
    return replace(
        problem,
        rank=None if disturbed else rank,
        target_rank=keys["target_rank"],
        generated=generated,
        noise=None if truth is None or response != "gaussian" or keys["outliers"] else deviation,
        draws=draws,
    )


def refuse_vague_target(problem: Problem, r: int) -> None:
    """Refuses a `problem.target_rank` of which there is no best approximation, or more than one.

    Raises:
        Refused: as said.
    """
    name, (n, m) = f"problem.target_rank={r}", problem.shape
    if r > min(n, m):
        raise Refused(f"{name}: must be at most min(n, m) = {min(n, m)}")
    sigma = problem.truth_spectrum if problem.hides_truth else problem.spectrum
    if sigma is None:
        raise Refused(f"{name}: neither the truth nor all of D is known; must be null")
    if r >= len(sigma) or not 0 < sigma[r] >= sigma[r - 1] * (1 - max(n, m) * EPSILON):
        return
    equal = f"singular values {r} and {r + 1} are equal, so that there are many best approximations"
    raise Refused(f"{name}: {equal}; must be where they differ")


def _choose_entries(whole: Whole, keys: ObservationKeys, draws: dict[str, str]) -> Tensor | None:
    """Which of the entries that are not missing are observed, ascending; None: all."""
    observed, size = keys["observed"], whole.size
    if keys["mask"]:
        return _apply_mask(whole, keys["mask"], observed)
    is_count = isinstance(observed, int) and 1 <= observed <= size
    name = f"problem.observed={observed}"
    if not (0 < observed <= 1 or is_count):
        raise Refused(f"{name}: must be a share in (0, 1] or a count up to {size}")
    count = round(observed * size) if observed <= 1 else int(observed)
    if count == size:
        return None
    if count == 0:
        raise Refused(f"{name}: no entry of {size} is left; must be at least 1/{size}")
    source = HashedStream("problem mask", keys["seed"])
    seen = draw_smallest(source, count, size)
    draws["mask"] = source.hash()
    return seen


def _apply_mask(whole: Whole, path: str, observed: float | int) -> Tensor | None:
    """Which of the entries that are not missing a given mask shows, ascending; None: all."""
    name = f"problem.mask={path}"
    if observed != 1:
        raise Refused(f"{name} beside problem.observed={observed}: allowed is one of the two")
    given = files.read_mask(path, name)
    if tuple(given.shape) != whole.shape:
        shape = tuple(given.shape)
        raise Refused(f"{name}: a mask of shape {shape}; must be the shape of D, {whole.shape}")
    shown = (given.nan_to_num() != 0).flatten()
    if whole.present is not None:
        shown = shown[whole.present]
    if not shown.any():
        raise Refused(f"{name}: observes no entry; must observe at least one")
    return positions_unless_all(shown)


def _add_noise(
    values: Tensor,
    whole: Whole,
    seen: Tensor | None,
    keys: ObservationKeys,
    draws: dict[str, str],
) -> tuple[Tensor, float]:
    """The values with noise, and its standard deviation."""
    deviation = keys["noise"]
    if keys["snr"] is not None:
        deviation = math.sqrt(whole.mean_square() / keys["snr"])
    if deviation:
        source = HashedStream("problem noise", keys["seed"])
        values = values + deviation * draw_at(source, standard_normal, whole.size, seen)
        draws["noise"] = source.hash()
    return values, deviation


def _add_outliers(
    values: Tensor,
    whole: Whole,
    seen: Tensor | None,
    keys: ObservationKeys,
    draws: dict[str, str],
) -> Tensor:
    """The values with outliers in place of some of them."""
    if not keys["outliers"]:
        return values
    source = HashedStream("problem outliers", keys["seed"])
    struck = draw_smallest(source, round(keys["outliers"] * whole.size), whole.size)
    numbers = 2 * draw_at(source, uniform_numbers, whole.size, seen) - 1
    draws["outliers"] = source.hash()
    hit = struck if seen is None else locate(struck, seen)
    bound = keys["outlier_scale"] * whole.largest_entry()
    return values.index_copy(0, hit, bound * numbers[hit])


def hold_out(
    size: int, share: float, seed: int, draws: dict[str, str], what: str = "observed entries"
) -> Tensor | None:
    """Which of `size` observed entries, or of what else, are held out, ascending; None: none.

    Raises:
        Refused: the share leaves nothing to see, or holds out nothing.
    """
    if not share:
        return None
    source = HashedStream("problem heldout", seed)
    held = draw_smallest(source, round(share * size), size)
    if not 0 < len(held) < size:
        counts = f"holds out {len(held)} of {size} {what}; must be 1 to {size - 1}"
        raise Refused(f"problem.heldout={share}: {counts}")
    draws["heldout"] = source.hash()
    return held


def place_entries(
    values: Tensor, shape: tuple[int, int], at: Tensor | None, held: Tensor | None
) -> Problem:
    """The problem with values at positions `at` of the flattened matrix (None: everywhere), some of
    them held out."""
    if at is None and held is None:
        return Problem(AllEntries(values.view(shape)))
    if at is None:
        at = torch.arange(values.numel())
    seen = torch.ones_like(at, dtype=torch.bool)
    if held is not None:
        seen[held] = False
    heldout = None if held is None else _place(values, shape, at, ~seen)
    return Problem(_place(values, shape, at, seen), heldout=heldout)


def _place(values: Tensor, shape: tuple[int, int], at: Tensor, chosen: Tensor) -> Observation:
    """The chosen entries; whether all entries are listed decides that these are."""
    if use_sparse(*shape, len(at)):
        return ListedEntries(compress_entries(at[chosen], values[chosen], *shape))
    D, mask = torch.zeros(shape, dtype=values.dtype), torch.zeros(shape, dtype=values.dtype)
    D.view(-1)[at[chosen]], mask.view(-1)[at[chosen]] = values[chosen], 1.0
    return MaskedEntries(D, mask)
