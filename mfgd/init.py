"""Where descent starts.

Each function here is an option of ``init=``; its keyword arguments are the keys of that option. It
returns a function of the problem, the widths (n, k, …, k, m) and a random stream, which gives the
factors W₁ (n, k) … W_L (k, m). At one seed ``scale`` and ``ratio`` multiply the same factors. A
rank above min(n, m) is `Refused` if the factors cannot have it, and so are two factors of zeros,
where every gradient is 0.

Keys:
    scale: multiplies each factor.
    ratio: multiplies the last factor beside that, so that it is the scale of the last factor over
        the first; 0: the last factor is 0 and the product starts at 0 (Hu, Shen and others 2022,
        LoRA, section 4.1).
"""

from collections.abc import Callable, Iterable
from functools import reduce
from itertools import pairwise
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from mfgd.continuation import run as run
from mfgd.draws import orthonormal, standard_normal, uniform_numbers
from mfgd.matrix import join_rows, pick_matrices
from mfgd.named_arrays import read_named
from mfgd.plane import plane as plane
from mfgd.target import Problem
from mfgd.types import Factors, NonNegative, Refused

Init = Callable[[Problem, tuple[int, ...], torch.Generator], Factors]


def uniform(*, scale: NonNegative, ratio: NonNegative) -> Init:
    """Independent entries, uniform on [0, scale), as in the founding notebook."""

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        numbers = (uniform_numbers(shape, generator) for shape in pairwise(widths))
        return _multiply(numbers, scale, ratio)

    return start


def normal(*, scale: NonNegative, ratio: NonNegative) -> Init:
    """Independent Gaussian entries of mean 0 and standard deviation ``scale``."""

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        numbers = (standard_normal(shape, generator) for shape in pairwise(widths))
        return _multiply(numbers, scale, ratio)

    return start


def orthogonal(*, scale: NonNegative, ratio: NonNegative) -> Init:
    """Orthonormal columns for C and orthonormal rows for F, times ``scale``; each factor between C
    and F is orthogonal.

    Source: Saxe, McClelland, Ganguli 2014, Exact solutions to the nonlinear dynamics of learning in
    deep linear neural networks, section 3.
    """

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        _refuse_large_rank(widths, "orthogonal")
        *others, (k, m) = pairwise(widths)
        factors = [orthonormal(*shape, generator) for shape in others]
        return _multiply([*factors, orthonormal(m, k, generator).mT], scale, ratio)

    return start


def balanced(*, scale: NonNegative, ratio: NonNegative) -> Init:
    """The product of the ``normal`` draw, split evenly: W_lᵀW_l = W_{l+1}W_{l+1}ᵀ for every l.

    The product U Σ Vᵀ of the Gaussian factors becomes U Σ^{1/L}, Σ^{1/L}, …, Σ^{1/L} Vᵀ.

    Source: Arora, Cohen, Golowich, Hu 2019, A convergence analysis of gradient descent for deep
    linear neural networks, procedure 1.
    """

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        _refuse_large_rank(widths, "balanced")
        *others, last = normal(scale=1.0, ratio=1.0)(problem, widths, generator)
        # U Σ Vᵀ from thin factorizations W₁…W_{L−1} = Q R and W_Lᵀ = P S.
        Q, R = torch.linalg.qr(reduce(torch.matmul, others))
        P, S = torch.linalg.qr(last.mT)
        U, sigma, Vh = torch.linalg.svd(R @ S.mT)
        return _split_evenly(Q @ U, sigma, Vh @ P.mT, len(widths) - 1, scale, ratio)

    return start


def spectral(*, scale: NonNegative, ratio: NonNegative) -> Init:
    """The best rank-k approximation U Σ Vᵀ of the observed matrix over the share of observed
    entries, split evenly; for linear measurements y of D, of A*(y)/N, whose mean is D.

    At scale 1, full observation and squared loss this is the optimum itself. For y_i = a_iᵀ D a_i
    it is ½ (A*(y)/N − I mean y) that has the mean D.

    Source: Tong, Ma, Chi 2021, Accelerating ill-conditioned low-rank matrix estimation via scaled
    gradient descent, eq. 15.
    """

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        _refuse_large_rank(widths, "spectral")
        U, sigma, Vh = problem.observation.leading_triplets(widths[1])
        return _split_evenly(U, sigma, Vh, len(widths) - 1, scale, ratio)

    return start


def sketch(*, power: Annotated[int, Ge(0)], scale: NonNegative, ratio: NonNegative) -> Init:
    """C = scale (DDᵀ/σ₁²)^power D Φ, a random sketch of the columns of D, and F = scale · ratio Ψ.

    Φ (m, k) and Ψ (k, m) have independent Gaussian entries of variance 1/k and 1/m. Missing entries
    of D count as 0, and D is divided by the share of observed entries. With power=0 and a small
    ratio this is the start from which alternating gradient descent is known to converge at a rate
    lr if scale = 1/(c₁ σ₁ √lr) and ratio = c₁ c₂ lr σ₁² with constants c₁ ≥ 1 > c₂.

    Source: Ward, Kolda 2023, Convergence of alternating gradient descent for matrix factorization,
    section 2; for the power Halko, Martinsson, Tropp 2011, Finding structure with randomness,
    section 4.5.

    Args:
        power: steps of the power method, which turn the columns of C towards the leading singular
            vectors.
    """

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        if len(widths) != 3:
            raise Refused(f"init=sketch at depth={len(widths) - 1}: allowed is depth=2")
        _, k, m = widths
        seen, D = problem.observation, problem.observation.target
        rows = standard_normal((m, k), generator).mT / k**0.5
        F = standard_normal((k, m), generator) / m**0.5
        C = seen.times_transposed(D, rows) * (seen.dilution / float(problem.count))
        for _ in range(power):
            rows = seen.transposed_times(C / problem.top_singular_value, D)
            C = seen.times_transposed(D, rows) / problem.top_singular_value
        return _multiply([C, F], scale, ratio)

    return start


