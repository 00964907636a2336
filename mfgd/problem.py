"""What is factored, and what is known of its answer.

Each function here is an option of ``problem=``; its keyword arguments are that option's keys. It returns a `Problem`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfgd import files, sparse
from mfgd.types import Count, Factors, NonNegative, Positive, Refused, Seed, Share

PIECE = 1 << 20
"""Numbers that are drawn at once."""


class Triplets(NamedTuple):
    """Singular triplets U diag(σ) Vᵀ, largest first."""

    U: Tensor
    """(*, n, r), orthonormal columns."""
    sigma: Tensor
    """(*, r)."""
    V: Tensor
    """(*, m, r), orthonormal columns."""

    @classmethod
    def of(cls, factors: Factors) -> Triplets:
        """Those of W₁…W_L, r = min(n, k, m), from two QR factorizations and a k×k product."""
        first, *inner, last = factors
        (Q, R), (P, S) = torch.linalg.qr(first), torch.linalg.qr(last.mT)
        U, sigma, Vh = torch.linalg.svd(
            reduce(torch.matmul, (R, *inner)) @ S.mT, full_matrices=False
        )
        return cls(Q @ U, sigma, P @ Vh.mT)


@dataclass(frozen=True)
class Problem:
    """A target D with its observed entries, and the truth behind it where that is known."""

    D: Tensor
    """(*, n, m), finite; 0 where not observed. Of a large matrix with few observed entries (`mfgd.sparse.suits`) those
    alone, (n, m) in compressed rows: such a problem has no leading dimensions, and serves one run at a time."""
    mask: Tensor | None = None
    """(*, n, m), 1 where observed and 0 where not; None when every entry is observed, or D is sparse."""
    truth: Tensor | Factors | None = None
    """(*, n, m), the noiseless, complete matrix, or beside a sparse D its factors (n, r) and (r, m); None where
    unknown."""
    rank: int | None = None
    """The rank of the truth where D has no noise: from this rank on the loss can reach 0."""
    generated: bool = False
    """Drawn from a seed, not read from somewhere."""
    noise: float | None = None
    """Standard deviation of the Gaussian noise of D about the truth; None where it is unknown or there are outliers."""
    heldout: Tensor | None = None
    """(*, n, m), the observed entries set aside for testing, NaN elsewhere, or beside a sparse D those alone; None when
    none are. To D and the mask they are not observed."""
    draws: dict[str, str] = field(default_factory=dict)
    """Kind of random draw that was made (data, noise, mask, outliers, heldout) → its hash."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return self.D.shape[-2], self.D.shape[-1]

    @property
    def count(self) -> Tensor | int:
        """Number of observed entries, (*, 1, 1) under a mask."""
        if self.pattern is not None:
            return self.entries.numel()
        n, m = self.shape
        return n * m if self.mask is None else self.mask.sum((-2, -1), keepdim=True)

    @property
    def complete(self) -> bool:
        """Whether every entry is observed."""
        return self.mask is None and self.pattern is None

    @property
    def entries(self) -> Tensor:
        """D, or of a sparse one the values that it holds, (N,)."""
        return self.D if self.pattern is None else self.D.values()

    @cached_property
    def pattern(self) -> sparse.Pattern | None:
        """Where the entries of a sparse D lie; None where D is not sparse."""
        return sparse.Pattern(self.D) if self.D.layout == torch.sparse_csr else None

    @cached_property
    def spectrum(self) -> Tensor | None:
        """Singular values (*, r), largest first: of D when fully observed, else of the truth; None where unknown.

        What is rounding only, below σ₁ max(n, m) ε, is 0. Of a truth in factors there are as many as it has columns.
        """
        return self._exact(torch.linalg.svdvals(self.D)) if self.complete else self.truth_spectrum

    @cached_property
    def truth_spectrum(self) -> Tensor | None:
        """The same of the truth."""
        if isinstance(self.truth, tuple):
            R, S = (torch.linalg.qr(X, mode="r").R for X in (self.truth[0], self.truth[1].mT))
            return self._exact(torch.linalg.svdvals(R @ S.mT))
        return None if self.truth is None else self._exact(torch.linalg.svdvals(self.truth))

    @cached_property
    def triplets(self) -> Triplets | None:
        """The triplets of what `spectrum` is of, with its σ."""
        target = self.D if self.complete else self.truth
        if target is None or self.spectrum is None:
            return None
        if isinstance(target, tuple):
            return Triplets.of(target)._replace(sigma=self.spectrum)
        U, _, Vh = torch.linalg.svd(target, full_matrices=False)
        return Triplets(U, self.spectrum, Vh.mT)

    @cached_property
    def largest(self) -> float:
        """σ₁ of D (n, m), 0 where not observed; of a large or sparse one by Lanczos."""
        if not self.entries.any():
            return 0.0
        if self.pattern is None and min(self.shape) < 200:
            return float(torch.linalg.matrix_norm(self.D, ord=2))
        from scipy.sparse.linalg import svds

        D = self.D.numpy() if self.pattern is None else sparse.as_scipy(self.D)
        (sigma,) = svds(D, k=1, return_singular_vectors=False, v0=np.ones(min(self.shape)))
        return float(sigma)

    @property
    def holed(self) -> Tensor:
        """D with NaN where it is not observed; a sparse one as it is."""
        return self.D if self.mask is None else self.D.masked_fill(self.mask == 0, torch.nan)

    def _exact(self, sigma: Tensor) -> Tensor:
        least = sigma[..., :1] * max(self.shape) * torch.finfo(sigma.dtype).eps
        return torch.where(sigma > least, sigma, 0)

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Problem:
        """The same problem in another precision, on another device."""

        def moved(x: Any) -> Any:
            if isinstance(x, tuple):
                return tuple(map(moved, x))
            return None if x is None else x.to(dtype=dtype, device=device)

        D = moved(self.D)
        truth = D if self.truth is self.D else moved(self.truth)
        return replace(self, D=D, mask=moved(self.mask), truth=truth, heldout=moved(self.heldout))


