"""What a graph computes without parameters: masks and tables, known even where nothing else is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_any

# Masks and tables are small; what is larger is not worth running.
_LARGEST = 64 * 2**20


def _has_numbers(tensor: Tensor) -> bool:
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


class _Unknown:
    """Stands for a value that depends on parameters, or on inputs without numbers."""


_UNKNOWN = _Unknown()


class _Folder(fx.Interpreter):
    def __init__(self, module: nn.Module, graph: fx.Graph, plain: Mapping[fx.Node, Any]) -> None:
        super().__init__(module, graph=graph)
        self.found: dict[str, Tensor] = {}
        self._plain = plain
        self._overwritten: set[int] = set()

    def run_node(self, n: fx.Node) -> Any:
        if n in self._plain:
            return self._plain[n]
        if n.op not in ("placeholder", "get_attr", "call_function", "call_method"):
            return _UNKNOWN
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if tree_any(self._is_unknown, (args, kwargs)):
            if (
                _writes(n) and args and isinstance(args[0], Tensor)
            ):  # from here on its numbers, and its views', are unknown too
                self._overwritten.add(_memory(args[0]))
            return _UNKNOWN
        random_state = torch.get_rng_state()
        result = super().run_node(n)
        if not torch.equal(random_state, torch.get_rng_state()) or isinstance(result, nn.Parameter):
            return _UNKNOWN
        if isinstance(result, Tensor):
            if not _has_numbers(result) or result.nbytes > _LARGEST:
                return _UNKNOWN
            self.found[n.name] = result.clone()  # an in-place op may change it later
        return result

    def _is_unknown(self, leaf: object) -> bool:
        return leaf is _UNKNOWN or (isinstance(leaf, Tensor) and _memory(leaf) in self._overwritten)


def _writes(node: fx.Node) -> bool:
    """Whether a call changes its first argument in place."""
    if isinstance(node.target, OpOverload):
        return node.target._schema.is_mutable
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name == "setitem" or (name.endswith("_") and not name.endswith("__"))


def _memory(tensor: Tensor) -> int:
    memory: int = tensor.untyped_storage()._cdata
    return memory


def fold_constants(
    module: nn.Module,
    graph: fx.Graph,
    plain: Mapping[fx.Node, Any],
    inputs: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """The tensors, by name, that depend on no parameter, and on no other input than those given.

    Args:
        module: where the graph finds its parameters and buffers.
        graph: a captured graph.
        plain: results of its nodes that are not tensors (sizes and the like), as a run on fake tensors gave them.
        inputs: inputs with numbers, by name; they may be written to.
    """
    folder = _Folder(module, graph, plain)
    given = {name: value for name, value in (inputs or {}).items() if isinstance(value, Tensor) and _has_numbers(value)}
    with torch.no_grad():
        folder.run(*(given.get(str(node.target), _UNKNOWN) for node in graph.find_nodes(op="placeholder")))
    return folder.found
