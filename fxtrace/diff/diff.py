"""What is equal, changed, added and removed between two graphs, and which configuration field explains each size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from fxtrace.diff.align import How, align
from fxtrace.diff.changes import (
    FieldChange,
    GraphDiff,
    Lone,
    NodePair,
    NodeSide,
    SizeChange,
    TensorChange,
    TensorSide,
    Totals,
)
from fxtrace.dims import Formula, Formulas
from fxtrace.graph import Graph, Node, TensorSpec
from fxtrace.ir.trace import Json


def compare(first: Graph, second: Graph, fields: tuple[FieldChange, ...] = ()) -> GraphDiff:
    """Compares two graphs; nothing is attributed yet.

    Args:
        first: the graph before.
        second: the graph after.
        fields: what changed in the configuration.
    """
    pairs = align(first, second)
    befores, afters = {each.before for each in pairs}, {each.after for each in pairs}
    return GraphDiff(
        fields,
        tuple(_pair(first.node(each.before), second.node(each.after), each.how) for each in pairs),
        tuple(Lone(_node_side(node)) for node in first.nodes if node.name not in befores),
        tuple(Lone(_node_side(node)) for node in second.nodes if node.name not in afters),
        _totals(first),
        _totals(second),
    )


def changed_fields(before: Mapping[str, Json], after: Mapping[str, Json]) -> tuple[FieldChange, ...]:
    """The fields of two configurations that are not the same, in the order of the first one.

    One inside a nest is named with the way to it: `text_config.hidden_size`, `conv_kernel[0]`.
    """
    ours, theirs = dict(_plain(before, after)), dict(_plain(after, before))
    names = dict.fromkeys((*ours, *theirs))
    return tuple(
        FieldChange(name, ours.get(name), theirs.get(name)) for name in names if ours.get(name) != theirs.get(name)
    )


def _plain(fields: Mapping[str, Json], others: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, Json]]:
    """(name, value) of each field; nests that both sides have are taken apart."""
    for name, value in fields.items():
        other = others.get(name)
        match value, other:
            case dict(), dict():
                yield from _plain(value, other, f"{prefix}{name}.")
            case list(), list() if len(value) == len(other):
                yield from ((f"{prefix}{name}[{index}]", each) for index, each in enumerate(value))
            case _:
                yield f"{prefix}{name}", value


def put_field(fields: Mapping[str, Json], name: str, value: Json, prefix: str = "") -> dict[str, Json]:
    """The configuration with one field replaced, which is named as in `changed_fields`."""

    def put(at: str, each: Json) -> Json:
        if at == name:
            return value
        match each:
            case dict():
                return put_field(each, name, value, f"{at}.")
            case list():
                return [put(f"{at}[{index}]", item) for index, item in enumerate(each)]
            case _:
                return each

    return {key: put(f"{prefix}{key}", each) for key, each in fields.items()}


def explain_sizes(
    diff: GraphDiff,
    sizes: tuple[Mapping[str, int], Mapping[str, int]],
    formulas: Formulas,
    side: int,
    *,
    tied: bool = True,
) -> GraphDiff:
    """The comparison, with each size that a formula of one graph gives on both sides attributed to the fields in it.

    Args:
        diff: the comparison.
        sizes: the named sizes of either graph.
        formulas: of one graph's tensors. They must hold for the other one's configuration, too: it is of the same
            model, or has the same formula for the size.
        side: whose formulas they are: 0 of the graph before, 1 of the one after.
        tied: whether a field also stands for those that were only ever tried along with it, where these changed, too;
            otherwise such sizes are left open.
    """
    # Sizes of inputs that no field decides: the same on both sides, or their formulas do not give both.
    given = {name: size for name, size in formulas.sizes.items() if name not in sizes[0] and name not in sizes[1]}
    old, new = ({**given, **each} for each in sizes)
    different = {name for name in (*old, *new) if old.get(name) != new.get(name)}
    several = set() if tied else {name for other, name in formulas.tied.items() if {name, other} <= different}

    def causes(formula: Formula) -> tuple[str, ...]:
        """The changed names in a formula that make a difference to it."""
        return tuple(
            name
            for name in sorted(formula.names & different)
            if formula.value({**old, name: new[name]}) != formula.value(old)
            or formula.value({**new, name: old[name]}) != formula.value(new)
        )

    def explain(tensor: TensorChange, size: SizeChange) -> SizeChange:
        findings = formulas.tensors.get((tensor.before, tensor.after)[side].name, ())
        formula = findings[size.dimension].formula if size.dimension < len(findings) else None
        if size.formula or size.causes or formula is None:
            return size
        if (formula.value(old), formula.value(new)) != (size.before, size.after) or formula.names & several:
            return size
        return replace(size, formula=str(formula), causes=causes(formula))

    return _with_sizes(diff, explain)


def common_formulas(first: Formulas, second: Formulas, diff: GraphDiff) -> Formulas:
    """Those formulas of the first graph that read the same in the second one, at the nodes that correspond."""
    twins = {side.name: other for pair in diff.pairs for side, other in _tensor_sides(pair)}
    kept = {
        name: tuple(
            finding if _text(second, twins[name], place) == finding.formula else replace(finding, formula=None)
            for place, finding in enumerate(findings)
        )
        for name, findings in first.tensors.items()
        if name in twins
    }
    return replace(first, tensors=kept)


def _tensor_sides(pair: NodePair) -> Iterator[tuple[TensorSide, str]]:
    for tensor in pair.tensors:
        yield tensor.before, tensor.after.name


def _text(formulas: Formulas, tensor: str, place: int) -> Formula | None:
    findings = formulas.tensors.get(tensor, ())
    return findings[place].formula if place < len(findings) else None


def explain_by_trial(diff: GraphDiff, trials: Iterable[tuple[str, Graph, Graph, int]]) -> GraphDiff:
    """The comparison, with what no formula explains attributed to the fields that alone undo it.

    Args:
        diff: the comparison.
        trials: (field, graph, the graph of the same model with that field alone as the other side has it, whose: 0 of
            the graph before, 1 of the one after).
    """
    for field, graph, tried, side in trials:
        seen = compare(graph, tried)
        lost = {each.node.name for each in seen.removed}
        kept = {pair.before.name: pair for pair in seen.pairs}
        sizes = {
            (tensor.before.name, size.dimension)
            for pair in seen.pairs
            for tensor in pair.tensors
            for size in tensor.sizes
        }

        def blame(tensor: TensorChange, size: SizeChange, field: str = field, side: int = side) -> SizeChange:
            if size.formula or ((tensor.before, tensor.after)[side].name, size.dimension) not in sizes:  # noqa: B023
                return size
            return replace(size, causes=_and(size.causes, field))

        diff = _with_sizes(diff, blame)
        pairs = []
        for pair in diff.pairs:
            trial = kept.get((pair.before, pair.after)[side].name)
            restructures = pair.restructured and trial is not None and trial.restructured
            pairs.append(replace(pair, causes=_and(pair.causes, field)) if restructures else pair)
        nodes = (diff.removed, diff.added)[side]
        alone = tuple(replace(x, causes=_and(x.causes, field)) if x.node.name in lost else x for x in nodes)
        removed, added = (alone, diff.added) if side == 0 else (diff.removed, alone)
        diff = replace(diff, pairs=tuple(pairs), removed=removed, added=added)
    return diff


def _and(causes: tuple[str, ...], field: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*causes, field)))


def _with_sizes(diff: GraphDiff, change: Callable[[TensorChange, SizeChange], SizeChange]) -> GraphDiff:
    def of(tensor: TensorChange) -> TensorChange:
        return replace(tensor, sizes=tuple(change(tensor, size) for size in tensor.sizes))

    pairs = (replace(pair, tensors=tuple(map(of, pair.tensors))) if pair.tensors else pair for pair in diff.pairs)
    return replace(diff, pairs=tuple(pairs))


def _pair(before: Node, after: Node, how: How) -> NodePair:
    changes = (
        _tensor_change(ours, theirs)
        for ours, theirs in zip(before.tensors, after.tensors, strict=False)
        if (ours[1].shape, ours[1].dtype) != (theirs[1].shape, theirs[1].dtype)
    )
    return NodePair(_node_side(before), _node_side(after), how, tuple(changes))


def _tensor_change(before: tuple[str, TensorSpec], after: tuple[str, TensorSpec]) -> TensorChange:
    (name, spec), (twin, other) = before, after
    sizes = (
        SizeChange(dimension, old, new)
        for dimension, (old, new) in enumerate(zip(spec.shape, other.shape, strict=False))
        if old != new and len(spec.shape) == len(other.shape)
    )
    return TensorChange(
        TensorSide(name, spec.shape, spec.dtype), TensorSide(twin, other.shape, other.dtype), tuple(sizes)
    )


def _node_side(node: Node) -> NodeSide:
    return NodeSide(node.name, node.kind, tuple(map(str, node.roles)))


def _totals(graph: Graph) -> Totals:
    # Only some captures have a node for each parameter that is read.
    nbytes = sum(spec.nbytes for node in graph.nodes if node.op != "get_attr" for _, spec in node.tensors)
    return Totals(len(graph.nodes), graph.parameter_count, nbytes)
