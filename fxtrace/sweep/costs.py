"""What a graph costs: parameters, bytes and FLOPs, of one configuration or, by formulas, of many at once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from fxtrace.dims import Columns, Finding, Formula, Formulas
from fxtrace.dtypes import numpy_dtype
from fxtrace.graph import Graph, Parameter, TensorSpec
from fxtrace.sweep.flops import products

_NO_ACTIVATION = frozenset({"input", "constant", "view", "select"})
"""Kinds of ops that compute no tensor of their own."""
_LARGEST = 2**62

Ints: TypeAlias = "NDArray[np.int64]"
Numbers = TypeVar("Numbers", "NDArray[np.int64]", "NDArray[np.float64]")
_Monomials: TypeAlias = "Counter[tuple[str, ...]]"
"""A sum of products of sizes: how often each product is added. The sizes are texts of formulas, or of numbers."""


class NoFormula(Exception):
    """A size has no formula, and the message says which."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a configuration comes to; see `fxtrace.sweep.SweepRow`."""

    parameters: int
    activation_bytes: int
    flops: int | None
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class CostColumns:
    """What many configurations come to, an entry for each.

    Attributes:
        fits: whether the formulas fit it at all: every division in them is whole, and every size above 0.
        too_large: whether a number would take more than 62 bits.
    """

    fits: NDArray[np.bool_]
    too_large: NDArray[np.bool_]
    parameters: Ints
    activation_bytes: Ints
    flops: Ints | None
    shapes: Mapping[str, Sequence[Ints]]


class Costs:
    """The costs of a graph as sums of products of its sizes.

    Args:
        graph: the graph.
        formulas: of its sizes; without them the graph's own sizes are meant.
        tensors: whose shapes are wanted: the name that each is asked for by, and its own.

    Raises:
        NoFormula: a size has none.

    Attributes:
        hidden: nodes with products that cannot be seen; where there are any, FLOPs are None.
    """

    def __init__(
        self, graph: Graph, formulas: Formulas | None = None, tensors: Mapping[str, str] | None = None
    ) -> None:
        shapes = {
            name: _texts(name, spec.shape, None if formulas is None else formulas.tensors)
            for name, spec in graph.tensors()
        }
        own = {
            name: _texts(name, each.shape, None if formulas is None else formulas.parameters)
            for name, each in graph.parameters.items()
        }
        computed = {name for node in graph.nodes if node.kind not in _NO_ACTIVATION for name, _ in node.tensors}
        specs = dict(graph.tensors())
        self._parameters = Counter(own[each.name] for each in graph.parameters.values() if _counts(each))
        self._activations = _bytes(((name, spec) for name, spec in specs.items() if name in computed), shapes)
        seen = products(graph)
        self.hidden = seen.hidden
        every = {**own, **shapes}
        self._flops: _Monomials = Counter()
        for _, sizes in seen.factors:
            self._flops["2", *(every[name][dim] for name, dim in sizes)] += 1
        self._shapes = {asked: shapes[name] for asked, name in (tensors or {}).items()}
        self._texts = sorted({text for shape in every.values() for text in shape if not text.isdigit()})

    def cost(self) -> Cost:
        """The costs of the graph's own sizes; only without formulas."""
        return Cost(
            _total(self._parameters),
            _total(self._activations),
            None if self.hidden else _total(self._flops),
            {asked: tuple(map(int, shape)) for asked, shape in self._shapes.items()},
        )

    def costs(self, columns: Columns, count: int) -> CostColumns:
        """The costs of `count` configurations.

        Args:
            columns: the named sizes, an entry for each configuration.
            count: how many configurations there are.

        Raises:
            KeyError: a formula names a size that has no column.
        """
        fits = np.ones(count, bool)
        sizes: dict[str, Ints] = {}
        for text in self._texts:
            sizes[text], whole = Formula(text).exact_values(columns, count)
            fits &= whole & (sizes[text] > 0)
        sums = (self._parameters, self._activations, self._flops)
        floats = {text: values.astype(np.float64) for text, values in sizes.items()}
        most = np.max([_sums(each, floats, np.ones(count)) for each in sums], axis=0)
        parameters, activation_bytes, flops = (_sums(each, sizes, np.ones(count, np.int64)) for each in sums)
        constant = np.ones(count, np.int64)
        return CostColumns(
            fits,
            most > _LARGEST,
            parameters,
            activation_bytes,
            None if self.hidden else flops,
            {
                asked: [sizes[text] if text in sizes else int(text) * constant for text in shape]
                for asked, shape in self._shapes.items()
            },
        )


def _texts(name: str, shape: Sequence[int], found: Mapping[str, tuple[Finding, ...]] | None) -> tuple[str, ...]:
    """The formula of each size, as text; without formulas, the sizes themselves."""
    if found is None:
        return tuple(map(str, shape))
    texts = tuple(str(each.formula or "") for each in found[name])
    for dim, text in enumerate(texts):
        if not text:
            raise NoFormula(f"size {dim} of '{name}', {shape[dim]}, has no formula")
    return texts


def _bytes(specs: Iterable[tuple[str, TensorSpec]], shapes: Mapping[str, tuple[str, ...]]) -> _Monomials:
    return Counter((str(numpy_dtype(spec.dtype).itemsize), *shapes[name]) for name, spec in specs)


def _counts(parameter: Parameter) -> bool:
    return not (parameter.buffer or parameter.same_as)


def _total(sums: _Monomials) -> int:
    return sum(times * math.prod(map(int, product)) for product, times in sums.items())


def _sums(sums: _Monomials, sizes: Mapping[str, Numbers], one: Numbers) -> Numbers:
    """The sum for each configuration; `one` is 1 for each, of the type to reckon in."""
    total = 0 * one
    for product, times in sums.items():
        constant = times * math.prod(int(size) for size in product if size.isdigit())
        total = total + constant * math.prod((sizes[size] for size in product if not size.isdigit()), start=one)
    return total
