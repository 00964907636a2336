"""init=plane: grids of starts."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import mfgd
from mfgd.init import plane
from mfgd.types import Refused

A = [[[1.0], [2.0]], [[3.0, 0.0, 1.0]]]
B = [[[0.0], [1.0]], [[1.0, -1.0, 2.0]]]


def test_a_start_is_the_point_of_the_plane():
    C, F = plane(x=0.5, y=-2.0, along=[A, B])(None, (2, 1, 3), None)
    assert_allclose(C, 0.5 * np.array(A[0]) - 2 * np.array(B[0]), rtol=1e-15)
    assert_allclose(F, 0.5 * np.array(A[1]) - 2 * np.array(B[1]), rtol=1e-15)


def test_without_directions_x_and_y_multiply_identities():
    C, F = plane(x=0.5, y=-2.0, along=None)(None, (1, 1, 1), None)
    assert (C.tolist(), F.tolist()) == ([[0.5]], [[-2.0]])
    U, V, W = plane(x=3.0, y=0.0, along=None)(None, (3, 2, 2, 4), None)
    assert_array_equal(U, 3 * np.eye(3, 2))
    assert_array_equal(V, 3 * np.eye(2))
    assert_array_equal(W, np.zeros((2, 4)))


REFUSED = {
    "one start": ([A], r"^init.along: 1 starts; allowed are 2, \[A, B\]$"),
    "one matrix": ([A, B[:1]], "^init.along: B has 1 matrices; allowed with depth=2 are 2$"),
    "shape": ([A, [B[0], B[0]]], r"^init.along: B: W2 is \(2, 1\); allowed here is \(1, 3\)$"),
    "ragged": ([[[[1.0], [2.0, 3.0]], A[1]], B], "^init.along: A: W1: ragged"),
}


@pytest.mark.parametrize(("along", "said"), REFUSED.values(), ids=REFUSED)
def test_what_spans_no_plane_is_refused(along, said):
    with pytest.raises(Refused, match=said):
        plane(x=1.0, y=1.0, along=along)(None, (2, 1, 3), None)


def test_a_basin_map_is_that_of_plain_iterations(here):
    """Gradient descent of ½(xy − 1)² from a grid of starts, against the same loop in NumPy."""
    line = ("--multirun", "problem=explicit", "problem.matrix=[[1]]", "rank=1", "loss.scale=0.5")
    grid = ("init=plane", "init.x=range(-3,4)", "init.y=choice(-2.5,-1,0,0.5,2,3.5)")
    done = here(*line, *grid, "lr=0.3", "steps=60", "workers=1", "tracking.figures=0")
    assert done.returncode == 0, done.stderr
    runs = mfgd.load_runs().dropna(subset="parent")
    assert len(runs) == 7 * 6
    for _, run in runs.iterrows():
        x, y = float(run["params.init.x"]), float(run["params.init.y"])
        first = (x * y - 1) ** 2 / 2
        for _ in range(60):
            r = x * y - 1
            x, y = x - 0.3 * r * y, y - 0.3 * r * x
            if not r**2 / 2 <= 1e6 * first:
                break
        lost = not (x * y - 1) ** 2 / 2 <= 1e6 * first
        assert (run["tags.outcome"] == "diverged") == lost, (x, y)
        if not lost:
            assert_allclose(run["metrics.final_loss"], (x * y - 1) ** 2 / 2, rtol=1e-6, atol=1e-25)
    assert {"diverged", "budget"} == set(runs["tags.outcome"])


def test_a_plane_stands_on_the_shell_line(here):
    along = f"init.along=[{A},{B}]".replace(" ", "")
    line = ("problem=explicit", "problem.matrix=[[1,2,3],[4,5,6]]", "rank=1", "init=plane", along)
    done = here(*line, "init.x=2", "init.y=0", "steps=1", "lr=1e-12", "tracking=memory")
    assert done.returncode == 0, done.stderr
    ((_, row),) = here.session.tracker.runs
    assert torch.allclose(row.factors[0], torch.tensor([[2.0], [4.0]]).double(), atol=1e-8)
