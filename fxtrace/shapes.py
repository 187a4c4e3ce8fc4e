"""What a value is: its leaves and their specs; and an interpreter that notes them for every node of a graph it runs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache, lru_cache
from types import NoneType
from typing import Any, NamedTuple

from fxtrace.extras import needed_for
from fxtrace.graph import TensorSpec, Value, tensor_name

with needed_for("propagating shapes"):
    import torch
    from torch import Tensor, fx, nn
    from torch.fx.node import map_arg

Sink = Callable[[str, Tensor], None]
"""Takes a tensor's name and the live tensor. What is kept must be copied: a later in-place op may change it."""

Step = Callable[[int, int], None]
"""Takes how many nodes are done, of how many. Raising from it stops the run."""


class Interpreter(fx.Interpreter):
    """torch.fx's Interpreter, less its log, its progress bar and its own tracebacks: they take longer than small ops.

    A model's error is raised as it is, to be reported with the model's own line.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph | None = None) -> None:
        super().__init__(module, graph=graph)

    def run(self, *args: Any, **_: Any) -> Any:
        """Runs the graph on these inputs, one for each placeholder, and returns what it returns."""
        self.env, self.args_iter = {}, iter(self.graph.process_inputs(*args))
        result = None
        for node in self.graph.nodes:
            result = self.env[node] = self.run_node(node)
            for used in self.user_to_last_uses.get(node, ()):
                del self.env[used]
        return self.graph.process_outputs(result)  # where a model takes **kwargs, its output is traced flat

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node."""
        args, kwargs = map_arg((n.args, n.kwargs), self.env.__getitem__)
        return getattr(self, n.op)(n.target, args, kwargs)

    def fetch_attr(self, target: str) -> Any:
        """The module's attribute of that qualified name."""
        path, _, name = target.rpartition(".")
        owner = self.submodules.get(path)  # a module that is held twice has its first path there alone
        return getattr(owner, name) if owner is not None else operator.attrgetter(target)(self.module)


class ShapeInterpreter(Interpreter):
    """An interpreter that notes what each node returns.

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

    def __init__(
        self, module: nn.Module, sink: Sink | None = None, step: Step | None = None, graph: fx.Graph | None = None
    ) -> None:
        super().__init__(module, graph)
        self.values: dict[fx.Node, tuple[Value, ...]] = {}
        self.plain: dict[fx.Node, Any] = {}
        self._sink = sink
        self._step = step
        self._total = len(self.graph.nodes)

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node and notes what it returned."""
        result = super().run_node(n)
        # What the output returns is other nodes' values.
        self.values[n] = () if n.op == "output" else noted(n.name, result, self._sink)
        if n.op != "output" and all(value.spec is None for value in self.values[n]):
            self.plain[n] = result
        if self._step is not None:
            self._step(len(self.values), self._total)
        return result


def noted(name: str, result: object, sink: Sink | None = None) -> tuple[Value, ...]:
    """The leaves of what the node of that name returned; its tensors go to the sink."""
    if isinstance(result, Tensor):
        return (_noted_leaf(name, "", result, sink),)
    return tuple(_noted_leaf(name, path, leaf, sink) for path, leaf in leaves(result))


def _noted_leaf(name: str, path: str, leaf: object, sink: Sink | None) -> Value:
    if not isinstance(leaf, Tensor):
        return Value(path, type(leaf).__name__, text=plain_text(leaf))
    if sink is not None:
        sink(tensor_name(name, path), leaf)
    # A fake tensor stands for a plain one.
    kind = "Parameter" if type(leaf) is not Tensor and isinstance(leaf, nn.Parameter) else "Tensor"
    return _tensor_value(path, kind, leaf.shape, leaf.stride(), leaf.dtype, leaf.device)


def plain_text(value: object) -> str:
    """A value as text; one that Python shows by its address alone is shown by its type."""
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text


class Part(NamedTuple):
    """One item of a nest: `access(nest, key)` gives it."""

    access: Callable[[Any, Any], Any]
    key: Any
    value: object


def parts(value: object) -> list[Part]:
    """The items of a tuple, list or dict, the fields of a dataclass, the attributes of any other plain object."""
    if isinstance(value, dict):
        return [Part(operator.getitem, key, item) for key, item in value.items()]
    if isinstance(value, tuple | list):
        return [Part(operator.getitem, i, item) for i, item in enumerate(value)]
    if isinstance(value, Tensor) or callable(value):
        return []
    if is_dataclass(value):
        return [Part(getattr, f.name, getattr(value, f.name, None)) for f in fields(value)]
    return [Part(getattr, name, item) for name, item in getattr(value, "__dict__", {}).items()]


def leaves(value: object, path: str = "", within: tuple[int, ...] = ()) -> Iterator[tuple[str, object]]:
    """(path, leaf) of each leaf of a nest (see `parts`). A nest without tensors is one leaf itself.

    `within` are the ids of the nests around it: an object that refers back to one of them ends there.
    """
    if isinstance(value, Tensor) or not has_tensor(value):
        yield path, value
    elif id(value) not in within:
        for _, key, item in parts(value):
            yield from leaves(item, f"{path}.{key}" if path else str(key), (*within, id(value)))


def tensors(
    value: object, way: tuple[Part, ...] = (), within: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[Part, ...], Tensor]]:
    """(way, tensor) of each tensor in a nest; the way to it is a part of the nest, a part of that, and so on.

    `within` is as for `leaves`.
    """
    if isinstance(value, Tensor):
        yield way, value
    elif has_tensor(value) and id(value) not in within:
        for part in parts(value):
            yield from tensors(part.value, (*way, part), (*within, id(value)))


def has_tensor(value: object) -> bool:
    """Whether a nest has a tensor somewhere inside."""
    return _has_tensor(value, set())


def _has_tensor(value: object, seen: set[int]) -> bool:
    if isinstance(value, Tensor):
        return True
    if isinstance(value, _ATOMS) or id(value) in seen:
        return False
    seen.add(id(value))
    return any(_has_tensor(item, seen) for _, _, item in parts(value))


_ATOMS = (
    *(str, bytes, int, float, complex, NoneType, torch.dtype, torch.device, torch.Size),
    *(torch.SymInt, torch.SymFloat, torch.SymBool),
)


def tensor_spec(tensor: Tensor) -> TensorSpec:
    """What is known of a tensor besides its numbers."""
    return _spec(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


# A model's tensors have few shapes among them, and a spec takes longer to make than to find.
@lru_cache(maxsize=1 << 12)
def _spec(shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> TensorSpec:
    return TensorSpec(
        shape=tuple(shape),
        dtype=dtype_name(dtype),
        stride=stride,
        device=str(device),
        contiguous=torch.empty_strided(shape, stride, device="meta").is_contiguous(),
        nbytes=shape.numel() * dtype.itemsize,
    )


@lru_cache(maxsize=1 << 12)
def _tensor_value(
    path: str, kind: str, shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Value:
    return Value(path, kind, _spec(shape, stride, dtype, device))


@cache
def dtype_name(dtype: torch.dtype) -> str:
    """PyTorch's name of a dtype without the prefix: `float32`."""
    return str(dtype).removeprefix("torch.")
