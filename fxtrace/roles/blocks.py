"""Finds residual blocks: a branch of the stream, an attention or a feed-forward, added back to where it left.

    post-norm   a ──▶ branch ──▶ b            s = a + b        the next block reads norm(s)
    pre-norm    norm(a) ──▶ branch ──▶ b      s = a + b        the next block reads s
    parallel    two branches leave at a       s = a + b + c

(Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", names the first two; Wang & Komatsuzaki
2021, GPT-J, has the third.) A branch may be normed or scaled once more before it is added, and the stream be scaled
(Wang et al. 2022, "DeepNet").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fxtrace.graph import Node
from fxtrace.roles.attention import Attention, in_segments, latent_of
from fxtrace.roles.experts import Mixture
from fxtrace.roles.feed_forward import FeedForward, Unknown, feed_forward
from fxtrace.roles.flow import MOVES, PROJECTIONS, Flow, pads, same_rows, shape_of
from fxtrace.roles.scores import scaling

Core = Attention | FeedForward | Mixture | Unknown
"""What a branch does."""
Outputs = dict[str, list[Attention | Mixture]]
"""Attentions and mixtures by the name of the node that ends them."""
_CARRIES = MOVES | PROJECTIONS | {"mul", "add", "join", "mask"}


@dataclass
class Block:
    """A residual block: `total` = `kept` + `branch`; `normed` is the norm of that sum, where there is one.

    `kept` is `skip`, the stream where the branch leaves it, or that scaled. Where branches are parallel, each is a
    block, and they have `total` in common.
    """

    core: Core
    source: Node
    skip: Node
    kept: Node
    branch: Node
    total: Node
    normed: Node | None
    pre_norm: bool
    parallel: bool = False
    unadded: str = ""
    """Why there is no sum of the stream and the core's own result, where there is none."""

    @property
    def result(self) -> Node:
        """What the block hands to the next: the sum, or in a post-norm block its norm."""
        return self.total if self.pre_norm or self.normed is None else self.normed

    @property
    def name(self) -> str:
        """The name of the node that ends the branch: one block each."""
        return self.branch.name


def find_blocks(flow: Flow, attentions: list[Attention], mixtures: list[Mixture]) -> list[Block]:
    """Every residual block in execution order, the unknown ones too."""
    by_output: Outputs = {}
    for mixture in mixtures:
        by_output[mixture.output.name] = [mixture]
    for attention in attentions:
        if attention.output is not None:
            by_output.setdefault(attention.output.name, []).append(attention)
    blocks: list[Block] = []
    totals: dict[str, Block] = {}
    for node in flow.graph.nodes:
        operands = _residual_operands(flow, node, totals, by_output)
        if operands is None:
            continue
        skip, kept, branches, left_at = operands
        norms = [user for user in _past_moves(flow, node) if user.kind == "norm"]
        normed = norms[0] if len(norms) == 1 else None
        for branch in branches:
            core = _core(flow, by_output, branch)
            source = core.sources["query"] if isinstance(core, Attention) else core.source
            position = _enters(flow, left_at, source)
            if position is None and isinstance(core, Attention) and _past_latents(flow, core, left_at):
                source = core.sources["query"]
                position = _enters(flow, left_at, source)
            unadded = ""
            if position is None or isinstance(core, Unknown):
                inside = _inside(flow, attentions, blocks, left_at, branch)
                if inside is not None:
                    core, position, unadded = inside
                    source = core.sources["query"]
                elif not isinstance(core, Unknown):
                    core = Unknown(source, f"its branch starts neither at '{skip.name}' nor at the norm of it")
            if isinstance(core, Unknown):
                core = replace(core, entry=_entry(flow, skip, branch))
                source = core.entry or source
            pre_norm = position == "pre" or (isinstance(core, Unknown) and source.kind == "norm")
            block = Block(core, source, skip, kept, branch, node, normed, pre_norm, len(branches) > 1, unadded)
            blocks.append(block)
            totals[node.name] = block
    return sorted((*_starting(flow, attentions, blocks), *blocks), key=lambda block: flow.index[block.total.name])


