"""Finds attention: a softmax (or one fused call) between two products of computed tensors.

    query ─▶ query heads ─┐
                          ├─▶ product ─▶ scale ─▶ scores ─▶ mask ─▶ softmax = weights ─┐
    key ───▶ key heads ───┘                                                            ├─▶ head outputs
    value ─▶ value heads ──────────────────────────────────────────────────────────────┘   ─▶ concat ─▶ output

(Vaswani et al. 2017, section 3.2.) Nothing here looks at the name of a module or a variable.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fxtrace.graph import Arg, Node, Ref, SliceArg
from fxtrace.roles.flow import ADJUSTS, MOVES, PROJECTIONS, Flow, numel, shape_of
from fxtrace.roles.products import Order, Product, read_product, transposed

Factor = tuple[str, float | str]
"""A scaling: `mul` or `div`, and by what number or by which node's value, one or one for each head; or `tanh`, which
caps the scores."""


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
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Chain:
    """The way from the product to the softmax: scalings, then masks, in execution order."""

    node: Node
    product: Product
    scores: Node | None
    factors: tuple[Factor, ...] = ()
    masks: tuple[tuple[Node, Node], ...] = ()
    """(the op that applies it, the mask)."""
    rescalings: tuple[tuple[int, Factor], ...] = ()


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
    scores, sink, sink_first = _without_sink(flow, entry, value) if entry is not None else (None, None, False)
    chain = _to_product(flow, scores, value) if scores is not None else None
    if chain is None:
        return _not_scores(flow, softmax)
    weights = softmax if sink is None else next((node for node in path if node.kind == "select"), softmax)
    if sink is not None and not _cuts_off(flow, weights, softmax, sink, first=sink_first):
        return f"the columns that '{sink.name}' adds to the scores are not cut off the weights again"
    if not all(_keeps_rows(node) or node is weights for node in path[1:-1]):
        return _not_mixed(flow, softmax)
    attention = Attention(softmax, fused=False, weights=weights, mixing=path[-2], scores=chain.scores)
    attention.masks, attention.rescalings = chain.masks, chain.rescalings
    attention.sink, attention.sink_first = sink, sink_first
    if chain.scores is None:
        attention.refused["scores"] = f"'{chain.node.name}' adds a bias in the same op: no tensor holds them without"
    masks = [mask for op, mask in chain.masks if applies(op) != "floors"]
    if len(masks) > 1:
        attention.refused["mask"] = f"{len(masks)} masks or biases are applied to the scores, one after the other"
    elif masks and _to_product(flow, masks[0], value) is not None:
        attention.refused["mask"] = f"what is added to the scores, '{masks[0].name}', are other scores, no mask"
    by_name = flow.graph.by_name
    query, query_factors = _unscaled(flow, by_name[chain.product.left])
    key, key_factors = _unscaled(flow, by_name[chain.product.right])
    # An einsum reads the keys as they are laid out; any other product has them as d_head × length.
    key_order = transposed(chain.product.right_order)
    before = key if chain.product.right_order else _untransposed(flow, key)
    if before is None:
        attention.key_is_transposed = True
        attention.refused["key_heads"] = (
            f"'{key.name}' lays the keys out transposed in one step: no tensor has them as length × d_head"
        )
    else:
        key, more = _unscaled(flow, before if key_order else _unmerged(flow, before))
        key_factors += more
    query, more = _unscaled(flow, _unmerged(flow, query))
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
        if here.kind not in MOVES or not _keeps_rows(here):
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
    attention.refused["scores"] = kernel + "no tensor of the graph holds the scores"
    attention.refused["weights"] = kernel + "no tensor of the graph holds the weights"
    attention.refused["masked_scores"] = attention.refused["scores"]
    if attention.causal_flag and not attention.masks:
        attention.refused["mask"] = kernel + "its causal mask is a flag, not a tensor"
    return attention


def _to_product(flow: Flow, node: Node, value: Node) -> _Chain | None:
    """Follows the scores back from a softmax's input to the product they come from.

    Where the scores of two products are added, that is the one whose keys come from where the values come from.
    """
    if node.kind == "matmul":
        product = read_product(flow, node)
        if product is None or not all(
            flow.computed(flow.graph.by_name[each]) for each in (product.left, product.right)
        ):
            return None
        if node.target.rpartition(".")[2] == "baddbmm":
            # One op scales the product and adds a bias: there are no scores without it.
            alpha = node.kwargs.get("alpha", 1)
            scale: Factor = ("mul", float(alpha) if isinstance(alpha, int | float) else 1.0)
            return _Chain(node, product, None, (scale,), ((node, flow.inputs(node)[0]),))
        return _Chain(node, product, node)
    inputs = [each for each in flow.inputs(node) if each.spec is not None]
    if node.kind in MOVES and _keeps_rows(node) and inputs:
        chain = _to_product(flow, inputs[0], value)
        return chain and _extend(chain, node)
    factor = scaling(flow, node)
    if factor is None and node.target.rpartition(".")[2] == "tanh" and inputs:
        factor = inputs[0], ("tanh", 1.0)
    if factor is not None:
        chain = _to_product(flow, factor[0], value)
        return chain and _extend(chain, node, factor=factor[1])
    if node.kind == "add" and len(inputs) == 1 and 0 in node.args:
        chain = _to_product(flow, inputs[0], value)
        return chain and _extend(chain, node)
    if applies(node) in ("adds", "gates", "floors") and len(inputs) == 2:
        chains = [(_to_product(flow, each, value), other) for each, other in (inputs, reversed(inputs))]
        ways = [(chain, other) for chain, other in chains if chain is not None]
        if len(ways) == 2:
            keys = [_source(flow, flow.graph.by_name[chain.product.right]) for chain, _ in ways]
            ways = [way for way, key in zip(ways, keys, strict=True) if key and key == _source(flow, value)]
        return _extend(ways[0][0], node, mask=ways[0][1]) if len(ways) == 1 else None
    if applies(node) == "subtracts" and len(inputs) == 2:
        chain = _to_product(flow, inputs[0], value)
        return chain and _extend(chain, node, mask=inputs[1])
    if applies(node) in ("hides", "keeps") and len(inputs) >= 2:
        # masked_fill(scores, mask, value) and where(mask, scores, value)
        scores, mask = inputs[:2] if applies(node) == "hides" else inputs[1::-1]
        chain = _to_product(flow, scores, value)
        return chain and _extend(chain, node, mask=mask)
    return None


_APPLIES = {"masked_fill": "hides", "where": "keeps", "max": "floors", "maximum": "floors"}


def applies(op: Node) -> str:
    """What an op does with a mask.

    It `adds` or `subtracts` a bias, `gates` the scores with factors, `floors` them at a number, or `hides` or `keeps`
    those where the mask is true; the empty string where it is another op.
    """
    by_kind = {"add": "adds", "sub": "subtracts", "mul": "gates"}.get(op.kind)
    return by_kind or _APPLIES.get(op.target.rpartition(".")[2].rstrip("_"), "")


def _without_sink(flow: Flow, entry: Node, value: Node) -> tuple[Node, Node | None, bool]:
    """(the scores, the sink beside them, whether it comes first) of what a softmax reads.

    A number subtracted from a whole row changes no softmax, and so is passed.
    """
    for here in flow.back(entry, MOVES | {"sub"}):
        inputs = [each for each in flow.inputs(here) if each.spec is not None]
        if here.kind == "sub":
            if len(inputs) != 2 or (shape_of(inputs[1]) or (0,))[-1] != 1:
                break
            entry = inputs[0]
        elif here.kind == "join":
            dim = here.kwargs.get("dim", here.args[1] if len(here.args) > 1 else 0)
            sinks = [each for each in inputs if _to_product(flow, each, value) is None]
            if len(inputs) == 2 and len(sinks) == 1 and dim in (-1, len(shape_of(here) or ()) - 1):
                return inputs[inputs[0] is sinks[0]], sinks[0], inputs[0] is sinks[0]
        elif not _keeps_rows(here):
            break
    return entry, None, False


def _cuts_off(flow: Flow, node: Node, softmax: Node, sink: Node, *, first: bool) -> bool:
    """Whether a node is a softmax without the columns of a sink, the first or the last."""
    whole, part, columns = ((shape_of(each) or (0,)) for each in (softmax, node, sink))
    if flow.data_input(node) is not softmax or part != (*whole[:-1], whole[-1] - columns[-1]):
        return False
    index = node.args[1] if len(node.args) > 1 else None
    if isinstance(index, tuple):  # tensor[..., start:stop]
        last = index[-1] if index else None
        start = last.start if isinstance(last, SliceArg) else 1
    else:  # slice(tensor, dimension, start, stop)
        start = node.args[2] if len(node.args) > 2 else 1
    return (start in (None, 0)) is not first


_REORDERS = frozenset(
    {"transpose", "swapaxes", "swapdims", "permute", "movedim", "t", "T", "H", "mT", "mH", "adjoint", "getattr", "flip"}
    | {"roll"}
)


def _keeps_rows(node: Node) -> bool:
    """Whether a move leaves the rows and columns of the scores what they are: it neither reorders nor cuts them."""
    return node.kind != "select" and node.target.rpartition(".")[2] not in _REORDERS


def _extend(chain: _Chain, node: Node, *, factor: Factor | None = None, mask: Node | None = None) -> _Chain:
    if mask is not None:
        return replace(chain, masks=(*chain.masks, (node, mask)))
    if chain.masks:  # the scores are what there is before the first mask
        return replace(chain, rescalings=(*chain.rescalings, (len(chain.masks), factor))) if factor else chain
    return replace(chain, scores=node, factors=(*chain.factors, factor) if factor else chain.factors)


def scaling(flow: Flow, node: Node) -> tuple[Node, Factor] | None:
    """(what is scaled, by what) where a node multiplies or divides a tensor by a number, or by one for each head."""
    if node.kind not in ("mul", "div") or len(node.args) != 2:
        return None
    left, right = node.args
    for tensor, other in ((left, right), (right, left)):
        if not isinstance(tensor, Ref) or (tensor is right and node.kind == "div"):
            continue
        base = flow.graph.by_name[tensor.node]
        if not flow.computed(base):
            continue
        if isinstance(other, int | float) and not isinstance(other, bool):
            return base, (node.kind, float(other))
        constant = flow.graph.by_name[other.node] if isinstance(other, Ref) else None
        if constant is not None and not flow.computed(constant):
            if constant.kind == "size":
                return base, (node.kind, float(constant.values[0].text))
            if numel(constant) == 1 or (shape_of(constant) or ())[-2:] == (1, 1):
                return base, (node.kind, constant.name)
    return None


def _unscaled(flow: Flow, node: Node) -> tuple[Node, list[Factor]]:
    factors: list[Factor] = []
    while (found := scaling(flow, node)) is not None:
        node, factor = found
        factors.insert(0, factor)
    return node, factors


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


def _source(flow: Flow, factor: Node) -> str | None:
    """The name of what the one projection behind a factor reads."""
    projections, complete = flow.nearest(factor, PROJECTIONS, ADJUSTS)
    source = flow.data_input(projections[0]) if len(projections) == 1 and complete else None
    return source.name if source is not None else None


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