def stream(name: str, seed: int) -> torch.Generator:
    """A random stream of its own for each (name, seed), so that drawing more from one never moves another."""
    digest = hashlib.blake2b(f"{name}:{seed}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def hashed(*draws: Tensor) -> str:
    """A short hash of what was drawn, by which runs that share it are found."""
    digest = _hash()
    for draw in draws:
        digest.update(draw.contiguous().numpy())
    return digest.hexdigest()


def gaussian(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal draw in float64: a draw in float32 would be another one, not the same one rounded."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform draw on [0, 1) in float64."""
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def orthonormal(n: int, k: int, generator: torch.Generator) -> Tensor:
    """(n, k) with orthonormal columns, Haar distributed (Mezzadri 2007, How to generate random matrices, eq. 5.10)."""
    Q, R = torch.linalg.qr(gaussian((n, k), generator))
    return Q * torch.sgn(R.diagonal())


def of(data: Any, source: str = "D") -> Problem:
    """The problem of a given matrix whose missing entries are NaN.

    Args:
        data: (n, m), anything that `torch.as_tensor` takes.
        source: how an error names the matrix.

    Raises:
        Refused: not a non-empty matrix of real numbers, infinite entries, or nothing observed.
    """
    D = files.matrix(data, source)
    at = _whole_or(~D.flatten().isnan())
    return _laid_out(D if at is None else _values(D, at), (D.shape[0], D.shape[1]), at, None)


def observe(
    whole: Tensor | Factors,
    *,
    observed: float | int,
    mask: str | None,
    noise: NonNegative,
    snr: Positive | None,
    outliers: Share,
    outlier_scale: NonNegative,
    heldout: Share,
    seed: Seed,
    rank: int | None = None,
    generated: bool = False,
) -> Problem:
    """What is seen of a matrix: some of its entries, disturbed by noise and outliers, and some of those set aside.

    Noise, outliers, mask and what is set aside have a stream of their own under the one seed: none moves another.
    Draws are nested: at the same seed a larger share of any of them adds entries and removes none.

    Args:
        whole: (n, m), NaN where missing; or its factors (n, r) and (r, m), which are multiplied out unless D is sparse.
        observed: share of the entries there are that is observed, in (0, 1], or their number as an integer above 1.
        mask: path of a given mask instead, a matrix file whose entries are neither 0 nor NaN where D is observed.
        noise: standard deviation of the Gaussian noise on each entry.
        snr: signal-to-noise ratio instead, ‖whole‖² over the expected ‖noise‖².
        outliers: share of the entries there are that outliers replace.
        outlier_scale: an outlier is uniform between ± this multiple of the largest entry of the whole in absolute
            value (Tong, Ma, Chi 2021, Low-rank matrix recovery with scaled subgradient methods).
        heldout: share of the observed entries that is set aside.
        seed: moves noise, outliers, mask and what is set aside.
        rank: of the whole, where it is known.
        generated: whether the whole was drawn; else it is the truth only where it differs from what is observed.

    Raises:
        Refused: two ways to say one thing, a mask of another shape, or no entry left to observe or to set aside.
    """
    if snr is not None and noise:
        raise Refused(f"problem.snr={snr} beside problem.noise={noise}: allowed is one of the two")
    draws: dict[str, str] = {}
    n, m = shape = (
        (whole[0].shape[0], whole[-1].shape[1]) if isinstance(whole, tuple) else tuple(whole.shape)
    )
    there = None if isinstance(whole, tuple) else _whole_or(~whole.flatten().isnan())
    size = n * m if there is None else len(there)
    seen = (
        _mask_seen(observed, mask, shape, there)
        if mask
        else _share_seen(observed, size, seed, draws)
    )
    at = there if seen is None else seen if there is None else there[seen]
    if isinstance(whole, tuple) and not (at is not None and sparse.suits(n, m, len(at))):
        whole = whole[0] @ whole[1]
    clean = values = _values(whole, at)

    deviation = noise if snr is None else math.sqrt(_power(whole, there) / snr)
    if deviation:
        draw, digest = stream("problem noise", seed), _hash()
        values = values + deviation * _picked(gaussian, size, draw, digest, seen)
        draws["noise"] = digest.hexdigest()
    if outliers:
        draw, digest = stream("problem outliers", seed), _hash()
        struck = _least(round(outliers * size), size, draw, digest)
        drawn = 2 * _picked(uniform, size, draw, digest, seen) - 1
        hit = struck if seen is None else _found(struck, seen)
        values = values.index_copy(0, hit, outlier_scale * _peak(whole) * drawn[hit])
        draws["outliers"] = digest.hexdigest()
    aside = _set_aside(len(values), heldout, seed, draws)
    disturbed = values is not clean
    known = generated or (there is None and (seen is not None or disturbed))
    plain = (
        isinstance(whole, Tensor) and at is None and not disturbed
    )  # then D is the truth, and not a copy of it
    return replace(
        _laid_out(whole if plain else values, shape, at, aside),  # type: ignore[arg-type]
        truth=whole if known else None,
        rank=None if disturbed else rank,
        generated=generated,
        noise=deviation if known and not outliers else None,
        draws=draws,
    )


def _values(whole: Tensor | Factors, at: Tensor | None) -> Tensor:
    """The entries at positions of the flattened matrix; None: all."""
    if isinstance(whole, Tensor):
        return whole.flatten() if at is None else whole.flatten()[at]
    assert at is not None
    n, m = whole[0].shape[0], whole[1].shape[1]
    return sparse.Pattern(sparse.csr(at, at.to(torch.float64), n, m)).sampled(*whole).flatten()


def _power(whole: Tensor | Factors, there: Tensor | None) -> float:
    """Mean square of the entries."""
    if isinstance(whole, Tensor):
        return float(_values(whole, there).square().mean())
    A, B = whole
    return float(((A.mT @ A) * (B @ B.mT)).sum() / (A.shape[0] * B.shape[1]))


def _peak(whole: Tensor | Factors) -> float:
    """The largest entry in absolute value."""
    if isinstance(whole, Tensor):
        return float(whole.nan_to_num().abs().max())
    A, B = whole
    return max(
        float((rows @ B).abs().max()) for rows in torch.split(A, max(1, PIECE // B.shape[1]))
    )


def _set_aside(size: int, share: float, seed: int, draws: dict[str, str]) -> Tensor | None:
    """Which of so many observed entries are set aside, ascending; None: no."""
    if not share:
        return None
    digest = _hash()
    aside = _least(round(share * size), size, stream("problem heldout", seed), digest)
    if not 0 < len(aside) < size:
        counts = f"sets {len(aside)} of {size} observed entries aside; allowed are 1 to {size - 1}"
        raise Refused(f"problem.heldout={share}: {counts}")
    draws["heldout"] = digest.hexdigest()
    return aside


def _whole_or(chosen: Tensor) -> Tensor | None:
    """Where a flat mask is 1; None: everywhere."""
    return None if chosen.all() else chosen.nonzero()[:, 0]


def _share_seen(
    observed: float | int, size: int, seed: int, draws: dict[str, str]
) -> Tensor | None:
    """Which of so many entries are observed, ascending; None: all."""
    if not (0 < observed <= 1 or (isinstance(observed, int) and 1 <= observed <= size)):
        raise Refused(
            f"problem.observed={observed}: allowed is a share in (0, 1] or a count up to {size}"
        )
    count = round(observed * size) if observed <= 1 else int(observed)
    if count == size:
        return None
    if count == 0:
        raise Refused(
            f"problem.observed={observed}: no entry of {size} is left; allowed is at least 1/{size}"
        )
    digest = _hash()
    seen = _least(count, size, stream("problem mask", seed), digest)
    draws["mask"] = digest.hexdigest()
    return seen


def _mask_seen(
    observed: float | int, path: str, shape: tuple[int, ...], there: Tensor | None
) -> Tensor | None:
    """Which of the entries that are there a given mask lets through, ascending; None: all."""
    if observed != 1:
        raise Refused(
            f"problem.mask={path} beside problem.observed={observed}: allowed is one of the two"
        )
    given = files.read(path, f"problem.mask={path}")
    if tuple(given.shape) != shape:
        raise Refused(
            f"problem.mask={path}: a mask of shape {tuple(given.shape)}; allowed is that of D, {shape}"
        )
    through = (given.nan_to_num() != 0).flatten()
    through = through if there is None else through[there]
    if not through.any():
        raise Refused(f"problem.mask={path}: observes no entry; allowed is at least one")
    return _whole_or(through)


def _laid_out(
    values: Tensor, shape: tuple[int, int], at: Tensor | None, aside: Tensor | None
) -> Problem:
    """The problem with values at some positions of the flattened matrix (None: everywhere), some of them set aside."""
    if at is None and aside is None:
        return Problem(values.view(shape) if values.ndim == 1 else values)
    if at is not None and sparse.suits(*shape, len(at)):
        if aside is None:
            return Problem(sparse.csr(at, values, *shape))
        left = torch.ones_like(at, dtype=torch.bool).index_fill_(0, aside, False)
        D, heldout = (sparse.csr(at[some], values[some], *shape) for some in (left, aside))
        return Problem(D, heldout=heldout)
    at = torch.arange(values.numel()) if at is None else at
    values = values.flatten()
    D, mask = (torch.zeros(shape, dtype=values.dtype) for _ in range(2))
    D.view(-1)[at], mask.view(-1)[at] = values, 1.0
    if aside is None:
        return Problem(D, mask)
    heldout = torch.full_like(D, torch.nan)
    heldout.view(-1)[at[aside]] = values[aside]
    D.view(-1)[at[aside]] = mask.view(-1)[at[aside]] = 0.0
    return Problem(D, mask, heldout=heldout)


def _hash() -> Any:
    return hashlib.blake2b(digest_size=8)


def _pieces(size: int) -> Iterator[tuple[int, int]]:
    """A long draw in pieces, the same numbers as in one: torch draws normal numbers in sixteens, and so do these."""
    starts = [PIECE * i for i in range(max(1, size // PIECE))]
    yield from zip(starts, [*starts[1:], size], strict=True)


def _picked(
    draw: Callable[[tuple[int, ...], torch.Generator], Tensor],
    size: int,
    generator: torch.Generator,
    digest: Any,
    at: Tensor | None,
) -> Tensor:
    """Of a draw of so many numbers those at ascending positions (None: all), hashing the whole of it."""
    kept = []
    for start, stop in _pieces(size):
        piece = draw((stop - start,), generator)
        digest.update(piece.numpy())
        if at is not None:
            first, last = torch.searchsorted(at, torch.tensor([start, stop])).tolist()
            piece = piece[at[first:last] - start]
        kept.append(piece)
    return torch.cat(kept) if len(kept) > 1 else kept[0]


def _least(count: int, size: int, generator: torch.Generator, digest: Any) -> Tensor:
    """The ascending positions of the `count` least of so many uniform numbers, hashing all of them."""
    lowest: list[tuple[Tensor, Tensor]] = []
    limit = math.inf
    for start, stop in _pieces(size):
        piece = uniform((stop - start,), generator)
        digest.update(piece.numpy())
        below = (piece <= limit).nonzero()[:, 0]
        lowest.append((piece[below], below + start))
        if sum(len(numbers) for numbers, _ in lowest) > (count if stop == size else 2 * count) > 0:
            numbers, positions = (torch.cat(parts) for parts in zip(*lowest, strict=True))
            limit = float(numbers.kthvalue(count).values)
            kept = numbers <= limit
            lowest = [(numbers[kept], positions[kept])]
    return torch.cat([positions for _, positions in lowest])[:count]


def _found(wanted: Tensor, among: Tensor) -> Tensor:
    """Where those of the wanted numbers that are among others, both ascending, stand there."""
    place = torch.searchsorted(among, wanted).clamp(max=len(among) - 1)
    return place[among[place] == wanted]


def notebook() -> Problem:
    """The 3×4 matrix of rank 2 that the founding notebook printed, to its four decimals."""
    D = [
        [0.0456, 0.1537, 0.0830, 0.0980],
        [0.2683, 0.4260, 0.4277, 0.4913],
        [0.4779, 0.7156, 0.7563, 0.8673],
    ]
    return of(torch.tensor(D, dtype=torch.float64))


def synthetic(
    *,
    n: Count,
    m: Count,
    rank: Count,
    spectrum: list[Positive] | None,
    condition: Positive,
    noise: NonNegative,
    snr: Positive | None,
    outliers: Share,
    outlier_scale: NonNegative,
    observed: float | int,
    mask: str | None,
    heldout: Share,
    seed: Seed,
) -> Problem:
    """D = U diag(σ) Vᵀ with random orthonormal U and V, seen through `observe`.

    Args:
        n: rows.
        m: columns.
        rank: number of non-zero singular values, which fall linearly from 1 to 1/condition
            (Tong, Ma, Chi 2021, section 4).
        spectrum: the singular values themselves; given, it wins over rank and condition.
        condition: σ_1 / σ_rank, at least 1.
        noise: as snr, outliers, outlier_scale, observed, mask and heldout an argument of `observe`.
        seed: moves U, V and what `observe` draws.

    Raises:
        Refused: a rank or spectrum beyond min(n, m), a condition below 1, or what `observe` refuses.
    """
    if condition < 1:
        raise Refused(f"problem.condition={condition}: allowed is a number of at least 1")
    key = (
        f"problem.rank={rank}"
        if spectrum is None
        else f"problem.spectrum of length {len(spectrum)}"
    )
    sigma = torch.as_tensor(
        np.linspace(1, 1 / condition, rank) if spectrum is None else spectrum, dtype=torch.float64
    )
    r = len(sigma)
    if not 1 <= r <= min(n, m):
        raise Refused(f"{key}: allowed is 1 to min(n, m) = {min(n, m)}")
    sigma = sigma.sort(descending=True).values
    data = stream("problem data", seed)
    U, V = orthonormal(n, r, data), orthonormal(m, r, data)
    seen = observe(
        (U * sigma, V.mT),
        observed=observed,
        mask=mask,
        noise=noise,
        snr=snr,
        outliers=outliers,
        outlier_scale=outlier_scale,
        heldout=heldout,
        seed=seed,
        rank=r,
        generated=True,
    )
    return replace(seen, draws={"data": hashed(U, V)} | seen.draws)


def digits(
    *,
    observed: float | int,
    mask: str | None,
    noise: NonNegative,
    snr: Positive | None,
    outliers: Share,
    outlier_scale: NonNegative,
    heldout: Share,
    seed: Seed,
) -> Problem:
    """The 1797 handwritten digits that come with scikit-learn, one a row of 64 pixels from 0 to 16 (1797×64).

    They are seen through `observe`, whose arguments these are.
    """
    from sklearn.datasets import load_digits

    return observe(
        files.matrix(load_digits().data, "problem=digits"),
        observed=observed,
        mask=mask,
        noise=noise,
        snr=snr,
        outliers=outliers,
        outlier_scale=outlier_scale,
        heldout=heldout,
        seed=seed,
    )


def file(
    *,
    path: str,
    observed: float | int,
    mask: str | None,
    noise: NonNegative,
    snr: Positive | None,
    outliers: Share,
    outlier_scale: NonNegative,
    heldout: Share,
    seed: Seed,
) -> Problem:
    """A matrix from a file: .npy, .npz, .csv, .tsv, .mtx, .pt or .parquet. NaN, or an empty cell, is a missing entry.

    An .npz or .pt with several arrays must name one of them D. In .mtx, entries that are not listed are 0, as the
    format says. A first line of .csv or .tsv without a number in it is a header. No pickled object is ever loaded.
    The matrix is seen through `observe`, whose arguments the others are.

    Raises:
        Refused: no such file, another format, not a matrix, unusable contents, or what `observe` refuses.
    """
    return observe(
        files.read(path, f"problem.path={path}"),
        observed=observed,
        mask=mask,
        noise=noise,
        snr=snr,
        outliers=outliers,
        outlier_scale=outlier_scale,
        heldout=heldout,
        seed=seed,
    )


def ratings(*, path: str, heldout: Share, seed: Seed) -> Problem:
    """Users × items from a MovieLens file: u.data (tabs), ratings.dat (::) or ratings.csv (a header and commas).

    Users and items are numbered in the order of their ids, and the others of the grid are missing. A pair rated twice
    keeps its last rating. A share of them, ``heldout``, is set aside as in `observe`; ``seed`` moves which.

    Raises:
        Refused: no such file, another format, a line without user, item or rating, or a share that leaves nothing.
    """
    source = f"problem.path={path}"
    user, item, rating = files.ratings(path, source)
    (users, row), (items, column) = (np.unique(ids, return_inverse=True) for ids in (user, item))
    n, m = len(users), len(items)
    if n == 0:
        raise Refused(f"{source}: an empty matrix of shape (0, 0); allowed is at least one rating")
    at, last = np.unique((row * m + column)[::-1], return_index=True)
    draws: dict[str, str] = {}
    aside = _set_aside(len(at), heldout, seed, draws)
    rated = torch.from_numpy(rating[::-1][last])
    made = _laid_out(rated, (n, m), None if len(at) == n * m else torch.from_numpy(at), aside)
    return replace(made, draws=draws)
