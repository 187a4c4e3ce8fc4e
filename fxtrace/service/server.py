"""The server: TraceService with health and reflection, on a loopback address, until it is told to stop."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fxtrace.api import TraceApi
from fxtrace.errors import OptionInvalid, Unmet
from fxtrace.service.engine import Engine
from fxtrace.service.interceptors import Edge
from fxtrace.service.isolated import IsolatedEngine
from fxtrace.service.servicer import SERVICE, TraceServicer
from fxtrace.service.settings import Settings

DEFAULT_ADDRESS = "127.0.0.1:50051"


def serve(
    engine: TraceApi[Any],
    address: str = "",
    *,
    settings: Settings | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serves an engine until SIGINT or SIGTERM, then lets running calls end for a few seconds. For the main thread.

    Models and pictures are worked on in processes of their own.

    Args:
        engine: answers the calls; it stays open.
        address: `host:port` on this machine; by default that of the settings. Port 0 picks a free one.
        settings: limits; by default those of the environment.
        on_ready: called with the actual address once calls are answered.

    Raises:
        OptionInvalid: the address is malformed or not a loopback address.
        Unmet: the port is taken.
    """
    settings = settings or Settings.load()
    address = address or f"{settings.host}:{settings.port}"

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        with suppress(NotImplementedError):  # on Windows, where Ctrl-C ends the wait by itself
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop.set)
        async with _running(engine, address, settings, isolated=True) as actual:
            if on_ready is not None:
                on_ready(actual)
            await stop.wait()

    asyncio.run(run())


@contextmanager
def serving(
    engine: TraceApi[Any],
    address: str = "127.0.0.1:0",
    *,
    settings: Settings | None = None,
    isolated: bool = False,
) -> Iterator[str]:
    """A server in a thread of this process, stopped when the `with` block ends.

    Args:
        engine: answers the calls; it stays open.
        address: `host:port` on this machine. Port 0 picks a free one.
        settings: limits; by default those of the environment.
        isolated: whether models and pictures are worked on in processes of their own, as `serve` has it. Without,
            captures run in this process, one at a time.

    Example:
        with Engine.open(folder) as engine, serving(engine) as address, Client(address) as client:
            client.list_models()

    Yields:
        The actual address.

    Raises:
        OptionInvalid, Unmet: as `serve`.
    """
    settings = settings or Settings.load()
    ready: Future[tuple[str, Callable[[], object]]] = Future()

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        try:
            async with _running(engine, address, settings, isolated=isolated) as actual:
                ready.set_result((actual, lambda: loop.call_soon_threadsafe(stop.set)))
                await stop.wait()
        except Exception as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="fxtrace-server", daemon=True)
    thread.start()
    actual, stop = ready.result()
    try:
        yield actual
    finally:
        stop()
        thread.join()


@asynccontextmanager
async def _running(engine: TraceApi[Any], address: str, settings: Settings, *, isolated: bool) -> AsyncIterator[str]:
    """A server that answers, and its actual address."""
    host, port = _loopback(address)
    _check_free(host, port)
    if isinstance(engine, Engine):
        engine = IsolatedEngine(engine, settings) if isolated else engine.restricted()
    servicer = TraceServicer(engine, settings)
    server = grpc.aio.server(
        interceptors=(Edge(),), options=_options(settings), maximum_concurrent_rpcs=settings.concurrent_calls
    )
    handlers = servicer.handlers()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))
    server.add_registered_method_handlers(SERVICE.full_name, handlers)
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    reflection.enable_server_reflection((SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        for name in ("", SERVICE.full_name):
            await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
        if isinstance(engine, IsolatedEngine):
            engine.start()  # when calls are answered: reads need no worker
        yield f"{host}:{port}"
    finally:
        await healthy.enter_graceful_shutdown()
        await server.stop(settings.stop_grace)
        servicer.close()
        if isinstance(engine, IsolatedEngine):
            engine.close()


def _options(settings: Settings) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a partner
        ("grpc.max_receive_message_length", settings.message_size),
        ("grpc.max_send_message_length", -1),  # replies are paged and chunked already
        # A caller that is gone without a word is found out; one that pings more often than it may is cut off.
        ("grpc.keepalive_time_ms", _ms(settings.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", _ms(settings.keepalive_timeout)),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _ms(settings.ping_seconds)),
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _loopback(address: str) -> tuple[str, int]:
    """Host and port of an address, where it is this machine's own."""
    match = re.fullmatch(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]]+):(?P<port>[0-9]{1,5})", address)
    if match is None or int(match["port"]) > 65535:
        raise OptionInvalid(
            f"address: expected host:port, such as {DEFAULT_ADDRESS}; got '{address}'", field="address", address=address
        )
    host = match["host"]
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise OptionInvalid(
            f"address: expected a loopback address (127.0.0.1, [::1] or localhost), since this version has no TLS and "
            f"no log-in; got '{host}'. To reach it from elsewhere, forward the port over SSH",
            field="address",
            address=address,
        )
    return host, int(match["port"])


def _check_free(host: str, port: int) -> None:
    """Raises Unmet where the port cannot be listened on; gRPC itself would only say that it could not."""
    family, *_, where = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(where)
        except OSError as error:
            raise Unmet(
                f"cannot listen on {host}:{port}: {(error.strerror or str(error)).lower()}. Choose another port, or "
                "port 0 for a free one",
                address=f"{host}:{port}",
            ) from None
