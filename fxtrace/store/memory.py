"""A store in this process's memory, for traces that nobody asked to keep; and a whole trace as one value."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from fxtrace.dims import Formulas
from fxtrace.graph import Graph, Snapshot
from fxtrace.ir.text import count_text
from fxtrace.ir.trace import TraceInfo
from fxtrace.slices import select
from fxtrace.store.faults import not_found
from fxtrace.store.naming import resolve
from fxtrace.store.stored import check_trace_id

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from fxtrace.store.row import Origin
    from fxtrace.store.store import Store
    from fxtrace.store.tracefile import TraceFile


@dataclass(frozen=True, eq=False, slots=True)
class TraceData:
    """A whole trace: what it is, its graph, its snapshots, and the numbers of its tensors by name.

    `make_graph_module` gives what runs, where the trace was made in this process.
    """

    info: TraceInfo
    graph: Graph
    snapshots: tuple[Snapshot, ...]
    tensors: Mapping[str, NDArray[Any]] = field(repr=False)
    formulas: Formulas | None = None
    make_graph_module: Callable[[], GraphModule] | None = field(default=None, repr=False)


class Hold:
    """Keeps a trace in a `MemoryStore` as long as this object is there."""

    def __init__(self, store: MemoryStore, trace_id: str) -> None:
        self._store, self._id = store, trace_id
        weakref.finalize(self, store.release, trace_id)

    @property
    def graph_module(self) -> GraphModule | None:
        """The trace's runnable graph, where it has one."""
        make = self._store.data(self._id).make_graph_module
        return None if make is None else make()


class MemoryStore:
    """Traces by id, in memory: the methods of `Store` that an engine needs.

    Args:
        below: a store whose traces are there as well, to be read; what is put or deleted, is so here.
    """

    place = ""

    def __init__(self, *traces: TraceData, below: Store | None = None) -> None:
        self._traces = {data.info.id: data for data in traces}
        self._origins: dict[str, Origin] = {}  # by their digests, the last one last
        self._holds: dict[str, int] = {}
        self._lock = threading.RLock()
        self._below = below

    def __repr__(self) -> str:
        return f"<MemoryStore of {count_text(len(self._traces), 'trace')}>"

    def close(self) -> None:
        """Closes the store below."""
        if self._below is not None:
            self._below.close()

    # ---------------------------------------------------------------------------------------------------- writing

    def put(
        self, trace: TraceInfo, graph: Graph, snapshots: tuple[Snapshot, ...], tensors: Mapping[str, NDArray[Any]]
    ) -> TraceInfo:
        """Keeps a trace; one of that id that is there already stays, and is returned."""
        return self.add(TraceData(trace, graph, snapshots, tensors)).info

    def add(self, data: TraceData) -> TraceData:
        """Keeps a whole trace; one of that id that is there already stays, and is returned."""
        with self._lock:
            return self._traces.setdefault(check_trace_id(data.info.id), data)

    def hold(self, trace_id: str) -> Hold:
        """Returns what keeps a trace: it goes when the last hold on it is gone.

        Raises:
            TraceNotFound: it is not here.
        """
        with self._lock:
            self.data(trace_id)
            self._holds[trace_id] = self._holds.get(trace_id, 0) + 1
        return Hold(self, trace_id)

    def release(self, trace_id: str) -> None:
        """Counts one hold less."""
        with self._lock:
            self._holds[trace_id] = self._holds.get(trace_id, 1) - 1
            if self._holds[trace_id] <= 0:
                del self._holds[trace_id]
                self._traces.pop(trace_id, None)

    def note_origin(self, origin: Origin) -> None:
        """Keeps what led to a trace; the trace is now the latest."""
        with self._lock:
            self._origins.pop(origin.digest, None)
            self._origins[origin.digest] = origin

    def put_formulas(self, trace_id: str, formulas: Formulas) -> None:
        """Keeps formulas with their trace."""
        with self._lock:
            if trace_id in self._traces:
                self._traces[trace_id] = replace(self._traces[trace_id], formulas=formulas)
            elif self._below is not None:
                self._below.put_formulas(trace_id, formulas)

    def delete(self, trace_id: str) -> None:
        """Removes a trace.

        Raises:
            NameInvalid, TraceNotFound
        """
        with self._lock:
            self.data(check_trace_id(trace_id))
            del self._traces[trace_id]

    # ---------------------------------------------------------------------------------------------------- reading

    def data(self, trace_id: str) -> TraceData:
        """A whole trace that is here.

        Raises:
            TraceNotFound
        """
        try:
            return self._traces[trace_id]
        except KeyError:
            raise not_found(trace_id) from None

    def require(self, trace_id: str) -> None:
        """Returns if there is such a trace. Raises NameInvalid, TraceNotFound."""
        if (below := self._elsewhere(trace_id)) is not None:
            below.require(trace_id)

    def find(self, trace_id: str) -> TraceInfo | None:
        """The trace, or None."""
        if trace_id in self._traces:
            return self._traces[trace_id].info
        return None if self._below is None else self._below.find(trace_id)

    def resolve(self, text: str) -> str:
        """The id of the trace that a text means: an id, the beginning of one, or `latest`."""
        return resolve(self, text)

    def latest(self) -> str | None:
        """The id of the trace that was last asked for; None where there are no traces."""
        with self._lock:
            asked = (origin.trace for origin in reversed(self._origins.values()) if origin.trace in self._traces)
            here = next(asked, None) or next(reversed(self._traces), None)
        return here if here or self._below is None else self._below.latest()

    def beginning(self, text: str, limit: int) -> list[str]:
        """Up to `limit` ids of traces that begin with some digits."""
        with self._lock:
            here = [trace_id for trace_id in reversed(self._traces) if trace_id.startswith(text)]
        below = [] if self._below is None else self._below.beginning(text, limit)
        return list(dict.fromkeys((*here, *below)))[:limit]

    def origin(self, *, digest: str = "", trace_id: str = "") -> Origin | None:
        """What led to a trace: the request of this digest, or the last one of this trace; None where none is kept."""
        with self._lock:
            for origin in reversed(self._origins.values()):
                if origin.digest == digest if digest else origin.trace == trace_id:
                    return origin
        return None if self._below is None else self._below.origin(digest=digest, trace_id=trace_id)

    def trace(self, trace_id: str) -> TraceInfo:
        """Where a trace came from."""
        below = self._elsewhere(trace_id)
        return self.data(trace_id).info if below is None else below.trace(trace_id)

    def graph(self, trace_id: str) -> Graph:
        """A trace's labelled graph."""
        below = self._elsewhere(trace_id)
        return self.data(trace_id).graph if below is None else below.graph(trace_id)

    def snapshots(self, trace_id: str) -> tuple[Snapshot, ...]:
        """A trace's snapshots."""
        below = self._elsewhere(trace_id)
        return self.data(trace_id).snapshots if below is None else below.snapshots(trace_id)

    def formulas(self, trace_id: str) -> Formulas | None:
        """The formulas of a trace's sizes; None where none are kept."""
        below = self._elsewhere(trace_id)
        return self.data(trace_id).formulas if below is None else below.formulas(trace_id)

    def traces(self, limit: int, before: int | None = None) -> list[tuple[int, TraceInfo]]:
        """Up to `limit` traces that are here, newest first, each with its place in the order."""
        with self._lock:
            numbered = list(enumerate((data.info for data in self._traces.values()), start=1))
        return [(number, info) for number, info in reversed(numbered) if before is None or number < before][:limit]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that are here."""
        return sum(data.info.tensor_bytes for data in self._traces.values() if data.info.values)

    def open(self, trace_id: str) -> MemoryFile | TraceFile:
        """A trace's tensors, to be read piece by piece."""
        below = self._elsewhere(trace_id)
        return MemoryFile(self.data(trace_id).tensors) if below is None else below.open(trace_id)

    def _elsewhere(self, trace_id: str) -> Store | None:
        """The store below, where the trace is not here; None where it is, or where nothing is below."""
        return self._below if check_trace_id(trace_id) not in self._traces else None


