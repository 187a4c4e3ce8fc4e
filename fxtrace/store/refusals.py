"""What the index's database refuses, as the errors that callers get."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import exc

from fxtrace.errors import FxtraceError, StoreDamaged, Unmet
from fxtrace.store.faults import damaged_index, first_line, reported, unusable

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


@contextmanager
def reported_of_index() -> Iterator[None]:
    """Reports what the database refuses; a value of another kind than was written, or no text at all, is damage.

    Raises:
        Unmet: it cannot be used now: full, read-only, locked, not reachable.
        StoreDamaged: what the index holds is not what was written.
    """
    try:
        with reported():
            yield
    except FxtraceError:  # of what is asked, not of the database; NotFound is a LookupError
        raise
    except exc.DBAPIError as error:
        raise _of_database(error) from error
    except exc.TimeoutError as error:
        raise unusable("too much waits for the index's database", full=False) from error
    except (ValueError, TypeError, ArithmeticError, LookupError) as error:
        raise damaged_index(error) from error


def _of_database(error: exc.DBAPIError) -> Unmet | StoreDamaged:
    if isinstance(error.orig, sqlite3.Error):
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF  # the primary code of an extended one
        if code in _OUTSIDE:
            return unusable(error.orig, full=code == sqlite3.SQLITE_FULL)
        return damaged_index(error.orig)
    state = getattr(error.orig, "sqlstate", None) or ""  # none where there is no connection
    if state[:2] in _INSIDE and state != _NO_PRIVILEGE:
        return damaged_index(first_line(error.orig), "the tables stored_traces, origins and schema_version")
    return unusable(error.orig, full=state == _DISK_FULL)
