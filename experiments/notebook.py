"""The founding notebook, Matrix Factorization using Gradient Descent, as printed.

From the printed C and F, the sum of squares falls as printed: at once by lr = 0.01, then over
10,000 steps at 0.001.

The gradients of ‖D − CF‖² are read off two tracked runs of one step, which differ only in their
rate: W − lr G at lr = 0.01 less W − lr G at lr = 0.02 is 0.01 G.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas
from matplotlib.figure import Figure

from experiments import Claim, between, loaded, over_steps, within
from mfgd.palette import BLUE

SWEEPS = {"notebook": (), "notebook_step": ()}

LOSSES = {
    0: 2.0110,
    1: 1.8741,
    1000: 0.0223,
    2000: 0.0060,
    3000: 0.0028,
    4000: 0.0020,
    5000: 0.0017,
    6000: 0.0016,
}
LOSSES |= {7000: 0.0015, 8000: 0.0015, 9000: 0.0014, 10000: 0.0014}
GRADIENTS = {
    "C": [[1.7976, 1.5676], [0.0270, -0.2698], [-0.4419, -1.9538]],
    "F": [[1.8045, -0.4818, -0.1906, 0.1710], [0.5332, -0.4509, -0.4052, -0.1633]],
}
STEPPED = {
    "C": [[0.9541, 0.2361], [0.0383, 0.5885], [0.4250, 0.2805]],
    "F": [[0.8476, 0.0384, 0.1336, 0.2426], [0.4866, 0.5036, 0.4603, 0.7705]],
}
FINAL = [
    [0.0497, 0.1423, 0.0869, 0.1019],
    [0.2768, 0.4008, 0.4364, 0.5000],
    [0.4724, 0.7316, 0.7508, 0.8618],
]
RESIDUAL = np.array(
    [
        [0.4044, -1.1402, 0.3885, 0.3853],
        [0.8437, -2.5201, 0.8680, 0.8727],
        [-0.5418, 1.6038, -0.5506, -0.5531],
    ]
)
"""In hundredths."""


def claims(runs: pandas.DataFrame) -> Iterator[Claim]:
    (run,) = loaded(runs[runs["sweep"] == "notebook"])
    losses = run.trajectory.set_index("step")["loss"]
    for step, loss in LOSSES.items():
        yield within(f"loss at step {step}", losses[step], loss, 1e-4)
    slow, fast = sorted(
        loaded(runs[runs["sweep"] == "notebook_step"]), key=lambda run: run.config.lr
    )
    for name, printed in GRADIENTS.items():
        gradient = (slow.matrices[name] - fast.matrices[name]) / (fast.config.lr - slow.config.lr)
        yield between(
            f"largest deviation of the gradient in {name}", _deviation(gradient, printed), high=2e-4
        )
    for name, printed in STEPPED.items():
        yield between(
            f"largest deviation of {name} after a step",
            _deviation(slow.matrices[name], printed),
            high=1e-4,
        )
    product = run.matrices["C"] @ run.matrices["F"]
    yield between("largest deviation of the final CF", _deviation(product, FINAL), high=3e-4)
    yield between(
        "largest deviation of CF − D",
        _deviation(product - run.matrices["D"], RESIDUAL / 100),
        high=3e-4,
    )


def _deviation(measured: object, printed: object) -> float:
    return float(np.abs(np.asarray(measured) - np.asarray(printed)).max())


def figure(runs: pandas.DataFrame) -> Figure:
    (run,) = loaded(runs[runs["sweep"] == "notebook"])
    residual = 100 * (run.matrices["C"] @ run.matrices["F"] - run.matrices["D"]).numpy()
    canvas = Figure(figsize=(10, 3.8), layout="constrained", dpi=110)
    left, right = canvas.subplots(1, 2, width_ratios=(1.2, 1))
    left.plot(
        run.trajectory["step"],
        run.trajectory["loss"],
        "o",
        color=BLUE,
        fillstyle="none",
        clip_on=False,
        markersize=9,
        label="measured",
    )
    left.plot(list(LOSSES), list(LOSSES.values()), "kx", clip_on=False, label="printed")
    left.set(ylabel="‖D − CF‖²", yscale="log", title="The loss falls as printed")
    over_steps(left)
    left.legend()
    bound = abs(RESIDUAL).max()
    image = right.imshow(residual, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto")
    for (i, j), value in np.ndenumerate(residual):
        label = f"{value:.4f}\n({RESIDUAL[i, j]:.4f})"
        right.text(
            j,
            i,
            label,
            ha="center",
            va="center",
            fontsize=9,
            color="white" if abs(value) > 1.5 else "black",
        )
    right.set(
        title="CF − D in hundredths, measured (printed)",
        xticks=range(4),
        yticks=range(3),
        xlabel="column",
        ylabel="row",
    )
    canvas.colorbar(image, ax=right)
    return canvas
