"""The store: what can be done with traces by id."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxtrace.dims import Formulas
from fxtrace.dtypes import numpy_dtype
from fxtrace.errors import FxtraceError, StoreDamaged, TooLarge, TraceNotFound, Unmet
from fxtrace.graph import Graph, Snapshot, TensorSpec
from fxtrace.ir.text import cut
from fxtrace.ir.trace import Progress, TraceInfo
from fxtrace.store.blobs import Blobs, new_name, open_blobs
from fxtrace.store.faults import DiskFull, damaged_row, not_found, reported
from fxtrace.store.files import (
    Files,
    formulas_to_bytes,
    graph_from_bytes,
    parse,
    sections_of,
    snapshots_from_bytes,
    trace_from_bytes,
)
from fxtrace.store.naming import resolve
from fxtrace.store.place import parse_place
from fxtrace.store.row import Origin, Row, State
from fxtrace.store.stored import Collected, StoredTrace, check_trace_id
from fxtrace.store.tracefile import FORMULAS, GRAPH, SNAPSHOTS, TRACE, Encoded, TraceFile

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sqlalchemy import Connection

    from fxtrace.store.index import Index

_log = logging.getLogger("fxtrace.store")
_SETTLED_AFTER_SECONDS = 3600  # a file of this age is no longer about to get its row
_NOTE_USE_EVERY_SECONDS = 60


_LONGEST_PLACE = 100


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
        self._quota_bytes = quota_bytes
        self._told: set[str] = set()  # damaged rows that the log has
        self._used: dict[str, float] = {}
        self._used_lock = threading.Lock()
        self._used_noted = time.monotonic()
        self._blobs: Blobs
        self._opened: Index | None = None
        self._files = Files(lambda: self._blobs, lambda: self._index)
        self._open()

    def __repr__(self) -> str:
        place = self.place if "://" not in self.place else str(parse_place(self.place))  # without its password
        return f"<Store at {cut(place, _LONGEST_PLACE)}>"

    def _open(self) -> None:
        from fxtrace.store.index import Index
        from fxtrace.store.migrate import migrate

        parsed = parse_place(self.place)
        try:
            with reported():
                self._blobs = open_blobs(parsed.files)
            index = Index(parsed.index)
            try:
                index.prepare(partial(migrate, blobs=self._blobs, files=Path(parsed.files)))
                self._opened = index
                self.sweep()
            except BaseException:
                self._opened = None
                index.close()
                raise
        except (Unmet, StoreDamaged) as error:
            raise type(error)(f"{error.message} (opening {parsed})", field=error.field, **error.metadata) from error

    @property
    def _index(self) -> Index:
        assert self._opened is not None
        return self._opened

    def close(self) -> None:
        """Closes the index. Files that are open stay readable."""
        with suppress(FxtraceError):  # only when traces were last used is lost
            self._note_use()
        self._index.close()

    # ---------------------------------------------------------------------------------------------------- writing

    def put(
        self, trace: TraceInfo, graph: Graph, snapshots: tuple[Snapshot, ...], tensors: Mapping[str, NDArray[Any]]
    ) -> TraceInfo:
        """Stores a trace, and returns it once it would survive a loss of power.

        Args:
            trace: a trace of that id that is already there stays, and is returned.
            graph: its labelled graph.
            snapshots: its snapshots.
            tensors: the numbers of every tensor in the graph, by name; none where the trace is without values.

        Raises:
            TooLarge: the trace and what is pinned are more than the quota; nothing is kept, nothing pushed out.
        """
        sections = sections_of(trace, graph, snapshots)
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
        except BaseException:
            with suppress(FxtraceError):
                self._discard(row.blob)
            raise
        self._evict(self._quota_bytes, keep=row.id)
        if kept.blob == row.blob:
            return trace
        self._discard(row.blob)
        return parse(kept.id, trace_from_bytes, kept.trace)

    def put_formulas(self, trace_id: str, formulas: Formulas) -> None:
        """Keeps formulas with their trace: its file is written anew with them, and takes the old one's place.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
            TooLarge: with them the trace and what is pinned are more than the quota; the trace stays as it was.
        """
        old = self._row(trace_id)
        encoded = self._files.extended(trace_id, old.blob, {FORMULAS: formulas_to_bytes(formulas)})
        row = replace(old, blob=new_name(trace_id), nbytes=encoded.nbytes)
        with self._index.reading() as connection:
            self._check_quota(connection, row)
        with reported():
            self._blobs.write(row.blob, encoded.parts())
        replaced = False
        try:
            with self._index.locked() as connection:
                found = self._index.find(connection, trace_id)
                replaced = found is not None and found.blob == old.blob and found.state == "live"
                if found is not None and replaced:
                    self._index.insert(connection, replace(found, blob=row.blob, nbytes=row.nbytes))
        finally:
            with suppress(FxtraceError):
                self._discard(old.blob, row.blob)  # that of the two which the row does not name
        if not replaced:
            self.require(trace_id)  # it was deleted; or another process was faster, and kept the same
        self._evict(self._quota_bytes, keep=trace_id)

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

    def note_origin(self, origin: Origin) -> None:
        """Keeps what led to a trace; the trace is now the latest."""
        with self._index.locked() as connection:
            self._index.note_origin(connection, origin)

    def pin(self, trace_id: str, pinned: bool = True) -> None:
        """Keeps a trace from being pushed out, or no longer.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
        """
        self.require(trace_id)
        with self._index.locked() as connection:
            row = self._index.find(connection, trace_id)
            if row is None or row.state == "deleted":
                raise not_found(trace_id)
            self._index.update(connection, replace(row, pinned=pinned))

    def delete(self, trace_id: str) -> None:
        """Removes a trace and its tensors.

        Raises:
            NameInvalid, TraceNotFound
        """
        self._delete(check_trace_id(trace_id))

    def collect(self, quota_bytes: int | None = None) -> Collected:
        """Removes what was left unfinished, and the least recently used traces until the rest fits the quota.

        Args:
            quota_bytes: instead of the store's own.
        """
        nbytes = self.sweep()
        for blob, written in self._files.unreadable().items():
            self._discard(blob)
            nbytes += written.nbytes
        with suppress(DiskFull):
            self._note_use()
        evicted = self._evict(self._quota_bytes if quota_bytes is None else quota_bytes)
        return Collected(tuple(evicted), nbytes + sum(evicted.values()))

    def sweep(self) -> int:
        """Puts in order what killed processes left, and gives the bytes that were removed; done when a store is opened.

        What they were writing is removed, what they were deleting is deleted, and files without a row get theirs. What
        other processes are writing stays.
        """
        with self._index.reading() as connection:
            deleted = self._index.deleted(connection)
        with reported():
            nbytes = self._blobs.sweep()
            for row in deleted:
                self._blobs.delete(row.blob)
        found, unsettled = [], set()
        for blob, written in self._files.without_row().items():
            with suppress(StoreDamaged, TraceNotFound):  # unreadable: `verify` tells of it; or just deleted
                found.append(self._files.row_of(blob, written))
        for _, row in sorted(found, key=lambda item: item[0]):
            with self._index.locked() as connection:
                kept = self._add(connection, row, over=("damaged",))
            if kept.blob != row.blob and time.time() - row.last_used > _SETTLED_AFTER_SECONDS:
                self._discard(row.blob)  # the loser of two that made the same trace
                nbytes += row.nbytes
            elif kept.blob != row.blob:
                unsettled.add(row.id)
        if gone := [row.blob for row in deleted if row.id not in unsettled]:
            with self._index.locked() as connection:
                for blob in gone:
                    self._index.remove(connection, blob)
        return nbytes

    # ---------------------------------------------------------------------------------------------------- reading

    def require(self, trace_id: str) -> None:
        """Returns if there is such a trace.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
        """
        self._row(trace_id)

    def resolve(self, text: str) -> str:
        """The id of the trace that a text means: an id, the beginning of one, or `latest`.

        Raises:
            NameInvalid, TraceNotFound
        """
        return resolve(self, text)

    def latest(self) -> str | None:
        """The id of the trace that was last asked for; None where there are no traces."""
        with self._index.reading() as connection:
            return self._index.latest(connection)

    def beginning(self, text: str, limit: int) -> list[str]:
        """Up to `limit` ids of traces that begin with some digits."""
        with self._index.reading() as connection:
            return self._index.beginning(connection, text, limit)

    def origin(self, *, digest: str = "", trace_id: str = "") -> Origin | None:
        """What led to a trace: the request of this digest, or the last one of this trace; None where none is kept."""
        with self._index.reading() as connection:
            return self._index.origin(connection, digest=digest, trace_id=trace_id)

    def trace(self, trace_id: str) -> TraceInfo:
        """Where a trace came from.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
        """
        return parse(trace_id, trace_from_bytes, self._row(trace_id).trace)

    def graph(self, trace_id: str) -> Graph:
        """A trace's labelled graph.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
        """
        with self.open(trace_id) as file:
            return parse(trace_id, graph_from_bytes, file.section(GRAPH))

    def snapshots(self, trace_id: str) -> tuple[Snapshot, ...]:
        """A trace's snapshots.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
        """
        with self.open(trace_id) as file:
            return parse(trace_id, snapshots_from_bytes, file.section(SNAPSHOTS))

    def formulas(self, trace_id: str) -> Formulas | None:
        """The formulas of a trace's sizes; None where none are kept.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
        """
        with self.open(trace_id) as file:
            return self._files.formulas(trace_id, file)

    def traces(self, limit: int, before: int | None = None) -> list[tuple[int, TraceInfo]]:
        """Up to `limit` traces, newest first, each with its place in the order; `before` goes on after such a place.

        One whose row is damaged is left out, and the log tells of it.
        """
        found: list[tuple[int, TraceInfo]] = []
        with self._index.reading() as connection:
            while missing := limit - len(found):
                rows = self._index.newest(connection, missing, before)
                found += [(row.sequence or 0, parse(row.id, trace_from_bytes, row.trace)) for row in self._whole(rows)]
                if len(rows) < missing:
                    break
                before = rows[-1].sequence
        return found

    def stored(self) -> list[StoredTrace]:
        """How every trace is kept, newest first. One whose row is damaged is left out, and the log tells of it."""
        self._note_use()
        with self._index.reading() as connection:
            rows = self._index.newest(connection)
        return [
            StoredTrace(
                parse(row.id, trace_from_bytes, row.trace),
                row.nbytes,
                datetime.fromtimestamp(row.last_used, UTC),
                row.pinned,
                row.state == "damaged",
            )
            for row in self._whole(rows)
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
        try:
            return self._files.open(trace_id, row.blob)
        except TraceNotFound:
            again = self._row(trace_id)
            if again.blob == row.blob:
                raise
            return self._files.open(trace_id, again.blob)  # it was written anew meanwhile

    def find(self, trace_id: str) -> TraceInfo | None:
        """The trace, where it is there as a whole. What is left of a damaged one is removed, to be made again."""
        blob = ""
        try:
            row = self._row(trace_id)
            blob = row.blob
            if row.state != "damaged":
                self._files.open(trace_id, row.blob).close()
                self.graph(trace_id), self.snapshots(trace_id)
                return parse(trace_id, trace_from_bytes, row.trace)
        except TraceNotFound:
            return None
        except StoreDamaged:
            pass
        with suppress(TraceNotFound):  # or another process has made it again meanwhile
            self._delete(trace_id, lambda row: row.blob == blob or not row.whole)
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
            raise not_found(missing)
        problems, done, total = {}, 0, sum(sizes[trace_id] for trace_id in chosen)
        for trace_id in chosen:
            try:
                for nbytes in self._files.verified(self._row(trace_id)):
                    done += nbytes
                    if report is not None:
                        report(Progress("verify", done, max(done, total)))
            except StoreDamaged as error:
                problems[trace_id] = error.message
            except TraceNotFound:
                pass  # deleted meanwhile
        if not trace_ids:
            problems |= dict.fromkeys(
                self._files.unreadable(), "no trace can be read from it; `fxtrace store gc` removes it"
            )
        return problems

    # ---------------------------------------------------------------------------------------------------- inside

    def _row(self, trace_id: str) -> Row:
        """The row of a trace that is there; notes that it was used."""
        check_trace_id(trace_id)
        with self._index.reading() as connection:
            row = self._index.find(connection, trace_id)
        if row is None or row.state == "deleted":
            raise not_found(trace_id)
        with self._used_lock:
            self._used[trace_id] = time.time()
            due = time.monotonic() - self._used_noted > _NOTE_USE_EVERY_SECONDS
        if due:
            with suppress(FxtraceError):  # reading goes on where nothing can be written
                self._note_use()
        return row

    def _whole(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows that can be trusted; the log tells of each other once."""
        for row in rows:
            if row.whole:
                yield row
            elif row.id not in self._told:
                self._told.add(row.id)
                _log.warning("left out of a list: %(problem)s", {"problem": damaged_row(row.id).message})

    def _note_use(self) -> None:
        """Writes down when traces were last used."""
        with self._used_lock:
            used, self._used, self._used_noted = self._used, {}, time.monotonic()
        if used:
            with self._index.locked() as connection:
                self._index.touch(connection, used)

    def _add(self, connection: Connection, row: Row, over: tuple[State, ...] = ("damaged", "deleted")) -> Row:
        """Adds a row, unless its trace has one that is in none of these states; gives the row that stays."""
        try:
            there = self._index.find(connection, row.id)
        except StoreDamaged:
            there = None
        if there is not None and there.state not in over:
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

    def _evict(self, quota_bytes: int | None, keep: str = "") -> dict[str, int]:
        """Removes traces until the rest fits; gives their bytes by their ids."""
        if quota_bytes is None:
            return {}
        with self._index.reading() as connection:
            sizes = self._index.sizes(connection)
            surplus = self._index.surplus(connection, quota_bytes, keep)
        evicted = {}
        for trace_id in surplus:
            with suppress(TraceNotFound):  # another process was faster, or it was just pinned
                self._delete(trace_id, lambda row: not row.pinned)
                evicted[trace_id] = sizes[trace_id]
        return evicted

    def _delete(self, trace_id: str, condition: Callable[[Row], bool] = lambda _: True) -> None:
        """Marks a row as deleted where it meets a condition, else it is as if there were none; removes its file.

        The next sweep removes the row. Until then it keeps other files of the trace, which a writer that was killed or
        slower may have left, from bringing it back.
        """
        try:
            row = self._mark_deleted(trace_id, condition)
        except DiskFull:  # the file goes first, and makes room for the index
            row = self._row(trace_id)
            if not condition(row):
                raise not_found(trace_id) from None
            with reported():
                self._blobs.delete(row.blob)
            row = self._mark_deleted(trace_id, condition)
        with reported():
            self._blobs.delete(row.blob)

    def _mark_deleted(self, trace_id: str, condition: Callable[[Row], bool]) -> Row:
        with self._index.locked() as connection:
            row = self._index.mark_deleted(connection, trace_id, condition)
        if row is None:
            raise not_found(trace_id)
        return row

    def _discard(self, *blobs: str) -> None:
        """Removes those of these files that no row names."""
        with self._index.locked() as connection:
            for blob in set(blobs) - self._index.blobs(connection):
                self._blobs.delete(blob)
