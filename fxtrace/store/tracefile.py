"""A trace's file: a safetensors file that has everything about the trace, and a checksum of every block of it.

The tensors come first, then as plain bytes what they belong to, under names that no tensor has: `fxtrace:trace`,
`fxtrace:graph` and `fxtrace:snapshots` are serialised v1 messages, and so is `fxtrace:formulas`, where formulas were
found. `fxtrace:checksums` is a row of little-endian 32-bit CRC-32s: of the header, of every 128 KiB block of every
entry in the order of the file, and of the row itself. What is read is read block by block and compared, so that a part
of a tensor costs little more than its bytes, and no byte is given that is not as it was written.

Blocks of 128 KiB: checking in 64 KiB costs 7 % more time, in 1 MiB nothing less; and they are what a single number
costs to read.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32, crc32_combine

from fxtrace.dtypes import dtype_name
from fxtrace.slices import parse_slice
from fxtrace.store.blobs import Source
from fxtrace.tensorfile import SAFETENSORS_DTYPES

TRACE, GRAPH, SNAPSHOTS, FORMULAS, CHECKSUMS = (
    f"fxtrace:{name}" for name in ("trace", "graph", "snapshots", "formulas", "checksums")
)

BLOCK_BYTES = 128 << 10
_READ_BYTES = 1 << 20  # at once, of elements that lie side by side
_GATHER_BYTES = 512 << 10  # at once, of scattered ones
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
_NAMES = {name: code for code, name in SAFETENSORS_DTYPES.items()}
T = TypeVar("T")


class Encoded:
    """A trace as a file to be written.

    Args:
        trace_id: the trace's.
        sections: the serialised messages, by their names in the file.
        tensors: the numbers of every tensor, by name. Element types that safetensors lacks are kept as bytes.

    Attributes:
        nbytes: of the whole file.
    """

    def __init__(self, trace_id: str, sections: Mapping[str, bytes], tensors: Mapping[str, NDArray[Any]]) -> None:
        # Wide elements first: so each starts at a multiple of its size, as in the files that safetensors writes.
        arrays = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
        self._arrays = dict(arrays) | {name: np.frombuffer(data, np.uint8) for name, data in sections.items()}
        blocks = sum(_block_count(array.nbytes) for array in self._arrays.values())
        checksums_nbytes = 4 * (1 + blocks + 1)
        entries: dict[str, Any] = {"__metadata__": {"trace": trace_id}}
        end = 0
        for name, array in self._arrays.items():
            begin, end = end, end + array.nbytes
            code = _NAMES.get(dtype_name(array.dtype))
            shape = array.shape if code else (array.nbytes,)
            entries[name] = {"dtype": code or "U8", "shape": shape, "data_offsets": (begin, end)}
        offsets = (end, end + checksums_nbytes)
        entries[CHECKSUMS] = {"dtype": "U8", "shape": (checksums_nbytes,), "data_offsets": offsets}
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        self._header = len(header).to_bytes(8, "little") + header
        self.nbytes = len(self._header) + offsets[1]

    def parts(self) -> Iterator[memoryview]:
        """The file's bytes."""
        checksums = [crc32(self._header)]
        yield memoryview(self._header)
        for array in self._arrays.values():
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            checksums += (crc32(data[start : start + BLOCK_BYTES]) for start in range(0, data.nbytes, BLOCK_BYTES))
            yield data
        row = np.array(checksums, "<u4").tobytes()
        yield memoryview(row + crc32(row).to_bytes(4, "little"))


@dataclass(frozen=True, slots=True)
class _Entry:
    offset: int
    nbytes: int
    checksums: tuple[int, ...]


