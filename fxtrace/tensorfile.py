"""Tensors in a safetensors file, read through a memory map so that nothing is copied. No torch here."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxtrace.dtypes import DTYPES, dtype_name

SAFETENSORS_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}
"""PyTorch's names of the element types that safetensors has, by its own names."""


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file and waits until it is on the disk.

    Element types that safetensors lacks are kept as raw bytes (`U8`, one dimension); `TensorFile.array` reads them.

    Raises:
        OSError: the file cannot be written.
    """
    storable = set(SAFETENSORS_DTYPES.values())
    arrays = {
        name: array if dtype_name(array.dtype) in storable else array.reshape(-1).view(np.uint8)
        for name, array in ((name, np.asarray(tensor, order="C")) for name, tensor in tensors.items())
    }
    import safetensors.numpy  # to read takes none of it

    try:
        safetensors.numpy.save_file(arrays, path, dict(metadata))
    except safetensors.SafetensorError as error:  # its word for an OSError
        raise OSError(str(error)) from error
    with path.open("rb") as file:
        os.fsync(file.fileno())


@dataclass(frozen=True, slots=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class TensorFile:
    """A safetensors file, mapped. Its arrays are read-only and keep the map alive, so there is nothing to close.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is not a whole safetensors file; the message says how.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise ValueError(f"expected a safetensors header, the file has {size} bytes")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(self._map[:8], "little")
        if start > size:
            raise ValueError(f"expected a header of {start - 8} bytes, the file has {size}")
        try:
            header = json.loads(self._map[8:start])
            self.metadata: Mapping[str, str] = header.pop("__metadata__", {})
            self._entries = {name: _entry(start, **entry) for name, entry in header.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"expected a safetensors header: {error}") from error
        end = max((entry.offset + entry.nbytes for entry in self._entries.values()), default=start)
        if end != size:
            raise ValueError(f"expected {end} bytes, the file has {size}")

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names."""
        return tuple(self._entries)

    def read(self, name: str) -> NDArray[Any]:
        """A tensor as the file declares it.

        Raises:
            KeyError: no such tensor.
            ValueError: its element type has no NumPy type, or its bytes do not make up its shape.
        """
        entry = self._entries[name]
        if entry.dtype not in SAFETENSORS_DTYPES:
            raise ValueError(f"tensor '{name}' has the element type {entry.dtype}, which NumPy has not")
        return self.array(name, DTYPES[SAFETENSORS_DTYPES[entry.dtype]], entry.shape)

    def array(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> NDArray[Any]:
        """A tensor's bytes as an array of this type and shape.

        Raises:
            KeyError: no such tensor.
            ValueError: its bytes do not make up this shape.
        """
        entry = self._entries[name]
        if math.prod(shape) * dtype.itemsize != entry.nbytes:
            raise ValueError(f"tensor '{name}' has {entry.nbytes} bytes, which are not a {dtype} of shape {shape}")
        return np.ndarray(shape, dtype, buffer=self._map, offset=entry.offset)


def _entry(start: int, *, dtype: str, shape: list[int], data_offsets: list[int]) -> _Entry:
    begin, end = data_offsets
    if not 0 <= begin <= end:
        raise ValueError(f"offsets {begin} to {end}")
    return _Entry(str(dtype), tuple(map(int, shape)), start + begin, end - begin)
