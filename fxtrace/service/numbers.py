"""How far the numbers of two traces are apart, read piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxtrace.api import TensorReader
from fxtrace.diff import GraphDiff, ValueChange
from fxtrace.dtypes import numpy_dtype
from fxtrace.graph import Graph
from fxtrace.ir.trace import Progress

_ELEMENTS = 1 << 18  # of either tensor, that are held at a time


def value_changes(
    diff: GraphDiff,
    graphs: tuple[Graph, Graph],
    open_tensors: tuple[Callable[[str], TensorReader], Callable[[str], TensorReader]],
    report: Callable[[Progress], None],
) -> Iterator[ValueChange]:
    """By role, how far the tensors of the pairs that share it and have one shape are apart.

    Args:
        diff: which nodes correspond.
        graphs: the two.
        open_tensors: open a tensor of either trace by its name.
        report: called as the work goes on.
    """
    pairs = [
        (role, pair.before.name, pair.after.name)
        for pair in diff.pairs
        for role in pair.before.roles[:1]
        if _shape(graphs[0], pair.before.name) == _shape(graphs[1], pair.after.name) is not None
    ]
    for done, (role, ours, theirs) in enumerate(pairs):
        report(Progress("compare", done, len(pairs)))
        with open_tensors[0](ours) as first, open_tensors[1](theirs) as second:
            yield ValueChange(role, first.tensor, second.tensor, *largest_difference(first, second))


def largest_difference(first: TensorReader, second: TensorReader) -> tuple[float, float]:
    """The greatest absolute difference of two tensors of one shape, and the greatest absolute value of the first.

    Computed in double precision. Elements that are both NaN, or the same infinity, do not differ; where one alone is
    NaN the difference is NaN.
    """
    largest = scale = 0.0
    for a, b in zip(_pieces(first), _pieces(second), strict=True):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.where(same, 0.0, np.abs(a - b))
        most = float(apart.max(initial=0.0))
        largest = math.nan if math.isnan(most) or math.isnan(largest) else max(largest, most)
        size = np.abs(a)
        scale = max(scale, float(size[~np.isnan(size)].max(initial=0.0)))
    return largest, scale


def _pieces(reader: TensorReader) -> Iterator[NDArray[Any]]:
    dtype = numpy_dtype(reader.spec.dtype)
    kind = np.complex128 if dtype.kind == "c" else np.float64
    for chunk in reader.chunks(_ELEMENTS * dtype.itemsize):
        yield np.frombuffer(chunk, dtype).astype(kind)


def _shape(graph: Graph, node: str) -> tuple[int, ...] | None:
    spec = graph.node(node).spec
    return spec.shape if spec else None
