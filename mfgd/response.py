"""What is observed of a matrix of parameters: its entries themselves, or draws that follow them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mfgd.draws import HashedStream, draw_at, uniform_numbers
from mfgd.types import Refused

Response = Literal["gaussian", "one_bit", "poisson"]


def draw_response(
    parameters: Tensor,
    response: Response,
    size: int,
    seen: Tensor | None,
    seed: int,
    draws: dict[str, str],
) -> Tensor:
    """±1 or counts in place of parameters x: P(1) = 1/(1 + e^{−x}), or a Poisson count of mean e^x.

    Each entry has one uniform number, of which its draw is the quantile: the mask moves no draw.

    Args:
        parameters: of the observed entries, flat.
        response: what is drawn; not gaussian, which is no draw of its own.
        size: entries of the whole matrix.
        seen: which of them are observed, ascending; None: all.
        seed: moves the draw.
        draws: is given the hash of the draw.

    Raises:
        Refused: a mean beyond 1e15, above which doubles do not have every count.
    """
    source = HashedStream("problem response", seed)
    uniform = draw_at(source, uniform_numbers, size, seen)
    draws["response"] = source.hash()
    if response == "one_bit":
        ones = uniform < 1 / (1 + torch.exp(-parameters))
        return torch.where(ones, 1.0, -1.0).to(parameters)
    means = torch.exp(parameters)
    if not (means < 1e15).all():
        largest = f"the largest entry is {float(parameters.max()):.3g}"
        raise Refused(f"problem.response=poisson: {largest}; allowed are entries up to 34")
    from scipy.stats import poisson

    # At 0 the quantile is −1.
    return torch.from_numpy(poisson.ppf(uniform.clamp(min=1e-300).numpy(), means.numpy()))
