"""Matrices from the files of libraries: each is read by the library that knows the format."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from operator import getitem
from pathlib import Path
from typing import IO, Any, BinaryIO
from zipfile import ZipFile, is_zipfile

import numpy as np
import torch
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from safetensors.torch import load as load_safetensors
from torch import Tensor

from mfgd.capacity import refuse_large_array
from mfgd.sparse import ARRAYS
from mfgd.types import Refused

NUMERIC = {"double": 8, "single": 4, "int64": 8, "uint64": 8, "int32": 4, "uint32": 4}
NUMERIC |= {"int16": 2, "uint16": 2, "int8": 1, "uint8": 1, "logical": 1}
"""Class of a variable of MATLAB → bytes of an entry."""
VEILED = "grey values", "transparent pixels missing"
Remarks = list[str]
Reader = Callable[[BinaryIO, str | None], tuple[Any, Remarks]]
"""(file, name of an array) → an array, tensor or matrix of SciPy, and what is to be said of it."""
Arrays = Mapping[str, Callable[[], Any]]
"""Name → what loads the array."""


def choose_array(arrays: Arrays, variable: str | None) -> tuple[Any, Remarks]:
    """The array that `variable` names, else the array named D, else the only array.

    Raises:
        Refused: there are several, and none of them is named.
    """
    there = ", ".join(sorted(arrays)) or "none"
    if variable is not None:
        if variable not in arrays:
            raise Refused(f"problem.variable={variable}: no such array; there are {there}")
        return arrays[variable](), [f"array {variable}"]
    if "D" in arrays:
        return arrays["D"](), ["array D"] if len(arrays) > 1 else []
    if len(arrays) == 1:
        (load,) = arrays.values()
        return load(), []
    raise Refused(
        f"arrays {there}; allowed is one array, or one named D; problem.variable=NAME decides"
    )


def read_npy(file: BinaryIO, variable: str | None) -> tuple[Any, Remarks]:
    """The array of a .npy file."""
    _refuse_large_header(file)
    file.seek(0)
    return np.load(file, allow_pickle=False), []


def _refuse_large_header(file: BinaryIO | IO[bytes]) -> None:
    """Refuses the array of a .npy file that cannot fit into memory."""
    readers = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}
    shape: tuple[int, ...] = ()
    with suppress(ValueError, KeyError):  # NumPy says what is wrong with another header
        shape, *_ = readers[read_magic(file)](file)
    refuse_large_array(shape)


def load_member(content: Any, name: str) -> np.ndarray:
    """An array of an open .npz file.

    Raises:
        Refused: the array cannot fit into memory.
    """
    stored = f"{name}.npy"
    with content.zip.open(stored if stored in content.zip.namelist() else name) as member:
        _refuse_large_header(member)
    return content[name]


def read_npz(file: BinaryIO, variable: str | None) -> tuple[Any, Remarks]:
    """An array of a .npz file, or the matrix that SciPy saved in it."""
    with np.load(file, allow_pickle=False) as content:
        if {"format", "shape", "data"} <= set(content.files):
            from scipy.sparse import load_npz

            for name in content.files:
                load_member(content, name)
            file.seek(0)
            return load_npz(file), []
        # An array of Python objects is refused only if it is the one that is read.
        return choose_array(
            {name: partial(load_member, content, name) for name in content.files}, variable
        )


def read_torch(file: BinaryIO, variable: str | None) -> tuple[Any, Remarks]:
    """A tensor that torch saved: a plain or sparse tensor, a parameter, or one of a dictionary."""
    value = load_torch(file)
    remarks: Remarks = []
    if isinstance(value, dict):
        arrays = {str(name): partial(getitem, value, name) for name in value}
        value, remarks = choose_array(arrays, variable)
    if not isinstance(value, Tensor) or value.layout == torch.strided:
        return value, remarks
    from scipy.sparse import coo_array

    listed = value.detach().to_sparse(layout=torch.sparse_coo).coalesce()
    numbers, at = listed.values().numpy(), listed.indices().numpy()
    return coo_array((numbers, tuple(at)), shape=tuple(listed.shape)), remarks


def load_torch(file: BinaryIO | Path) -> Any:
    """What torch saved in a .pt file, without Python objects.

    Raises:
        Refused: it cannot fit into memory.
    """
    if is_zipfile(file):
        with ZipFile(file) as parts:
            refuse_large_array([sum(part.file_size for part in parts.infolist())], number=1)
    if not isinstance(file, Path):
        file.seek(0)
    return torch.load(file, weights_only=True, map_location="cpu")


def read_safetensors(file: BinaryIO, variable: str | None) -> tuple[Any, Remarks]:
    """A tensor of a .safetensors file, such as the D of a tracked run."""
    arrays = load_safetensors(file.read())
    if set(ARRAYS) <= set(arrays) and variable in (None, "D"):
        from scipy.sparse import csr_array

        starts, columns, values = (arrays[name].numpy() for name in ARRAYS)
        factors = sorted(name for name in arrays if name == "F" or name.startswith("W"))
        shape = len(starts) - 1, arrays[max(factors, key=lambda name: (len(name), name))].shape[1]
        return csr_array((values, columns, starts), shape=shape), ["array D"]
    return choose_array({name: partial(getitem, arrays, name) for name in arrays}, variable)


def read_matrix_market(file: BinaryIO, variable: str | None) -> tuple[Any, Remarks]:
    """The matrix of a .mtx file."""
    from scipy.io import mminfo, mmread

    content = file.read() + b"\n"
    # SciPy reads beyond the file in search of the end of a number, and divides by the rows.
    if b"\0" in content:
        raise Refused("has a byte 0, which is no text")
    rows, columns, entries, kind, *_ = mminfo(io.BytesIO(content))
    if rows < 1:
        raise Refused(f"{rows}×{columns} entries are no matrix")
    refuse_large_array([rows, columns] if kind == "array" else [entries])
    return mmread(io.BytesIO(content)), []


def read_matlab(file: BinaryIO, variable: str | None) -> tuple[Any, Remarks]:
    """A variable of a .mat file: up to version 7 by SciPy, from version 7.3 on by h5py."""
    from scipy.io import loadmat, whosmat

    try:
        for _, shape, kind in whosmat(file):
            if kind in NUMERIC:
                refuse_large_array(shape, number=NUMERIC[kind])
        file.seek(0)
        variables = loadmat(file)
    except NotImplementedError:  # this is how SciPy refuses version 7.3
        file.seek(0)
        return read_hdf5(file, variable)
    names = [name for name in variables if not name.startswith("__")]
    return choose_array({name: partial(getitem, variables, name) for name in names}, variable)


def read_hdf5(file: BinaryIO, variable: str | None) -> tuple[Any, Remarks]:
    """A dataset of an HDF5 file by its path, or a variable that MATLAB wrote."""
    import h5py

    with h5py.File(file, "r") as content:
        return choose_array(dict(_list_datasets(content)), variable)


def _list_datasets(group: Any, path: str = "") -> Iterator[tuple[str, Callable[[], Any]]]:
    """The datasets below a group, by their paths."""
    import h5py

    for name, item in group.items():
        if name == "#refs#":  # where MATLAB keeps what cells hold
            continue
        if isinstance(item, h5py.Dataset):
            yield path + name, partial(_read_dataset, item)
        elif "MATLAB_sparse" in item.attrs:
            yield path + name, partial(_read_sparse_of_matlab, item)
        else:
            yield from _list_datasets(item, f"{path}{name}/")


def _read_dataset(item: Any) -> Any:
    if item.attrs.get("MATLAB_class") in (b"char", b"cell"):
        raise Refused(f"{item.name.lstrip('/')} is text or a cell array; allowed are real numbers")
    refuse_large_array(item.shape or ())
    # MATLAB writes its arrays column by column, so that HDF5 has them transposed.
    return item[()].T if "MATLAB_class" in item.attrs else item[()]


def _read_sparse_of_matlab(group: Any) -> Any:
    from scipy.sparse import csc_array

    starts = group["jc"][()]
    shape = int(group.attrs["MATLAB_sparse"]), len(starts) - 1
    if "data" not in group:  # MATLAB leaves out what has no entry
        return csc_array(shape)
    refuse_large_array(group["data"].shape)
    return csc_array((group["data"][()], group["ir"][()], starts), shape=shape)


def read_image(file: BinaryIO, variable: str | None) -> tuple[Any, Remarks]:
    """The grey values of an image: 0 to 255, or the values of an image of 16 or 32 bits. A wholly
    transparent pixel is missing."""
    from PIL import Image

    with Image.open(file) as image:
        refuse_large_array(image.size)
        pictures = getattr(image, "n_frames", 1)
        if pictures > 1:
            raise Refused(f"{pictures} pictures; allowed is one")
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            grey, hidden = np.array(image, dtype=np.float64), image.info.get("transparency")
            if hidden is None:
                return grey, ["grey values"]
            return np.where(grey == hidden, np.nan, grey), [*VEILED]
        if not image.has_transparency_data:
            return np.array(image.convert("L")), ["grey values"]
        seen = image.convert("RGBA")
        alpha, grey = np.array(seen.getchannel("A")), np.array(seen.convert("L"), dtype=np.float64)
    if ((alpha > 0) & (alpha < 255)).any():
        raise Refused("pixels that are transparent in part; allowed are seen and hidden pixels")
    grey[alpha == 0] = np.nan
    return grey, [*VEILED]


READERS: dict[str, Reader] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".pt": read_torch,
    ".safetensors": read_safetensors,
    ".mtx": read_matrix_market,
    ".mat": read_matlab,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
    ".png": read_image,
    ".jpg": read_image,
    ".jpeg": read_image,
}
"""Suffix → what reads an array from such a file."""
CONTAINERS = (".npz", ".pt", ".safetensors", ".mat", ".h5", ".hdf5")
"""The formats of several arrays."""
FRAMES = {".parquet": "read_parquet", ".feather": "read_feather"}
"""Suffix → the function of pandas that reads such a table."""


def load_frame(file: BinaryIO, suffix: str) -> Any:
    """The table of a .parquet or .feather file."""
    import pandas
    from pyarrow.parquet import read_metadata

    if suffix == ".parquet":
        found = read_metadata(file)
        refuse_large_array([found.num_rows, found.num_columns], number=1)
        file.seek(0)
    return getattr(pandas, FRAMES[suffix])(io.BytesIO(file.read()))
