"""Finds residual blocks: a branch of the stream, an attention or a feed-forward, added back to where it left.

    post-norm   a ──▶ branch ──▶ b      s = a + b      the next block reads norm(s)
    pre-norm    norm(a) ──▶ branch ──▶ b    s = a + b      the next block reads s

(Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", names the two.)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fxtrace.graph import Node
from fxtrace.roles.attention import Attention
from fxtrace.roles.flow import MOVES, PROJECTIONS, Flow, shape_of

# Between the two projections of a feed-forward; a product there is a gate.
_INNER = MOVES | {"activation", "elementwise", "mul"}


@dataclass
class FeedForward:
    """Two projections with an activation between them."""

    source: Node
    hidden: Node | None
    activated: Node
    output: Node
    refused: dict[str, str] = field(default_factory=dict)


@dataclass
class Block:
    """A residual block: `total` = `skip` + `branch`; `normed` is the norm of that sum, where there is one."""

    core: Attention | FeedForward
    source: Node
    skip: Node
    branch: Node
    total: Node
    normed: Node | None
    pre_norm: bool

    @property
    def result(self) -> Node:
        """What the block hands to the next: the sum, or in a post-norm block its norm."""
        return self.total if self.pre_norm or self.normed is None else self.normed


def find_blocks(flow: Flow, attentions: list[Attention]) -> tuple[list[Block], dict[str, str]]:
    """Every residual block in execution order, and the residual sums that are none of the known kinds, with why."""
    by_output = {attention.output.name: attention for attention in attentions if attention.output is not None}
    blocks: list[Block] = []
    refused: dict[str, str] = {}
    for node in flow.graph.nodes:
        operands = _residual_operands(flow, node)
        if operands is None:
            continue
        skip, branch = operands
        ends = [each for each in flow.back(branch, MOVES) if each.kind in PROJECTIONS]
        core: Attention | FeedForward | str = "its branch does not end in a projection"
        if ends:
            core = by_output.get(ends[0].name) or _feed_forward(flow, ends[0])
        if isinstance(core, str):
            refused[node.name] = core
            continue
        source = core.sources.get("query") if isinstance(core, Attention) else core.source
        position = _enters(flow, skip, source) if source is not None else None
        if source is None or position is None:
            refused[node.name] = f"its branch does not start at '{skip.name}', nor at the norm of it"
            continue
        norms = [user for user in _through_moves(flow, node) if user.kind == "norm"]
        blocks.append(
            Block(core, source, skip, branch, node, norms[0] if len(norms) == 1 else None, pre_norm=position == "pre")
        )
    return blocks, refused


def _residual_operands(flow: Flow, node: Node) -> tuple[Node, Node] | None:
    """(skip, branch) of a residual sum: two computed tensors of the sum's shape, one an ancestor of the other."""
    operands = [each for each in flow.inputs(node) if flow.computed(each)]
    if node.kind != "add" or len(operands) != 2 or any(shape_of(each) != shape_of(node) for each in operands):
        return None
    first, second = sorted(operands, key=lambda each: flow.index[each.name])
    return (first, second) if flow.is_ancestor(first, second) else None


def _enters(flow: Flow, skip: Node, source: Node) -> str | None:
    """How a branch's input comes from the stream: as it is (`post`), normed first (`pre`), or not at all (None)."""
    for node in flow.back(source, MOVES):
        if node.name == skip.name:
            return "post"
        if node.kind == "norm":
            entry = flow.data_input(node)
            if entry is not None and any(each.name == skip.name for each in flow.back(entry, MOVES)):
                return "pre"
    return None


def _through_moves(flow: Flow, node: Node) -> list[Node]:
    """The users of a node, seen through ops that only move elements."""
    return [
        reached
        for user in flow.users(node)
        for reached in (_through_moves(flow, user) if user.kind in ("cast", "dropout") else [user])
    ]


def _feed_forward(flow: Flow, output: Node) -> FeedForward | str:
    activated = flow.data_input(output)
    firsts, complete = flow.nearest(activated, PROJECTIONS, _INNER) if activated is not None else ([], False)
    if activated is None or not firsts or not complete:
        return f"'{output.name}' ends a branch that is neither an attention nor a feed-forward"
    sources = {source.name: source for source in map(flow.data_input, firsts) if source is not None}
    if len(sources) != 1:
        return f"the projections before '{output.name}' read different tensors"
    between = {node.kind for first in firsts for node in flow.path_back(activated, first)}
    if not between & {"activation", "elementwise"}:
        return f"there is no activation before '{output.name}'"
    block = FeedForward(next(iter(sources.values())), firsts[0], activated, output)
    if len(firsts) > 1:
        block.hidden = None
        names = ", ".join(f"'{each.name}'" for each in firsts)
        block.refused["hidden"] = f"{len(firsts)} projections ({names}) meet in a gate: none alone is the hidden layer"
    return block
