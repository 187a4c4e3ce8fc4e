"""What many callers at once get from a server: errors, times, and what it costs the server's memory.

    python -m tests.benchmarks.load [MINUTES] [CLIENTS]

Each client makes one call after another, without a pause, drawn from `mix` with a seed of its own; meanwhile one more
captures a new trace after another. The clients, in two processes, do not decode what they get. Prints tables.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import statistics
import sys
import threading
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message

from fxtrace.client import Client
from fxtrace.errors import FxtraceError
from fxtrace.ir.trace import TraceRequest
from fxtrace.service.access import NEEDS
from fxtrace.service.servicer import SERVICE
from fxtrace.v1 import trace_service_pb2 as rpc
from tests.benchmarks.measure import Memory, serve, temporary_folder

MODEL = Path(__file__).parent.parent / "service" / "dtypes.py"
PROCESSES = 2
QUOTA = "1GiB"  # the captures push one another out


class Call(NamedTuple):
    """A call of the mix: so many in so many as all of them together."""

    weight: float
    method: str
    request: Message


def mix(reference: str, wider: str, tensors: str) -> list[Call]:
    """Every RPC that reads.

    Args:
        reference: the reference model's trace, by its resource name, with its formulas.
        wider: the same of another configuration.
        tensors: a trace with a tensor of 8 MiB.
    """
    weights, head = "decoder.0.cross_attention.weights", rpc.TensorSlice(expression="0,0")
    condition = rpc.NodeQuery(expression="kind == 'matmul' && shape[-1] == src_len")
    paths = rpc.NodeQuery(pattern="matmul pointwise* softmax")
    part = rpc.TensorSlice(expression=":65536")
    widths = rpc.GridAxis(field="d_ff", range=rpc.IntegerRange(start=1, stop=101, step=1))
    return [
        Call(20, "GetServer", rpc.GetServerRequest()),
        Call(20, "ListModels", rpc.ListModelsRequest()),
        Call(20, "GetModel", rpc.GetModelRequest(name="models/reference")),
        Call(150, "GetTrace", rpc.GetTraceRequest(name=reference)),
        Call(50, "ListTraces", rpc.ListTracesRequest(page_size=20)),
        Call(150, "GetGraph", rpc.GetGraphRequest(trace=reference)),
        Call(50, "GetGraph", rpc.GetGraphRequest(trace=reference, role="decoder.0", view=rpc.GRAPH_VIEW_BASIC)),
        Call(50, "QueryNodes", rpc.QueryNodesRequest(trace=reference, query=condition)),
        Call(50, "QueryNodes", rpc.QueryNodesRequest(trace=reference, query=paths)),
        Call(100, "ListSnapshots", rpc.ListSnapshotsRequest(trace=reference, numbers=[33])),
        Call(150, "ReadTensor", rpc.ReadTensorRequest(trace=reference, tensor=weights, slice=head)),
        Call(50, "ReadTensor", rpc.ReadTensorRequest(trace=tensors, tensor="add", slice=part)),
        Call(5, "ReadTensor", rpc.ReadTensorRequest(trace=tensors, tensor="add")),
        Call(
            133,
            "BatchReadTensors",
            rpc.BatchReadTensorsRequest(trace=reference, reads=[rpc.TensorRead(tensor=weights)] * 4),
        ),
        Call(1, "RenderGraph", rpc.RenderGraphRequest(trace=reference)),
        Call(1, "RenderGraph", rpc.RenderGraphRequest(trace=reference, format=rpc.IMAGE_FORMAT_DOT)),
        Call(50, "Explain", rpc.ExplainRequest(trace=reference, what="33")),
        Call(20, "GetFormulas", rpc.GetFormulasRequest(trace=reference)),
        Call(2, "DiffTraces", rpc.DiffTracesRequest(before=reference, after=wider)),
        Call(0.2, "RenderDiff", rpc.RenderDiffRequest(before=reference, after=wider)),
        Call(0.2, "SweepShapes", rpc.SweepShapesRequest(model="models/reference", grid=[widths], sample=1)),
    ]


@dataclass
class Seen:
    """What clients saw: how long each call took, in seconds, by its RPC, and errors."""

    seconds: dict[str, array[float]] = field(default_factory=lambda: defaultdict(lambda: array("d")))
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, other: Seen) -> None:
        """Counts another's, too."""
        for method, seconds in other.seconds.items():
            self.seconds[method].extend(seconds)
        self.errors.update(other.errors)


def run_clients(address: str, calls: Sequence[tuple[float, str, bytes]], seeds: Sequence[int], until: float) -> Seen:
    """What a process's clients see until a time."""
    return asyncio.run(_run_clients(address, calls, seeds, until))


