"""Nested values as tensors and a text, and back."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfgd.nested import Form, NotKept
from mfgd.streams import Streams


class Pair(NamedTuple):
    left: object
    right: object


def tensors():
    """Tensors of any dtype and layout, some of them expanded, transposed or empty."""
    shapes = st.lists(st.integers(0, 3), max_size=3)
    dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.int8, torch.bool])
    layouts = st.sampled_from(
        [
            lambda X: X,
            lambda X: X.mT if X.ndim > 1 else X,
            lambda X: X[..., None].expand(*X.shape, 4),
            lambda X: X[..., ::2] if X.ndim else X,
        ]
    )
    return st.builds(
        lambda shape, dtype, lay_out: lay_out(torch.randn(shape).to(dtype)), shapes, dtypes, layouts
    )


LEAVES = (
    tensors()
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec="utf-8"))
    | st.builds(np.arange, st.integers(0, 5), dtype=st.sampled_from([np.float64, np.int32]))
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text("abc") | st.integers() | st.tuples(st.integers()), inner)
        | st.builds(Pair, inner, inner)
    ),
)


def describe(value):
    """A value as something whose equality is that of all bits, types and layouts."""
    if isinstance(value, torch.Tensor):
        content = [X.clone().view(1).view(torch.uint8).tolist() for X in value.reshape(-1)]
        return "tensor", value.dtype, value.shape, value.stride(), content
    if isinstance(value, np.ndarray):
        return "array", value.dtype, value.shape, value.tobytes()
    if isinstance(value, dict):
        return "dict", [(key, describe(part)) for key, part in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [*map(describe, value)]
    return type(value), repr(value)


@given(VALUES)
def test_a_value_comes_back_bit_for_bit(value):
    form = Form(Pair(0, 0))
    text, held = form.pack(value)
    assert all(X.is_contiguous() for X in held)
    assert describe(form.unpack(text, held)) == describe(value)


def test_a_tensor_that_occurs_twice_is_held_once():
    X = torch.ones(2, 3)
    form = Form(None)
    text, held = form.pack([X, {"X": X}, X.mT])
    assert len(held) == 2
    first, named, _ = form.unpack(text, held)
    assert first is named["X"]


def test_streams_go_on_from_where_they_were():
    like = torch.zeros(2, 1, 1)
    ours, theirs = Streams([3, 4], like), Streams([3, 4], like)
    ours.normal((5,))
    text, held = Form([ours]).pack((1, ours))
    expected = ours.normal((5,))
    _, found = Form({"any": theirs}).unpack(text, held)
    assert found is theirs
    assert torch.equal(theirs.normal((5,)), expected)


class Code(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "value",
    [
        object(),
        np.float64(1),
        np.array([object()]),
        Code("x"),
        Pair(1, 2),
        Streams([1], torch.zeros(1, 1)),
        torch.eye(2).to_sparse(),
        math.inf * 1j,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_kept_is_said(value):
    with pytest.raises(NotKept):
        Form([1, 2]).pack({"memory": [value]})
