"""Finds attention: a softmax (or one fused call) between two products of computed tensors.

    query ─▶ query heads ─┐
                          ├─▶ product ─▶ scale ─▶ scores ─▶ mask ─▶ softmax = weights ─┐
    key ───▶ key heads ───┘                                                            ├─▶ head outputs
    value ─▶ value heads ──────────────────────────────────────────────────────────────┘   ─▶ concat ─▶ output

(Vaswani et al. 2017, section 3.2.) Nothing here looks at the name of a module or a variable.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fxtrace.graph import Arg, Node, Ref
from fxtrace.roles.flow import ADJUSTS, MOVES, PROJECTIONS, Flow, keeps_rows, numel, shape_of
from fxtrace.roles.products import Order, read_product, transposed
from fxtrace.roles.scores import Factor, applies, cuts_off, to_product, unscaled, without_sink


@dataclass
class Attention:
    """One attention, as far as its dataflow shows it. What could not be found is in `refused`, by part, with why."""

    core: Node
    """The softmax, or the fused call."""
    fused: bool
    entering: dict[str, Node] = field(default_factory=dict)
    """`query`, `key`, `value`: what enters the products, before scaling and transposing."""
    heads: dict[str, Node] = field(default_factory=dict)
    """The same before heads are repeated, where several query heads share a key and a value head."""
    projected: dict[str, Node] = field(default_factory=dict)
    """`query`, `key`, `value`: what the projections give, before the split into heads."""
    projections: dict[str, Node] = field(default_factory=dict)
    """The parametrised op behind each of `query`, `key` and `value`."""
    sources: dict[str, Node] = field(default_factory=dict)
    """What each of those ops reads; where that is a latent, what the latent is projected from."""
    latents: dict[str, Node] = field(default_factory=dict)
    """What those ops read, where it is a low-rank projection itself."""
    scores: Node | None = None
    masks: tuple[tuple[Node, Node], ...] = ()
    """(the op that applies it, the mask, bias, gate or floor), in execution order; `applies` says which."""
    sink: Node | None = None
    """What the softmax sees beside the scores: columns that no key has, left out of the weights again."""
    sink_first: bool = False
    weights: Node | None = None
    """The softmax; where it has a sink, the softmax without the sink's columns."""
    mixing: Node | None = None
    """The weights as they enter the product: themselves, or after dropout."""
    head_outputs: Node | None = None
    concat: Node | None = None
    output: Node | None = None
    factors: list[Factor] = field(default_factory=list)
    """The scalings between the heads and the scores."""
    rescalings: tuple[tuple[int, Factor], ...] = ()
    """The scalings after a mask, each with how many masks come before it."""
    orders: dict[str, Order] = field(default_factory=dict)
    """How to bring query, key, value and head_outputs to … × length × d_head, where they are laid out otherwise."""
    causal_flag: bool = False
    key_is_transposed: bool = False
    """Whether the keys are only there as d_head × length."""
    segments: tuple[Attention, ...] = ()
    """Where the tokens attend in groups, one computation each, between the same projections: those, this one first."""
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[Attention, ...]:
        """Its segments; itself where it has none."""
        return self.segments or (self,)


def in_segments(attentions: list[Attention]) -> Attention | None:
    """Several attentions that end in one projection, as one; None where they do not share all tokens among them.

    So packed sequences (the images of a batch) and windows are computed one after the other.
    """
    first = attentions[0]
    source = first.sources.get("query")
    if source is None or any(
        (each.projections, each.sources) != (first.projections, first.sources) for each in attentions
    ):
        return None
    tokens = (numel(source) or 0) // ((shape_of(source) or ())[-1:] or (1,))[0]
    if sum(_rows(each) for each in attentions) != tokens:
        return None
    refused = {part: why for part, why in first.refused.items() if all(part in each.refused for each in attentions)}
    projected = first.projected
    if len({projection.name for projection in first.projections.values()}) == len(first.projections):
        projected = first.projections  # a segment's heads are cut out of them, those of all are not
        refused = {part: why for part, why in refused.items() if part not in projected}
    return replace(first, segments=tuple(attentions), projected=projected, refused=refused)


