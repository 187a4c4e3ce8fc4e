"""The identities that make a role true, tried on the captured values.

Each function gives a `Check`. What is compared was computed twice, by the model and here from other captured values, so
a difference of a few rounding steps is allowed and anything more is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from fxtrace.extras import needed_for
from fxtrace.graph import Check, Node, Ref
from fxtrace.roles.attention import Attention
from fxtrace.roles.products import Order, product_operands
from fxtrace.roles.scores import Factor, applies
from fxtrace.roles.stacks import Head

with needed_for("checking identities"):
    import torch
    from torch import Tensor
    from torch.nn import functional

# Rounding steps of the coarsest dtype involved, at the size of the largest number compared.
_STEPS = 64


class Unavailable(Exception):
    """A value that an identity needs is not there."""


@dataclass(frozen=True, slots=True)
class Values:
    """The captured values by node name, and the module's state by parameter name."""

    captured: Mapping[str, Tensor]
    state: Mapping[str, Tensor]

    def __call__(self, node: Node) -> Tensor:
        """A node's tensor.

        Raises:
            Unavailable: it was not captured.
        """
        tensor = self.captured.get(node.name)
        if tensor is None and node.kind == "constant":
            tensor = self.state.get(node.target)
        if tensor is None:
            raise Unavailable("no values: shapes only")
        return tensor

    def named(self, name: str) -> Tensor:
        """A node's tensor, by the node's name.

        Raises:
            Unavailable: it was not captured.
        """
        tensor = self.captured.get(name)
        if tensor is None:
            raise Unavailable(f"the value of '{name}' was not captured")
        return tensor

    def table(self, name: str) -> Tensor:
        """A parameter of the module.

        Raises:
            Unavailable: it is not among the module's state.
        """
        tensor = self.state.get(name)
        if tensor is None:
            raise Unavailable(f"'{name}' is not among the module's state")
        return tensor

    def number(self, factor: str | float) -> float | Tensor:
        """The number that a scaling uses: one, which may be a scalar node's value, or one for each head."""
        if not isinstance(factor, str):
            return factor
        tensor = self.captured.get(factor)
        if tensor is None:
            raise Unavailable(f"the value of '{factor}' was not captured")
        return float(tensor) if tensor.numel() == 1 else tensor


def compare(name: str, statement: str, compute: Callable[[], tuple[Tensor, Tensor]]) -> Check:
    """Whether two tensors are the same but for rounding: the captured one, and the one that an identity gives."""
    try:
        actual, expected = compute()
    except Unavailable as reason:
        return Check(name, statement, None, str(reason))
    except RuntimeError as error:
        return Check(name, statement, False, f"the shapes do not fit: {str(error).splitlines()[0]}")
    if actual.shape != expected.shape:
        return Check(name, statement, False, f"shapes differ: {tuple(actual.shape)} and {tuple(expected.shape)}")
    if not (actual.is_floating_point() and expected.is_floating_point()):
        held = torch.equal(actual, expected)
        return Check(name, statement, held, "equal" if held else "not equal")
    coarsest = max(torch.finfo(actual.dtype).eps, torch.finfo(expected.dtype).eps)
    actual, expected = actual.double(), expected.double()
    finite = expected.isfinite()
    same_elsewhere = torch.equal(finite, actual.isfinite()) and torch.equal(
        actual[~finite].nan_to_num(), expected[~finite].nan_to_num()
    )
    scale = float(expected[finite].abs().max()) if bool(finite.any()) else 0.0
    allowed = _STEPS * coarsest * max(scale, 1e-6)
    difference = float((actual - expected)[finite].abs().max()) if bool(finite.any()) else 0.0
    return Check(
        name,
        statement,
        same_elsewhere and difference <= allowed,
        f"largest difference {difference:.1e}, allowed {allowed:.1e}"
        + ("" if same_elsewhere else "; infinities or NaNs in other places"),
    )


def equal(name: str, statement: str, value: Values, a: Node, b: Callable[[], Tensor]) -> Check:
    """Whether a node's value is what `b` computes."""
    return compare(name, statement, lambda: (value(a), b()))


