"""Stöger, Soltanolkotabi 2021, Small random initialization is akin to spectral learning:
optimization and generalization guarantees for overparameterized low-rank matrix reconstruction.

From a small start descent on factors of full width is a power method at first, and finds the
matrix of rank 2.

While U is small, a step of descent on ¼ mean (⟨A_i, UUᵀ⟩ − y_i)² is U ← (I + lr M) U with
M = A*(y)/N: the leading r eigenvectors of M grow fastest, which are near those of the answer. A
start of size α takes ln(1/α)/ln(1 + lr λ_r) steps to leave the start, and by then the other
directions are of size α^{1 − ln(1 + lr λ_{r+1})/ln(1 + lr λ_r)}; UUᵀ has the square of that as an
error when it has settled, however wide U is.

The matrix is 40 × 40, positive semidefinite, of rank 2 and condition number 1, with N = 800
Gaussian measurements for the 820 numbers of a symmetric matrix, and U has 40 columns. Of the text
the abstract was at hand, which names the three phases; the numbers follow from the eigenvalues of
M. The paper's bound on the error, α^{21/16}, is for more measurements than these: M has
λ₃ = 0.43 λ₂ here, and the power is 1.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from experiments import THEORY, Claim, between, loaded, step_at, within
from mfgd.measurements import Measurements
from mfgd.palette import BLUE, mode_colours
from mfgd.problem import sensing
from mfgd.tracking import Run

SWEEPS = {"stoger2021": ("init.scale=1e-5,1e-6",)}
POWER_STEPS = 40
"""A step at which the smallest start is still small."""
REACHED = 0.1
"""The relative error at which a run has left its start."""


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    tracked = by_scale(runs)
    smallest, *_ = tracked.values()
    (_, *later) = tracked.items()
    yield between(
        f"α = 1e-6, step {POWER_STEPS}: U from (I + lr M)ᵗ U₀, relative",
        distance_to_power_method(smallest),
        high=2e-3,
    )
    decade, power = steps_of_a_decade(smallest), power_of_scale(smallest)
    before = smallest
    for scale, run in later:
        if scale > 1e-4:
            break
        waits = reached(before) - reached(run)
        text = (
            f"steps that α = {scale / 10:g} takes longer than {scale:g}: ln 10/ln(1 + lr λ₂) ± 5 %"
        )
        yield within(text, waits, decade, 0.05 * decade)
        text = f"power of α in the error at the end, {scale / 10:g} to {scale:g}"
        yield within(text, float(np.log10(end(run) / end(before))), power, 0.1)
        before = run
    yield between("α = 1e-6: relative error at the end", end(smallest), high=2e-6)


def by_scale(runs: pandas.DataFrame) -> dict[float, Run]:
    """α → run, the smallest first."""
    tracked = {float(run.config.init.scale): run for run in loaded(runs)}
    return dict(sorted(tracked.items()))


def eigenvalues(run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    """M, and its eigenvalues, largest first."""
    keys: Any = OmegaConf.to_container(run.config.problem)
    del keys["_target_"]
    seen = sensing(**keys).observation
    assert isinstance(seen, Measurements)
    M = seen.adjoint(seen.target).reshape(seen.shape) / seen.count
    M = (M + M.mT) / 2
    return M, torch.linalg.eigvalsh(M).flip(0)


def growths(run: Run) -> np.ndarray:
    """ln(1 + lr λ) of the second and the third eigenvalue of M."""
    _, values = eigenvalues(run)
    return np.log1p(run.config.lr * values[1:3].numpy())


def steps_of_a_decade(run: Run) -> float:
    """Steps that a start ten times as small takes longer."""
    return float(np.log(10) / growths(run)[0])


def power_of_scale(run: Run) -> float:
    """The power of α in the error at the end."""
    signal, rest = growths(run)
    return float(2 * (1 - rest / signal))


def distance_to_power_method(run: Run) -> float:
    """‖U_t − (I + lr M)ᵗ U₀‖/‖U_t‖ at step `POWER_STEPS`."""
    M, _ = eigenvalues(run)
    records = run.matrices["records.C"]
    at = run.trajectory["step"].to_numpy().tolist().index(POWER_STEPS)
    grow = torch.eye(len(M), dtype=M.dtype) + run.config.lr * M
    expected = torch.linalg.matrix_power(grow, POWER_STEPS) @ records[0]
    return float(torch.linalg.norm(records[at] - expected) / torch.linalg.norm(records[at]))


def reached(run: Run) -> float:
    """The step at which the run has left its start."""
    return step_at(run.trajectory, "relative_error", REACHED)


def end(run: Run) -> float:
    """The relative error at the end."""
    return float(run.trajectory["relative_error"].iloc[-1])


def figure(runs: pandas.DataFrame) -> Figure:
    canvas = Figure(figsize=(10, 3.9), layout="constrained", dpi=110)
    left, right = canvas.subplots(1, 2)
    tracked = by_scale(runs)
    smallest = next(iter(tracked.values()))
    for (scale, run), colour in zip(tracked.items(), mode_colours(len(tracked)), strict=True):
        steps, error = run.trajectory["step"], run.trajectory["relative_error"]
        left.semilogy(steps, error, color=colour, linewidth=1.2, label=f"α = {scale:g}")
    first = reached(smallest)
    for i in range(len(tracked)):
        left.axvline(first - i * steps_of_a_decade(smallest), **THEORY)
    left.set(xlabel="step", ylabel="relative error")
    left.set_title("Ten times as small a start waits ln 10/ln(1 + lr λ₂) steps")
    scales, ends = np.array(list(tracked)), np.array([end(run) for run in tracked.values()])
    right.loglog(scales, ends, "o", color=BLUE, markersize=7, label="measured")
    power = power_of_scale(smallest)
    line = ends[0] * (scales / scales[0]) ** power
    right.loglog(scales, line, **THEORY, label=f"∝ α^{power:.2f}, by the eigenvalues of M")
    right.set(xlabel="α", ylabel="relative error at the end")
    right.set_title("What is left of the other directions")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return canvas