class Head:
    """What a trace's file has, and where; itself compared with its checksum.

    Raises:
        ValueError: it is not what was written; the message says how.
        OSError
    """

    def __init__(self, source: Source) -> None:
        header = self._read_header(source)
        start = 8 + len(header)
        try:
            entries = json.loads(header)
            self.trace_id = str(entries.pop("__metadata__")["trace"])
            spans = {str(name): tuple(map(int, entry["data_offsets"])) for name, entry in entries.items()}
            begin, end = spans.pop(CHECKSUMS)
            if not 0 <= begin <= end:
                raise ValueError(f"checksums at {begin} to {end}")
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            raise ValueError(f"expected the header of a trace's file: {error!r}") from error
        if start + end != source.nbytes:
            raise ValueError(f"expected {start + end} bytes, the file has {source.nbytes}")
        row = _read(source, start + begin, memoryview(bytearray(end - begin)))
        checksums = np.frombuffer(row, "<u4") if len(row) % 4 == 0 else np.zeros(1, np.uint32)
        if crc32(row[:-4]) != checksums[-1]:
            raise ValueError("the checksums are not as they were written")
        if crc32(header, crc32(len(header).to_bytes(8, "little"))) != checksums[0]:
            raise ValueError("the header is not as it was written")
        self.nbytes = source.nbytes
        self.entries: dict[str, _Entry] = {}
        used = 1
        for name, (first, last) in spans.items():
            count = _block_count(last - first)
            self.entries[name] = _Entry(start + first, last - first, tuple(checksums[used : used + count].tolist()))
            used += count

    @staticmethod
    def _read_header(source: Source) -> bytes:
        if source.nbytes < 8:
            raise ValueError(f"expected the header of a trace's file, the file has {source.nbytes} bytes")
        nbytes = int.from_bytes(_read(source, 0, memoryview(bytearray(8))), "little")
        if nbytes > min(source.nbytes - 8, _MAX_HEADER_BYTES):
            raise ValueError(f"expected a header of {nbytes} bytes, the file has {source.nbytes}")
        return bytes(_read(source, 8, memoryview(bytearray(nbytes))))


