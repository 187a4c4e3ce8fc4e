"""The files of traces, opened by what the index says, and what the index should say of files it does not know."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import DecodeError

from fxtrace import wire
from fxtrace.dims import Formulas
from fxtrace.dtypes import numpy_dtype
from fxtrace.errors import FxtraceError, StoreDamaged, TraceNotFound
from fxtrace.graph import Graph, Snapshot
from fxtrace.ir.trace import TraceInfo
from fxtrace.store.blobs import NAME, Blobs, Source, Written
from fxtrace.store.faults import damaged_trace, not_found, reported
from fxtrace.store.row import Row
from fxtrace.store.tracefile import FORMULAS, GRAPH, SNAPSHOTS, TRACE, Encoded, Head, TraceFile
from fxtrace.v1 import graph_pb2, trace_service_pb2

if TYPE_CHECKING:
    from fxtrace.store.index import Index

_HEADS_KEPT = 64

_T = TypeVar("_T")


class Files:
    """The files of a store's traces.

    Args:
        blobs: gives where they are.
        index: gives the index, where a damaged one is noted, so that its trace is made again.
    """

    def __init__(self, blobs: Callable[[], Blobs], index: Callable[[], Index]) -> None:
        self._get_blobs, self._get_index = blobs, index
        self._heads: OrderedDict[str, Head] = OrderedDict()

    @property
    def _blobs(self) -> Blobs:
        return self._get_blobs()

    @property
    def _index(self) -> Index:
        return self._get_index()

    def open(self, trace_id: str, blob: str) -> TraceFile:
        """A trace's file.

        Raises:
            StoreDamaged: it is missing, or not the file that was written; so do the reads of it.
            TraceNotFound: it was just deleted.
        """
        guard = partial(self._guarded, trace_id, blob)
        with guard():
            source, head = self._opened(trace_id, blob)
        return TraceFile(source, head, guard, partial(self._moved, trace_id, blob))

    def extended(self, trace_id: str, blob: str, sections: Mapping[str, bytes]) -> Encoded:
        """A trace's file with these sections, besides its own, to be written.

        Raises:
            StoreDamaged, TraceNotFound: as `open`.
        """
        with self.open(trace_id, blob) as file:
            own = {name: file.section(name) for name in (TRACE, GRAPH, SNAPSHOTS)}
            graph = parse(trace_id, graph_from_bytes, own[GRAPH])
            tensors = {
                name: file.tensor(name, numpy_dtype(spec.dtype), spec.shape).array()
                for name, spec in (graph.tensors() if parse(trace_id, trace_from_bytes, own[TRACE]).values else ())
            }
        return Encoded(trace_id, {**own, **sections}, tensors)

    def formulas(self, trace_id: str, file: TraceFile) -> Formulas | None:
        """The formulas in a trace's file; None where there are none.

        Raises:
            StoreDamaged: they cannot be read.
        """
        return parse(trace_id, formulas_from_bytes, file.section(FORMULAS)) if file.has(FORMULAS) else None

    def verified(self, row: Row) -> Iterator[int]:
        """Compares every byte of a trace's file; gives the number of those of each step.

        Raises:
            StoreDamaged, TraceNotFound: as `open`.
        """
        with self.open(row.id, row.blob) as file:
            yield from file.verify()
            graph = parse(row.id, graph_from_bytes, file.section(GRAPH))
            parse(row.id, snapshots_from_bytes, file.section(SNAPSHOTS))
            if parse(row.id, trace_from_bytes, row.trace).values:
                for name, spec in graph.tensors():
                    file.tensor(name, numpy_dtype(spec.dtype), spec.shape)
            if file.section(TRACE) != row.trace:
                raise damaged_trace(row.id, "its file and its row in the index tell of different traces")

    def row_of(self, blob: str, written: Written) -> tuple[datetime, Row]:
        """The row that a file's trace should have, and when the trace was made.

        Raises:
            StoreDamaged: it cannot be read.
            TraceNotFound: it was just deleted.
        """
        trace_id = blob.partition(".")[0]
        with self.open(trace_id, blob) as file:
            data = file.section(TRACE)
        created = parse(trace_id, trace_from_bytes, data).created
        return created, Row(trace_id, blob, data, written.nbytes, last_used=written.at)

    def without_row(self) -> dict[str, Written]:
        """The files of traces that no row names."""
        with reported():
            files = self._blobs.files()
        with self._index.reading() as connection:
            known = self._index.blobs(connection)
        return {blob: at for blob, at in files.items() if NAME.fullmatch(blob) and blob not in known}

    def unreadable(self) -> dict[str, Written]:
        """The files that no row names, and from which none can be made."""
        found = {}
        for blob, written in self.without_row().items():
            try:
                self.row_of(blob, written)
            except StoreDamaged:
                found[blob] = written
            except TraceNotFound:
                pass  # just deleted
        return found

    def _opened(self, trace_id: str, blob: str) -> tuple[Source, Head]:
        source = self._blobs.open(blob)
        try:
            head = self._head(blob, source)
            if head.trace_id != trace_id:
                raise ValueError(f"expected the file of this trace, got that of '{head.trace_id}'")
        except BaseException:
            source.close()
            raise
        return source, head

    def _moved(self, trace_id: str, blob: str) -> tuple[Source, Head]:
        """The file that has taken another one's place."""
        with self._index.reading() as connection:
            row = self._index.find(connection, trace_id)
        if row is None or row.state == "deleted" or row.blob == blob:
            raise FileNotFoundError(blob)
        return self._opened(trace_id, row.blob)

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
                row = self._index.find(connection, trace_id)
            if row is None or row.state == "deleted" or row.blob != blob:
                raise not_found(trace_id) from error  # deleted, or written anew, meanwhile
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


