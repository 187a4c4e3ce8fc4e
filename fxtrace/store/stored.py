"""What the store tells of a trace, and the form of its id."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from fxtrace.errors import NameInvalid
from fxtrace.ir.trace import TraceInfo

TRACE_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class StoredTrace:
    """How a trace is kept: the bytes of its file, when it was last used (a minute late, at most), whether it is pinned.

    `damaged` says that a read found it so.
    """

    trace: TraceInfo
    nbytes: int
    last_used: datetime
    pinned: bool
    damaged: bool


@dataclass(frozen=True, slots=True)
class Collected:
    """What `Store.collect` removed: the ids of traces, and the bytes of them and of what was left unfinished."""

    evicted: tuple[str, ...]
    nbytes: int


def check_trace_id(trace_id: str) -> str:
    """The id, where it has the form of one.

    Raises:
        NameInvalid: it has not.
    """
    if not TRACE_ID.fullmatch(trace_id):
        raise NameInvalid(f"a trace id is 32 digits of 0-9 and a-f, got '{trace_id}'", field="trace", trace=trace_id)
    return trace_id
