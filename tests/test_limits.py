"""What a number can be: scales of data, what is refused, and losses that no arithmetic gives."""

import math

import numpy as np
import pytest
import torch
from test_config import composed

from mfgd import plan
from mfgd.attempt import solve_or_report
from mfgd.limits import least_possible_loss
from mfgd.loss import squared
from mfgd.problem import from_matrix
from mfgd.record import Row
from mfgd.types import Refused

generator = np.random.default_rng(0)
D = generator.normal(size=(12, 5)) @ generator.normal(size=(5, 8))
SIGMA = np.linalg.svd(D, compute_uv=False)


def point(folder, array, *line: str):
    path = folder / f"D{len(list(folder.iterdir()))}.npy"  # a file is read once
    np.save(path, array)
    return composed("problem=file", f"problem.path={path}", *line)


def solve(folder, array, *line: str) -> Row:
    ((row,),) = solve_or_report([point(folder, array, *line)])
    return row


@pytest.mark.parametrize(
    ("dtype", "exponents"),
    [("float32", [-30, -19, -18, 0, 18, 30]), ("float64", [-137, -100, -30, 0, 30, 100, 137])],
)
def test_data_of_any_scale_have_one_answer(dtype, exponents, tmp_path):
    """At rank 2 the best relative error is that of Eckart and Young, whatever the unit of D is."""
    error = np.linalg.norm(SIGMA[2:]) / np.linalg.norm(SIGMA)
    for exponent in exponents:
        line = ("rank=2", "optimizer=als", "steps=400", f"dtype={dtype}", "init.scale=0.01")
        row = solve(tmp_path, D * 10.0**exponent, *line)
        loss = float(np.sum(SIGMA[2:] ** 2)) * 10.0 ** (2 * exponent)
        assert row.trajectory["loss"][-1] == pytest.approx(loss, rel=1e-5), exponent
        assert row.trajectory["relative_error"][-1] == pytest.approx(error, rel=1e-5)
        assert row.tags["oracle.eckart_young"] == "agrees"


@pytest.mark.parametrize(
    ("array", "dtype", "reason"),
    [
        (np.zeros((3, 2)), "float64", "the 6 observed entries of D are all 0"),
        (D * 1e-310, "float64", "all 0|beyond"),
        (D * 1e-160, "float64", "the sum of squares of D.*rescale D"),
        (D * 1e160, "float64", "the sum of squares of D.*rescale D"),
        (D * 1e-40, "float32", "^dtype=float32 .*use dtype=float64"),
        (D * 1e40, "float32", "^dtype=float32 .*use dtype=float64"),
    ],
)
def test_what_cannot_be_represented_is_refused(array, dtype, reason, tmp_path):
    with pytest.raises(Refused, match=reason):
        plan.group_points([point(tmp_path, array, f"dtype={dtype}")])


def test_nothing_agrees_with_a_loss_below_the_optimum():
    given, loss = from_matrix(D), squared(scale=1.0, reduction="sum", penalty=0.0)
    optimum = float(np.sum(SIGMA[2:] ** 2))
    for dtype in (torch.float64, torch.float32):
        least = least_possible_loss(given, loss, optimum, dtype)
        assert least < optimum * (1 - torch.finfo(dtype).eps)
        assert least > 0.963 * optimum
    assert least_possible_loss(given, loss, 0.0, torch.float64) == 0.0
    assert math.isnan(least_possible_loss(given, loss, math.nan, torch.float64))
