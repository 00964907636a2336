"""Nested values as tensors and a text, and back: nothing that is read back is executed, as a pickle
would be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfgd.streams import Streams

PLAIN = (type(None), bool, int, float, str)
"""What JSON keeps bit for bit."""


class NotKept(TypeError):
    """A value of a type that cannot be kept."""


class Form:
    """How values like an example are kept: lists, tuples and dicts of tensors, arrays, numbers,
    text and None, and the named tuples and random streams that the example has."""

    def __init__(self, example: object) -> None:
        values = [*_walk(example)]
        self._named = {_type_name(type(value)): type(value) for value in values if _is_named(value)}
        self._streams = [value for value in values if isinstance(value, Streams)]

    def pack(self, value: object) -> tuple[str, list[Tensor]]:
        """A value as a text, and the tensors that the text counts, on the host.

        Raises:
            NotKept: a part of the value has another type.
        """
        held = _Held([])
        return json.dumps(self._pack(value, held)), held.tensors

    def _pack(self, value: Any, held: _Held) -> Any:
        """A value as JSON: what is not plain is a list that begins with its type."""
        kind = type(value)
        if kind in PLAIN:
            return value
        if kind is Tensor and value.layout is torch.strided:
            return held.add(value)
        if kind is np.ndarray and value.dtype.kind in "biuf":
            return ["array", held.add(torch.from_numpy(value))]
        if kind in (list, tuple) or _type_name(kind) in self._named:
            name = kind.__name__ if kind in (list, tuple) else _type_name(kind)
            return [name, *(self._pack(part, held) for part in value)]
        if kind is dict:
            return ["dict", *([self._pack(part, held) for part in pair] for pair in value.items())]
        for i, streams in enumerate(self._streams):
            if value is streams:
                return ["streams", i, *map(held.add, streams.states)]
        raise NotKept(f"{_type_name(kind)} is no type that can be kept")

    def unpack(self, text: str, tensors: Sequence[Tensor]) -> Any:
        """The value that `pack` made a text and tensors of, each tensor as it lay in memory.

        The random streams of the example go on from where those of the value were.
        """
        held = _Held(tensors)
        states: list[tuple[Streams, list[Tensor]]] = []

        def unpack(node: Any) -> Any:
            if not isinstance(node, list):
                return node
            kind, *parts = node
            if kind == "tensor":
                return held.take(*parts)
            if kind == "array":
                return unpack(parts[0]).numpy()
            if kind == "streams":
                states.append((self._streams[parts[0]], [*map(unpack, parts[1:])]))
                return self._streams[parts[0]]
            if kind == "dict":
                return dict([*map(unpack, pair)] for pair in parts)
            values = map(unpack, parts)
            if kind == "list":
                return [*values]
            return tuple(values) if kind == "tuple" else self._named[kind](*values)

        value = unpack(json.loads(text))
        for streams, found in states:  # not before the whole value is known to be sound
            streams.states = found
        return value


class _Held:
    """Tensors by number. One that occurs twice has one number."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = [*tensors]
        self._added: dict[int, tuple[Tensor, list[Any]]] = {}
        self._taken: dict[int, Tensor] = {}

    def add(self, X: Tensor) -> list[Any]:
        """The node of a tensor, which is copied to the host."""
        if id(X) not in self._added:
            node = ["tensor", len(self.tensors), list(X.stride()), str(X.device)]
            self._added[id(X)] = X, node  # the id is of no other tensor as long as X is held
            copy = X.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            self.tensors.append(copy)
        return self._added[id(X)][1]

    def take(self, number: int, strides: Sequence[int], device: str) -> Tensor:
        """A tensor with these strides: the last bits of a product may depend on them."""
        if number not in self._taken:
            X = self.tensors[number]
            # An expanded dimension is one entry at many places.
            once = X[tuple(slice(1) if stride == 0 else slice(None) for stride in strides)]
            made = torch.empty_strided(once.shape, strides, dtype=X.dtype, device=device)
            self._taken[number] = made.copy_(once).expand(X.shape)
        return self._taken[number]


def _walk(value: object) -> Iterator[object]:
    """A value and its parts."""
    yield value
    parts: Sequence[object] = ()
    if isinstance(value, list | tuple):
        parts = value
    elif isinstance(value, dict):
        parts = [*value.values()]
    for part in parts:
        yield from _walk(part)


def _is_named(value: object) -> bool:
    """Whether a value is a named tuple."""
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _type_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
