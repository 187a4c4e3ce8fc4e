from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, basic_indices

from fxtrace.errors import SliceInvalid
from fxtrace.slices import parse_slice, select


@st.composite
def indexed(draw: st.DrawFn) -> tuple[tuple[int, ...], Any]:
    shape = draw(array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
    return shape, draw(basic_indices(shape, allow_newaxis=False))


def spell(index: object) -> str:
    match index:
        case tuple():
            return ",".join(map(spell, index))
        case slice(start=start, stop=stop, step=step):
            return ":".join("" if part is None else str(part) for part in (start, stop, step))
        case _:
            return "..." if index is Ellipsis else str(index)


@given(indexed())
def test_selects_what_numpy_selects(case: tuple[tuple[int, ...], Any]) -> None:
    shape, index = case
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    part = select(array, spell(index))
    wanted = np.asarray(array[index])
    assert part.shape == wanted.shape
    assert np.array_equal(part, wanted)
    assert part.size == 0 or np.shares_memory(part, array)


@given(st.text(alphabet="0123456789+-:,. x[]_٣", max_size=12), array_shapes(min_dims=0, max_dims=3, min_side=0))
def test_any_text_selects_or_is_refused(expression: str, shape: tuple[int, ...]) -> None:
    array = np.zeros(shape)
    with contextlib.suppress(SliceInvalid):  # nothing else may be raised
        assert select(array, expression).size <= array.size


@pytest.mark.parametrize(
    ("expression", "shape", "wanted"),
    [
        ("", (2, 3), (slice(None), slice(None))),
        ("  ", (), ()),
        ("...", (), ()),
        (" 0 , : , -1 ", (1, 2, 3), (0, slice(None), -1)),
        ("+1", (2, 3), (1, slice(None))),
        ("...,:3", (1, 2, 3), (slice(None), slice(None), slice(None, 3))),
        ("0,...", (1, 2), (0, slice(None))),
        ("::-1", (4,), (slice(None, None, -1),)),
        ("5:900", (4,), (slice(5, 900),)),
    ],
)
def test_parses(expression: str, shape: tuple[int, ...], wanted: tuple[int | slice, ...]) -> None:
    assert parse_slice(expression, shape) == wanted


@pytest.mark.parametrize(
    ("expression", "shape", "problem"),
    [
        ("6", (6, 2), "dimension 0 has size 6: expected an index from -6 to 5, got 6"),
        ("0,-3", (6, 2), "dimension 1 has size 2: expected an index from -2 to 1, got -3"),
        ("0", (0,), "dimension 0 has size 0: it is empty, got 0"),
        ("...,2", (6, 2), "dimension 1 has size 2"),
        ("0,0,0", (6, 2), "expected at most 2 indices, got 3"),
        ("0", (), "shape scalar: expected at most 0 indices, got 1"),
        ("...,0,...", (6, 2), "expected at most one '...'"),
        ("::0", (6, 2), "expected a step other than 0, got '::0'"),
        ("[0]", (6, 2), "dimension 0: expected an integer, start:stop:step or '...', got '[0]'"),
        ("0,", (6, 2), "dimension 1: expected an integer, start:stop:step or '...', got ''"),
        ("1:2:3:4", (6, 2), "got '1:2:3:4'"),
        ("1.5", (6, 2), "got '1.5'"),
        ("None", (6, 2), "got 'None'"),
        ("1_0", (60, 2), "got '1_0'"),
        ("٣", (6, 2), "got '٣'"),
        ("- 1", (6, 2), "got '- 1'"),
        ("9" * 5000, (6, 2), "expected an integer"),
    ],
)
def test_refuses(expression: str, shape: tuple[int, ...], problem: str) -> None:
    with pytest.raises(SliceInvalid) as caught:
        parse_slice(expression, shape)
    assert problem in caught.value.message
    assert caught.value.field == "slice"