def parse(trace_id: str, read: Callable[[bytes], _T], data: bytes) -> _T:
    """What stored bytes mean; StoreDamaged where they mean nothing."""
    try:
        return read(data)
    except (DecodeError, FxtraceError, ValueError, TypeError, LookupError) as error:
        raise damaged_trace(trace_id, f"its record cannot be read: {error}") from error


def sections_of(trace: TraceInfo, graph: Graph, snapshots: Iterable[Snapshot]) -> dict[str, bytes]:
    """Everything of a trace but its numbers and formulas, serialised, by the sections' names in its file."""
    listed = trace_service_pb2.ListSnapshotsResponse(snapshots=map(wire.SNAPSHOT.encode, snapshots))
    return {
        TRACE: wire.TRACE.encode(trace).SerializeToString(),
        GRAPH: wire.encode_graph(graph).SerializeToString(),
        SNAPSHOTS: listed.SerializeToString(),
    }


def formulas_to_bytes(formulas: Formulas) -> bytes:
    """The bytes of `FORMULAS`."""
    return wire.encode_formulas(formulas).SerializeToString(deterministic=True)


def trace_from_bytes(data: bytes) -> TraceInfo:
    """Of the bytes of `TRACE`."""
    return wire.TRACE.decode(trace_service_pb2.Trace.FromString(data))


def graph_from_bytes(data: bytes) -> Graph:
    """Of the bytes of `GRAPH`."""
    return wire.decode_graph([graph_pb2.Graph.FromString(data)])


def snapshots_from_bytes(data: bytes) -> tuple[Snapshot, ...]:
    """Of the bytes of `SNAPSHOTS`."""
    return tuple(map(wire.SNAPSHOT.decode, trace_service_pb2.ListSnapshotsResponse.FromString(data).snapshots))


def formulas_from_bytes(data: bytes) -> Formulas:
    """Of the bytes of `FORMULAS`."""
    return wire.decode_formulas(graph_pb2.Formulas.FromString(data))
