"""Matrix products, however they are written: which factor has the rows, and in which order its dimensions are.

matmul, bmm    (… × rows × summed) · (… × summed × columns) = … × rows × columns
einsum         the same dimensions in any order
"""

from __future__ import annotations

import string
from dataclasses import dataclass

from fxtrace.graph import Node, Ref
from fxtrace.roles.flow import Flow, shape_of

Order = tuple[int, ...]
"""A permutation of dimensions."""


@dataclass(frozen=True, slots=True)
class Product:
    """The names of two factors. Each order brings a tensor into the layout of a plain product; None changes nothing."""

    left: str
    right: str
    left_order: Order | None = None
    right_order: Order | None = None
    order: Order | None = None
    """The result's."""


def product_operands(node: Node) -> tuple[str, str] | None:
    """Names of the left and the right factor of a matrix product, as they are written."""
    given = (*node.args, *node.kwargs.values())
    inner = (each for arg in given for each in (arg if isinstance(arg, tuple | list) else (arg,)))
    args = [arg.node for arg in inner if isinstance(arg, Ref)]
    if node.target.rpartition(".")[2] in ("baddbmm", "addbmm", "addmm"):
        args = args[1:]
    return (args[0], args[1]) if len(args) == 2 else None


def read_product(flow: Flow, node: Node, left: str | None = None) -> Product | None:
    """The factors of a matrix product; None where it is no product over a single dimension.

    Args:
        flow: of the graph.
        node: the product.
        left: the factor that has the rows, its last two dimensions being rows and summed. Without it, the rows and
            columns are the last two dimensions of the result.
    """
    operands = product_operands(node)
    if operands is None:
        return None
    if not node.target.endswith("einsum"):
        return Product(*operands) if left in (None, operands[0]) else None
    labels = _labels(flow, node, operands)
    if labels is None:
        return None
    one, other, result = labels
    swapped = left == operands[1] if left is not None else result[-2] not in one
    if swapped:
        operands, one, other = (operands[1], operands[0]), other, one
    if left not in (None, operands[0]):
        return None
    batch = set(one) & set(other) & set(result)
    rows, columns, summed = (set(one) - set(other), set(other) - set(one), (set(one) & set(other)) - batch)
    if not len(rows) == len(columns) == len(summed) == 1 or set(result) != batch | rows | columns:
        return None
    (row,), (column,), (inner,) = rows, columns, summed
    leading = [each for each in (result if left is None else one) if each in batch]
    return Product(
        *operands,
        _order(one, [*leading, row, inner]),
        _order(other, [*leading, inner, column]),
        _order(result, [*leading, row, column]),
    )


def transposed(order: Order | None) -> Order | None:
    """An order with its last two dimensions swapped; of a plain layout None."""
    if order is None:
        return None
    *leading, row, column = order
    swapped = (*leading, column, row)
    return swapped if swapped != tuple(range(len(order))) else None


def _labels(flow: Flow, node: Node, operands: tuple[str, str]) -> tuple[str, str, str] | None:
    """The letters of an einsum's factors and result, those behind `...` spelled out."""
    equation = node.args[0] if node.args else node.kwargs.get("equation")
    if not isinstance(equation, str):
        return None
    factors, arrow, result = equation.replace(" ", "").partition("->")
    terms = factors.split(",")
    if len(terms) != 2:
        return None
    if not arrow:
        once = sorted(letter for letter in set(factors) - set(",.") if factors.count(letter) == 1)
        result = ("..." if "..." in factors else "") + "".join(once)
    unused = "".join(letter for letter in string.ascii_letters if letter not in equation)
    ranks = [len(shape_of(flow.graph.by_name[name]) or ()) for name in operands]
    hidden = max(rank - len(term.replace("...", "")) for rank, term in zip(ranks, terms, strict=True))
    spelled = [
        term.replace("...", unused[hidden - rank + len(term.replace("...", "")) : hidden] if "..." in term else "")
        for rank, term in zip(ranks, terms, strict=True)
    ]
    whole = (spelled[0], spelled[1], result.replace("...", unused[:hidden]))
    return whole if all(len(set(term)) == len(term) >= 2 for term in whole) else None


def _order(labels: str, wanted: list[str]) -> Order | None:
    order = tuple(labels.index(each) for each in wanted)
    return order if order != tuple(range(len(order))) else None
