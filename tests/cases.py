"""The one table of what is under test: every option of conf/, with example hyperparameters and an
independent answer.

An option without an entry here fails `test_every_option_is_a_case` of its module.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor

import mfgd
from mfgd.batch import Batch
from mfgd.dense import AllEntries, MaskedEntries
from mfgd.draws import stream
from mfgd.loss import Loss
from mfgd.method import Optimizer
from mfgd.point import Point
from mfgd.record import Row
from mfgd.target import Problem
from mfgd.types import Refused

BATCHES = pytest.mark.parametrize("batch", [(), (3,)], ids=["single", "batch"])
DEPTHS = pytest.mark.parametrize("depth", [2, 3, 4])

N, M, RANK = 7, 5, 3


class Case(NamedTuple):
    """Example hyperparameters of an option, and what its answer is compared with."""

    keys: dict[str, Any]
    reference: Any


def _logcosh(r):
    """log1p(2 sinh²(r/2)): log cosh r would lose its digits near 0, and overflow far from 0."""
    near = np.log1p(2 * np.sinh(np.clip(r, -30, 30) / 2) ** 2)
    return np.where(abs(r) < 30, near, np.logaddexp(r, -r) - np.log(2))


LOSSES = {  # reference: ρ in NumPy
    "squared": Case({}, lambda r: r**2),
    "absolute": Case({}, np.abs),
    "quantile": Case({"share": 0.3}, lambda r: np.maximum(0.7 * r, -0.3 * r)),
    "huber": Case(
        {"delta": 0.7}, lambda r: np.where(abs(r) <= 0.7, r**2 / 2, 0.7 * (abs(r) - 0.35))
    ),
    "logcosh": Case({}, _logcosh),
}

LIKELIHOODS = {  # reference: ρ of prediction and target in SciPy
    "logistic": Case({}, lambda p, t: -special.log_expit(t * p)),
    "poisson": Case({}, lambda p, t: np.exp(p) - t * p + special.xlogy(t, t) - t),
    "kullback_leibler": Case({}, lambda p, t: special.kl_div(t, p)),
    "beta": Case({"beta": 0.0}, lambda p, t: t / p - np.log(t / p) - 1),
}
"""The losses of prediction and target, which are not of the residual."""

KINKED = {"absolute", "quantile"}
"""The losses with a kink at 0."""

OPTIMIZERS = {  # reference: parameters, lr → torch.optim, where it has the method
    "gd": Case({}, torch.optim.SGD),
    "momentum": Case({"beta": 0.8}, partial(torch.optim.SGD, momentum=0.8)),
    "nesterov": Case({"beta": 0.8}, partial(torch.optim.SGD, momentum=0.8, nesterov=True)),
    # A large epsilon: if a gradient is only rounding, Adam makes it a step of the usual length.
    "adam": Case(
        {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3, "weight_decay": 0.3},
        partial(torch.optim.AdamW, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.3),
    ),
    "scaled_gd": Case({"damping": 0.1, "damped_by": "number"}, None),
    "polyak": Case({"floor": 0.1, "metric": "scaled", "damping": 0.1}, None),
    "mu": Case({}, None),
    "als": Case({}, None),
    "alt_gd_min": Case({}, None),
    "sign": Case({}, None),
    "normalized": Case({}, None),
    "rmsprop": Case(
        {"beta": 0.9, "epsilon": 1.0}, partial(torch.optim.RMSprop, alpha=0.9, eps=1.0)
    ),
    "muon": Case({"beta": 0.8, "nesterov": True, "polar": "svd"}, None),
    "exact_line_search": Case({}, None),
    "armijo": Case({"sufficient": 0.1, "shrink": 0.6}, None),
    "barzilai_borwein": Case({"variant": "long"}, None),
    "lbfgs": Case({"history": 4}, None),
    "flow": Case({}, None),
    "gauss_newton": Case({}, None),
    "levenberg_marquardt": Case({"damping": 0.01, "factor": 4.0}, None),
}
JOINT = {"gauss_newton", "levenberg_marquardt"}
"""The optimizers that linearize the residual in all factors."""
ONE_WAY = {"mu", "als", "alt_gd_min", "armijo", "barzilai_borwein", "flow", "lbfgs"} | JOINT
"""The optimizers that do not take `alternating`."""
PAIRS = {"mu", "als", "alt_gd_min"}
"""The optimizers of two factors."""
QUADRATIC = PAIRS | JOINT | {"exact_line_search"}
"""The optimizers of the squared loss."""
RISING = {"barzilai_borwein", "gauss_newton", "lbfgs"}
"""The optimizers whose loss may rise, and with it rounding errors."""

GRADIENTS = {
    "full": Case({}, None),
    "minibatch": Case({"share": 0.3, "count": None}, None),
    "label_noise": Case({"std": 0.5}, None),
    "noisy": Case({"std": 0.5}, None),
}

SCHEDULES = {  # reference: optimizer, budget → torch.optim.lr_scheduler
    "constant": Case({}, partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0)),
    "geometric": Case(
        {"decay": 0.9},
        lambda optimizer, budget: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
    ),
    "cosine": Case({}, torch.optim.lr_scheduler.CosineAnnealingLR),
}

INITS = {  # reference: whether a rank above min(n, m) is possible
    "uniform": Case({"scale": 0.3, "ratio": 1.0}, True),
    "normal": Case({"scale": 0.3, "ratio": 1.0}, True),
    "orthogonal": Case({"scale": 0.3, "ratio": 1.0}, False),
    "balanced": Case({"scale": 0.3, "ratio": 1.0}, False),
    "spectral": Case({"scale": 0.3, "ratio": 1.0}, False),
    "sketch": Case({"power": 1, "scale": 0.3, "ratio": 1.0}, True),
    "identity": Case({"scale": 0.3, "ratio": 1.0}, True),
    "explicit": Case(
        {"factors": [[[1.0] * RANK] * N, [[2.0] * M] * RANK], "scale": 0.3, "ratio": 1.0}, True
    ),
    "file": Case({"path": "factors.npz", "scale": 0.3, "ratio": 1.0}, True),
    "notebook": Case({}, False),
    "plane": Case({"x": 0.3, "y": 0.5, "along": None}, True),
    "run": Case({"run": "an id", "sweep": None}, True),
}

OBSERVATION = {  # all of it, as it is
    "observed": 1.0,
    "mask": None,
    "noise": 0.0,
    "snr": None,
    "outliers": 0.0,
    "outlier_scale": 1.0,
    "heldout": 0.0,
    "target_rank": None,
    "seed": 0,
}

READING = {  # as the file says
    "header": None,
    "index": None,
    "separator": None,
    "decimal": None,
    "missing": None,
    "columns": None,
}

FILE = READING | {"variable": None, "unlisted": "zero", "truth": False} | OBSERVATION

SYNTHETIC = (
    {"n": N, "m": M, "rank": RANK, "spectrum": None, "condition": 4.0}
    | {"basis": "random", "symmetric": False, "response": "gaussian"}
    | OBSERVATION
)

SENSING = {
    **{"n": N, "m": M, "rank": 2, "spectrum": None, "condition": 2.0, "symmetric": False},
    **{"ensemble": "gaussian", "measurements": None, "oversampling": 3.0},
    **{"noise": 0.0, "heldout": 0.0, "seed": 0},
}

REGRESSION = {
    **{"n": N, "m": M, "rank": 2, "spectrum": None, "condition": 2.0, "symmetric": False},
    **{"samples": 12, "covariance": None, "noise": 0.0, "heldout": 0.0, "seed": 0},
}

PROBLEMS = {
    "exact": {},
    "full": {"noise": 0.1},
    "masked": {"observed": 0.6},
    "noisy": {"noise": 0.1, "observed": 0.6},
    "heldout": {"noise": 0.1, "observed": 0.8, "heldout": 0.3},
}


def _file(folder: Path) -> Problem:
    np.save(folder / "D.npy", [[1.0, np.nan, 3.0], [4.0, 5.0, 6.0]])
    return mfgd.problem.file(path=str(folder / "D.npy"), **FILE)


def _ratings(folder: Path) -> Problem:
    (folder / "u.data").write_text("1\t1\t5\t0\n2\t2\t3\t0\n")
    return mfgd.problem.ratings(path=str(folder / "u.data"), heldout=0.0, seed=0, **READING)


def _sensing_file(folder: Path) -> Problem:
    np.savez(folder / "sensing.npz", y=[1.0, 2.0], a=[[1.0, 2.0], [3.0, 4.0]], b=np.eye(2))
    return mfgd.problem.sensing_file(path=str(folder / "sensing.npz"), heldout=0.0, seed=0)


PROBLEM_OPTIONS: dict[str, Callable[[Path], Problem]] = {
    "notebook": lambda folder: mfgd.problem.notebook(),
    "synthetic": lambda folder: mfgd.problem.synthetic(
        **SYNTHETIC | {"observed": 0.6, "heldout": 0.2}
    ),
    "explicit": lambda folder: mfgd.problem.explicit(
        matrix=[[1.0, None, 3.0], [4.0, 5.0, 6.0]], **OBSERVATION
    ),
    "gaussian": lambda folder: mfgd.problem.gaussian(
        n=N, m=M, scale=2.0, symmetric=False, response="gaussian", **OBSERVATION
    ),
    "sensing": lambda folder: mfgd.problem.sensing(**SENSING | {"heldout": 0.2}),
    "sensing_file": _sensing_file,
    "regression": lambda folder: mfgd.problem.regression(**REGRESSION | {"heldout": 0.2}),
    "digits": lambda folder: mfgd.problem.digits(**OBSERVATION),
    "file": _file,
    "ratings": _ratings,
}


def expect_deciding_key(
    read: Callable[..., np.ndarray], path: Path, key: str, values: dict[Any, Any]
) -> None:
    """A file is refused with the key that decides, and read rightly for each value of the key."""
    with pytest.raises(Refused, match=rf"^problem\.path={path}: .*problem\.{key}="):
        read(path)
    for value, expected in values.items():
        np.testing.assert_array_equal(read(path, **{key: value}), expected)


def read_or_expect_key(read: Callable[..., np.ndarray], path: Path) -> np.ndarray | None:
    """What a file is read as; None if it is refused, and then with a key."""
    try:
        found, reason = read(path), "problem."
    except Refused as refused:
        found, reason = None, str(refused).partition(": ")[2]
    assert "problem." in reason
    return found


def options(group: str) -> set[str]:
    """What the shell offers for a group."""
    return {path.stem for path in (Path(__file__).parents[1] / "conf" / group).glob("*.yaml")}


def loss(name: str, **keys: Any) -> Loss:
    """A loss with its example hyperparameters; by default the plain sum."""
    return getattr(mfgd.loss, name)(
        **{"scale": 1.0, "reduction": "sum", "penalty": 0.0}
        | (LOSSES | LIKELIHOODS)[name].keys
        | keys
    )


def optimizer(name: str, **keys: Any) -> Optimizer:
    """An optimizer with its example hyperparameters; by default its factors move at once."""
    moves = {} if name in ONE_WAY else {"alternating": False}
    return getattr(mfgd.optimizer, name)(**moves | OPTIMIZERS[name].keys | keys)


def make_problem(D: Tensor, mask: Tensor | None = None, truth: Tensor | None = None) -> Problem:
    """The problem of D (*, n, m), of which the entries under a mask are observed."""
    seen = AllEntries(D) if mask is None else MaskedEntries(D, mask)
    return Problem(seen, None if truth is None else AllEntries(truth))


def mask_of(given: Problem) -> Tensor | None:
    """1 for each observed entry and 0 for any other, (*, n, m); None if every entry is observed."""
    return given.observation.mask if isinstance(given.observation, MaskedEntries) else None


def solve(points: list[Point]) -> list[Row]:
    """The rows of points that share a batch."""
    return Batch(points).solve()


def problem(name: str, batch: tuple[int, ...] = ()) -> Problem:
    """A small problem per run, each of its own seed."""
    draws = [
        mfgd.problem.synthetic(**SYNTHETIC | PROBLEMS[name] | {"seed": seed})
        for seed in range(prod(batch))
    ]

    whole = Problem.stack(draws, torch.stack) if batch else replace(draws[0], noise=None, draws={})
    return replace(whole, rank=draws[0].rank, generated=True)


def synthetic(**keys: Any) -> Problem:
    """A synthetic problem that is large enough for statistics, 30×20."""
    return mfgd.problem.synthetic(**SYNTHETIC | {"n": 30, "m": 20} | keys)


def factors(
    batch: tuple[int, ...] = (),
    depth: int = 2,
    rank: int = RANK,
    seed: int = 0,
    n: int = N,
    m: int = M,
) -> tuple[Tensor, ...]:
    """Gaussian factors, one draw a run."""
    generator = stream("cases", seed)
    widths = (n, *[rank] * (depth - 1), m)
    return tuple(
        torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)
        for shape in pairwise(widths)
    )


def column(*values: float) -> Tensor:
    """A number that differs from run to run."""
    return torch.tensor(values, dtype=torch.float64)[:, None, None]


def run(tensors: tuple[Tensor, ...], b: int) -> tuple[Tensor, ...]:
    """One run of a batch, as a batch of one."""
    return tuple(X[b : b + 1] for X in tensors)


def one(whole: Problem, b: int) -> Problem:
    """The problem of one run of a batch, as a batch of one."""

    def take(seen: AllEntries | MaskedEntries) -> AllEntries | MaskedEntries:
        if isinstance(seen, MaskedEntries):
            return MaskedEntries(seen.target[b : b + 1], seen.mask[b : b + 1])
        return AllEntries(seen.target[b : b + 1])

    truth = None if whole.truth is None else take(whole.truth)
    heldout = None if whole.heldout is None else take(whole.heldout)
    return Problem(take(whole.observation), truth, heldout)


@contextmanager
def sparsely() -> Iterator[None]:
    """Problems of any size and share are kept sparse."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mfgd.sparse.LARGE", 1)
        patch.setattr("mfgd.sparse.FEW", 1.0)
        yield


def find_taylor_slope(objective, start, direction) -> float:
    """The power of t in the error of f(W) + t ⟨∇f, V⟩ as f(W + t V): 2 if ∇f is the gradient."""
    steps = np.geomspace(1e-5, 1e-3, 9)
    slope = sum((G * V).sum() for G, V in zip(objective.gradient(start), direction, strict=True))
    moved = [tuple(W + t * V for W, V in zip(start, direction, strict=True)) for t in steps]
    errors = [
        abs(objective.value(W) - objective.value(start) - t * slope)
        for t, W in zip(steps, moved, strict=True)
    ]
    return np.polyfit(np.log(steps), np.log(errors), 1)[0]


def check_descends_to_stationary_point(states, objective):
    """The loss never rises, and the end fulfils the conditions of Karush, Kuhn and Tucker: W ≥ 0,
    G ≥ 0 and one of them 0."""
    losses = torch.stack([state.loss for state in states])
    assert (losses[1:] <= losses[:-1] * (1 + 1e-14)).all()
    end = states[-1].factors
    for W, G in zip(end, objective.gradient(end), strict=True):
        assert (W >= 0).all()
        assert (G > -1e-6).all()
        assert ((W * G).abs() < 1e-6).all()
