"""Metrics and spans of a real server, as Prometheus and OpenTelemetry get them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.request import urlopen

import pytest
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from fxtrace.client import Client
from fxtrace.errors import TraceNotFound, Unmet
from fxtrace.service.engine import Engine
from fxtrace.service.isolated import IsolatedEngine
from fxtrace.service.metrics import Metrics
from fxtrace.service.server import serving
from fxtrace.service.settings import Settings
from tests.conftest import Served
from tests.service.processes import until

Samples = dict[tuple[str, ...], float]


def scraped(address: str) -> Samples:
    """The samples, by name and label values."""
    with urlopen(f"http://{address}/metrics") as reply:
        families = list(text_string_to_metric_families(reply.read().decode()))
    labels = ("method", "code", "le")
    return {
        (s.name, *(s.labels[label] for label in labels if label in s.labels)): s.value
        for family in families
        for s in family.samples
    }


def test_calls_are_counted_by_method_and_code(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    method = "/fxtrace.v1.TraceService/GetTrace"
    with serving(served.engine, settings=Settings(metrics_port=0)) as address, Client(address) as client:
        (where,) = [r.args["address"] for r in caplog.records if isinstance(r.args, dict) and "address" in r.args]
        for _ in range(3):
            client.get_trace(served.reference.id)
        with pytest.raises(TraceNotFound):
            client.get_trace("0" * 32)
        until(lambda: scraped(str(where)).get(("fxtrace_calls_total", method, "NOT_FOUND")))
        samples = scraped(str(where))
        with pytest.raises(Unmet, match="cannot serve metrics on"):
            Metrics(int(str(where).rpartition(":")[2]), {})
    assert samples["fxtrace_calls_total", method, "OK"] == 3
    assert samples["fxtrace_calls_total", method, "NOT_FOUND"] == 1
    assert samples["fxtrace_call_seconds_count", method] == 4
    assert samples["fxtrace_call_seconds_bucket", method, "+Inf"] == 4
    assert samples["fxtrace_calls_running",] == 0


def test_workers_and_the_store_are_watched(served: Served) -> None:
    engine = IsolatedEngine(served.engine, Settings())  # never started
    metrics = Metrics(0, engine.gauges())
    try:
        samples = scraped(metrics.address)
    finally:
        metrics.close()
    assert samples["fxtrace_store_bytes",] > 1000
    assert {name: samples[name,] for name in engine.gauges() if name != "fxtrace_store_bytes"} == {
        "fxtrace_captures_waiting": 0,
        "fxtrace_pictures_waiting": 0,
        "fxtrace_capture_workers": 0,
        "fxtrace_picture_workers": 0,
    }


@pytest.fixture(scope="module")
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    otel.set_tracer_provider(provider)  # once in a process
    yield exporter
    provider.shutdown()


def test_a_call_and_its_stages_are_spans_below_the_caller_s(
    served: Served, exporter: InMemorySpanExporter, tmp_path: Path
) -> None:
    import grpc

    from fxtrace.v1 import trace_service_pb2 as rpc
    from fxtrace.v1.trace_service_pb2_grpc import TraceServiceStub

    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with (
        Engine.open(tmp_path) as engine,
        serving(engine, settings=Settings(spans=True)) as address,
        grpc.insecure_channel(address) as channel,
    ):
        request = rpc.CreateTraceRequest(model="models/reference")
        list(TraceServiceStub(channel).CreateTrace(request, metadata=(("traceparent", caller),)))

        def call() -> ReadableSpan | None:
            spans = exporter.get_finished_spans()
            return next((s for s in spans if s.name == "fxtrace.v1.TraceService/CreateTrace"), None)

        until(call)
    span = call()
    assert span is not None
    assert span.context is not None
    assert span.parent is not None
    assert (span.context.trace_id, span.parent.span_id) == (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331)
    assert dict(span.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": "fxtrace.v1.TraceService",
        "rpc.method": "CreateTrace",
        "rpc.grpc.status": "OK",
    }
    stages = [s for s in exporter.get_finished_spans() if s.parent and s.parent.span_id == span.context.span_id]
    assert {"build", "run", "label", "store"} <= {stage.name for stage in stages}
    for stage, after in pairwise(stages):
        assert (stage.end_time or 0) <= (after.start_time or 0)


def test_an_unknown_exporter_is_refused(served: Served, tmp_path: Path) -> None:
    program = (
        "import os; os.environ['OTEL_TRACES_EXPORTER'] = 'consol'\nfrom fxtrace.service.spans import Spans\nSpans()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "OTEL_TRACES_EXPORTER: no exporter named 'consol'; did you mean 'console'?" in done.stderr


@pytest.mark.parametrize(
    ("setting", "package", "extra"),
    [("metrics_port=0", "prometheus_client", "metrics"), ("spans=True", "opentelemetry", "otel")],
)
def test_what_is_not_installed_is_said_and_costs_nothing(
    setting: str, package: str, extra: str, tmp_path: Path
) -> None:
    program = f"""
import sys
sys.modules["{package}"] = None  # importing it fails, as where it is not installed
from fxtrace.errors import DependencyMissing
from fxtrace.service.engine import Engine
from fxtrace.service.server import serving
from fxtrace.service.settings import Settings
with Engine.open({str(tmp_path)!r}) as engine:
    with serving(engine, settings=Settings()):
        print("serves")
    try:
        with serving(engine, settings=Settings({setting})):
            pass
    except DependencyMissing as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("serves\n")
    assert done.stdout.endswith(f"install it with: pip install 'fxtrace[{extra}]'\n")
