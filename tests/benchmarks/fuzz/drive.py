"""Sends drawn requests to a server, and judges what comes back."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import DebugInfo, ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from fxtrace.api import TraceApi
from fxtrace.client import Client
from fxtrace.errors import Busy, TimeLimit
from fxtrace.ir.trace import ModelInfo, TraceRequest
from fxtrace.service.servicer import SERVICE
from fxtrace.status import DOMAIN
from tests.benchmarks.fuzz.requests import (
    DEADLINE_SECONDS,
    Request,
    Vocabulary,
    draw_requests,
    reports_progress,
    requests,
)

SERVICES = (
    SERVICE,
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
)
"""What a server answers."""

PROTO = Path(__file__).parents[3] / "protos" / "fxtrace" / "v1" / "trace_service.proto"

METHODS = {f"/{each.containing_service.full_name}/{each.name}": each for s in SERVICES for each in s.methods}
_WATCH = "/grpc.health.v1.Health/Watch"  # goes on until the caller ends it
_LEAKS = re.compile(r"Traceback \(most|site-packages|File \"|\.py\b|0x[0-9a-f]{8}|/proc/|/home/|/usr/|/var/|/tmp/")
_ANY_RPC = {"INTERNAL", "CANCELLED", "DEADLINE_EXCEEDED", "SHUTTING_DOWN", "SERVER_UNAVAILABLE", "REQUEST_INVALID"}
TRACES = (
    *(TraceRequest("reference"), TraceRequest("reference", values=False), TraceRequest("tiny")),
    *(TraceRequest("tiny", seed=seed) for seed in (1, 2)),
    TraceRequest("dtypes", {"megabytes": 1}),
    TraceRequest("reference", weightless=True, symbolic={"src_ids": ("source",)}),
)
_SPARE = (3, 4)  # which of them drawn requests may delete


def make_traces(api: TraceApi[Any], traces: Iterable[TraceRequest] = TRACES) -> list[str]:
    """The ids of the traces that drawn requests ask for, made where they are not there."""
    return [api.create_trace(request).id for request in traces]


def vocabularies(api: TraceApi[Any], traces: Iterable[TraceRequest] = TRACES) -> list[Vocabulary]:
    """What makes sense to ask a server of each of these traces."""
    ids = make_traces(api, traces)
    spare = [f"traces/{ids[number]}" for number in _SPARE]
    models = {each.name: each for each in api.list_models()}
    return [_vocabulary(api, each, models, ids, spare) for each in ids]


def _vocabulary(
    api: TraceApi[Any], trace_id: str, models: Mapping[str, ModelInfo], ids: Sequence[str], spare: list[str]
) -> Vocabulary:
    trace, graph = api.get_trace(trace_id), api.get_graph(trace_id)
    roles, nodes = list(graph.by_role), [node.name for node in graph.nodes]
    tensors = [name for name, _ in graph.tensors()]
    parts = sorted({".".join(role.split(".")[:2]) for role in roles})
    inputs = [each.name for each in trace.inputs]
    conditions = (
        *("kind == 'matmul' && shape[-1] == src_len", "shape == [batch, n_heads, tgt_len, src_len]", "layer >= 1"),
        *("name.startsWith('t') || !module.contains('enc')", "size(users) > 1 ? rank == 2 : numel > 3", "dtype"),
        *("role.matches('.*scores$')", "'batch' in symbolic", "dims.src_len * 2 == nbytes / 4", "parameter_count > 1"),
    )
    known: dict[str, Sequence[str | int | float]] = {
        "trace": [f"traces/{trace_id}"],
        "name": [f"traces/{trace_id}"],
        "before": [f"traces/{trace_id}"],
        "after": [f"traces/{each}" for each in ids],
        "what": [*roles, *parts, *nodes, *(each.name for each in graph.dims), "33", "1"],
        "GetModelRequest.name": [f"models/{each}" for each in models],
        "DeleteTraceRequest.name": spare,
        "model": [f"models/{trace.model}"],
        "FieldsEntry.key": [each.name for each in models[trace.model].fields],
        "Value.number_value": (1, 2, 3, 4, 6, 8, 12, 16, 0, -1, 1.5),
        "Value.string_value": ("hello from cairo", "forward", "build", "team"),
        "GridAxis.field": [each.name for each in models[trace.model].fields],
        "IntegerRange.start": (1, 2, 4, 16),
        "IntegerRange.stop": (3, 5, 17, 64),
        "IntegerRange.step": (1, 2, 16),
        "sample": (0, 1),
        "InputOverride.name": inputs,
        "SymbolicSizes.input": inputs,
        "SymbolicSizes.names": ("batch", "source", "", "a", "b"),
        "sizes": (1, 2, 3, 4, 5, 6),
        "TensorData.shape": (0, 1, 2, 3, 4),
        "dtype": ("float32", "int64", "bool", "bfloat16"),
        "seed": (0, 1, 2),
        "symbolic_timeout": (0, 1),
        "page_size": (0, 1, 2, 10, 100),
        "page_token": ("",),
        "module": [path for path in graph.modules_by_path if path],
        "role": roles + parts,
        "numbers": (1, 5, 33, 43),
        "tensor": roles + tensors,
        "tensors": roles,
        "TensorSlice.expression": ("0", "-1", "::2", "...,:3", "0,0,:5", "1:0", ":,1", "0:4:3", "5:"),
        "chunk_bytes": (0, 4096, 1 << 20, 2 << 20),
        "NodeQuery.expression": conditions,
        "ancestors_of": roles + nodes,
        "descendants_of": roles + nodes,
        "max_depth": (0, 1, 3, 50),
        "pattern": ("matmul (add|mul|div|view)* softmax", "linear .{0,3} activation", "pointwise+", ". . .", ".*"),
        "source": nodes,
        "target": nodes,
        "highlight": [*parts, *nodes, "#33", "#1"],
        "depth": (0, 1, 2),
        "service": [each.full_name for each in SERVICES],
        "file_containing_symbol": [SERVICE.full_name],
    }
    return Vocabulary(known)


@dataclass
class Tally:
    """What came of requests: how many of each method, code and reason, and what should not have been."""

    distinct: int = 0
    ends: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Counts another's, too."""
        self.distinct += other.distinct
        self.ends.update(other.ends)
        self.faults += other.faults


