from __future__ import annotations

import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from pydantic import ByteSize

from fxtrace.client import Client
from fxtrace.errors import OptionInvalid, PageInvalid, ServerUnavailable, TooLarge, Unmet
from fxtrace.ir.trace import TraceRequest
from fxtrace.service.server import serving
from fxtrace.service.settings import Settings
from tests.conftest import Served

PROGRAM = """
import sys
from pathlib import Path
from fxtrace.service.engine import Engine
from fxtrace.service.server import serve
with Engine.open(Path(sys.argv[1])) as engine:
    serve(engine, "127.0.0.1:0", on_ready=lambda address: print(address, flush=True))
print("stopped", flush=True)
"""


@contextmanager
def server_process(store: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(store)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.mark.parametrize("service", ["", "fxtrace.v1.TraceService"])
def test_health_is_served(served: Served, service: str) -> None:
    with grpc.insecure_channel(served.address) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_describes_the_service(served: Served) -> None:
    with grpc.insecure_channel(served.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "fxtrace.v1.TraceService" in database.get_services()
        service = DescriptorPool(database).FindServiceByName("fxtrace.v1.TraceService")
        assert service.FindMethodByName("GetGraph").input_type.full_name == "fxtrace.v1.GetGraphRequest"


@pytest.mark.parametrize(
    "address",
    ["", "localhost", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", ":50051", "::1:50051", "[::1]"],
)
def test_a_malformed_address_is_refused(served: Served, address: str) -> None:
    with (
        pytest.raises(OptionInvalid, match=r"expected host:port, such as 127\.0\.0\.1:50051") as e,
        serving(served.engine, address),
    ):
        pass
    assert e.value.field == "address"


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.168.1.9:50051", "example.org:80", "[2001:db8::1]:80"])
def test_only_loopback_addresses_are_served(served: Served, address: str) -> None:
    with (
        pytest.raises(OptionInvalid, match=r"expected a loopback address .* forward the port over SSH"),
        serving(served.engine, address),
    ):
        pass


def test_a_port_in_use_is_refused(served: Served) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(Unmet, match=f"cannot listen on {address}: address already in use"),
            serving(served.engine, address),
        ):
            pass


def test_two_servers_do_not_share_a_port(served: Served) -> None:
    with pytest.raises(Unmet, match="cannot listen on"), serving(served.engine, served.address):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_server_without_a_word(tmp_path: Path, number: signal.Signals) -> None:
    with server_process(tmp_path) as (process, address):
        Client(address).close()
        process.send_signal(number)
        assert (*process.communicate(), process.returncode) == ("stopped\n", "", 0)
    with pytest.raises(ServerUnavailable):
        Client(address, connect_timeout=0.1)


def test_calls_under_way_end_before_the_server_does(served: Served, tmp_path: Path) -> None:
    under_way = threading.Event()
    request = TraceRequest("slow", {"steps": 10, "log": str(tmp_path / "log")})
    with futures.ThreadPoolExecutor(2) as pool, ExitStack() as server:
        address = server.enter_context(serving(served.engine))
        with Client(address) as client, grpc.insecure_channel(address) as channel:
            call = pool.submit(client.create_trace, request, progress=lambda _: under_way.set())
            under_way.wait()
            health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(health).status == health_pb2.HealthCheckResponse.SERVING
            stopped = pool.submit(server.close)
            assert next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING
            health.cancel()
            assert call.result().node_count == 12
            stopped.result()
            with pytest.raises(ServerUnavailable):
                client.list_models()


def test_a_caller_that_pings_too_often_is_cut_off(served: Served) -> None:
    frame = struct.Struct(">BHBBI")  # length in three bytes, type, flags, stream: RFC 9113, 4.1
    ping, goaway, enhance_your_calm = 6, 7, 11
    with (
        serving(served.engine) as address,
        socket.create_connection(("127.0.0.1", int(address.split(":")[1])), timeout=20) as raw,
    ):
        raw.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame.pack(0, 0, 4, 0, 0))
        raw.sendall((frame.pack(0, 8, ping, 0, 0) + bytes(8)) * 10)
        heard = b""
        while piece := raw.recv(4096):  # until it hangs up
            heard += piece
    kinds, at = {}, 0
    while at < len(heard):
        high, low, kind, _, _ = frame.unpack_from(heard, at)
        length = high << 16 | low
        kinds[kind] = heard[at + 9 : at + 9 + length]
        at += 9 + length
    assert int.from_bytes(kinds[goaway][4:8]) == enhance_your_calm
    assert b"too_many_pings" in kinds[goaway]


def test_limits_are_those_of_the_settings(served: Served) -> None:
    limits = Settings(message_size=ByteSize(2000), page_items=3, page_nodes=7, batch_reads=1, batch_size=ByteSize(16))
    trace = served.reference.id
    with serving(served.engine, settings=limits) as address, Client(address, arrays="numpy") as client:
        assert client.list_models() == served.engine.list_models()  # of pages of 3
        assert client.get_graph(trace) == served.engine.get_graph(trace)
        with pytest.raises(PageInvalid, match=r"expected 0 \(for 3\) to 3; got 4"):
            client.page_traces(4, "")
        with pytest.raises(TooLarge, match="at most 1 tensors; got 2"):
            client.read_tensors(trace, [("src_ids", "0"), ("src_ids", "1")])
        with pytest.raises(TooLarge, match="at most 16 bytes"):
            client.read_tensors(trace, [("src_ids", "")])
        with pytest.raises(TooLarge, match="larger than max"):
            client.create_trace(TraceRequest("reference", {"name": "x" * 4000}))


def test_traces_outlive_a_killed_server(tmp_path: Path) -> None:
    with server_process(tmp_path) as (process, address), Client(address, arrays="numpy") as client:
        trace = client.create_trace(TraceRequest("reference"))
        before = client.get_graph(trace.id), client.list_snapshots(trace.id)
        tensors = {tensor: client.read_tensor(trace.id, tensor) for tensor, _ in before[0].tensors()}
        process.kill()
        process.wait()
        with pytest.raises(ServerUnavailable):
            client.get_trace(trace.id)
    with server_process(tmp_path) as (_, address), Client(address, arrays="numpy") as client:
        assert list(client.list_traces()) == [trace]
        assert (client.get_graph(trace.id), client.list_snapshots(trace.id)) == before
        for tensor, array in tensors.items():
            np.testing.assert_array_equal(client.read_tensor(trace.id, tensor), array)
