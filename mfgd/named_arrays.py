"""Arrays from files that hold several, each with its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from mfgd.files import read_arrays, read_or_refuse
from mfgd.formats import load_torch
from mfgd.matrix import real_tensor, refuse_not_finite
from mfgd.types import Refused

_READERS: dict[str, Callable[[Path], Any]] = {
    ".npz": read_arrays,
    ".pt": load_torch,
    ".safetensors": load_file,
}


def read_named(path: str, source: str) -> dict[str, Any]:
    """Name → array of a .npz, .pt or .safetensors file; `source` names the file.

    Raises:
        Refused: no such file, another format, or one array without a name.
    """
    file = Path(path)
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise Refused(f"{source}: unknown format; allowed are {' '.join(_READERS)}")
    arrays = read_or_refuse(reader, file, source)
    if not isinstance(arrays, dict):
        raise Refused(f"{source}: one array without a name; allowed are arrays by name")
    return arrays


def read_finite(arrays: dict[str, Any], name: str, source: str) -> Tensor:
    """An array of a file in float64.

    Raises:
        Refused: no real numbers, or entries that are not finite.
    """
    array = real_tensor(arrays[name], f"{source}: {name}")
    refuse_not_finite(array, source, name)
    return array
