"""What nobody would send, of every RPC: a small part of `python -m tests.benchmarks.fuzz`."""

from __future__ import annotations

from pathlib import Path

from fxtrace.models import Registry
from fxtrace.service.engine import Engine
from fxtrace.service.server import serving
from fxtrace.service.settings import Settings
from tests.benchmarks.fuzz.drive import METHODS, PROTO, SERVICES, TRACES, Driver, documented, vocabulary
from tests.benchmarks.fuzz.requests import draw_requests, requests
from tests.conftest import MODELS


def test_no_request_gets_an_unknown_or_an_internal_error(tmp_path: Path) -> None:
    models = Registry.installed()
    for name in ("tiny", "dtypes"):
        models.add_file(MODELS / f"{name}.py")
    settings = Settings(workers=1, render_workers=1, queue_length=1, capture_seconds=1, render_seconds=1)
    with Engine.open(tmp_path / "store", models) as engine:
        words = vocabulary(engine, TRACES[:-1])
        drawn = [each for method in METHODS.values() for each in draw_requests(requests([method], words), 20, 1)]
        with serving(engine, settings=settings, isolated=True) as address:
            tally = Driver(address, (str(tmp_path),)).run(drawn)
    assert tally.faults == []
    assert {method for method, _, _ in tally.ends} == {each.name for each in METHODS.values()}
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND"} <= {code for _, code, _ in tally.ends}


def test_the_protocol_tells_the_reasons_of_every_rpc() -> None:
    reasons = documented(PROTO.read_text(encoding="utf-8"))
    assert reasons.keys() == {method.name for method in SERVICES[0].methods}
    assert {"TOO_LARGE", "SLICE_INVALID"} <= reasons["BatchReadTensors"]
    assert "SLICE_INVALID" not in reasons["GetGraph"]
