"""A problem: what is seen of the matrix D, and what is known of the truth behind D."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from mfgd.dense import AllEntries
from mfgd.kernel import Stack
from mfgd.linalg import frobenius_norm
from mfgd.observation import Observation, Truth
from mfgd.reading import Source
from mfgd.spectra import Triplets, drop_rounding


@dataclass(frozen=True, eq=False)
class Problem:
    """A matrix D (*, n, m) that is to be factored. Leading dimensions * are runs."""

    observation: Observation
    """What descent sees of D."""
    truth: Truth | None = None
    """D*, the noiseless and complete matrix behind D; None if it is unknown."""
    heldout: Observation | None = None
    """The observed entries, or measurements, that are held out: descent does not see them, and
    `heldout_error` is measured on them."""
    rank: int | None = None
    """The rank of the truth if D has no noise: a loss can reach 0 from this rank on."""
    target_rank: int | None = None
    """The rank of the best approximation that `best_rank_error` refers to; None: there is none."""
    generated: bool = False
    """Whether D was drawn from a seed; if not, D was read from somewhere."""
    noise: float | None = None
    """Standard deviation of the Gaussian noise of D about the truth; None if it is unknown, if
    there are outliers, and of linear measurements."""
    source: Source | None = None
    """The file that D was read from; None if there is none."""
    overruled: dict[str, float] = field(default_factory=dict)
    """Keys of the option that another key overrules → the number that holds instead."""
    draws: dict[str, str] = field(default_factory=dict)
    """Hash of each random draw that was made: data, operator, noise, mask, outliers, heldout."""

    @property
    def D(self) -> Tensor:
        """The observed entries: (*, n, m) with 0 for an entry that is not observed, or (N,) of N
        listed entries; (*, 1, N) of N linear measurements."""
        return self.observation.target

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return self.observation.shape

    @property
    def count(self) -> Tensor | int:
        """Number of observed entries, (*, 1, 1) under a mask."""
        return self.observation.count

    @property
    def complete(self) -> bool:
        """Whether every entry is observed."""
        return self.observation.complete

    @property
    def hides_truth(self) -> bool:
        """Whether the truth is known and differs from what is observed."""
        if self.truth is None:
            return False
        return not isinstance(self.truth, AllEntries) or self.truth.target is not self.D

    @property
    def pictured(self) -> tuple[str, Observation]:
        """What D̂ is drawn beside, and its name: D; of linear measurements the truth D*, or if it is
        unknown what A*(y) tells of D."""
        if self.observation.entrywise:
            return "D", self.observation
        if isinstance(self.truth, AllEntries):
            return "D*", self.truth
        return "A*(y)", self.observation

    @cached_property
    def spectrum(self) -> Tensor | None:
        """Singular values (*, r), largest first: of D if D is complete, else of the truth; None if
        unknown.

        A value below σ₁ max(n, m) ε is rounding, and 0 here. A truth in factors has as many values
        as columns.
        """
        if isinstance(self.observation, AllEntries):
            return drop_rounding(self.observation.singular_values(), self.shape)
        return self.truth_spectrum

    @cached_property
    def truth_spectrum(self) -> Tensor | None:
        """Singular values of the truth, like `spectrum`."""
        if self.truth is None:
            return None
        return drop_rounding(self.truth.singular_values(), self.shape)

    @cached_property
    def triplets(self) -> Triplets | None:
        """Singular triplets of the matrix whose singular values `spectrum` has."""
        seen = self.observation
        matrix = seen if isinstance(seen, AllEntries) else self.truth
        if matrix is None or self.spectrum is None:
            return None
        U, V = matrix.singular_vectors()
        return Triplets(U, self.spectrum, V)

    @cached_property
    def reference(self) -> Triplets | None:
        """Singular triplets of the matrix that errors refer to: the truth, or D if the truth is
        unknown; None if D is incomplete then."""
        if self.truth is None or not self.hides_truth:
            return self.triplets
        U, V = self.truth.singular_vectors()
        assert self.truth_spectrum is not None
        return Triplets(U, self.truth_spectrum, V)

    @cached_property
    def largest(self) -> float:
        """The largest absolute value of an observed entry of D (n, m)."""
        return max(abs(float(value)) for value in torch.aminmax(self.D))

    @cached_property
    def norm(self) -> float:
        """Frobenius norm of the observed entries of D (n, m)."""
        return float(frobenius_norm(self.D.reshape(1, -1)))

    @cached_property
    def top_singular_value(self) -> float:
        """σ₁ of D (n, m) with 0 for every entry that is not observed."""
        return self.observation.top_singular_value()

    @property
    def layout(self) -> Hashable:
        """What the problems of one batch have in common."""
        heldout = None if self.heldout is None else self.heldout.layout
        return self.observation.layout, self.truth is None, heldout, self.target_rank

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Problem:
        """The problem in another precision, on another device."""
        observation = self.observation.to(dtype, device)
        truth = None if self.truth is None else self.truth.to(dtype, device)
        if isinstance(observation, AllEntries) and truth is not None and not self.hides_truth:
            truth = observation
        heldout = None if self.heldout is None else self.heldout.to(dtype, device)
        return replace(self, observation=observation, truth=truth, heldout=heldout)

    @classmethod
    def stack(cls, problems: Sequence[Problem], stack: Stack) -> Problem:
        """Problems of one layout under a leading run dimension; a sparse problem is alone, and
        stays as it is."""
        first = problems[0]
        if first.observation.arrays_of_a_step is None:
            (alone,) = problems
            return alone
        observation = type(first.observation).stack([p.observation for p in problems], stack)
        truth, heldout = None, None
        if isinstance(first.truth, AllEntries):
            known = [p.truth for p in problems if isinstance(p.truth, AllEntries)]
            truth = AllEntries.stack(known, stack)
        if first.heldout is not None:
            kept = [p.heldout for p in problems if p.heldout is not None]
            heldout = type(first.heldout).stack(kept, stack)
        return cls(observation, truth, heldout)
