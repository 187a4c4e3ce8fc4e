"""What the store tells of a trace, and the form of its id."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from fxtrace.errors import NameInvalid
from fxtrace.ir.text import Readable, bytes_text, count_text, facts, listed
from fxtrace.ir.trace import TraceInfo

TRACE_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, repr=False)
class StoredTrace(Readable):
    """How a trace is kept: the bytes of its file, when it was last used (a minute late, at most), whether it is pinned.

    `damaged` says that a read found it so.
    """

    trace: TraceInfo
    nbytes: int
    last_used: datetime
    pinned: bool
    damaged: bool

    def _lines(self) -> Iterator[str]:
        state = "damaged" if self.damaged else "pinned" if self.pinned else ""
        yield ", ".join(filter(None, (f"{self.trace.id} of {self.trace.model}", bytes_text(self.nbytes), state)))
        yield from facts(("last used", f"{self.last_used:%Y-%m-%d %H:%M}"))


@dataclass(frozen=True, slots=True, repr=False)
class Collected(Readable):
    """What `Store.collect` removed: the ids of traces, and the bytes of them and of what was left unfinished."""

    evicted: tuple[str, ...]
    nbytes: int

    def _lines(self) -> Iterator[str]:
        yield f"{count_text(len(self.evicted), 'trace')} removed, {bytes_text(self.nbytes)} in all"
        yield from facts(("evicted", listed(self.evicted)))


def check_trace_id(trace_id: str) -> str:
    """The id, where it has the form of one.

    Raises:
        NameInvalid: it has not.
    """
    if not TRACE_ID.fullmatch(trace_id):
        raise NameInvalid(f"a trace id is 32 digits of 0-9 and a-f, got '{trace_id}'", field="trace", trace=trace_id)
    return trace_id
