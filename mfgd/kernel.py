"""What is done for the processor's sake: products, layout in memory, blocks of rows, threads, last
bits.

Nothing here changes a formula. Each function is a faster way to do what its name says, and gives a
run the same bits alone and in any batch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, reduce
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mfgd.types import Factors

# MKL, which multiplies matrices on most processors, would let the last bit of a product depend on
# the place of a run in memory. MKL reads this setting before its first product.
os.environ.setdefault("MKL_CBWR", "AUTO")

TINY = 400
"""torch.bmm multiplies by a plain loop if a product has fewer multiplications than this."""
MANY = 2000
"""That loop is slower than passes over all runs if the runs, times the root of the multiplications
in a product, are more than this: measured from 3×1 by 1×3 to 7×7 by 7×7."""
GRAM = 60_000
"""Gram matrices are cheaper than the residual of a full matrix with at least this many entries."""
BLOCK = 1 << 19
"""Entries of a residual that are computed at once on a processor."""
WIDE = 1 << 24
"""The same on a GPU, which has enough to do with so many entries of one matrix."""
GRAIN = 1 << 15
"""torch shares one matrix among several threads if the matrix has at least this many entries."""


Stack = Callable[[list[Tensor]], Tensor]
"""A way to put the tensors of several runs under a leading run dimension."""


class Multiply(Protocol):
    """A way to multiply matrices, (*, n, k) by (*, k, m)."""

    def __call__(self, A: Tensor, B: Tensor, /, *, out: Tensor | None = None) -> Tensor: ...


@contextmanager
def single_threaded(n: int, m: int) -> Iterator[None]:
    """Use one thread if an (n, m) matrix is small.

    How several threads share a small matrix, and so the last bit of a sum, depends on the batch.
    """
    threads = torch.get_num_threads()
    if n * m < GRAIN:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def use_interleaved(n: int, k: int, m: int, runs: int, device: torch.device | str) -> bool:
    """Whether runs with factors (n, k) … (k, m) are laid out by `interleave`.

    Both layouts give the same bits, so a run does not depend on the number of runs.
    """
    if n * k * m >= TINY or torch.device(device).type != "cpu":
        return False
    return runs * math.sqrt(n * k * m) > MANY or not _bmm_is_plain()


def interleave(runs: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape as (B, *shape), with the same entry of all runs side by side in
    memory."""
    return torch.stack(tuple(runs), -1).movedim(-1, 0)


def choose_multiply(factors: Factors) -> Multiply:
    """The fastest way to multiply factors of these sizes."""
    first, last = factors[0], factors[-1]
    if first.ndim != 3 or last.ndim != 3:
        return torch.matmul
    runs, n, k = first.shape
    if use_interleaved(n, k, last.shape[2], runs, first.device):
        return multiply_interleaved
    # torch.matmul looks at the shapes for as long as it takes to multiply small matrices.
    return torch.bmm


def multiply_interleaved(A: Tensor, B: Tensor, /, *, out: Tensor | None = None) -> Tensor:
    """A B as a sum of outer products, rounded after each product and each sum like torch.bmm's
    loop."""
    columns, rows = A.mT.unsqueeze(-1).unbind(-3), B.unsqueeze(-2).unbind(-3)
    total = torch.mul(columns[0], rows[0], out=out)
    for column, row in zip(columns[1:], rows[1:], strict=True):
        total.add_(column * row)
    return total


@cache
def _bmm_is_plain() -> bool:
    """Whether torch.bmm rounds like `multiply_interleaved`; a fused multiply-add rounds
    otherwise."""
    # The matrices are not random: the first caller may be inside torch.func.vmap, which forbids
    # that.
    A = torch.arange(9.0 * 4 * 7, dtype=torch.float64).sin().view(9, 4, 7)
    B = torch.arange(9.0 * 7 * 5, dtype=torch.float64).sin().view(9, 7, 5)
    for X, Y in ((A, B), (A.float(), B.float()), (A.mT.contiguous().mT, B.mT.contiguous().mT)):
        start, product = X[..., :1] + Y[:, :1], multiply_interleaved(X, Y)
        doubled = torch.add(start, product, alpha=2)
        if not torch.equal(torch.bmm(X, Y), product):
            return False
        if not torch.equal(torch.baddbmm(start, X, Y, alpha=2), doubled):
            return False
    return True


def product(factors: Factors) -> Tensor:
    """D̂ = W₁ W₂ … W_L, (*, n, m)."""
    return reduce(choose_multiply(factors), factors)


def row_blocks(n: int, m: int, device: torch.device) -> list[slice | None]:
    """Rows of an (n, m) matrix, as many at a time as suits the device; None stands for all rows."""
    height = max(1, (BLOCK if device.type == "cpu" else WIDE) // m)
    if height >= n:
        return [None]
    return [slice(start, start + height) for start in range(0, n, height)]


def take_rows(X: Tensor, rows: slice | None) -> Tensor:
    """The rows of a block."""
    return X if rows is None else X[..., rows, :]


def compute_once(function: Callable[..., Tensor], *arrays: Tensor) -> Tensor:
    """The function of arrays, computed once and shared if all runs share the arrays."""
    if all(X.ndim == 3 and X.stride(0) == 0 for X in arrays):
        return function(*(X[:1] for X in arrays)).expand_as(arrays[0])
    return function(*arrays)


class ScaledResidual(Protocol):
    """A fused way to compute the residual of an observation, times a constant c."""

    def __call__(
        self, left: Tensor, right: Tensor, multiply: Multiply, out: Tensor | None = None
    ) -> Tensor:
        """c (A(L R) − D), A(L R) what is seen of the product; written to `out` if that is given."""


@dataclass(frozen=True)
class FullResidual:
    """c (L R − D) as c L R + beta · D′."""

    D: Tensor
    """D′: D itself, or D prescaled so that beta · D′ = −c · D."""
    c: float
    beta: float

    @classmethod
    def prescale(cls, D: Tensor, c: float) -> FullResidual:
        """Prescales a small D; a large D would take as much memory again."""
        if D.shape[-2] * D.shape[-1] >= TINY:
            return cls(D, c, -c)
        return cls(compute_once(lambda X: -c * X, D), c, 1.0)

    def __call__(
        self, left: Tensor, right: Tensor, multiply: Multiply, out: Tensor | None = None
    ) -> Tensor:
        if multiply is torch.bmm:
            return torch.baddbmm(self.D, left, right, beta=self.beta, alpha=self.c, out=out)
        if multiply is multiply_interleaved:
            return torch.add(self.D, multiply(left, right, out=out), alpha=self.c, out=out)
        return torch.add(self.beta * self.D, multiply(left, right), alpha=self.c)


@dataclass(frozen=True)
class MaskedResidual:
    """c M ∘ (L R − D) as D′ + M′ ∘ L R."""

    D: Tensor
    """D′ = −c M ∘ D."""
    mask: Tensor
    """M′ = c M."""

    @classmethod
    def prescale(cls, D: Tensor, mask: Tensor, c: float) -> MaskedResidual:
        scaled = compute_once(lambda X, M: -c * X * M, D, mask)
        return cls(scaled, compute_once(lambda M: c * M, mask))

    def __call__(
        self, left: Tensor, right: Tensor, multiply: Multiply, out: Tensor | None = None
    ) -> Tensor:
        return torch.addcmul(self.D, multiply(left, right, out=out), self.mask, out=out)


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Rounds denormal numbers to 0 within the block: they would slow converged runs down."""
    # An old NumPy warns on stderr if it first looks at its types after that.
    np.finfo(np.float32)
    np.finfo(np.float64)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
