"""Runs on a GPU: the numbers of the processor, and steps that wait for nothing.

Each test runs on a stand-in for a GPU (`stand_in`), and on a GPU if there is one: pytest -m gpu.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import cases
import numpy as np
import pytest
import torch
from stand_in import DEVICE, StandIn, stand_in
from test_config import composed

import mfgd
from mfgd import attempt, demand, devices, metrics, plan
from mfgd.batch import Batch
from mfgd.checkpoint import Checkpoint
from mfgd.descent import descent
from mfgd.objective import Objective
from mfgd.point import Point
from mfgd.record import Row
from mfgd.spectra import Triplets
from mfgd.streams import Streams
from mfgd.target import Problem
from mfgd.types import Refused

HAS_GPU = torch.cuda.is_available()
GPU = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="torch finds no GPU")]
EVERYWHERE = pytest.mark.parametrize("device", [DEVICE, pytest.param("cuda", marks=GPU)])
DECIDING = {
    *("als", "alt_gd_min", "armijo", "exact_line_search"),
    *("gauss_newton", "levenberg_marquardt"),
    *("muon", "normalized", "polyak", "scaled_gd"),
}
"""Optimizers whose steps may wait: for a decomposition, a norm at any scale, or a length."""
METHODS = [
    (optimizer, loss)
    for optimizer in cases.OPTIMIZERS
    for loss in cases.LOSSES
    if optimizer not in cases.QUADRATIC or loss == "squared"
]
METHODS += [("gd", loss) for loss in cases.LIKELIHOODS] + [("mu", "kullback_leibler")]
OBSERVED = ("full", "masked", "heldout", "listed", "gaussian", "rank_one")
ENTRYWISE = OBSERVED[:4]
"""What every optimizer takes."""
CASES = [(optimizer, loss, "full") for optimizer, loss in METHODS]
CASES += [("gd", loss, observed) for loss in cases.LOSSES for observed in OBSERVED[1:]]
CASES += [
    (optimizer, "squared", observed)
    for optimizer in cases.OPTIMIZERS
    if optimizer != "gd"
    for observed in (ENTRYWISE if optimizer in cases.JOINT else OBSERVED)[1:]
]
"""Every two of an optimizer, a loss and what is observed, but not every three."""


@contextmanager
def use(device: str) -> Iterator[StandIn | None]:
    """The block may use a device; a stand-in is given for what it writes down."""
    with stand_in() if device == DEVICE else nullcontext() as used:
        yield used


@contextmanager
def refuse_to_wait(used: StandIn | None) -> Iterator[None]:
    """Nothing in the block may wait for the device."""
    if used is None:
        torch.cuda.set_sync_debug_mode("error")
    before = [] if used is None else [*used.waits]
    try:
        yield
    finally:
        if used is None:
            torch.cuda.set_sync_debug_mode("default")
        else:
            assert used.waits == before


class Setting(NamedTuple):
    """What descends, on the host and in double precision."""

    problem: Problem
    factors: tuple[torch.Tensor, ...]
    target: Triplets


def setting(observed: str) -> Setting:
    """Three runs; one of listed entries, which share no batch."""
    if observed in ("gaussian", "rank_one"):  # linear measurements
        keys = cases.SENSING | {"ensemble": observed, "heldout": 0.2}
        runs = [mfgd.problem.sensing(**keys | {"seed": seed}) for seed in range(3)]
        problem = Problem.stack(runs, torch.stack)
        assert problem.triplets is not None
        return Setting(problem, tuple(W.abs() for W in cases.factors((3,))), problem.triplets)
    if observed != "listed":
        problem = cases.problem(observed, (3,))
        assert problem.triplets is not None
        return Setting(problem, tuple(W.abs() for W in cases.factors((3,))), problem.triplets)
    with cases.sparsely():
        keys = cases.SYNTHETIC | {"n": 20, "m": 15, "observed": 0.6, "heldout": 0.2}
        problem = mfgd.problem.synthetic(**keys)
    assert problem.observation.arrays_of_a_step is None
    assert problem.triplets is not None
    target = Triplets(*(X[None] for X in problem.triplets))
    return Setting(problem, tuple(W.abs() for W in cases.factors((1,), n=20, m=15)), target)


def run_steps(
    given: Setting,
    loss: str,
    optimizer: str,
    device: str,
    dtype: torch.dtype = torch.float64,
    step_context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, np.ndarray]:
    """The factors and all measures after some steps, as arrays."""
    problem = given.problem.to(dtype, device)
    factors = tuple(W.to(dtype).to(device) for W in given.factors)
    rates = torch.full((len(factors[0]), 1, 1), 0.002, dtype=dtype, device=device)
    method, steps = cases.optimizer(optimizer), 0

    def step(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        with step_context() if steps > 1 else nullcontext():  # the first sets tables up
            return method.step(*arguments)

    objective = Objective(problem, cases.loss(loss, penalty=0.01))
    *_, state = descent(
        objective, method._replace(step=step), factors, lr=rates, records=[0, 4], patience=2
    )
    optimum = torch.full_like(state.loss, torch.nan)
    target = Triplets(*(X.to(dtype).to(device) for X in given.target))
    full = optimizer == "gd"  # a method does not change how a state is measured
    measured = metrics.measure(objective, state, optimum, target, full=full)
    for name, value in measured.items():
        assert value.device == state.loss.device, name
    found = {name: value.cpu().numpy() for name, value in measured.items()}
    found |= {f"W{i}": W.cpu().numpy() for i, W in enumerate(state.factors)}
    return found | {"outcome": state.outcome.cpu().numpy()}


def compare(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """The numbers of a device are those of the processor but for rounding."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-10, atol=1e-10, err_msg=name)


