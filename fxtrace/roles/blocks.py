"""Finds residual blocks: a branch of the stream, an attention or a feed-forward, added back to where it left.

    post-norm   a ──▶ branch ──▶ b            s = a + b        the next block reads norm(s)
    pre-norm    norm(a) ──▶ branch ──▶ b      s = a + b        the next block reads s
    parallel    two branches leave at a       s = a + b + c

(Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", names the first two; Wang & Komatsuzaki
2021, GPT-J, has the third.) A branch may be normed or scaled once more before it is added.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fxtrace.graph import Node
from fxtrace.roles.attention import Attention, scaling
from fxtrace.roles.flow import MOVES, PROJECTIONS, Flow, shape_of

# Between the projections of a feed-forward: an activation, which may be written out, and perhaps a gate.
_INNER = MOVES | {"activation", "elementwise", "mul", "add", "sub", "div"}


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
    """A branch that is none of the known kinds, and why."""

    source: Node
    reason: str


@dataclass
class Block:
    """A residual block: `total` = `skip` + `branch`; `normed` is the norm of that sum, where there is one.

    Where branches are parallel, each is a block, and they have `total` in common.
    """

    core: Attention | FeedForward | Unknown
    source: Node
    skip: Node
    branch: Node
    total: Node
    normed: Node | None
    pre_norm: bool
    parallel: bool = False

    @property
    def result(self) -> Node:
        """What the block hands to the next: the sum, or in a post-norm block its norm."""
        return self.total if self.pre_norm or self.normed is None else self.normed

    @property
    def name(self) -> str:
        """The name of the node that ends the branch: one block each."""
        return self.branch.name


def find_blocks(flow: Flow, attentions: list[Attention]) -> list[Block]:
    """Every residual block in execution order, the unknown ones too."""
    by_output: dict[str, list[Attention]] = {}
    for attention in attentions:
        if attention.output is not None:
            by_output.setdefault(attention.output.name, []).append(attention)
    blocks: list[Block] = []
    totals: dict[str, Block] = {}
    for node in flow.graph.nodes:
        operands = _residual_operands(flow, node, totals)
        if operands is None:
            continue
        skip, branches, left_at = operands
        norms = [user for user in _past_moves(flow, node) if user.kind == "norm"]
        normed = norms[0] if len(norms) == 1 else None
        for branch in branches:
            core = _core(flow, by_output, branch)
            source = core.sources["query"] if isinstance(core, Attention) else core.source
            position = _enters(flow, left_at, source)
            if position is None and not isinstance(core, Unknown):
                core = Unknown(source, f"its branch starts neither at '{skip.name}' nor at the norm of it")
            pre_norm = position == "pre"
            block = Block(core, source, skip, branch, node, normed, pre_norm, parallel=len(branches) > 1)
            blocks.append(block)
            totals[node.name] = block
    return blocks


def _residual_operands(
    flow: Flow, node: Node, totals: dict[str, Block]
) -> tuple[Node, tuple[Node, ...], tuple[Node, ...]] | None:
    """(skip, branches, where a branch may have left) of a residual sum.

    A residual sum adds computed tensors of its own shape, one of them an ancestor of the others. Where the skip is
    itself a residual sum, the branch may have left before it: the two blocks are parallel.
    """
    operands = [each for each in flow.inputs(node) if flow.computed(each)]
    if node.kind != "add" or len(operands) != 2 or any(shape_of(each) != shape_of(node) for each in operands):
        return None
    first, second = sorted(operands, key=lambda each: flow.index[each.name])
    if flow.is_ancestor(first, second):
        return first, _split(flow, second, first), (first,)
    for skip, branch in ((first, second), (second, first)):
        before = totals.get(skip.name)
        if before is not None and flow.is_ancestor(before.skip, branch):
            return skip, (branch,), (skip, before.skip)
    return None


def _split(flow: Flow, branch: Node, skip: Node) -> tuple[Node, ...]:
    """The branches that a sum joins before it is added to the stream; the branch itself where it joins none."""
    for node in flow.back(branch, MOVES):
        operands = [each for each in flow.inputs(node) if flow.computed(each)]
        if node.kind != "add" or len(operands) != 2 or shape_of(node) != shape_of(branch):
            continue
        first, second = sorted(operands, key=lambda each: flow.index[each.name])
        apart = not flow.is_ancestor(first, second)
        if apart and all(flow.is_ancestor(skip, each) for each in operands):
            return (*_split(flow, operands[0], skip), *_split(flow, operands[1], skip))
    return (branch,)


def _core(flow: Flow, by_output: dict[str, list[Attention]], branch: Node) -> Attention | FeedForward | Unknown:
    """What a branch does, seen through what is done to its result: moves, a norm, a scaling."""
    here = branch
    while here.kind not in PROJECTIONS:
        scaled = scaling(flow, here)
        before = scaled[0] if scaled is not None else flow.data_input(here)
        by_parameters = here.kind == "mul" and sum(flow.computed(each) for each in flow.inputs(here)) == 1
        if here.kind == "join":
            return Unknown(here, f"its branch is joined of several results in '{here.name}'")
        if before is None or not (scaled is not None or by_parameters or here.kind in MOVES | {"norm"}):
            return Unknown(here, f"its branch ends in '{here.name}', which is no projection")
        here = before
    attentions = by_output.get(here.name)
    if attentions is None:
        return _feed_forward(flow, here)
    if len(attentions) > 1:
        names = ", ".join(f"'{each.core.name}'" for each in attentions)
        return Unknown(here, f"'{here.name}' projects the results of {len(attentions)} attentions at once ({names})")
    attention = attentions[0]
    if "query" not in attention.sources:
        return Unknown(here, attention.refused.get("query", "its queries come from no projection"))
    return attention


def _enters(flow: Flow, left_at: tuple[Node, ...], source: Node) -> str | None:
    """How a branch's input comes from the stream: as it is (`post`), normed first (`pre`), or not at all (None).

    What does not depend on the stream may be added on the way, as positions are.
    """
    names = {node.name for node in left_at}
    for node in flow.origin(source):
        if node.name in names:
            return "post"
        if node.kind == "norm":
            entry = flow.data_input(node)
            if entry is not None and any(each.name in names for each in flow.back(entry, MOVES)):
                return "pre"
    operands = flow.inputs(node)
    if node.kind == "add" and len(operands) == 2:
        for each, other in (operands, operands[::-1]):
            if shape_of(each) == shape_of(node) and not any(flow.is_ancestor(at, other) for at in left_at):
                return _enters(flow, left_at, each)
    return None


def _past_moves(flow: Flow, node: Node) -> list[Node]:
    """The users of a node, seen through casts and dropout."""
    return [
        reached
        for user in flow.users(node)
        for reached in (_past_moves(flow, user) if user.kind in ("cast", "dropout") else [user])
    ]


def _feed_forward(flow: Flow, output: Node) -> FeedForward | Unknown:
    activated = flow.data_input(output)
    firsts, complete = flow.nearest(activated, PROJECTIONS, _INNER) if activated is not None else ([], False)
    if activated is None or not firsts or not complete:
        return Unknown(output, f"'{output.name}' ends a branch that is neither an attention nor a feed-forward")
    sources = {source.name: source for source in map(flow.data_input, firsts) if source is not None}
    if len(sources) != 1:
        return Unknown(output, f"the projections before '{output.name}' read different tensors")
    paths = {first.name: flow.path_back(activated, first)[1:] for first in firsts}
    between = flow.ancestors(activated, until=lambda node: node.kind in PROJECTIONS)
    if not any(node.kind in ("activation", "elementwise") for node in (activated, *between)):
        return Unknown(output, f"there is no activation before '{output.name}'")
    block = FeedForward(next(iter(sources.values())), activated, output)
    if len(firsts) == 1 and not any(node.kind == "select" for node in paths[firsts[0].name]):
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
