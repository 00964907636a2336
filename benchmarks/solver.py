"""The cost of a step: against the loop of a notebook, vmap(grad), and the processor's limit."""

import multiprocessing
from collections.abc import Sequence
from multiprocessing.pool import Pool
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import core
from benchmarks.timing import Comparison, clock, compare, threads

RATE = 0.05


class Size(NamedTuple):
    """What is solved, and the number of steps of ours and of the loop."""

    n: int
    m: int
    rank: int
    runs: int
    dtype: torch.dtype
    steps: int
    loop_steps: int
    observed: float = 1.0
    threads: int = 1

    @property
    def name(self) -> str:
        name = f"{self.runs:,} × {self.n}×{self.m} rank {self.rank}"
        if self.observed < 1:
            name += f", {self.observed:.0%} observed"
        name += f", {str(self.dtype).removeprefix('torch.')}"
        if self.threads > 1:
            name += f", {self.threads} threads"
        return name


TINY = Size(3, 4, 2, 1000, torch.float64, 10_000, 10_000)
MEDIUM = Size(100, 80, 10, 256, torch.float32, 400, 3000)
MASKED = Size(60, 60, 5, 1000, torch.float64, 400, 3000, observed=0.3)
LARGE = Size(2000, 2000, 50, 1, torch.float32, 300, 60, threads=2)


class Data(NamedTuple):
    """Targets (B, n, m), masks or None, and factors (B, n, k) and (B, k, m), one of each a run."""

    D: Tensor
    mask: Tensor | None
    factors: tuple[Tensor, Tensor]

    def to(self, device: str) -> "Data":
        mask = None if self.mask is None else self.mask.to(device)
        C, F = self.factors
        return Data(self.D.to(device), mask, (C.to(device), F.to(device)))

    def take(self, runs: slice | int) -> "Data":
        mask = None if self.mask is None else self.mask[runs]
        C, F = self.factors
        return Data(self.D[runs], mask, (C[runs], F[runs]))


def draw(size: Size) -> Data:
    """Draws targets of the rank whose largest singular value is near 1, masks and starts."""
    generator = torch.Generator().manual_seed(0)

    def gaussian(*shape: int) -> Tensor:
        return torch.randn((size.runs, *shape), generator=generator, dtype=torch.float64)

    n, m, rank = size.n, size.m, size.rank
    D = gaussian(n, rank) @ gaussian(rank, m) / (n * m) ** 0.5
    mask = None
    if size.observed < 1:
        uniform = torch.rand((size.runs, n, m), generator=generator)
        mask = (uniform < size.observed).to(size.dtype)
    C, F = 0.3 * gaussian(n, rank) / n**0.5, 0.3 * gaussian(rank, m) / m**0.5
    D = D.to(size.dtype)
    if mask is not None:
        D = D * mask
    return Data(D, mask, (C.to(size.dtype), F.to(size.dtype)))


def squared_error(C: Tensor, F: Tensor, D: Tensor, mask: Tensor | None) -> Tensor:
    """‖M ∘ (D − CF)‖², as a notebook writes it."""
    R = D - C @ F
    if mask is not None:
        R = mask * R
    return (R**2).sum()


def run_notebook(data: Data, steps: int) -> list[float]:
    """The founding notebook's loop of one run, with its autograd and its loss of every step."""
    C, F = (W.clone().requires_grad_() for W in data.factors)
    losses = []
    for _ in range(steps):
        total = squared_error(C, F, data.D, data.mask)
        losses.append(total.item())
        total.backward()
        with torch.no_grad():
            C -= RATE * C.grad
            F -= RATE * F.grad
        C.grad.zero_()
        F.grad.zero_()
    return losses


def run_vmap(data: Data, steps: int) -> None:
    """The same for a batch of runs, by torch.func."""
    over = (0, 0, 0, None if data.mask is None else 0)
    gradient = torch.func.vmap(torch.func.grad(squared_error, (0, 1)), in_dims=over)
    C, F = data.factors
    for _ in range(steps):
        G, H = gradient(C, F, data.D, data.mask)
        C, F = C - RATE * G, F - RATE * H


