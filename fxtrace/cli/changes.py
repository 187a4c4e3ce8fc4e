"""What people see of formulas and of a diff: grouped by field and by block, layers folded into one row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from fxtrace.cli.tables import add, facts, table
from fxtrace.diff import GraphDiff, Lone, NodePair
from fxtrace.dims import Formulas
from fxtrace.graph import Graph, show_shape


def formula_tables(graph: Graph, formulas: Formulas) -> Iterator[RenderableType]:
    """The formulas of what has a role, a row for each role of a layer; then how far they reach."""
    grid = table("Sizes", "role", "shape", "made of")
    rows: dict[tuple[str, str, str], list[int]] = {}
    for node in graph.nodes:
        for role in node.roles:
            if node.spec is not None and node.name in formulas.tensors:
                name = ".".join(
                    each for each in (role.stack, "*" if role.layer is not None else "", role.block, role.part) if each
                )
                shape = show_shape(tuple(text or "?" for text in formulas.shape(node.name)))
                layers = rows.setdefault((name, show_shape(node.spec.shape), shape), [])
                if role.layer is not None:
                    layers.append(role.layer)
    for (name, sizes, shape), layers in rows.items():
        add(grid, name.replace("*", _span(layers)), sizes, shape)
    yield grid
    confirmed, total = formulas.confirmed
    structure = "\n".join(f"{name}: {how}" for name, how in formulas.structural.items())
    yield facts(
        f"{confirmed} of {total} sizes have a formula, confirmed on configurations that had no part in finding it",
        ("tried", f"{formulas.probes} configurations"),
        ("change the graph", structure),
        ("must equal", "\n".join(f"{name} = {other}" for name, other in formulas.tied.items())),
        ("cannot change", ", ".join(formulas.fixed)),
        ("not tried", ", ".join(formulas.untried)),
    )


def diff_tables(diff: GraphDiff) -> Iterator[RenderableType]:
    """What changed: the fields, and for each the sizes it explains; then what is unexplained, added and removed."""
    equal = sum(pair.equal for pair in diff.pairs)
    yield facts(
        f"{equal} nodes equal, {len(diff.changed)} changed, {len(diff.added)} added, {len(diff.removed)} removed",
        *((each.name, f"{_text(each.before)} → {_text(each.after)}{_effect(diff, each.name)}") for each in diff.fields),
        ("parameters", _arrow(diff.parameters)),
        ("bytes of tensors", _arrow(diff.nbytes)),
    )
    groups: dict[tuple[str, ...], list[NodePair]] = defaultdict(list)
    for pair in diff.changed:
        because = {cause for tensor in pair.tensors for size in tensor.sizes for cause in size.causes}
        groups[tuple(sorted(because))].append(pair)
    for causes, pairs in sorted(groups.items(), key=lambda item: (not item[0], item[0])):
        grid = table(
            f"Because of {', '.join(causes)}" if causes else "Changed otherwise", "", "before", "after", "made of"
        )
        for name, row in _folded(pairs):
            add(grid, name, *row)
        yield grid
    for title, nodes in (("Added", diff.added), ("Removed", diff.removed)):
        if nodes:
            grid = table(title, "nodes", "where", "because of")
            for row in _lone_rows(nodes):
                add(grid, *row)
            yield grid


def _effect(diff: GraphDiff, field: str) -> str:
    sizes = diff.explained.get(field, 0)
    nodes = sum(field in each.causes for each in (*diff.added, *diff.removed))
    told = [f"{sizes} sizes" if sizes else "", f"{nodes} nodes added or removed" if nodes else ""]
    return f"   explains {' and '.join(filter(None, told))}" if any(told) else "   changes no shape"


def _folded(pairs: Iterable[NodePair]) -> Iterator[tuple[str, tuple[Text | str, ...]]]:
    """A row for each role of a layer and each other node, layers that read the same in one."""
    rows: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for pair in pairs:
        name, layer = _place(pair)
        layers = rows.setdefault((name, _row(pair)), [])
        if layer is not None:
            layers.append(layer)
    for (name, row), layers in rows.items():
        yield name.replace("*", _span(layers)), row


def _place(pair: NodePair) -> tuple[str, int | None]:
    role = pair.roles[0][0] if pair.roles[0] else pair.roles[1][0] if pair.roles[1] else ""
    if not role:
        return pair.before if pair.before == pair.after else f"{pair.before} → {pair.after}", None
    pieces = role.split(".")
    layer = next((piece for piece in pieces if piece.isdecimal()), None)
    return ".".join("*" if piece == layer else piece for piece in pieces), int(layer) if layer is not None else None


def _row(pair: NodePair) -> tuple[str, ...]:
    before, after, made_of = [], [], []
    for tensor in pair.tensors:
        dtypes = tensor.dtype if tensor.dtype[0] != tensor.dtype[1] else ("", "")
        before.append(f"{show_shape(tensor.shape[0])} {dtypes[0]}".strip())
        after.append(f"{show_shape(tensor.shape[1])} {dtypes[1]}".strip())
        made_of += [size.formula or f"dimension {size.dimension}: unexplained" for size in tensor.sizes]
    if pair.kind[0] != pair.kind[1]:
        before.append(pair.kind[0])
        after.append(pair.kind[1])
    if pair.roles[0] != pair.roles[1]:
        before += [f"is no {role} later" for role in pair.roles[0] if role not in pair.roles[1]]
        after += [f"is {role}" for role in pair.roles[1] if role not in pair.roles[0]]
    return "\n".join(before), "\n".join(after), ", ".join(dict.fromkeys(made_of))


def _lone_rows(nodes: Sequence[Lone]) -> Iterator[tuple[str, str, str]]:
    groups: dict[tuple[str, tuple[str, ...]], int] = defaultdict(int)
    where = ""
    for node in nodes:
        if node.roles:
            pieces = node.roles[0].split(".")
            where = ".".join(pieces[:3] if len(pieces) > 3 else pieces[:-1])
        groups[where or node.node, node.causes] += 1
    for (place, causes), count in groups.items():
        yield str(count), place, ", ".join(causes) or "unexplained"


def _span(layers: Iterable[int]) -> str:
    numbers = sorted(set(layers))
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}–{numbers[-1]}"
    return ",".join(map(str, numbers))


def _text(value: object) -> str:
    return "—" if value is None else repr(value)


def _arrow(pair: tuple[int, int]) -> str:
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} → {pair[1]:,}"
