"""Trace a PyTorch model into a graph whose every tensor has a shape, a role and a reason.

    import fxtrace

    t = fxtrace.trace(model, x)                   # a module, with the inputs that it takes
    t = fxtrace.trace("reference", d_model=64)    # or a model that fxtrace builds: "hf:llama", "mine.py"
    t["decoder.0.cross_attention.weights"]        # a tensor, by its role
    t.explain("decoder.0.cross_attention.weights")
    t.draw("model.svg")

Kept and asked behind a server, with the same objects and without PyTorch:

    client = fxtrace.Client("127.0.0.1:50051")
    t = client.trace("reference", d_model=64)

Names are imported when they are first used, so that the client does not import PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxtrace.api import Nodes, Picture, Roles, TensorReader, Trace, TraceApi, TraceOptions
    from fxtrace.client import Client
    from fxtrace.diff import GraphDiff
    from fxtrace.dims import Formulas
    from fxtrace.engine.session import load, trace
    from fxtrace.errors import (
        Busy,
        Cancelled,
        CaptureFailed,
        ConfigurationError,
        DeadlineExceeded,
        DependencyMissing,
        FormulasAbsent,
        FxtraceError,
        InputError,
        InternalError,
        InvalidRequest,
        MemoryLimit,
        ModelInvalid,
        ModelNotFound,
        NameInvalid,
        NodeNotFound,
        NotFound,
        OptionInvalid,
        PageInvalid,
        PermissionDenied,
        QueryInvalid,
        ServerUnavailable,
        ShuttingDown,
        SliceInvalid,
        SnapshotNotFound,
        StoreDamaged,
        TensorNotFound,
        TimeLimit,
        TlsFailed,
        TooLarge,
        TraceNotFound,
        Unauthenticated,
        Unmet,
        ValuesAbsent,
        WorkerCrashed,
    )
    from fxtrace.explain import Explanation
    from fxtrace.graph import Graph, Node, Role, Snapshot, TensorSpec
    from fxtrace.ir.trace import ModelInfo, NodeQuery, QueryResult, RenderOptions, TraceInfo, TraceRequest
    from fxtrace.lock import check_lock
    from fxtrace.service.engine import Engine
    from fxtrace.sweep import SweepBatch, SweepRequest, SweepRow, parse_grid
    from fxtrace.tls import Tls

__version__ = "0.1.0"

_NAMES = {
    "fxtrace.api": "Nodes Picture Roles TensorReader Trace TraceApi TraceOptions",
    "fxtrace.client": "Client",
    "fxtrace.diff": "GraphDiff",
    "fxtrace.dims": "Formulas",
    "fxtrace.engine.session": "load trace",
    "fxtrace.errors": (
        "Busy Cancelled CaptureFailed ConfigurationError DeadlineExceeded DependencyMissing FormulasAbsent "
        "FxtraceError InputError InternalError InvalidRequest MemoryLimit ModelInvalid ModelNotFound "
        "NameInvalid NodeNotFound NotFound OptionInvalid PageInvalid PermissionDenied QueryInvalid "
        "ServerUnavailable ShuttingDown SliceInvalid SnapshotNotFound StoreDamaged TensorNotFound TimeLimit "
        "TlsFailed TooLarge TraceNotFound Unauthenticated Unmet ValuesAbsent WorkerCrashed"
    ),
    "fxtrace.explain": "Explanation",
    "fxtrace.graph": "Graph Node Role Snapshot TensorSpec",
    "fxtrace.ir.trace": "ModelInfo NodeQuery QueryResult RenderOptions TraceInfo TraceRequest",
    "fxtrace.lock": "check_lock",
    "fxtrace.service.engine": "Engine",
    "fxtrace.sweep": "SweepBatch SweepRequest SweepRow parse_grid",
    "fxtrace.tls": "Tls",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "Busy",
    "Cancelled",
    "CaptureFailed",
    "Client",
    "ConfigurationError",
    "DeadlineExceeded",
    "DependencyMissing",
    "Engine",
    "Explanation",
    "Formulas",
    "FormulasAbsent",
    "FxtraceError",
    "Graph",
    "GraphDiff",
    "InputError",
    "InternalError",
    "InvalidRequest",
    "MemoryLimit",
    "ModelInfo",
    "ModelInvalid",
    "ModelNotFound",
    "NameInvalid",
    "Node",
    "NodeNotFound",
    "NodeQuery",
    "Nodes",
    "NotFound",
    "OptionInvalid",
    "PageInvalid",
    "PermissionDenied",
    "Picture",
    "QueryInvalid",
    "QueryResult",
    "RenderOptions",
    "Role",
    "Roles",
    "ServerUnavailable",
    "ShuttingDown",
    "SliceInvalid",
    "Snapshot",
    "SnapshotNotFound",
    "StoreDamaged",
    "SweepBatch",
    "SweepRequest",
    "SweepRow",
    "TensorNotFound",
    "TensorReader",
    "TensorSpec",
    "TimeLimit",
    "Tls",
    "TlsFailed",
    "TooLarge",
    "Trace",
    "TraceApi",
    "TraceInfo",
    "TraceNotFound",
    "TraceOptions",
    "TraceRequest",
    "Unauthenticated",
    "Unmet",
    "ValuesAbsent",
    "WorkerCrashed",
    "check_lock",
    "load",
    "parse_grid",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fxtrace' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
