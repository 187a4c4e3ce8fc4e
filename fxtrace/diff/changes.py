"""What a comparison of two graphs comes to, as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from fxtrace.diff.align import How
from fxtrace.ir.trace import Json


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A configuration field, or a size of an input, that is not the same; None on a side that has no such field."""

    name: str
    before: Json
    after: Json


@dataclass(frozen=True, slots=True)
class SizeChange:
    """A size that is not the same.

    `formula` is what it was confirmed to be, and `causes` the changed fields that make the difference. A size without
    a formula has causes where putting a field alone back puts the size back; one without causes is unexplained.
    """

    dimension: int
    before: int
    after: int
    formula: str = ""
    causes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TensorSide:
    """A tensor, as one of the two graphs has it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class TensorChange:
    """A tensor of a pair of nodes whose shape or dtype is not the same. `sizes` is empty where the ranks differ."""

    before: TensorSide
    after: TensorSide
    sizes: tuple[SizeChange, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeSide:
    """A node, as one of the two graphs has it: its name, what kind of op it is, and its roles' names."""

    name: str
    kind: str
    roles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NodePair:
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


@dataclass(frozen=True, slots=True)
class Lone:
    """A node of one graph alone, and the fields that account for it: with one of them put back, it is not there."""

    node: NodeSide
    causes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ValueChange:
    """How far the numbers of a role's tensor are apart.

    `largest` is the greatest absolute difference of two elements (NaN where only one of the two is NaN), `scale` the
    greatest absolute value before.
    """

    role: str
    before: str
    after: str
    largest: float
    scale: float


@dataclass(frozen=True, slots=True)
class Totals:
    """How much there is of a graph: nodes, elements of all parameters, and bytes of all other tensors."""

    nodes: int
    parameters: int
    nbytes: int


@dataclass(frozen=True)
class GraphDiff:
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
