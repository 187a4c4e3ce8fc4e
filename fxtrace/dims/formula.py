"""Formulas of sizes: text such as `d_model/n_heads` or `min(10, tgt_vocab)`, and their values, one or a grid."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxtrace.errors import InvalidRequest
from fxtrace.ir.text import Readable

Columns = Mapping[str, "NDArray[np.int64]"]
"""Sizes by name, each with one entry for every configuration."""

_GRAMMAR = "a number, a name, + - * / // **, min(…), max(…)"


@dataclass(frozen=True, repr=False)
class Formula(Readable):
    """A size as an expression of named sizes.

    `/` divides without a rest (`d_model/n_heads`), `//` rounds down. A name may lead into a nest, as configurations do:
    `text_config.hidden_size`, `conv_kernel[0]`.

    Raises:
        InvalidRequest: the text is no such expression.

    Example:
        >>> Formula("2*(d_model/n_heads)").value({"d_model": 128, "n_heads": 4})
        64
    """

    text: str

    def __post_init__(self) -> None:
        self._tree  # noqa: B018 - what cannot be read is refused now

    def __str__(self) -> str:
        return self.text

    @cached_property
    def names(self) -> frozenset[str]:
        """The named sizes in it."""
        return frozenset(_names(self._tree))

    def value(self, sizes: Mapping[str, int]) -> int | None:
        """Its value; None where a name has no size, or a division is not whole."""
        try:
            value = _walk(self._tree, sizes.__getitem__, _scalars)
        except (KeyError, ArithmeticError):
            return None
        return int(value)

    def values(self, columns: Columns, count: int) -> NDArray[np.int64]:
        """Its value for each of `count` configurations at once. Divisions that are not whole are rounded down.

        Raises:
            KeyError: a name has no column.
        """
        with np.errstate(divide="ignore"):
            value = _walk(self._tree, columns.__getitem__, _arrays)
        return np.broadcast_to(np.asarray(value, np.int64), (count,))

    def exact_values(self, columns: Columns, count: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """As `values`, and for each configuration whether it has a value at all: every division in it is whole.

        Raises:
            KeyError: a name has no column.
        """
        whole = np.ones(count, bool)

        def divide(a: Any, b: Any) -> Any:
            nonlocal whole
            whole = whole & (np.asarray(b) != 0) & (np.asarray(a) % b == 0)
            return a // b

        with np.errstate(divide="ignore"):
            value = _walk(self._tree, columns.__getitem__, {**_arrays, ast.Div: divide})
        return np.broadcast_to(np.asarray(value, np.int64), (count,)), whole

    @property
    def _tree(self) -> ast.expr:
        return _parse(self.text)


@lru_cache(maxsize=4096)
def _parse(text: str) -> ast.expr:
    try:
        tree = ast.parse(text, mode="eval").body
        for _ in _names(tree):  # refuses what is no formula
            pass
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InvalidRequest(f"a size's formula is made of {_GRAMMAR}; got '{text}'", expression=text) from None
    return tree


_Operators = Mapping[type | str, Callable[..., Any]]


def _names(node: ast.expr) -> Iterator[str]:
    """The names in a tree; a ValueError where it is no formula."""
    match node:
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            return
        case ast.Name() | ast.Attribute() | ast.Subscript():
            yield _name(node)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield from _names(operand)
        case ast.BinOp(op=ast.Pow(), left=left, right=ast.Constant(value=int() as power)) if 0 <= power <= 8:
            yield from _names(left)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.FloorDiv(), right=right):
            yield from _names(left)
            yield from _names(right)
        case ast.Call(func=ast.Name(id="min" | "max"), args=[_, *_] as args, keywords=[]):
            for arg in args:
                yield from _names(arg)
        case _:
            raise ValueError(ast.dump(node))


def _exact(a: int, b: int) -> int:
    quotient, rest = divmod(a, b)
    if rest:
        raise ArithmeticError(f"{a} / {b} is not whole")
    return quotient


_scalars: _Operators = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: _exact,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Pow: lambda a, b: a**b,
    "min": min,
    "max": max,
}
_arrays: _Operators = {
    **_scalars,
    ast.Div: lambda a, b: a // b,
    "min": lambda *each: np.minimum.reduce(np.broadcast_arrays(*each)),
    "max": lambda *each: np.maximum.reduce(np.broadcast_arrays(*each)),
}


def _walk(node: ast.expr, size_of: Callable[[str], Any], operators: _Operators) -> Any:
    match node:
        case ast.Constant(value=number):
            return number
        case ast.UnaryOp(operand=operand):
            return -_walk(operand, size_of, operators)
        case ast.BinOp(left=left, op=op, right=right):
            return operators[type(op)](_walk(left, size_of, operators), _walk(right, size_of, operators))
        case ast.Call(func=ast.Name(id=function), args=args):
            return operators[function](*(_walk(arg, size_of, operators) for arg in args))
        case _:
            return size_of(_name(node))


def _name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=owner, attr=name):
            return f"{_name(owner)}.{name}"
        case ast.Subscript(value=owner, slice=ast.Constant(value=int() as index)):
            return f"{_name(owner)}[{index}]"
        case _:
            raise ValueError(ast.dump(node))
