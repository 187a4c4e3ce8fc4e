"""Metrics for Prometheus, over HTTP on a loopback port."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from fxtrace.errors import Unmet
from fxtrace.extras import needed_for

with needed_for("metrics"):
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

_HOST = "127.0.0.1"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)


class Metrics:
    """Counts calls, and serves what it counted.

    Args:
        port: of 127.0.0.1, for `GET /metrics`; 0 picks a free one.
        gauges: further numbers, as name, description and what gives it; asked whenever Prometheus asks.

    Attributes:
        address: the actual `host:port`.

    Raises:
        Unmet: the port is taken.
    """

    def __init__(self, port: int, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        registry = CollectorRegistry()
        self._calls = Counter("fxtrace_calls", "Calls that ended.", ["method", "code"], registry=registry)
        self._seconds = Histogram(
            "fxtrace_call_seconds", "How long calls took.", ["method"], buckets=_SECONDS, registry=registry
        )
        self._running = Gauge("fxtrace_calls_running", "Calls under way.", registry=registry)
        for name, (description, ask) in gauges.items():
            Gauge(name, description, registry=registry).set_function(ask)
        try:
            self._server, self._thread = start_http_server(port, _HOST, registry)
        except OSError as error:
            raise Unmet(
                f"cannot serve metrics on {_HOST}:{port}: {(error.strerror or str(error)).lower()}; choose another "
                "metrics_port, or 0 for a free one",
                field="metrics_port",
            ) from None
        self.address = f"{_HOST}:{self._server.server_port}"

    def begin(self, method: str, _: Mapping[str, str | bytes]) -> Callable[[str], None]:
        """A call begins; what is returned is called with its code when it ends."""
        start = time.perf_counter()
        self._running.inc()

        def end(code: str) -> None:
            self._running.dec()
            self._calls.labels(method, code).inc()
            self._seconds.labels(method).observe(time.perf_counter() - start)

        return end

    def close(self) -> None:
        """Ends the HTTP server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
