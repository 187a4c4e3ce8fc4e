"""What every call gets: a request id, a check of its key, errors as statuses, a line in the log, and who watches it."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from fxtrace import status
from fxtrace.errors import FxtraceError, InternalError, InvalidRequest, ModelInvalid, ShuttingDown, StoreDamaged, Unmet
from fxtrace.service.access import NEEDS, Gate, caller
from fxtrace.service.redact import redact

REQUEST_ID = "x-request-id"

_ACCEPTABLE_ID = re.compile(r"[0-9A-Za-z._-]{1,64}")
_log = logging.getLogger("fxtrace.service")

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Decode: TypeAlias = Callable[[bytes], Any] | None
Metadata: TypeAlias = Mapping[str, str | bytes]

stages: ContextVar[Callable[[str], None] | None] = ContextVar("stages", default=None)
"""Wants to be told of each stage that a call's work comes to."""


class Observer(Protocol):
    """Watches calls."""

    def begin(self, method: str, metadata: Metadata, /) -> Callable[[str], None]:
        """A call begins, in the task that runs it; what is returned is called with its code when it ends."""


class _Call:
    """A call under way. `waits` says that its task is in fxtrace's own code, and not in gRPC, which sends for it."""

    def __init__(self, method: str) -> None:
        self.task = asyncio.current_task()
        self.is_work = NEEDS.get(method) != "open"
        self.waits = True


