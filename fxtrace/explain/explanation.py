"""What an explanation is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fxtrace.graph import Check, show_shape
from fxtrace.ir.text import Readable, facts, listed, table


@dataclass(frozen=True, slots=True, repr=False)
class Sized(Readable):
    """A tensor in an explanation.

    Attributes:
        name: the tensor's.
        roles: those of its node.
        shape: its sizes.
        formula: what each size is made of; a size without a confirmed formula is the number itself.
        rules: how the ops that made it, since the last tensors with a role, join their inputs' shapes; one line each.
    """

    name: str
    roles: tuple[str, ...]
    shape: tuple[int, ...]
    formula: tuple[str, ...]
    rules: tuple[str, ...] = ()

    def __str__(self) -> str:
        sizes = show_shape(self.shape)
        made_of = show_shape(self.formula)
        return sizes if made_of == sizes else f"{made_of} = {sizes}"

    def _lines(self) -> Iterator[str]:
        yield f"{self.name}: {self}"


@dataclass(frozen=True, slots=True, repr=False)
class Explanation(Readable):
    """Why something in a trace has its shape.

    Attributes:
        title: what is explained.
        tensors: its tensors.
        inputs: what they are made of.
        users: what reads them.
        checks: the identities that were tried on their values.
        facts: what the shapes, formulas and numbers show, a sentence or two each.
        numbers: some of the values, a row each.
        notes: what could not be said, and what to do about it.
    """

    title: str
    tensors: tuple[Sized, ...]
    inputs: tuple[Sized, ...] = ()
    users: tuple[Sized, ...] = ()
    checks: tuple[Check, ...] = ()
    facts: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def _lines(self) -> Iterator[str]:
        yield self.title
        for fact in self.facts:
            yield f"• {fact}"
        yield from (f"    {row}" for row in self.numbers)
        for heading, tensors in (("tensor", self.tensors), ("made of", self.inputs), ("read by", self.users)):
            rows = ((each.name, listed(each.roles, 1), str(each)) for each in tensors)
            yield from table((heading, "role", "shape"), rows)
        if any(each.rules for each in self.tensors):
            yield from ("", "  how its shape is made")
            yield from facts(*((each.name, "\n".join(each.rules)) for each in self.tensors))
        if self.checks:
            yield from ("", "  identities")
            yield from facts(
                *((f"{each.name} {each.outcome}", f"{each.statement}; {each.detail}") for each in self.checks)
            )
        if self.notes:
            yield ""
            yield from self.notes
