"""The chunk messages of ReadTensor, by hand: a tensor's bytes are read into them, and looked at where they arrived.

To every other language, and in the protocol, a chunk is an ordinary `ReadTensorResponse`. Built by protobuf it would be
copied twice more on the way. Its wire form is short enough to write here: the field's tag, the length, the bytes.
"""

from __future__ import annotations

from io import BytesIO

from zlib_ng.zlib_ng import crc32

from fxtrace.v1.trace_service_pb2 import ReadTensorResponse

__all__ = ["DEFAULT_CHUNK_BYTES", "MAX_CHUNK_BYTES", "MIN_CHUNK_BYTES", "ChunkFrame", "chunk_in", "crc32"]

MIN_CHUNK_BYTES = 4 << 10
MAX_CHUNK_BYTES = 2 << 20
DEFAULT_CHUNK_BYTES = 1 << 20

_LENGTH_DELIMITED = 2
_TAG = ReadTensorResponse.CHUNK_FIELD_NUMBER << 3 | _LENGTH_DELIMITED


class ChunkFrame:
    """Serialised `ReadTensorResponse(chunk=...)`s, one after the other, each made around its chunk.

    Ask for `room`, write the chunk there, take the `message`.
    """

    def __init__(self) -> None:
        self._buffer, self._room = BytesIO(), memoryview(b"")

    def room(self, nbytes: int) -> memoryview:
        """Zeros, to write the chunk into; not usable after `message`."""
        prefix = _prefix(nbytes)
        self._buffer = BytesIO(bytes(len(prefix) + nbytes))
        memory = self._buffer.getbuffer()
        memory[: len(prefix)] = prefix
        self._room = memory[len(prefix) :]
        return self._room

    def message(self) -> bytes:
        """The message, in the memory that was written to."""
        self._room.release()  # with a view of it, it would be copied
        return self._buffer.getvalue()


def chunk_in(frame: bytes) -> memoryview | None:
    """The chunk in a serialised ReadTensorResponse, where it is nothing but a chunk; it is not copied."""
    if frame[:1] != bytes((_TAG,)):
        return None
    length = 0
    for at, byte in enumerate(frame[1:6]):
        length |= (byte & 0x7F) << 7 * at
        if byte < 0x80:
            chunk = memoryview(frame)[at + 2 :]
            return chunk if chunk.nbytes == length else None
    return None


def _prefix(length: int) -> bytes:
    prefix = bytearray((_TAG,))
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix)
