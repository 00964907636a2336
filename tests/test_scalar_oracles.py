"""The critical step of a matrix of one entry, beside iterated numbers."""

import numpy as np
import pytest
from test_frontier import descend, find_critical_step
from test_oracles import solve_line

ONE = ("problem=explicit", "problem.matrix=[[0.5]]", "rank=1", "loss.scale=0.5", "steps=2000")
ONE = (*ONE, "init=explicit", "init.factors=[[[2]],[[1]]]")
CRITICAL = float(find_critical_step(2.0, 1.0, 0.5))

VERDICTS = [
    ("agrees", (*ONE, f"lr={0.97 * CRITICAL}")),
    ("agrees", (*ONE, f"lr={1.03 * CRITICAL}")),
    ("agrees", (*ONE, "loss.scale=1.0", f"lr={0.97 / 2 * CRITICAL}")),
    (None, (*ONE, f"lr={0.97 * CRITICAL}", "steps=2")),
    (None, (*ONE, "lr=0.1", "init.factors=[[[0.5]],[[1]]]")),
    (None, (*ONE, "lr=0.1", "init.factors=[[[1]],[[-1]]]")),  # comes to the saddle
    (None, (*ONE, "lr=0.1", "optimizer.alternating=true")),
    (None, (*ONE, "lr=0.1", "optimizer=nesterov")),
    (None, (*ONE, "lr=0.1", "lr_ratio=2")),
    (None, (*ONE, "lr=0.1", "loss.penalty=0.1")),
    (None, (*ONE, "lr=0.1", "loss=huber")),
    (None, (*ONE, "lr=0.1", "schedule=cosine")),
    (None, (*ONE, "lr=0.1", "problem.matrix=[[0.5,0]]", "init.factors=[[[1]],[[1,1]]]")),
]


@pytest.mark.parametrize(("expected", "line"), VERDICTS)
def test_verdict(expected, line):
    assert solve_line(*line).tags.get("oracle.critical_step") == expected


def test_vectors_of_one_product_have_the_critical_step_of_numbers():
    """Up to it two vectors converge, and not beyond it: iterated in NumPy."""
    rng = np.random.default_rng(1)
    for _ in range(8):
        u, v, y = rng.normal(size=3), rng.normal(size=3), float(rng.uniform(0.2, 2))
        text = f"[{[[*u]]},{[[each] for each in v]}]".replace("np.float64", "")
        text = text.replace("(", "").replace(")", "").replace(" ", "")
        line = (*ONE, f"problem.matrix=[[{y}]]", "rank=3", f"init.factors={text}")
        row = solve_line(*line, "lr=0.001", "steps=60000")
        critical = row.values["theory.lr_critical"]
        for times in (0.97, 1.03):
            a, b = u, v
            with np.errstate(all="ignore"):
                for _ in range(5000):
                    r = a @ b - y
                    a, b = a - times * critical * r * b, b - times * critical * r * a
            assert (abs(a @ b - y) < 1e-6) == (times < 1)


def test_the_critical_step_of_numbers_is_where_they_change():
    row = solve_line(*ONE, f"lr={0.97 * CRITICAL}")
    assert row.values["theory.lr_critical"] == pytest.approx(CRITICAL, rel=1e-12)
    below, above = (
        descend(np.array([2.0]), np.array([1.0]), 0.5, times * CRITICAL, 3000)
        for times in (0.999, 1.001)
    )
    assert abs(below) < 1e-9
    assert not (abs(above) < 1e-9)
