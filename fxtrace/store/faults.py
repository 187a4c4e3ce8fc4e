"""What a disk, a database or an object store refuses, as the errors that callers get.

The messages name no path: they reach whoever called a server. Where the store is, is said when it is opened.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import exc

from fxtrace.errors import StoreDamaged, Unmet
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
        raise (_unusable(error.orig) if _is_outside(error) else damaged_index(error.orig)) from error
    except OSError as error:
        raise _unusable(error.strerror or error) from error


def damaged_index(problem: object) -> StoreDamaged:
    """The error for an index that cannot be read."""
    return StoreDamaged(
        f"the store's index is damaged: {problem}. Stop what uses the store and move the index (index.sqlite3) away: "
        "it is made again from the traces' files when the store is opened"
    )


def damaged_trace(trace_id: str, problem: object) -> StoreDamaged:
    """The error for a trace that cannot be read back."""
    return StoreDamaged(
        f"trace {trace_id} is damaged: {problem}. Tracing it again with `fxtrace trace` makes it again", trace=trace_id
    )


def _is_outside(error: exc.DBAPIError) -> bool:
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _OUTSIDE  # the lowest byte of an extended code is the primary one
    return isinstance(error, exc.OperationalError | exc.InterfaceError)


def _unusable(problem: object) -> Unmet:
    text = str(problem).strip().partition("\n")[0]
    return Unmet(
        f"the store cannot be used: {text}. Make room with `fxtrace store gc --quota SIZE`, or choose another place "
        f"with --store or {PLACE_VARIABLE}"
    )
