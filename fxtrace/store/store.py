"""The store: what can be done with traces by id."""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from sqlalchemy import Connection

from fxtrace import wire
from fxtrace.dtypes import numpy_dtype
from fxtrace.errors import FxtraceError, NameInvalid, StoreDamaged, TooLarge, TraceNotFound, Unmet
from fxtrace.graph import Graph, Snapshot, TensorSpec
from fxtrace.store.blobs import NAME, Source, Written, new_name, open_blobs
from fxtrace.store.faults import damaged_trace, reported
from fxtrace.store.index import Index, Row
from fxtrace.store.migrate import migrate
from fxtrace.store.place import parse_place
from fxtrace.store.tracefile import GRAPH, SNAPSHOTS, TRACE, Encoded, Head, TraceFile
from fxtrace.trace import Progress, Trace
from fxtrace.v1 import graph_pb2, trace_service_pb2

TRACE_ID = re.compile(r"[0-9a-f]{32}")

_SETTLED_AFTER_SECONDS = 3600  # a file of this age is no longer about to get its row
_HEADS_KEPT = 64
_NOTE_USE_EVERY_SECONDS = 60

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class StoredTrace:
    """How a trace is kept: the bytes of its file, when it was last used (a minute late, at most), whether it is pinned.

    `damaged` says that a read found it so.
    """

    trace: Trace
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


