"""What every call gets, on a server with handlers that fail in every way."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from grpc_status import rpc_status

from fxtrace.errors import InternalError, InvalidRequest, SliceInvalid
from fxtrace.service.interceptors import REQUEST_ID, Edge
from fxtrace.status import from_status

Context = Any
SECRET = "/home/someone/secret.py"


ENTERED, GONE = threading.Event(), threading.Event()


async def unary(request: bytes, context: Context) -> bytes:
    if request == b"ours":
        raise SliceInvalid("expected a, got b", field="slice", at=3)
    if request == b"defect":
        raise RuntimeError(SECRET)
    if request.startswith(b"late"):
        ENTERED.set()
        GONE.wait()  # and no task of this loop's hears that the caller is gone
        time.sleep(0.2)  # noqa: ASYNC251 - it is to hold the loop
        if request == b"late":
            raise SliceInvalid("too late")
    if request.endswith(b"abort"):
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who?")
    return request


async def stream(request: bytes, context: Context) -> AsyncIterator[bytes]:
    yield b"first"
    yield await unary(request, context)


async def write(request: bytes, context: Context) -> None:
    """As the standard health service streams: it writes, and is no generator."""
    await context.write(b"first")
    await context.write(await unary(request, context))


async def both(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
    async for request in requests:
        yield await unary(request, context)


async def gather(requests: AsyncIterator[bytes], context: Context) -> bytes:
    return await unary(b"".join([request async for request in requests]), context)


def decode(data: bytes) -> bytes:
    """What protobuf does with bytes that are no message."""
    if data == b"garbled":
        Empty.FromString(data)
    return data


@pytest.fixture(scope="module")
def channel() -> Iterator[grpc.Channel]:
    ready = threading.Event()
    state: dict[str, Any] = {}

    async def run() -> None:
        server = grpc.aio.server(interceptors=(Edge(),))
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Unary": grpc.unary_unary_rpc_method_handler(unary, decode),
            "Stream": grpc.unary_stream_rpc_method_handler(stream, decode),
            "Write": grpc.unary_stream_rpc_method_handler(write, decode),
            "Both": grpc.stream_stream_rpc_method_handler(both, decode),
            "Gather": grpc.stream_unary_rpc_method_handler(gather, decode),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", handlers),))
        state["port"] = server.add_insecure_port("127.0.0.1:0")
        state["loop"], state["stop"] = asyncio.get_running_loop(), asyncio.Event()
        await server.start()
        ready.set()
        await state["stop"].wait()
        await server.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    ready.wait()
    with grpc.insecure_channel(f"127.0.0.1:{state['port']}") as channel:
        yield channel
    state["loop"].call_soon_threadsafe(state["stop"].set)
    thread.join()


def call(channel: grpc.Channel, kind: str, request: bytes, **options: Any) -> list[bytes]:
    any_channel: Any = channel  # raw bytes, which gRPC's types do not foresee
    match kind:
        case "Unary":
            return [any_channel.unary_unary("/t/Unary")(request, **options)]
        case "Stream" | "Write":
            return list(any_channel.unary_stream(f"/t/{kind}")(request, **options))[1:]
        case "Both":
            return list(any_channel.stream_stream("/t/Both")(iter([request]), **options))
        case _:
            return [any_channel.stream_unary("/t/Gather")(iter([request]), **options)]


def start(channel: Any, request: bytes, request_id: str) -> Any:
    """A unary call under way, with this request id."""
    return channel.unary_unary("/t/Unary").future(request, metadata=((REQUEST_ID, request_id),))


KINDS = pytest.mark.parametrize("kind", ["Unary", "Stream", "Write", "Both", "Gather"])


@KINDS
def test_what_goes_well_passes_through(channel: grpc.Channel, kind: str) -> None:
    assert call(channel, kind, b"hello") == [b"hello"]


@KINDS
def test_errors_become_their_statuses(channel: grpc.Channel, kind: str) -> None:
    with pytest.raises(grpc.RpcError) as e:
        call(channel, kind, b"ours")
    assert e.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    error = from_status(rpc_status.from_call(e.value))
    assert type(error) is SliceInvalid
    assert (error.message, error.field, error.metadata) == ("expected a, got b", "slice", {"at": "3"})


@KINDS
def test_bytes_that_are_no_message_are_the_callers_mistake(channel: grpc.Channel, kind: str) -> None:
    with pytest.raises(grpc.RpcError) as e:
        call(channel, kind, b"garbled", metadata=((REQUEST_ID, "my-request.1"),))
    error = from_status(rpc_status.from_call(e.value))
    assert type(error) is InvalidRequest
    assert "not a message of this call's" in error.message
    assert error.request_id == "my-request.1"


@KINDS
def test_a_defect_is_told_to_the_log_and_not_to_the_caller(
    channel: grpc.Channel, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(grpc.RpcError) as e:
        call(channel, kind, b"defect", metadata=((REQUEST_ID, "my-request.1"),))
    assert e.value.code() is grpc.StatusCode.INTERNAL
    error = from_status(rpc_status.from_call(e.value))
    assert type(error) is InternalError
    assert error.metadata == {"request_id": "my-request.1"}
    assert SECRET not in str(e.value)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "request=my-request.1" in record.getMessage()
    assert record.exc_text is not None
    assert SECRET in record.exc_text


@pytest.mark.parametrize("request_", [b"late", b"late abort"])
def test_a_caller_who_is_gone_is_no_defect(channel: Any, request_: bytes, caplog: pytest.LogCaptureFixture) -> None:
    ENTERED.clear()
    GONE.clear()
    under_way = channel.unary_unary("/t/Unary").future(request_)
    ENTERED.wait()
    under_way.cancel()
    GONE.set()
    assert call(channel, "Unary", b"hello") == [b"hello"]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@KINDS
def test_an_abort_keeps_its_own_status(channel: grpc.Channel, kind: str) -> None:
    with pytest.raises(grpc.RpcError) as e:
        call(channel, kind, b"abort")
    assert (e.value.code(), e.value.details()) == (grpc.StatusCode.UNAUTHENTICATED, "who?")


@pytest.mark.parametrize(
    ("sent", "kept"), [("abc-1", True), ("", False), ("a b", False), ("x" * 65, False), ("a=b", False)]
)
@pytest.mark.parametrize("request_", [b"fine", b"ours"])
def test_the_request_id_comes_back(channel: grpc.Channel, sent: str, kept: bool, request_: bytes) -> None:
    future = start(channel, request_, sent)
    assert (future.exception() is None) == (request_ == b"fine")
    (back,) = [value for key, value in future.trailing_metadata() if key == REQUEST_ID]
    assert (back == sent) == kept
    assert back


@pytest.mark.parametrize(
    ("request_", "code"), [(b"fine", "OK"), (b"ours", "INVALID_ARGUMENT"), (b"defect", "INTERNAL")]
)
def test_each_call_has_a_line_in_the_log(
    channel: grpc.Channel, caplog: pytest.LogCaptureFixture, request_: bytes, code: str
) -> None:
    caplog.set_level(logging.INFO, "fxtrace.service")
    start(channel, request_, "one").exception()
    call(channel, "Unary", b"another")  # the line is written after the answer is sent; this one's comes later
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("call request=one ")]
    assert f"method=/t/Unary code={code} ms=" in line
    assert "peer=ipv4:127.0.0.1:" in line


def test_an_unknown_method_is_left_to_grpc(channel: grpc.Channel) -> None:
    nothing: Any = channel.unary_unary("/t/Nothing")
    with pytest.raises(grpc.RpcError) as e:
        nothing(b"")
    assert e.value.code() is grpc.StatusCode.UNIMPLEMENTED
