"""The words that signatures use: factors, the ranges a number may lie in, and the error that refuses one."""

from typing import Annotated

from annotated_types import Ge, Gt, Lt
from torch import Tensor

Factors = tuple[Tensor, ...]
"""W₁ … W_L: (*, n, k), (*, k, k) …, (*, k, m). At depth 2 they are (C, F)."""

# In a batch a component receives a column (B, 1, 1) in place of each float.
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Lt(1)]
Count = Annotated[int, Ge(1)]
Seed = Annotated[int, Ge(0)]


class Refused(ValueError):
    """An input that cannot be used: one line with the key, the value given and what is allowed."""
