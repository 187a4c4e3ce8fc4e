"""Runs a captured graph once: every node's specs, and every value handed to a sink at the moment it is produced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxtrace.graph import TensorSpec, Value, tensor_name

Sink = Callable[[str, Tensor], None]
"""Takes a tensor's name and the live tensor. What is kept must be copied: a later in-place op may change it."""

Step = Callable[[int, int], None]
"""Takes how many nodes are done, of how many. Raising from it stops the run."""


class ShapeInterpreter(fx.Interpreter):
    """torch.fx's Interpreter, noting what each node returns.

    It is `torch.fx.passes.shape_prop.ShapeProp` and more: values that are not tensors are noted as what they are,
    nests are taken apart leaf by leaf, and the numbers go to a sink. Run it under a `FakeTensorMode`, on fake inputs,
    for shapes with no compute.

    After `run`, `values` holds for each fx node the leaves of what it returned, and `plain` the results without any
    tensor, as they are.

    Example:
        >>> import torch
        >>> class Double(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x + x
        >>> interpreter = ShapeInterpreter(torch.fx.symbolic_trace(Double()))
        >>> _ = interpreter.run(torch.ones(2, 3))
        >>> [values[0].spec.shape for values in interpreter.values.values() if values]
        [(2, 3), (2, 3)]
    """

    def __init__(self, module: fx.GraphModule, sink: Sink | None = None, step: Step | None = None) -> None:
        super().__init__(module)
        self.extra_traceback = False  # a model's error is reported with its own line, not with torch.fx's
        self.values: dict[fx.Node, tuple[Value, ...]] = {}
        self.plain: dict[fx.Node, Any] = {}
        self._sink = sink
        self._step = step
        self._total = len(module.graph.nodes)

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node and notes what it returned."""
        result = super().run_node(n)
        if n.op == "output":
            self.values[n] = ()  # what it returns is other nodes' values
        elif isinstance(result, Tensor):
            self.values[n] = (Value("", _tensor_type(result), tensor_spec(result)),)
            if self._sink is not None:
                self._sink(n.name, result)
        else:
            self.values[n] = tuple(self._leaf(n.name, path, leaf) for path, leaf in leaves(result))
            if all(value.spec is None for value in self.values[n]):
                self.plain[n] = result
        if self._step is not None:
            self._step(len(self.values), self._total)
        return result

    def _leaf(self, name: str, path: str, leaf: object) -> Value:
        if not isinstance(leaf, Tensor):
            return Value(path, type(leaf).__name__, text=repr(leaf))
        if self._sink is not None:
            self._sink(tensor_name(name, path), leaf)
        return Value(path, _tensor_type(leaf), tensor_spec(leaf))


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """(path, leaf) of each leaf of a nest of tuples, lists and dicts. A nest without tensors is one leaf itself."""
    if not isinstance(value, tuple | list | dict) or not _has_tensor(value):
        yield path, value
        return
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield from leaves(item, f"{path}.{key}" if path else str(key))


def _has_tensor(value: object) -> bool:
    if isinstance(value, dict):
        value = tuple(value.values())
    return any(map(_has_tensor, value)) if isinstance(value, tuple | list) else isinstance(value, Tensor)


def tensor_spec(tensor: Tensor) -> TensorSpec:
    """What is known of a tensor besides its numbers."""
    return TensorSpec(
        shape=tuple(tensor.shape),
        dtype=_dtype_name(tensor.dtype),
        stride=tensor.stride(),
        device=str(tensor.device),
        contiguous=tensor.is_contiguous(),
        nbytes=tensor.numel() * tensor.element_size(),
    )


def _tensor_type(tensor: Tensor) -> str:
    # A fake tensor stands for a plain one.
    return "Parameter" if isinstance(tensor, nn.Parameter) else "Tensor"


@cache
def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
