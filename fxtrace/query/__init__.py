"""Asking a graph for nodes: by a condition, by what flows into or out of a node, and along paths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from fxtrace.errors import NodeNotFound, QueryInvalid, unknown
from fxtrace.graph import Graph, Node
from fxtrace.ir.trace import NodeQuery, QueryResult
from fxtrace.query.expressions import matching
from fxtrace.query.patterns import Pattern

if TYPE_CHECKING:
    import networkx as nx  # imported where paths are looked for: it takes longer than most queries

__all__ = ["MAX_PATHS", "MAX_PATH_NODES", "find"]

MAX_PATHS = 5000
MAX_PATH_NODES = 20_000


def find(graph: Graph, query: NodeQuery) -> QueryResult:
    """The nodes, or the paths, that a query means.

    The time is bounded: linear in the graph and the paths found, for an expression at most `expressions.MAX_SECONDS`.
    At most `MAX_PATHS` paths are looked for, of about `MAX_PATH_NODES` nodes together.

    Raises:
        NodeNotFound: a named node or role is not in the graph; the nearest is suggested.
        QueryInvalid: the expression or the pattern cannot be understood, with its place, or the parts do not fit.
        TooLarge: the expression or the pattern takes too long on this graph.
        DependencyMissing: there is an expression, and its language is not installed.
    """
    if query.path and query.pattern:
        raise QueryInvalid("expected a path or a pattern; got both", field="query.path")
    pattern = Pattern.parse(query.pattern) if query.pattern else None
    ends = tuple(_named(graph, name, "path").name for name in query.path or ())
    chosen = _chosen(graph, query)
    if pattern is not None:
        return _paths(graph, pattern.paths(graph, chosen))
    if ends:
        return _paths(graph, _shortest_paths(graph, chosen.keys() | set(ends), *ends))
    return QueryResult(tuple(chosen.values()))


def _chosen(graph: Graph, query: NodeQuery) -> Mapping[str, Node]:
    """The nodes that the query chooses, paths apart, by name and in execution order."""
    nodes: Iterable[Node] = graph.nodes
    if query.max_depth is not None:
        if query.max_depth < 1:
            raise QueryInvalid(f"max_depth: expected 1 or more; got {query.max_depth}", field="query.max_depth")
        if not (query.ancestors_of or query.descendants_of):
            raise QueryInvalid("max_depth: expected ancestors_of or descendants_of with it", field="query.max_depth")
    if query.expression:
        nodes = matching(graph, query.expression)
    for name, field in ((query.ancestors_of, "ancestors_of"), (query.descendants_of, "descendants_of")):
        if name:
            start = _named(graph, name, field).name
            near = _near(graph, start, query.max_depth, backwards=field == "ancestors_of")
            nodes = [node for node in nodes if node.name in near and node.name != start]
    return {node.name: node for node in nodes}


def _near(graph: Graph, start: str, most: int | None, *, backwards: bool) -> Mapping[str, int]:
    """How many edges away nodes are that a node's value flows into, or backwards those that flow into it."""
    import networkx as nx

    flow = _flow(graph, graph.by_name)
    return nx.single_source_shortest_path_length(flow.reverse(copy=False) if backwards else flow, start, most)


def _shortest_paths(graph: Graph, through: Iterable[str], source: str, target: str) -> Iterable[list[str]]:
    import networkx as nx

    flow = _flow(graph, through)
    return nx.all_shortest_paths(flow, source, target) if nx.has_path(flow, source, target) else ()


def _flow(graph: Graph, names: Iterable[str]) -> nx.DiGraph[str]:
    """The dataflow between nodes of these names: an edge from each to those that read its value."""
    import networkx as nx

    kept = set(names)
    flow: nx.DiGraph[str] = nx.DiGraph()
    flow.add_nodes_from(kept)
    flow.add_edges_from((name, user) for name in kept for user in graph.users[name] if user in kept)
    return flow


def _paths(graph: Graph, paths: Iterable[Iterable[str]]) -> QueryResult:
    """The first of these paths, as many as the limits allow."""
    found: list[tuple[str, ...]] = []
    room = MAX_PATH_NODES
    for path in map(tuple, paths):
        room -= len(path)
        if found and (room < 0 or len(found) == MAX_PATHS):
            truncated = True
            break
        found.append(path)
    else:
        truncated = False
    nodes = dict.fromkeys(name for path in found for name in path)
    return QueryResult(tuple(graph.by_name[name] for name in nodes), tuple(found), truncated)


def _named(graph: Graph, name: str, field: str) -> Node:
    node = graph.by_name.get(name) or graph.by_role.get(name)
    if node is None:
        message = unknown("node or role", name, (*graph.by_role, *graph.by_name))
        raise NodeNotFound(f"{field}: {message}", field=f"query.{field}", node=name)
    return node
