"""Traces to be stored, and whether they read back as they were put."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxtrace.dtypes import dtype_name
from fxtrace.graph import Check, Graph, Module, Node, Ref, Role, Snapshot, SnapshotTensor, Source, TensorSpec, Value
from fxtrace.ir.trace import TracedInput, TraceInfo
from fxtrace.store import Store

Tensors = dict[str, NDArray[Any]]


def trace_id(number: int) -> str:
    return f"{number:032x}"


def make_tensors(number: int) -> Tensors:
    random = np.random.default_rng(number)
    return {"x": random.standard_normal((number % 5 + 1, 3), np.float32), "mask": random.random(7) < 0.5}


def spec_of(array: NDArray[Any]) -> TensorSpec:
    stride = tuple(step // (array.itemsize or 1) for step in array.strides)
    return TensorSpec(array.shape, dtype_name(array.dtype), stride, "cpu", True, array.nbytes)


def make_graph(tensors: Tensors) -> Graph:
    role = Role("encoder", 0, "self_attention", "scores", "a matmul", (Check("scores", "q·kᵀ", True, "0 ≤ 1e-6"),))
    nodes = [
        Node(name, "placeholder", name, "input", values=(Value("", "Tensor", spec_of(array)),), roles=(role,))
        for name, array in tensors.items()
    ]
    output = Node("output", "output", "output", "output", args=(Ref(nodes[0].name),), source=Source("m.py", 3, "y = x"))
    return Graph("Net", (*nodes, output), (Module("", "Net"),))


SNAPSHOTS = (
    Snapshot(
        1, "Scores", "encoder", ("encoder.0.scores",), ("s",), ("batch",), (SnapshotTensor("s", "x", "x", "r", (1,)),)
    ),
    Snapshot(2, "Mask", "decoder", ("decoder.0.mask",), ("m",), ("1",), reason="no decoder"),
)


def make_trace(number: int, graph: Graph, *, values: bool = True) -> TraceInfo:
    spec = next(spec for _, spec in graph.tensors())
    return TraceInfo(
        id=trace_id(number),
        model="net",
        configuration={"width": 3, "rate": 0.5, "words": ["a", "b"]},
        inputs=(TracedInput("x", spec, "example"),),
        rung="symbolic",
        rung_notes=("a note",),
        values=values,
        training=False,
        seed=-1,
        torch_version="2",
        fxtrace_version="0",
        output_equal=True if values else None,
        node_count=len(graph.nodes),
        tensor_count=len(dict(graph.tensors())),
        labelled_count=0,
        parameter_count=0,
        tensor_bytes=sum(spec.nbytes for _, spec in graph.tensors()),
        created=datetime(2026, 1, 1, tzinfo=UTC),
        seconds=0.25,
    )


def put(store: Store, number: int, tensors: Tensors | None = None) -> TraceInfo:
    tensors = make_tensors(number) if tensors is None else tensors
    graph = make_graph(tensors)
    return store.put(make_trace(number, graph), graph, SNAPSHOTS, tensors)


def check_whole(store: Store, number: int, tensors: Tensors | None = None) -> None:
    """The trace reads back as `put` wrote it."""
    tensors = make_tensors(number) if tensors is None else tensors
    graph = make_graph(tensors)
    assert store.trace(trace_id(number)) == make_trace(number, graph)
    assert store.graph(trace_id(number)) == graph
    assert store.snapshots(trace_id(number)) == SNAPSHOTS
    read = store.read(trace_id(number), dict(graph.tensors()))
    assert list(read) == list(tensors)
    for name, array in tensors.items():
        assert read[name].dtype == array.dtype
        assert read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()


def files_of(folder: Path | str) -> list[Path]:
    """The files of a store's traces in a folder."""
    return sorted(Path(folder).glob("**/*.safetensors"))


def file_of(folder: Path | str, number: int) -> Path:
    """The file of a trace in a folder."""
    [file] = Path(folder).glob(f"**/{trace_id(number)}.*.safetensors")
    return file
