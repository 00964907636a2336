"""How fast methods come near the answer, beside the eigenvalues of a step there."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from test_config import composed
from test_oracles import LOW, SCALED, solve_line

from mfgd.given import load_problem

MOMENTUM = (*LOW, "record.points=200", "steps=600")
HEAVY, NESTEROV = ((*MOMENTUM, f"optimizer={name}") for name in ("momentum", "nesterov"))
IN_TURN = (*SCALED, "optimizer.alternating=true")
TAIL = ("problem.spectrum=[1,.8,.6,.42]", "rank=3")
ALS = (*LOW, "optimizer=als", "record.points=1000", "steps=40", *TAIL)
SLOW = (*LOW, *TAIL, "optimizer=scaled_gd", "optimizer.damping=0.0", "optimizer.alternating=true")
SLOW = (*SLOW, "problem.spectrum=[1,.8,.6,.54]", "record.points=200", "steps=150")
NEAR = ("init._target_=test_oracles.near", "init.scale=0.01")

VERDICTS = {
    "momentum_rate": [
        ("agrees", (*HEAVY, "optimizer.beta=0.9", "lr=0.1")),
        ("agrees", (*HEAVY, "optimizer.beta=0.5", "lr=0.05", "steps=3000")),
        ("agrees", (*HEAVY, "optimizer.beta=0.3", "lr=0.9")),
        ("agrees", (*NESTEROV, "optimizer.beta=0.9", "lr=0.1")),
        ("agrees", (*NESTEROV, "optimizer.beta=0.5", "lr=0.05", "steps=3000")),
        (None, (*HEAVY, "optimizer.beta=0.9", "lr=0.1", "steps=20")),
        (None, (*HEAVY, "optimizer.beta=0.9", "lr=0.1", "problem.observed=0.9")),
        (None, (*HEAVY, "optimizer.beta=0.9", "lr=0.1", "schedule=cosine")),
        (None, (*HEAVY, "optimizer.beta=0.9", "lr=0.1", "optimizer.alternating=true")),
        (None, (*HEAVY, "optimizer.beta=0.9", "lr=0.1", "lr_ratio=2")),
        (None, (*LOW, "steps=300", "record.points=200")),
    ],
    "alternating_rate": [
        ("agrees", IN_TURN),
        ("agrees", (*IN_TURN, "lr=0.2", "problem.condition=50", "steps=80")),
        ("agrees", (*IN_TURN, "lr=1.3", "record.points=100")),
        ("agrees", SLOW),
        (None, (*IN_TURN, *TAIL, "lr=0.5")),  # faster modes still have their say
        ("agrees", ALS),
        ("agrees", (*ALS, "loss.scale=3.0")),
        (None, SCALED),
        (None, (*ALS, "loss.penalty=0.1")),
        (None, (*ALS, "problem.observed=0.9")),
        (None, (*ALS, "steps=2")),
        (None, (*LOW, "optimizer=als", "steps=5")),
        (None, (*IN_TURN, "optimizer.damping=0.01")),
        (None, (*LOW, "steps=300", "optimizer.alternating=true")),
    ],
    "stability": [
        ("agrees", (*HEAVY, "optimizer.beta=0.5", "lr=1.4", "steps=2000", *NEAR)),
        ("agrees", (*HEAVY, "optimizer.beta=0.5", "lr=1.55", "steps=2000")),
        ("agrees", (*NESTEROV, "optimizer.beta=0.5", "lr=0.7", "steps=2000", *NEAR)),
        ("agrees", (*NESTEROV, "optimizer.beta=0.5", "lr=0.8", "steps=2000")),
        (None, (*NESTEROV, "optimizer.beta=0.5", "lr=0.8", "optimizer.alternating=true")),
        (None, (*HEAVY, "optimizer.beta=0.5", "lr=1.4", "steps=20")),
    ],
}


@pytest.mark.parametrize(
    ("oracle", "expected", "line"),
    [(name, *case) for name, cases in VERDICTS.items() for case in cases],
)
def test_verdict(oracle, expected, line):
    assert solve_line(*line).tags.get(f"oracle.{oracle}") == expected


def step_by_numpy(name, D, shape, lr, beta):
    """One step on the flattened (C, F, V_C, V_F) of ½‖CF − D‖²."""
    (n, k), m = shape, D.shape[1]

    def parts(x):
        C, F = x[: n * k].view(n, k), x[n * k : k * (n + m)].view(k, m)
        return C, F, x[k * (n + m) :]

    def step(x):
        C, F, V = parts(x)
        if name == "als":
            C = D @ F.T @ torch.linalg.inv(F @ F.T)
            return torch.cat([C.flatten(), (torch.linalg.inv(C.T @ C) @ C.T @ D).flatten()])
        if name == "scaled_gd":
            C = C - lr * (C @ F - D) @ F.T @ torch.linalg.inv(F @ F.T)
            F = F - lr * torch.linalg.inv(C.T @ C) @ C.T @ (C @ F - D)
            return torch.cat([C.flatten(), F.flatten()])
        E = C @ F - D
        G = torch.cat([(E @ F.T).flatten(), (C.T @ E).flatten()])
        V = beta * V + G
        moved = x[: len(G)] - lr * (G + beta * V if name == "nesterov" else V)
        return torch.cat([moved, V])

    return step


@pytest.mark.parametrize(
    ("name", "line", "lr", "beta"),
    [
        ("momentum", (*HEAVY, "optimizer.beta=0.9", "lr=0.1"), 0.1, 0.9),
        ("momentum", (*HEAVY, "optimizer.beta=0.5", "lr=0.05", "steps=3000"), 0.05, 0.5),
        ("nesterov", (*NESTEROV, "optimizer.beta=0.9", "lr=0.1"), 0.1, 0.9),
        ("scaled_gd", IN_TURN, 0.5, 0),
        ("scaled_gd", SLOW, 0.5, 0),
        ("als", ALS, 0, 0),
    ],
)
def test_the_contraction_is_the_largest_eigenvalue_of_a_step(name, line, lr, beta):
    row = solve_line(*line)
    D = load_problem(composed(*line).problem).D
    C, F = row.factors
    answer = torch.cat([C.flatten(), F.flatten()])
    if name in ("momentum", "nesterov"):
        answer = torch.cat([answer, torch.zeros_like(answer)])
    J = torch.func.jacrev(step_by_numpy(name, D, C.shape, lr, beta))(answer)
    sizes = np.sort(np.abs(np.linalg.eigvals(J.numpy())))
    moving = sizes[sizes < 1 - 1e-4]  # C Q, Q⁻¹ F has the same product
    assert len(sizes) - len(moving) == C.shape[1] ** 2
    expected = row.trajectory["theory.contraction"]
    assert_allclose(expected, moving[-1], rtol=2e-3)


def test_the_limit_of_momentum_is_where_a_number_descends_no_more():
    """Two numbers: (2 + 2β)/λ and (2 + 2β)/((1 + 2β)λ) at the least λ = 2 of ½(xy − 1)²."""
    line = ("problem=explicit", "problem.matrix=[[1]]", "rank=1", "loss.scale=0.5", "steps=3")
    for name in ("momentum", "nesterov"):
        for beta in (0.0, 0.4, 0.9):
            row = solve_line(*line, f"optimizer={name}", f"optimizer.beta={beta}")
            limit = row.values["lr_limit"]
            for times in (0.99, 1.01):
                x, V = np.array([1.0 + 1e-5, 1.0 + 1e-5]), np.zeros(2)
                for _ in range(4000):
                    G = (x[0] * x[1] - 1) * x[::-1]
                    V = beta * V + G
                    x = x - times * limit * (G + beta * V if name == "nesterov" else V)
                    if abs(x[0] * x[1] - 1) > 1e-2:
                        break
                assert (abs(x[0] * x[1] - 1) < 1e-6) == (times < 1)
