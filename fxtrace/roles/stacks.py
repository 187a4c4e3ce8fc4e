"""Orders blocks into stacks and layers, and finds what stands before the first and after the last.

A stack is one residual stream: the tensors that residual sums and norms hand on. A stream whose attention reads
another stream is a decoder, the stream it reads is an encoder; a stream alone is a decoder if its attention is causal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from networkx.utils import UnionFind

from fxtrace.graph import Node
from fxtrace.roles.attention import Attention
from fxtrace.roles.blocks import Block
from fxtrace.roles.feed_forward import Unknown
from fxtrace.roles.flow import MOVES, Flow, shape_of
from fxtrace.roles.scores import Factor, scaling

_PASSES = frozenset({"norm", "cast", "dropout"})

UNKNOWN = "branch"
"""A residual branch that is not shown to be more: a state-space mixer, say, or a Fourier transform."""
UNKNOWN_ATTENTION = "unknown_attention"
"""An attention that is refused, or whose kind cannot be told: its layer is counted, its parts are not labelled."""


@dataclass
class Embedding:
    """The way from token ids to the first block's input. `positions` is what is added to the looked-up rows."""

    result: Node
    lookup: Node | None = None
    tokens: Node | None = None
    positions: Node | None = None
    scaled: bool = False
    plain: bool = False
    """Whether nothing but the sum with the positions lies between the lookup and the result."""
    weight: str = ""
    weight_slice: Node | None = None
    refused: dict[str, str] = field(default_factory=dict)


@dataclass
class Layer:
    """Blocks from one self-attention up to the next, by kind."""

    blocks: dict[str, Block]

    @property
    def source(self) -> Node:
        """What the layer reads."""
        return next(iter(self.blocks.values())).skip

    @property
    def result(self) -> Node:
        """What the layer hands on."""
        return list(self.blocks.values())[-1].result


@dataclass
class Stack:
    """A residual stream with its layers. `name` is its kind, numbered from the second of that kind on."""

    kind: str
    name: str
    embedding: Embedding
    layers: list[Layer]


@dataclass
class Head:
    """From a stack's last state to the logits."""

    hidden: Node
    logits: Node | None
    logits_slice: Node | None
    projection: Node | None = None
    """The logits themselves, or what they are scaled from."""
    factors: tuple[Factor, ...] = ()
    """The scalings between the two."""


class Streams:
    """Which residual stream a tensor belongs to."""

    def __init__(self, flow: Flow, blocks: list[Block]) -> None:
        self._flow = flow
        self._classes = UnionFind(node.name for node in flow.graph.nodes)
        first: dict[str, Node] = {}
        for block in blocks:
            *_, start = flow.origin(block.skip)
            # Two streams may start from one tensor: then the sums of neither lie behind those of the other.
            if flow.is_ancestor(first.setdefault(start.name, block.total), block.total):
                self._classes.union(block.total.name, start.name)
        for node in flow.graph.nodes:
            before = flow.data_input(node) if node.kind in _PASSES else None
            if before is not None:
                *_, start = flow.origin(before)
                self._classes.union(node.name, start.name)
        self.residual = {self._classes[block.total.name] for block in blocks}

    def of(self, node: Node) -> str:
        """The stream of a tensor, seen through what rearranges it and positions added to it; an opaque key."""
        *_, node = self._flow.origin(node)
        key: str = self._classes[node.name]
        if node.kind == "add" and key not in self.residual:
            streams = {self.of(each) for each in self._flow.inputs(node)} & self.residual
            return streams.pop() if len(streams) == 1 else key
        return key