@EVERYWHERE
@pytest.mark.parametrize(("optimizer", "loss", "observed"), CASES)
def test_steps_and_measures_are_those_of_the_processor(optimizer, loss, observed, device):
    given = setting(observed)
    expected = run_steps(given, loss, optimizer, "cpu")
    with use(device) as used:
        wait = nullcontext if optimizer in DECIDING else lambda: refuse_to_wait(used)
        found = run_steps(given, loss, optimizer, device, step_context=wait)
    compare(found, expected)


def test_a_state_is_given_once_the_device_has_come_to_it():
    given, method = setting("full"), cases.optimizer("gd")
    with stand_in() as used:
        waits = 0

        def step(*arguments: Any) -> Any:
            nonlocal waits
            waits = len(used.waits)
            return method.step(*arguments)

        states = descent(
            Objective(given.problem.to(torch.float64, DEVICE), cases.loss("squared")),
            method._replace(step=step),
            tuple(W.to(DEVICE) for W in given.factors),
            lr=1e-3,
            records=[2, 4, 6],
        )
        for _ in states:  # or the clock of a sweep would know how fast steps are asked for
            assert len(used.waits) > waits


def test_fewer_digits_are_noticed():
    given = setting("masked")
    expected = run_steps(given, "huber", "gd", "cpu")
    with use(DEVICE):
        found = run_steps(given, "huber", "gd", DEVICE, torch.float32)
    with pytest.raises(AssertionError, match="loss"):
        compare(found, expected)


def test_the_stand_in_refuses_what_a_gpu_refuses():
    host, random = torch.ones(2, 3), torch.Generator().manual_seed(0)
    with stand_in() as used:
        there = torch.ones(2, 3, device=DEVICE)
        for mix in (
            lambda: there + host,
            lambda: there.addmm_(host, host),
            lambda: there[host > 0],
        ):
            with pytest.raises(RuntimeError, match="same device"):
                mix()
        with pytest.raises(RuntimeError, match="random stream"):
            torch.rand(2, generator=random, device=DEVICE)
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
        assert used.waits == []
        moved = host.to(DEVICE)
        moved += 1
        torch.testing.assert_close(moved.cpu(), torch.full((2, 3), 2.0))
    assert (host == 1).all()
    waiting = {
        "_local_scalar_dense": lambda X: float(X.sum()),
        "is_nonzero": lambda X: bool((X > 0).all()),
        "_to_copy": lambda X: X.cpu(),
        "nonzero": lambda X: X.nonzero(),
        "index": lambda X: X[X > 0],
    }
    for name, work in waiting.items():
        with stand_in() as used:
            X = torch.ones(2, 3, device=DEVICE)
            with pytest.raises(AssertionError), refuse_to_wait(used):
                work(X)
            assert name in (*used.waits, "is_nonzero")


LINES = {
    "notebook": "loss=squared,huber init=uniform,normal",
    "dynamics": "problem=synthetic problem.n=9 problem.m=7 problem.noise=0.1 diagnostics=dynamics",
    "sharpness": "problem=synthetic problem.n=9 problem.m=7 diagnostics=full lr_unit=sharpness",
    "deep": "problem=synthetic problem.n=9 problem.m=7 depth=3 init=balanced schedule=cosine",
    "heldout": "problem=synthetic problem.n=9 problem.m=7 problem.observed=0.7 problem.heldout=0.2",
    "singular": "optimizer=scaled_gd rank=3 lr=0.5",
    "diverges": "lr=1e3 steps=200",
    "flat": "patience=5 lr=1e-6",
    "single": "dtype=float32 optimizer=adam schedule=geometric",
}