def _starting(flow: Flow, attentions: list[Attention], blocks: list[Block]) -> Iterator[Block]:
    """The attentions whose results residual streams start from, with nothing added to them, as blocks."""
    taken = {id(block.core) for block in blocks}
    skips = {block.skip.name for block in blocks}
    ends = {node.name for block in blocks for node in flow.back(block.branch, MOVES | {"norm"})}
    for attention in attentions:
        source = attention.sources.get("query")
        if id(attention) in taken or attention.output is None or source is None:
            continue
        end = attention.output
        if end.name in ends:
            continue  # one of several in that block
        if end.name in skips or flow.forward(end, MOVES, lambda user: user.name in skips) is not None:
            unadded = "nothing is added to the attention's result: a stream starts from it"
            yield Block(attention, source, source, source, end, end, None, pre_norm=True, unadded=unadded)


def _inside(
    flow: Flow, attentions: list[Attention], blocks: list[Block], left_at: tuple[Node, ...], branch: Node
) -> tuple[Attention, str, str] | None:
    """The one attention of a branch that does more, how its input comes from the stream, and what comes after.

    More before it is something that is joined with the stream; more after it is anything but another projection, as of
    experts that work on some tokens each.
    """
    first, last = min(flow.index[node.name] for node in left_at), flow.index[branch.name]
    taken = {id(block.core) for block in blocks}
    there = [
        each
        for each in attentions
        if id(each) not in taken
        and first < flow.index[each.core.name] < last
        and each.head_outputs is not None
        and flow.is_ancestor(each.head_outputs, branch)
    ]
    if len(there) != 1 or "query" not in there[0].sources or there[0].head_outputs is None:
        return None
    names, source = {node.name for node in left_at}, there[0].sources["query"]
    left, _ = flow.nearest(source, lambda node: node.name in names, MOVES | {"norm", "join"})
    if not left:
        return None
    position = "pre" if any(node.kind == "norm" for node in flow.path_back(source, left[0])) else "post"
    after = [node.kind for node in flow.path_back(branch, there[0].head_outputs)[1:]]
    goes_on = not set(after) <= _CARRIES
    if goes_on and sum(kind in PROJECTIONS for kind in after) < 2:
        return None  # not another step, but something unknown done to the attention's own result
    unadded = f"the branch goes on after the attention: '{branch.name}' is what is added to the stream"
    return there[0], position, unadded if goes_on else ""


def _residual_operands(
    flow: Flow, node: Node, totals: dict[str, Block], by_output: Outputs
) -> tuple[Node, Node, tuple[Node, ...], tuple[Node, ...]] | None:
    """(skip, what is added of it, branches, where a branch may have left) of a residual sum.

    A residual sum adds computed tensors of its own shape, one of them an ancestor of the others. Where the skip is
    itself a residual sum, the branch may have left before it: the two blocks are parallel.
    """
    operands = [each for each in flow.inputs(node) if flow.computed(each)]
    if node.kind != "add" or len(operands) != 2 or any(shape_of(each) != shape_of(node) for each in operands):
        return None
    first, second = sorted(operands, key=lambda each: flow.index[each.name])
    if flow.is_ancestor(first, second):
        if _is_stream(flow, second, totals) and not _is_stream(flow, first, totals):
            return None  # positions added to the stream, which were added to it before
        return first, first, _split(flow, second, first, by_output), (first,)
    for skip, branch in ((first, second), (second, first)):
        before = totals.get(skip.name)
        if before is not None and flow.is_ancestor(before.skip, branch):
            return skip, skip, (branch,), (skip, before.skip)
        scaled = scaling(flow, skip)
        if scaled is not None and flow.is_ancestor(scaled[0], branch):
            return scaled[0], skip, _split(flow, branch, scaled[0], by_output), (scaled[0],)
    return None


def _is_stream(flow: Flow, node: Node, totals: dict[str, Block]) -> bool:
    """Whether a tensor is what a residual block reads or gives, or a norm of that."""
    ends = totals.keys() | {block.skip.name for block in totals.values()}
    return any(each.name in ends for each in flow.back(node, MOVES | {"norm"}))


def _split(flow: Flow, branch: Node, skip: Node, by_output: Outputs) -> tuple[Node, ...]:
    """The branches that a sum joins before it is added to the stream; the branch itself where it joins none."""
    for node in flow.back(branch, MOVES):
        if node.name in by_output:
            break
        operands = [each for each in flow.inputs(node) if flow.computed(each)]
        if node.kind != "add" or len(operands) != 2 or shape_of(node) != shape_of(branch):
            continue
        first, second = sorted(operands, key=lambda each: flow.index[each.name])
        apart = not flow.is_ancestor(first, second)
        if apart and all(flow.is_ancestor(skip, each) for each in operands):
            return tuple(part for each in operands for part in _split(flow, each, skip, by_output))
    return (branch,)


