"""Random numbers for a method that draws at its steps: one stream a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mfgd.draws import Draw, standard_normal, stream, uniform_numbers


class Streams:
    """The random streams of runs with leading dimensions *: () or (B,).

    A run draws the same numbers alone and in any batch, and in another dtype the same numbers
    rounded.
    """

    def __init__(self, seeds: Sequence[int], like: Tensor) -> None:
        """
        Args:
            seeds: the seed of each run.
            like: a factor (*, n, k), whose leading dimensions, dtype and device the draws have.
        """
        self._generators = [stream("optimizer", seed) for seed in seeds]
        self._like = like

    @property
    def states(self) -> list[Tensor]:
        """Where each stream is, on the host."""
        return [generator.get_state() for generator in self._generators]

    @states.setter
    def states(self, states: Sequence[Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers, (*, *shape)."""
        return self._draw(standard_normal, shape)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Uniform numbers on [0, 1), (*, *shape)."""
        return self._draw(uniform_numbers, shape)

    def _draw(self, draw: Draw, shape: tuple[int, ...]) -> Tensor:
        runs = torch.stack([draw(shape, generator) for generator in self._generators])
        return runs.view(*self._like.shape[:-2], *shape).to(self._like)
