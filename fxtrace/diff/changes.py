"""What a comparison of two graphs comes to, as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from fxtrace.diff.align import How
from fxtrace.graph import show_shape
from fxtrace.ir.text import Readable, bytes_text, count_text, facts, listed, table, value_text
from fxtrace.ir.trace import Json


@dataclass(frozen=True, slots=True, repr=False)
class FieldChange(Readable):
    """A configuration field, or a size of an input, that is not the same; None on a side that has no such field."""

    name: str
    before: Json
    after: Json

    def _lines(self) -> Iterator[str]:
        sides = ("—" if side is None else value_text(side) for side in (self.before, self.after))
        yield f"{self.name}: {' → '.join(sides)}"


@dataclass(frozen=True, slots=True, repr=False)
class SizeChange(Readable):
    """A size that is not the same.

    `formula` is what it was confirmed to be, and `causes` the changed fields that make the difference. A size without
    a formula has causes where putting a field alone back puts the size back; one without causes is unexplained.
    """

    dimension: int
    before: int
    after: int
    formula: str = ""
    causes: tuple[str, ...] = ()

    def _lines(self) -> Iterator[str]:
        formula = f", {self.formula}" if self.formula else ""
        yield f"dimension {self.dimension}: {self.before} → {self.after}{formula}, {_because(self.causes)}"


@dataclass(frozen=True, slots=True, repr=False)
class TensorSide(Readable):
    """A tensor, as one of the two graphs has it."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def _lines(self) -> Iterator[str]:
        yield f"{self.name} {show_shape(self.shape)} {self.dtype}"


@dataclass(frozen=True, slots=True, repr=False)
class TensorChange(Readable):
    """A tensor of a pair of nodes whose shape or dtype is not the same. `sizes` is empty where the ranks differ."""

    before: TensorSide
    after: TensorSide
    sizes: tuple[SizeChange, ...] = ()

    def _lines(self) -> Iterator[str]:
        yield f"{self.before.name}: {_arrow(*map(_sized, (self.before, self.after)))}"
        yield from (f"  {size}" for size in self.sizes)


@dataclass(frozen=True, slots=True, repr=False)
class NodeSide(Readable):
    """A node, as one of the two graphs has it: its name, what kind of op it is, and its roles' names."""

    name: str
    kind: str
    roles: tuple[str, ...] = ()

    def _lines(self) -> Iterator[str]:
        yield f"{self.name}: {self.kind}" + (f", {listed(self.roles, 1)}" if self.roles else "")
        if len(self.roles) > 1:
            yield from facts(("roles", "\n".join(self.roles)))