def _rows(attention: Attention) -> int:
    """How many tokens an attention of batch × heads × length × d_head has queries of; 0 for other layouts."""
    shape = shape_of(attention.head_outputs) if attention.head_outputs is not None else None
    order = attention.orders.get("head_outputs")
    if shape is None or len(shape) != 4 or (order is not None and len(order) != 4):
        return 0
    batch, _, length, _ = (shape[i] for i in order or range(4))
    return batch * length


def find_attentions(flow: Flow) -> tuple[list[Attention], dict[str, str]]:
    """Every attention in execution order, and for each softmax or fused call that is none, its name and why."""
    found: list[Attention] = []
    refused: dict[str, str] = {}
    for node in flow.graph.nodes:
        if node.kind == "softmax":
            result = _explicit(flow, node)
        elif node.kind == "attention":
            result = _fused(flow, node)
        else:
            continue
        if isinstance(result, str):
            refused[node.name] = result
        else:
            _trace_heads(flow, result)
            _trace_output(flow, result)
            found.append(result)
    return found, refused


def _explicit(flow: Flow, softmax: Node) -> Attention | str:
    dim = softmax.kwargs.get("dim", softmax.args[1] if len(softmax.args) > 1 else None)
    if isinstance(dim, int) and dim not in (-1, len(shape_of(softmax) or ()) - 1):
        return f"this softmax works along dimension {dim}, not along the last"
    path = flow.forward(softmax, MOVES, lambda user: user.kind == "matmul")
    mixing = read_product(flow, path[-1], left=path[-2].name) if path else None
    if path is None or mixing is None or mixing.left_order is not None:
        return _not_mixed(flow, softmax)
    entry, value = flow.data_input(softmax), flow.graph.by_name[mixing.right]
    scores, sink, sink_first = without_sink(flow, entry, value) if entry is not None else (None, None, False)
    chain = to_product(flow, scores, value) if scores is not None else None
    if chain is None:
        return _not_scores(flow, softmax)
    weights = softmax if sink is None else next((node for node in path if node.kind == "select"), softmax)
    if sink is not None and not cuts_off(flow, weights, softmax, sink, first=sink_first):
        return f"the columns that '{sink.name}' adds to the scores are not cut off the weights again"
    if not all(keeps_rows(node) or node is weights for node in path[1:-1]):
        return _not_mixed(flow, softmax)
    attention = Attention(softmax, fused=False, weights=weights, mixing=path[-2], scores=chain.scores)
    attention.masks, attention.rescalings = chain.masks, chain.rescalings
    attention.sink, attention.sink_first = sink, sink_first
    if chain.scores is None:
        attention.refused["scores"] = f"'{chain.node.name}' adds a bias in the same op: no tensor holds them without"
    masks = [mask for op, mask in chain.masks if applies(op) != "floors"]
    if len(masks) > 1:
        attention.refused["mask"] = f"{len(masks)} masks or biases are applied to the scores, one after the other"
    elif masks and to_product(flow, masks[0], value) is not None:
        attention.refused["mask"] = f"what is added to the scores, '{masks[0].name}', are other scores, no mask"
    by_name = flow.graph.by_name
    query, query_factors = unscaled(flow, by_name[chain.product.left])
    key, key_factors = unscaled(flow, by_name[chain.product.right])
    # An einsum reads the keys as they are laid out; any other product has them as d_head × length.
    key_order = transposed(chain.product.right_order)
    before = key if chain.product.right_order else _untransposed(flow, key)
    if before is None:
        attention.key_is_transposed = True
        attention.refused["key_heads"] = (
            f"'{key.name}' lays the keys out transposed in one step: no tensor has them as length × d_head"
        )
    else:
        key, more = unscaled(flow, before if key_order else _unmerged(flow, before))
        key_factors += more
    query, more = unscaled(flow, _unmerged(flow, query))
    query_factors += more
    attention.entering = {"query": query, "key": key, "value": _unmerged(flow, value)}
    attention.head_outputs = _split_again(flow, path[-1], attention.entering["value"])
    orders = (chain.product.left_order, key_order, mixing.right_order, mixing.order)
    parts = ("query", "key", "value", "head_outputs")
    attention.orders = {part: order for part, order in zip(parts, orders, strict=True) if order}
    attention.factors = [*query_factors, *key_factors, *chain.factors]
    return attention


