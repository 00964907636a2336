"""What theory says of an answer under noise, beside matrices that are drawn."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.linalg import subspace_angles
from test_oracles import solve_line

SPIKED = ("problem=synthetic", "problem.n=100", "problem.m=150", "problem.spectrum=[3,1.5]")
SPIKED = (*SPIKED, "problem.noise=0.07", "rank=2", "loss.scale=0.5", "init=spectral")
SPIKED = (*SPIKED, "init.scale=0.99", "lr=0.1", "steps=300", "record.points=4")
TURNED = (*SPIKED, "diagnostics=dynamics")

VERDICTS = {
    "spiked_values": [
        ("agrees", SPIKED),
        ("agrees", (*SPIKED, "problem.n=300", "problem.m=60", "problem.noise=0.03")),
        ("agrees", (*SPIKED, "loss.scale=1.0", "lr=0.05")),
        ("agrees", (*SPIKED, "problem.spectrum=[2,2,2]", "rank=3")),
        (None, (*SPIKED, "problem.spectrum=[3,0.8]")),  # below the threshold
        (None, (*SPIKED, "problem.noise=0")),
        (None, (*SPIKED, "rank=3")),
        (None, (*SPIKED, "steps=2")),
        (None, (*SPIKED, "problem.observed=0.9")),
        (None, (*SPIKED, "problem.outliers=0.01")),
        (None, (*SPIKED, "loss=huber")),
        (None, (*SPIKED, "loss.penalty=0.01")),
        (None, (*SPIKED, "problem.n=15")),
    ],
    "spiked_angles": [
        ("agrees", TURNED),
        ("agrees", (*TURNED, "problem.n=300", "problem.m=60", "problem.noise=0.03")),
        ("agrees", (*TURNED, "problem.spectrum=[2,2,2]", "rank=3")),
        (None, SPIKED),
        (None, (*TURNED, "problem.spectrum=[3,0.8]")),
    ],
}


@pytest.mark.parametrize(
    ("oracle", "expected", "line"),
    [(name, *case) for name, cases in VERDICTS.items() for case in cases],
)
def test_verdict(oracle, expected, line):
    assert solve_line(*line).tags.get(f"oracle.{oracle}") == expected


@pytest.mark.parametrize(("n", "m"), [(100, 150), (150, 100)])
def test_singular_values_and_angles_are_those_of_large_random_matrices(n, m):
    """The formulas have θ and n/m alone, so matrices of six times the size have the same answer."""
    row = solve_line(*TURNED, f"problem.n={n}", f"problem.m={m}")
    rng, times = np.random.default_rng(0), 6
    U, V = (np.linalg.qr(rng.normal(size=(times * side, 2)))[0] for side in (n, m))
    noisy = U * [3, 1.5] @ V.T + 0.07 / np.sqrt(times) * rng.normal(size=(times * n, times * m))
    left, sigma, right = np.linalg.svd(noisy, full_matrices=False)
    found = [row.trajectory[f"theory.{name}"][-1] for name in ("sigma.1", "sigma.2")]
    # The standard deviation of a singular value is about that of an entry.
    assert_allclose(found, sigma[:2], atol=3 * 0.07 / np.sqrt(times))
    for name, mine, theirs in (("left", U, left), ("right", V, right.T)):
        angle = subspace_angles(mine, theirs[:, :2]).max()
        assert row.trajectory[f"theory.angle.{name}"][-1] == pytest.approx(angle, rel=0.05)
    # The two sides are turned by angles of their own.
    assert (
        abs(row.trajectory["theory.angle.left"] / row.trajectory["theory.angle.right"] - 1)[-1]
        > 0.05
    )
