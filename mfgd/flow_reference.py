"""Gradient flow from the start of a run, as a curve beside its steps."""

from __future__ import annotations

import numpy as np
import torch

from mfgd import metrics
from mfgd.objective import Objective
from mfgd.spectra import singular_values
from mfgd.types import Factors

RELATIVE, ABSOLUTE = 1e-8, 1e-11
"""Errors of a step of the integration that are allowed, and the latter over the largest entry of
the start."""
EVALUATIONS = 50
"""The integration is given up after so many gradients a step of the run."""


def follow_flow(
    objective: Objective,
    start: Factors,
    rates: tuple[float, ...],
    steps: np.ndarray,
) -> dict[str, np.ndarray]:
    """Measures along Ẇ_l = −r_l ∂f/∂W_l, with r_l the rate of a factor and a step as unit of time.

    This is the curve that descent follows for small rates. It is integrated by the method of
    Dormand and Prince (1980, A family of embedded Runge–Kutta formulae), in double precision,
    whatever the precision of the run.

    Args:
        objective: of one run.
        start: W₁ … W_L.
        rates: of each factor that moves by itself.
        steps: the times, (records,), from 0 on.

    Returns:
        `loss`, `relative_error`, `sigma.1` … → (records,); nothing if the flow was given up, as
        that of a loss with kinks may be.
    """
    from scipy.integrate import RK45

    free = objective.free(start)
    shapes = [W.shape for W in free]
    sizes = [W.numel() for W in free]
    x = torch.cat([W.to(torch.float64).flatten() for W in free]).numpy()

    def unpack(flat: np.ndarray) -> Factors:
        parts = torch.split(torch.from_numpy(flat), sizes)
        return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))

    def slope(_: float, flat: np.ndarray) -> np.ndarray:
        gradients = objective.gradient(unpack(flat))
        moves = [-rate * G.flatten() for rate, G in zip(rates, gradients, strict=True)]
        return torch.cat(moves).numpy()

    measured = [_measure(objective, unpack(x))]
    allowed = ABSOLUTE * (abs(x).max() or 1.0)
    flow = RK45(slope, 0.0, x, max(steps[-1], 1.0), rtol=RELATIVE, atol=allowed)
    for step in steps[1:]:
        while flow.t < step:
            flow.step()
            if flow.status == "failed" or flow.nfev > EVALUATIONS * (steps[-1] + 100):
                return {}
        measured.append(_measure(objective, unpack(flow.dense_output()(step))))
    return {name: np.array([each[name] for each in measured]) for name in measured[0]}


def _measure(objective: Objective, factors: Factors) -> dict[str, float]:
    """Loss, error and singular values of one state."""
    factors = objective.expand(factors)
    sigma = singular_values(factors)[: metrics.SIGMAS]
    measures = {f"sigma.{i}": float(value) for i, value in enumerate(sigma, 1)}
    error = metrics.relative_error(objective.problem, factors)
    return {"loss": float(objective.value(factors)), "relative_error": float(error)} | measures
