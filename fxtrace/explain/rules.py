"""How an op joins its inputs' shapes to its result's: a line for each, said only where the shapes bear it out."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from fxtrace.graph import Graph, Node, Ref, show
from fxtrace.ops import POINTWISE

Shape = tuple[int, ...]

_PERMUTING = ("transpose", "permute", "t", "T", "mT", "swapaxes", "swapdims", "movedim", "adjoint")
_SIGNS = {"add": "+", "sub": "-", "mul": "·", "div": "/"}


def rule(graph: Graph, node: Node) -> str:
    """How a node's shape comes from those of its inputs; only `inputs → result` where no rule is known to hold."""
    if node.spec is None:  # several tensors, or none
        return ""
    result = node.spec.shape
    shapes = [spec.shape for spec in (graph.by_name[name].spec for name in node.inputs) if spec is not None]
    weights = [graph.parameters[name].shape for name in node.parameters if name in graph.parameters]
    match node.kind:
        case "matmul" if len(shapes) in (1, 2):
            return product_rule(shapes[0], shapes[-1], result)
        case "linear" if shapes and weights:
            return _linear_rule(shapes[0], weights[0], result)
        case "embedding" if shapes and weights:
            return f"each of the {prod(shapes[0])} ids of {_t(shapes[0])} is a row of {_t(weights[0])} → {_t(result)}"
        case "softmax" if shapes and shapes[0] == result:
            return _softmax_rule(node, result)
        case "norm" if shapes and shapes[0] == result:
            return f"{_t(result)} normalised along its last {result[-1]}: each row alone, so the shape stays"
        case "view" if shapes:
            return _view_rule(shapes[0], result, node.target.rpartition(".")[2] in _PERMUTING)
        case "select" if shapes:
            return f"a part of {_t(shapes[0])} → {_t(result)}"
        case "join" if shapes:
            return f"{', '.join(map(_t, shapes))} side by side → {_t(result)}"
        case "reduce" if shapes:
            return f"{_t(shapes[0])} → {_t(result)}: reduced"
        case kind if kind in POINTWISE and shapes:
            return _pointwise_rule(node, shapes, result)
    return f"{', '.join(map(_t, shapes))} → {_t(result)}" if shapes else ""


def product_rule(left: Shape, right: Shape, result: Shape) -> str:
    """A matrix product, as `torch.matmul` defines it; what the two share is summed away."""
    line = f"{_t(left)} @ {_t(right)} → {_t(result)}"
    if len(left) < 2 or len(right) < 2 or left[-1] != right[-2] or (left[-2], right[-1]) != result[-2:]:
        return line
    return f"{line}: rows of {left[-1]} times columns of {right[-2]}, summed away; {left[-2]} rows, {right[-1]} columns"


def _linear_rule(given: Shape, weight: Shape, result: Shape) -> str:
    if len(weight) != 2 or not given or not result or given[:-1] != result[:-1]:
        return f"{_t(given)} → {_t(result)}"
    if (weight[1], weight[0]) == (given[-1], result[-1]):  # torch.nn.Linear keeps its weight as (out, in)
        return f"{_t(given)} @ {_t(weight)}ᵀ → {_t(result)}: {given[-1]} summed away, {result[-1]} in its place"
    if weight == (given[-1], result[-1]):
        return f"{_t(given)} @ {_t(weight)} → {_t(result)}: {given[-1]} summed away, {result[-1]} in its place"
    return f"{_t(given)} → {_t(result)}"


def _softmax_rule(node: Node, shape: Shape) -> str:
    dim = node.kwargs.get("dim", next((arg for arg in node.args[1:] if isinstance(arg, int)), None))
    if not isinstance(dim, int) or isinstance(dim, bool) or not -len(shape) <= dim < len(shape):
        return f"{_t(shape)} → {_t(shape)}"
    return f"softmax of {_t(shape)} along dimension {dim}, of {shape[dim]}: each row sums to 1, and the shape stays"


def _view_rule(given: Shape, result: Shape, permutes: bool) -> str:
    if prod(given) != prod(result):
        return f"{_t(given)} → {_t(result)}: repeated"
    if permutes:
        return f"{_t(given)} → {_t(result)}: dimensions change places"
    if [n for n in given if n != 1] == [n for n in result if n != 1]:
        return f"{_t(given)} → {_t(result)}" if given != result else ""
    parts = _regrouped(given, result)
    return f"{_t(given)} → {_t(result)}: the same {prod(result)} numbers{', ' + parts if parts else ''}"


def _regrouped(given: Shape, result: Shape) -> str:
    """`128 = 4·32`: how sizes are cut up or put together, where the first differing one says it."""
    start = next((i for i, (a, b) in enumerate(zip(given, result, strict=False)) if a != b), None)
    if start is None:
        return ""
    for one, many in ((given[start], result[start:]), (result[start], given[start:])):
        for count in range(2, len(many) + 1):
            if prod(many[:count]) == one and 1 not in many[:count]:
                pieces = "·".join(map(str, many[:count]))
                return f"{one} = {pieces}" if one == given[start] else f"{pieces} = {one}"
    return ""


def _pointwise_rule(node: Node, shapes: Sequence[Shape], result: Shape) -> str:
    sign = _SIGNS.get(node.kind, "")
    if len(shapes) == 1:
        other = next((show(arg) for arg in node.args if isinstance(arg, int | float)), "") if sign else ""
        reads_twice = sum(isinstance(arg, Ref) for arg in node.args) > 1
        given = f" {sign} {_t(shapes[0])}" if sign and reads_twice else f" {sign} {other}" if other else ""
        return f"{_t(shapes[0])}{given} → {_t(result)}: element by element"
    line = f" {sign or 'with'} ".join(map(_t, shapes)) + f" → {_t(result)}: element by element"
    if all(shape == result for shape in shapes):
        return f"{line}, of equal shapes"
    repeated = [shape for shape in shapes if shape != result]
    return f"{line}, {' and '.join(map(_t, repeated))} repeated along what it lacks or has once"


def _t(shape: Shape) -> str:
    return f"({','.join(map(str, shape))})"
