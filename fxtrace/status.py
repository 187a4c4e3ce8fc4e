"""Errors as gRPC statuses and back: one table, used both ways.

An error travels as a `google.rpc.Status`: its class as the code and as `ErrorInfo.reason`, its dynamic values as
`ErrorInfo.metadata`, the field to blame in `BadRequest`, a time to wait in `RetryInfo`, and the call's id in
`RequestInfo`. The client raises the same class with the same message, field, metadata and request id. All of it goes
into HTTP/2 trailers, which peers refuse beyond 8 KiB, so very long texts are cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from traceback import format_exception

from google.protobuf.any_pb2 import Any
from google.rpc import code_pb2
from google.rpc.error_details_pb2 import BadRequest, DebugInfo, ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from fxtrace.errors import (
    Busy,
    Cancelled,
    DeadlineExceeded,
    FxtraceError,
    InternalError,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    ServerUnavailable,
    StoreDamaged,
    TooLarge,
    Unauthenticated,
    Unmet,
)

DOMAIN = "fxtrace"

# A subclass has its base's code; its reason tells it apart. Of two with one code, the first stands for the code.
CODES: dict[type[FxtraceError], int] = {
    InvalidRequest: code_pb2.INVALID_ARGUMENT,
    NotFound: code_pb2.NOT_FOUND,
    Unmet: code_pb2.FAILED_PRECONDITION,
    TooLarge: code_pb2.RESOURCE_EXHAUSTED,
    Busy: code_pb2.RESOURCE_EXHAUSTED,
    Cancelled: code_pb2.CANCELLED,
    DeadlineExceeded: code_pb2.DEADLINE_EXCEEDED,
    Unauthenticated: code_pb2.UNAUTHENTICATED,
    PermissionDenied: code_pb2.PERMISSION_DENIED,
    StoreDamaged: code_pb2.DATA_LOSS,
    ServerUnavailable: code_pb2.UNAVAILABLE,
    InternalError: code_pb2.INTERNAL,
}

_MESSAGE_BYTES = 1200
_VALUE_BYTES = 160
_VALUES = 8


def to_status(error: FxtraceError) -> Status:
    """The error as a status."""
    code = next((CODES[base] for base in type(error).__mro__ if base in CODES), code_pb2.INTERNAL)
    message = _cut(error.message, _MESSAGE_BYTES)
    metadata = {key: _cut(value, _VALUE_BYTES) for key, value in list(error.metadata.items())[:_VALUES]}
    details = [_packed(ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))]
    if error.field:
        violation = BadRequest.FieldViolation(field=_cut(error.field, _VALUE_BYTES), reason=error.reason)
        details.append(_packed(BadRequest(field_violations=[violation])))
    if isinstance(error, Busy):
        retry = RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after * 1e9))
        details.append(_packed(retry))
    if error.request_id:
        details.append(_packed(RequestInfo(request_id=error.request_id)))
    return Status(code=code, message=message, details=details)


def with_stack(error: FxtraceError) -> Status:
    """The error as a status for a process of the same server, which may know the stack: where it has another cause."""
    status = to_status(error)
    if error.__cause__ is not None or isinstance(error, StoreDamaged | InternalError):
        status.details.append(_packed(DebugInfo(detail="".join(format_exception(error)))))
    return status


def from_status(status: Status) -> FxtraceError:
    """The error that a status stands for.

    A reason that this version does not know gives the base class of the code; a code that fxtrace does not use gives
    an InternalError.
    """
    info, bad, call, debug = ErrorInfo(), BadRequest(), RequestInfo(), DebugInfo()
    for detail in status.details:
        for message in (info, bad, call, debug):
            detail.Unpack(message)
    bases = [base for base, code in CODES.items() if code == status.code] or [InternalError]
    kind = next((kind for base in bases for kind in _family(base) if kind.reason == info.reason), bases[0])
    error = kind(status.message, field=bad.field_violations[0].field if bad.field_violations else "")
    error.metadata.update(info.metadata)
    error.request_id = call.request_id
    if debug.detail:
        error.add_note(debug.detail)
    return error


def unexpected(request_id: str) -> InternalError:
    """The error a caller gets for a defect: no path, no stack, only what finds them in the server's log."""
    return InternalError(
        f"the server failed on this request, which is a defect in fxtrace; its log has the details under request "
        f"{request_id}",
        request_id=request_id,
    )


def _family(base: type[FxtraceError]) -> Iterator[type[FxtraceError]]:
    yield base
    for child in base.__subclasses__():
        yield from _family(child)


def _packed(detail: ErrorInfo | BadRequest | RetryInfo | RequestInfo | DebugInfo) -> Any:
    packed = Any()
    packed.Pack(detail)
    return packed


def _cut(text: str, limit: int) -> str:
    data = text.encode(errors="replace")
    return data.decode() if len(data) <= limit else data[: limit - 3].decode(errors="ignore") + "…"
