"""A long batch goes on from its checkpoint, bit for bit."""

import math
import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cases
import numpy as np
import pytest
import torch
from conftest import UNMEASURED
from safetensors.torch import load_file
from test_config import composed
from torch import Tensor

import mfgd
from mfgd import checkpoint
from mfgd.attempt import solve_or_report
from mfgd.checkpoint import Checkpoint
from mfgd.given import load_problem
from mfgd.method import Optimizer

SMALL = ("problem=synthetic", "problem.n=12", "problem.m=9", "problem.noise=0.1")
STEPS = 40


def describe(name: str) -> list[str]:
    return [f"optimizer={name}"] + [
        f"optimizer.{key}={value}" for key, value in cases.OPTIMIZERS[name].keys.items()
    ]


def stop_at(patch, stop: int) -> None:
    """Writes a checkpoint after so many steps, and interrupts."""
    keep = Checkpoint.keep

    def keep_and_stop(self, position):
        if position.step == stop:
            keep(self, position)
            raise KeyboardInterrupt

    patch.setattr(checkpoint, "EVERY", 0.0)
    patch.setattr(checkpoint, "PACE", 1)
    patch.setattr(Checkpoint, "keep", keep_and_stop)


def solve(points, folder=None):
    (results,) = solve_or_report(points, folder)
    assert not [result for result in results if isinstance(result, Exception)]
    return results


def go_on(points, folder, *stops: int):
    """The rows of runs that are interrupted after each of these steps, and go on."""
    for stop in stops:
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, stop)
            with pytest.raises(KeyboardInterrupt):
                solve(points, folder)
        points = [replace(point, resume=True) for point in points]
    return solve(points, folder)


def bits(row):
    """All that a run leaves behind, to the last bit, except for its seconds."""
    trajectory = {name: values.tobytes() for name, values in row.trajectory.items()}
    del trajectory["seconds"]
    snapshots = [(step, *map(bytes_of, Ws)) for step, Ws in row.snapshots]
    values = {name: repr(value) for name, value in row.values.items()}
    kept = [*map(bytes_of, row.factors), *map(bytes_of, row.recorded)]
    return row.outcome, kept, trajectory, snapshots, values, row.tags


def bytes_of(W: Tensor) -> tuple:
    return W.dtype, W.shape, W.numpy().tobytes()


class Velocity(NamedTuple):
    """The memory of a factor, under an optimizer of a user's own."""

    V: Tensor
    steps: int


def odd(*, seed: int):
    """A method with a memory of many kinds: named tuples, a dict, past gradients, random numbers, a
    tensor of another layout and an expanded one."""

    def init(factors, streams):
        ones = torch.ones_like(factors[0][..., :1, :1]).expand(factors[0].shape)
        velocities = [Velocity(torch.zeros_like(W), 0) for W in factors]
        return {"V": velocities, "past": [], 3: (streams, None, math.inf), "ones": ones}

    def step(objective, factors, memory, lr):
        gradients = objective.gradient(factors)
        streams = memory[3][0]
        moved, velocities = [], []
        for W, G, (V, steps) in zip(factors, gradients, memory["V"], strict=True):
            V = 0.5 * V + G + 1e-3 * streams.normal(tuple(W.shape[-2:]))
            moved.append(W - lr * V / (1 + steps))
            velocities.append(Velocity(V.mT.contiguous().mT, steps + 1))
        past = [*memory["past"], gradients[0].mT][-3:]
        moved[0] = moved[0] - 1e-4 * memory["ones"] * sum(past).mT
        return tuple(moved), memory | {"V": velocities, "past": past, "odd": np.float64(0.1).item()}

    return Optimizer(init, step)


def secretive(*, seed: int):
    """A method whose memory nobody knows how to keep."""
    plain = mfgd.optimizer.gd(alternating=False)

    def step(objective, factors, memory, lr):
        return plain.step(objective, factors, [None] * len(factors), lr)[0], memory

    return Optimizer(lambda factors, streams: object(), step)


ODD = "optimizer._target_=test_checkpoint.odd +optimizer.seed=0"
LINES = {
    name: f"{' '.join(describe(name))} problem=notebook loss.penalty=0.01"
    for name in cases.OPTIMIZERS
}
LINES |= {
    f"{name}, deep": f"{' '.join(describe(name))} depth=3 dtype=float32 "
    f"{'' if name in cases.ONE_WAY else 'optimizer.alternating=true '}"
    "schedule=cosine init=normal lr=0.001"
    for name in cases.OPTIMIZERS
    if name not in cases.PAIRS
}
LINES |= {
    "kept": "record.matrices=true record.last=6 problem.target_rank=2 problem.condition=4 "
    "diagnostics=dynamics",
    "masked": "problem.observed=0.5 optimizer=momentum loss=huber diagnostics=full",
    "tied": "problem.m=12 problem.symmetric=true symmetric=true optimizer=lbfgs init=normal "
    "optimizer.history=4 diagnostics=dynamics lr=0.1",
    "sparse": "problem.observed=0.5 optimizer=nesterov",
    "sensing": "problem=sensing problem.heldout=0.1 optimizer=nesterov loss=huber lr=1e-4",
    "plateau": "patience=5 lr=1e-6",
    "rates": "lr=[0.1,0.01,0.001]",
    "gram": "problem.n=300 problem.m=201 rank=3 optimizer=adam",
    "odd": f"{ODD} init=normal",
}