class Driver:
    """Sends requests, many at once, and judges the answers.

    Args:
        address: the server's.
        secrets: texts that no error may have, such as its folders.
        at_once: requests under way.
    """

    def __init__(self, address: str, secrets: Iterable[str], at_once: int = 24) -> None:
        self._address = address
        self._secrets = (*secrets, sys.prefix, str(PROTO.parents[3]))
        self._at_once = at_once
        self._reasons = documented(PROTO.read_text(encoding="utf-8"))

    def run(self, calls: Iterable[Request]) -> Tally:
        """Sends them all."""
        return asyncio.run(self._run(calls))

    async def _run(self, calls: Iterable[Request]) -> Tally:
        tally, waiting = Tally(), iter(calls)
        options = [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(self._address, options=options) as channel:

            async def send() -> None:
                for request in waiting:
                    await self._send(channel, request, tally)

            await asyncio.gather(*(send() for _ in range(self._at_once)))
        return tally

    async def _send(self, channel: grpc.aio.Channel, request: Request, tally: Tally) -> None:
        method = METHODS[request.method]
        # A stream of one request is the same on the wire as one request.
        call: Any = (channel.unary_stream if method.server_streaming else channel.unary_unary)(request.method)
        deadline = min(request.deadline, 0.1) if request.method == _WATCH else request.deadline
        under_way = call(request.payload, timeout=deadline, metadata=request.metadata)
        timer = None
        if request.cancel_after is not None:
            timer = asyncio.get_running_loop().call_later(request.cancel_after, under_way.cancel)
        problem, code, reason = "", "OK", ""
        try:
            problem = await _read(method, under_way)
        except asyncio.CancelledError:
            code = "CANCELLED"
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            reason, problem = self._judged(method, request, error)
        finally:
            if timer is not None:
                timer.cancel()
        tally.ends[method.name, code, reason] += 1
        if problem:
            tally.faults.append(f"{method.name} {code} {reason}: {problem}; request {request.payload[:400].hex()}")

    def _judged(self, method: MethodDescriptor, request: Request, error: grpc.aio.AioRpcError) -> tuple[str, str]:
        """The reason of an error, and what is wrong with it."""
        code, text = error.code(), error.details() or ""
        trailers: Mapping[str, Any] = dict(error.trailing_metadata() or ())
        status, info, debug = Status(), ErrorInfo(), DebugInfo()
        status.ParseFromString(trailers.get("grpc-status-details-bin", b""))
        for detail in status.details:
            detail.Unpack(info)
            if detail.Unpack(debug):
                return info.reason, "the caller is shown a stack"
        if code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE):
            return info.reason, text
        shown = f"{text}\n{status}"
        if not Path(info.metadata["file"]).is_absolute():  # of the model's line that raised, within its package
            shown = shown.replace(info.metadata["file"], "")
        asked = request.payload.decode(errors="replace") + " ".join(value for _, value in request.metadata)
        leaks = {
            each for each in (*_LEAKS.findall(shown), *(s for s in self._secrets if s in shown)) if each not in asked
        }
        if leaks:
            return info.reason, f"shows {leaks}: {text}"
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and not info.reason:
            slow = request.deadline == DEADLINE_SECONDS and request.method != _WATCH and not reports_progress(method)
            return "", f"no answer within {DEADLINE_SECONDS:g} s" if slow else ""
        is_too_long = code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in text  # says gRPC
        if method.containing_service is SERVICE and code is not grpc.StatusCode.CANCELLED and not is_too_long:
            if info.domain != DOMAIN:
                return "", f"an error without a reason: {text}"
            if info.reason not in self._reasons[method.name]:
                return info.reason, f"a reason that the protocol does not tell of: {text}"
        return info.reason, ""