def lookup(value: Values, ids: Node, table: str, found: Node) -> Check:
    """Embeddings are the table's rows at the ids, laid out as the lookup reads them."""

    def compute() -> tuple[Tensor, Tensor]:
        rows = value.table(table)[value(ids)]
        return value(found), rows.reshape(value(found).shape)

    return compare("lookup", "token_embeddings = table[tokens]", compute)


def total(value: Values, a: Node, b: Node, result: Node, statement: str) -> Check:
    """A sum of two tensors, the smaller one broadcast."""
    return compare("sum", statement, lambda: (value(result), value(a) + value(b)))


def linear(value: Values, node: Node, source: Node, statement: str) -> Check:
    """A projection: y = x Wᵀ + b, or an einsum with a parameter."""

    def compute() -> tuple[Tensor, Tensor]:
        if node.target.endswith("einsum"):
            return value(node), _einsum(value, node)
        weight, bias = weight_and_bias(value, node)
        return value(node), functional.linear(value(source), weight.to(value(source).dtype), bias)

    return compare("linear", statement, compute)


def logits(value: Values, head: Head) -> Check:
    """Logits are a projection of the last state, which may be scaled or capped."""
    projection, result = head.projection, head.logits
    assert projection is not None
    assert result is not None
    if not head.factors:
        return linear(value, projection, head.hidden, "logits = hidden Wᵀ + b")

    def compute() -> tuple[Tensor, Tensor]:
        weight, bias = weight_and_bias(value, projection)
        projected = functional.linear(value(head.hidden), weight, bias)
        return value(result), _scaled(value, projected, list(head.factors)).reshape(value(result).shape)

    capped = any(op == "tanh" for op, _ in head.factors)
    return compare("linear", "logits = " + ("capped(hidden Wᵀ + b)" if capped else "(hidden Wᵀ + b) · scale"), compute)


def _einsum(value: Values, node: Node) -> Tensor:
    tensors = [value.captured.get(arg.node) for arg in node.args if isinstance(arg, Ref)]
    if not isinstance(node.args[0], str) or any(tensor is None for tensor in tensors):
        raise Unavailable(f"what '{node.name}' multiplies was not captured")
    result: Tensor = torch.einsum(node.args[0], *tensors)
    return result


def weight_and_bias(value: Values, node: Node) -> tuple[Tensor, Tensor | None]:
    """W and b of a projection.

    Raises:
        Unavailable: they were not captured, or it is no linear map.
    """
    if node.op == "call_module":
        weight, bias = value.state.get(f"{node.target}.weight"), value.state.get(f"{node.target}.bias")
        if weight is None or weight.dim() != 2:
            raise Unavailable(f"'{node.target}' is not a linear map with a weight matrix")
        return weight, bias
    name = node.target.rpartition(".")[2]
    given = [arg.node for arg in (*node.args, *node.kwargs.values()) if isinstance(arg, Ref)]
    tensors = [value.captured.get(each) for each in given]
    if name == "linear" and len(given) in (2, 3) and tensors[1] is not None:
        return tensors[1], tensors[2] if len(given) == 3 else None
    operands = product_operands(node)
    if name in ("matmul", "mm", "bmm", "addmm") and operands is not None:
        weight = value.captured.get(operands[1])
        if weight is not None and weight.dim() == 2:
            return weight.T, tensors[0] if name == "addmm" else None
    raise Unavailable(f"the weight of '{node.name}' was not captured")


def norm(value: Values, source: Node, result: Node) -> Check:
    """A layer norm or RMS norm: each row is the input, centred or not, times one positive number, then γ and β.

    The number is read off the row rather than computed, so that ε need not be known: it may not exceed 1/σ.
    (Ba et al. 2016, "Layer Normalization"; Zhang & Sennrich 2019, "Root Mean Square Layer Normalization".)
    """

    def affine() -> tuple[Tensor | None, Tensor | None]:
        return _gamma_and_beta(value, result)

    return _norm(value, source, result, affine, "norm_output")


def written_norm(value: Values, source: Node, normalised: Node) -> Check:
    """The same for a norm that is written out, up to γ and β: they are nodes of their own there."""
    return _norm(value, source, normalised, lambda: (None, None), "normalised")


