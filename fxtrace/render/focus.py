"""What a picture is asked to show: checks of the options, and the nodes that a highlight names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fxtrace.errors import NodeNotFound, OptionInvalid, SnapshotNotFound, unknown
from fxtrace.graph import Graph, Role, Snapshot
from fxtrace.ir.trace import DIRECTIONS, THEMES, RenderOptions
from fxtrace.render.view import prefixes, within

TAKEN_FOR = frozenset({"input", "residual_a", "residual_b", "memory"})
"""Parts that say what a block takes a value for, not what the value is; it was made, and is named, elsewhere."""


def check(graph: Graph, options: RenderOptions) -> None:
    """Checks the options against their sets and the graph.

    Raises:
        OptionInvalid: a negative depth, or an unknown direction or theme.
        NodeNotFound: no such module, or nothing ran in it.
    """
    if options.depth is not None and options.depth < 0:
        raise OptionInvalid(f"depth must be 0 or more, got {options.depth}", field="depth", depth=options.depth)
    for field, value, known in (("direction", options.direction, DIRECTIONS), ("theme", options.theme, THEMES)):
        if value not in known:
            raise OptionInvalid(unknown(field, value, known), field=field, value=value)
    if options.module:
        ran = {path for node in graph.nodes for path in prefixes(node.module)}
        if options.module not in ran:
            if options.module in graph.modules_by_path:
                message = f"nothing ran in module '{options.module}', so there is no inside to draw"
            else:
                message = unknown("module", options.module, sorted(ran))
            raise NodeNotFound(message, field="module", module=options.module)


def check_options(graph: Graph, options: RenderOptions, snapshots: Sequence[Snapshot] = ()) -> None:
    """Raises what drawing the graph with these options would raise of them; see `fxtrace.render.to_dot`."""
    check(graph, options)
    highlighted(graph, options.highlight, snapshots)


def highlighted(
    graph: Graph, highlight: Sequence[str], snapshots: Sequence[Snapshot]
) -> tuple[frozenset[str], frozenset[str]]:
    """The nodes to bring out, and those to draw for it even where they only move elements.

    What is named exactly is drawn, and so is its counterpart in other layers, so that layers stay alike; a prefix
    (`decoder.0`) brings out what is drawn anyway.

    Raises:
        NodeNotFound: no node, role or role prefix of that name.
        SnapshotNotFound: no snapshot of that number, or it is not in this graph.
    """
    lit: set[str] = set()
    exact: set[str] = set()
    for entry in highlight:
        if entry.startswith("#"):
            found = set(_snapshot_nodes(entry, snapshots))
        elif entry in graph.by_name or entry in graph.by_role:
            found = {graph.by_name[entry].name if entry in graph.by_name else graph.by_role[entry].name}
        elif inside := _under(graph, entry):
            lit |= inside
            continue
        else:
            names = (*(p for role in graph.by_role for p in prefixes(role)), *graph.by_name)
            message = unknown("node, role or role prefix", entry, dict.fromkeys(names))
            raise NodeNotFound(message, field="highlight", highlight=entry)
        lit |= found
        exact |= found
    kinds = {_kind(role) for name in exact for role in graph.node(name).roles}
    alike = (node.name for node in graph.nodes if any(_kind(role) in kinds for role in node.roles))
    return frozenset(lit), frozenset(exact.union(alike))


def _under(graph: Graph, prefix: str) -> set[str]:
    """The nodes with a role under a prefix, and those without any role on the way from one of them to another."""
    inside = {
        node.name
        for node in graph.nodes
        for role in node.roles
        if prefix and within(str(role), prefix) and role.part not in TAKEN_FOR
    }
    fed, read = set(inside), set(inside)
    for node in graph.nodes:
        if not node.roles and fed.intersection(node.inputs):
            fed.add(node.name)
    for node in reversed(graph.nodes):
        if not node.roles and read.intersection(graph.users[node.name]):
            read.add(node.name)
    return fed & read


def _kind(role: Role) -> tuple[str, str, str]:
    return role.stack, role.block, role.part


def _snapshot_nodes(entry: str, snapshots: Sequence[Snapshot]) -> Iterator[str]:
    by_number = {f"#{snapshot.number}": snapshot for snapshot in snapshots}
    if entry not in by_number:
        raise SnapshotNotFound(unknown("snapshot", entry, by_number), field="highlight", snapshot=entry)
    snapshot = by_number[entry]
    if not snapshot.found:
        raise SnapshotNotFound(
            f"snapshot {entry} ({snapshot.title}) is not in this graph: {snapshot.reason}",
            field="highlight",
            snapshot=entry,
        )
    yield from (tensor.node for tensor in snapshot.tensors)
