from __future__ import annotations

import zlib

import pytest

from fxtrace.frames import ChunkFrame, chunk_in, crc32
from fxtrace.v1.trace_service_pb2 import ReadTensorResponse, TensorHeader

# Around every size at which the length takes one more byte.
SIZES = [*range(4), *range(120, 135), *range(2**14 - 4, 2**14 + 4), 1 << 20, *range(2**21 - 6, 2**21 + 1)]


def framed(chunk: bytes) -> bytes:
    frame = ChunkFrame()
    frame.room(len(chunk))[:] = chunk
    return frame.message()


@pytest.mark.parametrize("size", SIZES)
def test_a_frame_is_what_protobuf_writes_and_reads(size: int) -> None:
    chunk = (b"fxtrace!" * (size // 8 + 1))[:size]
    frame = framed(chunk)
    assert frame == ReadTensorResponse(chunk=chunk).SerializeToString()
    parsed = chunk_in(frame)
    assert parsed is not None
    assert bytes(parsed) == chunk


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        ReadTensorResponse(header=TensorHeader(tensor="x")).SerializeToString(),
        ReadTensorResponse(crc32=7).SerializeToString(),
        ReadTensorResponse(chunk=b"abc").SerializeToString()[:-1],  # cut
        ReadTensorResponse(chunk=b"abc").SerializeToString() + b"\x20\x01",  # with a field of a newer server
        b"\x12\xff\xff\xff\xff\xff\xff\x01",
        b"\x12",
    ],
)
def test_anything_else_is_left_to_protobuf(frame: bytes) -> None:
    assert chunk_in(frame) is None


def test_one_frame_after_the_other_each_with_memory_of_its_own() -> None:
    frame = ChunkFrame()
    messages = []
    for chunk in (b"abc", b"", b"defg" * 100):
        frame.room(len(chunk))[:] = chunk
        messages.append(frame.message())
        assert frame.message() is messages[-1]  # not a copy
    assert messages == [framed(b"abc"), framed(b""), framed(b"defg" * 100)]


def test_the_checksum_is_zlib_s_and_goes_on() -> None:
    assert crc32(b"def", crc32(b"abc")) == zlib.crc32(b"abcdef")