def _norm(
    value: Values, source: Node, result: Node, affine: Callable[[], tuple[Tensor | None, Tensor | None]], name: str
) -> Check:
    def compute(centred: bool) -> tuple[Tensor, Tensor]:
        y = value(result)
        x = value(source).reshape(y.shape)
        gamma, beta = affine()
        x = x.double() - x.double().mean(-1, keepdim=True) if centred else x.double()
        z = x if gamma is None else x * gamma.double()
        w = y.double() if beta is None else y.double() - beta.double()
        factor = (w * z).sum(-1, keepdim=True) / (z * z).sum(-1, keepdim=True).clamp_min(1e-300)
        largest = x.square().mean(-1, keepdim=True).clamp_min(1e-300).rsqrt()
        factor = torch.minimum(factor.clamp_min(0), largest)
        expected = z * factor + (0 if beta is None else beta.double())
        return y, expected.to(y.dtype)

    tail = (" · γ + β", " · γ") if name == "norm_output" else ("", "")
    layer = compare("norm", f"{name} = (s − mean(s)) / σ(s){tail[0]}, with s = residual_sum", lambda: compute(True))
    if layer.held is not False:
        return layer
    rms = compare("norm", f"{name} = s / rms(s){tail[1]}, with s = residual_sum", lambda: compute(False))
    return rms if rms.held else layer


def _gamma_and_beta(value: Values, node: Node) -> tuple[Tensor | None, Tensor | None]:
    if node.op == "call_module":
        return value.state.get(f"{node.target}.weight"), value.state.get(f"{node.target}.bias")
    names = ("input", "normalized_shape", "weight", "bias")
    arguments = dict(zip(names, node.args, strict=False)) | node.kwargs
    gamma, beta = (
        value.captured.get(argument.node) if isinstance(argument := arguments.get(part), Ref) else None
        for part in ("weight", "bias")
    )
    return gamma, beta


def _laid_out(tensor: Tensor, order: Order | None) -> Tensor:
    return tensor.permute(order) if order is not None and len(order) == tensor.dim() else tensor


def split_heads(value: Values, part: str, whole: Node, heads: Node, order: Order | None) -> Check:
    """Heads are the projected features cut into n_heads pieces of d_head, the head dimension moved forward."""

    def compute() -> tuple[Tensor, Tensor]:
        x, y = value(whole), _laid_out(value(heads), order)
        if y.dim() != x.dim() + 1:
            raise Unavailable("the heads are not laid out as batch × heads × length × d_head")
        return y, x.reshape(*x.shape[:-1], y.shape[-3], y.shape[-1]).transpose(-3, -2)

    return compare("split", f"{part}_heads[b,h,l,:] = {part}[b,l,h·d_head:(h+1)·d_head]", compute)


def concat_heads(value: Values, heads: Node, joined: Node, order: Order | None) -> Check:
    """The concatenation has the heads' outputs side by side."""

    def compute() -> tuple[Tensor, Tensor]:
        x, y = _laid_out(value(heads), order), value(joined)
        if x.dim() != y.dim() + 1:
            raise Unavailable("the heads' outputs are not laid out as batch × heads × length × d_head")
        return y, x.transpose(-3, -2).flatten(-2)

    return compare("concat", "concat[b,l,h·d_head:(h+1)·d_head] = head_outputs[b,h,l,:]", compute)


def _scale(value: Values, factors: list[Factor]) -> str:
    """The scalings of an attention multiplied out, in words where they are not known or differ from head to head."""
    scale: float | Tensor = 1.0
    try:
        for op, by in factors:
            scale = scale * value.number(by) if op == "mul" else scale / value.number(by)
    except Unavailable:
        return "scale"
    return f"{scale:.4g}" if isinstance(scale, float) else "scale of the head"


def scores(value: Values, attention: Attention) -> Check:
    """Scores are the scaled products of queries and keys."""
    assert attention.scores is not None
    result = attention.scores

    def compute() -> tuple[Tensor, Tensor]:
        query, key = _alike(_entering(value, attention, "query"), _keys(value, attention))
        product = _scaled(value, query @ key.transpose(-2, -1), attention.factors)
        return value(result), product.reshape(value(result).shape)

    return compare("scores", f"scores = {_product_text(value, attention)}", compute)