class Edge(grpc.aio.ServerInterceptor):
    """Gives each call a request id, checks its key, turns what it raises into a status, and writes a line to the log.

    The id is the caller's `x-request-id` where that is a short plain word, and goes back in the trailers under the same
    name, and in `google.rpc.RequestInfo`. An FxtraceError becomes its own status. Anything else is a defect: the caller
    learns the request id, and the log has the stack under it.

    Args:
        gate: lets calls in; None lets all in.
        observers: watch the calls.
    """

    def __init__(self, gate: Gate | None = None, observers: Sequence[Observer] = ()) -> None:
        self._gate = gate
        self._observers = observers
        self._calls: set[_Call] = set()
        self._ended = asyncio.Event()
        self._dismissed = False

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The method's handler, with all of the above around it."""
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method; gRPC answers that
            return None
        method = handler_call_details.method
        call: Any = handler.stream_stream or handler.unary_stream or handler.stream_unary or handler.unary_unary
        metadata: Metadata = dict(handler_call_details.invocation_metadata or ())
        try:
            key = None if self._gate is None else self._gate.admit(method, metadata)
        except FxtraceError as error:
            return self._refusal(method, metadata, error)

        # Here rather than by gRPC, which has no other word than UNKNOWN for bytes that are no message.
        decoded = partial(_decoded_all if handler.request_streaming else _decoded, handler.request_deserializer)

        async def reply(request: Any, context: Context) -> Any:
            async with self._watched(method, metadata, context):
                caller.set(key)
                return await call(decoded(request), context)

        async def replies(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self._watched(method, metadata, context) as under_way:
                caller.set(key)
                async with aclosing(call(decoded(request), context)) as items:
                    async for item in items:
                        under_way.waits = False
                        yield item
                        under_way.waits = True
                        if self._dismissed:
                            raise _shutting_down()

        wrap: Any = _WRAPPERS[bool(handler.request_streaming), bool(handler.response_streaming)]
        wrapped: Handler = wrap(
            replies if inspect.isasyncgenfunction(call) else reply,
            response_serializer=handler.response_serializer,
        )
        return wrapped

    async def idle(self) -> None:
        """Returns when no call is under way; who only asks for the health does not count."""
        while any(each.is_work for each in self._calls):
            self._ended.clear()
            await self._ended.wait()

    def dismiss(self) -> None:
        """Ends every call, which is told that the server stops; one whose caller does not read is left to gRPC."""
        self._dismissed = True
        for each in self._calls:
            if each.waits and each.task is not None:
                each.task.cancel()

    def _refusal(self, method: str, metadata: Metadata, error: FxtraceError) -> Handler:
        """A handler that reads nothing of the request, however large that is."""

        async def refuse(_: AsyncIterator[bytes], context: Context) -> bytes:
            async with self._watched(method, metadata, context):
                raise error

        return grpc.stream_unary_rpc_method_handler(refuse)

    @asynccontextmanager
    async def _watched(self, method: str, metadata: Metadata, context: Context) -> AsyncIterator[_Call]:
        start = time.perf_counter()
        request_id = _request_id(metadata)
        peer = context.peer()  # now: once a call is over, gRPC crashes the process on being asked
        code = "OK"
        trailers = ((REQUEST_ID, request_id),)
        context.set_trailing_metadata(trailers)
        ends = [observer.begin(method, metadata) for observer in self._observers]
        under_way = _Call(method)
        self._calls.add(under_way)
        try:
            yield under_way
        except GeneratorExit:
            code = "CANCELLED"
            raise
        except grpc.aio.AbortError:
            code = _name(context.code())  # by a standard service, which has said why
            raise
        except grpc.aio.InternalError:  # it could not be sent: the caller is gone
            code = "CANCELLED"
            raise asyncio.CancelledError from None
        except (Exception, asyncio.CancelledError) as raised:
            if isinstance(raised, asyncio.CancelledError) and not self._dismissed:
                code = "CANCELLED"  # by the caller, or its time ran out
                raise
            if isinstance(raised, NotImplementedError) and _name(context.code()) == "UNIMPLEMENTED":
                code = "UNIMPLEMENTED"  # by a standard service, which does not have all of its methods
                await _abort(context, grpc.StatusCode.UNIMPLEMENTED, f"this server has no {method}", trailers)
            error = self._told(raised, request_id, method)
            sent = rpc_status.to_status(status.to_status(error))
            code = sent.code.name
            await _abort(context, sent.code, sent.details, (*sent.trailing_metadata, *trailers))
        finally:
            self._calls.discard(under_way)
            self._ended.set()
            for end in ends:
                end(code)
            _log.info(
                "call request=%(request)s method=%(method)s code=%(code)s ms=%(ms).1f peer=%(peer)s key=%(key)s",
                {
                    "request": request_id,
                    "method": method,
                    "code": code,
                    "ms": (time.perf_counter() - start) * 1000,
                    "peer": peer,
                    "key": key.id if (key := caller.get()) else "-",
                },
            )

    def _told(self, raised: BaseException, request_id: str, method: str) -> FxtraceError:
        """The error that the caller gets; the log gets what the caller does not."""
        if isinstance(raised, asyncio.CancelledError):
            error: FxtraceError = _shutting_down()
        elif isinstance(raised, FxtraceError):
            error = raised
        else:
            error = status.unexpected(request_id)
        level = _level(raised)
        if level:
            _log.log(
                level,
                "failed request=%(request)s method=%(method)s reason=%(reason)s",
                {"request": request_id, "method": method, "reason": error.reason},
                exc_info=raised,
            )
        redact(error)
        error.request_id = request_id
        return error


async def _abort(
    context: Context, code: grpc.StatusCode, text: str, trailers: tuple[tuple[str, str | bytes], ...]
) -> None:
    with suppress(grpc.aio.InternalError):  # the caller is gone
        await context.abort(code, text, trailers)
    raise asyncio.CancelledError


def _decoded(decode: Decode, data: bytes) -> Any:
    try:
        return data if decode is None else decode(data)
    except DecodeError as error:
        raise InvalidRequest(f"the request is not a message of this call's: {error}") from None


async def _decoded_all(decode: Decode, stream: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for data in stream:
        yield _decoded(decode, data)


_WRAPPERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _level(raised: BaseException) -> int:
    """At which level an error is logged with its stack; 0 where the caller is told all of it."""
    match raised:
        case StoreDamaged() | InternalError():
            return logging.ERROR
        case FxtraceError():
            hidden = raised.__cause__ is not None or hasattr(raised, "__notes__")
            return (logging.WARNING if isinstance(raised, Unmet | ModelInvalid) else logging.DEBUG) if hidden else 0
        case Exception():
            return logging.ERROR
        case _:
            return 0


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("the server stopped before this call was done; ask again when it is back")


def _name(code: object) -> str:
    return next((each.name for each in grpc.StatusCode if code in (each, each.value[0])), str(code))


def _request_id(metadata: Metadata) -> str:
    given = metadata.get(REQUEST_ID, "")
    return given if isinstance(given, str) and _ACCEPTABLE_ID.fullmatch(given) else secrets.token_hex(8)
