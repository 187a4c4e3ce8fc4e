"""What an explanation is made of."""

from __future__ import annotations

from dataclasses import dataclass

from fxtrace.graph import Check, show_shape


@dataclass(frozen=True, slots=True)
class Sized:
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


@dataclass(frozen=True, slots=True)
class Explanation:
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