def _entering(value: Values, attention: Attention, part: str) -> Tensor:
    """What enters a product, as … × length × d_head."""
    return _laid_out(value(attention.entering[part]), attention.orders.get(part))


def _keys(value: Values, attention: Attention) -> Tensor:
    key = _entering(value, attention, "key")
    return key.transpose(-2, -1) if attention.key_is_transposed else key


def _alike(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors with the same leading dimensions: merged where one has them merged, shared heads repeated."""
    if query.dim() != key.dim() and min(query.dim(), key.dim()) == 3:
        query, key = query.flatten(0, -3), key.flatten(0, -3)
    if query.dim() == key.dim() >= 3 and query.shape[-3] != key.shape[-3]:
        key = key.repeat_interleave(query.shape[-3] // max(1, key.shape[-3]), -3)
    return query, key


def _scaled(value: Values, product: Tensor, factors: list[Factor]) -> Tensor:
    for op, by in factors:
        if op == "tanh":
            product = product.tanh()
        else:
            product = product * value.number(by) if op == "mul" else product / value.number(by)
    return product


def _product_text(value: Values, attention: Attention) -> str:
    product = "query_heads · key_headsᵀ"
    if any(op == "tanh" for op, _ in attention.factors):
        return f"capped({product})"
    return f"{product} · {_scale(value, attention.factors)}" if attention.factors else product


def masked(value: Values, attention: Attention) -> Check:
    """Masked scores are the scores with every mask, bias, gate and floor applied in order."""
    assert attention.scores is not None
    start, after = attention.scores, attention.masks[-1][0]

    def compute() -> tuple[Tensor, Tensor]:
        expected = value(start)
        hidden = torch.zeros((), dtype=torch.bool, device=expected.device)
        for number, (op, each) in enumerate(attention.masks):
            expected = _scaled(value, expected, [by for before, by in attention.rescalings if before == number])
            expected, mask = _shaped_for(op, expected), value(each)
            hidden = _shaped_for(op, hidden)
            match applies(op):
                case "adds":
                    expected = expected + mask
                case "subtracts":
                    expected = expected - mask
                case "gates":
                    expected = expected * mask
                case "floors":
                    expected = torch.maximum(expected, mask)
                case _:
                    hidden = hidden | hidden_by(op, mask)
        shown = ~hidden.expand_as(expected)
        return value(after)[shown], expected[shown]

    if any(applies(op) in ("hides", "keeps") for op, _ in attention.masks):
        return compare("mask", "masked_scores = scores where the mask lets them through", compute)
    masks = [op for op, _ in attention.masks if applies(op) != "floors"]
    text = "scores"
    for number, (op, _) in enumerate(attention.masks):
        if any(before == number for before, _ in attention.rescalings):
            text = f"({text}) · scale"
        name = f"mask{masks.index(op) + 1}" if len(masks) > 1 and op in masks else "mask"
        forms = {"adds": f"{text} + {name}", "subtracts": f"{text} − {name}", "gates": f"{text} · {name}"}
        text = forms.get(applies(op), f"max({text}, floor)")
    return compare("sum", f"masked_scores = {text}", compute)


def _shaped_for(op: Node, scores: Tensor) -> Tensor:
    """The scores as the op that masks them reads them: their leading dimensions may be split and merged on the way."""
    shape = op.spec.shape if op.spec is not None else scores.shape
    return scores.reshape(shape) if scores.numel() == math.prod(shape) else scores


def softmax(value: Values, attention: Attention, entry: Node) -> Check:
    """Weights are the softmax of the (masked) scores, so that each row sums to 1; less where it has a sink."""
    weights, core = attention.weights, attention.core
    assert weights is not None
    what = "scores + mask" if attention.masks else "scores"
    if any(before == len(attention.masks) for before, _ in attention.rescalings):
        what = f"({what}) · scale"

    def compute() -> tuple[Tensor, Tensor]:
        full = value(entry).to(value(core).dtype).softmax(-1)
        columns = value(weights).shape[-1]
        return value(weights), full[..., -columns:] if attention.sink_first else full[..., :columns]

    if attention.sink is None:
        return compare("softmax", f"weights = softmax({what}), rows sum to 1", compute)
    joined = f"sink, {what}" if attention.sink_first else f"{what}, sink"
    text = f"weights = softmax([{joined}]) without the sink: rows sum to 1 minus the sink's share"
    return compare("softmax", text, compute)


def causal_weights(value: Values, weights: Node) -> Check:
    """No position attends to a later one: the weights are exactly 0 above the diagonal."""
    return compare(
        "causal",
        "weights[i,j] = 0 exactly where j > i",
        lambda: (value(weights), value(weights).tril()),
    )


def causal_mask(value: Values, op: Node, mask: Node) -> Check:
    """The mask hides all that lies above the diagonal."""

    def compute() -> tuple[Tensor, Tensor]:
        hidden = hidden_by(op, value(mask))
        return hidden, hidden | torch.ones_like(hidden).triu(1)

    return compare("mask", "mask[i,j] hides every j > i", compute)


def hidden_by(op: Node, mask: Tensor) -> Tensor:
    """Where a mask hides the scores, as booleans of the mask's shape.

    An added mask hides with a very negative number, a subtracted one with a very positive one; `masked_fill` hides
    where it is true; `where(mask, scores, …)` and scaled_dot_product_attention hide where it is false. Gates and floors
    hide nothing.
    """
    if applies(op) in ("gates", "floors"):
        return torch.zeros_like(mask, dtype=torch.bool)
    if mask.dtype != torch.bool:
        return mask >= 1e4 if applies(op) == "subtracts" else mask <= -1e4
    return mask if applies(op) == "hides" else ~mask


def head_outputs(value: Values, attention: Attention) -> Check:
    """Each head's output is the mean of the values, weighted."""
    assert attention.head_outputs is not None
    result = attention.head_outputs
    if attention.mixing is not None:
        mixing = attention.mixing
        name = "weights" if mixing is attention.weights else "dropout(weights)"

        def mix() -> tuple[Tensor, Tensor]:
            weights, values = _alike(value(mixing), _entering(value, attention, "value"))
            actual = _laid_out(value(result), attention.orders.get("head_outputs"))
            return actual, (weights @ values).reshape(actual.shape)

        return compare("mix", f"head_outputs = {name} · value_heads", mix)

    def compute() -> tuple[Tensor, Tensor]:
        query, key = _alike(value(attention.entering["query"]), _keys(value, attention))
        values = _alike(query, value(attention.entering["value"]))[1]
        score = _scaled(value, query @ key.transpose(-2, -1), attention.factors)
        if attention.causal_flag:
            score = score.masked_fill(torch.ones_like(score, dtype=torch.bool).triu(1), float("-inf"))
        for _, each in attention.masks:
            mask = value(each)
            score = score.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else score + mask
        return value(result), score.softmax(-1) @ values

    what = "query_heads · key_headsᵀ · scale" + (" + mask" if attention.masks or attention.causal_flag else "")
    return compare("mix", f"head_outputs = softmax({what}) · value_heads", compute)


def is_causal(value: Values, attention: Attention) -> bool | str:
    """Whether an attention hides later positions; a reason where that cannot be told."""
    if attention.causal_flag:
        return True
    if not attention.masks:
        return False
    hidden = _hidden(value, attention)
    complete = len(hidden) == len(attention.masks)
    if attention.weights is not None:
        with suppress(Unavailable):
            hidden, complete = [value(attention.weights) == 0], True
    if any(mask.shape[-2:] == (1, 1) for mask in hidden):
        return "with a single position a causal mask cannot be told from none"
    if any(map(_is_causal, hidden)):
        return True
    return False if complete else "whether its mask is causal cannot be told without values"


def _is_causal(hidden: Tensor) -> bool:
    rows, columns = hidden.shape[-2:] if hidden.dim() >= 2 else (1, 0)
    above = torch.ones(rows, columns, dtype=torch.bool, device=hidden.device).triu(1)
    return rows == columns and bool(hidden[..., above].all()) and not bool(hidden.all())


def _hidden(value: Values, attention: Attention) -> list[Tensor]:
    """What each mask hides, as far as the masks are known."""
    found = []
    for op, mask in attention.masks:
        with suppress(Unavailable):
            found.append(hidden_by(op, value(mask)))
    return found