def split(data: Data, batch_bytes: int | None = None) -> list[slice]:
    """Slices of as many runs as batch_bytes, or its default, puts into one batch."""
    batch_bytes = batch_bytes or core.choose_batch_bytes(data.D.device)
    matrices = 2 if data.mask is None else 3
    per_run = matrices * data.D[0].nbytes + 3 * sum(W[0].nbytes for W in data.factors)
    size = max(1, batch_bytes // per_run)
    return [slice(start, start + size) for start in range(0, len(data.D), size)]


def run_mfgd(data: Data, steps: int, batch_bytes: int | None = None) -> None:
    """The same for any number of runs, by mfgd."""
    n, m = data.D.shape[-2:]
    k = data.factors[0].shape[-1]
    for runs in split(data, batch_bytes):
        D, mask, factors = data.take(runs)
        rates = torch.full((len(D), 1, 1), RATE, dtype=D.dtype, device=D.device)
        start = [core.stack(W, n, k, m) for W in factors]
        if mask is not None:
            mask = core.stack(mask, n, k, m)
        problem = core.observe(core.stack(D, n, k, m), mask)
        for _ in core.descend(problem, start, lr=rates, records=[steps]):
            pass


def compare_step(size: Size, target: str, with_vmap: bool = True) -> list[Comparison]:
    """Microseconds per run and step, against the loop of one run and vmap(grad) of a batch."""
    data = draw(size)
    piece = data.take(split(data)[0])  # fits the cache, as ours does: vmap(grad) is fastest so
    few = max(10, size.loop_steps // 100)

    def ours() -> float:
        return clock(lambda: run_mfgd(data, size.steps)) / size.runs / size.steps * 1e6

    def loop() -> float:
        return clock(lambda: run_notebook(data.take(0), size.loop_steps)) / size.loop_steps * 1e6

    def vmap() -> float:
        return clock(lambda: run_vmap(piece, few)) / few / len(piece.D) * 1e6

    what = f"a step of {size.name}"
    with threads(size.threads):
        rows = [compare(what, ours, loop, against="notebook loop", target=target)]
        if with_vmap:
            rows.append(compare(what, ours, vmap, against="vmap(grad)"))
        return rows


def compare_operations() -> list[Comparison]:
    """A step of one large run, counted as 6nmk operations, against a product of square matrices."""
    size, side, products = LARGE, 2000, 20
    data = draw(size)
    A = torch.randn(side, side)

    def ours() -> float:
        seconds = clock(lambda: run_mfgd(data, size.steps))
        return 6 * size.n * size.m * size.rank * size.steps / seconds / 1e9

    def limit() -> float:
        seconds = clock(lambda: [A @ A for _ in range(products)])
        return 2 * side**3 * products / seconds / 1e9

    with threads(size.threads):
        return [
            compare(
                f"operations of {size.name}",
                ours,
                limit,
                unit="GFLOP/s",
                against="A @ A",
                target="≥ .9",
                inverse=True,
            )
        ]


_share: list[Data] = []
"""In a worker: the runs that the worker solves."""


def _take_share(runs: slice) -> None:
    torch.set_num_threads(1)
    _share.append(draw(MEDIUM).take(runs))


def _solve_share(_: object) -> None:
    run_mfgd(_share[0], 2 * MEDIUM.steps)


def compare_workers() -> list[Comparison]:
    """Seconds of 256 runs in one process and in two that share them."""
    context = multiprocessing.get_context("spawn")

    def start(runs: slice) -> Pool:
        return context.Pool(1, _take_share, (runs,))

    def wall(pools: Sequence[Pool]) -> float:
        def work() -> None:
            jobs = [pool.map_async(_solve_share, [0]) for pool in pools]
            for job in jobs:
                job.get()

        return clock(work)

    half = MEDIUM.runs // 2
    one = start(slice(0, MEDIUM.runs))
    two = [start(slice(0, half)), start(slice(half, MEDIUM.runs))]
    try:
        return [
            compare(
                f"{MEDIUM.name} by two workers",
                lambda: wall(two),
                lambda: wall([one]),
                against="one",
                target="≥ 1.8",
                unit="s",
            )
        ]
    finally:
        for pool in [one, *two]:
            pool.terminate()
