"""Trace a PyTorch model into a graph whose every tensor has a shape, a role and a reason.

In this process:

    from fxtrace import Engine, TraceRequest
    with Engine.open() as engine:
        trace = engine.create_trace(TraceRequest("reference"))
        engine.read_tensor(trace.id, "decoder.0.cross_attention.weights")

Behind a server, with the same methods and without PyTorch: `fxtrace.Client("127.0.0.1:50051")`. For a module at hand:
`fxtrace.capture.capture(module, inputs)` and `fxtrace.roles.label(graph, values)`.

Names are imported when they are first used, so that the client does not import PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxtrace.client import Client
    from fxtrace.errors import FxtraceError
    from fxtrace.graph import Graph, Node, Role, Snapshot, TensorSpec
    from fxtrace.ir.trace import NodeQuery, QueryResult, RenderOptions, TraceInfo, TraceRequest
    from fxtrace.lock import check_lock
    from fxtrace.service.engine import Engine
    from fxtrace.sweep import SweepBatch, SweepRequest, SweepRow, parse_grid
    from fxtrace.tls import Tls

__version__ = "0.1.0"

_HOME = {
    "Client": "fxtrace.client",
    "Engine": "fxtrace.service.engine",
    "FxtraceError": "fxtrace.errors",
    "Graph": "fxtrace.graph",
    "Node": "fxtrace.graph",
    "NodeQuery": "fxtrace.ir.trace",
    "QueryResult": "fxtrace.ir.trace",
    "RenderOptions": "fxtrace.ir.trace",
    "Role": "fxtrace.graph",
    "Snapshot": "fxtrace.graph",
    "SweepBatch": "fxtrace.sweep",
    "SweepRequest": "fxtrace.sweep",
    "SweepRow": "fxtrace.sweep",
    "TensorSpec": "fxtrace.graph",
    "Tls": "fxtrace.tls",
    "TraceInfo": "fxtrace.ir.trace",
    "TraceRequest": "fxtrace.ir.trace",
    "check_lock": "fxtrace.lock",
    "parse_grid": "fxtrace.sweep",
}

__all__ = [
    "Client",
    "Engine",
    "FxtraceError",
    "Graph",
    "Node",
    "NodeQuery",
    "QueryResult",
    "RenderOptions",
    "Role",
    "Snapshot",
    "SweepBatch",
    "SweepRequest",
    "SweepRow",
    "TensorSpec",
    "Tls",
    "TraceInfo",
    "TraceRequest",
    "check_lock",
    "parse_grid",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fxtrace' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
