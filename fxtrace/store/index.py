"""The index: a row per trace, and one per request that led to it, in SQLite or PostgreSQL."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    RowMapping,
    String,
    Table,
    bindparam,
    create_engine,
    event,
    exc,
    func,
    inspect,
    select,
    text,
)
from zlib_ng.zlib_ng import crc32

from fxtrace.errors import StoreDamaged
from fxtrace.extras import needed_for
from fxtrace.store.faults import damaged_index, damaged_row
from fxtrace.store.refusals import reported_of_index
from fxtrace.store.row import SCHEMA_VERSION, Origin, Row, State

_LOCK_WAIT_SECONDS = 30
_CONNECTION = {  # for libpq: it would wait for minutes or hours for a server that is out of reach
    "connect_timeout": "10",
    "tcp_user_timeout": "30000",
    "keepalives_idle": "30",
}
_ADVISORY_LOCK = crc32(b"fxtrace")  # PostgreSQL's lock of the writers; any number that others do not use

_metadata = MetaData()
_schema = Table("schema_version", _metadata, Column("version", Integer, primary_key=True))
_rows = Table(
    "stored_traces",
    _metadata,
    # Counts up and is never used twice, so that it orders the traces and a page token stays good while others go.
    Column("sequence", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("blob", String, nullable=False),
    Column("trace", LargeBinary, nullable=False),
    Column("nbytes", BigInteger, nullable=False),
    Column("state", String, nullable=False),
    Column("pinned", Boolean, nullable=False),
    Column("last_used", Float, nullable=False),
    Column("checksum", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)
_origins = Table(
    "origins",
    _metadata,
    Column("digest", String(64), primary_key=True),
    Column("trace", String(32), nullable=False, index=True),
    Column("model", String, nullable=False),
    Column("model_digest", String, nullable=False),
    Column("at", Float, nullable=False, index=True),
)


class Index:
    """The rows, by the id of the trace. Safe to use from several threads and processes.

    The methods that take a connection work in its transaction: `reading()` gives one to look, `locked()` one to change.

    Raises:
        Unmet: the database cannot be used.
        DependencyMissing: its driver is not installed.
    """

    def __init__(self, url: URL) -> None:
        self._engine = _connect_sqlite(url) if url.get_backend_name() == "sqlite" else _connect_postgresql(url)

    def close(self) -> None:
        """Closes the database."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only looks."""
        with reported_of_index(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def locked(self) -> Iterator[Connection]:
        """A transaction that holds the lock of the writers from its start."""
        with (
            reported_of_index(),
            self._engine.connect() as connection,
            connection.execution_options(write=True).begin(),
        ):
            yield connection

    def prepare(self, migrate: Callable[[Index], None]) -> None:
        """Makes the tables where there are none, and brings those of an older schema up to date.

        Args:
            migrate: called where the tables are of schema 1; those of schema 2 lack only one.

        Raises:
            StoreDamaged: the database is damaged, or of a schema that this version does not know.
        """
        with self.reading() as connection:
            self._check(connection)
            version = self.version(connection)
        if version is None:
            with self.locked() as connection:
                version = self.version(connection)  # another process may have been first
                if version is None:
                    _metadata.create_all(connection)
                    connection.execute(_schema.insert().values(version=SCHEMA_VERSION))
                    version = SCHEMA_VERSION
        if version in (1, 2):
            with self.locked() as connection:
                _metadata.create_all(connection)
                version = self.version(connection)  # another process may have been first
                if version == 2:
                    self.set_version(connection)
                    version = SCHEMA_VERSION
        if version == 1:
            migrate(self)
        elif version != SCHEMA_VERSION:
            raise StoreDamaged(
                f"the store has schema {version}, this fxtrace reads schema {SCHEMA_VERSION}. Update fxtrace, or "
                "choose another place",
                schema=version,
            )

    def version(self, connection: Connection) -> int | None:
        """The schema's version; None where there are no tables."""
        if not inspect(connection).has_table(_schema.name):
            return None
        return connection.scalar(select(_schema.c.version))

    def set_version(self, connection: Connection) -> None:
        """Says that the tables are of the newest schema."""
        connection.execute(_schema.update().values(version=SCHEMA_VERSION))

    def find(self, connection: Connection, trace_id: str) -> Row | None:
        """The row of a trace, deleted or not.

        Raises:
            StoreDamaged: it is not as it was written.
        """
        found = connection.execute(select(_rows).where(_rows.c.id == trace_id)).mappings().one_or_none()
        return None if found is None else _row(found)

    def newest(self, connection: Connection, limit: int | None = None, before: int | None = None) -> list[Row]:
        """Rows that are not deleted, whole or not, newest first; `before` goes on after a place in the order."""
        query = select(_rows).where(_rows.c.state != "deleted").order_by(_rows.c.sequence.desc()).limit(limit)
        if before is not None:
            query = query.where(_rows.c.sequence < before)
        return [_row(found, check=False) for found in connection.execute(query).mappings()]

    def beginning(self, connection: Connection, text: str, limit: int) -> list[str]:
        """Up to `limit` ids of traces that begin with some digits, newest first."""
        query = select(_rows.c.id).where(_rows.c.state != "deleted", _rows.c.id.startswith(text, autoescape=True))
        return list(connection.scalars(query.order_by(_rows.c.sequence.desc()).limit(limit)))

    def latest(self, connection: Connection) -> str | None:
        """The id of the trace that was last asked for, of those that are there; else of the newest."""
        there = select(_rows.c.id).where(_rows.c.state != "deleted")
        asked = there.join(_origins, _origins.c.trace == _rows.c.id).order_by(_origins.c.at.desc())
        for query in (asked, there.order_by(_rows.c.sequence.desc())):
            found: str | None = connection.scalar(query.limit(1))
            if found is not None:
                return found
        return None

    def origin(self, connection: Connection, *, digest: str = "", trace_id: str = "") -> Origin | None:
        """What led to a trace: the request of this digest, or the last one of this trace."""
        one = _origins.c.digest == digest if digest else _origins.c.trace == trace_id
        query = select(_origins).where(one).order_by(_origins.c.at.desc()).limit(1)
        found = connection.execute(query).mappings().one_or_none()
        return None if found is None else Origin(**found)

    def note_origin(self, connection: Connection, origin: Origin) -> None:
        """Keeps what led to a trace, in place of what the same request led to before."""
        connection.execute(_origins.delete().where(_origins.c.digest == origin.digest))
        connection.execute(_origins.insert().values(asdict(origin)))

    def blobs(self, connection: Connection) -> set[str]:
        """The names of the files of all rows, damaged or not."""
        return set(connection.scalars(select(_rows.c.blob)))

    def sizes(self, connection: Connection) -> dict[str, int]:
        """The bytes of each trace's file, by the trace's id, newest first."""
        query = select(_rows.c.id, _rows.c.nbytes).where(_rows.c.state != "deleted").order_by(_rows.c.sequence.desc())
        return {row.id: row.nbytes for row in connection.execute(query)}

    def deleted(self, connection: Connection) -> list[Row]:
        """Rows whose files are to go."""
        query = select(_rows).where(_rows.c.state == "deleted")
        return [_row(found, check=False) for found in connection.execute(query).mappings()]

    def pinned_bytes(self, connection: Connection, but: str) -> int:
        """The bytes of all pinned traces' files but one's."""
        pinned = (_rows.c.pinned, _rows.c.state != "deleted", _rows.c.id != but)
        return int(connection.scalar(select(func.sum(_rows.c.nbytes)).where(*pinned)) or 0)

    def surplus(self, connection: Connection, quota_bytes: int, keep: str = "") -> list[str]:
        """The ids of the least recently used traces that must go for the rest to fit; none is pinned, or `keep`."""
        there = _rows.c.state != "deleted"
        total = int(connection.scalar(select(func.sum(_rows.c.nbytes)).where(there)) or 0)
        may_go = select(_rows.c.id, _rows.c.nbytes).where(there, ~_rows.c.pinned, _rows.c.id != keep)
        going = []
        for trace_id, nbytes in connection.execute(may_go.order_by(_rows.c.last_used, _rows.c.sequence)):
            if total <= quota_bytes:
                break
            going.append(trace_id)
            total -= nbytes
        return going

    def insert(self, connection: Connection, row: Row) -> None:
        """Adds a row, in place of one of the same trace; at the end of the order where it has no place."""
        values = {**asdict(row), "checksum": row.checksum()}
        del values["whole"]
        if row.sequence is None:
            del values["sequence"]
        connection.execute(_rows.delete().where(_rows.c.id == row.id))
        connection.execute(_rows.insert().values(values))

    def update(
        self, connection: Connection, row: Row, *, state: State | None = None, pinned: bool | None = None
    ) -> None:
        """Changes a row's state, or whether it is pinned."""
        row = replace(row, state=state or row.state, pinned=row.pinned if pinned is None else pinned)
        change = {"state": row.state, "pinned": row.pinned, "checksum": row.checksum()}
        connection.execute(_rows.update().where(_rows.c.id == row.id).values(change))

    def mark_deleted(
        self, connection: Connection, trace_id: str, condition: Callable[[Row], bool] = lambda _: True
    ) -> Row | None:
        """Marks a row, damaged or not, as deleted, and gives it.

        None where there is none, it is marked already, or it does not meet the condition.
        """
        found = connection.execute(select(_rows).where(_rows.c.id == trace_id)).mappings().one_or_none()
        if found is None or found["state"] == "deleted":
            return None
        row = _row(found, check=False)
        if not condition(row):
            return None
        self.update(connection, replace(row, state="deleted"))
        connection.execute(_origins.delete().where(_origins.c.trace == trace_id))
        return row

    def remove(self, connection: Connection, blob: str) -> None:
        """Removes the row of a file, if it is marked as deleted."""
        connection.execute(_rows.delete().where(_rows.c.blob == blob, _rows.c.state == "deleted"))

    def touch(self, connection: Connection, used: Mapping[str, float]) -> None:
        """Notes when traces were last used."""
        if used:
            later = _rows.update().where(_rows.c.id == bindparam("key"), _rows.c.last_used < bindparam("at"))
            values = [{"key": trace_id, "at": at} for trace_id, at in sorted(used.items())]
            connection.execute(later.values(last_used=bindparam("at")), values)

    def _check(self, connection: Connection) -> None:
        """SQLite looks only at what it needs; this looks at everything once (PostgreSQL keeps watch by itself)."""
        if connection.dialect.name == "sqlite":
            problem = connection.scalar(text("PRAGMA integrity_check(1)"))
            if problem != "ok":
                raise damaged_index(problem)


def _row(found: RowMapping, *, check: bool = True) -> Row:
    values = dict(found)
    checksum = values.pop("checksum")
    row = Row(**values)
    whole = row.checksum() == checksum and isinstance(row.last_used, float)
    if check and not whole:
        raise damaged_row(row.id)
    return replace(row, whole=whole)


def _connect_postgresql(url: URL) -> Engine:
    with needed_for("an index in PostgreSQL", "postgres"):
        engine = create_engine(
            url.set(query={**_CONNECTION, **url.query}),
            pool_pre_ping=True,
            isolation_level="READ COMMITTED",  # whoever waited for the writers' lock sees what they wrote
        )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get("write", False):
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_WAIT_SECONDS}s'")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")

    return engine


