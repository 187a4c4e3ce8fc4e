"""The way of an attention's scores from the product of queries and keys to the softmax.

product ─▶ scale ─▶ scores ─▶ mask, bias, gate or floor ─▶ masked scores ─▶ softmax
sink ─────────┘
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fxtrace.graph import Node, Ref, SliceArg
from fxtrace.roles.flow import ADJUSTS, MOVES, PROJECTIONS, Flow, keeps_rows, numel, shape_of
from fxtrace.roles.products import Product, read_product

Factor = tuple[str, float | str]
"""A scaling: `mul` or `div`, and by what number or by which node's value, one or one for each head; or `tanh`, which
caps the scores."""


@dataclass(frozen=True)
class Chain:
    """The way from the product to the softmax: scalings, then masks, in execution order."""

    node: Node
    product: Product
    scores: Node | None
    factors: tuple[Factor, ...] = ()
    masks: tuple[tuple[Node, Node], ...] = ()
    """(the op that applies it, the mask)."""
    rescalings: tuple[tuple[int, Factor], ...] = ()


def to_product(flow: Flow, node: Node, value: Node) -> Chain | None:
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
            return Chain(node, product, None, (scale,), ((node, flow.inputs(node)[0]),))
        return Chain(node, product, node)
    inputs = [each for each in flow.inputs(node) if each.spec is not None]
    if node.kind in MOVES and keeps_rows(node) and inputs:
        chain = to_product(flow, inputs[0], value)
        return chain and _extend(chain, node)
    factor = scaling(flow, node)
    if factor is None and node.target.rpartition(".")[2] == "tanh" and inputs:
        factor = inputs[0], ("tanh", 1.0)
    if factor is not None:
        chain = to_product(flow, factor[0], value)
        return chain and _extend(chain, node, factor=factor[1])
    if node.kind == "add" and len(inputs) == 1 and 0 in node.args:
        chain = to_product(flow, inputs[0], value)
        return chain and _extend(chain, node)
    if applies(node) in ("adds", "gates", "floors") and len(inputs) == 2:
        chains = [(to_product(flow, each, value), other) for each, other in (inputs, reversed(inputs))]
        ways = [(chain, other) for chain, other in chains if chain is not None]
        if len(ways) == 2:
            keys = [_source(flow, flow.graph.by_name[chain.product.right]) for chain, _ in ways]
            ways = [way for way, key in zip(ways, keys, strict=True) if key and key == _source(flow, value)]
        return _extend(ways[0][0], node, mask=ways[0][1]) if len(ways) == 1 else None
    if applies(node) == "subtracts" and len(inputs) == 2:
        chain = to_product(flow, inputs[0], value)
        return chain and _extend(chain, node, mask=inputs[1])
    if applies(node) in ("hides", "keeps") and len(inputs) >= 2:
        # masked_fill(scores, mask, value) and where(mask, scores, value)
        scores, mask = inputs[:2] if applies(node) == "hides" else inputs[1::-1]
        chain = to_product(flow, scores, value)
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


def without_sink(flow: Flow, entry: Node, value: Node) -> tuple[Node, Node | None, bool]:
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
            sinks = [each for each in inputs if to_product(flow, each, value) is None]
            if len(inputs) == 2 and len(sinks) == 1 and dim in (-1, len(shape_of(here) or ()) - 1):
                return inputs[inputs[0] is sinks[0]], sinks[0], inputs[0] is sinks[0]
        elif not keeps_rows(here):
            break
    return entry, None, False


def cuts_off(flow: Flow, node: Node, softmax: Node, sink: Node, *, first: bool) -> bool:
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


def _extend(chain: Chain, node: Node, *, factor: Factor | None = None, mask: Node | None = None) -> Chain:
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


def unscaled(flow: Flow, node: Node) -> tuple[Node, list[Factor]]:
    """A tensor before its scalings, and those in execution order."""
    factors: list[Factor] = []
    while (found := scaling(flow, node)) is not None:
        node, factor = found
        factors.insert(0, factor)
    return node, factors


def _source(flow: Flow, factor: Node) -> str | None:
    """The name of what the one projection behind a factor reads."""
    projections, complete = flow.nearest(factor, PROJECTIONS, ADJUSTS)
    source = flow.data_input(projections[0]) if len(projections) == 1 and complete else None
    return source.name if source is not None else None
