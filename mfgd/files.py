"""Matrices, ratings and arrays from files, and which contents are refused."""

from __future__ import annotations

import gzip
import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from mfgd import capacity, formats, frames, tables, triples
from mfgd.capacity import refuse_large_array
from mfgd.draws import hash_tensors
from mfgd.matrix import as_floats, as_matrix, real_tensor
from mfgd.reading import (
    AS_IT_SAYS,
    Listing,
    ReadingKeys,
    Source,
    count,
    drop_values,
    find_sentinel,
    refuse_keys,
)
from mfgd.types import Refused

TEXTS = (".csv", ".tsv", ".txt", ".dat", ".data")
"""Suffixes of a matrix in a text file."""
FRAME_KEYS = ("index", "missing", "columns")
"""The keys that a table of pandas takes."""
PART = 1 << 20
"""Bytes that are unpacked at once."""
Unlisted = Literal["zero", "missing"]
"""What an entry is that a sparse matrix does not list."""
Found = TypeVar("Found")


class Opened(NamedTuple):
    """A file in memory."""

    content: bytes
    suffix: str
    """In small letters, without that of a compression."""

    @property
    def file(self) -> BinaryIO:
        """The contents, from their start."""
        return io.BytesIO(self.content)


def read_matrix(
    path: str,
    source: str,
    keys: ReadingKeys = AS_IT_SAYS,
    *,
    variable: str | None = None,
    unlisted: Unlisted = "zero",
) -> tuple[Tensor | Listing, Source]:
    """The matrix (n, m) in a file of any known format, and what was read.

    Args:
        path: the file.
        source: names the file in an error.
        keys: what decides how a table is read if the file does not.
        variable: which array of a file with several is read.
        unlisted: what an entry is that a sparse matrix does not list.

    Raises:
        Refused: no such file, another format, contents that are no matrix, or a file that can be
            read in two ways.
    """

    def read(opened: Opened) -> tuple[Tensor | Listing, list[str]]:
        data, remarks = _read_data(opened, keys, variable)
        if hasattr(data, "tocoo"):
            return _read_sparse(data, source, unlisted, keys, remarks)
        if not isinstance(data, np.ndarray):
            data = real_tensor(data, source).numpy()
        return as_matrix(drop_values(as_floats(data, source), keys), source), remarks

    known = (*TEXTS, *formats.FRAMES, *formats.READERS)
    return _read_with_source(path, source, known, read)


def read_mask(path: str, source: str) -> Tensor:
    """The matrix (n, m) in the file of a mask; an entry that is not listed is 0.

    Raises:
        Refused: as `read_matrix`. A text that may or may not have a header or row names has none.
    """
    plain = AS_IT_SAYS | {"header": False, "index": False}
    try:
        found, _ = read_matrix(path, source)
    except Refused:
        if _suffix(Path(path)) not in TEXTS:
            raise
        found, _ = read_matrix(path, source, plain)
    assert isinstance(found, Tensor)
    return found


def _read_data(opened: Opened, keys: ReadingKeys, variable: str | None) -> tuple[Any, list[str]]:
    """What the reader of a format makes of a file."""
    suffix = opened.suffix
    taken: tuple[str, ...] = ("missing",)
    if suffix in TEXTS:
        taken = tuple(keys)
    elif suffix in formats.FRAMES:
        taken = FRAME_KEYS
    elif suffix in formats.CONTAINERS:
        taken = ("missing", "variable")
    refuse_keys({**keys, "variable": variable}, taken, f"a {suffix} file")
    if suffix in TEXTS:
        return tables.read_text_matrix(opened.content, suffix, keys)
    if suffix in formats.FRAMES:
        return frames.read_frame_matrix(formats.load_frame(opened.file, suffix), keys)
    return formats.READERS[suffix](opened.file, variable)


def _read_sparse(
    data: Any, source: str, unlisted: Unlisted, keys: ReadingKeys, remarks: list[str]
) -> tuple[Tensor | Listing, list[str]]:
    """A sparse matrix of SciPy, whose unlisted entries are 0 or missing."""
    refuse_large_array(data.shape[:1])  # of the starts of the rows
    listed = data.tocoo()
    total = len(listed.data)
    # Sums of small types would overflow.
    compressed = (listed if np.iscomplexobj(listed.data) else listed.astype(np.float64)).tocsr()
    compressed.sum_duplicates()
    added = total - compressed.nnz
    remarks = [*remarks, f"{count(total, 'entry', 'entries')} listed, all others {unlisted}"]
    if added:
        remarks.append(f"{added} of them added to another of the same place")
    if unlisted == "zero":
        hint = "problem.unlisted=missing keeps the listed entries alone"
        refuse_large_array(compressed.shape, hint=hint)
        return as_matrix(drop_values(as_floats(compressed, source), keys), source), remarks
    (n, m), columns = compressed.shape, compressed.indices.astype(np.int64)
    at = np.repeat(np.arange(n), np.diff(compressed.indptr)) * m + columns
    order = np.argsort(at)
    values = drop_values(as_floats(compressed.data, source)[order], keys)
    kept = ~np.isnan(values)
    listing = Listing(torch.from_numpy(values[kept]), torch.from_numpy(at[order][kept]), (n, m))
    as_matrix(listing.values[None], source)  # refuses what no matrix may hold
    if len(listing.at) == n * m:
        return listing.values.view(n, m), remarks
    return listing, remarks