def _connect_sqlite(url: URL) -> Engine:
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin where `begin` says, not where sqlite3 guesses
        for pragma in (f"busy_timeout = {_LOCK_WAIT_SECONDS * 1000}", "journal_mode = WAL", "synchronous = FULL"):
            _patiently(partial(connection.execute, f"PRAGMA {pragma}"))

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes the lock at once: one that reads first and asks later is refused if another came between.
        write = connection.get_execution_options().get("write", False)
        _patiently(partial(connection.exec_driver_sql, "BEGIN IMMEDIATE" if write else "BEGIN"))
        if not write:  # a reader's lock comes with its first look
            _patiently(partial(connection.exec_driver_sql, "SELECT 1 FROM sqlite_master LIMIT 1"))

    return engine


def _patiently(execute: Callable[[], object]) -> None:
    """Waits for a lock where SQLite does not by itself: while another connection changes or recovers the journal.

    https://www.sqlite.org/wal.html, "Sometimes Queries Return SQLITE_BUSY In WAL Mode".
    """
    give_up = time.monotonic() + _LOCK_WAIT_SECONDS
    while True:
        try:
            execute()
        except (sqlite3.OperationalError, exc.OperationalError) as error:
            if "locked" not in str(error) or time.monotonic() > give_up:
                raise
            time.sleep(0.01)
        else:
            return
