"""Spans of OpenTelemetry: one for each call, below the caller's own, and below it one for each stage of its work."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

from fxtrace.errors import OptionInvalid, unknown
from fxtrace.extras import needed_for
from fxtrace.service.interceptors import stages

with needed_for("spans", "otel"):
    from opentelemetry import context, propagate, trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

_EXPORTERS = "opentelemetry_traces_exporter"  # the entry points of every exporter that is installed
_FAULTS = {"INTERNAL", "DATA_LOSS", "UNAVAILABLE", "UNKNOWN", "UNIMPLEMENTED"}  # the server's, not the caller's


class Spans:
    """Makes spans of calls.

    Where the program has set a tracer provider, they are that one's. Else one is made, with the exporters that
    OTEL_TRACES_EXPORTER names (`otlp` by default), which have variables of their own, such as
    OTEL_EXPORTER_OTLP_ENDPOINT.

    Raises:
        OptionInvalid: there is no such exporter.
    """

    def __init__(self) -> None:
        provider = trace.get_tracer_provider()
        self._own: TracerProvider | None = None
        if isinstance(provider, trace.ProxyTracerProvider):
            provider = self._own = _provider()
        self._tracer = provider.get_tracer("fxtrace")

    def begin(self, method: str, metadata: Mapping[str, str | bytes]) -> Callable[[str], None]:
        """A call begins, in the task that runs it; what is returned is called with its code when it ends."""
        service, _, name = method.strip("/").partition("/")
        span = self._tracer.start_span(
            f"{service}/{name}",
            propagate.extract({key: value for key, value in metadata.items() if isinstance(value, str)}),
            trace.SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
        )
        within = trace.set_span_in_context(span)
        context.attach(within)  # for good: each call has a task, and a task a context, of its own
        running: list[trace.Span] = []

        def stage(name: str) -> None:
            while running:
                running.pop().end()
            if name:
                running.append(self._tracer.start_span(name, within))

        def end(code: str) -> None:
            stage("")
            span.set_attribute("rpc.grpc.status", code)
            if code in _FAULTS:
                span.set_status(trace.StatusCode.ERROR, code)
            span.end()

        stages.set(stage)
        return end

    def close(self) -> None:
        """Sends what is not sent yet."""
        if self._own is not None:
            self._own.shutdown()


def _provider() -> TracerProvider:
    provider = TracerProvider()
    installed = {point.name: point for point in entry_points(group=_EXPORTERS)}
    for name in os.environ.get("OTEL_TRACES_EXPORTER", "otlp").split(","):
        if name == "otlp":
            protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
            name = f"otlp_proto_{protocol.partition('/')[0]}"
        if name == "none":
            continue
        if name not in installed:
            raise OptionInvalid(f"OTEL_TRACES_EXPORTER: {unknown('exporter', name, installed)}", field="spans")
        provider.add_span_processor(BatchSpanProcessor(installed[name].load()()))
    return provider
