"""Traces on disk: an SQL index and one safetensors file per trace. No torch here.

    folder/index.sqlite3              a row per trace: its provenance, graph and snapshots as serialised v1 messages
    folder/tensors/{id}.safetensors   its tensors' numbers

The tensors are written first, under a temporary name, and waited for until they are on the disk; then one transaction
renames the file into place and adds the row. Killed at any moment, this leaves the trace whole or absent, and at worst
a file that no row names. Such files are removed when a store is opened. Files come and go only while the index is
locked for writing, so a file that another process is about to name is never taken for one of them; a temporary file
counts as abandoned when nothing was written to it for an hour.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import platformdirs
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    exc,
    inspect,
    select,
)

from fxtrace import wire
from fxtrace.dtypes import numpy_dtype
from fxtrace.errors import FxtraceError, NameInvalid, StoreDamaged, TraceNotFound, Unmet
from fxtrace.graph import Graph, Snapshot, TensorSpec
from fxtrace.tensorfile import TensorFile, write_tensors
from fxtrace.trace import Trace
from fxtrace.v1 import graph_pb2, trace_service_pb2

SCHEMA_VERSION = 1
FOLDER_VARIABLE = "FXTRACE_STORE"
TRACE_ID = re.compile(r"[0-9a-f]{32}")

_ABANDONED_AFTER_SECONDS = 3600
_LOCK_WAIT_SECONDS = 30

_metadata = MetaData()
_schema = Table("schema_version", _metadata, Column("version", Integer, primary_key=True))
_traces = Table(
    "traces",
    _metadata,
    # Counts up and is never used twice, so that it orders the traces and a page token stays good while others go.
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("trace", LargeBinary, nullable=False),
    Column("snapshots", LargeBinary, nullable=False),
    Column("graph", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)

_T = TypeVar("_T")


def default_folder() -> Path:
    """The folder named by the environment variable FXTRACE_STORE, else the user's data folder."""
    return Path(os.environ.get(FOLDER_VARIABLE) or platformdirs.user_data_path("fxtrace"))


def check_trace_id(trace_id: str) -> str:
    """The id, where it has the form of one.

    Raises:
        NameInvalid: it has not.
    """
    if not TRACE_ID.fullmatch(trace_id):
        raise NameInvalid(f"a trace id is 32 digits of 0-9 and a-f, got '{trace_id}'", field="trace", trace=trace_id)
    return trace_id