def attention_kind(flow: Flow, streams: Streams, block: Block, causal: Callable[[Attention], bool | str]) -> str:
    """`self_attention`, `masked_self_attention` or `cross_attention`; or, after a colon, why it cannot be said.

    Cross-attention reads its keys from another stack, or from inputs that its own stack does not start from. A
    bottleneck on the way from the own stream to the keys changes nothing, nor does a convolution that makes them fewer:
    that is self-attention.
    """
    core = block.core
    assert isinstance(core, Attention)
    memory, source = core.sources.get("key"), core.sources.get("query")
    if memory is None or source is None:
        return ": its keys and queries do not each come from one projection"
    if core.sources.get("value", memory).name != memory.name and streams.of(core.sources["value"]) != streams.of(
        memory
    ):
        return ": its keys and its values come from different streams"
    own = streams.of(source)
    if streams.of(memory) != own:
        if streams.of(memory) in streams.residual:
            return "cross_attention"
        if not flow.inputs_of[memory.name] & flow.inputs_of[_start(flow, streams, own).name]:
            return "cross_attention"
        behind = {streams.of(each) for each in flow.ancestors(memory, until=lambda node: streams.of(node) == own)}
        if own not in behind or behind & streams.residual - {own}:
            return f": its keys come from '{memory.name}', which is neither of its own stack nor another stack's output"
    masked = causal(core)
    if isinstance(masked, str):
        return f": {masked}"
    return "masked_self_attention" if masked else "self_attention"


def _start(flow: Flow, streams: Streams, stream: str) -> Node:
    return next(node for node in flow.graph.nodes if flow.computed(node) and streams.of(node) == stream)


def find_stacks(flow: Flow, streams: Streams, blocks: list[Block], kinds: dict[str, str]) -> list[Stack]:
    """The stacks in execution order.

    Args:
        flow: of the graph.
        streams: of its tensors.
        blocks: every residual block.
        kinds: each block's kind by the block's name; `UNKNOWN` and `UNKNOWN_ATTENTION` where it has none.
    """
    by_stream: dict[str, list[Block]] = {}
    for block in blocks:
        by_stream.setdefault(streams.of(block.total), []).append(block)
    read = {
        streams.of(block.core.sources["key"])
        for block in blocks
        if isinstance(block.core, Attention) and kinds[block.name] == "cross_attention"
    }
    stacks: list[Stack] = []
    for stream, members in by_stream.items():
        members = list(_handed_on(flow, members))
        has = {kinds[block.name] for block in members}
        if has <= {UNKNOWN, UNKNOWN_ATTENTION} and (len(members) < 2 or not all(_normed(block) for block in members)):
            continue  # a written-out activation, say, also adds a tensor to what is computed from it
        decodes = "cross_attention" in has or (stream not in read and "masked_self_attention" in has)
        name = "decoder" if decodes else "encoder" if any("attention" in kind for kind in has) else "stack"
        alike = sum(stack.kind == name for stack in stacks)
        for block in members:
            if isinstance(block.core, Unknown) and block.core.entry is None:
                block.pre_norm = any(each.pre_norm for each in members)
        layers = _layers(members, [_look(flow, block, kinds[block.name]) for block in members])
        numbered = f"{name}_{alike + 1}" if alike else name
        stacks.append(Stack(name, numbered, find_embedding(flow, layers[0].source), layers))
    return stacks


def _handed_on(flow: Flow, members: list[Block]) -> Iterator[Block]:
    """The blocks of a stream without those unknown ones whose sums the stream does not go on with."""
    read = {each.name for block in members for each in flow.back(block.skip, MOVES | {"norm"})}
    last = members[-1].total.name
    for block in members:
        if not isinstance(block.core, Unknown) or block.total.name == last or block.total.name in read:
            yield block


def _normed(block: Block) -> bool:
    """Whether a block stands at a norm, as the blocks of a transformer and of what is built like one do."""
    return block.normed is not None or block.source.kind == "norm"


def _look(flow: Flow, block: Block, kind: str) -> str:
    """A block's kind; what cannot be told apart by that, is by the ops of its branch."""
    if kind != UNKNOWN:
        return kind
    behind = flow.ancestors(block.branch, until=lambda node: node is block.skip)
    inside = [
        node.kind if node.op == "call_module" else node.target
        for node in behind
        if node is not block.skip and flow.is_ancestor(block.skip, node)
    ]
    return f"{UNKNOWN}: {sorted(inside)}"