def identity(*, scale: NonNegative, ratio: NonNegative) -> Init:
    """Every factor is ``scale`` times the identity, cut to the shape of the factor.

    Source: Bartlett, Helmbold, Long 2018, Gradient descent with identity initialization efficiently
    learns positive definite linear transformations by deep residual networks.
    """

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        units = (torch.eye(*shape, dtype=torch.float64) for shape in pairwise(widths))
        return _multiply(units, scale, ratio)

    return start


def file(*, path: str, scale: NonNegative, ratio: NonNegative) -> Init:
    """Factors from a .npz, .pt or .safetensors file with arrays C and F, or W1 … WL.

    Such a file is an artifact of every tracked run: descent goes on from the end of the run.

    Args:
        path: the file.

    Raises:
        Refused: no such file, another format, other arrays, or other shapes than n, m, rank and
            depth ask for.
    """

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        source = f"init.path={path}"
        shapes = dict(zip(factor_names(len(widths) - 1), pairwise(widths), strict=True))
        return _multiply(pick_matrices(read_named(path, source), shapes, source), scale, ratio)

    return start


def explicit(*, factors: list[list[list[float]]], scale: NonNegative, ratio: NonNegative) -> Init:
    """Factors on the shell line.

    Args:
        factors: W₁ (n, k) … W_L (k, m), each row by row; at depth 2 [C, F].

    Raises:
        Refused: rows of several lengths, or other shapes than n, m, rank and depth ask for.
    """

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        depth = len(widths) - 1
        if len(factors) != depth:
            given = f"init.factors: {len(factors)} matrices"
            raise Refused(f"{given}; allowed with depth={depth} are {depth}, [W1, …, W{depth}]")
        read = []
        for name, rows, shape in zip(factor_names(depth), factors, pairwise(widths), strict=True):
            source = f"init.factors: {name}"
            W = join_rows(rows, source)
            if tuple(W.shape) != shape:
                sizes = f"{W.shape[0]}×{W.shape[1]}"
                needed = f"{shape[0]}×{shape[1]} with rank={widths[1]}"
                raise Refused(f"{source} is {sizes}; allowed here is {needed}")
            read.append(W)
        return _multiply(read, scale, ratio)

    return start


def notebook() -> Init:
    """The C (3×2) and F (2×4) of the founding notebook before its first step.

    The notebook printed four decimals. Rounding to four decimals moves the losses that the notebook
    printed by more than their last digit (2.0109 for 2.0110, 1.8740 for 1.8741). The two more
    digits here, a step of 6e-6 along the gradient, are about the smallest change that gives both
    losses again; rounded to four decimals these are the printed matrices.
    """
    C = [[0.972111, 0.251809], [0.0386, 0.585798], [0.420597, 0.260988]]
    F = [[0.865611, 0.033597, 0.131699, 0.244401], [0.491903, 0.498997, 0.456298, 0.768899]]

    def start(problem: Problem, widths: tuple[int, ...], generator: torch.Generator) -> Factors:
        if len(widths) != 3:
            raise Refused(f"init=notebook at depth={len(widths) - 1}: allowed is depth=2")
        if widths != (3, 2, 4):
            allowed = "allowed is a 3×4 problem at rank=2 depth=2"
            raise Refused(f"init=notebook at widths {widths}: {allowed}")
        return torch.tensor(C, dtype=torch.float64), torch.tensor(F, dtype=torch.float64)

    return start


def factor_names(depth: int) -> tuple[str, ...]:
    """The names under which factors are kept: C, F at depth 2, W1 … WL beyond."""
    if depth == 2:
        return "C", "F"
    return tuple(f"W{level}" for level in range(1, depth + 1))


def _refuse_large_rank(widths: tuple[int, ...], name: str) -> None:
    n, k, m = widths[0], widths[1], widths[-1]
    if k > min(n, m):
        allowed = f"must be between 1 and min(n, m) = {min(n, m)}"
        raise Refused(f"rank={k} with init={name}: {allowed}")


def _multiply(factors: Iterable[Tensor], scale: float, ratio: float) -> Factors:
    """The factors times the scale, the last one times the ratio too."""
    *others, last = factors
    return _refuse_zeros((*(scale * W for W in others), scale * ratio * last), scale, ratio)


def _split_evenly(
    U: Tensor, sigma: Tensor, Vh: Tensor, depth: int, scale: float, ratio: float
) -> Factors:
    """U Σ^{1/L}, Σ^{1/L}, …, Σ^{1/L} Vᵀ for L = depth, each times the scale, the last one times the
    ratio too."""
    root = scale * sigma ** (1 / depth)
    inner = [torch.diag(root) for _ in range(depth - 2)]
    return _refuse_zeros((U * root, *inner, (ratio * root)[:, None] * Vh), scale, ratio)


def _refuse_zeros(factors: Factors, scale: float, ratio: float) -> Factors:
    """The factors, unless two of them are 0: each gradient has all other factors in it."""
    if sum(not W.any() for W in factors) > 1:
        zeros = "two factors or more are 0, where every gradient is 0"
        allowed = "allowed are a larger init.scale, and init.ratio=0 for the last factor alone"
        raise Refused(f"init.scale={scale:g} with init.ratio={ratio:g}: {zeros}; {allowed}")
    return factors
