"""A tensor of a server's, read as it arrives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fxtrace import wire
from fxtrace.errors import OptionInvalid, StoreDamaged
from fxtrace.frames import DEFAULT_CHUNK_BYTES, chunk_in, crc32
from fxtrace.graph import TensorSpec, show_shape
from fxtrace.v1 import trace_service_pb2 as rpc

if TYPE_CHECKING:
    from grpc import _CallIterator


class RemoteTensor:
    """A tensor, or a part of one, that is read piece by piece as it arrives. Made by `Client.open_tensor`.

    Attributes:
        tensor: the tensor's own name, also where it was asked for by its role.
        spec: of the whole tensor.
        shape: of the part.
        nbytes: of the part.
    """

    def __init__(self, call: _CallIterator[bytes], errors: Callable[[], AbstractContextManager[None]]) -> None:
        self._call = call
        self._errors = errors
        with errors():
            header = rpc.ReadTensorResponse.FromString(next(call, b"")).header
        self.tensor: str = header.tensor
        self.spec: TensorSpec = wire.SPEC.decode(header.spec)
        self.shape: tuple[int, ...] = tuple(header.shape)
        self.nbytes: int = header.nbytes

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.tensor}: {self.spec.dtype} {show_shape(self.shape)}>"

    def chunks(self, chunk_bytes: int = DEFAULT_CHUNK_BYTES) -> Iterator[memoryview]:
        """The part's bytes, little-endian and row-major, at most `chunk_bytes` at a time. They are read once.

        Raises:
            StoreDamaged: the bytes are not those that were sent; only known at the end.
            OptionInvalid: `chunk_bytes` is not positive.
        """
        if chunk_bytes < 1:
            raise OptionInvalid(f"chunk_bytes: expected at least 1; got {chunk_bytes}", field="chunk_bytes")
        received = checksum = 0
        expected: int | None = None
        with self._errors():
            for frame in self._call:
                chunk = chunk_in(frame)
                if chunk is None:
                    expected = rpc.ReadTensorResponse.FromString(frame).crc32
                    continue
                received += len(chunk)
                if received > self.nbytes:
                    break
                checksum = crc32(chunk, checksum)
                yield from (chunk[start : start + chunk_bytes] for start in range(0, len(chunk), chunk_bytes))
        if (received, checksum) != (self.nbytes, expected):
            raise StoreDamaged(
                f"tensor '{self.tensor}' arrived damaged: expected {self.nbytes} bytes with checksum {expected}, "
                f"got {received} with {checksum}; read it again",
                tensor=self.tensor,
            )

    def close(self) -> None:
        """Stops reading."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
