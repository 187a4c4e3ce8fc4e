"""The identities that make a mixture of experts true, tried on the captured values.

Which expert a row of tokens went to is not read off the graph's bookkeeping (sorts, offsets, one-hot masks): rows are
found again by their values, and the block's output is computed anew from weights, chosen experts and experts' outputs.
"""

from __future__ import annotations

from functools import partial

from fxtrace.extras import needed_for
from fxtrace.graph import Check, Node, Ref
from fxtrace.roles.experts import Mixture
from fxtrace.roles.identities import Unavailable, Values, compare, weight_and_bias
from fxtrace.roles.products import product_operands
from fxtrace.roles.router import name_of

with needed_for("checking identities"):
    import torch
    from torch import Tensor
    from torch.nn import functional


def probabilities(value: Values, mixture: Mixture) -> Check:
    """Probabilities are the softmax of the logits of all experts, or the sigmoid of each."""
    found = mixture.probabilities
    assert found is not None
    name = "softmax" if found.kind == "softmax" else "sigmoid"

    def compute() -> tuple[Tensor, Tensor]:
        logits = value(mixture.logits).to(value(found).dtype)
        return value(found), logits.softmax(-1) if name == "softmax" else logits.sigmoid()

    return compare(name, f"probabilities = {name}(logits)", compute)


def chosen(value: Values, mixture: Mixture) -> Check:
    """No expert that was not chosen for a token has more than one that was."""
    assert mixture.chosen is not None
    indices, of = mixture.chosen, mixture.selection or mixture.logits

    def compute() -> tuple[Tensor, Tensor]:
        scores = value(of).reshape(-1, mixture.count)
        picked = value(indices).reshape(scores.shape[0], -1)
        return scores.gather(1, picked).sort(-1, descending=True).values, scores.topk(picked.shape[1]).values

    what = {mixture.logits.name: "logits", mixture.probabilities and mixture.probabilities.name: "probabilities"}
    return compare("top-k", f"chosen = indices of the largest {what.get(of.name, 'selection')}", compute)


def weights(value: Values, mixture: Mixture) -> Check | None:
    """Weights are the chosen experts' probabilities, as they are, normalised or scaled; None where neither holds."""
    if mixture.chosen is None:
        return None
    base, name = (mixture.probabilities, "probabilities") if mixture.probabilities else (mixture.logits, "logits")
    try:
        scores = value(base).reshape(-1, mixture.count).double()
        picked = value(mixture.chosen).reshape(len(scores), -1)
        actual = shares(value, mixture).gather(1, picked).float()
    except (Unavailable, RuntimeError):
        return None
    scores, of = scores.gather(1, picked), f"{name}[chosen]"
    formulas = {of: scores}
    if mixture.probabilities is None:
        formulas = {f"softmax({of})": scores.softmax(-1), f"sigmoid({of})": scores.sigmoid()}
    formulas |= {f"{text} / Σ": given / given.sum(-1, keepdim=True) for text, given in formulas.items()}
    for scaled in (False, True):
        for text, given in formulas.items():
            factor = float(actual.sum() / given.sum()) if scaled else 1.0
            statement = f"weights = {text}" + (f" · {factor:.4g}" if scaled else "")
            check = compare("weights", statement, partial(_pair, actual, (given * factor).float()))
            if check.held:
                return check
    return None


