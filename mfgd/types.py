"""The words of signatures: factors, the ranges of numbers, and the error of an unusable input."""

from typing import Annotated

from annotated_types import Ge, Gt, Lt
from pydantic import BeforeValidator
from torch import Tensor

from mfgd.errors import Refused as Refused

Factors = tuple[Tensor, ...]
"""W₁ … W_L: (*, n, k), (*, k, k) …, (*, k, m). At depth 2 they are (C, F)."""

# In a batch a component receives a column (B, 1, 1) in place of each float.
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Lt(1)]
Fraction = Annotated[float, Gt(0), Lt(1)]
Count = Annotated[int, Ge(1)]
Seed = Annotated[int, Ge(0)]
Entry = Annotated[float | None, BeforeValidator(lambda entry: None if entry != entry else entry)]
"""An entry of a matrix; None, as which NaN is read, if it is missing."""
