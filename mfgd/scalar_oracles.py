"""What theory knows of a matrix of one entry."""

from __future__ import annotations

import math

from mfgd.record import Row
from mfgd.verdict import Answer, Setting


def critical_step(setting: Setting, row: Row) -> Answer | None:
    """Gradient descent of c/2 (uᵀv − y)² converges from almost every start if and only if its rate
    is below min(1/|y|, 8/(s + √(s² − 16yr)))/c, with s = ‖u‖² + ‖v‖² and r = uᵀv − y at the start.

    Source: Liang, Montúfar 2025, Gradient descent with large step sizes: chaos and fractal
    convergence region (arXiv 2509.25351). Holds for a D of one entry at any rank and depth 2, the
    squared loss without penalty, gradient descent at one rate, and a start that is not the answer.
    `theory.lr_critical` is that rate. A run beyond it that does not reach the answer agrees, one
    below it that does agrees; nothing is said of a run below it whose budget ends before. The
    deviation is the rate over the critical one − 1 if a run beyond it reached the answer, and the
    critical one over the rate − 1 if a run below it diverged, else 0.
    """
    known = setting.is_quadratic and setting.is_gradient_descent and len(setting.start) == 2
    if not known or setting.problem.shape != (1, 1):
        return None
    (u, v), y = setting.start, float(setting.problem.D)
    s, r = float(u.square().sum() + v.square().sum()), float(u @ v) - y
    if r == 0 or s == 0:
        return None
    # s² − 16yr is at least (2uᵀv − 4y)², but for rounding.
    root = math.sqrt(max(s * s - 16 * y * r, 0.0))
    critical = min(1 / abs(y) if y else math.inf, 8 / (s + root)) / setting.curvature
    reached = abs(setting.excess(row)) <= setting.closeness(row)
    below = setting.lr < critical
    if below and not reached and row.outcome != "diverged":
        return None
    deviation = 0.0
    if below != reached:
        deviation = max(setting.lr / critical, critical / setting.lr) - 1
    return Answer(deviation, 0.0, {}, {"lr_critical": critical})
