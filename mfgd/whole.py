"""A matrix before it is observed: in full, as a product of factors, or as a list of entries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from mfgd.draws import PIECE
from mfgd.reading import Listing
from mfgd.sparse import ListedEntries, LowRank, compress_entries, use_sparse


@dataclass(frozen=True)
class Whole:
    """A matrix (n, m), of which some entries may be missing."""

    matrix: Tensor | LowRank | Listing
    """NaN for a missing entry; or factors L (n, r), R (r, m); or the entries that are there."""

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        if isinstance(self.matrix, LowRank):
            return self.matrix.left.shape[0], self.matrix.right.shape[1]
        return self.matrix.shape[0], self.matrix.shape[1]

    @cached_property
    def present(self) -> Tensor | None:
        """Ascending positions, in the flattened matrix, of the entries that are not missing; None:
        all."""
        if isinstance(self.matrix, Listing):
            return self.matrix.at
        if isinstance(self.matrix, LowRank):
            return None
        return positions_unless_all(~self.matrix.flatten().isnan())

    @property
    def size(self) -> int:
        """How many entries are not missing."""
        return self.shape[0] * self.shape[1] if self.present is None else len(self.present)

    def positions(self, seen: Tensor | None) -> Tensor | None:
        """Ascending positions, in the flattened matrix, of some of the entries that are not missing
        (None: of all)."""
        if seen is None:
            return self.present
        return seen if self.present is None else self.present[seen]

    def multiply_out(self, at: Tensor | None) -> Whole:
        """The matrix with its factors multiplied out, unless the observed entries are listed."""
        if not isinstance(self.matrix, LowRank):
            return self
        if at is not None and use_sparse(*self.shape, len(at)):
            return self
        return replace(self, matrix=self.matrix.left @ self.matrix.right)

    def values_at(self, at: Tensor | None) -> Tensor:
        """The entries at positions of the flattened matrix; None: all."""
        if isinstance(self.matrix, Tensor):
            return self.matrix.flatten() if at is None else self.matrix.flatten()[at]
        assert at is not None
        if isinstance(self.matrix, Listing):
            return self.matrix.values[torch.searchsorted(self.matrix.at, at)]
        listed = ListedEntries(compress_entries(at, at.to(torch.float64), *self.shape))
        return listed.apply(self.matrix.left, self.matrix.right).flatten()

    def mean_square(self) -> float:
        """Mean square of the entries that are not missing."""
        if not isinstance(self.matrix, LowRank):
            return float(self.values_at(self.present).square().mean())
        A, B = self.matrix.left, self.matrix.right
        return float(((A.mT @ A) * (B @ B.mT)).sum() / (A.shape[0] * B.shape[1]))

    def largest_entry(self) -> float:
        """The largest entry in absolute value."""
        if isinstance(self.matrix, Listing):
            return float(self.matrix.values.abs().max())
        if isinstance(self.matrix, Tensor):
            return float(self.matrix.nan_to_num().abs().max())
        height = max(1, PIECE // self.matrix.right.shape[1])
        blocks = torch.split(self.matrix.left, height)
        return max(float((rows @ self.matrix.right).abs().max()) for rows in blocks)


def positions_unless_all(chosen: Tensor) -> Tensor | None:
    """The positions at which a flat mask is true; None: everywhere."""
    return None if chosen.all() else chosen.nonzero()[:, 0]