def _layers(blocks: list[Block], looks: list[str]) -> list[Layer]:
    """Cuts a stack's blocks into layers, by the shortest period of their kinds.

    Unknown blocks before the first layer and after the last belong to none. Where the kinds have no period, a layer
    begins with the attention that follows something else.
    """
    sequence = [look.partition(":")[0] for look in looks]
    known = [i for i, kind in enumerate(sequence) if kind != UNKNOWN] or [0, len(blocks) - 1]
    starts, stops = range(known[0] + 1), range(len(blocks), known[-1], -1)
    cuts = ((start, stop, _period(looks[start:stop])) for start in starts for stop in stops)
    start, stop, period = next((cut for cut in cuts if cut[2]), (known[0], known[-1] + 1, 0))
    layers: list[Layer] = []
    for i in range(start, stop):
        attends = i > start and "attention" in sequence[i] and "attention" not in sequence[i - 1]
        if i == start or ((i - start) % period == 0 if period else attends):
            layers.append(Layer({}))
        here = layers[-1].blocks
        alike = sum(name.rstrip("_0123456789") == sequence[i] for name in here)
        here[sequence[i] if not alike else f"{sequence[i]}_{alike + 1}"] = blocks[i]
    return layers


def _period(looks: list[str]) -> int:
    """The shortest period of blocks that comes more than once; 0 where there is none.

    A mixture of experts stands where other layers may have a feed-forward. Where nothing else repeats, an unknown kind
    stands for any that it may be: for a feed-forward, or, before a feed-forward, for an attention, as a hybrid's
    state-space mixers do.
    """
    looks = ["feed_forward" if look == "mixture_of_experts" else look for look in looks]
    kinds = [look.partition(":")[0] for look in looks]
    return _shortest(looks, _alike) or _shortest(kinds, _alike) or _shortest(kinds, _may_be_alike)


def _shortest(sequence: list[str], fits: Callable[[set[str], list[set[str]]], bool]) -> int:
    for period in range(1, len(sequence)):
        columns = [set(sequence[offset::period]) for offset in range(period)]
        if len(sequence) % period == 0 and all(fits(column, columns) for column in columns):
            return period
    return 0


def _alike(column: set[str], _: list[set[str]]) -> bool:
    return len(column) == 1


def _may_be_alike(column: set[str], columns: list[set[str]]) -> bool:
    """Whether the blocks at one place of several layers may be of one kind."""
    known = column - {UNKNOWN, UNKNOWN_ATTENTION}
    attention = UNKNOWN_ATTENTION in column or any("attention" in kind for kind in known)
    before_feed_forward = any("feed_forward" in each for each in columns)
    fits = not attention or "feed_forward" not in known
    return len(known) <= 1 and fits and (UNKNOWN not in column or not attention or before_feed_forward)


def find_embedding(flow: Flow, result: Node) -> Embedding:
    """What stands before a stack's first layer, which reads `result`."""
    embedding = Embedding(result)
    # A mask puts the features of images, say, in the places of some tokens.
    lookups, _ = flow.nearest(result, {"embedding"}, MOVES | {"add", "mul", "div", "norm", "elementwise", "mask"})
    by_ids = [each for each in lookups if _token_ids(flow, each) is not None]
    if len(by_ids) != 1:
        why = "no tensor is looked up by token ids" if not by_ids else "several tables are looked up by ids"
        embedding.refused |= dict.fromkeys(
            ("tokens", "token_embeddings", "weight_slice"), f"{why} before '{result.name}'"
        )
        return embedding
    embedding.lookup = lookup = by_ids[0]
    embedding.tokens = _token_ids(flow, lookup)
    path = flow.path_back(result, lookup)
    sums = [node for node in path if node.kind == "add"]
    embedding.plain = len(sums) == 1 and all(node.kind in MOVES for node in path[path.index(sums[0]) + 1 :])
    embedding.scaled = any(scaling(flow, node) is not None for node in path)
    if len(sums) == 1:
        others = [each for each in flow.inputs(sums[0]) if all(each.name != on.name for on in path)]
        embedding.positions = others[0] if len(others) == 1 else None
    embedding.weight = _weight_of(flow, lookup)
    slices = [node for node in flow.graph.nodes if _is_slice_of(flow, node, embedding.weight)]
    if len(slices) == 1:
        embedding.weight_slice = slices[0]
    elif slices:
        embedding.refused["weight_slice"] = f"the graph has {len(slices)} slices of the table '{embedding.weight}'"
    return embedding