@dataclass(frozen=True, slots=True, repr=False)
class NodePair(Readable):
    """Two nodes that correspond, and what is not the same of them.

    `how` says how they were found to be one another. `causes` are the changed fields that account for another kind,
    rank, dtype or other roles; those that account for a size stand with the size.
    """

    before: NodeSide
    after: NodeSide
    how: How
    tensors: tuple[TensorChange, ...] = ()
    causes: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether nothing changed but perhaps the name."""
        return not self.tensors and not self.restructured

    @property
    def restructured(self) -> bool:
        """Whether more changed than sizes: the kind, the roles, how many dimensions there are, or a dtype."""
        return (
            self.before.kind != self.after.kind
            or self.before.roles != self.after.roles
            or any(
                each.before.dtype != each.after.dtype or len(each.before.shape) != len(each.after.shape)
                for each in self.tensors
            )
        )

    @property
    def because(self) -> tuple[str, ...]:
        """Every field that accounts for something of it."""
        sizes = (cause for tensor in self.tensors for size in tensor.sizes for cause in size.causes)
        return tuple(dict.fromkeys((*self.causes, *sizes)))

    def _lines(self) -> Iterator[str]:
        what = "equal" if self.equal else f"changed, {_because(self.because)}"
        yield f"{self._name}: {what}, paired by {self.how}"
        yield from facts(
            ("node", _arrow(self.before.name, self.after.name)),
            ("kind", _arrow(self.before.kind, self.after.kind)),
            ("roles", _arrow(*(", ".join(side.roles) for side in (self.before, self.after)))),
            ("tensors", "\n".join(map(str, self.tensors))),
        )

    @property
    def _name(self) -> str:
        return next(iter((*self.before.roles, *self.after.roles, self.before.name)))

    @property
    def _row(self) -> tuple[str, ...]:
        """The pair in a table: what it is, before, after, formulas of changed sizes, and the fields to blame."""
        before = ", ".join(_sized(each.before) for each in self.tensors) or self.before.kind
        after = ", ".join(_sized(each.after) for each in self.tensors) or self.after.kind
        formulas = dict.fromkeys(size.formula for each in self.tensors for size in each.sizes if size.formula)
        return self._name, before, after, ", ".join(formulas), ", ".join(self.because)


@dataclass(frozen=True, slots=True, repr=False)
class Lone(Readable):
    """A node of one graph alone, and the fields that account for it: with one of them put back, it is not there."""

    node: NodeSide
    causes: tuple[str, ...] = ()

    def _lines(self) -> Iterator[str]:
        first, *more = str(self.node).splitlines()
        yield f"{first}, {_because(self.causes)}"
        yield from more


@dataclass(frozen=True, slots=True, repr=False)
class ValueChange(Readable):
    """How far the numbers of a role's tensor are apart.

    `largest` is the greatest absolute difference of two elements (NaN where only one of the two is NaN), `scale` the
    greatest absolute value before.
    """

    role: str
    before: str
    after: str
    largest: float
    scale: float

    def _lines(self) -> Iterator[str]:
        distance = f"apart by at most {self.largest:.3g} of {self.scale:.3g}" if self.largest else "equal"
        yield f"{self.role}: {distance}"
        yield from facts(("tensor", _arrow(self.before, self.after)))


@dataclass(frozen=True, slots=True, repr=False)
class Totals(Readable):
    """How much there is of a graph: nodes, elements of all parameters, and bytes of all other tensors."""

    nodes: int
    parameters: int
    nbytes: int

    def _lines(self) -> Iterator[str]:
        nodes = count_text(self.nodes, "node")
        yield f"{nodes}, {self.parameters:,} parameters, {bytes_text(self.nbytes)} of tensors"


@dataclass(frozen=True, repr=False)
class GraphDiff(Readable):
    """What changed from one graph to another.

    Attributes:
        fields: the configuration fields, and sizes of inputs, that are not the same.
        pairs: the nodes that correspond, in the first graph's order.
        removed, added: the nodes of one graph alone.
        before, after: how much there is of each graph.
        values: by role, how far the numbers are apart; only of tensors that have one shape in both.
        notes: what could not be told, and why.
    """

    fields: tuple[FieldChange, ...]
    pairs: tuple[NodePair, ...]
    removed: tuple[Lone, ...]
    added: tuple[Lone, ...]
    before: Totals
    after: Totals
    values: tuple[ValueChange, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> tuple[NodePair, ...]:
        """The pairs that are not equal."""
        return tuple(pair for pair in self.pairs if not pair.equal)

    @cached_property
    def explained(self) -> Mapping[str, int]:
        """By field, how many nodes it accounts for: changed, added or removed."""
        pairs = (cause for pair in self.pairs for cause in pair.because)
        return Counter((*pairs, *(cause for each in (*self.added, *self.removed) for cause in each.causes)))

    @cached_property
    def sizes(self) -> tuple[SizeChange, ...]:
        """Every size that is not the same."""
        return tuple(size for pair in self.pairs for tensor in pair.tensors for size in tensor.sizes)

    @property
    def unexplained(self) -> int:
        """How many changed sizes no field accounts for."""
        return sum(not size.causes for size in self.sizes)

    def _lines(self) -> Iterator[str]:
        equal = len(self.pairs) - len(self.changed)
        alone = f"{len(self.added):,} added, {len(self.removed):,} removed"
        yield f"{count_text(equal, 'node')} equal, {len(self.changed):,} changed, {alone}"
        apart = sum(each.largest != 0 for each in self.values)
        yield from facts(
            ("fields", "\n".join(f"{each}{self._effect(each.name)}" for each in self.fields)),
            (
                "sizes",
                f"{len(self.sizes) - self.unexplained:,} explained, {self.unexplained:,} not" if self.sizes else "",
            ),
            ("before", self.before),
            ("after", self.after),
            ("numbers", f"{len(self.values) - apart:,} tensors equal, {apart:,} not" if self.values else ""),
            ("notes", "\n".join(self.notes)),
        )
        yield from table(("changed", "before", "after", "made of", "because of"), (pair._row for pair in self.changed))
        for title, nodes in (("added", self.added), ("removed", self.removed)):
            rows = ((each.node, ", ".join(each.causes)) for each in nodes)
            named = ((node.name, node.kind, listed(node.roles, 1), causes) for node, causes in rows)
            yield from table((title, "kind", "role", "because of"), named)

    def _effect(self, field: str) -> str:
        nodes = self.explained.get(field, 0)
        return f", explains {count_text(nodes, 'node')}" if nodes else ", explains nothing"


def _because(causes: tuple[str, ...]) -> str:
    return f"because of {', '.join(causes)}" if causes else "unexplained"


def _arrow(before: str, after: str) -> str:
    return before if before == after else f"{before or '—'} → {after or '—'}"


def _sized(side: TensorSide) -> str:
    return f"{show_shape(side.shape)} {side.dtype}"
