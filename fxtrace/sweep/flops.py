"""FLOPs of a graph: two for each multiply–add of its matrix products, as formulas in sizes of its tensors.

* linear, matmul, mm, bmm, mv, dot, addmm, baddbmm: 2 · elements of the result · the size that is summed over. Each
  element is a dot product of that length.
* grouped_mm, of the tokens of each expert with that expert's matrix: the same, since each row of the result is one
  product with one matrix, whichever the router chose. Rows that the offsets leave out are counted, too. Where the rows
  are not sorted into groups but the inner size is (matrix by matrix, a result for each group): 2 · rows · columns ·
  inner size, for all groups together.
* convolution: 2 · elements of the result · elements of the weight for one output channel. Each element is a dot product
  with one filter (Dumoulin and Visin, "A guide to convolution arithmetic", 2016).
* transposed convolution: 2 · elements of the input · elements of the weight for one input channel: the same, with input
  and result exchanged (ibid., chapter 4).
* fused attention: 2 · (elements of the query + elements of the result) · keys: q·kᵀ, then weights·v (Vaswani et al.,
  "Attention Is All You Need", 2017, equation 1); a mask saves nothing.
* einsum of two tensors: 2 · the sizes of all its letters: a multiply–add for each combination of indices.

Nothing else is counted: biases, norms, softmaxes and element-wise ops are few beside these. It is what
`torch.utils.flop_counter` counts. Ops that hide products (recurrent ones, modules that were not traced into) leave a
graph's FLOPs untold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fxtrace.graph import Graph, Node, refs

Size: TypeAlias = tuple[str, int]
"""A dimension of a tensor of the graph or of a parameter, by its name and the dimension's number."""

_PRODUCTS = frozenset({"linear", "matmul", "mm", "bmm", "mv", "dot"})
_ADDED_TO = frozenset({"addmm", "baddbmm", "addmv"})
_GROUPED = frozenset({"grouped_mm", "grouped_mm_fallback"})
_FUSED = frozenset({"scaled_dot_product_attention"})
_NAMED = (
    *("input", "self", "query", "mat", "mat1", "mat_a", "batch1"),
    *("key", "weight", "other", "mat2", "mat_b", "batch2", "vec", "value"),
)
"""The order of operands that are given by name."""
_HIDING = frozenset({"recurrent", "attention", "linear", "matmul", "convolution"})


@dataclass(frozen=True, slots=True)
class Products:
    """The matrix products of a graph.

    Attributes:
        factors: for each product, the node that it is of and the sizes whose product, doubled, is its FLOPs; an op of
            several products has several.
        hidden: the nodes whose products cannot be seen.
    """

    factors: tuple[tuple[str, tuple[Size, ...]], ...]
    hidden: tuple[str, ...]


def products(graph: Graph) -> Products:
    """The matrix products of a graph."""
    ranks = {name: len(spec.shape) for name, spec in graph.tensors()}
    ranks |= {name: len(each.shape) for name, each in graph.parameters.items() if name not in ranks}
    factors: list[tuple[str, tuple[Size, ...]]] = []
    hidden: list[str] = []
    for node in graph.nodes:
        found = _of(node, graph, ranks)
        if found is None:
            hidden.append(node.name)
        else:
            factors += ((node.name, each) for each in found)
    return Products(tuple(factors), tuple(hidden))


def _of(node: Node, graph: Graph, ranks: Mapping[str, int]) -> list[tuple[Size, ...]] | None:
    """The sizes to multiply for each product of a node; None where they cannot be told."""
    if node.kind == "module":
        return None
    if node.kind not in _HIDING:
        return []
    tensors = [each for each in _operands(node) if each in ranks]
    name = node.target.rpartition(".")[2]
    if node.op == "call_module":
        name = "linear" if node.kind == "linear" and len(tensors) == 1 else graph.modules_by_path[node.target].type
    out = node.name
    if out not in ranks or not tensors:
        return None
    result = _all(out, ranks)
    if node.kind == "convolution":
        return _convolution(node, name, tensors, ranks)
    if name in _FUSED and len(tensors) >= 3:
        query, key = tensors[:2]
        keys = (key, ranks[key] - 2)
        return [(*_all(query, ranks), keys), (*result, keys)]
    if name == "einsum":
        return _einsum(node, tensors, ranks)
    if name.strip("_") in _GROUPED and len(tensors) > 1:
        left, right = tensors[:2]
        inner = (left, ranks[left] - 1)
        return [(*result[1:], inner) if ranks[left] == ranks[right] == 2 else (*result, inner)]
    at = 1 if name in _ADDED_TO else 0
    if (name in _PRODUCTS or name in _ADDED_TO) and len(tensors) > at and ranks[tensors[at]]:
        return [(*result, (tensors[at], ranks[tensors[at]] - 1))]
    return None


def _convolution(
    node: Node, name: str, tensors: Sequence[str], ranks: Mapping[str, int]
) -> list[tuple[Size, ...]] | None:
    weight = f"{node.target}.weight" if node.op == "call_module" else tensors[1] if len(tensors) > 1 else ""
    if weight not in ranks:
        return None
    transposed = "transpose" in name.lower() or (name == "convolution" and node.args[6:7] == (True,))
    whole = tensors[0] if transposed else node.name
    return [(*_all(whole, ranks), *_all(weight, ranks)[1:])]


def _einsum(node: Node, tensors: Sequence[str], ranks: Mapping[str, int]) -> list[tuple[Size, ...]] | None:
    """Of two tensors; the order in which more are multiplied is not in the graph."""
    equation = node.args[0] if node.args else None
    if not isinstance(equation, str) or len(tensors) != 2 or "." in equation:
        return None
    sides = equation.replace(" ", "").partition("->")[0].split(",")
    if len(sides) != 2 or any(len(side) != ranks[each] for side, each in zip(sides, tensors, strict=True)):
        return None
    sizes = {letter: (each, dim) for side, each in zip(sides, tensors, strict=True) for dim, letter in enumerate(side)}
    return [tuple(sizes.values())]


def _all(tensor: str, ranks: Mapping[str, int]) -> tuple[Size, ...]:
    return tuple((tensor, dim) for dim in range(ranks[tensor]))


def _operands(node: Node) -> list[str]:
    """The nodes among the arguments, those of a nest too, each as often as it is there; named ones by `_NAMED`."""
    named = sorted(node.kwargs, key=lambda name: _NAMED.index(name) if name in _NAMED else len(_NAMED))
    return [each for arg in (*node.args, *(node.kwargs[name] for name in named)) for each in refs(arg)]
