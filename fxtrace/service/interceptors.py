"""What every call gets: a request id, errors as statuses, and a line in the log."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias

import grpc
from grpc_status import rpc_status

from fxtrace import status
from fxtrace.errors import FxtraceError

REQUEST_ID = "x-request-id"

_ACCEPTABLE_ID = re.compile(r"[0-9A-Za-z._-]{1,64}")
_log = logging.getLogger("fxtrace.service")

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Edge(grpc.aio.ServerInterceptor):
    """Gives each call a request id, turns what it raises into a status, and writes a line to the log.

    The id is the caller's `x-request-id` where that is a short plain word, and goes back in the trailers under the same
    name. An FxtraceError becomes its own status. Anything else is a defect: the caller learns the request id, and the
    log has the stack under it.
    """

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

        async def reply(request: Any, context: Context) -> Any:
            async with _watched(method, context):
                return await call(request, context)

        async def replies(request: Any, context: Context) -> AsyncIterator[Any]:
            async with _watched(method, context), aclosing(call(request, context)) as items:
                async for item in items:
                    yield item

        wrap: Any = _WRAPPERS[bool(handler.request_streaming), bool(handler.response_streaming)]
        wrapped: Handler = wrap(
            replies if inspect.isasyncgenfunction(call) else reply,
            handler.request_deserializer,
            handler.response_serializer,
        )
        return wrapped


_WRAPPERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


@asynccontextmanager
async def _watched(method: str, context: Context) -> AsyncIterator[None]:
    start = time.perf_counter()
    request_id = _request_id(context)
    peer = context.peer()  # now: once a call is over, gRPC crashes the process on being asked
    code = "OK"
    trailers = ((REQUEST_ID, request_id),)
    context.set_trailing_metadata(trailers)
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        code = "CANCELLED"  # by the caller, or its time ran out
        raise
    except grpc.aio.AbortError:
        code = str(context.code())  # by a standard service, which has said why
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets a status and the log the stack
        if not isinstance(error, FxtraceError):
            _log.exception("defect request=%s method=%s", request_id, method)
            error = status.unexpected(request_id)
        sent = rpc_status.to_status(status.to_status(error))
        code = sent.code.name
        await context.abort(sent.code, sent.details, (*sent.trailing_metadata, *trailers))
    finally:
        milliseconds = (time.perf_counter() - start) * 1000
        _log.info("call request=%s method=%s code=%s ms=%.1f peer=%s", request_id, method, code, milliseconds, peer)


def _request_id(context: Context) -> str:
    given = dict(context.invocation_metadata() or ()).get(REQUEST_ID, "")
    return given if isinstance(given, str) and _ACCEPTABLE_ID.fullmatch(given) else secrets.token_hex(8)
