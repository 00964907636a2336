"""Errors, angles and modes refer to one matrix."""

import numpy as np
import pytest
from cases import solve
from numpy.testing import assert_allclose
from scipy.linalg import subspace_angles
from test_config import composed

from mfgd.given import load_problem

NOISY = ("problem=synthetic", "problem.n=12", "problem.m=9", "problem.spectrum=[4,2,1]", "rank=3")
NOISY = (*NOISY, "problem.noise=0.3", "loss.scale=0.5", "lr=0.05", "steps=2000", "record.points=5")
DYNAMICS = "diagnostics=dynamics"


@pytest.mark.parametrize("more", [(), ("problem.observed=0.8",)])
def test_angles_and_modes_of_a_noisy_matrix_are_those_of_the_truth(more):
    point = composed(*NOISY, *more, DYNAMICS)
    (row,) = solve([point])
    truth = load_problem(point.problem).truth.target.numpy()
    C, F = (W.numpy() for W in row.factors)
    U, sigma, Vh = np.linalg.svd(truth)
    left, _, right = np.linalg.svd(C @ F)
    found = {name: values[-1] for name, values in row.trajectory.items()}
    for name, ours, theirs in (("left", left, U), ("right", right.T, Vh.T)):
        expected = subspace_angles(ours[:, :3], theirs[:, :3]).max()
        assert expected > 0.1
        assert_allclose(found[f"angle.{name}"], expected, rtol=1e-9)
    for i in range(3):
        assert_allclose(found[f"mode.{i + 1}"], U[:, i] @ C @ F @ Vh[i], rtol=1e-9)
    missed = np.linalg.norm(C @ F - truth) / np.linalg.norm(truth)
    assert_allclose(found["relative_error"], missed, rtol=1e-12)
    reached = row.trajectory["mode.1"] >= sigma[0] / 2
    after = row.trajectory["step"][reached.argmax()]
    before = row.trajectory["step"][reached.argmax() - 1]
    assert before < row.values["half_time.1"] <= after


def test_angles_of_a_matrix_without_truth_are_those_of_the_matrix():
    point = composed("problem=explicit", "problem.matrix=[[2,1],[0,1],[1,5]]", "rank=1", DYNAMICS)
    (row,) = solve([point])
    C, F = (W.numpy() for W in row.factors)
    D = np.array([[2.0, 1], [0, 1], [1, 5]])
    U, _, Vh = np.linalg.svd(D)
    assert_allclose(row.trajectory["mode.1"][-1], U[:, 0] @ C @ F @ Vh[0], rtol=1e-9)
    hidden = composed("problem=explicit", "problem.matrix=[[2,1],[0,null],[1,5]]", DYNAMICS)
    (row,) = solve([hidden])
    assert not [name for name in row.trajectory if name.startswith(("mode", "angle"))]


@pytest.mark.parametrize("diagnostics", ["basic", "dynamics"])
def test_the_best_early_stop_needs_no_diagnostics(diagnostics):
    (row,) = solve([composed(*NOISY, f"diagnostics={diagnostics}", "problem.heldout=0.2")])
    error = row.trajectory["heldout_error"]
    assert row.values["early_stop_error"] == error.min()
    assert row.values["early_stop_step"] == row.trajectory["step"][error.argmin()]
    (row,) = solve([composed(*NOISY, f"diagnostics={diagnostics}")])
    assert row.values["early_stop_error"] == row.trajectory["relative_error"].min()
    (row,) = solve([composed("problem=notebook", f"diagnostics={diagnostics}")])
    assert "early_stop_error" not in row.values