def read_ratings(path: str, source: str, keys: ReadingKeys) -> tuple[Listing, Source]:
    """The matrix of users × items in a file of ratings, and what was read.

    Raises:
        Refused: no such file, another format, a line without user, item or rating, or columns that
            may be others.
    """

    def read(opened: Opened) -> tuple[Listing, list[str]]:
        if opened.suffix in formats.FRAMES:
            refuse_keys(keys, FRAME_KEYS, f"a {opened.suffix} file")
            return triples.read_rating_frame(formats.load_frame(opened.file, opened.suffix), keys)
        return triples.read_rating_lines(opened.content, keys)

    return _read_with_source(path, source, None, read)


def _read_with_source(
    path: str,
    source: str,
    known: tuple[str, ...] | None,
    read: Callable[[Opened], tuple[Found, list[str]]],
) -> tuple[Found, Source]:
    """What a function makes of a file, with a line that says what was read."""
    file = Path(path)
    suffix = _suffix(file)
    binary = suffix in formats.READERS or suffix == ".xlsx"
    if (known is not None and suffix not in known) or (known is None and binary):
        allowed = " ".join(known or ("text", *formats.FRAMES))
        raise Refused(f"{source}: unknown format; allowed are {allowed}, and .gz behind them")

    def read_opened(file: Path) -> tuple[Found, list[str]]:
        return read(Opened(_read_content(file), suffix))

    found, remarks = read_or_refuse(read_opened, file, source)
    return found, _name_source(path, found, remarks)


def _read_content(file: Path) -> bytes:
    """The bytes of a file, unpacked.

    Raises:
        Refused: they do not fit into memory.
    """
    refuse_large_array([file.stat().st_size], number=1)
    if file.suffix.lower() != ".gz":
        return file.read_bytes()
    parts, free = [], capacity.free_memory()
    with gzip.open(file) as packed:
        while part := packed.read(PART):
            parts.append(part)
            free -= 2 * len(part)  # a copy of it follows
            if free < 0:
                raise Refused("its bytes do not fit into memory once they are unpacked")
    return b"".join(parts)


def _suffix(file: Path) -> str:
    """The suffix of a file in small letters, without that of a compression."""
    name = file.with_suffix("") if file.suffix.lower() == ".gz" else file
    return name.suffix.lower()


def _name_source(path: str, found: Tensor | Listing, remarks: list[str]) -> Source:
    """The source of a matrix that was read."""
    n, m = found.shape
    if isinstance(found, Listing):
        entries, parts = found.values.numpy(), [found.values, found.at]
    else:
        entries, parts = found[~found.isnan()].numpy(), [found]
        for name, other in (("row", 1), ("column", 0)):
            empty = int(found.isnan().all(other).sum())
            if empty:
                remarks = [*remarks, f"{count(empty, name)} without an entry"]
    said = [f"{n}×{m} matrix", f"{count(len(entries), 'entry', 'entries')} observed", *remarks]
    sentinel = find_sentinel(entries)
    if sentinel is not None:
        said.append(
            f"{int((entries == sentinel).sum())} of them {sentinel:g}, far from all others "
            f"(if that means missing: problem.missing=[{sentinel:g}])"
        )
    line = " ".join(", ".join(said).split())  # a name in a header may have several lines
    return Source(path, hash_tensors(torch.tensor([n, m]), *parts), f"{path}: {line}")


def read_or_refuse(read: Callable[[Path], Any], file: Path, source: str) -> Any:
    """What the function `read` makes of a file.

    Raises:
        Refused: a path that cannot be, no such file, an empty file, or any exception of `read`.
    """
    try:
        file = file.expanduser()
        size = file.stat().st_size if file.is_file() else None
    except (OSError, RuntimeError) as error:  # a name too long, a folder closed, no such user
        raise Refused(f"{source}: {getattr(error, 'strerror', error)}") from None
    if size is None:
        raise Refused(f"{source}: no such file")
    if size == 0:
        raise Refused(f"{source}: an empty file")
    try:
        with warnings.catch_warnings():
            # Contents that a reader warns of are refused later, or harmless.
            warnings.simplefilter("ignore")
            return read(file)
    except Refused as error:
        text = str(error)
        raise Refused(text if text.startswith(source) else f"{source}: {text}") from None
    except Exception as error:  # each reader fails in its own ways on a broken file
        text = re.sub(r"\x1b\[[0-9;]*m", "", str(error).strip() or repr(error))
        reason = " ".join(text.split())
        raise Refused(f"{source}: not readable as {file.suffix} ({reason})") from None


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; a pickled array raises ValueError."""
    # NumPy would leave a broken file open if NumPy had opened the file itself.
    with file.open("rb") as handle, np.load(handle, allow_pickle=False) as content:
        return {name: formats.load_member(content, name) for name in content.files}
