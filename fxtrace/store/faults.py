"""What a disk, a database or an object store refuses, as the errors that callers get.

The messages name no path: they reach whoever called a server. Where the store is, is said when it is opened.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import exc

from fxtrace.errors import StoreDamaged, TraceNotFound, Unmet
from fxtrace.store.place import PLACE_VARIABLE

# What SQLite reports about its surroundings, not about what is in the file: https://www.sqlite.org/rescode.html
_OUTSIDE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}

# What PostgreSQL reports about what is in the tables, by the first two signs of its code; but not of who may read them:
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_INSIDE = {"22", "23", "42", "XX"}
_NO_PRIVILEGE = "42501"
_DISK_FULL = "53100"


class DiskFull(Unmet):
    """There is no room left on the disk."""


@contextmanager
def reported() -> Iterator[None]:
    """Reports what the disk, the database or the object store refuses.

    Raises:
        Unmet: it cannot be used now: full, read-only, locked, not reachable.
        StoreDamaged: what the index holds is not what was written.
    """
    try:
        yield
    except exc.DBAPIError as error:
        raise _of_database(error) from error
    except exc.TimeoutError as error:
        raise _unusable("too much waits for the index's database", full=False) from error
    except OSError as error:
        raise _unusable(error.strerror or error, full=error.errno in (errno.ENOSPC, errno.EDQUOT)) from error


@contextmanager
def reported_of_index() -> Iterator[None]:
    """The same around what asks the index: a value of another kind than was written, or no text at all, is damage."""
    try:
        with reported():
            yield
    except (ValueError, TypeError, ArithmeticError, LookupError) as error:
        raise damaged_index(error) from error


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


def _of_database(error: exc.DBAPIError) -> Unmet | StoreDamaged:
    if isinstance(error.orig, sqlite3.Error):
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF  # the primary code of an extended one
        if code in _OUTSIDE:
            return _unusable(error.orig, full=code == sqlite3.SQLITE_FULL)
        return damaged_index(error.orig)
    state = getattr(error.orig, "sqlstate", None) or ""  # none where there is no connection
    if state[:2] in _INSIDE and state != _NO_PRIVILEGE:
        return damaged_index(_first_line(error.orig), "the tables stored_traces and schema_version")
    return _unusable(error.orig, full=state == _DISK_FULL)


def _unusable(problem: object, *, full: bool) -> Unmet:
    text = _first_line(problem).rpartition(" failed: ")[2]  # before it is the database's address
    return (DiskFull if full else Unmet)(
        f"the store cannot be used: {text}. Make room with `fxtrace store gc --quota SIZE`, or choose another place "
        f"with --store or {PLACE_VARIABLE}"
    )


def _first_line(problem: object) -> str:
    return str(problem).strip().partition("\n")[0]