def make_points(*line: str) -> list[Point]:
    """Runs of one line: a list of values of a key is a run each, and each has two seeds."""
    lines: list[list[str]] = [[]]
    for word in ("steps=30", "record.steps=[1,9]", "tolerance=1e-8", *line):
        key, _, value = word.partition("=")
        values = [value] if value.startswith("[") else value.split(",")
        lines = [[*some, f"{key}={one}"] for some in lines for one in values]
    first = [composed(*some) for some in lines]
    return [replace(point, seed=seed) for point in first for seed in (0, 1)]


def place(points: Sequence[Point], device: str) -> list[Point]:
    """The runs on a device."""
    return [replace(point, device=device) for point in points]


@EVERYWHERE
@pytest.mark.parametrize("line", LINES)
def test_batches_are_those_of_the_processor(line, device):
    points = make_points(*LINES[line].split())
    batches = [[points[i] for i in batch] for batch in plan.group_points(points)]
    expected = [row for batch in batches for row in Batch(batch).solve()]
    with use(device):
        found = [row for batch in batches for row in Batch(place(batch, device)).solve()]
    digits = 1e-4 if line == "single" else 1e-10
    for row, usual in zip(found, expected, strict=True):
        assert (row.outcome, row.tags) == (usual.outcome, usual.tags)
        assert all(W.device.type == "cpu" for W in row.factors)
        for W, V in zip(row.snapshots[0][1], usual.snapshots[0][1], strict=True):
            assert torch.equal(W, V)  # the start, bit for bit
        for name, values in usual.trajectory.items():
            if name != "seconds":
                np.testing.assert_allclose(
                    row.trajectory[name], values, rtol=digits, atol=1e-10, err_msg=name
                )


def test_single_precision_has_all_its_digits(monkeypatch):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # as TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 does
    try:
        Batch(make_points()).solve()
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


@EVERYWHERE
def test_a_method_draws_the_same_numbers_on_a_device(device):
    start = cases.factors((2,))[0]
    usual = Streams([3, 5], start)
    with use(device):
        there = Streams([3, 5], start.to(device))
        for draw in ("normal", "uniform"):
            numbers = getattr(there, draw)((4, 3))
            assert numbers.device.type == torch.device(device).type
            assert torch.equal(numbers.cpu(), getattr(usual, draw)((4, 3)))


@EVERYWHERE
def test_a_checkpoint_of_a_device_goes_on_there(device, tmp_path):
    runs = place(make_points("optimizer=momentum", "steps=60"), device)
    with use(device):
        expected = Batch(runs).solve()
        first = Checkpoint(tmp_path, runs)
        first.is_due = lambda: True  # type: ignore[method-assign]
        Batch(runs).solve(first)
        again = [replace(point, resume=True) for point in runs]
        rows = Batch(again).solve(Checkpoint(tmp_path, again))
    for row, usual in zip(rows, expected, strict=True):
        assert all(torch.equal(W, V) for W, V in zip(row.factors, usual.factors, strict=True))
        assert row.trajectory["loss"].tolist() == usual.trajectory["loss"].tolist()


@EVERYWHERE
@pytest.mark.parametrize("line", ["seed=0,1", "rank=1,2 replicates=3 problem.seed=${seed}"])
def test_a_tracked_sweep_on_a_device(line, device, here, monkeypatch):
    monkeypatch.setattr(devices, "list_devices", lambda: ["cpu", device])
    size = ("problem=synthetic", "problem.n=6", "problem.m=5", "steps=20", "tracking.figures=0")
    columns, found = ["metrics.final_loss", "metrics.sigma.1", "tags.draw.init"], {}
    for name in ("cpu", device):
        with use(device):
            done = here("--multirun", *size, *line.split(), f"device={name}", "workers=1")
        assert done.returncode == 0, done.stderr
        runs = mfgd.load_runs()
        runs = runs[runs["parent"] == here.session.tracker.parent].sort_values(
            ["params.rank", "params.seed"], ignore_index=True
        )
        found[name] = runs.reindex(columns=columns)  # replicates share no draw
    numbers = {name: frame.iloc[:, :2].to_numpy(float) for name, frame in found.items()}
    np.testing.assert_allclose(numbers[device], numbers["cpu"], rtol=1e-10)
    assert found["cpu"].iloc[:, 2].equals(found[device].iloc[:, 2])