def _token_ids(flow: Flow, lookup: Node) -> Node | None:
    """The model input that a lookup's ids are, seen through reshapes; None where they are computed or constant."""
    ids = [each for each in flow.inputs(lookup) if flow.computed(each)]
    if len(ids) != 1:
        return None
    last = list(flow.back(ids[0], MOVES))[-1]
    return last if last.kind == "input" else None


def _weight_of(flow: Flow, lookup: Node) -> str:
    if lookup.op == "call_module":
        return lookup.parameters[0]
    tables = [each for each in flow.inputs(lookup) if each.kind == "constant"]
    return tables[0].target if tables else ""


def _is_slice_of(flow: Flow, node: Node, weight: str) -> bool:
    """Whether a node is a part of a parameter, cut out by selects alone, of the same rank."""
    base = node
    while base.kind == "select" and flow.inputs(base):
        base = flow.inputs(base)[0]
    whole, part = shape_of(base), shape_of(node)
    if base is node or base.kind != "constant" or base.target != weight or whole is None or part is None:
        return False
    return len(part) == len(whole) and not any(user.kind == "select" for user in flow.users(node))


def find_head(flow: Flow, streams: Streams, stack: Stack) -> Head | str:
    """The projection from a stack's last state to the model's output, or why it cannot be told."""
    last = list(stack.layers[-1].blocks.values())[-1]
    stream, after = streams.of(last.total), flow.index[last.total.name]
    found = [
        node
        for node in flow.graph.nodes
        if node.kind == "linear"
        and (entry := flow.data_input(node)) is not None
        and flow.index[entry.name] >= after
        and streams.of(entry) == stream
        and _to_output(flow, node) is not None
    ]
    if not found:
        ends = [each for each in (last.normed, last.total) if each is not None and _is_output(flow, each)]
        return Head(ends[0], None, None) if ends else "nothing that is known of leads from the last state to the output"
    if len(found) > 1:
        return f"{len(found)} projections of the last state reach the output"
    hidden, path = flow.data_input(found[0]), _to_output(flow, found[0])
    assert hidden is not None
    assert path is not None
    scaled = [(node, factor) for node in path if (factor := _factor(flow, node)) is not None]
    logits = scaled[-1][0] if scaled else found[0]
    slices = [node for node in flow.graph.nodes if _is_vector_of(flow, node, logits)]
    factors = tuple(factor for _, factor in scaled)
    return Head(hidden, logits, slices[0] if len(slices) == 1 else None, found[0], factors)


def _to_output(flow: Flow, node: Node) -> list[Node] | None:
    """The path from a node to the model's output through moves and scalings, both ends left out; None without one."""
    path = flow.forward(node, MOVES | {"mul", "div", "activation"}, lambda user: user.kind == "output")
    inside = path[1:-1] if path is not None else []
    fits = all(each.kind in MOVES or _factor(flow, each) is not None for each in inside)
    return inside if path is not None and fits else None


def _factor(flow: Flow, node: Node) -> Factor | None:
    scaled = scaling(flow, node)
    if scaled is not None:
        return scaled[1]
    return ("tanh", 1.0) if node.target.rpartition(".")[2] == "tanh" else None


def _is_output(flow: Flow, node: Node) -> bool:
    return any(user.kind == "output" for user in flow.users(node))


def _is_vector_of(flow: Flow, node: Node, logits: Node) -> bool:
    """Whether a node is a vector cut out of the logits by selects alone, and not cut further."""
    if node.kind != "select" or len(shape_of(node) or ()) != 1:
        return False
    *_, base = flow.back(node, {"select"})
    return base.name == logits.name and not any(user.kind == "select" for user in flow.users(node))