def _not_mixed(flow: Flow, softmax: Node) -> str:
    """Why a softmax is in front of no product: who reads it instead."""
    here = softmax
    while users := flow.users(here):
        here = users[0]
        if here.kind not in MOVES or not keeps_rows(here):
            break
    return f"no product has this softmax's output as its left factor: '{here.name}' reads it{_windows(flow, softmax)}"


def _not_scores(flow: Flow, softmax: Node) -> str:
    """Why a softmax is behind no product: what it reads instead."""
    *_, read = flow.back(flow.data_input(softmax) or softmax, MOVES | {"add", "sub", "mul", "div", "mask"})
    return (
        "no product of two computed tensors leads to this softmax through scalings and masks alone:"
        f" it reads '{read.name}'{_windows(flow, softmax)}"
    )


def _windows(flow: Flow, softmax: Node) -> str:
    for node in flow.ancestors(softmax, until=lambda each: each.kind in PROJECTIONS):
        if node.target.rpartition(".")[2] in ("as_strided", "unfold"):
            return f"; '{node.name}' takes queries or keys in overlapping windows, so that no tensor holds all scores"
    return ""


def _fused(flow: Flow, call: Node) -> Attention | str:
    if not call.target.endswith("scaled_dot_product_attention"):
        return "the whole attention is one opaque call: what happens inside is not in this graph"
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
    given: dict[str, Arg] = dict(zip(names, call.args, strict=False)) | call.kwargs
    nodes = {name: flow.graph.by_name[arg.node] for name, arg in given.items() if isinstance(arg, Ref)}
    if not {"query", "key", "value"} <= nodes.keys():
        return "its query, key and value are not all tensors of this graph"
    attention = Attention(call, fused=True, head_outputs=call)
    if "attn_mask" in nodes:
        attention.masks = ((call, nodes["attn_mask"]),)
    attention.entering = {part: nodes[part] for part in ("query", "key", "value")}
    attention.causal_flag = given.get("is_causal") is True
    scale, width = given.get("scale"), shape_of(nodes["query"])
    if isinstance(scale, int | float):
        attention.factors = [("mul", float(scale))]
    elif width is not None:
        attention.factors = [("mul", width[-1] ** -0.5)]
    kernel = f"'{call.name}' is one fused kernel: "
    apart = "; the option `unfused` has it computed step by step"
    attention.refused["scores"] = f"{kernel}no tensor of the graph holds the scores{apart}"
    attention.refused["weights"] = f"{kernel}no tensor of the graph holds the weights{apart}"
    attention.refused["masked_scores"] = attention.refused["scores"]
    if attention.causal_flag and not attention.masks:
        attention.refused["mask"] = kernel + "its causal mask is a flag, not a tensor"
    return attention


def _unmerged(flow: Flow, node: Node) -> Node:
    """A factor before its batch and head dimensions were merged into one, where they were."""
    before = flow.data_input(node)
    merged, split = shape_of(node) or (), shape_of(before) if before is not None else None
    if before is None or split is None or node.kind != "view" or (len(split), len(merged)) != (4, 3):
        return node
    return before if split[-2:] == merged[-2:] and split[0] * split[1] == merged[0] else node


