"""Where runs under a penalty end, by theory."""

from __future__ import annotations

import math

import numpy as np

from mfgd.record import Row
from mfgd.schatten import shrink
from mfgd.verdict import Answer, Setting


def soft_threshold(setting: Setting, row: Row) -> Answer | None:
    """Under the penalty λ the singular values end at max(σ_i − λ/2w, 0), i ≤ k.

    Holds for the squared loss of a complete matrix at depth 2: λ/2 (‖C‖² + ‖F‖²) acts as λ‖CF‖_*
    (Srebro, Rennie, Jaakkola 2005, Maximum-margin matrix factorization, lemma 1; Cai, Candès, Shen
    2010, A singular value thresholding algorithm, theorem 2.1). Of tied factors the σ_i are the
    positive eigenvalues of (D + Dᵀ)/2. The deviation is the largest one of all singular values, in
    units of σ₁.
    """
    if not _is_penalized(setting) or len(setting.start) != 2:
        return None
    sigma = setting.reachable_spectrum
    names = [name for name in row.trajectory if name.startswith("sigma.")]
    threshold = setting.loss.penalty / setting.curvature
    goals = (sigma[: len(names)] - threshold).clamp(min=0).tolist()
    return _judge_goals(setting, row, dict(zip(names, goals, strict=True)))


def deep_penalty(setting: Setting, row: Row) -> Answer | None:
    """Under the penalty λ at depth L > 2 each singular value ends at 0, or at the larger root x of
    σ_i − x = λ/2w x^{2/L − 1}.

    Both are minima: a start that is too small stays at 0, whatever is least. Source:
    `mfgd.schatten` (Schatten quasi-norm of power 2/L). Holds for the squared loss of a complete
    matrix. The deviation is the largest one of all singular values from the nearest of these
    numbers, in units of σ₁; `theory.loss` is the least value of the objective.
    """
    if not _is_penalized(setting) or len(setting.start) == 2:
        return None
    sigma = setting.problem.spectrum
    assert sigma is not None
    threshold, depth = setting.loss.penalty / setting.curvature, len(setting.start)
    minima = np.array([0.0, *(shrink(s, threshold, depth) for s in sigma.tolist())])
    goals = {}
    for name in row.trajectory:
        if name.startswith("sigma."):
            goals[name] = float(minima[np.abs(minima - row.trajectory[name][-1]).argmin()])
    return _judge_goals(setting, row, goals)


def _is_penalized(setting: Setting) -> bool:
    """Whether this is the squared loss of a complete matrix with a penalty."""
    known = setting.loss.curvature is not None and setting.problem.complete
    return known and setting.loss.penalty != 0


def _judge_goals(setting: Setting, row: Row, goals: dict[str, float]) -> Answer:
    """The last singular values beside what they should be."""
    gaps = [abs(row.trajectory[name][-1] - goal) for name, goal in goals.items()]
    deviation = float(np.max(gaps)) / (float(setting.reachable_spectrum[0]) or 1.0)
    if row.outcome == "diverged":
        deviation = math.inf
    return Answer(deviation, setting.closeness(row), {"loss": setting.optimum, **goals})
