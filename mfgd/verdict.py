"""What an oracle is asked, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from torch import Tensor

from mfgd.dense import AllEntries
from mfgd.limits import least_possible_loss
from mfgd.loss import Loss
from mfgd.method import Method, Optimizer
from mfgd.record import Row
from mfgd.sparse import LowRank
from mfgd.symmetric import is_semidefinite, is_symmetric, part_by_definiteness
from mfgd.target import Problem
from mfgd.theory import curvature, is_quadratic, rate_limit
from mfgd.types import Factors

CLOSE = 1e-6
"""How close to the answer, relative, a run has reached the answer, if its tolerance is less."""


class Setting(NamedTuple):
    """What theory needs to know of a run beside what was measured."""

    problem: Problem
    """Without leading dimensions, in double precision."""
    loss: Loss
    """With plain numbers."""
    start: Factors
    optimizer: Optimizer
    lr: float
    """NaN if the rate changes from step to step."""
    tolerance: float
    optimum: float
    """The least value of the objective; NaN if unknown."""
    shares: tuple[float, ...]
    """The rate of each factor over that of the first."""
    symmetric: bool = False
    """Whether the factors are tied."""

    @property
    def rank(self) -> int:
        """The width of the factors."""
        return self.start[0].shape[-1]

    @property
    def is_quadratic(self) -> bool:
        """Whether this is the squared loss of a complete matrix, without penalty."""
        return is_quadratic(self.problem, self.loss)

    @property
    def is_gradient_descent(self) -> bool:
        """Whether this is gradient descent at one rate, with all factors moving at once."""
        return self.is_shared_gradient_descent and self.has_equal_shares

    @property
    def is_shared_gradient_descent(self) -> bool:
        """Whether this is gradient descent at a rate of each factor that stays as it is."""
        return self.has_method(Method.GRADIENT)

    @property
    def has_equal_shares(self) -> bool:
        """Whether all factors have one rate."""
        return all(share == 1 for share in self.shares)

    @property
    def rate_limit(self) -> float:
        """The rate of the first factor above which the method converges to no minimizer; NaN if
        theory does not know it.

        It is `mfgd.theory.rate_limit` for gradient descent, and at β of the momentum 1 + β times
        that for the heavy ball, (1 + β)/(1 + 2β) times that for Nesterov's method.
        """
        if not self.has_method(Method.GRADIENT, Method.HEAVY_BALL, Method.NESTEROV):
            return math.nan
        mean, beta = math.prod(self.shares) ** (1 / len(self.shares)), float(self.optimizer.beta)
        wider = 1 + beta
        if self.optimizer.method is Method.NESTEROV:
            wider /= 1 + 2 * beta
        setting = self.problem, self.loss, len(self.start), mean
        return wider * rate_limit(*setting, symmetric=self.symmetric)

    @property
    def pair_rate(self) -> float:
        """The rate of the factors of a pair that moves as this run: lr, or 2 lr of tied factors, if
        D is symmetric."""
        return self.lr * (2 if self.symmetric else 1)

    @property
    def is_scaled_gradient_descent(self) -> bool:
        """Whether this is scaled gradient descent at one rate, undamped, all factors at once."""
        return self.has_method(Method.PRECONDITIONED) and self.has_equal_shares

    def has_method(self, *methods: Method, simultaneous: bool = True) -> bool:
        """Whether the run has one of these methods, at a rate that stays as it is."""
        chosen = self.optimizer
        as_told = chosen.simultaneous == simultaneous and math.isfinite(self.lr)
        return chosen.method in methods and as_told

    @property
    def curvature(self) -> float:
        """c of `mfgd.theory.curvature`."""
        return curvature(self.problem, self.loss)

    @property
    def reachable_spectrum(self) -> Tensor:
        """The singular values, largest first, of the matrix that the factors can come near: of a
        complete D, of tied factors its positive part."""
        if self.symmetric:
            assert isinstance(self.problem.observation, AllEntries)
            return part_by_definiteness(self.problem.observation)[0]
        assert self.problem.spectrum is not None
        return self.problem.spectrum

    def can_reach(self, matrix: object) -> bool:
        """Whether factors of any rank can come near a square matrix: tied factors only if that is
        symmetric and has no negative eigenvalue."""
        if not self.symmetric:
            return True
        if not isinstance(matrix, AllEntries | LowRank):
            return False
        return is_symmetric(matrix) and is_semidefinite(matrix)

    @property
    def loss_of_zero(self) -> float:
        """The loss of the zero matrix, for a quadratic loss."""
        return self.curvature / 2 * float(self.problem.D.square().sum())

    def is_impossible(self, row: Row) -> bool:
        """Whether the run ended at a loss below the optimum by more than rounding."""
        dtype = row.factors[0].dtype
        least = least_possible_loss(self.problem, self.loss, self.optimum, dtype)
        return bool(row.trajectory["loss"][-1] < least)

    def closeness(self, row: Row) -> float:
        """How close to the answer, relative, the run has reached the answer."""
        return max(CLOSE, self.tolerance, 100 * row.epsilon)

    def excess(self, row: Row, record: int = -1) -> float:
        """f/f* − 1 at a record, or the relative error if f* is 0; infinite at the end of a run that
        diverged."""
        if row.outcome == "diverged" and record == -1:
            return math.inf
        loss = float(row.trajectory["loss"][record])
        if self.optimum > 0:
            return loss / self.optimum - 1
        return math.sqrt(loss / (self.loss_of_zero or 1.0))


@dataclass(frozen=True)
class Answer:
    """What theory says of a run, beside what was measured."""

    deviation: float
    """Relative, or a share of a rate; infinite if the run diverged and theory says it converges."""
    allowed: float
    curves: Mapping[str, float | np.ndarray] = field(default_factory=dict)
    """Measure → the value by theory, a number or (records,)."""
    values: dict[str, float] = field(default_factory=dict)
    """Metric of one number a run → the value by theory."""

    @property
    def verdict(self) -> str:
        """The tag of the run."""
        return "agrees" if abs(self.deviation) <= self.allowed else "deviates"
