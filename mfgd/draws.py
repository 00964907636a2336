"""Random numbers: streams by name and seed, matrices, and long draws in pieces."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

PIECE = 1 << 20
"""Numbers that are drawn at once."""

Draw = Callable[[tuple[int, ...], torch.Generator], Tensor]


def stream(name: str, seed: int) -> torch.Generator:
    """The random stream of a name and a seed: drawing more from one stream never moves another."""
    digest = hashlib.blake2b(f"{name}:{seed}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def hash_tensors(*draws: Tensor) -> str:
    """A short hash of what was drawn: runs that share a draw have the same hash."""
    digest = hashlib.blake2b(digest_size=8)
    for draw in draws:
        digest.update(draw.contiguous().numpy().data)
    return digest.hexdigest()


def standard_normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal numbers in float64; a draw in float32 would be other numbers, not rounded."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def uniform_numbers(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform numbers on [0, 1) in float64."""
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def orthonormal(n: int, k: int, generator: torch.Generator) -> Tensor:
    """A Haar distributed (n, k) matrix with orthonormal columns.

    Source: Mezzadri 2007, How to generate random matrices from the classical compact groups, eq.
    5.10.
    """
    Q, R = torch.linalg.qr(standard_normal((n, k), generator))
    return Q * torch.sgn(R.diagonal())


class HashedStream:
    """A random stream that hashes every number that it draws."""

    def __init__(self, name: str, seed: int) -> None:
        self._generator = stream(name, seed)
        self._digest = hashlib.blake2b(digest_size=8)

    def draw_pieces(self, draw: Draw, size: int) -> Iterator[tuple[int, Tensor]]:
        """A draw of `size` numbers in pieces: the position of the first number, and the numbers.

        torch draws normal numbers sixteen at a time, so pieces of a multiple of 16 give the numbers
        of one draw. The last piece is the longest.
        """
        starts = [PIECE * i for i in range(max(1, size // PIECE))]
        for start, stop in zip(starts, [*starts[1:], size], strict=True):
            numbers = draw((stop - start,), self._generator)
            self._digest.update(numbers.numpy().data)
            yield start, numbers

    def hash(self) -> str:
        """The hash of all numbers so far."""
        return self._digest.hexdigest()


def draw_at(source: HashedStream, draw: Draw, size: int, at: Tensor | None) -> Tensor:
    """The numbers at ascending positions (None: all) of a draw of `size` numbers.

    Only one piece of the whole draw is in memory.
    """
    kept = []
    for start, numbers in source.draw_pieces(draw, size):
        if at is None:
            kept.append(numbers)
            continue
        ends = torch.tensor([start, start + len(numbers)])
        first, last = torch.searchsorted(at, ends).tolist()
        kept.append(numbers[at[first:last] - start])
    return torch.cat(kept) if len(kept) > 1 else kept[0]


def draw_smallest(source: HashedStream, count: int, size: int) -> Tensor:
    """The ascending positions of the `count` smallest of `size` uniform numbers.

    A larger count at the same seed adds positions and removes none.
    """
    candidates: list[tuple[Tensor, Tensor]] = []
    limit = math.inf
    for start, piece in source.draw_pieces(uniform_numbers, size):
        # Above the limit is no wanted number: `count` candidates are at most the limit.
        below = (piece <= limit).nonzero()[:, 0]
        candidates.append((piece[below], below + start))
        # Between pieces the candidates are thinned out once they are twice as many as needed.
        held = sum(len(numbers) for numbers, _ in candidates)
        allowed = count if start + len(piece) == size else 2 * count
        if held > allowed > 0:
            numbers, positions = (torch.cat(parts) for parts in zip(*candidates, strict=True))
            limit = float(numbers.kthvalue(count).values)
            kept = numbers <= limit
            candidates = [(numbers[kept], positions[kept])]
    # Equal numbers may leave more candidates than wanted.
    return torch.cat([positions for _, positions in candidates])[:count]


def locate(wanted: Tensor, among: Tensor) -> Tensor:
    """The places at which wanted positions stand among others; both are ascending."""
    place = torch.searchsorted(among, wanted).clamp(max=len(among) - 1)
    return place[among[place] == wanted]