async def _read(method: MethodDescriptor, under_way: Any) -> str:
    """Reads an answer to its end; says what is wrong with it."""
    kind = GetMessageClass(method.output_type)
    try:
        if method.server_streaming:
            async for data in under_way:
                kind.FromString(data)
        else:
            kind.FromString(await under_way)
    except DecodeError as error:
        return f"the answer is no {method.output_type.name}: {error}"
    return ""


def documented(proto: str) -> dict[str, set[str]]:
    """The reasons that each RPC may end with, as its comment in the protocol tells them."""
    told: dict[str, set[str]] = {}
    for comment, name in re.findall(r"((?:  //.*\n)+)  rpc (\w+)", proto):
        errors = comment.partition("Errors:")[2]
        told[name] = _ANY_RPC | set(re.findall(r"\b[A-Z]+_[A-Z_]+\b|\bBUSY\b", errors))
        for other in re.findall(r"those of (\w+)", errors):
            told[name] |= told[other]
    return told


class Slice(NamedTuple):
    """Requests that one process draws and sends."""

    address: str
    folder: str
    vocabularies: list[Vocabulary]
    size: int
    seed: int


def run(part: Slice) -> Tally:
    """Draws a slice's requests and sends them."""
    with Client(part.address, timeout=None) as client:
        while True:
            try:
                make_traces(client)  # those that were deleted
                break
            except (Busy, TimeLimit) as error:  # what the other process asks for is done first
                time.sleep(getattr(error, "retry_after", 1))
    drawn = draw_requests(requests(list(METHODS.values()), part.vocabularies), part.size, part.seed)
    tally = Driver(part.address, (part.folder,)).run(drawn)
    tally.distinct = len({(request.method, request.payload) for request in drawn})
    return tally
