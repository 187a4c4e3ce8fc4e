"""Every error fxtrace raises on purpose.

FxtraceError
├── InvalidRequest                what was asked cannot be right; asking again will not help
│   ├── ConfigurationError        a configuration field is unknown, or its value does not fit
│   ├── InputError                an input tensor is unknown, or has a wrong dtype or shape
│   ├── NameInvalid               a resource name or id is malformed
│   ├── OptionInvalid             an option has a value outside its set or range
│   ├── PageInvalid               a page size or page token is not usable
│   ├── QueryInvalid              a query's condition or pattern cannot be understood
│   ├── SliceInvalid              a slice is malformed or out of range
│   └── ModelInvalid              a model file does not keep the model contract
├── NotFound                      the request is well-formed, the thing it names does not exist; a LookupError, too
│   ├── ModelNotFound
│   ├── TraceNotFound
│   ├── NodeNotFound              ... no such node, module or role in the graph
│   ├── TensorNotFound
│   └── SnapshotNotFound
├── Unmet                         the thing exists, but its state does not allow what was asked
│   ├── CaptureFailed             the model raised, or cannot be captured on the rung asked for
│   ├── ValuesAbsent              the trace holds shapes only
│   ├── FormulasAbsent            no formulas of the trace's sizes were found yet
│   ├── WorkerCrashed             the process that did the work died of it
│   └── DependencyMissing         an optional package or program is not installed
├── TooLarge                      the reply would pass a limit; ask for less, or stream
│   └── MemoryLimit               the work needs more memory than a call may take
├── Busy                          there is too much to do; ask again after a while
├── Cancelled                     the caller gave up
├── DeadlineExceeded              the caller's time ran out
│   └── TimeLimit                 the work takes longer than a call may
├── Unauthenticated               the server wants a key, and got none that it knows
├── PermissionDenied              the key's scope does not allow the call
├── StoreDamaged                  stored data cannot be read back as it was written
├── ServerUnavailable             no server answers at the address
│   ├── ShuttingDown              the server stopped before the call was done
│   └── TlsFailed                 the two sides do not trust each other's certificates, or one does not encrypt
└── InternalError                 a defect in fxtrace

Each class carries a machine-readable `reason`; each instance carries the dynamic values of its message in `metadata`
and, where one field of the request is to blame, that field's path in `field`. The same class reaches the caller
whether the work ran in this process or behind a server.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar, Self

_EXCERPT = 40  # characters of a text that are shown on either side of a problem
_LONGEST = 100  # characters of a name that are shown


class FxtraceError(Exception):
    """Base of every error fxtrace raises on purpose.

    Args:
        message: one sentence or two: what was expected, what came, where, and what to do.
        field: path of the request field to blame, such as `configuration.d_model`; empty where there is none.
        metadata: the message's dynamic values; each is kept as text.

    Attributes:
        request_id: of the call that a server answered so, under which its log tells of it; empty without a server.
    """

    reason: ClassVar[str] = "UNSPECIFIED"

    def __init__(self, message: str, *, field: str = "", **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.request_id = ""
        self.metadata = {key: str(value) for key, value in metadata.items()}


class InvalidRequest(FxtraceError):
    """What was asked cannot be right."""

    reason = "REQUEST_INVALID"


class ConfigurationError(InvalidRequest):
    """A configuration field is unknown, or its value does not fit."""

    reason = "CONFIGURATION_INVALID"


class InputError(InvalidRequest):
    """An input tensor is unknown, or has a wrong dtype or shape."""

    reason = "INPUT_INVALID"


class NameInvalid(InvalidRequest):
    """A resource name or id is malformed."""

    reason = "NAME_INVALID"


class OptionInvalid(InvalidRequest):
    """An option has a value outside its set or range."""

    reason = "OPTION_INVALID"


class PageInvalid(InvalidRequest):
    """A page size or page token is not usable."""

    reason = "PAGE_INVALID"


class QueryInvalid(InvalidRequest):
    """A query's condition or pattern cannot be understood."""

    reason = "QUERY_INVALID"

    @classmethod
    def at(cls, field: str, text: str, position: int, problem: str) -> Self:
        """The error for a problem at a position of a field's text, with the place pointed at."""
        before, after = text[:position], text[position:]
        line, column = before.count("\n") + 1, position - before.rfind("\n")
        start = before.rpartition("\n")[2][-_EXCERPT:]
        excerpt = (start + after.partition("\n")[0][:_EXCERPT]).replace("\t", " ")
        where = f"line {line}, column {column}" if "\n" in text else f"column {column}"
        message = f"{field.rpartition('.')[2]}, {where}: {problem}\n    {excerpt}\n    {'':>{len(start)}}^"
        return cls(message, field=field, line=line, column=column)


