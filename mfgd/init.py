"""Where descent starts.

Each function here is an option of ``init=``; its keyword arguments are that option's keys. It returns a function of the
problem, the widths (n, k, …, k, m) and a random stream, which gives the factors W₁ (n, k) … W_L (k, m). At the same
seed ``scale`` multiplies one and the same factors.

Keys:
    scale: multiplies each factor.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from mfgd import sparse
from mfgd.files import arrays, opened, real
from mfgd.problem import Problem, gaussian, orthonormal
from mfgd.types import Factors, Positive, Refused

Init = Callable[[Problem, tuple[int, ...], torch.Generator], Factors]


def uniform(*, scale: Positive) -> Init:
    """Independent entries, uniform on [0, scale): the founding notebook's."""

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        return tuple(
            scale * torch.rand(shape, generator=generator, dtype=torch.float64)
            for shape in pairwise(widths)
        )

    return start


def normal(*, scale: Positive) -> Init:
    """Independent Gaussian entries of mean 0 and standard deviation ``scale``."""

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        return tuple(scale * gaussian(shape, generator) for shape in pairwise(widths))

    return start


def orthogonal(*, scale: Positive) -> Init:
    """Orthonormal columns for C and orthonormal rows for F, times ``scale``; square factors between are orthogonal.

    Source: Saxe, McClelland, Ganguli 2014, Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks, section 3.
    """

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        _within(widths, "orthogonal")
        *inner, last = pairwise(widths)
        return (
            *(scale * orthonormal(*shape, generator) for shape in inner),
            scale * orthonormal(*last[::-1], generator).mT,
        )

    return start


def balanced(*, scale: Positive) -> Init:
    """The product of the ``normal`` draw, split evenly: W_lᵀW_l = W_{l+1}W_{l+1}ᵀ for every l.

    The product U Σ Vᵀ of the Gaussian factors becomes U Σ^{1/L}, Σ^{1/L}, …, Σ^{1/L} Vᵀ.

    Source: Arora, Cohen, Golowich, Hu 2019, A convergence analysis of gradient descent for deep linear neural networks,
    procedure 1.
    """

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        _within(widths, "balanced")
        left, *rest = normal(scale=1.0)(problem, widths, generator)
        for factor in rest[:-1]:
            left = left @ factor
        Q, R = torch.linalg.qr(left)
        P, S = torch.linalg.qr(rest[-1].mT)
        U, sigma, Vh = torch.linalg.svd(R @ S.mT)
        return _split(Q @ U, sigma, Vh @ P.mT, len(widths) - 1, scale)

    return start


def spectral(*, scale: Positive) -> Init:
    """The best rank-k approximation U Σ Vᵀ of the observed matrix over the share observed, split evenly.

    At scale 1, full observation and squared loss this is the optimum itself.

    Source: Tong, Ma, Chi 2021, Accelerating ill-conditioned low-rank matrix estimation via scaled gradient descent,
    eq. 15.
    """

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        _within(widths, "spectral")
        n, m = problem.shape
        k, share = widths[1], problem.count / (n * m)
        if problem.pattern is not None and k < min(n, m):
            from scipy.sparse.linalg import svds

            found = svds(sparse.as_scipy(problem.D), k=k, v0=np.ones(min(n, m)))
            # SciPy has them ascending.
            U, sigma, Vh = (
                torch.from_numpy(X.copy())
                for X in (found[0][:, ::-1], found[1][::-1], found[2][::-1])
            )
            return _split(U, sigma / share, Vh, len(widths) - 1, scale)
        D = problem.D if problem.pattern is None else problem.D.to_dense()
        U, sigma, Vh = torch.linalg.svd(D * (n * m / problem.count), full_matrices=False)
        return _split(U[:, :k], sigma[:k], Vh[:k], len(widths) - 1, scale)

    return start


def identity(*, scale: Positive) -> Init:
    """Every factor is ``scale`` times the identity, cut to its shape.

    Source: Bartlett, Helmbold, Long 2018, Gradient descent with identity initialization efficiently learns positive
    definite linear transformations by deep residual networks.
    """

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        return tuple(scale * torch.eye(*shape, dtype=torch.float64) for shape in pairwise(widths))

    return start


def file(*, path: str, scale: Positive) -> Init:
    """Factors from a .npz, .pt or .safetensors file with arrays C and F, or W1 … WL: a tracked run's artifact goes on.

    Args:
        path: the file.

    Raises:
        Refused: no such file, another format, other arrays, or other shapes than n, m, rank and depth ask for.
    """

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        source, file = f"init.path={path}", Path(path).expanduser()
        if file.suffix not in _READERS:
            raise Refused(f"{source}: unknown format; allowed are {' '.join(_READERS)}")
        found = opened(_READERS[file.suffix], file, source)
        if not isinstance(found, dict):
            raise Refused(f"{source}: one array without a name; allowed are arrays by name")
        names = factor_names(len(widths) - 1)
        if missing := [name for name in names if name not in found]:
            raise Refused(f"{source}: no array {missing[0]} in it; allowed are {', '.join(names)}")
        factors = tuple(scale * real(found[name], f"{source}: {name}") for name in names)
        for name, factor, shape in zip(names, factors, pairwise(widths), strict=True):
            if tuple(factor.shape) != shape:
                raise Refused(f"{source}: {name} is {tuple(factor.shape)}; allowed here is {shape}")
            if not torch.isfinite(factor).all():
                raise Refused(
                    f"{source}: {name} has entries that are not finite; allowed are finite numbers"
                )
        return factors

    return start


def notebook() -> Init:
    """The C (3×2) and F (2×4) of the founding notebook before its first step.

    It printed four decimals, and rounding them moves the losses that it printed by more than their last digit (2.0109
    for 2.0110, 1.8740 for 1.8741). The two more digits that stand here, a step of 6e-6 along the gradient, are about
    the least that bring both back; to four decimals these are the printed matrices.
    """
    C = [[0.972111, 0.251809], [0.0386, 0.585798], [0.420597, 0.260988]]
    F = [[0.865611, 0.033597, 0.131699, 0.244401], [0.491903, 0.498997, 0.456298, 0.768899]]

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        if len(widths) != 3:
            raise Refused(f"init=notebook at depth={len(widths) - 1}: allowed is depth=2")
        if widths != (3, 2, 4):
            raise Refused(
                f"init=notebook at widths {widths}: allowed is a 3×4 problem at rank=2 depth=2"
            )
        return torch.tensor(C, dtype=torch.float64), torch.tensor(F, dtype=torch.float64)

    return start


def factor_names(depth: int) -> tuple[str, ...]:
    """The names under which factors are kept: C, F at depth 2, W1 … WL beyond."""
    return ("C", "F") if depth == 2 else tuple(f"W{level}" for level in range(1, depth + 1))


def _within(widths: tuple[int, ...], name: str) -> None:
    n, k, m = widths[0], widths[1], widths[-1]
    if k > min(n, m):
        raise Refused(f"rank={k} with init={name}: allowed is 1 to min(n, m) = {min(n, m)}")


def _split(U: Tensor, sigma: Tensor, Vh: Tensor, depth: int, scale: float) -> Factors:
    root = scale * sigma ** (1 / depth)
    return (U * root, *(torch.diag(root) for _ in range(depth - 2)), root[:, None] * Vh)


_READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".npz": arrays,
    ".pt": lambda file: torch.load(file, weights_only=True, map_location="cpu"),
    ".safetensors": lambda file: load_file(file),
}
