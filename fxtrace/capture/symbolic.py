"""The `symbolic` rung: torch.fx symbolic tracing, exact for every input of the same structure."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from fxtrace.capture.source import calling_source

# torch.fx patches nn.Module while it traces: one trace at a time in a process.
_TRACING = threading.Lock()


class _Tracer(fx.Tracer):
    """Notes for each node the module it runs in and the user's line, and gives left-out parameters their defaults."""

    # Without it, a slice of a buffer by a traced size fails: the buffer would be a plain tensor.
    proxy_buffer_attributes = True

    def __init__(self, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self._inputs = inputs

    def create_node(
        self,
        kind: str,
        target: fx.node.Target,
        args: tuple[fx.node.Argument, ...],
        kwargs: dict[str, fx.node.Argument],
        name: str | None = None,
        type_expr: Any | None = None,
    ) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        node.meta["module"] = self.scope.module_path
        node.meta["source"] = calling_source(trace_symbolically.__code__)
        return node

    def create_proxy(
        self,
        kind: str,
        target: fx.node.Target,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,
        proxy_factory_fn: Callable[[fx.Node], fx.Proxy] | None = None,
    ) -> Any:
        if kind == "placeholder" and target not in self._inputs and args:
            return args[0]  # the parameter's default, so that `if mask is None` is decided here
        return super().create_proxy(kind, target, args, kwargs, name, type_expr, proxy_factory_fn)


def trace_symbolically(module: nn.Module, inputs: tuple[str, ...]) -> fx.GraphModule:
    """Traces a module, with a placeholder for each of the named inputs; other parameters keep their defaults.

    Each node's `meta` has `module`, the path it runs in, and `source`, the user's line (None for inputs).
    """
    with _TRACING:
        tracer = _Tracer(inputs)
        return fx.GraphModule(module, tracer.trace(module), type(module).__name__)
