"""What a graph computes from buffers and sizes alone: masks and tables, known even where nothing else is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_any

# Masks and tables are small; what is larger is not worth running.
_LARGEST = 64 * 2**20


class _Unknown:
    """Stands for a value that depends on inputs or parameters."""


_UNKNOWN = _Unknown()


class _Folder(fx.Interpreter):
    def __init__(self, module: nn.Module, graph: fx.Graph, plain: Mapping[fx.Node, Any]) -> None:
        super().__init__(module, graph=graph)
        self.found: dict[str, Tensor] = {}
        self._plain = plain

    def run_node(self, n: fx.Node) -> Any:
        if n in self._plain:
            return self._plain[n]
        if n.op not in ("get_attr", "call_function", "call_method"):
            return _UNKNOWN
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if tree_any(lambda leaf: leaf is _UNKNOWN, (args, kwargs)):
            return _UNKNOWN
        random_state = torch.get_rng_state()
        result = super().run_node(n)
        if not torch.equal(random_state, torch.get_rng_state()) or isinstance(result, nn.Parameter | FakeTensor):
            return _UNKNOWN
        if isinstance(result, Tensor):
            if result.is_meta or result.nbytes > _LARGEST:
                return _UNKNOWN
            self.found[n.name] = result.clone()  # an in-place op may change it later
        return result


def fold_constants(module: nn.Module, graph: fx.Graph, plain: Mapping[fx.Node, Any]) -> dict[str, Tensor]:
    """The tensors, by name, that depend on no input and no parameter.

    Args:
        module: where the graph finds its parameters and buffers.
        graph: a captured graph.
        plain: results of its nodes that are not tensors (sizes and the like), as a run on fake tensors gave them.
    """
    folder = _Folder(module, graph, plain)
    with torch.no_grad():
        folder.run(*(_UNKNOWN for _ in graph.find_nodes(op="placeholder")))
    return folder.found