class SliceInvalid(InvalidRequest):
    """A slice is malformed or out of range."""

    reason = "SLICE_INVALID"


class ModelInvalid(InvalidRequest):
    """A model file does not keep the model contract."""

    reason = "MODEL_INVALID"


class NotFound(FxtraceError, LookupError):
    """The request is well-formed, the thing it names does not exist; a `LookupError`, as Python's own."""

    reason = "NOT_FOUND"


class ModelNotFound(NotFound):
    """No model of that name."""

    reason = "MODEL_NOT_FOUND"


class TraceNotFound(NotFound):
    """No trace of that id in the store."""

    reason = "TRACE_NOT_FOUND"


class NodeNotFound(NotFound):
    """No such node, module or role in the graph."""

    reason = "NODE_NOT_FOUND"


class TensorNotFound(NotFound):
    """No such tensor in the trace."""

    reason = "TENSOR_NOT_FOUND"


class SnapshotNotFound(NotFound):
    """No snapshot of that number."""

    reason = "SNAPSHOT_NOT_FOUND"


class Unmet(FxtraceError):
    """The thing exists, but its state does not allow what was asked."""

    reason = "PRECONDITION_UNMET"


class CaptureFailed(Unmet):
    """The model raised, or cannot be captured on the rung asked for."""

    reason = "CAPTURE_FAILED"


class ValuesAbsent(Unmet):
    """The trace holds shapes only."""

    reason = "VALUES_ABSENT"


class FormulasAbsent(Unmet):
    """No formulas of the trace's sizes were found yet."""

    reason = "FORMULAS_ABSENT"


class DependencyMissing(Unmet):
    """An optional package or program is not installed."""

    reason = "DEPENDENCY_MISSING"


class WorkerCrashed(Unmet):
    """The process that did the work died of it: a signal, or an exit."""

    reason = "WORKER_CRASHED"


class TooLarge(FxtraceError):
    """The reply would pass a limit; ask for less, or stream."""

    reason = "TOO_LARGE"


class MemoryLimit(TooLarge):
    """The work needs more memory than a call may take."""

    reason = "MEMORY_LIMIT"


class Busy(FxtraceError):
    """There is too much to do; ask again after a while."""

    reason = "BUSY"

    @classmethod
    def until(cls, message: str, retry_after: float, **metadata: object) -> Self:
        """The error that says after how many seconds to ask again."""
        error = cls(message)
        error.metadata = {"retry_after": f"{retry_after:g}", **{key: str(value) for key, value in metadata.items()}}
        return error

    @property
    def retry_after(self) -> float:
        """Seconds after which to ask again."""
        return float(self.metadata.get("retry_after", 1))


class Cancelled(FxtraceError):
    """The caller gave up."""

    reason = "CANCELLED"


class DeadlineExceeded(FxtraceError):
    """The caller's time ran out."""

    reason = "DEADLINE_EXCEEDED"


class TimeLimit(DeadlineExceeded):
    """The work takes longer than a call may."""

    reason = "TIME_LIMIT"


class Unauthenticated(FxtraceError):
    """The server wants a key, and got none that it knows."""

    reason = "UNAUTHENTICATED"


class PermissionDenied(FxtraceError):
    """The key's scope does not allow the call."""

    reason = "PERMISSION_DENIED"


class StoreDamaged(FxtraceError):
    """Stored data cannot be read back as it was written."""

    reason = "STORE_DAMAGED"


class ServerUnavailable(FxtraceError):
    """No server answers at the address."""

    reason = "SERVER_UNAVAILABLE"


class ShuttingDown(ServerUnavailable):
    """The server stopped before the call was done; ask again when it is back."""

    reason = "SHUTTING_DOWN"


class TlsFailed(ServerUnavailable):
    """The two sides do not trust each other's certificates, or only one of them encrypts."""

    reason = "TLS_FAILED"


class InternalError(FxtraceError):
    """A defect in fxtrace."""

    reason = "INTERNAL"


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like `name`, or an empty string where none is near."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)), "")


def unknown(what: str, name: str, known: Iterable[str], *, limit: int = 12) -> str:
    """The message for a name that is not among `known`: the nearest one suggested, the known ones listed."""
    names = list(known)
    near = nearest(name, names)
    listed = ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
    shown = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…"
    hint = f"; did you mean '{near}'?" if near else "." if names else f"; there is no {what} at all."
    return f"no {what} named '{shown}'{hint}" + (f" Known: {listed}." if names else "")