def _core(flow: Flow, by_output: Outputs, branch: Node) -> Core:
    """What a branch does, seen through what is done to its result: moves, a norm, a scaling."""
    here = branch
    while here.kind not in PROJECTIONS and here.name not in by_output:
        scaled = scaling(flow, here)
        before = scaled[0] if scaled is not None else flow.data_input(here)
        by_parameters = here.kind == "mul" and sum(flow.computed(each) for each in flow.inputs(here)) == 1
        if here.kind == "join":
            return Unknown(here, f"its branch is joined of several results in '{here.name}'")
        if before is None or not (scaled is not None or by_parameters or here.kind in MOVES | {"norm"}):
            return Unknown(here, f"its branch ends in '{here.name}', which is no projection")
        here = before
    cores = by_output.get(here.name)
    if cores is None:
        return feed_forward(flow, here)
    several = [each for each in cores if isinstance(each, Attention)] if len(cores) > 1 else []
    together = in_segments(several) if several else None
    if together is None and len(cores) > 1:
        names = ", ".join(f"'{each.core.name}'" for each in several)
        return Unknown(here, f"'{here.name}' projects the results of {len(cores)} attentions at once ({names})")
    core = together or cores[0]
    if isinstance(core, Attention) and "query" not in core.sources:
        return Unknown(here, core.refused.get("query", "its queries come from no projection"))
    return core


def _enters(flow: Flow, left_at: tuple[Node, ...], source: Node) -> str | None:
    """How a branch's input comes from the stream: as it is (`post`), normed first (`pre`), or not at all (None).

    What does not depend on the stream may be added on the way, as positions are.
    """
    names = {node.name for node in left_at}
    for node in _unscaled(flow, source):
        if node.name in names:
            return "post"
        if node.kind == "norm":
            entry = flow.data_input(node)
            if entry is not None and any(each.name in names for each in _unscaled(flow, entry)):
                return "pre"
    operands = flow.inputs(node)
    if node.kind == "add" and len(operands) == 2:
        for each, other in (operands, operands[::-1]):
            if shape_of(each) == shape_of(node) and not any(flow.is_ancestor(at, other) for at in left_at):
                return _enters(flow, left_at, each)
    return None


def _entry(flow: Flow, skip: Node, branch: Node) -> Node | None:
    """What alone a branch reads: the norm of the stream, or the stream where it reads no norm of it."""
    norms = {user.name: user for user in _past_moves(flow, skip) if user.kind == "norm"}
    behind = {node.name for node in flow.ancestors(branch, until=lambda node: node.name in norms)}
    read = [norm for name, norm in norms.items() if name in behind]
    if not read:
        return skip
    return read[0] if len(read) == 1 and skip.name not in behind else None


def _unscaled(flow: Flow, node: Node) -> Iterator[Node]:
    """The node, and those that it is moved, padded or scaled from."""
    here: Node | None = node
    while here is not None:
        yield here
        scaled = scaling(flow, here)
        moved = here.kind in MOVES or pads(here)
        here = scaled[0] if scaled is not None else flow.data_input(here) if moved else None


def _past_latents(flow: Flow, core: Attention, left_at: tuple[Node, ...]) -> bool:
    """Moves an attention's sources from its latents to where those leave the stream; whether the queries do."""
    for part, source in list(core.sources.items()):
        if part in core.latents or _enters(flow, left_at, source) is not None:
            continue
        found = latent_of(flow, core.projections[part])
        before = flow.data_input(found[1]) if found is not None else None
        if found is not None and before is not None and _enters(flow, left_at, before) is not None:
            core.latents[part], core.sources[part] = found[0], before
    return _enters(flow, left_at, core.sources["query"]) is not None


def _past_moves(flow: Flow, node: Node) -> list[Node]:
    """The users of a node, seen through what leaves its rows as they are."""
    return [
        reached
        for user in flow.users(node)
        for reached in (_past_moves(flow, user) if same_rows(flow, user) else [user])
    ]
