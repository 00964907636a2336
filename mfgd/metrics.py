"""What is measured of a state. Each measure is (*,), one number a run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

from mfgd.alignment import angles, factor_distance, procrustes_distance
from mfgd.descent import State
from mfgd.factor_measures import (
    best_rank_error,
    factor_norms,
    norm_gap,
    pair_balances,
    root_balance,
)
from mfgd.lanczos import sharpness
from mfgd.linalg import frobenius_norm, join_norms
from mfgd.objective import Objective
from mfgd.spectra import Triplets, effective_rank, singular_triplets, singular_values
from mfgd.target import Problem
from mfgd.types import Factors, Refused

SIGMAS = 8
"""How many singular values and modes are measured."""
OwnMeasure = Callable[[Problem, Factors], Tensor]
"""A user's own measure: (problem, factors) → one number a run, (*,), of any float type."""
BUILT_IN = re.compile(
    "step|seconds|loss|relative_error|excess_loss|loss_gap|gradient_norm|balance|effective_rank"
    "|best_rank_error|norm_gap|root_balance|oscillation_range|oscillation_period|procrustes_distance"
    "|nuclear_norm|heldout_error|factor_distance|sharpness|sharpness_limit|contraction|lr_absolute|lr_limit"
    "|final_loss|final_relative_error|best_loss|steps_run|solve_seconds|steps_to_tolerance"
    r"|early_stop_step|early_stop_error"
    r"|(sigma|mode|mode_gap|angle|norm|balance|half_time|theory|deviation)\..*"
)
"""Names that an own measure must not have: all that else is measured or known of a run."""


def relative_error(problem: Problem, factors: Factors) -> Tensor:
    """‖D̂ − D*‖ / ‖D*‖ with the truth D*, (*,); if D* is unknown, with D on the observed entries."""
    known = problem.observation if problem.truth is None else problem.truth
    missed, size = known.misfit(factors)
    return missed / size


def heldout_error(problem: Problem, factors: Factors) -> Tensor | None:
    """‖D̂ − D‖ / ‖D‖ over the held-out entries, (*,); if none are held out, ‖D̂ − D*‖ / ‖D*‖ over
    the entries that are not observed.

    Returns None if no entries are held out and either every entry is observed or the truth is
    unknown.
    """
    misfit = None
    if problem.heldout is not None:
        misfit = problem.heldout.misfit(factors)
    elif problem.truth is not None:
        misfit = problem.observation.hidden_misfit(problem.truth, factors)
    return None if misfit is None else misfit[0] / misfit[1]


def balance(factors: Factors) -> Tensor:
    """‖CᵀC − FFᵀ‖_F, at depth L the root of Σ_l ‖W_lᵀW_l − W_{l+1}W_{l+1}ᵀ‖², (*,).

    It does not change along gradient flow (Du, Hu, Lee 2018, theorem 2.2).
    """
    gaps = [W.mT @ W - V @ V.mT for W, V in pairwise(factors)]
    return join_norms(map(frobenius_norm, gaps))


def modes(factors: Factors, target: Triplets) -> Tensor:
    """u_iᵀ D̂ v_i, how much of each mode of the target is learnt, (*, r).

    Source: Saxe, McClelland, Ganguli 2014, Exact solutions to the nonlinear dynamics of learning,
    section 1.1.
    """
    left = reduce(torch.matmul, (target.U.mT, *factors[:-1]))
    return (left * (factors[-1] @ target.V).mT).contiguous().sum(-1)


def excess_loss(loss: Tensor, optimum: Tensor) -> Tensor:
    """loss/optimum − 1, (*,); NaN if the optimum is unknown or 0."""
    return torch.where(optimum > 0, loss / optimum - 1, torch.nan)


def distance_to_answer(objective: Objective, state: State, optimum: Tensor) -> Tensor:
    """What is compared with ``tolerance``, (*,): `excess_loss` if the optimum is known and not 0,
    else `relative_error`."""
    relative = relative_error(objective.problem, state.factors)
    return torch.where(optimum > 0, excess_loss(state.loss, optimum), relative)