class MemoryFile:
    """What `TraceFile` is to a stored trace: its tensors by name."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._tensors = tensors

    def tensor(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> MemoryTensor:
        """One tensor; its element type and shape are known already."""
        return MemoryTensor(self._tensors[name].view(dtype).reshape(shape))

    def close(self) -> None:
        """Does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class MemoryTensor:
    """What `StoredTensor` is to a stored trace: a tensor, or a part of one."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.dtype, self.shape, self.nbytes = array.dtype, array.shape, array.nbytes
        self._array = array

    def part(self, expression: str) -> MemoryTensor:
        """The part that a slice means. Raises SliceInvalid."""
        return MemoryTensor(select(self._array, expression))

    def array(self) -> NDArray[Any]:
        """Its numbers, as an array of its own."""
        return self._array.copy(order="C")

    def chunks(self, chunk_bytes: int) -> Iterator[memoryview]:
        """Its bytes, row-major, at most `chunk_bytes` at a time (but a whole element)."""
        if not self.nbytes:
            return
        flat = np.ascontiguousarray(self._array).reshape(-1).view(np.uint8)
        size = max(1, chunk_bytes // self.dtype.itemsize) * self.dtype.itemsize
        yield from (flat[at : at + size].data for at in range(0, self.nbytes, size))

    def fill(self, chunk_bytes: int, room: Callable[[int], memoryview]) -> Iterator[int | None]:
        """Its chunks, each written into memory that is asked for; see `StoredTensor.fill`."""
        checksum = 0
        for chunk in self.chunks(chunk_bytes):
            room(chunk.nbytes)[:] = chunk
            yield (checksum := crc32(chunk, checksum))
