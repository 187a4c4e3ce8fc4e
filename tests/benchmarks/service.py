"""What the service adds to bare gRPC: each server a process of its own, each call held against an empty one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from fxtrace.client import Client
from fxtrace.ir.trace import TraceRequest
from fxtrace.v1.trace_service_pb2 import GetGraphRequest
from fxtrace.v1.trace_service_pb2_grpc import TraceServiceStub
from tests.benchmarks.bare_server import CHUNK_BYTES, STREAM_BYTES
from tests.benchmarks.measure import Row, compare, serve, temporary_folder

TENSOR_MODEL = Path(__file__).parent.parent / "service" / "dtypes.py"


def rows() -> list[Row]:
    """ReadTensor ÷ a bare byte stream, GetGraph ÷ an empty call."""
    with temporary_folder() as folder, serve(folder, TENSOR_MODEL) as (_, address), bare_server() as bare_address:
        options = [("grpc.max_receive_message_length", 2 * CHUNK_BYTES)]
        with (
            Client(address, arrays="numpy", timeout=None) as client,
            grpc.insecure_channel(address) as channel,
            grpc.insecure_channel(bare_address, options=options) as bare,
        ):
            return [_tensor(client, bare), *_graph(client, channel, bare)]


def _tensor(client: Client[NDArray[Any]], bare: Any) -> Row:
    stream = bare.unary_stream("/bare/stream")
    trace = client.create_trace(TraceRequest("dtypes", {"megabytes": STREAM_BYTES >> 20}))

    def read() -> None:
        client.read_tensor(trace.id, "add")

    def raw() -> None:
        data, at = np.empty(STREAM_BYTES, np.uint8).data, 0
        for chunk in stream(str(STREAM_BYTES).encode()):
            data[at : at + len(chunk)] = chunk
            at += len(chunk)

    ratio = compare(read, raw, rounds=15)
    return Row(
        "throughput of ReadTensor, 256 MiB into an array, ÷ a raw grpc.aio byte stream", ratio, "≥ 0.9", speed=True
    )


def _graph(client: Client[NDArray[Any]], channel: grpc.Channel, bare: Any) -> list[Row]:
    trace = client.create_trace(TraceRequest("reference"))
    get_graph = TraceServiceStub(channel).GetGraph
    request = GetGraphRequest(trace=f"traces/{trace.id}")
    empty = bare.unary_unary("/bare/empty")
    called = compare(lambda: get_graph(request), lambda: empty(b""), rounds=1000)
    whole = compare(lambda: client.get_graph(trace.id), lambda: empty(b""), rounds=100)
    return [
        Row("GetGraph of the reference, p50, ÷ an empty unary call, p50", called, "≤ 1.5"),
        Row("the same, made into dataclasses by the Python client", whole, "—"),
    ]


@contextmanager
def bare_server() -> Iterator[str]:
    """A server with nothing in it; its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.bare_server"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()
