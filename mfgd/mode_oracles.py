"""Runs whose factors share the target's singular vectors: each mode moves by itself.

If W₁ = U diag(w₁) R₁ᵀ, W_l = R_{l−1} diag(w_l) R_lᵀ and W_L = R_{L−1} diag(w_L) Vᵀ with orthonormal
R_l, so are the gradients, and for each mode i the numbers w_l obey, with s = σ_i and a = w₁⋯w_L,

    dw_l/dt = c Π_{j≠l} w_j (s − a)                                                   (1)

in gradient flow. At depth 2, λ = w₁² − w₂² stays what it is, and da/dt = c √(λ² + 4a²) (s − a)
(Dominé and others 2024, From lazy to rich: exact learning dynamics in deep linear networks); from
equal w_l, the half-time is ∫ dw / (c w^{L−1}(s − w^L)) (Saxe, McClelland, Ganguli 2014, section
1.2).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mfgd.record import Row
from mfgd.spectra import Triplets
from mfgd.types import Factors
from mfgd.verdict import Answer, Setting

ROUNDING = 1e-9
"""Factors share the singular vectors if nothing above this is left, relative to their norms."""
LONGEST_STEP = 0.1
"""Steps follow the flow up to this share of the limit of stability."""


def aligned_modes(setting: Setting, row: Row) -> Answer | None:
    """Each mode follows its own w_l of gradient flow, t = lr · step, at any depth and from a start
    of unequal factors, and is half learnt when the product of these is σ_i/2.

    Source: `mfgd.mode_oracles`, eq. 1, integrated by SciPy. What `saxe` says is left to it. Holds
    for the squared loss of a complete matrix without penalty, gradient descent at a rate of each
    factor that stays as it is, and a start that shares the singular vectors of D, if the modes of D
    are measured (diagnostics=dynamics, D without noise) and a step is at most a tenth of the limit
    of stability all along the flow. That share times the depth is allowed. The deviation is the
    largest one over modes and records, in units of σ_i.
    """
    found = _find_aligned(setting, row)
    if found is None or not setting.is_shared_gradient_descent:
        return None
    w, s, names = found
    if len(w) == 2 and setting.has_equal_shares and np.allclose(abs(w[0]), abs(w[1]), rtol=1e-9):
        return None
    rates = setting.curvature * np.array(setting.shares)[:, None]
    t = setting.lr * row.trajectory["step"]
    curves, values, deviation, largest = {}, {}, 0.0, 0.0
    for i, name in enumerate(names):
        flow = _integrate(w[:, i], s[i], rates, t)
        if flow is None:
            return None
        path, half = flow
        a = path.prod(0)
        others = np.stack([np.delete(path, layer, 0).prod(0) for layer in range(len(path))])
        steps = setting.lr * (rates * others**2).sum(0) / 2
        largest = max(largest, float(steps.max()))
        curves[name] = a
        # Not the built-in max, which would pass over NaN.
        deviation = float(np.maximum(deviation, np.abs(row.trajectory[name] - a).max() / s[i]))
        if math.isfinite(half):
            values[name.replace("mode", "half_time")] = half / setting.lr
    if not 0 < largest <= LONGEST_STEP:
        return None
    return Answer(deviation, len(w) * largest, curves, values)


def _integrate(
    w: np.ndarray, s: float, rates: np.ndarray, t: np.ndarray
) -> tuple[np.ndarray, float] | None:
    """w_l (L, records) of (1) from a start (L,), and when their product first rises to s/2, NaN if
    it does not; None if SciPy gives up."""
    from scipy.integrate import solve_ivp

    def slope(_: float, x: np.ndarray) -> np.ndarray:
        others = np.array([np.delete(x, layer).prod() for layer in range(len(x))])
        return rates[:, 0] * others * (s - x.prod())

    def half_learnt(_: float, x: np.ndarray) -> float:
        return float(x.prod() - s / 2)

    half_learnt.direction = 1  # type: ignore[attr-defined]
    keys = {"method": "LSODA", "rtol": 1e-10, "atol": 1e-13 * float(np.abs(w).max())}
    if len(t) < 2:
        return w[:, None], math.nan
    found = solve_ivp(slope, (0, t[-1]), w, t_eval=t, events=half_learnt, **keys)
    if not found.success or found.y.shape[1] != len(t):
        return None
    return found.y, float(found.t_events[0][0]) if len(found.t_events[0]) else math.nan


def period_two(setting: Setting, row: Row) -> Answer | None:
    """Beyond lr = 2/(c L σ_i^{2−2/L}) mode i of gradient descent does not settle at σ_i, but takes
    turns between two numbers, w^L of the cycle of w ↦ w − lr c w^{L−1}(w^L − σ_i).

    Below it the mode ends at σ_i. Source: Ghosh and others 2025, Learning dynamics of deep matrix
    factorization beyond the edge of stability, theorem 1. Holds for the squared loss of a complete
    matrix without penalty, gradient descent at one rate, equal w_l > 0 at the start
    (`mfgd.mode_oracles`), and rates below that at which a cycle doubles, if a mode is beyond its
    rate, the modes of D are measured (diagnostics=dynamics, D without noise), the last four records
    are of consecutive steps (record.last) and repeat after two. `theory.lr_period_two.i` is that
    rate. The deviation is the largest one over modes and these records, in units of σ_i.
    """
    found = _find_aligned(setting, row)
    steps = row.trajectory["step"][-4:]
    if found is None or not setting.is_gradient_descent or row.outcome == "diverged":
        return None
    w, s, names = found
    equal = np.allclose(w, w[0], rtol=1e-9) and (w > 0).all()
    if not equal or len(steps) < 4 or not (np.diff(steps) == 1).all():
        return None
    depth, rate = len(w), setting.lr * setting.curvature
    onsets = 2 / (setting.curvature * depth * s ** (2 - 2 / depth))
    if not (setting.lr > onsets).any():
        return None
    deviation, values = 0.0, {}
    for i, name in enumerate(names):
        cycle = _find_cycle(s[i], rate, depth) if setting.lr > onsets[i] else (s[i], s[i])
        last = row.trajectory[name][-4:]
        if cycle is None or np.abs(last[2:] - last[:2]).max() > 1e-6 * s[i]:
            return None
        gaps = [np.abs(last - np.tile(turn, 2)).max() for turn in (cycle, cycle[::-1])]
        deviation = float(np.maximum(deviation, min(gaps) / s[i]))
        values[name.replace("mode", "lr_period_two")] = float(onsets[i])
    return Answer(deviation, setting.closeness(row), {}, values)


def _find_cycle(s: float, rate: float, depth: int) -> tuple[float, float] | None:
    """The two numbers w^L between which a mode takes turns; None if this cycle is not stable."""
    from scipy.optimize import brentq

    def step(w: float) -> float:
        return w - rate * w ** (depth - 1) * (w**depth - s)

    def slope(w: float) -> float:
        bend = (2 * depth - 1) * w**depth - (depth - 1) * s
        return 1 - rate * w ** (depth - 2) * bend

    fixed = s ** (1 / depth)
    # A step from the top ends at 0, from where the next one does not come back.
    top = brentq(step, fixed, fixed + (2 / rate) ** (1 / (2 * depth - 2)) + fixed)
    low = fixed * (1 + 1e-7)
    if step(step(low)) <= low:
        return None
    high = brentq(lambda w: step(step(w)) - w, low, top, xtol=1e-15 * fixed)
    other = step(high)
    stable = abs(slope(high) * slope(other)) < 1
    return (high**depth, other**depth) if stable else None


def _find_aligned(setting: Setting, row: Row) -> tuple[np.ndarray, np.ndarray, list[str]] | None:
    """w_l (L, modes) at the start, σ (modes,) and names of the measured modes; None if the start
    does not share the singular vectors of D, or the modes of D are not measured."""
    names = [name for name in row.trajectory if name.startswith("mode.")]
    if not (setting.is_quadratic and names) or setting.problem.hides_truth:
        return None
    target = setting.problem.triplets
    assert target is not None
    w = _align(setting.start, target)
    if w is None:
        return None
    s = target.sigma[: setting.rank].numpy()
    shown = [i for i in range(min(len(names), len(s))) if s[i] > 1e-12 * s[0]]
    return w[:, shown], s[shown], [names[i] for i in shown]


def _align(start: Factors, target: Triplets) -> np.ndarray | None:
    """w_l of each mode, (L, k); None if the factors are not of this form."""
    k = start[0].shape[-1]
    if k > target.sigma.shape[-1]:
        return None
    left, numbers = target.U[:, :k], []
    for level, W in enumerate(start):
        rows = left.mT @ W
        if level < len(start) - 1:
            w = torch.linalg.vector_norm(rows, dim=-1)
            if not (w > 0).all():
                return None
            right = (rows / w[:, None]).mT
        else:
            right = target.V[:, :k]
            w = (rows @ right).diagonal()
        if not _is_product(W, left, w, right):
            return None
        numbers.append(w.numpy())
        left = right
    return np.stack(numbers)


def _is_product(W: Tensor, left: Tensor, w: Tensor, right: Tensor) -> bool:
    """Whether W = left diag(w) rightᵀ with orthonormal columns, up to rounding."""
    eye = torch.eye(len(w), dtype=W.dtype)
    whole = torch.linalg.norm(left * w @ right.mT - W) <= ROUNDING * torch.linalg.norm(W)
    return bool(whole and torch.linalg.norm(right.mT @ right - eye) <= ROUNDING * len(w))
