"""What people see of formulas and of a diff: grouped by field and by block, layers folded into one row."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from fxtrace.cli.layout import Block, Column, facts, table
from fxtrace.diff import GraphDiff, Lone, NodePair, ValueChange
from fxtrace.dims import Formulas
from fxtrace.graph import Graph, Node, show_shape

_DISTANCES = ("largest difference", "largest value before")
_MOST_VALUES, _MOST_ROWS, _MOST_ALONE, _MOST_REASONS, _MOST_NODES = 5, 20, 6, 10, 40


def formula_tables(graph: Graph, formulas: Formulas) -> Iterator[Block]:
    """The formulas of what has a role, a row for what is alike in a block; then how far they reach.

    Where nothing has a role, the formulas of the nodes.
    """
    rows = list(_role_rows(graph, formulas))
    heading = "role" if rows else "node"
    nodes = () if rows else list(_node_rows(graph, formulas))
    grid = table("Sizes", Column(heading, prose=True), Column("shape", rank=1), Column("made of", below=True))
    for row in (*rows, *nodes[:_MOST_NODES]):
        grid.add(*row)
    yield grid
    confirmed, total = formulas.confirmed
    structure = "\n".join(f"{name}: {how}" for name, how in formulas.structural.items())
    yield facts(
        f"{confirmed} of {total} sizes have a formula, confirmed on configurations that had no part in finding it",
        ("tried", f"{formulas.probes} configurations"),
        ("found on", formulas.copy and f"{formulas.copy}; every formula gives this graph's own sizes"),
        ("not shown", f"{len(nodes) - _MOST_NODES:,} nodes more; --json has all" if len(nodes) > _MOST_NODES else ""),
        (
            "no formula",
            "\n".join(f"{count}: {reason}" for reason, count in islice(formulas.refused.items(), _MOST_REASONS)),
        ),
        ("change the graph", structure),
        ("must equal", "\n".join(f"{name} = {other}" for name, other in formulas.tied.items())),
        ("cannot change", ", ".join(formulas.fixed)),
        ("not tried", ", ".join(formulas.untried)),
    )


def _role_rows(graph: Graph, formulas: Formulas) -> Iterator[tuple[str, str, str]]:
    """What has a role: the block with the parts that have one formula, their sizes, and the formula."""
    rows: dict[tuple[str, str, str], list[int]] = {}
    for node in graph.nodes:
        for role in node.roles:
            if node.spec is not None and node.name in formulas.tensors:
                name = ".".join(
                    each for each in (role.stack, "*" if role.layer is not None else "", role.block, role.part) if each
                )
                layers = rows.setdefault((name, show_shape(node.spec.shape), _made_of(formulas, node)), [])
                if role.layer is not None:
                    layers.append(role.layer)
    blocks: dict[tuple[str, str, str], list[str]] = {}
    for (name, sizes, shape), layers in rows.items():
        block, _, part = name.replace("*", _span(layers)).rpartition(".")
        blocks.setdefault((block, sizes, shape), []).append(part)
    for (block, sizes, shape), parts in blocks.items():
        yield f"{block}: {', '.join(parts)}", sizes, shape


def _node_rows(graph: Graph, formulas: Formulas) -> Iterator[tuple[str, str, str]]:
    for node in graph.nodes:
        if node.spec is not None and node.name in formulas.tensors:
            yield node.name, show_shape(node.spec.shape), _made_of(formulas, node)


def _made_of(formulas: Formulas, node: Node) -> str:
    return show_shape(tuple(text or "?" for text in formulas.shape(node.name)))


def diff_tables(diff: GraphDiff) -> Iterator[Block]:
    """What changed: the fields, and for each the nodes it explains; then the rest, what is added and removed."""
    equal = sum(pair.equal for pair in diff.pairs)
    before, after = diff.before, diff.after
    alone = [each for each in diff.fields if None in (each.before, each.after) and each.name not in diff.explained]
    alone = alone if len(alone) > _MOST_ALONE else []
    yield facts(
        f"{equal} nodes equal, {len(diff.changed)} changed, {len(diff.added)} added, {len(diff.removed)} removed",
        *(
            (each.name, f"{_text(each.before)} → {_text(each.after)}{_effect(diff, each.name)}")
            for each in diff.fields
            if each not in alone
        ),
        ("only before", ", ".join(each.name for each in alone if each.after is None)),
        ("only after", ", ".join(each.name for each in alone if each.before is None)),
        ("changed sizes", _explained(diff)),
        ("parameters", _arrow(before.parameters, after.parameters)),
        ("bytes of tensors", _arrow(before.nbytes, after.nbytes)),
        ("numbers", _numbers(diff)),
        ("notes", "\n".join(diff.notes)),
    )
    groups: dict[tuple[str, ...], list[NodePair]] = defaultdict(list)
    for pair in diff.changed:
        groups[tuple(sorted(pair.because))].append(pair)
    columns = (Column("", prose=True), "before", "after", Column("made of", below=True))
    for causes, pairs in sorted(groups.items(), key=lambda item: (not item[0], item[0])):
        grid = table(f"Because of {', '.join(causes)}" if causes else "Changed", *columns)
        for name, row in _folded(pairs):
            grid.add(name, *row)
        yield grid
    for title, nodes in (("Added", diff.added), ("Removed", diff.removed)):
        if nodes:
            grid = table(
                title, Column("nodes", right=True), Column("where", prose=True), Column("because of", prose=True)
            )
            for row in _lone_rows(nodes):
                grid.add(*row)
            yield grid
    apart = [each for each in diff.values if each.largest != 0]
    if apart:
        grid = table("Numbers furthest apart", "role", *(Column(each, right=True) for each in _DISTANCES))
        for value in sorted(apart, key=_apart, reverse=True)[:_MOST_VALUES]:
            grid.add(value.role, f"{value.largest:.3g}", f"{value.scale:.3g}")
        yield grid


def _effect(diff: GraphDiff, field: str) -> str:
    nodes = diff.explained.get(field, 0)
    return f"   explains {_count(nodes, 'node')}" if nodes else "   explains none"


def _explained(diff: GraphDiff) -> str:
    if not diff.sizes:
        return ""
    return f"{len(diff.sizes) - diff.unexplained} explained, {diff.unexplained} unexplained"


def _numbers(diff: GraphDiff) -> str:
    if not diff.values:
        return ""
    apart = sum(each.largest != 0 for each in diff.values)
    return (
        f"of {len(diff.values)} roles' tensors with one shape, {len(diff.values) - apart} equal and {apart} different"
    )


def _apart(value: ValueChange) -> float:
    return math.inf if math.isnan(value.largest) else value.largest / value.scale if value.scale else value.largest


def _folded(pairs: Iterable[NodePair]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A row for each role of a layer, layers that read the same in one; and one for all that has no role."""
    rows: dict[tuple[str, tuple[str, ...]], list[int | None]] = {}
    rest: list[NodePair] = []
    for pair in pairs:
        if not (pair.before.roles or pair.after.roles):
            rest.append(pair)
            continue
        name, layer = _place(pair)
        rows.setdefault((name, _row(pair)), []).append(layer)
    blocks: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (name, row), layers in rows.items():
        block, _, part = name.replace("*", _span(layer for layer in layers if layer is not None)).rpartition(".")
        blocks.setdefault((block, row), []).append(part)
    for (block, row), parts in blocks.items():
        yield f"{block}: {', '.join(parts)}", row
    if len(rows) == 0 or len(rest) == 1:
        for pair in rest[:_MOST_ROWS]:
            yield _place(pair)[0], _row(pair)
        rest = rest[_MOST_ROWS:]
    if rest:
        yield f"{_kinds(pair.before.kind for pair in rest)}, without a role", ("", "", "")