@pytest.mark.parametrize(("name", "line"), LINES.items(), ids=LINES)
def test_a_run_that_goes_on_has_the_bits_of_one_that_never_stopped(name, line, tmp_path, capsys):
    with cases.sparsely() if name == "sparse" else nullcontext():
        load_problem.cache_clear()
        base = () if "problem=" in line else SMALL
        words = (*base, *line.split(), f"steps={STEPS}", "record.points=12")
        point = composed(*words)
        expected = bits(*solve([point]))
        steps = (
            [6] if name == "plateau" else [1, STEPS, *random.Random(name).sample(range(2, 39), 2)]
        )
        for stop in steps:
            (row,) = go_on([point], tmp_path, stop)
            assert bits(row) == expected
            assert capsys.readouterr().out == f"goes on from step {stop} of {STEPS}\n"
            assert (np.diff(row.trajectory["seconds"]) > 0).all()
        if name != "plateau":
            assert bits(*go_on([point], tmp_path, 3, 17, 18)) == expected
    load_problem.cache_clear()


@pytest.mark.parametrize("crowd", [0, 900], ids=["few", "interleaved"])
def test_runs_that_have_ended_stay_as_they_are_in_a_batch_that_goes_on(crowd, tmp_path, capsys):
    tiny = ("problem=synthetic", "problem.n=3", "problem.m=4", "problem.rank=2", "lr=0.05")
    lines = ("seed=0", "seed=1 lr=1e6", "seed=2 tolerance=9", "seed=3 problem.seed=2")
    points = [composed(*tiny, *ODD.split(), "steps=60", *line.split()) for line in lines]
    points += [replace(points[0], seed=seed) for seed in range(10, 10 + crowd)]
    expected = solve(points)
    assert [row.outcome for row in expected[:4]] == ["budget", "diverged", "converged", "budget"]
    rows = go_on(points, tmp_path, 37, 51)
    assert [*map(bits, rows)] == [*map(bits, expected)]
    assert f"a batch of {len(points)} runs goes on from step 51 of 60" in capsys.readouterr().out


def rewrite(file: Path, change) -> None:
    content = bytearray(file.read_bytes())
    file.write_bytes(change(content))


def flip_last(content: bytearray) -> bytearray:
    content[-1] ^= 1
    return content


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (flip_last, "damaged"),
        (lambda content: content[:-9], "."),
        (lambda content: b"", "."),
        (lambda content: content.replace(b'\\"tuple\\"', b'\\"tupel\\"'), "damaged"),
        (lambda content: content.replace(b"torch 2", b"torch 1"), "written by mfgd"),
    ],
    ids=["bit", "short", "empty", "text", "version"],
)
def test_a_checkpoint_that_does_not_fit_is_not_used(change, reason, tmp_path, capsys):
    point = composed(*SMALL, f"steps={STEPS}")
    expected = bits(*solve([point]))
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            solve([point], tmp_path)
    rewrite(checkpoint.place(tmp_path, [point]), change)
    assert bits(*solve([replace(point, resume=True)], tmp_path)) == expected
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert reason in said.err
    assert "starts afresh" in said.err


def test_a_checkpoint_of_other_data_is_not_used(tmp_path, capsys):
    path = tmp_path / "D.npy"
    point = composed("problem=file", f"problem.path={path}", "steps=20", "init.scale=0.1")
    rows = []
    for last in (1.0, 2.0):
        np.save(path, [[1.0, 2.0], [3.0, last]])
        load_problem.cache_clear()
        rows.append(bits(*go_on([point], tmp_path, 7)))
        load_problem.cache_clear()
        point = replace(point, resume=True)
    assert "other data or functions" in capsys.readouterr().err
    load_problem.cache_clear()
    assert rows[1] == bits(*solve([point]))
    load_problem.cache_clear()


def test_without_resume_a_checkpoint_is_not_looked_at(tmp_path, capsys):
    point = composed(*SMALL, f"steps={STEPS}")
    expected = bits(*go_on([point], tmp_path, 5))
    capsys.readouterr()
    assert bits(*solve([point], tmp_path)) == expected
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("hindrance", ["memory", "folder"])
def test_a_run_that_cannot_be_kept_goes_on(hindrance, tmp_path, monkeypatch, capsys):
    line = ["optimizer._target_=test_checkpoint.secretive", "+optimizer.seed=0"]
    point = composed(*SMALL, f"steps={STEPS}", *(line if hindrance == "memory" else []))
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    folder = tmp_path / "checkpoints"
    if hindrance == "folder":
        folder.write_text("")
    assert bits(*solve([point], folder)) == bits(*solve([point]))
    (said,) = capsys.readouterr().err.splitlines()
    assert "no checkpoint, the run goes on" in said
    assert (
        "builtins.object is no type that can be kept" if hindrance == "memory" else str(folder)
    ) in said
    assert folder.is_file() == (hindrance == "folder")


