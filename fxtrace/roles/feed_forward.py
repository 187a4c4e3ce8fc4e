"""Finds feed-forwards: projections with an activation between them.

    source ─▶ hidden ─▶ activation ─▶ output

    source ─▶ gate ─▶ activation ─┐
                                  ├─▶ × ─▶ output
    source ─▶ up ─────────────────┘

(Vaswani et al. 2017, section 3.3; Shazeer 2020, "GLU Variants Improve Transformer", has the gated one.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from fxtrace.graph import Node
from fxtrace.roles.flow import MOVES, PROJECTIONS, Flow

# Between the projections of a feed-forward: an activation, which may be written out, and perhaps a gate.
INNER = MOVES | {"activation", "elementwise", "mul", "add", "sub", "div"}


@dataclass
class FeedForward:
    """Projections with an activation between them; two side by side where one gates the other."""

    source: Node
    activated: Node
    output: Node
    hidden: Node | None = None
    gate: Node | None = None
    up: Node | None = None
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Unknown:
    """A branch that is none of the known kinds, and why. `entry` is what alone it reads: the stream, or its norm."""

    source: Node
    reason: str
    entry: Node | None = None


def is_projection(node: Node) -> bool:
    """Whether an op mixes features by parameters."""
    return node.kind in PROJECTIONS


def feed_forward(
    flow: Flow,
    output: Node,
    projects: Callable[[Node], bool] = is_projection,
    given: Collection[str] = (),
    between: Collection[str] = INNER,
) -> FeedForward | Unknown:
    """The feed-forward that a projection ends, or why there is none.

    Args:
        flow: of the graph.
        output: the last projection.
        projects: what counts as a projection.
        given: names of nodes that are no data of it: indices, rows of parameters.
        between: the kinds of ops between the projections.
    """
    activated = data_of(flow, output, given)
    firsts, complete = flow.nearest(activated, projects, between, given) if activated is not None else ([], False)
    if activated is None or not firsts or not complete:
        return Unknown(output, f"'{output.name}' ends a branch that is neither an attention nor a feed-forward")
    sources = {source.name: source for first in firsts if (source := data_of(flow, first, given)) is not None}
    if len(sources) != 1:
        return Unknown(output, f"the projections before '{output.name}' read different tensors")
    paths = {first.name: flow.path_back(activated, first)[1:] for first in firsts}
    inner = nodes_between(flow, activated, {first.name for first in firsts} | set(given))
    if not has_activation(inner):
        return Unknown(output, f"there is no activation before '{output.name}'")
    block = FeedForward(next(iter(sources.values())), activated, output)
    if len(firsts) == 1 and not any(node.kind == "select" for node in inner):
        block.hidden = firsts[0]
    elif len(firsts) == 1:
        block.refused["hidden"] = f"'{firsts[0].name}' holds the gate and what it gates in one tensor"
    else:
        names = ", ".join(f"'{each.name}'" for each in firsts)
        block.refused["hidden"] = f"{len(firsts)} projections ({names}) meet in a gate: none alone is the hidden layer"
        plain = [each for each in firsts if all(node.kind in MOVES | {"mul"} for node in paths[each.name])]
        if len(firsts) == 2 and len(plain) == 1:
            block.up = plain[0]
            block.gate = next(each for each in firsts if each is not plain[0])
    return block


def data_of(flow: Flow, node: Node, given: Collection[str] = ()) -> Node | None:
    """The first input that depends on the model's inputs and is not among those given."""
    return next((each for each in flow.inputs(node) if flow.computed(each) and each.name not in given), None)


def has_activation(nodes: Iterable[Node]) -> bool:
    """Whether one of the nodes is an activation, written out or not."""
    return any(node.kind in ("activation", "elementwise") for node in nodes)


def nodes_between(flow: Flow, activated: Node, ends: Collection[str]) -> list[Node]:
    """A node and all that it depends on, up to the nodes named in `ends`."""
    found = {activated.name: activated}
    stack = [activated]
    while stack:
        for each in flow.inputs(stack.pop()):
            if each.name not in found and each.name not in ends and flow.computed(each):
                found[each.name] = each
                stack.append(each)
    return list(found.values())