def test_a_batch_that_a_gpu_has_no_room_for_is_halved(monkeypatch):
    tried: list[int] = []
    held: list[weakref.ref[torch.Tensor]] = []
    solve = Batch.solve

    def solve_few(self: Batch, checkpoint: Checkpoint | None = None) -> list[Row]:
        assert not any(ref() is not None for ref in held), "the failed batch is still in memory"
        tried.append(len(self.points))
        if len(self.points) > 3:
            large = torch.ones(9)
            held.append(weakref.ref(large))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return solve(self, checkpoint)

    points = [replace(point, seed=seed) for seed in range(9) for point in make_points()[:1]]
    expected = Batch(points).solve()
    monkeypatch.setattr(Batch, "solve", solve_few)
    parts = [*attempt.solve_or_report(points)]
    assert tried == [9, 4, 2, 2, 5, 2, 3]
    found = [row for part in parts for row in part]
    for row, usual in zip(found, expected, strict=True):
        assert torch.equal(row.factors[0], usual.factors[0])


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="torch finds no GPU")
def test_a_batch_beyond_the_memory_of_a_gpu_is_solved_in_parts():
    line = ("problem=synthetic", "problem.n=100", "problem.m=100", "steps=3")
    first = make_points(*line)[0]
    runs = [replace(first, seed=seed, device="cuda") for seed in range(400)]
    whole = attempt.solve_or_report(runs)
    assert [len(part) for part in whole] == [400]
    _, total = torch.cuda.mem_get_info()
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved() + 40e6  # each array of 400 residuals takes 32 MB
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        parts = [*attempt.solve_or_report(runs)]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    rows = [row for part in parts for row in part]
    assert len(parts) > 1
    assert all(isinstance(row, Row) for row in rows)


@pytest.fixture
def memory(monkeypatch) -> dict[str, float]:
    """The numbers of a GPU that is not there."""
    said = {"free": 0.0, "reserved": 0.0, "allocated": 0.0}
    monkeypatch.setattr(devices, "list_devices", lambda: ["cpu", "cuda", "cuda:0"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (said["free"], 80e9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: said["reserved"])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: said["allocated"])
    return said


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ({"free": 80e9}, 1 << 30),
        ({"free": 4e9}, 1 << 27),  # 4e9/16 = 250 MB, of which the power of two is 134 MB
        ({"free": 3.9e9}, 1 << 27),  # what others take moves no run
        ({"free": 1e9, "reserved": 4e9, "allocated": 1e9}, 1 << 27),
        ({"free": 0}, 1),
    ],
)
def test_batches_have_the_size_of_the_memory_of_the_gpu(said, size, memory):
    memory.update(said)
    assert devices.choose_batch_bytes("cuda") == size
    (point,) = place(make_points("problem=synthetic")[:1], "cuda")
    numbers = 2 * 100 * 80 + 3 * 2 * (100 + 80)  # D, residual; factors, gradients, next factors
    assert demand.count_runs(point, 100, 80, 2) == max(1, size // (8 * numbers))
    assert demand.count_runs(point, 3, 4, 2) == min(max(1, size // (8 * 66)), 16_384)
    assert demand.count_runs(replace(point, batch_bytes=10**8), 3, 4, 2) == 10**8 // (8 * 66)
    assert demand.count_runs(replace(point, batch_bytes=10**6), 100, 80, 2) == 7
    assert demand.count_runs(replace(point, device="cpu"), 100, 80, 2) == 2_000_000 // 8 // numbers


def test_what_a_gpu_has_no_room_for_is_refused(memory):
    memory["free"] = 69_000.0
    (point,) = place(make_points("problem=synthetic")[:1], "cuda")
    with pytest.raises(Refused, match=r"^device=cuda: .* this GPU has 0.069 MB free; allowed is"):
        plan.group_points([point])  # D alone has 64 kB, the factors twice 2.9 kB
    memory["free"] = 80_000.0
    assert plan.group_points([point]) == [[0]]


def test_a_gpu_has_one_process_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(devices, "cores", lambda: 16)
    assert devices.choose_workers(["cpu"], None) == 16
    assert devices.choose_workers(["cuda"], None) == 1
    assert devices.choose_workers(["cpu", "cuda"], "joblib") == 1
    assert devices.choose_workers(["cuda:0", "cuda:1"], None) == 2
    assert devices.choose_workers(["cuda"], "slurm") == 16


def test_the_gpu_of_another_machine_is_allowed(monkeypatch):
    monkeypatch.setattr(devices, "list_devices", lambda: ["cpu"])
    for engine in ("slurm", "ray"):
        devices.refuse_absent("cuda", engine)
        with pytest.raises(Refused, match="device=tpu: allowed here are cpu"):
            devices.refuse_absent("tpu", engine)
    with pytest.raises(Refused, match="device=cuda: allowed here are cpu"):
        devices.refuse_absent("cuda", "local")
    assert devices.choose_batch_bytes("cuda") == devices.BUSY
    with pytest.raises(Refused, match="device=cuda: allowed here are cpu"):
        composed("device=cuda")
    assert composed("device=cuda", "hydra/launcher=ray").device == "cuda"


def test_a_run_on_the_processor_looks_for_no_gpu(monkeypatch):
    monkeypatch.setattr(devices, "list_devices", lambda: pytest.fail("looked"))
    assert composed().device == "cpu"
