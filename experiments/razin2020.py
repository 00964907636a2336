"""Razin, Cohen 2020, Implicit regularization in deep learning may not be explainable by norms.

Descent that fits [[·, 1], [1, 0]] drives the unobserved entry, and with it every norm, to infinity;
the rank falls.

If det(CF) > 0, the entry w of a product that fits with loss ℓ has |w| ≥ (1 − √2ℓ)²/√2ℓ: two of the
observed entries are at least 1 − √2ℓ, and one is at most √2ℓ (proof of theorem 1). C = F = √α I, α
= 1e-2, lr .05, loss ½.

From this start F = Cᵀ and det(CF) = det(C)² at every step, in exact arithmetic and in ours, because
our rounding is symmetric: the entry follows the bound in float32 and in float64. The published runs
left the bound before ℓ = 1e-2 in float32 and before ℓ = 1e-3 in float64; this needs rounding that
treats C and Fᵀ differently. So we also start with one entry of C that differs from Fᵀ, by about the
rounding of a number between √α and 1 in float32 (1e-8) and in float64 (1e-16). These runs look like
the published runs: det(CF) falls below 0, the sooner the larger the difference is, in float64 as in
float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas
import torch
from matplotlib.figure import Figure

from experiments import THEORY, Claim, between, loaded, over_steps, within
from mfgd.init import Init, identity
from mfgd.palette import BLUE, GREEN, VERMILLION
from mfgd.problem import Problem, from_matrix
from mfgd.tracking import Run
from mfgd.types import Factors, NonNegative, Positive

SWEEPS = {"razin2020": ("tolerance=0.1,0.0316227766", "steps=6000", "record.points=250")}
ROUNDING = {"float32": 1e-8, "float64": 1e-16}
"""dtype → about the rounding of a number between √α and 1."""
PUBLISHED = {
    "float32": {1e-2: 6.76, 1e-3: 7.20, 1e-4: 7.23},
    "float64": {1e-2: 6.93, 1e-3: 11.75, 1e-4: 11.79},
}
"""dtype → ℓ → w."""


def one_unobserved() -> Problem:
    """[[·, 1], [1, 0]]."""
    return from_matrix([[math.nan, 1.0], [1.0, 0.0]])


def nearly_identity(*, scale: Positive, apart: NonNegative) -> Init:
    """The identity start, with ``apart`` added to one entry of C above the diagonal."""

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        C, F = identity(scale=scale, ratio=1.0)(problem, widths, generator)
        C[0, 1] += apart
        return C, F

    return start


def ends(runs: pandas.DataFrame) -> pandas.DataFrame:
    """One line for each run, in the order of falling loss: dtype, apart, goal, and loss, w and
    determinant at the end.

    Runs of one start are the same trajectory; a run ends once its loss is below the goal that its
    tolerance sets. The relative error of a fit with loss ℓ is √ℓ.
    """
    lines = [_end(run) for run in loaded(runs)]
    found = pandas.DataFrame(lines).sort_values(
        ["loss", "goal"], ascending=False, ignore_index=True
    )
    # Runs of one start that the budget ended are the same run.
    return found.drop_duplicates(["dtype", "apart", "loss"])


def _end(run: Run) -> dict[str, float | str]:
    C, F = (run.matrices[name].double() for name in ("C", "F"))
    W, config = C @ F, run.config
    loss = float((W[0, 1] - 1) ** 2 + (W[1, 0] - 1) ** 2 + W[1, 1] ** 2) / 2
    # det(W) has lost the digits that the product of the two determinants still has.
    determinant = float(torch.linalg.det(C) * torch.linalg.det(F))
    which = {
        "dtype": config.dtype,
        "apart": config.init.apart,
        "goal": round(config.tolerance**2, 9),
    }
    return which | {"loss": loss, "w": float(W[0, 0]), "determinant": determinant}


def bound(loss: np.ndarray | pandas.Series) -> np.ndarray:
    """(1 − √2ℓ)²/√2ℓ."""
    return (1 - np.sqrt(2 * loss)) ** 2 / np.sqrt(2 * loss)


def _unobserved_entry(found: pandas.DataFrame, dtype: str, apart: float, goal: float) -> float:
    """w at a loss; NaN if the run has not reached the loss."""
    start = (found["dtype"] == dtype) & (found["apart"] == apart)
    same = found[start & np.isclose(found["goal"], goal)]
    if len(same) and same["loss"].iloc[0] <= goal:
        return float(same["w"].iloc[0])
    return math.nan


def _longest_run(runs: pandas.DataFrame, dtype: str, apart: float) -> Run:
    """The run of a start with the smallest tolerance."""
    starts = [run for run in loaded(runs) if run.config.dtype == dtype]
    same = [run for run in starts if run.config.init.apart == apart]
    return min(same, key=lambda run: run.config.tolerance)


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    found = ends(runs)
    positive = found[found["determinant"] > 0]
    least = (positive["w"].abs() - bound(positive["loss"])).min()
    yield between(f"least |w| − bound of {len(positive)} ends with det(CF) > 0", least, low=-1e-9)
    exact = found[found["apart"] == 0]
    yield between(
        "det(CF) where C = F = √α I at the start: least", exact["determinant"].min(), low=0.0
    )
    yield within(
        "w at ℓ = 1e-2, float64",
        _unobserved_entry(found, "float64", 0.0, 1e-2),
        PUBLISHED["float64"][1e-2],
        0.1,
    )
    same = [_unobserved_entry(found, dtype, 0.0, 1e-3) for dtype in ROUNDING]
    if not np.isnan(same).any():  # the runs need 38,000 steps to come so far
        text = "C = F = √α I: float32 and float64 differ at ℓ = 1e-3 by"
        yield between(text, abs(same[0] / same[1] - 1), low=0.3)
    rounded = [_unobserved_entry(found, dtype, apart, 1e-3) for dtype, apart in ROUNDING.items()]
    text = "C and Fᵀ apart by rounding: float32 and float64 differ at ℓ = 1e-3 by"
    yield between(text, abs(rounded[0] / rounded[1] - 1), low=0.3)


def figure(runs: pandas.DataFrame) -> Figure:
    canvas = Figure(figsize=(10, 4.2), layout="constrained", dpi=110)
    left, right = canvas.subplots(1, 2, width_ratios=(1.2, 1))
    found = ends(runs)
    starts = {
        ("float32", 0.0): (BLUE, "o", "float32"),
        ("float64", 0.0): (BLUE, "x", "float64"),
        ("float32", ROUNDING["float32"]): (VERMILLION, "o", "float32, C and Fᵀ apart by 1e-8"),
        ("float64", ROUNDING["float32"]): (VERMILLION, "x", "float64, C and Fᵀ apart by 1e-8"),
        ("float64", ROUNDING["float64"]): (GREEN, "x", "float64, C and Fᵀ apart by 1e-16"),
    }
    for (dtype, apart), (colour, marker, label) in starts.items():
        same = found[(found["dtype"] == dtype) & (found["apart"] == apart)]
        style = {"fillstyle": "none", "markersize": 8 if marker == "o" else 5}
        left.plot(same["loss"], same["w"], marker, color=colour, label=label, **style)
        longest = _longest_run(runs, dtype, apart)
        line = (0, (4, 3)) if marker == "x" else "-"
        right.plot(
            longest.trajectory["step"], longest.trajectory["loss"], color=colour, linestyle=line
        )
    along = np.geomspace(min(2e-5, found["loss"].min()), 0.3, 200)
    left.plot(along, bound(along), **THEORY, label="bound while det(CF) > 0")
    for dtype, marker in (("float32", "^"), ("float64", "v")):
        points = PUBLISHED[dtype]
        left.plot(
            points.keys(),
            points.values(),
            marker,
            color="black",
            markersize=6,
            label=f"published, {dtype}",
        )
    left.set(
        xscale="log",
        yscale="log",
        xlim=(5e-5, 0.15),
        ylim=(0.3, 100),
        xlabel="loss ℓ",
        ylabel="unobserved entry w of CF",
    )
    left.set_title("The better the fit, the larger the unobserved entry")
    left.invert_xaxis()
    left.grid(alpha=0.3)
    left.legend(fontsize=7, loc="lower right")
    right.set(yscale="log", ylabel="loss ℓ", title="Once det(CF) < 0 the loss falls fast")
    over_steps(right)
    return canvas
