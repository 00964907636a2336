r"""Gradient descent on matrix factorization, one run or a thousand at a time.

The model on one page
=====================

==================  ===========  ================================================================
symbol              shape        meaning
==================  ===========  ================================================================
D                   (\*, n, m)   the target; a missing entry is NaN in a file, and 0 under a mask
                                 of 0 here; of a large D with few observed entries only these
                                 entries are kept (`mfgd.sparse`)
M                   (\*, n, m)   the mask: 1 if an entry of D is observed, 0 if not
D*                  (\*, n, m)   the truth behind D, if it is known
C, F                (\*, n, k),  the factors, D ≈ C F; k is the rank. At depth L they are
                    (\*, k, m)   W₁ (n, k), W₂ … (k, k), W_L (k, m), and D ≈ W₁ W₂ … W_L
ρ(p, t)             elementwise  the loss of a prediction p of the target t; ρ′ = ∂ρ/∂p
w, λ                (\*, 1, 1)   the weight of the sum (scale, or scale over the number of
                                 observed entries) and the penalty
==================  ===========  ================================================================

Objective and gradient::

    f(C, F)  =  w Σ M ∘ ρ(C F, D)  +  λ/2 (‖C‖² + ‖F‖²)
    ∂f/∂C    =  w (M ∘ ρ′(C F, D)) Fᵀ  +  λ C
    ∂f/∂F    =  w Cᵀ (M ∘ ρ′(C F, D))  +  λ F

One step takes both gradients at the old (C, F): C ← C − lr ∂f/∂C, F ← F − lr ∂f/∂F. Factors may be
tied, D ≈ U Uᵀ (`mfgd.tied`).

Leading dimensions ``*`` are runs: () in a notebook, (B,) in a sweep. A number that differs from run
to run is a column of shape (B, 1, 1), so that the same expression serves both.

This package imports nothing until it is used: the numeric core imports neither Hydra nor MLflow,
`load_runs` and `compare` no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mfgd import (
        compare,
        descent,
        gradient,
        init,
        loss,
        metrics,
        objective,
        optimizer,
        oracles,
        problem,
        record,
        schedule,
    )
    from mfgd.descent import Outcome, State
    from mfgd.mlflow_reader import load_replicates, load_run, load_runs
    from mfgd.objective import Objective
    from mfgd.target import Problem

__version__ = "0.2.0"

__all__ = [
    "Objective",
    "Outcome",
    "Problem",
    "State",
    "compare",
    "descent",
    "gradient",
    "init",
    "load_replicates",
    "load_run",
    "load_runs",
    "loss",
    "metrics",
    "objective",
    "optimizer",
    "oracles",
    "problem",
    "record",
    "schedule",
]

HOMES = {
    "Objective": "objective",
    "Outcome": "descent",
    "Problem": "target",
    "State": "descent",
    "load_replicates": "mlflow_reader",
    "load_run": "mlflow_reader",
    "load_runs": "mlflow_reader",
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for: to compare runs takes no torch, and to solve takes no MLflow."""
    if name in HOMES:
        return getattr(import_module(f"mfgd.{HOMES[name]}"), name)
    if name in __all__:
        return import_module(f"mfgd.{name}")
    raise AttributeError(f"module 'mfgd' has no attribute {name!r}")
