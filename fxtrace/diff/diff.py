"""What is equal, changed, added and removed between two graphs, and which configuration field explains each size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from fxtrace.diff.align import How, align
from fxtrace.dims import Formula, Formulas
from fxtrace.graph import Graph, Node, TensorSpec
from fxtrace.trace import Json


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A configuration field that is not the same; None on a side that has no such field."""

    name: str
    before: Json
    after: Json


@dataclass(frozen=True, slots=True)
class SizeChange:
    """A size that is not the same.

    `formula` is what it was confirmed to be, and `causes` the changed fields in it that make the difference; both are
    empty where nothing was found that gives both sizes.
    """

    dimension: int
    before: int
    after: int
    formula: str = ""
    causes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TensorChange:
    """A tensor of a pair of nodes whose shape or dtype is not the same. `sizes` is empty where the ranks differ."""

    before: str
    after: str
    shape: tuple[tuple[int, ...], tuple[int, ...]]
    dtype: tuple[str, str]
    sizes: tuple[SizeChange, ...] = ()


@dataclass(frozen=True, slots=True)
class NodePair:
    """Two nodes that correspond, and what is not the same of them.

    `kind` and `roles` are those before and after; where they are equal, nothing about them changed.
    """

    before: str
    after: str
    how: How
    tensors: tuple[TensorChange, ...] = ()
    kind: tuple[str, str] = ("", "")
    roles: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    @property
    def equal(self) -> bool:
        """Whether nothing changed but perhaps the name."""
        return not self.tensors and self.kind[0] == self.kind[1] and self.roles[0] == self.roles[1]


@dataclass(frozen=True, slots=True)
class Lone:
    """A node of one graph alone, and the fields that account for it."""

    node: str
    roles: tuple[str, ...]
    causes: tuple[str, ...] = ()


@dataclass(frozen=True)
class GraphDiff:
    """What changed from one graph to another.

    Attributes:
        fields: the configuration fields that are not the same.
        pairs: the nodes that correspond, in the first graph's order.
        removed, added: the nodes of one graph alone.
        parameters: elements of all parameters, before and after.
        nbytes: bytes of all tensors, before and after.
    """

    fields: tuple[FieldChange, ...]
    pairs: tuple[NodePair, ...]
    removed: tuple[Lone, ...]
    added: tuple[Lone, ...]
    parameters: tuple[int, int]
    nbytes: tuple[int, int]

    @property
    def changed(self) -> tuple[NodePair, ...]:
        """The pairs that are not equal."""
        return tuple(pair for pair in self.pairs if not pair.equal)

    @cached_property
    def explained(self) -> Mapping[str, int]:
        """By field, how many changed sizes it accounts for."""
        return Counter(
            cause for pair in self.pairs for tensor in pair.tensors for size in tensor.sizes for cause in size.causes
        )

    @cached_property
    def unexplained(self) -> int:
        """How many changed sizes no field accounts for."""
        return sum(not size.causes for pair in self.pairs for tensor in pair.tensors for size in tensor.sizes) + sum(
            not tensor.sizes and tensor.shape[0] != tensor.shape[1] for pair in self.pairs for tensor in pair.tensors
        )


def compare(
    first: Graph,
    second: Graph,
    fields: tuple[FieldChange, ...] = (),
    formulas: tuple[Formulas | None, Formulas | None] = (None, None),
    *,
    removed: Mapping[str, tuple[str, ...]] | None = None,
    added: Mapping[str, tuple[str, ...]] | None = None,
) -> GraphDiff:
    """Compares two graphs.

    Args:
        first: the graph before.
        second: the graph after.
        fields: what changed in the configuration.
        formulas: of either graph, where they were looked for.
        removed: for nodes of the first graph alone, the fields that account for them.
        added: for those of the second alone.
    """
    pairs = align(first, second)
    blame = _Blame(formulas)
    found = tuple(_pair(first.node(each.before), second.node(each.after), each.how, blame) for each in pairs)
    befores, afters = {each.before for each in pairs}, {each.after for each in pairs}
    return GraphDiff(
        fields,
        found,
        tuple(_lone(node, removed or {}) for node in first.nodes if node.name not in befores),
        tuple(_lone(node, added or {}) for node in second.nodes if node.name not in afters),
        (first.parameter_count, second.parameter_count),
        (_bytes(first), _bytes(second)),
    )


def changed_fields(before: Mapping[str, Json], after: Mapping[str, Json]) -> tuple[FieldChange, ...]:
    """The fields of two configurations that are not the same, in the order of the first one."""
    names = dict.fromkeys((*before, *after))
    return tuple(
        FieldChange(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)
    )


class _Blame:
    """Finds the fields that explain a changed size."""

    def __init__(self, formulas: tuple[Formulas | None, Formulas | None]) -> None:
        self._formulas = formulas
        known = [each.sizes if each else {} for each in formulas]
        self._sizes = known if all(known) else []
        self._changed = (
            {name for name in (*known[0], *known[1]) if known[0].get(name) != known[1].get(name)}
            if self._sizes
            else set()
        )

    def size(self, tensors: tuple[str, str], dimension: int, before: int, after: int) -> SizeChange:
        if not self._sizes:
            return SizeChange(dimension, before, after)
        for formulas, tensor in zip(self._formulas, tensors, strict=True):
            findings = formulas.tensors.get(tensor, ()) if formulas else ()
            formula = findings[dimension].formula if dimension < len(findings) else None
            if formula is None:
                continue
            if formula.value(self._sizes[0]) == before and formula.value(self._sizes[1]) == after:
                return SizeChange(dimension, before, after, str(formula), self._causes(formula))
        return SizeChange(dimension, before, after)

    def _causes(self, formula: Formula) -> tuple[str, ...]:
        """The changed names in a formula that make a difference to it."""
        old, new = self._sizes
        return tuple(
            name
            for name in sorted(formula.names & self._changed)
            if formula.value({**old, name: new[name]}) != formula.value(old)
            or formula.value({**new, name: old[name]}) != formula.value(new)
        )


def _pair(before: Node, after: Node, how: How, blame: _Blame) -> NodePair:
    ours, theirs = before.tensors, after.tensors
    changes = [
        _tensor_change((name, spec), (twin, other), blame)
        for (name, spec), (twin, other) in zip(ours, theirs, strict=False)
        if spec.shape != other.shape or spec.dtype != other.dtype
    ]
    return NodePair(
        before.name,
        after.name,
        how,
        tuple(changes),
        (before.kind, after.kind),
        (tuple(map(str, before.roles)), tuple(map(str, after.roles))),
    )


def _tensor_change(before: tuple[str, TensorSpec], after: tuple[str, TensorSpec], blame: _Blame) -> TensorChange:
    (name, spec), (twin, other) = before, after
    sizes = [
        blame.size((name, twin), dimension, old, new)
        for dimension, (old, new) in enumerate(zip(spec.shape, other.shape, strict=False))
        if old != new and len(spec.shape) == len(other.shape)
    ]
    return TensorChange(name, twin, (spec.shape, other.shape), (spec.dtype, other.dtype), tuple(sizes))


def _lone(node: Node, causes: Mapping[str, tuple[str, ...]]) -> Lone:
    return Lone(node.name, tuple(map(str, node.roles)), causes.get(node.name, ()))


def _bytes(graph: Graph) -> int:
    return sum(spec.nbytes for _, spec in graph.tensors())