def _split_again(flow: Flow, product: Node, value: Node) -> Node:
    """The heads' outputs with batch and heads apart again, where the product has them merged and the values do not."""
    rank = len(shape_of(value) or ())
    users = flow.users(product)
    split = [user for user in users if user.kind == "view" and len(shape_of(user) or ()) == rank]
    return split[0] if len(shape_of(product) or ()) != rank and len(users) == len(split) == 1 else product


def _untransposed(flow: Flow, node: Node) -> Node | None:
    """What a factor was before its last two dimensions were swapped; None where no such tensor exists."""
    before = flow.data_input(node)
    rank = len(shape_of(node) or ())
    if node.kind != "view" or before is None or len(shape_of(before) or ()) != rank:
        return None
    name = node.target.rpartition(".")[2]
    dims = [arg % rank for arg in node.args[1:] if isinstance(arg, int)]
    if name in ("transpose", "swapaxes", "swapdims") and sorted(dims) == [rank - 2, rank - 1]:
        return before
    if name in ("mT", "adjoint") or (name == "getattr" and "mT" in node.args) or (name in ("t", "T") and rank == 2):
        return before
    order = node.args[1] if name == "permute" and len(node.args) == 2 else tuple(dims)
    if name == "permute" and isinstance(order, tuple):
        swapped = (*range(rank - 2), rank - 1, rank - 2)
        if tuple(d % rank for d in order if isinstance(d, int)) == swapped:
            return before
    return None


def _trace_heads(flow: Flow, attention: Attention) -> None:
    """From each factor back to its projection."""
    for part, entering in attention.entering.items():
        heads = attention.heads[part] = _unrepeated(flow, entering)
        linears, complete = flow.nearest(heads, PROJECTIONS, ADJUSTS)
        if complete and len(linears) == 2 and (found := latent_of(flow, linears[1])) and found[1] is linears[0]:
            down, up = linears
            attention.refused[part] = (
                f"one part of each head comes from '{up.name}', and one, which all heads share, from '{down.name}': "
                "no tensor holds them before"
            )
            attention.projections[part], attention.latents[part] = up, found[0]
            source = flow.data_input(down)
            if source is not None:
                attention.sources[part] = source
            continue
        if len(linears) != 1 or not complete:
            several = _several(flow, heads)
            if several is not None:
                names, attention.sources[part] = several
                attention.refused[part] = f"{len(names)} projections each give a part of it: {', '.join(names)}"
                continue
            attention.refused[part] = f"'{heads.name}' does not come from one projection" + (
                f" but from {len(linears)}: " + ", ".join(f"'{each.name}'" for each in linears) if linears else ""
            )
            continue
        linear = linears[0]
        attention.projections[part] = linear
        source = flow.data_input(linear)
        if source is not None:
            attention.sources[part] = source
        if source is not None and len(shape_of(source) or ()) < len(shape_of(linear) or ()):
            attention.refused[part] = f"'{linear.name}' projects straight into heads: no tensor has them side by side"
            continue
        projected = _before_split(flow, linear, heads)
        if projected is None and (numel(heads) or 0) > (numel(linear) or 0):
            attention.refused[part] = f"'{heads.name}' is '{linear.name}' padded or repeated: no tensor holds it before"
        elif projected is None:
            attention.refused[part] = (
                f"it is a part of '{linear.name}', cut out after the split into heads: no tensor holds it alone before"
            )
        else:
            attention.projected[part] = projected
        added = (shape_of(projected) or ()).count(1) - (shape_of(linear) or ()).count(1) if projected is not None else 0
        if projected is not None and len(shape_of(heads) or ()) <= len(shape_of(projected) or ()) - max(0, added):
            attention.refused[f"{part}_heads"] = f"'{heads.name}' has no dimension for heads"