class TraceFile:
    """A trace's file, open for reading; close it, or use it in a `with` statement. For one thread at a time.

    Args:
        source: the file.
        head: what it has.
        guard: turns what reading raises, ValueError where something is not as it was written and OSError, into the
            errors that callers get.
        moved: gives the file, and what it has, that took this one's place with more in it.
    """

    def __init__(
        self,
        source: Source,
        head: Head,
        guard: Callable[[], AbstractContextManager[None]],
        moved: Callable[[], tuple[Source, Head]],
    ) -> None:
        self._source, self._head, self._guard, self._moved = source, head, guard, moved
        self._room = _Room()

    def has(self, name: str) -> bool:
        """Whether there is a section of that name."""
        return name in self._head.entries

    def section(self, name: str) -> bytes:
        """The bytes of `TRACE`, `GRAPH`, `SNAPSHOTS` or `FORMULAS`."""
        return bytes(self.read(name, 0, self._entry(name).nbytes))

    def tensor(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> StoredTensor:
        """A tensor of this type and shape, to be read."""
        entry = self._entry(name)
        with self._guard():
            if math.prod(shape) * dtype.itemsize != entry.nbytes:
                raise ValueError(f"tensor '{name}' has {entry.nbytes} bytes, which are not a {dtype} of shape {shape}")
        return StoredTensor(self, name, dtype, shape)

    def verify(self) -> Iterator[int]:
        """Compares every byte; gives the number of those of each step."""
        for name, entry in self._head.entries.items():
            for start in range(0, entry.nbytes, _READ_BYTES):
                yield self.read(name, start, min(start + _READ_BYTES, entry.nbytes)).nbytes

    def read(self, name: str, start: int, stop: int) -> memoryview:
        """Bytes of an entry, after every block that they touch was compared; for a while, see `_Room`."""

        def read() -> memoryview:
            nbytes = self._head.entries[name].nbytes
            low, high = start // BLOCK_BYTES * BLOCK_BYTES, min(-(-stop // BLOCK_BYTES) * BLOCK_BYTES, nbytes)
            data = self._room.take(high - low)
            self._fill(name, low, data)
            return data[start - low : stop - low]

        return self._guarded(read)

    def are_blocks(self, name: str, start: int, stop: int, step: int) -> bool:
        """Whether every step from `start` to `stop` is one of an entry's whole blocks."""
        end = self._head.entries[name].nbytes
        return not (start % BLOCK_BYTES or step % BLOCK_BYTES or (stop % BLOCK_BYTES and stop != end))

    def fill(self, name: str, start: int, room: memoryview) -> int:
        """Fills the room with an entry's blocks from `start` on, after each was compared; gives their CRC-32."""
        return self._guarded(partial(self._fill, name, start, room))

    def fill_at_once(self, name: str, start: int, room: memoryview) -> int | None:
        """As `fill`, where all is in memory and as it was written; else gives None, and there is anything in the room.

        What is wrong `fill` tells: it is noted in the index, for which one may have to wait.
        """
        with suppress(ValueError, OSError):
            if self._source.readinto(self._head.entries[name].offset + start, room, wait=False) == room.nbytes:
                return self._compared(name, start, room)
        return None

    def close(self) -> None:
        """Lets go of the file."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _entry(self, name: str) -> _Entry:
        with self._guard():
            if name not in self._head.entries:
                raise ValueError(f"its tensor '{name}' is missing")
        return self._head.entries[name]

    def _guarded(self, read: Callable[[], T]) -> T:
        with self._guard():
            try:
                return read()
            except FileNotFoundError:  # an object store keeps nothing for those who read it
                self._source, self._head = self._moved()
                return read()

    def _fill(self, name: str, start: int, room: memoryview) -> int:
        _read(self._source, self._head.entries[name].offset + start, room)
        return self._compared(name, start, room)

    def _compared(self, name: str, start: int, data: memoryview) -> int:
        """The CRC-32 of an entry's blocks, which is that of the data."""
        entry, stop = self._head.entries[name], start + data.nbytes
        checksum = _combined(entry.checksums[start // BLOCK_BYTES : _block_count(stop)], data.nbytes)
        if crc32(data) != checksum:
            bad = next(at for at in range(start, stop, BLOCK_BYTES) if not _is_whole(entry, at, data[at - start :]))
            end = min(bad + BLOCK_BYTES, entry.nbytes)
            raise ValueError(f"bytes {bad} to {end} of '{name}' are not as they were written")
        return checksum


class StoredTensor:
    """A tensor of a trace's file, or a part of one, of which nothing is read yet.

    Attributes:
        dtype: of its elements.
        shape: of the part.
        nbytes: of the part.
    """

    def __init__(
        self,
        file: TraceFile,
        name: str,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None = None,
        start: int = 0,
    ) -> None:
        self.dtype, self.shape = dtype, shape
        self.nbytes = math.prod(shape) * dtype.itemsize
        self._file, self._name, self._start = file, name, start
        self._strides = _row_major(shape, dtype) if strides is None else strides

    def part(self, expression: str) -> StoredTensor:
        """The part that a slice means; see `fxtrace.slices`.

        Raises:
            SliceInvalid
        """
        shape, strides, start = [], [], self._start
        for index, size, stride in zip(parse_slice(expression, self.shape), self.shape, self._strides, strict=True):
            if isinstance(index, int):
                start += (index + size if index < 0 else index) * stride
            else:
                indices = range(size)[index]
                start += indices.start * stride if indices else 0
                shape.append(len(indices))
                strides.append(indices.step * stride)
        return StoredTensor(self._file, self._name, self.dtype, tuple(shape), tuple(strides), start)

    def array(self) -> NDArray[Any]:
        """Its numbers, as an array of its own."""
        array = np.empty(self.shape, self.dtype)
        if not self.nbytes:
            return array
        flat, at = array.reshape(-1).view(np.uint8).data, 0

        def room(nbytes: int) -> memoryview:
            nonlocal at
            at += nbytes
            return flat[at - nbytes : at]

        deque(self.fill(_READ_BYTES, room), maxlen=0)
        return array

    def chunks(self, chunk_bytes: int) -> Iterator[memoryview]:
        """Its bytes, little-endian and row-major, `chunk_bytes` at a time (but a whole element), the rest last."""
        if not self.nbytes:
            return
        if self._is_row_major():
            stop, span = self._start + self.nbytes, max(1, _READ_BYTES // chunk_bytes) * chunk_bytes
            for start in range(self._start, stop, span):
                data = self._file.read(self._name, start, min(start + span, stop))
                yield from (data[at : at + chunk_bytes] for at in range(0, data.nbytes, chunk_bytes))
            return
        size, held = max(1, chunk_bytes // self.dtype.itemsize) * self.dtype.itemsize, bytearray()
        for piece in self._gathered(self.shape, self._start):
            held += piece
            while len(held) >= size:
                yield memoryview(bytes(memoryview(held)[:size]))
                del held[:size]
        if held:
            yield memoryview(held)

    def fill(self, chunk_bytes: int, room: Callable[[int], memoryview]) -> Iterator[int | None]:
        """Its chunks, each written into memory that is asked for; gives the CRC-32 of all up to it, once it is there.

        Gives None before a chunk that may have to be waited for, so that the next step can be made where that may be.

        Args:
            chunk_bytes: as for `chunks`.
            room: gives memory for so many bytes.
        """
        checksum, stop = 0, self._start + self.nbytes
        if not (self._is_row_major() and self._file.are_blocks(self._name, self._start, stop, chunk_bytes)):
            yield None
            for chunk in self.chunks(chunk_bytes):
                room(chunk.nbytes)[:] = chunk
                yield (checksum := crc32(chunk, checksum))
                yield None
            return
        for start in range(self._start, stop, chunk_bytes):
            memory = room(min(chunk_bytes, stop - start))
            filled = self._file.fill_at_once(self._name, start, memory)
            if filled is None:
                yield None
                filled = self._file.fill(self._name, start, memory)
            yield (checksum := crc32_combine(checksum, filled, memory.nbytes))

    def _is_row_major(self) -> bool:
        row_major = _row_major(self.shape, self.dtype)
        return all(
            size == 1 or stride == expected
            for size, stride, expected in zip(self.shape, self._strides, row_major, strict=True)
        )

    def _gathered(self, shape: tuple[int, ...], start: int) -> Iterator[bytes]:
        """The bytes of scattered elements: halved along the first dimension until they lie within a few blocks."""
        reach = [(size - 1) * stride for size, stride in zip(shape, self._strides, strict=True)]
        low = start + sum(step for step in reach if step < 0)
        high = start + sum(step for step in reach if step > 0) + self.dtype.itemsize
        axis = next((axis for axis, size in enumerate(shape) if size > 1), None)
        if axis is None or high - low <= _GATHER_BYTES:
            yield np.ndarray(
                shape, self.dtype, self._file.read(self._name, low, high), start - low, self._strides
            ).tobytes()
            return
        half = shape[axis] // 2
        for size, first in ((half, 0), (shape[axis] - half, half)):
            yield from self._gathered((*shape[:axis], size, *shape[axis + 1 :]), start + first * self._strides[axis])


class _Room:
    """Memory to read into, used again once nobody looks at it: fresh memory costs more than the reading.

    There are two pieces, since a loop still holds what it got last while it asks for the next.
    """

    def __init__(self) -> None:
        self._pieces: deque[bytearray] = deque((bytearray(), bytearray()))

    def take(self, nbytes: int) -> memoryview:
        """This much memory, with anything in it."""
        self._pieces.rotate()
        piece = self._pieces[0]
        try:
            piece.append(0)  # refused while there is a view of it
            del piece[-1:]
        except BufferError:
            piece = bytearray()
        if len(piece) < nbytes:
            piece = bytearray(nbytes)
        self._pieces[0] = piece
        return memoryview(piece)[:nbytes]


def _read(source: Source, start: int, room: memoryview) -> memoryview:
    """The file's bytes from there, as many as there is room for."""
    nbytes = source.readinto(start, room)
    if nbytes != room.nbytes:
        raise ValueError(f"the file ends at byte {start + nbytes} of {source.nbytes}")
    return room


def _combined(checksums: Iterable[int], nbytes: int) -> int:
    """The checksum of blocks that follow one another, from theirs: one long check costs less than many short ones."""
    combined = 0
    for checksum in checksums:
        combined = crc32_combine(combined, checksum, min(BLOCK_BYTES, nbytes))
        nbytes -= BLOCK_BYTES
    return combined


def _is_whole(entry: _Entry, start: int, data: memoryview) -> bool:
    return crc32(data[:BLOCK_BYTES]) == entry.checksums[start // BLOCK_BYTES]


def _block_count(nbytes: int) -> int:
    return -(-nbytes // BLOCK_BYTES)


def _row_major(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) * dtype.itemsize for axis in range(len(shape)))
