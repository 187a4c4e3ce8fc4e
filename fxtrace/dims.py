"""Named sizes: expressions over them, and reading the sizes off shapes whose formula is known."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from typing import TypeVar

from fxtrace.errors import InvalidRequest


def evaluate(expression: str, sizes: Mapping[str, int]) -> int | None:
    """The value of a size expression: integers, names, `min(…)` and `max(…)`. None where a name has no size yet.

    Example:
        >>> evaluate("min(10,tgt_vocab)", {"tgt_vocab": 5})
        5

    Raises:
        InvalidRequest: the expression is none of these.
    """
    try:
        return _value(ast.parse(expression, mode="eval").body, sizes)
    except (SyntaxError, ValueError):
        raise InvalidRequest(
            f"a size is a number, a name, or min or max of them, got '{expression}'", expression=expression
        ) from None


def _value(node: ast.expr, sizes: Mapping[str, int]) -> int | None:
    match node:
        case ast.Constant(value=int() as number):
            return number
        case ast.Name(id=name):
            return sizes.get(name)
        case ast.Call(func=ast.Name(id="min" | "max" as function), args=args, keywords=[]) if args:
            values = [_value(arg, sizes) for arg in args]
            known = [value for value in values if value is not None]
            if len(known) < len(values):
                return None
            return min(known) if function == "min" else max(known)
        case _:
            raise ValueError(ast.dump(node))


Size = TypeVar("Size", int, str)


def bind(shapes: Iterable[tuple[tuple[str, ...], tuple[Size, ...]]]) -> dict[str, Size]:
    """Sizes by name, read off (formula, shape) pairs; where two shapes disagree, the first one's size stands.

    A shape may lack the formula's leading dimensions (an unbatched model), or have a batch before them: the two are
    aligned at their ends.

    Example:
        >>> bind([(("batch", "src_len"), (1, 6)), (("src_len", "d_model"), (6, 128))])
        {'batch': 1, 'src_len': 6, 'd_model': 128}
    """
    sizes: dict[str, Size] = {}
    for formula, shape in shapes:
        for name, size in zip(aligned(formula, shape), shape, strict=False):
            if name.isidentifier():
                sizes.setdefault(name, size)
    return sizes


def aligned(formula: tuple[str, ...], shape: tuple[Size, ...]) -> tuple[str, ...]:
    """The formula's last dimensions, as many as the shape has; with a batch in front where the shape has one more."""
    if len(shape) == len(formula) + 1 and "batch" not in formula:
        return ("batch", *formula)
    return formula[max(0, len(formula) - len(shape)) :]


def fit(formula: tuple[str, ...], shape: tuple[int, ...], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The formula as far as it holds for a shape: an expression that gives another size is replaced by the number.

    Example:
        >>> fit(("batch", "d_ff"), (1, 512), {"batch": 1, "d_ff": 256})
        ('batch', '512')
    """
    named = aligned(formula, shape)
    if len(named) != len(shape):
        return tuple(map(str, shape))
    return tuple(name if evaluate(name, sizes) == size else str(size) for name, size in zip(named, shape, strict=True))