def _pair(actual: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    return actual, expected


def shares(value: Values, mixture: Mixture) -> Tensor:
    """Each expert's weight for each token, tokens × n_experts: 0 where it was not chosen."""
    tokens = value(mixture.logits).numel() // mixture.count
    given = value(mixture.weights).double()
    if mixture.chosen is None or mixture.dense:
        return given.reshape(tokens, mixture.count)
    picked = value(mixture.chosen).reshape(tokens, -1)
    return torch.zeros(tokens, mixture.count, dtype=given.dtype).scatter_add(1, picked, given.reshape(tokens, -1))


def number_experts(value: Values, mixture: Mixture) -> list[int | None]:
    """Each expert's number: as the graph has it, or the one whose weights its rows were multiplied with."""
    numbers = list(mixture.numbers)
    for i, (result, node) in enumerate(zip(mixture.results, mixture.products, strict=False)):
        if numbers[i] is not None or mixture.stacked or mixture.products.count(node) > 1:
            continue
        try:
            given, weighted = _flat(value(result)).double(), _flat(value(node)).double()
            tokens, rows = _alike(value, mixture, [_flat(value(mixture.experts[i].source))])
            share = _of_tokens(shares(value, mixture), tokens)[rows]
        except (Unavailable, RuntimeError):
            continue
        allowed = 1e-4 * float(weighted.abs().max().clamp_min(1e-6)) if weighted.numel() else 0.0
        fits = [
            e
            for e in range(mixture.count)
            if e not in numbers
            and bool((share[:, e] != 0).any())
            and float((given * share[:, e : e + 1] - weighted).abs().max()) <= allowed
        ]
        numbers[i] = fits[0] if len(fits) == 1 else None
    return numbers


def routed(value: Values, mixture: Mixture) -> Check:
    """The routed output is the sum of the chosen experts' outputs, weighted: computed from those tensors anew."""

    def weigh_outputs() -> tuple[Tensor, Tensor]:
        share = shares(value, mixture)
        inputs, outputs, experts = _rows(value, mixture)
        tokens, rows = _alike(value, mixture, [inputs])
        key, order = (rows * mixture.count + experts).sort()
        token, expert = share.nonzero(as_tuple=True)
        wanted = tokens[token] * mixture.count + expert
        at = torch.searchsorted(key, wanted).clamp_max(max(0, len(key) - 1))
        there = key[at] == wanted
        if mixture.chosen is None and not bool(there.all()):
            raise RuntimeError("not every expert works on every token")
        # Of those that were chosen, an expert that is full drops some.
        token, expert, row = token[there], expert[there], order[at[there]]
        expected = torch.zeros(len(tokens), outputs.shape[1], dtype=torch.float64)
        expected.index_add_(0, token, share[token, expert, None] * outputs[row].double())
        return value(mixture.routed).reshape(expected.shape), expected.to(value(mixture.routed).dtype)

    def weigh_inputs() -> tuple[Tensor, Tensor]:
        inputs, outputs, experts = _rows(value, mixture)
        x, share = _flat(value(mixture.source)).double(), shares(value, mixture)
        token = torch.arange(len(x)).repeat(mixture.count)
        if len(token) != len(inputs):
            raise RuntimeError(f"{len(inputs)} rows are not {len(x)} tokens for each of {mixture.count} experts")
        difference = (share[token, experts, None] * x[token] - inputs.double()).abs().max()
        if float(difference) > 1e-4 * float(x.abs().max()):
            raise RuntimeError("the experts' inputs are not the tokens times their weights")
        expected = torch.zeros_like(x).index_add(0, token, outputs.double())
        return value(mixture.routed).reshape(expected.shape), expected.to(value(mixture.routed).dtype)

    if mixture.before:
        return compare("mixture", "routed = Σₑ expertₑ(weightsₑ · input)", weigh_inputs)
    return compare("mixture", "routed = Σₑ weightsₑ · expertₑ(input)", weigh_outputs)


def project(value: Values, mixture: Mixture, result: Node, source: Node, statement: str) -> Check:
    """An expert's projection, with its bias; where experts are stacked, each row's by its own expert's weights."""
    projection = mixture.projections[result.name]
    node = projection.product

    def compute() -> tuple[Tensor, Tensor]:
        if mixture.stacked:
            expected = _product(value, mixture, node, source)
        else:
            weight, bias = weight_and_bias(value, node)
            expected = functional.linear(value(source), weight, bias)
        expected = expected.reshape(value(result).shape)
        for each in projection.biases:
            expected = expected + value(each)
        return value(result), expected

    return compare("linear", statement, compute)


def _product(value: Values, mixture: Mixture, node: Node, source: Node) -> Tensor:
    name, names = name_of(node), product_operands(node)
    if name == "einsum":
        operands = [value.named(each) for each in node.inputs]
        return torch.einsum(str(node.args[0]), *operands)
    if name.startswith("grouped_mm"):
        rows, weight = value(source), value.named(node.inputs[1])
        experts = _experts_of_rows(value, mixture, node, len(rows))
        result = rows.new_zeros(len(rows), weight.shape[-1])
        for e in range(len(weight)):
            result[experts == e] = rows[experts == e] @ weight[e]
        return result
    if names is None or name not in ("bmm", "matmul"):
        raise Unavailable(f"'{node.name}' is no product that is computed here")
    return value.named(names[0]) @ value.named(names[1])


def output(value: Values, mixture: Mixture) -> Check:
    """The block's output is the routed experts' and what is added to it: the shared expert's, or a bias."""
    assert mixture.added is not None
    added = mixture.added

    def compute() -> tuple[Tensor, Tensor]:
        result = value(mixture.output)
        other = value(added)
        other = other.reshape(result.shape) if other.numel() == result.numel() else other
        return result, mixture.scale * value(mixture.routed).reshape(result.shape) + other

    factor = f"{mixture.scale:.4g} · " if mixture.scale != 1 else ""
    return compare("sum", f"output = {factor}routed + {'shared' if mixture.shared else 'bias'}", compute)


def shared(value: Values, mixture: Mixture) -> Check:
    """What is added is the shared expert's output, times its weight."""
    expert, weight, added = mixture.shared, mixture.shared_weight, mixture.added
    assert expert is not None
    assert weight is not None
    assert added is not None

    def compute() -> tuple[Tensor, Tensor]:
        weighted = value(expert.output) * value(weight)
        return value(added).reshape(weighted.shape), weighted

    return compare("mul", "shared = shared_expert.weight · shared_expert.output", compute)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _alike(value: Values, mixture: Mixture, rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """A number for each different row of the input, for every token and for every row that an expert read."""
    x = _flat(value(mixture.source))
    _, found = torch.unique(torch.cat([x, *rows]), dim=0, return_inverse=True)
    return found[: len(x)], found[len(x) :]


def _of_tokens(share: Tensor, tokens: Tensor) -> Tensor:
    """Weights by the number of the row's value: alike rows are routed alike. Rows of no token have none."""
    result = torch.zeros(int(tokens.max()) + share.shape[0] + 1, share.shape[1], dtype=share.dtype)
    result[tokens] = share
    return result


def _rows(value: Values, mixture: Mixture) -> tuple[Tensor, Tensor, Tensor]:
    """Every row that an expert read, what it gave for it, and which expert it was."""
    if mixture.stacked:
        read, given = value(mixture.experts[0].source), value(mixture.results[0])
        if read.shape[-1] == given.shape[-1] == 1:  # columns, one for each row
            read, given = read.squeeze(-1), given.squeeze(-1)
        size = given.numel() // given.shape[-1]
        experts = _experts_of_rows(value, mixture, mixture.experts[0].output, size)
        rows = _input_rows(read, mixture.count, size, given)
        return rows, _flat(given), experts
    if any(number is None for number in mixture.numbers):
        raise Unavailable("which expert each of them is cannot be told")
    read_rows = [_flat(value(expert.source)) for expert in mixture.experts]
    numbers = [
        torch.full((len(rows),), number)
        for rows, number in zip(read_rows, mixture.numbers, strict=True)
        if number is not None
    ]
    return torch.cat(read_rows), torch.cat([_flat(value(each)) for each in mixture.results]), torch.cat(numbers)


def _input_rows(read: Tensor, count: int, size: int, given: Tensor) -> Tensor:
    """The rows that were read, one for each row given: every expert may have read all of them."""
    rows = _flat(read)
    if len(rows) * count == size and len(rows) != size:
        return rows.repeat(count, 1) if given.shape[0] == count else rows.repeat_interleave(count, 0)
    return rows


def _experts_of_rows(value: Values, mixture: Mixture, node: Node, size: int) -> Tensor:
    """Which expert's weights a product over stacked ones takes for each row."""
    if name_of(node).startswith("grouped_mm"):
        offsets = node.kwargs.get("offs", node.args[2] if len(node.args) > 2 else None)
        if not isinstance(offsets, Ref):
            raise Unavailable("the groups of the product are not in the graph")
        return torch.searchsorted(value.named(offsets.node).to(torch.int64), torch.arange(size), right=True)
    lookup = mixture.lookups.get(node.name)
    if lookup is not None:
        return value(lookup).reshape(-1)
    shape = value(mixture.results[0]).shape
    if shape[0] == mixture.count:
        return torch.arange(mixture.count).repeat_interleave(size // mixture.count)
    if len(shape) > 1 and shape[-2] == mixture.count:
        return torch.arange(mixture.count).repeat(size // mixture.count)
    raise Unavailable("no dimension of the experts' outputs is theirs")
