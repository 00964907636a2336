"""D ≈ W₁W₂…W_L for L = 3 and 4: every option descends as it does at depth 2, or refuses in one
line."""

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from cases import INITS, LOSSES, ONE_WAY, OPTIMIZERS, PAIRS, QUADRATIC, RISING, solve
from numpy.testing import assert_allclose
from test_config import composed

from mfgd import plan
from mfgd.given import load_problem
from mfgd.point import Point
from mfgd.record import Row
from mfgd.types import Refused

DEPTHS = pytest.mark.parametrize("depth", [3, 4])
TURNS = pytest.mark.parametrize("alternating", ["false", "true"], ids=["at once", "alternating"])
N, M, RANK, STEPS = 7, 5, 3, 20
METHODS = [
    *("gd", "momentum", "nesterov", "adam", "polyak"),
    # Undamped, where a product of some factors is close to singular, the steps of several factors
    # do not add up.
    *(f"scaled_gd optimizer.damping=0.1 optimizer.damped_by={by}" for by in ("number", "error")),
    "polyak optimizer.metric=scaled optimizer.damping=0.1",
    *("sign", "normalized", "rmsprop", "armijo", "flow"),
    *(f"muon optimizer.polar={polar}" for polar in ("svd", "newton_schulz")),
    *("exact_line_search", "levenberg_marquardt"),
]
TORCH = {
    "squared": torch.square,
    "absolute": torch.abs,
    "quantile": lambda r: torch.maximum(0.5 * r, -0.5 * r),
    "huber": lambda r: torch.nn.functional.huber_loss(r, torch.zeros_like(r), reduction="none"),
    "logcosh": lambda r: torch.log(torch.cosh(r)),
}
BASE = (
    "problem=synthetic",
    f"problem.n={N}",
    f"problem.m={M}",
    f"problem.rank={RANK}",
    "problem.condition=2",
    f"rank={RANK}",
    f"steps={STEPS}",
    "tracking.figures=0",
)


def test_every_optimizer_is_here():
    assert {method.split()[0] for method in METHODS} | PAIRS | RISING == set(OPTIMIZERS)


ALONE = {"explicit", "notebook", "plane", "run", "sketch"}


@pytest.fixture(scope="module")
def starts(tmp_path_factory) -> list[str]:
    """Every init but those of two factors, and those that are given, which `file` stands for."""
    folder, generator = tmp_path_factory.mktemp("starts"), np.random.default_rng(0)
    for depth in (3, 4):
        shapes = list(pairwise((N, *[RANK] * (depth - 1), M)))
        arrays = {
            f"W{level}": generator.normal(size=shape) for level, shape in enumerate(shapes, 1)
        }
        np.savez(folder / f"{depth}.npz", **arrays)
    paths = {"file": f" init.path={folder}/${{depth}}.npz"}
    names = INITS.keys() - ALONE
    return [f"init={name} init.scale=0.6{paths.get(name, '')}" for name in sorted(names)]


@cache
def chosen(depth: int, text: str) -> Point:
    return composed(*BASE, f"depth={depth}", *text.split())


def points(depth: int, *choices: Iterable[str]) -> list[Point]:
    """Every combination of choices, each a text of overrides of one group."""
    made = []
    for texts in product(*choices):
        groups = {text.partition("=")[0]: text for text in texts}
        parts = {group: getattr(chosen(depth, text), group) for group, text in groups.items()}
        made.append(replace(chosen(depth, texts[0]), **parts))
    return made


def solved(runs: list[Point]) -> list[Row]:
    """Their rows, in their order."""
    rows = {
        i: row
        for batch in plan.group_points(runs)
        for i, row in zip(batch, solve([runs[i] for i in batch]), strict=True)
    }
    return [rows[i] for i in range(len(runs))]


@DEPTHS
@TURNS
@pytest.mark.parametrize("method", METHODS)
def test_descends(starts, method, alternating, depth):
    name = method.split()[0]
    losses = ["squared"] if name in QUADRATIC else [*LOSSES]
    turns = f" optimizer.alternating={alternating}" if name not in ONE_WAY else ""
    runs = points(
        depth, starts, [f"loss={loss}" for loss in losses], [f"optimizer={method}{turns}"]
    )
    assert len(runs) == (len(INITS) - len(ALONE)) * len(losses)
    runs = [replace(run, lr=(0.03 if "polyak" in method else 0.003,)) for run in runs]
    for run, row in zip(runs, solved(runs), strict=True):
        first, last = row.trajectory["loss"][[0, -1]]
        assert (row.outcome, last < first) == ("budget", True), (run.init.name, run.loss.name)


@DEPTHS
def test_gradient_descent_is_torch_s(starts, depth):
    runs = points(
        depth, starts, [f"loss={name} loss.penalty=0.1" for name in LOSSES], ["optimizer=gd"]
    )
    runs = [replace(run, lr=(0.003,)) for run in runs]
    D = load_problem(runs[0].problem).D
    for run, row in zip(runs, solved(runs), strict=True):
        start, theirs = (
            row.snapshots[0][1],
            [W.clone().requires_grad_() for W in row.snapshots[0][1]],
        )
        sgd = torch.optim.SGD(theirs, lr=0.003)
        for _ in range(STEPS):
            sgd.zero_grad()
            penalty = 0.1 / 2 * sum(W.square().sum() for W in theirs)
            (TORCH[run.loss.name](torch.linalg.multi_dot(theirs) - D).sum() + penalty).backward()
            sgd.step()
        for ours, W, before in zip(row.factors, theirs, start, strict=True):
            assert_allclose(
                ours, W.detach(), rtol=1e-10, atol=1e-12, err_msg=f"{run.init.name} {run.loss.name}"
            )
            assert not torch.equal(ours, before)


@DEPTHS
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("optimizer=mu init=uniform", "optimizer=mu at depth={depth}: allowed is depth=2"),
        ("optimizer=als", "optimizer=als at depth={depth}: allowed is depth=2"),
        ("problem=notebook init=notebook", "init=notebook at depth={depth}: allowed is depth=2"),
    ],
)
def test_what_is_for_two_factors_refuses(line, message, depth):
    with pytest.raises(Refused, match=f"^{message.format(depth=depth)}"):
        plan.group_points([composed(*BASE[:1], f"depth={depth}", "rank=2", *line.split())])


@DEPTHS
def test_rates_in_units_of_sigma1(depth):
    # From the balanced answer's own product, somewhat displaced: below the unit it is reached,
    # beyond it is left.
    line = (
        "init=spectral",
        "init.scale=0.999",
        "lr_unit=sigma1",
        "steps=3000",
        "problem.spectrum=[3,2,1]",
    )
    below, beyond = (composed(*BASE, f"depth={depth}", *line, f"lr={lr}") for lr in (0.97, 1.03))
    assert [row.trajectory["relative_error"][-1] < 1e-9 for row in solve([below, beyond])] == [
        True,
        False,
    ]
    assert plan.find_unstable([below, beyond]) == ([beyond], pytest.approx(1.0, rel=1e-12))
