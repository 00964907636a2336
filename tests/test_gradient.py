"""Disturbed gradients: their mean, their draws, and whole descents against NumPy."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import (
    BATCHES,
    GRADIENTS,
    OPTIMIZERS,
    SYNTHETIC,
    factors,
    loss,
    make_problem,
    mask_of,
    options,
    problem,
    solve,
    sparsely,
)
from cases import optimizer as cases_optimizer
from numpy.testing import assert_allclose
from test_checkpoint import bits, go_on
from test_config import composed

import mfgd
from mfgd import Objective, plan
from mfgd.descent import descent
from mfgd.draws import stream
from mfgd.problem import synthetic
from mfgd.streams import Streams
from mfgd.types import Refused

NOISES = [name for name in GRADIENTS if name != "full"]
NAMES = pytest.mark.parametrize("name", NOISES)
GRADIENT_ONLY = {
    *("adam", "gd", "momentum", "muon", "nesterov", "normalized", "rmsprop", "scaled_gd", "sign")
}


def disturb(objective: Objective, name: str, batch: tuple[int, ...] = (), **keys) -> Objective:
    """The objective with disturbed gradients, the runs of the seeds 0, 1, …."""
    made = getattr(mfgd.gradient, name)(**GRADIENTS[name].keys | keys)
    like = torch.zeros(*batch, 1, 1, dtype=torch.float64)
    return made.apply(objective, Streams(range(max(1, sum(batch))), like).branch("gradient"))


def test_every_option_is_a_case():
    assert options("gradient") == set(GRADIENTS)
    assert mfgd.gradient.full() is None


def test_every_optimizer_says_what_it_asks_for():
    found = {name for name in OPTIMIZERS if cases_optimizer(name).gradient_only}
    assert found == GRADIENT_ONLY
    assert not cases_optimizer("scaled_gd", damped_by="error").gradient_only


@NAMES
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("kind", ["full", "masked"])
@pytest.mark.parametrize("depth", [2, 3])
def test_the_mean_of_many_draws_is_the_gradient(name, reduction, kind, depth):
    """Within 4.5 standard errors at each of some 70 entries."""
    objective = Objective(problem(kind), loss("squared", reduction=reduction, penalty=0.3))
    start, draws = factors(depth=depth), 4000
    made = disturb(objective, name)
    found = [made.gradient(start) for _ in range(draws)]
    for level, G in enumerate(objective.gradient(start)):
        drawn = torch.stack([each[level] for each in found])
        error = drawn.std(0) / draws**0.5
        assert (error > 0).all()
        assert ((drawn.mean(0) - G).abs() <= 4.5 * error).all()


@pytest.mark.parametrize("name", ["huber", "logistic"])
def test_the_mean_of_minibatches_of_any_loss_is_the_gradient(name):
    given = problem("masked")
    objective = Objective(make_problem(given.D.sign(), mask_of(given)), loss(name))
    made, start = disturb(objective, "minibatch"), factors()
    found = [made.gradient(start)[0] for _ in range(4000)]
    drawn = torch.stack(found)
    assert (
        (drawn.mean(0) - objective.gradient(start)[0]).abs() <= 4.5 * drawn.std(0) / 4000**0.5
    ).all()


@BATCHES
@pytest.mark.parametrize("kind", ["full", "masked"])
@pytest.mark.parametrize("name", ["squared", "huber", "logcosh"])
def test_a_minibatch_of_all_entries_is_the_gradient_to_the_last_bit(batch, kind, name):
    objective = Objective(problem(kind, batch), loss(name, penalty=0.1))
    made, start = disturb(objective, "minibatch", batch, share=1.0), factors(batch)
    for G, H in zip(made.gradient(start), objective.gradient(start), strict=True):
        assert torch.equal(G, H)


@pytest.mark.parametrize("kind", ["full", "masked"])
@pytest.mark.parametrize("keys", [{"share": 0.3}, {"share": None, "count": 4}])
def test_a_minibatch_has_its_size_and_no_entry_twice(kind, keys):
    given = problem(kind)
    made = disturb(Objective(given, loss("squared")), "minibatch", **keys)
    seen = torch.ones_like(given.D) if kind == "full" else mask_of(given)
    N = int(seen.sum())
    size = 4 if "count" in keys else round(0.3 * N)
    for _ in range(50):
        made.gradient(factors())
        drawn = made._weights
        assert int((drawn > 0).sum()) == size
        assert_allclose(drawn[drawn > 0], N / size)
        assert (seen[drawn > 0] == 1).all()


@pytest.mark.parametrize("name", ["squared", "huber", "logcosh", "absolute"])
@pytest.mark.parametrize("kind", ["full", "masked"])
@BATCHES
def test_label_noise_is_the_gradient_for_a_disturbed_target(name, kind, batch):
    given = problem(kind, batch)
    used, start = loss(name, scale=0.4, penalty=0.2), factors(batch)
    made = disturb(Objective(given, used), "label_noise", batch, std=0.7)
    found = made.gradient(start)
    D = given.D + made._noise
    mask = mask_of(given)
    expected = Objective(make_problem(D if mask is None else D * mask, mask), used)
    for G, H in zip(found, expected.gradient(start), strict=True):
        assert_allclose(G, H, rtol=1e-12, atol=1e-12)
    assert abs(float(made._noise.std()) / 0.7 - 1) < 0.4


def test_a_descent_by_minibatches_is_numpy_s():
    """Each step shuffles the observed entries and takes the first ones."""
    given, (C, F) = problem("masked"), factors()
    method = mfgd.gradient.minibatch(share=None, count=5)
    *_, state = descent(
        Objective(given, loss("squared", reduction="mean", penalty=0.1)),
        mfgd.optimizer.gd(alternating=False),
        (C, F),
        lr=0.05,
        records=[30],
        seeds=[7],
        noise=method,
    )
    C, F, D, mask = (X.numpy() for X in (C, F, given.D, mask_of(given)))
    generator, (at,) = stream("gradient", 7), np.nonzero(mask.ravel())
    for _ in range(30):
        chosen = at[torch.randperm(len(at), generator=generator)[:5]]
        drawn = np.zeros(mask.size)
        drawn[chosen] = 1 / 5  # the mean over the batch
        S = 2 * drawn.reshape(mask.shape) * (C @ F - D)
        C, F = C - 0.05 * (S @ F.T + 0.1 * C), F - 0.05 * (C.T @ S + 0.1 * F)
    assert_allclose(state.factors[0], C, rtol=1e-11)
    assert_allclose(state.factors[1], F, rtol=1e-11)
    assert_allclose(
        state.loss,
        (mask * (C @ F - D) ** 2).sum() / mask.sum() + 0.05 * ((C**2).sum() + (F**2).sum()),
        rtol=1e-11,
    )


def test_noise_of_the_gradient_is_added_to_it():
    objective, start = Objective(problem("full"), loss("squared")), factors()
    made = disturb(objective, "noisy", std=0.3)
    found, generator = made.gradient(start), stream("gradient", 0)
    for G, H in zip(objective.gradient(start), found, strict=True):
        drawn = torch.randn(G.shape, generator=generator, dtype=torch.float64)
        assert_allclose(H - G, 0.3 * drawn, rtol=1e-10, atol=1e-12)


@NAMES
def test_listed_entries_draw_too(name):
    with sparsely():
        given = synthetic(**SYNTHETIC | {"n": 20, "m": 15, "observed": 0.6})
    objective = Objective(given, loss("squared", penalty=0.1))
    start, draws = factors((1,), n=20, m=15), 3000
    made = disturb(objective, name, (1,))
    found = [made.gradient(start) for _ in range(draws)]
    for level, G in enumerate(objective.gradient(start)):
        drawn = torch.stack([each[level] for each in found])
        error = drawn.std(0) / draws**0.5
        assert ((drawn.mean(0) - G).abs() <= 4.7 * error + 1e-12).all()


# A run and its company

LINES = {
    "minibatch": "gradient=minibatch gradient.share=0.3",
    "count": "gradient=minibatch gradient.count=4 optimizer=adam optimizer.alternating=true",
    "label_noise": "gradient=label_noise gradient.std=0.2 depth=3 optimizer=momentum",
    "noisy": "gradient=noisy gradient.std=0.1 optimizer=scaled_gd optimizer.damping=0.1",
    "single": "gradient=minibatch gradient.share=0.3 dtype=float32 loss=huber",
    "large": "gradient=minibatch gradient.share=0.5 problem.n=300 problem.m=201",
}
BASE = ("problem=synthetic", "problem.n=12", "problem.m=9", "problem.noise=0.1")
SHORT = ("init=normal", "init.scale=0.5", "lr=0.01", "steps=25", "record.points=9")


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_run_has_the_same_bits_alone_twice_and_in_a_batch(line):
    few = 3 if "300" in line else 7
    points = [composed(*BASE, *SHORT, "problem.observed=0.7", *line.split(), "seed=1")]
    points += [replace(points[0], seed=seed) for seed in range(2, few)]
    rows = solve(points)
    for point, row in zip(points, rows, strict=True):
        assert bits(*solve([point])) == bits(row)
    assert len({row.tags["draw.gradient"] for row in rows}) == len(rows)
    losses = [row.trajectory["loss"][-1] for row in rows]
    assert len(set(losses)) == len(losses)


def test_runs_of_several_strengths_share_a_batch():
    for line in (
        "gradient=minibatch gradient.share=0.3,0.6,1.0",
        "gradient=noisy gradient.std=1,2",
    ):
        option, _, values = line.partition(" ")
        key, _, listed = values.partition("=")
        points = [composed(*BASE, *SHORT, option, f"{key}={value}") for value in listed.split(",")]
        assert len(plan.group_points(points)) == 1
        for point, row in zip(points, solve(points), strict=True):
            assert bits(*solve([point])) == bits(row)


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_run_that_goes_on_has_the_bits_of_one_that_never_stopped(line, tmp_path):
    point = composed(*BASE, *SHORT, *line.split(), "steps=40")
    expected = bits(*solve([point]))
    assert bits(*go_on([point], tmp_path, 3, 17)) == expected


def test_the_stream_of_the_gradient_moves_no_other():
    """A method that draws has the same numbers beside disturbed gradients."""
    own, two = (Streams([3], torch.zeros(1, 1, 1)) for _ in range(2))
    branch = two.branch("gradient")
    branch.normal((4,))
    assert torch.equal(own.normal((5,)), two.normal((5,)))
    kept = two.states
    expected = two.normal((2,)), branch.normal((2,))
    two.states = kept
    assert torch.equal(two.normal((2,)), expected[0])
    assert torch.equal(branch.normal((2,)), expected[1])


# What is refused, and what theory says


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - GRADIENT_ONLY))
def test_a_method_that_asks_for_more_than_gradients_is_refused(name):
    keys = [f"optimizer.{key}={value}" for key, value in OPTIMIZERS[name].keys.items()]
    line = (f"optimizer={name}", *keys, "gradient=noisy", "gradient.std=1")
    with pytest.raises(Refused, match=f"^gradient=noisy with optimizer={name}: "):
        plan.group_points([composed(*line)])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gradient=minibatch", "gradient.share=null beside gradient.count=null: allowed is one"),
        (
            "gradient=minibatch gradient.share=0.1 gradient.count=3",
            "gradient.share=0.1 beside gradient.count=3: allowed is one of the two, the other null",
        ),
        (
            "gradient=minibatch gradient.count=13",
            "gradient.count=13 is 13 entries a step: allowed are 1 to 12, the observed entries",
        ),
        (
            "gradient=minibatch gradient.share=0.01",
            "gradient.share=0.01 is 0 entries a step: allowed are 1 to 12, the observed entries",
        ),
        (
            "gradient=label_noise loss=kullback_leibler",
            "gradient=label_noise: allowed are the losses of the residual, such as loss=squared",
        ),
        (
            "gradient=noisy optimizer=scaled_gd optimizer.damped_by=error optimizer.damping=0.1",
            "gradient=noisy with optimizer=scaled_gd: ",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(line, message):
    with pytest.raises(Refused, match=f"^{re.escape(message)}"):
        plan.group_points([composed(*line.split())])


def test_theory_is_silent_beside_noise():
    loud = ("problem=synthetic", "problem.n=8", "problem.m=7", "rank=2", "lr=0.01", "steps=9")
    (row,) = solve([composed(*loud)])
    assert [tag for tag in row.tags if tag.startswith("oracle.")]
    assert "lr_limit" in row.values
    point = composed(*loud, "gradient=minibatch", "gradient.share=0.5")
    (row,) = solve([point])
    assert not [tag for tag in row.tags if tag.startswith("oracle.")]
    assert not [name for name in row.trajectory if name.startswith("theory.")]
    assert "lr_limit" not in row.values
    unstable = [replace(each, lr=(1e9,)) for each in (point, composed(*loud))]
    assert plan.find_unstable(unstable)[0] == unstable[1:]


def test_runs_without_noise_keep_their_fingerprint():
    usual = composed(*BASE)
    assert composed(*BASE, "gradient=full").fingerprint == usual.fingerprint
    assert composed(*BASE, "gradient=noisy").fingerprint != usual.fingerprint
    assert usual.params()["gradient"] == "full"