def _several(flow: Flow, heads: Node) -> tuple[list[str], Node] | None:
    """(the projections behind heads, what all of them read), where each gives a part: some rows, or some features."""
    linears, complete = flow.nearest(heads, PROJECTIONS, ADJUSTS | {"mask"})
    ends = [list(flow.back(source, MOVES))[-1] for each in linears if (source := flow.data_input(each)) is not None]
    if not complete or len(linears) < 2 or len(ends) < len(linears) or len({end.name for end in ends}) > 1:
        return None
    return [f"'{each.name}'" for each in linears], ends[0]


def latent_of(flow: Flow, up: Node) -> tuple[Node, Node] | None:
    """(the latent that a projection reads, the projection that makes it) of a low-rank pair, where it is one.

    Nothing but moves and a norm lies between the two, and the latent is narrower than what it is made of.
    (DeepSeek-AI 2024, "DeepSeek-V2", section 2.1.2, has such pairs for queries, and for keys and values together.)
    """
    latent = flow.data_input(up)
    nodes = list(flow.back(latent, MOVES | {"norm"})) if latent is not None else []
    source = flow.data_input(nodes[-1]) if nodes and nodes[-1].kind in PROJECTIONS else None
    if latent is None or source is None or (shape_of(latent) or (0,))[-1] >= (shape_of(source) or (0,))[-1]:
        return None
    return next((node for node in nodes if node.kind not in MOVES), nodes[0]), nodes[-1]


def _unrepeated(flow: Flow, node: Node) -> Node:
    """Heads before each is copied for several query heads; the node itself where it holds no copies."""
    rank, size = len(shape_of(node) or ()), numel(node) or 0
    copied = (each for each in flow.back(node, MOVES) if 0 < (numel(each) or 0) < size)
    return next((each for each in copied if len(shape_of(each) or ()) == rank), node)


def _before_split(flow: Flow, linear: Node, heads: Node) -> Node | None:
    """The first tensor from the projection on that holds just these heads, with all features in one dimension."""
    whole, size, all_sizes = shape_of(linear) or (1,), numel(heads) or 0, numel(linear) or 0
    for node in flow.path_back(heads, linear):
        shape = shape_of(node) or (1,)
        part = len(shape) == len(whole) and sum(a != b for a, b in zip(shape, whole, strict=True)) <= 1
        if numel(node) == size and (part or shape[-1] * all_sizes == size * whole[-1]):
            return node
    return None


def _trace_output(flow: Flow, attention: Attention) -> None:
    """From the heads' outputs forward to the output projection."""
    assert attention.head_outputs is not None
    path = flow.forward(attention.head_outputs, MOVES | {"join", "add"}, lambda user: user.kind in PROJECTIONS)
    mixes = [node for node in path[1:-1] if node.kind not in MOVES] if path else []
    if path is None or not all(node.kind == "join" or _adds_values(flow, attention, path, node) for node in mixes):
        mixes, path = [], flow.forward(attention.head_outputs, MOVES, lambda user: user.kind in PROJECTIONS)
    if path is None:
        attention.refused["concat"] = "no projection follows the heads' outputs"
        attention.refused["output"] = attention.refused["concat"]
        return
    *_, last, output = path
    if not mixes and numel(last) != numel(attention.head_outputs):
        reason = f"'{output.name}' projects '{last.name}', a part of the heads' outputs"
        attention.refused |= {"concat": reason, "output": reason}
        return
    attention.output = output
    if mixes:
        attention.refused["concat"] = (
            f"'{mixes[0].name}' {'joins' if mixes[0].kind == 'join' else 'adds'} other results to the heads' outputs"
        )
    elif last is attention.head_outputs:
        attention.refused["concat"] = f"'{last.name}' is projected as it is: no tensor has the heads side by side"
    else:
        attention.concat = last


def _adds_values(flow: Flow, attention: Attention, path: list[Node], node: Node) -> bool:
    """Whether a sum adds to the heads' outputs what is made of the same values, a convolution of them for one."""
    names = {each.name for each in path}
    others = [each for each in flow.inputs(node) if each.name not in names]
    return len(others) == 1 and flow.is_ancestor(attention.entering["value"], others[0])
