"""Reading a stored tensor piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fxtrace.dtypes import numpy_dtype
from fxtrace.errors import OptionInvalid
from fxtrace.frames import DEFAULT_CHUNK_BYTES
from fxtrace.graph import TensorSpec, show_shape
from fxtrace.store import StoredTensor, TraceFile
from fxtrace.store.memory import MemoryFile, MemoryTensor


class TensorReader:
    """A stored tensor, or a part of one, to be read piece by piece without holding it whole.

    Attributes:
        tensor: the tensor's own name.
        spec: of the whole tensor.
        shape: of the part.
        nbytes: of the part.
    """

    def __init__(
        self, tensor: str, spec: TensorSpec, part: StoredTensor | MemoryTensor, file: TraceFile | MemoryFile
    ) -> None:
        self.tensor = tensor
        self.spec = spec
        self.shape = part.shape
        self.nbytes = part.nbytes
        self._part, self._file = part, file

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.tensor}: {self.spec.dtype} {show_shape(self.shape)}>"

    def chunks(self, chunk_bytes: int = DEFAULT_CHUNK_BYTES) -> Iterator[memoryview]:
        """The part's bytes, little-endian and row-major, at most `chunk_bytes` at a time (but a whole element).

        Raises:
            OptionInvalid: `chunk_bytes` is not positive.
            StoreDamaged: they are not as they were written.
        """
        if chunk_bytes < 1:
            raise OptionInvalid(
                f"expected chunks of at least 1 byte, got {chunk_bytes}", field="chunk_bytes", chunk_bytes=chunk_bytes
            )
        yield from self._part.chunks(chunk_bytes)

    def fill(self, chunk_bytes: int, room: Callable[[int], memoryview]) -> Iterator[int | None]:
        """See `StoredTensor.fill`. Raises StoreDamaged."""
        return self._part.fill(chunk_bytes, room)

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file; chunks that were read stay readable."""
        self._file.close()


def stored_part(
    file: TraceFile | MemoryFile, name: str, spec: TensorSpec, expression: str
) -> StoredTensor | MemoryTensor:
    """The part of a trace's tensor that a slice means; nothing is read yet.

    Raises:
        SliceInvalid
    """
    return file.tensor(name, numpy_dtype(spec.dtype), spec.shape).part(expression)