def test_checkpoints_come_every_so_many_seconds(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(checkpoint, "EVERY", 0.2)
    monkeypatch.setattr(
        Checkpoint, "_write", lambda self, file, position: written.append(time.monotonic())
    )
    start = time.monotonic()
    solve([composed(*SMALL, "steps=15000", "record.points=5")], tmp_path)
    end = time.monotonic()
    times = [start, *written, end]
    assert len(written) >= 1
    assert all(later - earlier >= 0.2 for earlier, later in pairwise(times[:-1]))
    assert not tmp_path.glob("*") or not [*tmp_path.iterdir()]


def read_matrices(folder):
    (file,) = folder.glob("mlartifacts/*/*/artifacts/matrices.safetensors")
    return load_file(file)


LINE = (*SMALL, f"steps={STEPS}")
QUICK = "tracking.figures=0"


def test_a_single_run_goes_on(here, tmp_path, monkeypatch):
    assert here(*LINE, QUICK).returncode == 0
    expected = read_matrices(tmp_path)
    folder = tmp_path / checkpoint.FOLDER
    assert not folder.exists()
    for name in ("mlflow.db", "mlartifacts"):
        (tmp_path / name).rename(tmp_path / f"{name}.before")
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        stopped = here(*LINE, QUICK)
    assert stopped.returncode == 130
    assert "the same line with resume=true goes on" in stopped.stdout
    assert len([*folder.iterdir()]) == 1
    done = here(*LINE, QUICK, "resume=true")
    assert done.returncode == 0, done.stderr
    assert f"goes on from step 7 of {STEPS}" in done.stdout
    found = read_matrices(tmp_path)
    assert {name: bytes_of(W) for name, W in found.items()} == {
        name: bytes_of(W) for name, W in expected.items()
    }
    assert not folder.exists()
    again = here(*LINE, QUICK, "resume=true")
    assert again.returncode == 2
    assert f"resume=true: no checkpoint of this line in {folder}" in again.stderr
    assert "nothing to go on with" in here(*LINE, "tracking=memory", "resume=true").stderr


def test_memory_writes_nothing(here, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    assert here(*LINE, "tracking=memory").returncode == 0
    assert not [*tmp_path.iterdir()]


def test_a_sweep_goes_on_within_its_batches(here, tmp_path, monkeypatch):
    line = ("--multirun", *LINE, QUICK, "rank=1,2", "seed=0,1", "workers=1")
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        assert here(*line).returncode == 130
    folder = tmp_path / checkpoint.FOLDER
    assert len([*folder.iterdir()]) == 1
    # One file is of a batch as it was under other workers; a killed process left half of another.
    points = [composed(*LINE, QUICK, f"rank={rank}") for rank in (2, 3)]
    for point in points:
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, 9)
            with pytest.raises(KeyboardInterrupt):
                solve([point], folder)
    (file,) = set(folder.iterdir()) - {checkpoint.place(folder, [point]) for point in points}
    file.with_suffix(".new").touch()
    done = here(*line, "resume=true")
    assert done.returncode == 0, done.stderr
    assert "a batch of 2 runs goes on from step 7 of 40" in done.stdout
    assert [*folder.iterdir()] == [checkpoint.place(folder, points[1:])]  # its run is not done


IMPATIENT = """
import sys
from mfgd import checkpoint, command
checkpoint.EVERY, checkpoint.WORTH = 0.1, 0.0
sys.argv[0] = "mfgd"
command.main()
"""


@pytest.mark.slow
def test_a_run_that_is_preempted_goes_on_as_if_nothing_had_happened(here, tmp_path):
    line = (*SMALL, "steps=30000", "record.points=5", "tracking.figures=0")
    command = [sys.executable, "-c", IMPATIENT, *line]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=UNMEASURED, **pipes)
    folder, until = tmp_path / checkpoint.FOLDER, time.monotonic() + 100
    while not [*folder.glob("*.safetensors")] and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same line with resume=true goes on" in said[0]
    assert said[1] == ""
    assert len([*folder.iterdir()]) == 1
    done = here(*line, "resume=true")
    assert done.returncode == 0
    assert "goes on from step" in done.stdout
    assert not folder.exists()
    (row,) = solve([composed(*line)])
    found = read_matrices(tmp_path)
    assert [bytes_of(found[name]) for name in "CF"] == [bytes_of(W) for W in row.factors]
