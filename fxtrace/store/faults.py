"""What a disk or an object store refuses, and what is damaged, as the errors that callers get.

The messages name no path: they reach whoever called a server. Where the store is, is said when it is opened. What a
database refuses is in `fxtrace.store.refusals`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from fxtrace.errors import StoreDamaged, TraceNotFound, Unmet
from fxtrace.store.place import PLACE_VARIABLE


class DiskFull(Unmet):
    """There is no room left on the disk."""


@contextmanager
def reported() -> Iterator[None]:
    """Reports what the disk or the object store refuses.

    Raises:
        Unmet: it cannot be used now: full, read-only, not reachable.
    """
    try:
        yield
    except OSError as error:
        raise unusable(error.strerror or error, full=error.errno in (errno.ENOSPC, errno.EDQUOT)) from error


def damaged_index(problem: object, kept: str = "index.sqlite3") -> StoreDamaged:
    """The error for an index that cannot be read."""
    return StoreDamaged(
        f"the store's index is damaged: {problem}. Stop what uses the store and move the index ({kept}) away: "
        "it is made again from the traces' files when the store is opened"
    )


def damaged_trace(trace_id: str, problem: object) -> StoreDamaged:
    """The error for a trace that cannot be read back."""
    return StoreDamaged(
        f"trace {trace_id} is damaged: {problem}. Tracing it again with `fxtrace trace` makes it again", trace=trace_id
    )


def damaged_row(trace_id: str) -> StoreDamaged:
    """The error for a trace whose row in the index cannot be trusted."""
    return damaged_trace(trace_id, "its row in the index is not as it was written")


def not_found(trace_id: str) -> TraceNotFound:
    """The error for a trace that is not there."""
    return TraceNotFound(f"no trace with the id {trace_id}", field="trace", trace=trace_id)


def unusable(problem: object, *, full: bool) -> Unmet:
    """The error for a disk, a database or an object store that cannot be used now."""
    text = first_line(problem).rpartition(" failed: ")[2]  # before it is the database's address
    return (DiskFull if full else Unmet)(
        f"the store cannot be used: {text}. Make room with `fxtrace store gc --quota SIZE`, or choose another place "
        f"with --store or {PLACE_VARIABLE}"
    )


def first_line(problem: object) -> str:
    """A problem's first line."""
    return str(problem).strip().partition("\n")[0]
