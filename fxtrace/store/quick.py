"""A store that is opened only as far as it is needed: to read a trace takes one row of the index, and its file."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fxtrace.store.blobs import NAME, SUFFIX, Folder
from fxtrace.store.faults import reported
from fxtrace.store.files import parse, trace_from_bytes
from fxtrace.store.place import INDEX_FILE, TENSORS_FOLDER, folder_of
from fxtrace.store.row import SCHEMA_VERSION, Origin, Row
from fxtrace.store.store import Store
from fxtrace.store.stored import check_trace_id

if TYPE_CHECKING:
    from fxtrace.ir.trace import TraceInfo
    from fxtrace.store.index import Index

_LOCK_WAIT_SECONDS = 1.0
_NOTE_USE_AFTER_SECONDS = 60


class QuickStore(Store):
    """A `Store` that opens its place when that is needed, for a process that does one thing.

    Where the place is a folder, rows are looked up by `sqlite3` itself. That leaves out what opening a store does for
    whoever comes next (bringing its schema up to date, sweeping up after killed processes), and SQLAlchemy, which takes
    longer to import than the look-up. Whatever is not as expected (no index, another schema, no such row, a damaged
    one, a lock) opens the store as a whole, which then answers, or says what is wrong.

    Arguments and errors are those of `Store`; the errors of opening come with the first use.
    """

    def _open(self) -> None:
        folder = folder_of(self.place)
        self._lookup: Lookup | None = None
        if folder is not None and (folder / TENSORS_FOLDER).is_dir():
            self._tensors = folder / TENSORS_FOLDER
            self._blobs = Folder(self._tensors)
            self._lookup = Lookup(folder / INDEX_FILE)

    @property
    def _index(self) -> Index:
        if self._opened is None:
            self._close_lookup()
            super()._open()
            assert self._opened is not None
        return self._opened

    def close(self) -> None:
        """Closes what was opened."""
        if self._opened is not None:
            super().close()
        elif self._lookup is not None:
            with suppress(_Unusual), self._used_lock:
                self._lookup.touch(self._used)
            self._close_lookup()

    def note_origin(self, origin: Origin) -> None:
        """Keeps what led to a trace; the trace is now the latest."""
        if self._lookup is not None:
            with suppress(_Unusual):
                self._lookup.note_origin(origin)
                return
        super().note_origin(origin)

    def latest(self) -> str | None:
        """The id of the trace that was last asked for; None where there are no traces."""
        if self._lookup is not None:
            with suppress(_Unusual):
                if found := self._lookup.latest():
                    return found
        return super().latest()

    def beginning(self, text: str, limit: int) -> list[str]:
        """Up to `limit` ids of traces that begin with some digits."""
        if self._lookup is not None:
            with suppress(_Unusual):
                if found := self._lookup.beginning(text, limit):
                    return found
        return super().beginning(text, limit)

    def origin(self, *, digest: str = "", trace_id: str = "") -> Origin | None:
        """What led to a trace: the request of this digest, or the last one of this trace; None where none is kept."""
        if self._lookup is not None:
            with suppress(_Unusual):
                return self._lookup.origin(digest=digest, trace_id=trace_id)
        return super().origin(digest=digest, trace_id=trace_id)

    def traces(self, limit: int, before: int | None = None) -> list[tuple[int, TraceInfo]]:
        """Up to `limit` traces, newest first, each with its place in the order; `before` goes on after such a place."""
        if self._lookup is not None:
            with suppress(_Unusual):
                rows = self._lookup.newest(limit, before)
                if self._lookup.count() != self._count_files():
                    raise _Unusual  # a file may have no row yet
                return [(row.sequence or 0, parse(row.id, trace_from_bytes, row.trace)) for row in rows]
        return super().traces(limit, before)

    def _count_files(self) -> int:
        with reported(), os.scandir(self._tensors) as entries:
            return sum(bool(NAME.fullmatch(entry.name.removesuffix(SUFFIX))) for entry in entries)

    def find(self, trace_id: str) -> TraceInfo | None:
        """The trace, where it is there as a whole. What is left of a damaged one is removed, to be made again."""
        if self._lookup is not None:
            with suppress(_Unusual):
                if self._lookup.find(trace_id) is None:
                    return None
        return super().find(trace_id)

    def _row(self, trace_id: str) -> Row:
        check_trace_id(trace_id)
        if self._lookup is not None:
            with suppress(_Unusual):
                row = self._lookup.find(trace_id)
                if row is None:
                    raise _Unusual  # its file may be there
                if time.time() - row.last_used > _NOTE_USE_AFTER_SECONDS:
                    with self._used_lock:
                        self._used[trace_id] = time.time()
                return row
        return super()._row(trace_id)

    def _close_lookup(self) -> None:
        if self._lookup is not None:
            self._lookup.close()
            self._lookup = None


class _Unusual(Exception):
    """The index is not as expected: the store is to be opened as a whole."""


class Lookup:
    """The index of a store in a folder, asked without SQLAlchemy. For one thread at a time.

    Every method raises `_Unusual` where the index is not as expected.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._connection: sqlite3.Connection | None = None

    def find(self, trace_id: str) -> Row | None:
        """The row of a trace, as it was written; None where there is none."""
        with self._asked() as connection:
            found = connection.execute("SELECT * FROM stored_traces WHERE id = ?", (trace_id,)).fetchone()
            return None if found is None else _row(found)

    def newest(self, limit: int, before: int | None) -> list[Row]:
        """Up to `limit` rows, newest first; `before` goes on after a place in the order."""
        query = "SELECT * FROM stored_traces WHERE ? IS NULL OR sequence < ? ORDER BY sequence DESC LIMIT ?"
        with self._asked() as connection:
            return [_row(found) for found in connection.execute(query, (before, before, limit))]

    def count(self) -> int:
        """How many rows there are."""
        with self._asked() as connection:
            return int(connection.execute("SELECT count(*) FROM stored_traces").fetchone()[0])

    def latest(self) -> str | None:
        """The id of the trace that was last asked for, of those that are there; None where none was."""
        found = self._ids(
            "SELECT t.id FROM origins o JOIN stored_traces t ON t.id = o.trace "
            "WHERE t.state != 'deleted' ORDER BY o.at DESC LIMIT 1"
        )
        return found[0] if found else None

    def beginning(self, text: str, limit: int) -> list[str]:
        """Up to `limit` ids of traces that begin with some digits, newest first."""
        return self._ids(
            "SELECT id FROM stored_traces WHERE state != 'deleted' AND id LIKE ? || '%' ORDER BY sequence DESC LIMIT ?",
            text,
            limit,
        )

    def origin(self, *, digest: str = "", trace_id: str = "") -> Origin | None:
        """What led to a trace: the request of this digest, or the last one of this trace."""
        one = "digest = ?" if digest else "trace = ?"
        with self._asked() as connection:
            found = connection.execute(
                f"SELECT * FROM origins WHERE {one} ORDER BY at DESC LIMIT 1", (digest or trace_id,)
            ).fetchone()
            return None if found is None else Origin(**dict(found))

    def note_origin(self, origin: Origin) -> None:
        """Keeps what led to a trace, in place of what the same request led to before."""
        values = (origin.digest, origin.trace, origin.model, origin.model_digest, origin.at)
        with self._asked() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO origins (digest, trace, model, model_digest, at) VALUES (?, ?, ?, ?, ?)", values
            )

    def touch(self, used: dict[str, float]) -> None:
        """Notes when traces were last used."""
        if used:
            with self._asked() as connection:
                connection.executemany(
                    "UPDATE stored_traces SET last_used = ? WHERE id = ? AND last_used < ?",
                    [(at, trace_id, at) for trace_id, at in sorted(used.items())],
                )

    def close(self) -> None:
        """Closes the index."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ids(self, query: str, *values: object) -> list[str]:
        with self._asked() as connection:
            return [str(row["id"]) for row in connection.execute(query, values)]

    @contextmanager
    def _asked(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._connection is None:
                self._connection = self._connect()
            yield self._connection
        except (sqlite3.Error, ValueError, TypeError, LookupError) as error:
            raise _Unusual from error

    def _connect(self) -> sqlite3.Connection:
        # Not mode=ro: whoever closes last writes the journal back, and reading a journal needs to write beside it.
        connection = sqlite3.connect(
            f"{self._file.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=_LOCK_WAIT_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.row_factory = sqlite3.Row
            version = connection.execute("SELECT version FROM schema_version").fetchone()
            if version is None or version["version"] != SCHEMA_VERSION:
                raise _Unusual
        except BaseException:
            connection.close()
            raise
        return connection


def _row(found: sqlite3.Row) -> Row:
    values = dict(found)
    checksum = values.pop("checksum")
    row = Row(**{**values, "pinned": bool(values["pinned"])})
    if row.state != "live" or row.checksum() != checksum or not isinstance(row.last_used, float):
        raise _Unusual
    return row
