from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from fxtrace.client import Client
from fxtrace.errors import TraceNotFound
from fxtrace.service.logs import JsonLines, TextLines, set_up_logs
from tests.conftest import Served
from tests.service.processes import until


def record(message: str, values: object = (), *, stack: bool = False) -> logging.LogRecord:
    try:
        raise ValueError("why")
    except ValueError:
        info = sys.exc_info() if stack else None
    return logging.LogRecord("fxtrace.service", logging.WARNING, "file.py", 1, message, values, info)  # type: ignore[arg-type]


def test_values_are_fields_of_a_line_of_json() -> None:
    line = JsonLines().format(record("call method=%(method)s ms=%(ms).1f", ({"method": "/a/B", "ms": 1.26},)))
    parsed = json.loads(line)
    assert parsed.pop("time").endswith("+00:00")
    assert parsed == {
        "level": "warning",
        "logger": "fxtrace.service",
        "message": "call method=/a/B ms=1.3",
        "method": "/a/B",
        "ms": 1.26,
    }
    assert "\n" not in JsonLines().format(record("two\nlines", stack=True))
    assert "ValueError: why" in json.loads(JsonLines().format(record("x", stack=True)))["stack"]


def test_a_caller_who_hung_up_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    with json_log():
        for error in (grpc.aio.InternalError("Failed execute_batch"), ValueError("a defect")):
            logging.getLogger("grpc._cython.cygrpc").error("raised by servicer method", exc_info=error)
    shown = capsys.readouterr().err
    assert "a defect" in shown
    assert "execute_batch" not in shown


def test_no_caller_writes_a_line_of_its_own() -> None:
    assert (
        TextLines()
        .format(record("model %s", ("a\nERROR all is lost\x1b[2J",)))
        .endswith(" WARNING model a\\nERROR all is lost\\x1b[2J")
    )
    assert TextLines().format(record("×", stack=True)).splitlines()[-1] == "ValueError: why"


@contextmanager
def json_log() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("fxtrace")
    before = root.handlers[:], root.level, ours.level
    try:
        set_up_logs("info", "json")
        yield
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        ours.setLevel(before[2])


def test_a_call_is_found_by_the_id_that_its_caller_sees(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[dict[str, Any]] = []

    def logged() -> bool:
        said.extend(json.loads(line) for line in capsys.readouterr().err.splitlines())
        return any(line.get("request") == e.value.request_id for line in said)

    with json_log():
        with Client(served.address) as client, pytest.raises(TraceNotFound) as e:
            client.get_trace("0" * 32)
        until(logged)  # the line is written after the answer is sent
    (line,) = [line for line in said if line.get("request") == e.value.request_id]
    assert (line["method"], line["code"]) == ("/fxtrace.v1.TraceService/GetTrace", grpc.StatusCode.NOT_FOUND.name)
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert line["key"] == "-"
