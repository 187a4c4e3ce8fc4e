from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fxtrace.slices import select
from fxtrace.store import tracefile
from fxtrace.store.blobs import Folder, Source
from fxtrace.store.tracefile import Encoded, Head, TraceFile

ID = "0" * 32


def never() -> tuple[Source, Head]:
    raise AssertionError("it was there")


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    """Blocks of 16 bytes, reads of 64: so small tensors have many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracefile, "BLOCK_BYTES", 16)
        patch.setattr(tracefile, "_READ_BYTES", 64)
        patch.setattr(tracefile, "_GATHER_BYTES", 32)
        yield


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("files"))


def written(blobs: Folder, tensors: dict[str, NDArray[Any]]) -> TraceFile:
    encoded = Encoded(ID, {"fxtrace:graph": b"graph" * 9}, tensors)
    blobs.write("a", encoded.parts())
    source = blobs.open("a")
    assert source.nbytes == encoded.nbytes
    return TraceFile(source, Head(source), nullcontext, never)


SHAPE = (3, 5, 7)
INDEX = st.one_of(
    st.just("..."),
    st.integers(-3, 2).map(str),
    st.tuples(*[st.none() | st.integers(-8, 8)] * 2, st.sampled_from(["", ":1", ":2", ":-1", ":-3"])).map(
        lambda parts: f"{'' if parts[0] is None else parts[0]}:{'' if parts[1] is None else parts[1]}{parts[2]}"
    ),
)
EXPRESSIONS = (
    st.lists(INDEX, max_size=3).filter(lambda parts: parts.count("...") < 2).map(lambda parts: ",".join(parts))
)


@given(EXPRESSIONS, st.sampled_from([np.uint8, np.float16, np.float64]), st.integers(1, 200))
def test_a_part_is_what_numpy_says(blobs: Folder, expression: str, dtype: Any, chunk_bytes: int) -> None:
    array = np.random.default_rng(0).integers(0, 100, SHAPE).astype(dtype)
    expected = select(array, expression)
    with written(blobs, {"first": np.ones(3, np.uint8), "x": array}) as file:
        part = file.tensor("x", array.dtype, SHAPE).part(expression)
        assert (part.shape, part.nbytes) == (expected.shape, expected.nbytes)
        assert part.array().tobytes() == expected.tobytes()
        chunks = list(part.chunks(chunk_bytes))
        assert b"".join(chunks) == expected.tobytes()
        sizes = [chunk.nbytes for chunk in chunks]
        assert all(0 < size <= max(chunk_bytes, array.itemsize) for size in sizes)
        assert len(set(sizes[:-1])) <= 1


@given(EXPRESSIONS, st.sampled_from([1, 8, 16, 48, 96]), st.lists(st.sampled_from([0, 5, 16, 1000])))
def test_a_part_fills_memory_and_is_not_waited_for_unannounced(
    expression: str, chunk_bytes: int, at_hand: list[int]
) -> None:
    array = np.random.default_rng(0).random(SHAPE)
    source = Held(b"".join(Encoded(ID, {}, {"x": array}).parts()), at_hand)
    part = TraceFile(source, Head(source), nullcontext, never).tensor("x", array.dtype, SHAPE).part(expression)
    rooms: list[bytearray] = []

    def room(nbytes: int) -> memoryview:
        rooms.append(bytearray(nbytes))
        return memoryview(rooms[-1])

    waited, before = False, source.waited
    for checksum in part.fill(chunk_bytes, room):
        assert waited or source.waited == before
        waited, before = checksum is None, source.waited
        if checksum is not None:
            assert checksum == zlib.crc32(b"".join(rooms))
    assert b"".join(rooms) == select(array, expression).tobytes()
    assert [len(each) for each in rooms] == [chunk.nbytes for chunk in part.chunks(chunk_bytes)]


def test_damage_in_memory_is_told_by_the_step_that_may_wait() -> None:
    data = bytearray(b"".join(Encoded(ID, {}, {"x": np.arange(64, dtype=np.uint8)}).parts()))
    source = Held(data)
    file = TraceFile(source, Head(source), nullcontext, never)
    data[-30] ^= 1  # the last 24 bytes are the checksums
    tensor = file.tensor("x", np.dtype(np.uint8), (64,))
    filled = tensor.fill(16, lambda nbytes: memoryview(bytearray(nbytes)))
    assert [next(filled) is None for _ in range(4)] == [False, False, False, True]
    with pytest.raises(ValueError, match="bytes 48 to 64 of 'x' are not as they were written"):
        next(filled)


def test_a_part_reads_only_its_blocks(blobs: Folder) -> None:
    array = np.arange(4096, dtype=np.uint8).reshape(64, 64)
    encoded = Encoded(ID, {}, {"x": array})
    parts = [bytearray(part) for part in encoded.parts()]
    parts[1][100] ^= 1  # in row 1, byte 36: its third block
    blobs.write("a", map(memoryview, parts))
    source = blobs.open("a")
    with TraceFile(source, Head(source), nullcontext, never) as file:
        tensor = file.tensor("x", array.dtype, array.shape)
        assert tensor.part("1,:32").array().tobytes() == array[1, :32].tobytes()
        assert tensor.part("2:").array().tobytes() == array[2:].tobytes()
        for expression in ("", "1", "1,32", "1,47", ":,36", "::-1"):
            with pytest.raises(ValueError, match="bytes 96 to 112 of 'x' are not as they were written"):
                tensor.part(expression).array()


def test_wide_elements_come_first_and_start_at_their_multiples(blobs: Folder) -> None:
    tensors = {name: np.ones(3, dtype) for name, dtype in (("b", np.uint8), ("d", np.float64), ("h", np.float16))}
    with written(blobs, tensors) as file:
        entries = file._head.entries
        assert list(entries) == ["d", "h", "b", "fxtrace:graph"]
        assert all(entries[name].offset % array.itemsize == 0 for name, array in tensors.items())
        assert file.section("fxtrace:graph") == b"graph" * 9


class Held:
    """A file, of which so many bytes are at hand in each call that does not wait."""

    def __init__(self, data: bytes | bytearray, at_hand: Iterable[int] = ()) -> None:
        self._data, self.nbytes = data, len(data)
        self._at_hand = iter(at_hand)
        self.waited = 0  # how often it was read as if it had to be waited for

    def readinto(self, start: int, room: memoryview, *, wait: bool = True) -> int:
        assert start >= 0
        self.waited += wait
        nbytes = room.nbytes if wait else min(room.nbytes, next(self._at_hand, room.nbytes))
        data = self._data[start : start + nbytes]
        room[: len(data)] = data
        return len(data)

    def close(self) -> None:
        pass


def verified(data: bytes | bytearray) -> list[int]:
    source = Held(data)
    return list(TraceFile(source, Head(source), nullcontext, never).verify())


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 64, 65, 1000])
def test_every_flipped_bit_and_every_cut_is_found(size: int) -> None:
    tensors: dict[str, NDArray[Any]] = {"x": np.arange(size, dtype=np.uint8), "y": np.arange(3, dtype=np.int64)}
    data = b"".join(Encoded(ID, {"fxtrace:graph": b"graph"}, tensors).parts())
    steps = verified(data)
    assert max(steps) <= 64
    assert sum(steps) == size + 24 + 5
    for at in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            with pytest.raises(ValueError, match=r"written|expected"):
                verified(damaged)
        with pytest.raises(ValueError, match="expected"):
            verified(data[:at])
