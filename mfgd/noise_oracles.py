"""What theory says of an answer under noise."""

from __future__ import annotations

import math

import numpy as np

from mfgd.record import Row
from mfgd.verdict import Answer, Setting


def noise_floor(setting: Setting, row: Row) -> Answer | None:
    """Under Gaussian noise of standard deviation s the error ends at about
    s √(r (n + m − r)/p) / ‖D*‖.

    r (n + m − r) is the dimension of the matrices of rank r, of symmetric ones r n − r (r − 1)/2,
    and p the share of observed entries: this is the error if the tangent space is known (Candès,
    Plan 2010, Matrix completion with noise, section III.B). Holds for the squared loss without
    penalty at the rank r of the truth, if the noise is weak, s (√n + √m) ≤ √p σ_r/4, there are at
    least four times as many observed entries as dimensions, and the run has settled: its last two
    records differ by at most 1 %. The deviation is relative; four standard deviations of the draw
    are allowed, and a tenth for what is beyond first order.
    """
    problem, loss = setting.problem, setting.loss
    if loss.curvature is None or loss.penalty or not problem.noise:
        return None
    sigma = problem.truth_spectrum
    if sigma is None or not setting.can_reach(problem.truth):
        return None
    (n, m), r = problem.shape, int((sigma > 0).sum())
    dimension = r * n - r * (r - 1) // 2 if setting.symmetric else r * (n + m - r)
    share = float(problem.count) / (n * m)
    strength = problem.noise * (math.sqrt(n) + math.sqrt(m))
    weak = strength <= math.sqrt(share) * float(sigma[r - 1]) / 4
    enough_entries = share * n * m >= 4 * dimension
    if setting.rank != r or not weak or not enough_entries or not _has_settled(row):
        return None
    floor = problem.noise * math.sqrt(dimension / share) / float(sigma.square().sum().sqrt())
    deviation = float(row.trajectory["relative_error"][-1]) / floor - 1
    allowed = 0.1 + 4 / math.sqrt(2 * dimension)
    return Answer(deviation, allowed, {"relative_error": floor})


def _has_settled(row: Row) -> bool:
    """Whether the relative errors of the last two records differ by at most 1 %."""
    error = row.trajectory["relative_error"]
    if len(error) < 2 or row.outcome == "diverged":
        return False
    return bool(abs(error[-1] - error[-2]) <= 0.01 * error[-1])


def spiked_values(setting: Setting, row: Row) -> Answer | None:
    """Under Gaussian noise of standard deviation s the singular values of the answer are
    about s√m √((1 + θ²)(q + θ²))/θ with θ = σᵢ/(s√m), σᵢ those of the truth, q = n/m.

    Here n ≤ m, else the two change places. Source: Benaych-Georges, Nadakuditi 2012, The singular
    values and vectors of low rank perturbations of large rectangular random matrices, section 3.1.
    Holds for the squared loss of a complete matrix without penalty at the rank of the truth, if the
    run reached its answer, all θ are above q^¼ by a tenth, and the rank is at most a tenth of both
    sides. The deviation is the largest one, relative; four standard deviations of a singular value,
    about s each, are allowed, and the rank over the shorter side.
    """
    spikes = _find_spikes(setting, row)
    if spikes is None:
        return None
    theta, q, scale = spikes
    goals = scale * np.sqrt((1 + theta**2) * (q + theta**2)) / theta
    names = [name for name in row.trajectory if name.startswith("sigma.")][: len(goals)]
    found = np.array([row.trajectory[name][-1] for name in names])
    goals = goals[: len(names)]
    deviation = float(np.abs(found / goals - 1).max())
    noise = setting.problem.noise or 0.0
    allowed = 4 * noise / float(goals[-1]) + setting.rank / min(setting.problem.shape)
    return Answer(deviation, allowed, dict(zip(names, goals.tolist(), strict=True)))


def spiked_angles(setting: Setting, row: Row) -> Answer | None:
    """Under Gaussian noise the singular vectors of the answer are turned away from those of the
    truth: on the shorter side cos² = 1 − q (1 + θ²)/(θ² (θ² + q)), on the longer side
    1 − (q + θ²)/(θ² (θ² + 1)), with θ and q of `spiked_values`.

    The largest angle is that of the least θ. Source and conditions: `spiked_values`, and the angles
    are measured (diagnostics=dynamics). The deviation is the larger one of the two angles,
    relative; five standard deviations of a χ² of as many degrees as the shorter side less the rank
    has are allowed, and the rank over the shorter side.
    """
    spikes = _find_spikes(setting, row)
    if spikes is None or "angle.left" not in row.trajectory:
        return None
    theta, q, _ = spikes
    t = float(theta[-1])
    short = 1 - q * (1 + t**2) / (t**2 * (t**2 + q))
    long = 1 - (q + t**2) / (t**2 * (t**2 + 1))
    (n, m), r = setting.problem.shape, setting.rank
    cosines = {"angle.left": short, "angle.right": long}
    if n > m:
        cosines = {"angle.left": long, "angle.right": short}
    goals = {name: math.acos(math.sqrt(cosine)) for name, cosine in cosines.items()}
    gaps = [row.trajectory[name][-1] / goal - 1 for name, goal in goals.items()]
    allowed = 5 / math.sqrt(2 * (min(n, m) - r)) + r / min(n, m)
    return Answer(float(np.abs(gaps).max()), allowed, goals)


def _find_spikes(setting: Setting, row: Row) -> tuple[np.ndarray, float, float] | None:
    """θ of each singular value of the truth, q and s√m of `spiked_values`; None if theory does not
    know the answer."""
    problem, sigma = setting.problem, setting.problem.truth_spectrum
    known = setting.is_quadratic and problem.noise and sigma is not None
    if not known or row.outcome == "diverged":
        return None
    assert sigma is not None
    assert problem.noise
    spikes = sigma[sigma > 0].numpy()
    short, long = sorted(problem.shape)
    if len(spikes) != setting.rank or 10 * setting.rank > short:
        return None
    q, scale = short / long, problem.noise * math.sqrt(long)
    theta = spikes / scale
    apart = theta[-1] > 1.1 * q**0.25 and abs(setting.excess(row)) <= setting.closeness(row)
    return (theta, q, scale) if apart else None