def measure(
    objective: Objective,
    state: State,
    optimum: Tensor,
    target: Triplets | None = None,
    goal: Tensor | None = None,
    best: Triplets | None = None,
    *,
    dynamics: bool = False,
    full: bool = False,
    own: Mapping[str, OwnMeasure] = {},
) -> dict[str, Tensor]:
    """Every measure of a state by its name, each (*,); NaN if it does not apply to a run.

    Args:
        objective: the objective that descends.
        state: the state that is measured.
        optimum: (*,), the least value of the objective; NaN if unknown.
        target: the leading singular triplets of the target; None: modes, angles and
            `factor_distance` are not measured.
        goal: the U* (*, n, k) of tied factors; None: `procrustes_distance` is not measured.
        best: the triplets of the best approximation of rank `problem.target_rank`; None:
            `best_rank_error` is not measured.
        dynamics: whether norms and balances of the factors are measured too.
        full: whether the costly `sharpness` is measured too.
        own: measures of the user's own by name, which come last.

    Raises:
        Refused: an own measure has the name of a built-in measure.
        ValueError: an own measure is not one number a run.
    """
    problem, factors = objective.problem, state.factors
    if target is None:
        sigma, compared = singular_values(factors), {}
    else:
        found = singular_triplets(factors)
        sigma, compared = found.sigma, _compare_with_target(factors, found, target)
    measures = {
        "loss": state.loss,
        "relative_error": relative_error(problem, factors),
        "excess_loss": excess_loss(state.loss, optimum),
        "loss_gap": state.loss - optimum,
        "gradient_norm": join_norms(map(frobenius_norm, objective.gradient(factors))),
        "balance": balance(factors),
        "effective_rank": effective_rank(sigma),
        "nuclear_norm": sigma.sum(-1),
        **_number_columns("sigma", sigma),
    }
    heldout = heldout_error(problem, factors)
    if heldout is not None:
        measures["heldout_error"] = heldout
    if best is not None:
        measures["best_rank_error"] = best_rank_error(factors, best)
    measures |= compared
    if dynamics:
        measures |= _describe_factors(factors)
    if goal is not None:
        measures["procrustes_distance"] = procrustes_distance(factors[0], goal)
    if full:
        measures["sharpness"] = sharpness(objective, factors)
    for name, own_measure in own.items():
        refuse_built_in(name)
        value = torch.as_tensor(own_measure(problem, factors))
        if value.shape != state.loss.shape:
            needed = f"needed is one number a run, {tuple(state.loss.shape)}"
            raise ValueError(f"metrics.{name} gave shape {tuple(value.shape)}; {needed}")
        measures[name] = value
    return measures


def refuse_built_in(name: str) -> None:
    """Raises `Refused` if an own measure has the name of a built-in one."""
    if BUILT_IN.fullmatch(name):
        raise Refused(f"metrics.{name}: the name of a built-in measure; choose another")


def _describe_factors(factors: Factors) -> dict[str, Tensor]:
    measures = {f"norm.{i}": norm for i, norm in enumerate(factor_norms(factors), 1)}
    measures |= {"norm_gap": norm_gap(factors), "root_balance": root_balance(factors)}
    if len(factors) > 2:
        pairs = enumerate(pair_balances(factors), 1)
        measures |= {f"balance.{i}": gap for i, gap in pairs}
    return measures


def _compare_with_target(factors: Factors, found: Triplets, target: Triplets) -> dict[str, Tensor]:
    learnt = modes(factors, target)
    measures = _number_columns("mode", learnt)
    measures |= _number_columns("mode_gap", target.sigma - learnt)
    measures["angle.left"], measures["angle.right"] = angles(found, target)
    if len(factors) == 2 and factors[0].shape[-1] <= target.sigma.shape[-1]:
        measures["factor_distance"] = factor_distance(factors, target)
    return measures


def _number_columns(name: str, values: Tensor) -> dict[str, Tensor]:
    """NAME.1, NAME.2 … of the first `SIGMAS` values of (*, r)."""
    columns = values[..., :SIGMAS].unbind(-1)
    return {f"{name}.{i}": column for i, column in enumerate(columns, 1)}
