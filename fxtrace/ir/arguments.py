"""Arguments of a node's call as plain data, and shapes, both as text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from fxtrace.ir.text import Readable


@dataclass(frozen=True, slots=True, repr=False)
class Ref(Readable):
    """An argument that is another node's value."""

    node: str

    def __str__(self) -> str:
        return show(self)


@dataclass(frozen=True, slots=True, repr=False)
class SliceArg(Readable):
    """A Python slice among the arguments; its parts may be nodes."""

    start: Arg
    stop: Arg
    step: Arg

    def __str__(self) -> str:
        return show(self)


@dataclass(frozen=True, slots=True, repr=False)
class Symbol(Readable):
    """An argument that is a constant with no plain form, as its text: `torch.float32`, `Ellipsis`, `cpu`."""

    text: str

    def __str__(self) -> str:
        return self.text


Arg = None | bool | int | float | str | Ref | SliceArg | Symbol | tuple["Arg", ...] | dict[str, "Arg"]
"""An argument of a call: a constant, a reference to a node, or a nest of them. Lists are kept as tuples."""


def refs(arg: Arg) -> Iterator[str]:
    """Names of the nodes an argument refers to, in order, repeats included."""
    match arg:
        case Ref(node):
            yield node
        case tuple():
            for item in arg:
                yield from refs(item)
        case dict():
            for item in arg.values():
                yield from refs(item)
        case SliceArg(start, stop, step):
            for item in (start, stop, step):
                yield from refs(item)
        case _:
            return


def show(arg: Arg) -> str:
    """An argument as text, nodes as `%name`."""
    match arg:
        case Ref(node):
            return f"%{node}"
        case Symbol(text):
            return text
        case tuple():
            return "(" + ", ".join(map(show, arg)) + ("," if len(arg) == 1 else "") + ")"
        case dict():
            return "{" + ", ".join(f"{key}: {show(item)}" for key, item in arg.items()) + "}"
        case SliceArg(start, stop, step):
            parts = ["" if part is None else show(part) for part in (start, stop)]
            return ":".join(parts if step is None else [*parts, show(step)])
        case _:
            return repr(arg)


class _Sized(Protocol):
    """What has a shape, and its sizes as symbols where it was traced with them."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def symbolic(self) -> tuple[str, ...]: ...


def show_shape(shape: tuple[int, ...] | tuple[str, ...]) -> str:
    """A shape as text: `1×4×5×6`, `batch×(length + 1)`, and `scalar` for a tensor of no dimensions."""
    return "×".join(map(_factor, shape)) or "scalar"


def _factor(size: int | str) -> str:
    """A size as one of several between `×`: a sum, or a division rounded down, in brackets."""
    text = outside = str(size)
    while (shorter := re.sub(r"\([^()]*\)", "", outside)) != outside:
        outside = shorter
    return f"({text})" if " " in outside or "//" in outside else text


def show_sizes(sized: _Sized) -> str:
    """A tensor's shape as text; with its symbols where it has them: `(batch, 32, sequence, 2*sequence)`."""
    return show(tuple(map(Symbol, sized.symbolic))) if sized.symbolic else show_shape(sized.shape)
