"""A step on a GPU: against the processor, as a CUDA graph, in smaller batches."""

import torch

from benchmarks import core, solver
from benchmarks.solver import LARGE, MEDIUM, RATE, TINY, Data, Size
from benchmarks.timing import Comparison, clock, compare, threads

HUGE = Size(8000, 8000, 50, 1, torch.float32, 20, 10, threads=2)
STEPS = {TINY: 2000, MEDIUM: 2000, LARGE: 500, HUGE: 100}
"""Size → steps on the GPU."""
MANY = MEDIUM._replace(runs=16_384)
SMALL = 64 << 20
"""Bytes of a batch of which a GPU takes many times as much."""
CHECKED = 5
"""Steps after which both ways have to have the same factors."""


def compare_gpu() -> list[Comparison]:
    """The rows of a GPU; a line instead if there is none."""
    if not torch.cuda.is_available():
        print("gpu: torch finds no GPU, so there are no rows", flush=True)
        return []
    print(f"gpu: {torch.cuda.get_device_name()}", flush=True)
    rows: list[Comparison] = []
    for size, steps in STEPS.items():
        with threads(size.threads):
            rows += compare_size(size, steps)
    return [*rows, compare_batches()]


def time_step(data: Data, steps: int, batch_bytes: int | None = None) -> float:
    """Microseconds of a step of a run."""

    def work() -> None:
        solver.run_mfgd(data, steps, batch_bytes)
        if data.D.is_cuda:
            torch.cuda.synchronize()

    return clock(work) / len(data.D) / steps * 1e6


def compare_size(size: Size, steps: int) -> list[Comparison]:
    """A step on the GPU against one on the processor, and one in a graph against one without."""
    here = solver.draw(size)
    there = here.to("cuda")
    graph = Graph(there)
    graph.check(there)
    what = f"a step of {size.name} on a GPU"
    return [
        compare(
            what,
            lambda: time_step(there, steps),
            lambda: time_step(here, size.steps),
            against="the processor",
        ),
        compare(
            f"{what}, as a CUDA graph",
            lambda: graph.time_step(steps) / size.runs,
            lambda: time_step(there, steps),
            against="without",
        ),
    ]


def compare_batches() -> Comparison:
    """A step in batches of the default's size against one in smaller batches."""
    there = solver.draw(MANY).to("cuda")
    return compare(
        f"a step of {MANY.name} on a GPU, {core.choose_batch_bytes(there.D.device) >> 20} MiB",
        lambda: time_step(there, 100),
        lambda: time_step(there, 100, SMALL),
        against=f"batches of {SMALL >> 20} MiB",
    )


class Graph:
    """A step of all runs that a GPU repeats without Python."""

    def __init__(self, data: Data) -> None:
        rates = torch.full((len(data.D), 1, 1), RATE, dtype=data.D.dtype, device="cuda")
        problem = core.observe(data.D, data.mask)
        self.factors, step = core.make_step(problem, data.factors, rates)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():  # libraries set themselves up before
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph), torch.no_grad():
            step()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.graph.replay()
        torch.cuda.synchronize()

    def time_step(self, steps: int) -> float:
        """Microseconds of a step of all runs."""
        return clock(lambda: self.run(steps)) / steps * 1e6

    def check(self, data: Data) -> None:
        """Fails if the steps of the graph are others than those without a graph."""
        for W, start in zip(self.factors, data.factors, strict=True):
            W.copy_(start)
        self.run(CHECKED)
        rates = torch.full((len(data.D), 1, 1), RATE, dtype=data.D.dtype, device="cuda")
        problem = core.observe(data.D, data.mask)
        *_, state = core.descend(problem, data.factors, lr=rates, records=[CHECKED])
        torch.testing.assert_close(self.factors, state.factors)
