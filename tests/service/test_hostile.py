"""What hostile names do to a running server: nothing. Python's own audit hooks see what is opened, imported and run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from fxtrace.service.servicer import SERVICE
from tests.conftest import Served

MARK = "hostilemark"
NAMES = [
    f"../../etc/{MARK}",
    f"/etc/{MARK}",
    f"..\\{MARK}",
    f"{MARK}:system",
    f"os:{MARK}",
    f"{MARK}.py",
    f"hf:{MARK}",
    f"models/{MARK}:factory",
    f"models/../{MARK}.py",
    f"traces/../../{MARK}",
    f"a\x00{MARK}",
    MARK * 20_000,
    f"__import__('{MARK}')",
    f"file:///{MARK}",
    f"{{{MARK}}} %s %n ${MARK} `{MARK}`",
    f"{MARK}\r\nERROR all is lost",
]
_seen: list[str] = []
_armed = False


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _armed and MARK in repr(args):
        _seen.append(event)


@pytest.fixture(scope="module")
def audited() -> None:
    sys.addaudithook(_hook)  # for good: Python takes no hook away


@contextmanager
def watching() -> Iterator[list[str]]:
    """The audit events that name the mark within the block."""
    global _armed
    _seen.clear()
    _armed = True
    try:
        yield _seen
    finally:
        _armed = False


def fill(message: Message, text: str, trace: str, depth: int = 0) -> None:
    """Puts the text into every field that takes one; where `trace` is given, names of resources are good ones."""
    descriptor: Any = message.DESCRIPTOR
    for field in descriptor.fields:
        given = {"trace": trace, "model": "models/reference"}.get(field.name, "") if trace else ""
        if field.name == "name" and trace:
            given = "models/reference" if "Model" in descriptor.name else trace
        value = given or text
        if field.type == FieldDescriptor.TYPE_STRING:
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)
        elif field.message_type is not None and depth < 3:
            if field.message_type.GetOptions().map_entry:
                fill_map(getattr(message, field.name), field.message_type, text, trace, depth)
            elif field.is_repeated:
                fill(getattr(message, field.name).add(), text, trace, depth + 1)
            elif field.containing_oneof is None:
                getattr(message, field.name).SetInParent()
                fill(getattr(message, field.name), text, trace, depth + 1)


def fill_map(entries: Any, entry: Descriptor, text: str, trace: str, depth: int) -> None:
    value = entry.fields_by_name["value"]
    if value.message_type is None:
        entries[text] = text
    elif value.message_type.full_name == "google.protobuf.Value":
        entries[text].string_value = text
    else:
        fill(entries[text], text, trace, depth + 1)


@pytest.mark.parametrize("with_trace", [False, True], ids=["every text", "but resources"])
@pytest.mark.parametrize("method", [method.name for method in SERVICE.methods])
def test_names_lead_nowhere(served: Served, audited: None, method: str, with_trace: bool) -> None:
    described = SERVICE.methods_by_name[method]
    if method == "DeleteTrace" and with_trace:
        pytest.skip("it would delete the trace")
    with grpc.insecure_channel(served.address) as channel:
        any_channel: Any = channel
        call = any_channel.stream_stream(f"/{SERVICE.full_name}/{method}")
        for text in NAMES:
            request = GetMessageClass(described.input_type)()
            fill(request, text, f"traces/{served.reference.id}" if with_trace else "")
            with watching() as events:
                code, details = outcome(call, request.SerializeToString())
            assert code in {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}, (text, details)
            assert events == []
            assert "Traceback" not in details
            assert str(served.engine.store.place) not in details


def outcome(call: Any, request: bytes) -> tuple[str, str]:
    try:
        for _ in call(iter([request]), timeout=60):
            pass
    except grpc.RpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


def test_the_hook_sees_what_it_is_to_see(audited: None) -> None:
    with watching() as events, pytest.raises(ModuleNotFoundError):
        __import__(MARK)
    assert "import" in events
    with watching() as events, pytest.raises(FileNotFoundError):
        open(f"/{MARK}")  # noqa: PTH123, SIM115
    assert events == ["open"]
