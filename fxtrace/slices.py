"""Slice expressions: NumPy's basic slicing as text, without the brackets. No torch here.

0,0,:5      the first five numbers of the first row of the first matrix
-1          the last row
::2         every second row
...,:3      the first three of the last dimension
(empty)     everything
"""

from __future__ import annotations

import re
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fxtrace.errors import SliceInvalid
from fxtrace.graph import show_shape

_T = TypeVar("_T", bound=np.generic)

_INT = r"[+-]?[0-9]{1,18}"  # 18 digits always fit the 64 bits that NumPy indexes with
_PART = re.compile(rf"(?P<index>{_INT})|(?P<start>{_INT})?\s*:\s*(?P<stop>{_INT})?(?:\s*:\s*(?P<step>{_INT})?)?")


def parse_slice(expression: str, shape: tuple[int, ...]) -> tuple[int | slice, ...]:
    """The indices an expression means for a tensor of this shape, one for each dimension.

    As in NumPy, a slice's ends may lie outside the tensor, an index may not.

    Example:
        >>> parse_slice("0,...,:5", (1, 6, 128))
        (0, slice(None, None, None), slice(None, 5, None))

    Raises:
        SliceInvalid: the expression is malformed, has more indices than the tensor has dimensions, a step of 0, or an
            index out of range.
    """
    parts = [part.strip() for part in expression.split(",")] if expression.strip() else []
    given = len(parts) - parts.count("...")
    if parts.count("...") > 1:
        raise _invalid(expression, shape, "expected at most one '...', got more")
    if given > len(shape):
        raise _invalid(expression, shape, f"expected at most {len(shape)} indices, got {given}")
    rest: list[int | slice] = [slice(None)] * (len(shape) - given)
    indices: list[int | slice] = []
    for part in parts if "..." in parts else [*parts, "..."]:
        if part == "...":
            indices += rest
        else:
            indices.append(_index(part, len(indices), expression, shape))
    return tuple(indices)


def select(array: NDArray[_T], expression: str) -> NDArray[_T]:
    """The part of an array that an expression means, as a view; a single number is an array of no dimensions.

    Raises:
        SliceInvalid: the expression does not fit the array's shape.
    """
    return array[(*parse_slice(expression, array.shape), ...)]


def _index(part: str, dimension: int, expression: str, shape: tuple[int, ...]) -> int | slice:
    def invalid(problem: str) -> SliceInvalid:
        return _invalid(expression, shape, f"dimension {dimension}{problem}", dimension=dimension)

    match = _PART.fullmatch(part)
    if match is None:
        raise invalid(f": expected an integer, start:stop:step or '...', got '{part}'")
    if match["index"]:
        index, size = int(match["index"]), shape[dimension]
        if not -size <= index < size:
            accepted = f"expected an index from {-size} to {size - 1}" if size else "it is empty"
            raise invalid(f" has size {size}: {accepted}, got {index}")
        return index
    start, stop, step = (None if match[name] is None else int(match[name]) for name in ("start", "stop", "step"))
    if step == 0:
        raise invalid(f": expected a step other than 0, got '{part}'")
    return slice(start, stop, step)


def _invalid(expression: str, shape: tuple[int, ...], problem: str, **metadata: object) -> SliceInvalid:
    return SliceInvalid(
        f"slice '{expression}' does not fit a tensor of shape {show_shape(shape)}: {problem}",
        field="slice",
        slice=expression,
        shape=show_shape(shape),
        **metadata,
    )