class Store:
    """Traces by id. Safe to use from several threads, and from several processes on one place.

    Every byte that it gives was compared with its checksum; what is not as it was written is a StoreDamaged. Any
    method raises Unmet where the disk, the database or the object store refuses.

    Args:
        place: a folder, made if it is not there, or an index and a place for the files: see `fxtrace.store.place`.
        quota_bytes: of all traces' files together; a new trace pushes out the least recently used that are not pinned.

    Raises:
        OptionInvalid: there is no such kind of place.
        DependencyMissing: what the place needs is not installed.
        Unmet: it cannot be used.
        StoreDamaged: its index cannot be read by this version of fxtrace.
    """

    def __init__(self, place: str | Path, *, quota_bytes: int | None = None) -> None:
        self.place = str(place)
        parsed = parse_place(self.place)
        self._quota_bytes = quota_bytes
        self._used: dict[str, float] = {}
        self._used_lock = threading.Lock()
        self._used_noted = time.monotonic()
        self._heads: OrderedDict[str, Head] = OrderedDict()
        try:
            with reported():
                self._blobs = open_blobs(parsed.files)
            self._index = Index(parsed.index)
            try:
                self._index.prepare(partial(migrate, blobs=self._blobs, files=Path(parsed.files)))
                self.sweep()
            except BaseException:
                self._index.close()
                raise
        except (Unmet, StoreDamaged) as error:
            raise type(error)(f"{error.message} (opening {parsed})", field=error.field, **error.metadata) from error

    def close(self) -> None:
        """Closes the index. Files that are open stay readable."""
        with suppress(FxtraceError):  # only when traces were last used is lost
            self._note_use()
        self._index.close()

    # ---------------------------------------------------------------------------------------------------- writing

    def put(
        self, trace: Trace, graph: Graph, snapshots: tuple[Snapshot, ...], tensors: Mapping[str, NDArray[Any]]
    ) -> Trace:
        """Stores a trace, and returns it once it would survive a loss of power.

        Args:
            trace: a trace of that id that is already there stays, and is returned.
            graph: its labelled graph.
            snapshots: its snapshots.
            tensors: the numbers of every tensor in the graph, by name; none where the trace is without values.

        Raises:
            TooLarge: the trace and what is pinned are more than the quota; nothing is kept, nothing pushed out.
        """
        sections = {
            TRACE: wire.TRACE.encode(trace).SerializeToString(),
            GRAPH: wire.encode_graph(graph).SerializeToString(),
            SNAPSHOTS: trace_service_pb2.ListSnapshotsResponse(
                snapshots=map(wire.SNAPSHOT.encode, snapshots)
            ).SerializeToString(),
        }
        encoded = Encoded(check_trace_id(trace.id), sections, tensors if trace.values else {})
        row = Row(trace.id, new_name(trace.id), sections[TRACE], encoded.nbytes, last_used=time.time())
        with self._index.reading() as connection:
            self._check_quota(connection, row)
        with reported():
            self._blobs.write(row.blob, encoded.parts())
        try:
            self._note_use()
            with self._index.locked() as connection:
                kept = self._add(connection, row)
                self._check_quota(connection, row)
                evicted = self._index.evict(connection, self._quota_bytes, keep=row.id)
        except BaseException:
            with suppress(FxtraceError):
                self._discard(row.blob)
            raise
        self._finish_deleting(evicted)
        if kept.blob == row.blob:
            return trace
        self._discard(row.blob)
        return _parse(kept.id, _trace_from_bytes, kept.trace)

    def check_writable(self) -> None:
        """Returns if the store can be written to: writes a small file, and removes it.

        Raises:
            Unmet: it cannot.
        """
        name = new_name("0" * 32)
        with reported():
            self._blobs.write(name, [memoryview(b"fxtrace")])
            self._blobs.delete(name)
        with self._index.locked():
            pass

    def pin(self, trace_id: str, pinned: bool = True) -> None:
        """Keeps a trace from being pushed out, or no longer.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
        """
        self.require(trace_id)
        with self._index.locked() as connection:
            row = self._index.find(connection, trace_id)
            if row is None:
                raise _not_found(trace_id)
            self._index.update(connection, replace(row, pinned=pinned))

    def delete(self, trace_id: str) -> None:
        """Removes a trace and its tensors.

        Raises:
            NameInvalid, TraceNotFound
        """
        check_trace_id(trace_id)
        with self._index.locked() as connection:
            row = self._index.mark_deleted(connection, trace_id)
        if row is None:
            raise _not_found(trace_id)
        self._finish_deleting([row])

    def collect(self, quota_bytes: int | None = None) -> Collected:
        """Removes what was left unfinished, and the least recently used traces until the rest fits the quota.

        Args:
            quota_bytes: instead of the store's own.
        """
        nbytes = self.sweep()
        for blob, written in self._unreadable().items():
            self._discard(blob)
            nbytes += written.nbytes
        self._note_use()
        with self._index.locked() as connection:
            quota_bytes = self._quota_bytes if quota_bytes is None else quota_bytes
            evicted = self._index.evict(connection, quota_bytes)
        self._finish_deleting(evicted)
        return Collected(tuple(row.id for row in evicted), nbytes + sum(row.nbytes for row in evicted))

    def sweep(self) -> int:
        """Puts in order what killed processes left, and gives the bytes that were removed; done when a store is opened.

        What they were writing is removed, what they were deleting is deleted, and files without a row get theirs. What
        other processes are writing stays.
        """
        with reported():
            nbytes = self._blobs.sweep()
        with self._index.reading() as connection:
            self._finish_deleting(self._index.deleted(connection))
        found = []
        for blob, written in self._without_row().items():
            with suppress(StoreDamaged, TraceNotFound):  # unreadable: `verify` tells of it; or just deleted
                found.append(self._row_of(blob, written))
        for _, row in sorted(found, key=lambda item: item[0]):
            with self._index.locked() as connection:
                kept = self._add(connection, row)
            if kept.blob != row.blob and time.time() - row.last_used > _SETTLED_AFTER_SECONDS:
                self._discard(row.blob)  # the loser of two that made the same trace
                nbytes += row.nbytes
        return nbytes

    # ---------------------------------------------------------------------------------------------------- reading

    def require(self, trace_id: str) -> None:
        """Returns if there is such a trace.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
        """
        self._row(trace_id)

    def trace(self, trace_id: str) -> Trace:
        """Where a trace came from.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
        """
        return _parse(trace_id, _trace_from_bytes, self._row(trace_id).trace)

    def graph(self, trace_id: str) -> Graph:
        """A trace's labelled graph.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
        """
        with self.open(trace_id) as file:
            return _parse(trace_id, _graph_from_bytes, file.section(GRAPH))

    def snapshots(self, trace_id: str) -> tuple[Snapshot, ...]:
        """A trace's snapshots.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
        """
        with self.open(trace_id) as file:
            return _parse(trace_id, _snapshots_from_bytes, file.section(SNAPSHOTS))

    def traces(self, limit: int, before: int | None = None) -> list[tuple[int, Trace]]:
        """Up to `limit` traces, newest first, each with its place in the order; `before` goes on after such a place.

        Raises:
            StoreDamaged
        """
        with self._index.reading() as connection:
            rows = self._index.newest(connection, limit, before)
        return [(row.sequence or 0, _parse(row.id, _trace_from_bytes, row.trace)) for row in rows]

    def stored(self) -> list[StoredTrace]:
        """How every trace is kept, newest first.

        Raises:
            StoreDamaged
        """
        self._note_use()
        with self._index.reading() as connection:
            rows = self._index.newest(connection)
        return [
            StoredTrace(
                _parse(row.id, _trace_from_bytes, row.trace),
                row.nbytes,
                datetime.fromtimestamp(row.last_used, UTC),
                row.pinned,
                row.state == "damaged",
            )
            for row in rows
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of all traces' files together."""
        with self._index.reading() as connection:
            return sum(self._index.sizes(connection).values())

    def read(self, trace_id: str, specs: Mapping[str, TensorSpec]) -> dict[str, NDArray[Any]]:
        """The numbers of these tensors of a trace with values.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
        """
        with self.open(trace_id) as file:
            return {
                name: file.tensor(name, numpy_dtype(spec.dtype), spec.shape).array() for name, spec in specs.items()
            }

    def open(self, trace_id: str) -> TraceFile:
        """A trace's file, to read its tensors piece by piece; close it.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
        """
        row = self._row(trace_id)
        return self._open(trace_id, row.blob)

    def find(self, trace_id: str) -> Trace | None:
        """The trace, where it is there as a whole. What is left of a damaged one is removed, to be made again."""
        try:
            row = self._row(trace_id)
            if row.state != "damaged":
                self._open(trace_id, row.blob).close()
                self.graph(trace_id), self.snapshots(trace_id)
                return _parse(trace_id, _trace_from_bytes, row.trace)
        except TraceNotFound:
            return None
        except StoreDamaged:
            pass
        with suppress(TraceNotFound):
            self.delete(trace_id)
        return None

    def verify(self, trace_ids: Iterable[str] = (), report: Callable[[Progress], None] | None = None) -> dict[str, str]:
        """Compares every byte of these traces, or of all, with its checksum.

        Args:
            trace_ids: the traces.
            report: called with the bytes done as they are.

        Returns:
            What is wrong, by the id of the trace, where something is; by the file's name for a file without a trace.

        Raises:
            NameInvalid, TraceNotFound
        """
        with self._index.reading() as connection:
            sizes = self._index.sizes(connection)
        chosen = [check_trace_id(trace_id) for trace_id in trace_ids] or list(sizes)
        if missing := next((trace_id for trace_id in chosen if trace_id not in sizes), None):
            raise _not_found(missing)
        problems, done, total = {}, 0, sum(sizes[trace_id] for trace_id in chosen)
        for trace_id in chosen:
            try:
                for nbytes in self._verified(trace_id):
                    done += nbytes
                    if report is not None:
                        report(Progress("verify", done, max(done, total)))
            except StoreDamaged as error:
                problems[trace_id] = error.message
            except TraceNotFound:
                pass  # deleted meanwhile
        if not trace_ids:
            problems |= dict.fromkeys(self._unreadable(), "no trace can be read from it; `fxtrace store gc` removes it")
        return problems

    def _verified(self, trace_id: str) -> Iterator[int]:
        """Compares every byte of a trace; gives the number of those of each step."""
        row = self._row(trace_id)
        with self._open(trace_id, row.blob) as file:
            yield from file.verify()
            graph = _parse(trace_id, _graph_from_bytes, file.section(GRAPH))
            _parse(trace_id, _snapshots_from_bytes, file.section(SNAPSHOTS))
            if _parse(trace_id, _trace_from_bytes, row.trace).values:
                for name, spec in graph.tensors():
                    file.tensor(name, numpy_dtype(spec.dtype), spec.shape)
            if file.section(TRACE) != row.trace:
                raise damaged_trace(trace_id, "its file and its row in the index tell of different traces")

    # ---------------------------------------------------------------------------------------------------- inside

    def _row(self, trace_id: str) -> Row:
        """The row of a trace that is there; notes that it was used."""
        check_trace_id(trace_id)
        with self._index.reading() as connection:
            row = self._index.find(connection, trace_id)
        if row is None or row.state == "deleted":
            raise _not_found(trace_id)
        with self._used_lock:
            self._used[trace_id] = time.time()
            due = time.monotonic() - self._used_noted > _NOTE_USE_EVERY_SECONDS
        if due:
            with suppress(FxtraceError):  # reading goes on where nothing can be written
                self._note_use()
        return row

    def _note_use(self) -> None:
        """Writes down when traces were last used."""
        with self._used_lock:
            used, self._used, self._used_noted = self._used, {}, time.monotonic()
        if used:
            with self._index.locked() as connection:
                self._index.touch(connection, used)

    def _open(self, trace_id: str, blob: str) -> TraceFile:
        guard = partial(self._guarded, trace_id, blob)
        with guard():
            source = self._blobs.open(blob)
            try:
                head = self._head(blob, source)
                if head.trace_id != trace_id:
                    raise ValueError(f"expected the file of this trace, got that of '{head.trace_id}'")
            except BaseException:
                source.close()
                raise
        return TraceFile(source, head, guard)

    def _head(self, blob: str, source: Source) -> Head:
        """A file's head; a file never changes, so the last ones are kept."""
        head = self._heads.pop(blob, None)
        if head is None or head.nbytes != source.nbytes:
            head = Head(source)
        self._heads[blob] = head
        while len(self._heads) > _HEADS_KEPT:
            with suppress(KeyError):  # another thread was first
                self._heads.popitem(last=False)
        return head

    @contextmanager
    def _guarded(self, trace_id: str, blob: str) -> Iterator[None]:
        """Reports what reading a file raises, and notes a damaged trace in its row so that it is made again."""
        try:
            yield
        except FileNotFoundError as error:
            with self._index.reading() as connection:
                if blob not in self._index.blobs(connection):
                    raise _not_found(trace_id) from error  # deleted meanwhile
            self._mark_damaged(trace_id, blob)
            raise damaged_trace(trace_id, "its file is missing") from error
        except ValueError as error:
            self._mark_damaged(trace_id, blob)
            raise damaged_trace(trace_id, error) from error
        except OSError:
            with reported():
                raise

    def _mark_damaged(self, trace_id: str, blob: str) -> None:
        with suppress(FxtraceError), self._index.locked() as connection:
            row = self._index.find(connection, trace_id)
            if row is not None and row.blob == blob and row.state == "live":
                self._index.update(connection, replace(row, state="damaged"))

    def _row_of(self, blob: str, written: Written) -> tuple[datetime, Row]:
        """The row that a file's trace should have, and when the trace was made."""
        trace_id = blob.partition(".")[0]
        with self._open(trace_id, blob) as file:
            data = file.section(TRACE)
        created = _parse(trace_id, _trace_from_bytes, data).created
        return created, Row(trace_id, blob, data, written.nbytes, last_used=written.at)

    def _without_row(self) -> dict[str, Written]:
        """The files of traces that no row names."""
        with reported():
            files = self._blobs.files()
        with self._index.reading() as connection:
            known = self._index.blobs(connection)
        return {blob: at for blob, at in files.items() if NAME.fullmatch(blob) and blob not in known}

    def _unreadable(self) -> dict[str, Written]:
        """The files that no row names, and from which none can be made."""
        found = {}
        for blob, written in self._without_row().items():
            try:
                self._row_of(blob, written)
            except StoreDamaged:
                found[blob] = written
            except TraceNotFound:
                pass  # just deleted
        return found

    def _add(self, connection: Connection, row: Row) -> Row:
        """Adds a row, unless its trace is there; gives the row that stays."""
        try:
            there = self._index.find(connection, row.id)
        except StoreDamaged:
            there = None
        if there is not None and there.state == "live":
            return there
        self._index.insert(connection, row)  # in place of one that is deleted or damaged; the sweep finds its file
        return row

    def _check_quota(self, connection: Connection, row: Row) -> None:
        if self._quota_bytes is None:
            return
        pinned = self._index.pinned_bytes(connection, but=row.id)
        if row.nbytes + pinned > self._quota_bytes:
            raise TooLarge(
                f"the trace takes {row.nbytes:,} bytes, pinned traces take {pinned:,}, and the store's quota is "
                f"{self._quota_bytes:,}. Raise the quota, unpin a trace, or trace without values",
                nbytes=row.nbytes,
                pinned=pinned,
                quota=self._quota_bytes,
            )

    def _finish_deleting(self, rows: Iterable[Row]) -> None:
        """Removes the files of rows that are marked as deleted, then the rows."""
        for row in rows:
            with reported():
                self._blobs.delete(row.blob)
            with self._index.locked() as connection:
                self._index.remove(connection, row.blob)

    def _discard(self, blob: str) -> None:
        """Removes a file that no row names."""
        with self._index.locked() as connection:
            if blob not in self._index.blobs(connection):
                self._blobs.delete(blob)


def _parse(trace_id: str, parse: Callable[[bytes], _T], data: bytes) -> _T:
    try:
        return parse(data)
    except (DecodeError, FxtraceError, ValueError, TypeError, LookupError) as error:
        raise damaged_trace(trace_id, f"its record cannot be read: {error}") from error


def _trace_from_bytes(data: bytes) -> Trace:
    return wire.TRACE.decode(trace_service_pb2.Trace.FromString(data))


def _graph_from_bytes(data: bytes) -> Graph:
    return wire.decode_graph([graph_pb2.Graph.FromString(data)])


def _snapshots_from_bytes(data: bytes) -> tuple[Snapshot, ...]:
    return tuple(map(wire.SNAPSHOT.decode, trace_service_pb2.ListSnapshotsResponse.FromString(data).snapshots))


def _not_found(trace_id: str) -> TraceNotFound:
    return TraceNotFound(f"no trace with the id {trace_id}", field="trace", trace=trace_id)
