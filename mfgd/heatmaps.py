"""The colour scales of matrices, and the images of a series."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps

from mfgd.target import Problem
from mfgd.types import Factors

PIXELS = 256
"""An image is scaled up, or thinned out, to about this many pixels a side."""
GREY = 204
"""Of an entry that is not observed, out of 255."""
LARGEST = 1e300
"""The range of a colour scale up to here is still a number."""


def scale_of(D: np.ndarray) -> dict[str, Any]:
    """The colour scale of D and D̂: about 0 if D has both signs."""
    low, high = float(np.nanmin(D)), float(np.nanmax(D))
    if low < 0 < high:
        return scale_about_0(D)
    return {"cmap": "viridis", "vmin": low, "vmax": high}


def scale_about_0(*Xs: np.ndarray) -> dict[str, Any]:
    """The colour scale of signed matrices: symmetric about 0, up to their largest finite value."""
    sizes = [float(np.max(np.abs(X), where=np.isfinite(X), initial=0)) for X in Xs]
    bound = min(max(sizes), LARGEST) or 1.0
    return {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound}


def _to_rgb(X: np.ndarray, cmap: str, vmin: float, vmax: float) -> np.ndarray:
    """An image of X, vmin to vmax, with its long side across; grey if not finite."""
    if X.shape[0] > X.shape[1]:
        X = X.T
    down, across = (max(1, round(size / PIXELS)) for size in X.shape)
    # One entry stands for a block of entries.
    X = X[: X.shape[0] // down * down : down, : X.shape[1] // across * across : across]
    grow = max(1, PIXELS // max(X.shape))
    X = np.kron(X, np.ones((grow, grow)))
    scaled = np.clip((X - vmin) / ((vmax - vmin) or 1.0), 0, 1)
    colours = colormaps[cmap](np.ma.masked_invalid(scaled), bytes=True)[..., :3]
    colours[~np.isfinite(X)] = GREY
    return np.ascontiguousarray(colours)


def pictures(problem: Problem, factors: Factors) -> dict[str, np.ndarray]:
    """D̂ and the residual as RGB images (height, width, 3) uint8, for a series by step.

    The scales are those of D at every step, so that the images of a series compare: D̂ is on the
    scale that it has in `plots.matrices`, the residual from −max |D| to max |D|.
    """
    _, pictured = problem.pictured
    D, estimate, residual = pictured.picture(factors, PIXELS)
    return {
        "D_hat": _to_rgb(estimate, **scale_of(D)),
        "residual": _to_rgb(residual, **scale_about_0(D)),
    }