async def _run_clients(
    address: str, calls: Sequence[tuple[float, str, bytes]], seeds: Sequence[int], until: float
) -> Seen:
    seconds: dict[str, array[float]] = {method: array("d") for _, method, _ in calls}
    seen = Seen(seconds)
    streams = {each.name: each.server_streaming for each in SERVICE.methods}

    async def client(seed: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            kinds: dict[bool, Any] = {True: channel.unary_stream, False: channel.unary_unary}
            stubs = {name: kinds[streams[name]](f"/{SERVICE.full_name}/{name}") for name in seconds}
            order = random.Random(seed)
            weights = [weight for weight, _, _ in calls]
            while time.time() < until:
                for _, method, request in order.choices(calls, weights, k=50):
                    start = time.perf_counter()
                    try:
                        if streams[method]:
                            async for _ in stubs[method](request):
                                pass
                        else:
                            await stubs[method](request)
                    except grpc.aio.AioRpcError as error:
                        seen.errors[f"{method} {error.code().name}: {error.details()}"] += 1
                    seconds[method].append(time.perf_counter() - start)
                    if time.time() >= until:
                        break

    await asyncio.gather(*map(client, seeds))
    return seen


def capture(client: Client[Any], until: float, times: list[float], errors: Counter[str]) -> None:
    """Captures one new trace after another."""
    seed = 0
    while time.time() < until:
        seed += 1
        start = time.perf_counter()
        try:
            client.create_trace(TraceRequest("reference", seed=seed))
        except FxtraceError as error:
            errors[f"CreateTrace {error.reason}: {error.message}"] += 1
        times.append(time.perf_counter() - start)


def main(minutes: float, clients: int) -> int:
    """Prints the tables; gives 1 where there were errors."""
    missing = {name.rpartition("/")[2] for name, need in NEEDS.items() if need == "read" and SERVICE.full_name in name}
    missing -= {call.method for call in mix("", "", "")}
    with (
        temporary_folder() as folder,
        serve(folder, MODEL, disk_quota=QUOTA) as (server, address),
        Client(address, timeout=None) as client,
        ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        requests = TraceRequest("reference"), TraceRequest("reference", {"d_ff": 512}), TraceRequest("dtypes")
        reference, wider, tensors = (client.create_trace(request).id for request in requests)
        for trace in (reference, wider):
            client.find_formulas(trace)
        drawn = mix(f"traces/{reference}", f"traces/{wider}", f"traces/{tensors}")
        calls = [(call.weight, call.method, call.request.SerializeToString()) for call in drawn]
        run_clients(address, calls, [0], time.time() + 3)  # what is made once is made
        sizes = [Memory.of(server.pid)]
        until = time.time() + 60 * minutes
        seen, captures = Seen(), list[float]()
        background = threading.Thread(target=capture, args=(client, until, captures, seen.errors))
        background.start()
        parts = [
            pool.submit(run_clients, address, calls, range(number, clients, PROCESSES), until)
            for number in range(PROCESSES)
        ]
        for _ in range(2):
            time.sleep(30 * minutes)
            sizes.append(Memory.of(server.pid))
        for part in parts:
            seen.add(part.result())
        background.join()
    seen.seconds["CreateTrace, one at a time"] = array("d", captures)
    report(seen, sizes, minutes, clients, missing)
    return bool(seen.errors or missing)


def report(seen: Seen, sizes: list[Memory], minutes: float, clients: int, missing: set[str]) -> None:
    """Prints the tables."""
    total = sum(map(len, seen.seconds.values()))
    print("| RPC | calls | p50 | p99 |\n| --- | --- | --- | --- |")
    for method, seconds in sorted(seen.seconds.items(), key=lambda item: -len(item[1])):
        if len(seconds) > 1:
            cuts = statistics.quantiles(seconds, n=100)
            print(f"| {method} | {len(seconds):,} | {_ms(cuts[49])} | {_ms(cuts[98])} |")
    print(
        f"\n{clients} clients, {minutes:g} minutes: {total / minutes / 60:,.0f} calls/s, {seen.errors.total()} errors"
    )
    for error, number in seen.errors.most_common(10):
        print(f"  {number} × {error}")
    print("\n| the server's memory | itself | workers |\n| --- | --- | --- |")
    for when, size in zip(("at the start", "in the middle", "at the end"), sizes, strict=True):
        print(f"| {when} | {size.front / 2**20:.0f} MiB | {size.workers / 2**20:.0f} MiB |")
    if missing:
        print(f"\nRPCs that read and are not in the mix: {', '.join(sorted(missing))}")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f} ms" if seconds > 0.1 else f"{seconds * 1e3:.3g} ms"


if __name__ == "__main__":
    arguments = [float(each) for each in sys.argv[1:]]
    minutes, clients = arguments + [10, 64][len(arguments) :]
    sys.exit(main(minutes, int(clients)))
