"""The server: TraceService with health and reflection, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress

import grpc

from fxtrace.extras import needed_for
from fxtrace.service.access import Gate
from fxtrace.service.address import check_exposure, check_free, split_address
from fxtrace.service.engine import Engine
from fxtrace.service.interceptors import Edge, Observer
from fxtrace.service.isolated import IsolatedEngine
from fxtrace.service.keys import KeyFile
from fxtrace.service.servicer import SERVICE, ServedApi, TraceServicer
from fxtrace.service.settings import Settings
from fxtrace.service.tls import certificates

with needed_for("running a server"):
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection

_TELLING_SECONDS = 1.0  # that calls have to hear that the server stops
_log = logging.getLogger("fxtrace.service")


def serve(
    engine: ServedApi,
    address: str = "",
    *,
    settings: Settings | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serves an engine until SIGINT or SIGTERM, then lets running calls end for a few seconds. For the main thread.

    Models and pictures are worked on in processes of their own.

    Args:
        engine: answers the calls; it stays open.
        address: `host:port`; by default that of the settings. Port 0 picks a free one.
        settings: limits; by default those of the environment.
        on_ready: called with the actual address once calls are answered.

    Raises:
        OptionInvalid: the address is malformed, or the settings allow no other than a loopback address; a certificate
            or a file of keys cannot be used.
        Unmet: the port is taken.
        DependencyMissing: for metrics or spans.
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
    engine: ServedApi,
    address: str = "127.0.0.1:0",
    *,
    settings: Settings | None = None,
    isolated: bool = False,
) -> Iterator[str]:
    """A server in a thread of this process, stopped when the `with` block ends.

    Args:
        engine: answers the calls; it stays open.
        address: `host:port`. Port 0 picks a free one.
        settings: limits; by default those of the environment.
        isolated: whether models and pictures are worked on in processes of their own, as `serve` has it. Without,
            captures run in this process, one at a time.

    Example:
        with Engine.open(folder) as engine, serving(engine) as address, Client(address) as client:
            client.list_models()

    Yields:
        The actual address.

    Raises:
        OptionInvalid, Unmet, DependencyMissing: as `serve`.
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
async def _running(engine: ServedApi, address: str, settings: Settings, *, isolated: bool) -> AsyncIterator[str]:
    """A server that answers, and its actual address."""
    host, port = split_address(address)
    check_exposure(host, settings)
    check_free(host, port)
    tls = certificates(settings)
    gate = None if settings.keys is None else Gate(KeyFile(settings.keys))
    if isinstance(engine, Engine):
        engine = IsolatedEngine(engine, settings) if isolated else engine.restricted()
    with ExitStack() as closing:
        edge = Edge(gate, _observers(engine, settings, closing))
        servicer = TraceServicer(engine, settings)
        closing.callback(servicer.close)
        server = grpc.aio.server(
            interceptors=(edge,), options=_options(settings), maximum_concurrent_rpcs=settings.concurrent_calls
        )
        handlers = servicer.handlers()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))
        server.add_registered_method_handlers(SERVICE.full_name, handlers)
        healthy = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
        reflection.enable_server_reflection((SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        port = server.add_secure_port(address, tls.credentials()) if tls else server.add_insecure_port(address)
        await server.start()
        try:
            for name in ("", SERVICE.full_name):
                await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
            if isinstance(engine, IsolatedEngine):
                closing.callback(engine.close)
                engine.start()  # when calls are answered: reads need no worker
            yield f"{host}:{port}"
        finally:
            await healthy.enter_graceful_shutdown()
            await _stop(server, edge, settings.stop_grace)


async def _stop(server: grpc.aio.Server, edge: Edge, grace: float) -> None:
    """Takes no more calls, lets those under way end for a while, and tells those that do not."""
    stopping = asyncio.create_task(server.stop(grace + _TELLING_SECONDS))
    with suppress(TimeoutError):
        await asyncio.wait_for(edge.idle(), grace)
    edge.dismiss()
    await stopping


def _observers(engine: ServedApi, settings: Settings, closing: ExitStack) -> list[Observer]:
    """Who watches the calls; their packages are imported only where the settings want them."""
    observers: list[Observer] = []
    if settings.metrics_port is not None:
        from fxtrace.service.metrics import Metrics

        metrics = Metrics(settings.metrics_port, engine.gauges() if isinstance(engine, IsolatedEngine) else {})
        closing.callback(metrics.close)
        observers.append(metrics)
        _log.warning("metrics at http://%(address)s/metrics", {"address": metrics.address})
    if settings.spans:
        from fxtrace.service.spans import Spans

        spans = Spans()
        closing.callback(spans.close)
        observers.append(spans)
    return observers


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
