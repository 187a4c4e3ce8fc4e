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
    from fxtrace.diff import (
        FieldChange,
        GraphDiff,
        Lone,
        NodePair,
        NodeSide,
        SizeChange,
        TensorChange,
        TensorSide,
        Totals,
        ValueChange,
    )
    from fxtrace.dims import Finding, Formula, Formulas
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
    from fxtrace.explain import Explanation, Sized
    from fxtrace.graph import (
        Check,
        Dim,
        Graph,
        Module,
        Node,
        Parameter,
        Ref,
        Refusal,
        Role,
        SliceArg,
        Snapshot,
        SnapshotTensor,
        Source,
        Symbol,
        TensorSpec,
        Value,
    )
    from fxtrace.ir.trace import (
        ConfigField,
        ModelInfo,
        NodeQuery,
        Progress,
        QueryResult,
        RenderOptions,
        ServerInfo,
        TensorData,
        TracedInput,
        TraceInfo,
        TraceRequest,
    )
    from fxtrace.lock import Checked, Move, check_lock
    from fxtrace.models import Model, Registry
    from fxtrace.remote import RemoteTensor
    from fxtrace.service.engine import Engine
    from fxtrace.store import Collected, Store, StoredTensor, StoredTrace, TraceFile
    from fxtrace.store.row import Origin
    from fxtrace.sweep import Axis, Grid, SweepBatch, SweepRequest, SweepRow, parse_grid
    from fxtrace.tls import Tls

__version__ = "0.1.0"

_NAMES = {
    "fxtrace.api": "Nodes Picture Roles TensorReader Trace TraceApi TraceOptions",
    "fxtrace.client": "Client",
    "fxtrace.diff": (
        "FieldChange GraphDiff Lone NodePair NodeSide SizeChange TensorChange TensorSide Totals ValueChange"
    ),
    "fxtrace.dims": "Finding Formula Formulas",
    "fxtrace.engine.session": "load trace",
    "fxtrace.errors": (
        "Busy Cancelled CaptureFailed ConfigurationError DeadlineExceeded DependencyMissing FormulasAbsent "
        "FxtraceError InputError InternalError InvalidRequest MemoryLimit ModelInvalid ModelNotFound "
        "NameInvalid NodeNotFound NotFound OptionInvalid PageInvalid PermissionDenied QueryInvalid "
        "ServerUnavailable ShuttingDown SliceInvalid SnapshotNotFound StoreDamaged TensorNotFound TimeLimit "
        "TlsFailed TooLarge TraceNotFound Unauthenticated Unmet ValuesAbsent WorkerCrashed"
    ),
    "fxtrace.explain": "Explanation Sized",
    "fxtrace.graph": (
        "Check Dim Graph Module Node Parameter Ref Refusal Role SliceArg Snapshot SnapshotTensor Source "
        "Symbol TensorSpec Value"
    ),
    "fxtrace.ir.trace": (
        "ConfigField ModelInfo NodeQuery Progress QueryResult RenderOptions ServerInfo TensorData TracedInput "
        "TraceInfo TraceRequest"
    ),
    "fxtrace.lock": "Checked Move check_lock",
    "fxtrace.models": "Model Registry",
    "fxtrace.remote": "RemoteTensor",
    "fxtrace.service.engine": "Engine",
    "fxtrace.store": "Collected Store StoredTensor StoredTrace TraceFile",
    "fxtrace.store.row": "Origin",
    "fxtrace.sweep": "Axis Grid SweepBatch SweepRequest SweepRow parse_grid",
    "fxtrace.tls": "Tls",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "Axis",
    "Busy",
    "Cancelled",
    "CaptureFailed",
    "Check",
    "Checked",
    "Client",
    "Collected",
    "ConfigField",
    "ConfigurationError",
    "DeadlineExceeded",
    "DependencyMissing",
    "Dim",
    "Engine",
    "Explanation",
    "FieldChange",
    "Finding",
    "Formula",
    "Formulas",
    "FormulasAbsent",
    "FxtraceError",
    "Graph",
    "GraphDiff",
    "Grid",
    "InputError",
    "InternalError",
    "InvalidRequest",
    "Lone",
    "MemoryLimit",
    "Model",
    "ModelInfo",
    "ModelInvalid",
    "ModelNotFound",
    "Module",
    "Move",
    "NameInvalid",
    "Node",
    "NodeNotFound",
    "NodePair",
    "NodeQuery",
    "NodeSide",
    "Nodes",
    "NotFound",
    "OptionInvalid",
    "Origin",
    "PageInvalid",
    "Parameter",
    "PermissionDenied",
    "Picture",
    "Progress",
    "QueryInvalid",
    "QueryResult",
    "Ref",
    "Refusal",
    "Registry",
    "RemoteTensor",
    "RenderOptions",
    "Role",
    "Roles",
    "ServerInfo",
    "ServerUnavailable",
    "ShuttingDown",
    "SizeChange",
    "Sized",
    "SliceArg",
    "SliceInvalid",
    "Snapshot",
    "SnapshotNotFound",
    "SnapshotTensor",
    "Source",
    "Store",
    "StoreDamaged",
    "StoredTensor",
    "StoredTrace",
    "SweepBatch",
    "SweepRequest",
    "SweepRow",
    "Symbol",
    "TensorChange",
    "TensorData",
    "TensorNotFound",
    "TensorReader",
    "TensorSide",
    "TensorSpec",
    "TimeLimit",
    "Tls",
    "TlsFailed",
    "TooLarge",
    "Totals",
    "Trace",
    "TraceApi",
    "TraceFile",
    "TraceInfo",
    "TraceNotFound",
    "TraceOptions",
    "TraceRequest",
    "TracedInput",
    "Unauthenticated",
    "Unmet",
    "Value",
    "ValueChange",
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