class Store:
    """Traces by id. Safe to use from several threads, and from several processes on one folder.

    Args:
        folder: where the traces are; made if it is not there.
        scratch: a folder on the same disk for what is half-written, which whoever may kill this process then removes;
            None for one with the tensors.

    Raises:
        Unmet: the folder cannot be used.
        StoreDamaged: it holds an index that this version of fxtrace cannot read.
    """

    def __init__(self, folder: Path, *, scratch: Path | None = None) -> None:
        self.folder = folder
        self._files = folder / "tensors"
        self._scratch = scratch
        with self._usable():
            self._files.mkdir(parents=True, exist_ok=True)
        self._engine = _connect(folder / "index.sqlite3")
        try:
            self._prepare()
            self._sweep()
        except BaseException:
            self.close()
            raise

    def new_scratch(self) -> Path:
        """A folder that a store of another process may be given as its `scratch`."""
        return self._files / f"{uuid.uuid4().hex}.tmp"

    def close(self) -> None:
        """Closes the index. Tensors that were read stay readable."""
        self._engine.dispose()

    def put(
        self, trace: Trace, graph: Graph, snapshots: tuple[Snapshot, ...], tensors: Mapping[str, NDArray[Any]]
    ) -> Trace:
        """Stores a trace, and returns it once it is on the disk.

        Args:
            trace: a trace of that id that is already there stays, and is returned.
            graph: its labelled graph.
            snapshots: its snapshots.
            tensors: the numbers of every tensor in the graph, by name; none where the trace is without values.

        Raises:
            Unmet: the disk is full, or the folder cannot be written to.
        """
        row = {
            "id": check_trace_id(trace.id),
            "trace": wire.TRACE.encode(trace).SerializeToString(),
            "graph": wire.encode_graph(graph).SerializeToString(),
            "snapshots": trace_service_pb2.ListSnapshotsResponse(
                snapshots=map(wire.SNAPSHOT.encode, snapshots)
            ).SerializeToString(),
        }
        temporary = (self._scratch or self._files) / f"{trace.id}.{uuid.uuid4().hex}.tmp"
        with self._usable():
            if self._scratch is not None:
                self._scratch.mkdir(exist_ok=True)
            try:
                if trace.values:
                    write_tensors(temporary, tensors, {"trace": trace.id})
                with self._locked() as connection:
                    stored = connection.scalar(select(_traces.c.trace).where(_traces.c.id == trace.id))
                    if stored is not None:
                        return _parse(trace.id, _trace_from_bytes, stored)
                    if trace.values:
                        temporary.replace(self._file(trace.id))
                        _sync_folder(self._files)
                    connection.execute(_traces.insert().values(row))
            finally:
                temporary.unlink(missing_ok=True)
        return trace

    def delete(self, trace_id: str) -> None:
        """Removes a trace and its tensors.

        Raises:
            NameInvalid, TraceNotFound
        """
        check_trace_id(trace_id)
        with self._usable():
            with self._locked() as connection:
                if not connection.execute(_traces.delete().where(_traces.c.id == trace_id)).rowcount:
                    raise _not_found(trace_id)
            self._remove_unnamed(self._file(trace_id))

    def require(self, trace_id: str) -> None:
        """Returns if there is such a trace.

        Raises:
            NameInvalid, TraceNotFound
        """
        self._column(trace_id, _traces.c.id, str)

    def trace(self, trace_id: str) -> Trace:
        """Where a trace came from.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
        """
        return self._column(trace_id, _traces.c.trace, _trace_from_bytes)

    def graph(self, trace_id: str) -> Graph:
        """A trace's labelled graph.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
        """
        return self._column(trace_id, _traces.c.graph, _graph_from_bytes)

    def snapshots(self, trace_id: str) -> tuple[Snapshot, ...]:
        """A trace's snapshots.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
        """
        return self._column(trace_id, _traces.c.snapshots, _snapshots_from_bytes)

    def traces(self, limit: int, before: int | None = None) -> list[tuple[int, Trace]]:
        """Up to `limit` traces, newest first, each with its place in the order; `before` goes on after such a place."""
        query = select(_traces.c.sequence, _traces.c.id, _traces.c.trace).order_by(_traces.c.sequence.desc())
        if before is not None:
            query = query.where(_traces.c.sequence < before)
        with self._connection() as connection:
            rows = connection.execute(query.limit(limit)).all()
        return [(row.sequence, _parse(row.id, _trace_from_bytes, row.trace)) for row in rows]

    def read(self, trace_id: str, specs: Mapping[str, TensorSpec]) -> dict[str, NDArray[Any]]:
        """The numbers of these tensors of a trace with values, as read-only arrays over the mapped file.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
        """
        path = self._file(check_trace_id(trace_id))
        if not path.exists():
            self.trace(trace_id)  # where it never was, or another process deleted it, this says so
            raise _damaged(trace_id, "its tensors are missing")
        try:
            with self._usable():
                file = TensorFile(path)
            if file.metadata.get("trace") != trace_id:
                raise ValueError(f"expected the tensors of this trace, got those of '{file.metadata.get('trace')}'")
            return {name: file.array(name, numpy_dtype(spec.dtype), spec.shape) for name, spec in specs.items()}
        except KeyError as error:
            raise _damaged(trace_id, f"its tensor {error} is missing") from error
        except ValueError as error:
            raise _damaged(trace_id, f"its tensors: {error}") from error

    def find(self, trace_id: str) -> Trace | None:
        """The trace, where it can be read back whole. What is left of a damaged one is removed, to be made again."""
        try:
            trace, graph = self.trace(trace_id), self.graph(trace_id)
            self.snapshots(trace_id)
            if trace.values:
                self.read(trace_id, dict(graph.tensors()))
        except TraceNotFound:
            return None
        except StoreDamaged:
            with suppress(TraceNotFound):
                self.delete(trace_id)
            return None
        return trace

    def _file(self, trace_id: str) -> Path:
        return self._files / f"{trace_id}.safetensors"

    def _column(self, trace_id: str, column: Column[Any], parse: Callable[[Any], _T]) -> _T:
        check_trace_id(trace_id)
        with self._connection() as connection:
            data = connection.scalar(select(column).where(_traces.c.id == trace_id))
        if data is None:
            raise _not_found(trace_id)
        return _parse(trace_id, parse, data)

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        with self._usable(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _locked(self) -> Iterator[Connection]:
        """A transaction that holds the index's write lock from its start; the files change under it too."""
        with self._engine.connect() as connection, connection.execution_options(write=True).begin():
            yield connection

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Reports what the disk or the database refuses."""
        try:
            yield
        except exc.OperationalError as error:
            raise self._unusable(error.orig) from error
        except exc.DatabaseError as error:
            raise StoreDamaged(
                f"the index of the store at {self.folder} is damaged: {error.orig}. Choose another folder, or move "
                "index.sqlite3 away: `fxtrace trace` makes the traces again",
                folder=self.folder,
            ) from error
        except OSError as error:
            raise self._unusable(error.strerror or error) from error

    def _unusable(self, problem: object) -> Unmet:
        return Unmet(
            f"the store at {self.folder} cannot be used: {problem}. Choose another folder with --store or "
            f"{FOLDER_VARIABLE}",
            folder=self.folder,
        )

    def _prepare(self) -> None:
        with self._connection() as connection:
            version = _version(connection)
        if version is None:
            with self._usable(), self._locked() as connection:
                version = _version(connection)  # another process may have been first
                if version is None:
                    _metadata.create_all(connection)
                    connection.execute(_schema.insert().values(version=SCHEMA_VERSION))
                    version = SCHEMA_VERSION
        if version != SCHEMA_VERSION:
            raise StoreDamaged(
                f"the store at {self.folder} has schema {version}, this fxtrace reads schema {SCHEMA_VERSION}. Update "
                f"fxtrace, or choose another folder with --store or {FOLDER_VARIABLE}",
                folder=self.folder,
                schema=version,
            )

    def _sweep(self) -> None:
        with self._connection() as connection:
            named = set(connection.scalars(select(_traces.c.id)))
        with self._usable():
            for file in list(self._files.iterdir()):
                if file.suffix == ".tmp" or file.name.startswith(".tmp"):  # ours, and those of the safetensors library
                    with suppress(FileNotFoundError):  # its writer may just have finished
                        if time.time() - file.stat().st_mtime > _ABANDONED_AFTER_SECONDS:
                            shutil.rmtree(file) if file.is_dir() else file.unlink()
                elif file.suffix == ".safetensors" and TRACE_ID.fullmatch(file.stem) and file.stem not in named:
                    self._remove_unnamed(file)

    def _remove_unnamed(self, file: Path) -> None:
        """Removes a file of tensors if, with the index locked, no row names it."""
        with self._locked() as connection:
            if connection.scalar(select(_traces.c.id).where(_traces.c.id == file.stem)) is None:
                file.unlink(missing_ok=True)


def _connect(path: Path) -> Engine:
    engine = create_engine(URL.create("sqlite", database=str(path)))

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin where `begin` says, not where sqlite3 guesses
        for pragma in (f"busy_timeout = {_LOCK_WAIT_SECONDS * 1000}", "journal_mode = WAL", "foreign_keys = ON"):
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


def _version(connection: Connection) -> int | None:
    if not inspect(connection).has_table(_schema.name):
        return None
    return connection.scalar(select(_schema.c.version))


def _parse(trace_id: str, parse: Callable[[Any], _T], data: object) -> _T:
    try:
        return parse(data)
    except (DecodeError, FxtraceError, ValueError, TypeError, LookupError) as error:
        raise _damaged(trace_id, f"its record cannot be read: {error}") from error


def _trace_from_bytes(data: bytes) -> Trace:
    return wire.TRACE.decode(trace_service_pb2.Trace.FromString(data))


def _graph_from_bytes(data: bytes) -> Graph:
    return wire.decode_graph([graph_pb2.Graph.FromString(data)])


def _snapshots_from_bytes(data: bytes) -> tuple[Snapshot, ...]:
    return tuple(map(wire.SNAPSHOT.decode, trace_service_pb2.ListSnapshotsResponse.FromString(data).snapshots))


def _sync_folder(folder: Path) -> None:
    """Waits until the folder's entries are on the disk; a renamed file is not there before."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_found(trace_id: str) -> TraceNotFound:
    return TraceNotFound(f"no trace with the id {trace_id}", field="trace", trace=trace_id)


def _damaged(trace_id: str, problem: str) -> StoreDamaged:
    return StoreDamaged(
        f"trace {trace_id} is damaged: {problem}. Tracing it again with `fxtrace trace` makes it again", trace=trace_id
    )
