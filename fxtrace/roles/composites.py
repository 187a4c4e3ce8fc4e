"""Norms that are written out: one op in a textbook, half a dozen nodes in a graph.

    x ─▶ (x²) ─▶ mean ─▶ + ε ─▶ rsqrt ─┐
    x ──────────────────────────────────×─▶ normalised ─▶ × γ ─▶ (+ β)

(Zhang & Sennrich 2019, "Root Mean Square Layer Normalization"; a layer norm subtracts the mean of x first.)
"""

from __future__ import annotations

from dataclasses import dataclass

from fxtrace.graph import Graph, Node

_INSIDE = frozenset({"reduce", "elementwise", "mul", "add", "sub", "div", "cast", "view"})


@dataclass(frozen=True, slots=True)
class WrittenNorm:
    """A norm over several nodes: from `source` to `normalised`, then times γ and plus β to `result`."""

    source: str
    normalised: str
    result: str


def find_written_norms(graph: Graph) -> list[WrittenNorm]:
    """The written-out norms of a graph, in execution order."""
    return [norm for node in graph.nodes if (norm := _at(graph, node)) is not None]


def _at(graph: Graph, node: Node) -> WrittenNorm | None:
    """The norm whose product with 1/σ, or quotient by σ, is this node."""
    operands = [graph.by_name[name] for name in node.inputs]
    if node.kind not in ("mul", "div") or len(operands) != 2 or node.spec is None:
        return None
    for numerator, scale in (operands, operands[::-1]):
        if node.kind == "div" and scale is not operands[1]:
            continue
        root = _name(scale)
        if root not in (("rsqrt",) if node.kind == "mul" else ("sqrt", "std")) or numerator.spec is None:
            continue
        if scale.spec is None or scale.spec.shape != (*numerator.spec.shape[:-1], 1):
            continue
        source = _source(graph, numerator, scale)
        if source is not None:
            return WrittenNorm(_uncast(graph, source).name, node.name, _scaled(graph, node).name)
    return None


def _source(graph: Graph, numerator: Node, scale: Node) -> Node | None:
    """What is normalised: the numerator, or where that is x − mean(x), x; if the scale is made of nothing else."""
    candidates = [numerator]
    if numerator.kind == "sub":
        candidates = [graph.by_name[numerator.inputs[0]]]
    for source in candidates:
        seen, stack, reduced = set(), [scale], False
        while stack:
            here = stack.pop()
            if here.name in seen or here.name in (source.name, numerator.name):
                continue
            seen.add(here.name)
            if here.kind not in _INSIDE:
                return None
            reduced = reduced or here.kind == "reduce"
            stack += [graph.by_name[name] for name in here.inputs if graph.by_name[name].kind != "size"]
        if reduced:
            return source
    return None


def _scaled(graph: Graph, node: Node) -> Node:
    """The node, times a parameter, plus a parameter, where that is what follows."""
    for kind in ("mul", "add"):
        here = node
        while len(users := [graph.by_name[name] for name in graph.users[here.name]]) == 1 and users[0].kind == "cast":
            here = users[0]
        if len(users) == 1 and users[0].kind == kind and _adds_parameters_only(graph, users[0], here):
            node = users[0]
    here = node
    users = [graph.by_name[name] for name in graph.users[here.name]]
    return users[0] if len(users) == 1 and users[0].kind == "cast" else node


def _adds_parameters_only(graph: Graph, node: Node, computed: Node) -> bool:
    """Whether a node's other operand comes from parameters alone and is a vector of features."""
    others = [graph.by_name[name] for name in node.inputs if name != computed.name]
    if len(others) != 1 or others[0].spec is None or node.spec is None:
        return False
    stack, seen = [others[0]], 0
    while stack and seen < 16:
        here = stack.pop()
        seen += 1
        if here.kind == "constant":
            continue
        if not here.inputs or here.kind not in _INSIDE:
            return False
        stack += [graph.by_name[name] for name in here.inputs]
    return not stack and others[0].spec.shape[-1:] == node.spec.shape[-1:]


def _uncast(graph: Graph, node: Node) -> Node:
    while node.kind == "cast" and node.inputs:
        node = graph.by_name[node.inputs[0]]
    return node


def _name(node: Node) -> str:
    return node.target.rpartition(".")[2].rstrip("_")
