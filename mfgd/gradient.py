"""Noise in the gradients of a descent.

Each function here is an option of ``gradient=``; its keyword arguments are the keys of that option.
It returns a `Disturbance`, or None for the gradients as they are. Every gradient that a method asks
for has a draw of its own: one a step, or one for each factor if the factors move in turn. Its mean
is the gradient of the objective, penalty included, whether the loss is a sum or a mean; for
label_noise only if the loss is the squared one. All that is measured is of the objective itself,
and so is ``lr_unit``; theory is silent. Each run has a random stream of its own, which ``seed``
moves.

The method must ask for gradients alone: gd, momentum, nesterov, adam, rmsprop, sign, normalized,
muon, scaled_gd. The numbers are drawn run by run on the processor: a draw takes 4 to 17
microseconds a run for a 3×4 matrix and 30 to 200 for 100×80, where the step itself takes .5 and 14
in a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, NamedTuple

import torch
from annotated_types import Gt, Le
from torch import Tensor

from mfgd.kernel import take_rows
from mfgd.objective import Block, Objective
from mfgd.streams import Streams
from mfgd.types import Count, Factors, Positive, Refused

STREAM = "gradient"
"""Name of the random streams."""


class Disturbance(NamedTuple):
    """How the gradients of an objective are disturbed."""

    apply: Callable[[Objective, Streams], Objective]
    """(objective, random streams of the runs) → the objective with disturbed gradients."""
    check: Callable[[Objective], None]
    """(objective of one run) → None; raises `Refused` if its gradients cannot be disturbed so."""


def full() -> None:
    """The gradient of the objective, as it is."""


def minibatch(*, share: Annotated[float, Gt(0), Le(1)] | None, count: Count | None) -> Disturbance:
    """The gradient of b of the N observed entries, drawn without replacement, times N/b; that of
    the penalty is added in full.

    With b = N it is the gradient itself, to the last bit for matrices of fewer than 60,000 entries:
    for larger ones mfgd has a faster sum, in another order. A step takes as long as one of all
    entries, and to shuffle N numbers a run beside it.

    Source: Robbins, Monro 1951, A stochastic approximation method; for matrix factorization
    Gemulla, Nijkamp, Haas, Sismanis 2011, Large-scale matrix factorization with distributed
    stochastic gradient descent, section 3.

    Args:
        share: b/N, rounded to a whole b.
        count: b itself; one of share and count is given, and the other is null.

    Raises:
        Refused: share and count are both given, or none is.
    """
    if (share is None) == (count is None):
        given = f"gradient.share={share} beside gradient.count={count}"
        raise Refused(f"{given}: allowed is one of the two, the other null".replace("None", "null"))

    def check(objective: Objective) -> None:
        size, entries = _batch_sizes(share, count, objective.problem.count, 1)[0]
        if not 1 <= size <= entries:
            what = f"gradient.share={share:g}" if count is None else f"gradient.count={count}"
            allowed = f"allowed are 1 to {entries}, the observed entries"
            raise Refused(f"{what} is {size} entries a step: {allowed}")

    return Disturbance(partial(_Sampled, share=share, count=count), check)


def label_noise(*, std: Positive) -> Disturbance:
    """The gradient for a target with Gaussian noise ε, drawn anew for each gradient: S = M ∘ ρ′(D̂ −
    D − ε).

    For the squared loss its mean is the gradient; for another loss it is that of the smoothed loss
    E ρ(r − ε). The loss is one of the residual. A step draws n×m numbers a run.

    Source: Blanc, Gupta, Valiant, Valiant 2020, Implicit regularization for deep neural networks
    driven by an Ornstein-Uhlenbeck like process, section 1.

    Args:
        std: standard deviation of ε, in units of D.
    """

    def check(objective: Objective) -> None:
        if objective.loss.slope is None:
            raise Refused(
                "gradient=label_noise: allowed are the losses of the residual, such as loss=squared"
            )

    return Disturbance(partial(_Relabelled, std=std), check)


def noisy(*, std: Positive) -> Disturbance:
    """The gradient plus independent Gaussian noise on each of its entries.

    The noise does not follow the scale of the loss or the rate: the step of gd has noise of
    standard deviation lr std. A step draws (n + m)k numbers a run at depth 2.

    Source: Gelfand, Mitter 1991, Recursive stochastic algorithms for global optimization in R^d,
    eq. 1.4.

    Args:
        std: standard deviation of the noise, in units of the gradient.
    """
    return Disturbance(partial(_Noisy, std=std), lambda objective: None)


class _Disturbed(Objective):
    """An objective whose gradients are disturbed; all else is as it was."""

    def __init__(self, objective: Objective, streams: Streams) -> None:
        vars(self).update(vars(objective))
        self._streams = streams
        target = self.observation.target
        self._shape = (1, len(target)) if target.ndim == 1 else tuple(target.shape[-2:])


class _Sampled(_Disturbed):
    """Of `minibatch`."""

    def __init__(
        self,
        objective: Objective,
        streams: Streams,
        share: float | Tensor | None,
        count: int | None,
    ) -> None:
        super().__init__(objective, streams)
        self.gram = False  # it has no slopes of single entries
        flags = self.observation.restrict(torch.ones_like(self.observation.target)) != 0
        flags = flags.reshape(-1, self._shape[0] * self._shape[1]).cpu()
        positions = [each.nonzero()[:, 0] for each in (flags[:1] if _is_shared(flags) else flags)]
        positions = positions * (len(streams) // len(positions))
        sizes = _batch_sizes(share, count, self.problem.count, len(streams))
        self._draws = [
            partial(self._weigh, at, size) for at, (size, _) in zip(positions, sizes, strict=True)
        ]

    def _weigh(self, positions: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """N/b for each drawn entry, and 0 for any other."""
        weights = torch.zeros(self._shape, dtype=torch.float64)
        order = torch.randperm(len(positions), generator=generator)
        weights.view(-1)[positions[order[:size]]] = len(positions) / size
        return weights

    def gradient(self, factors: Factors, only: int | None = None) -> Factors:
        self._weights = self._streams.draw_each(self._draws)
        return super().gradient(factors, only)

    def _slopes(self, block: Block, factors: tuple[Tensor, Tensor], out: Tensor | None) -> Tensor:
        return super()._slopes(block, factors, out) * take_rows(self._weights, block.rows)


class _Relabelled(_Disturbed):
    """Of `label_noise`."""

    def __init__(self, objective: Objective, streams: Streams, std: float | Tensor) -> None:
        super().__init__(objective, streams)
        self.gram = False  # it has no slopes of single entries
        self._std = std

    def gradient(self, factors: Factors, only: int | None = None) -> Factors:
        self._noise = self._std * self._streams.normal(self._shape)
        return super().gradient(factors, only)

    def _slopes(self, block: Block, factors: tuple[Tensor, Tensor], out: Tensor | None) -> Tensor:
        noise = take_rows(self._noise, block.rows)
        if self.folded:
            S = torch.sub(self._scaled_residual(block, factors, out), noise, alpha=self.gain)
        else:
            residual, slope = self._slope_function(block, factors, out)
            S = slope(residual - noise)
        return block.seen.restrict(S)


class _Noisy(_Disturbed):
    """Of `noisy`."""

    def __init__(self, objective: Objective, streams: Streams, std: float | Tensor) -> None:
        super().__init__(objective, streams)
        self._std = std

    def gradient(self, factors: Factors, only: int | None = None) -> Factors:
        disturbed = []
        for G in super().gradient(factors, only):
            disturbed.append(G + self._std * self._streams.normal(tuple(G.shape[-2:])))
        return tuple(disturbed)


def _is_shared(flags: Tensor) -> bool:
    """Whether all runs observe the same entries."""
    return bool((flags == flags[:1]).all())


def _batch_sizes(
    share: float | Tensor | None, count: int | None, observed: Tensor | int, runs: int
) -> list[tuple[int, int]]:
    """b and N of each run."""
    entries = torch.as_tensor(observed).to(torch.float64).flatten().tolist()
    entries = entries * (runs // len(entries))
    if count is not None:
        return [(count, round(N)) for N in entries]
    shares = torch.as_tensor(share, dtype=torch.float64).flatten().tolist()
    shares = shares * (runs // len(shares))
    return [(round(p * N), round(N)) for p, N in zip(shares, entries, strict=True)]