def _place(pair: NodePair) -> tuple[str, int | None]:
    """What a pair is called: its role, with the layer taken out; else the nodes themselves."""
    role = (*pair.before.roles, *pair.after.roles, "")[0]
    if not role:
        return " → ".join(dict.fromkeys((pair.before.name, pair.after.name))), None
    pieces = role.split(".")
    layer = next((piece for piece in pieces if piece.isdecimal()), None)
    return ".".join("*" if piece == layer else piece for piece in pieces), int(layer) if layer is not None else None


def _row(pair: NodePair) -> tuple[str, ...]:
    before: list[str] = []
    after: list[str] = []
    made_of: list[str] = []
    for tensor in pair.tensors:
        same = tensor.before.dtype == tensor.after.dtype
        for side, lines in ((tensor.before, before), (tensor.after, after)):
            lines.append(show_shape(side.shape) + ("" if same else f" {side.dtype}"))
        made_of += [size.formula for size in tensor.sizes]
    if any(not size.formula and not size.causes for tensor in pair.tensors for size in tensor.sizes):
        made_of.append("unexplained")  # after those that are
    if pair.before.kind != pair.after.kind:
        before.append(pair.before.kind)
        after.append(pair.after.kind)
    lost = [role for role in pair.before.roles if role not in pair.after.roles]
    won = [role for role in pair.after.roles if role not in pair.before.roles]
    before += [f"is {_relative(role, pair.before.roles[0])}" for role in lost]
    after += [f"is {_relative(role, (*pair.before.roles, won[0])[0])}" for role in won] or ["no more"] * bool(lost)
    return "\n".join(before), "\n".join(after), ", ".join(dict.fromkeys(filter(None, made_of)))


def _relative(role: str, own: str) -> str:
    """A role as seen from another one, so that it reads the same in every layer."""
    (stack, *rest), (home, *ours) = role.split("."), own.split(".")
    if stack != home or not (rest and ours and rest[0].isdecimal() and ours[0].isdecimal()):
        return role
    inside = ".".join(rest[1:])
    return {0: inside, 1: f"the next layer's {inside}"}.get(int(rest[0]) - int(ours[0]), role)


def _lone_rows(nodes: Sequence[Lone]) -> Iterator[tuple[str, str, str]]:
    """A row for each block of roles, and at the end one for what has no role, for each set of causes."""
    blocks: dict[tuple[str, tuple[str, ...]], int] = defaultdict(int)
    rest: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for lone in nodes:
        if lone.node.roles:
            pieces = lone.node.roles[0].split(".")
            blocks[".".join(pieces[:3] if len(pieces) > 3 else pieces[:-1]), lone.causes] += 1
        else:
            rest[lone.causes].append(lone.node.kind)
    for (place, causes), count in blocks.items():
        yield str(count), place, ", ".join(causes)
    for causes, kinds in rest.items():
        yield str(len(kinds)), f"without a role: {_kinds(kinds)}", ", ".join(causes)


def _kinds(kinds: Iterable[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).most_common())


def _span(layers: Iterable[int]) -> str:
    numbers = sorted(set(layers))
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}–{numbers[-1]}"
    return ",".join(map(str, numbers))


def _text(value: object) -> str:
    return "—" if value is None else repr(value)


def _arrow(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} → {after:,}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
