"""How a server stops, in a process of its own and as its callers see it."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fxtrace.client import Client
from fxtrace.errors import ServerUnavailable, ShuttingDown
from fxtrace.ir.trace import TraceRequest
from fxtrace.service.engine import Engine
from fxtrace.service.server import serving
from fxtrace.service.settings import Settings
from tests.conftest import MODELS, Served
from tests.service.processes import exists, pid_in, server_process


def test_sigterm_lets_short_calls_end_and_tells_long_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    files = [MODELS / "slow.py", MODELS / "hostile.py"]
    short = TraceRequest("slow", {"steps": 5, "log": str(tmp_path / "log")})
    endless = TraceRequest("hostile", {"how": "loop", "pid": str(tmp_path / "pid")})
    under_way = threading.Event()
    with ThreadPoolExecutor(2) as pool, server_process(tmp_path / "store", *files, stop_grace=3) as (process, address):
        with Client(address, timeout=None) as client, grpc.insecure_channel(address) as channel:
            client.create_trace(TraceRequest("slow", {"steps": 1, "log": str(tmp_path / "log")}))  # workers are warm
            stopped = pool.submit(client.create_trace, endless)
            worker = pid_in(tmp_path / "pid")
            health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(health).status == health_pb2.HealthCheckResponse.SERVING
            done = pool.submit(
                client.create_trace, short, progress=lambda p: under_way.set() if p.stage == "run" else None
            )
            assert under_way.wait(60)
            process.send_signal(signal.SIGTERM)
            assert next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert done.result().node_count == 7
            with pytest.raises(ShuttingDown, match="the server stopped before this call was done") as told:
                stopped.result()
            assert told.value.request_id
            with pytest.raises(ServerUnavailable):
                client.list_models()
        assert process.wait(30) == 0
    assert not exists(worker)
    assert list((tmp_path / "temporary").iterdir()) == []
    with Engine.open(tmp_path / "store") as engine:
        assert len(list(engine.list_traces())) == 2
        assert engine.store.verify() == {}


def test_readers_that_go_on_reading_are_told(served: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        server = serving(served.engine, settings=Settings(stop_grace=0.2))
        address = server.__enter__()
        with Client(address, arrays="numpy") as client, grpc.insecure_channel(address) as channel:
            any_channel: Any = channel
            watch = any_channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
            next(watch)
            request = TraceRequest("slow", {"steps": 2000, "log": "/dev/null"})
            under_way = threading.Event()
            call = pool.submit(client.create_trace, request, progress=lambda _: under_way.set())
            assert under_way.wait(60)
            server.__exit__(None, None, None)
            with pytest.raises(ShuttingDown):
                call.result()
            next(watch)
            with pytest.raises(grpc.RpcError) as e:  # it is told that the server is not serving, and does not hold it
                next(watch)
            assert e.value.code() is grpc.StatusCode.UNAVAILABLE
