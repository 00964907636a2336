"""Random numbers for a method that draws at its steps: one stream a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from mfgd.draws import Draw, standard_normal, stream, uniform_numbers


class Streams:
    """The random streams of runs with leading dimensions *: () or (B,).

    A run draws the same numbers alone and in any batch, and in another dtype the same numbers
    rounded.
    """

    def __init__(self, seeds: Sequence[int], like: Tensor, name: str = "optimizer") -> None:
        """
        Args:
            seeds: the seed of each run.
            like: a factor (*, n, k), whose leading dimensions, dtype and device the draws have.
            name: of the streams; none moves one of another name.
        """
        self._seeds, self._like = seeds, like
        self._generators = [stream(name, seed) for seed in seeds]
        self._branches: list[Streams] = []

    def __len__(self) -> int:
        """Number of runs."""
        return len(self._generators)

    def branch(self, name: str) -> Streams:
        """Streams of another name and the same seeds, whose states are kept with these."""
        self._branches.append(Streams(self._seeds, self._like, name))
        return self._branches[-1]

    @property
    def states(self) -> list[Tensor]:
        """Where each stream is, on the host; those of the branches come last."""
        return [generator.get_state() for generator in self._all_generators()]

    @states.setter
    def states(self, states: Sequence[Tensor]) -> None:
        for generator, state in zip(self._all_generators(), states, strict=True):
            generator.set_state(state)

    def _all_generators(self) -> list[torch.Generator]:
        found = list(self._generators)
        for branch in self._branches:
            found += branch._all_generators()
        return found

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers, (*, *shape)."""
        return self._draw(standard_normal, shape)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Uniform numbers on [0, 1), (*, *shape)."""
        return self._draw(uniform_numbers, shape)

    def draw_each(self, draws: Sequence[Callable[[torch.Generator], Tensor]]) -> Tensor:
        """A draw for each run, of one shape: (*, *shape)."""
        pairs = zip(draws, self._generators, strict=True)
        runs = torch.stack([draw(generator) for draw, generator in pairs])
        return runs.view(*self._like.shape[:-2], *runs.shape[1:]).to(self._like)

    def _draw(self, draw: Draw, shape: tuple[int, ...]) -> Tensor:
        return self.draw_each([partial(draw, shape)] * len(self))
