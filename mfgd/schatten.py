"""A penalty on L factors as a penalty on the singular values of their product.

The least Σ_l ‖W_l‖² over all W₁…W_L = X is L Σ_i σ_i(X)^{2/L}, at balanced factors (Shang, Liu,
Cheng 2016, Tractable and scalable Schatten quasi-norm approximations for rank minimization,
theorem 3; Dai, Karzand, Srebro 2021, Representation costs of linear neural networks). The objective
w ‖X − D‖² + λ/2 Σ_l ‖W_l‖² therefore falls apart into

    g(x) = w (s − x)² + λL/2 x^{2/L}                                                  (1)

for each singular value s of D, and g′(x) = 0 is

    s − x = τ x^{2/L − 1},   τ = λ/2w                                                 (2)
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def shrink(s: float, threshold: float, depth: int) -> float:
    """The larger root x of (2), where (1) has a minimum beside x = 0; 0 if there is none.

    At depth 2 it is max(s − τ, 0).

    Args:
        s: a singular value of D.
        threshold: τ.
        depth: L.
    """
    from scipy.optimize import brentq

    if depth == 2:
        return max(s - threshold, 0.0)
    power = 2 / depth - 1

    def slope(x: float) -> float:
        return s - x - threshold * x**power

    # The slope is concave in x, and largest at the least x that can be a minimum.
    least = (-power * threshold) ** (1 / (1 - power))
    if least >= s or slope(least) <= 0:
        return 0.0
    return float(brentq(slope, least, s, xtol=1e-15 * s, rtol=4 * np.finfo(float).eps))


def least_penalized(
    sigma: Iterable[float], weight: float, penalty: float, rank: int, depth: int
) -> float:
    """The least value of the objective at this rank: (1) of the leading values, each at the better
    one of 0 and `shrink`, and w s² of the others.

    Args:
        sigma: singular values of D, largest first.
        weight: w.
        penalty: λ.
        rank: k.
        depth: L.
    """
    total = 0.0
    for i, s in enumerate(sigma):
        x = shrink(s, penalty / (2 * weight), depth) if i < rank else 0.0
        at_root = weight * (s - x) ** 2 + penalty * depth / 2 * x ** (2 / depth)
        total += min(at_root, weight * s**2)
    return total
