"""Files of tensors: safetensors, .npz and .npy. They are written piece by piece, so that none has to fit in memory."""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING, Any, BinaryIO

from fxtrace.errors import OptionInvalid
from fxtrace.export.subject import Subject

if TYPE_CHECKING:
    from fxtrace.graph import TensorSpec


def write_safetensors(subject: Subject, file: BinaryIO) -> None:
    """Writes tensors by name.

    The metadata has the `trace` and the `model`. Of an element type that safetensors lacks, the bytes are kept (`U8`);
    the metadata's `raw` then is JSON with the `dtype` and `shape` of every such tensor.

    Raises:
        ValuesAbsent: the trace holds shapes only.
    """
    from fxtrace.dtypes import numpy_dtype
    from fxtrace.tensorfile import SAFETENSORS_DTYPES

    codes = {name: code for code, name in SAFETENSORS_DTYPES.items()}
    # Wide elements first: so each starts at a multiple of its size.
    tensors = dict(sorted(subject.tensors.items(), key=lambda item: -numpy_dtype(item[1].dtype).itemsize))
    raw = {name: spec for name, spec in tensors.items() if spec.dtype not in codes}
    told = {"trace": subject.info.id, "model": subject.info.model}
    if raw:
        told["raw"] = json.dumps({name: {"dtype": spec.dtype, "shape": spec.shape} for name, spec in raw.items()})
    header: dict[str, Any] = {"__metadata__": told}
    end = 0
    for name, spec in tensors.items():
        begin, end = end, end + spec.nbytes
        shape = (spec.nbytes,) if name in raw else spec.shape
        header[name] = {"dtype": codes.get(spec.dtype, "U8"), "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    _copy(subject, file, *tensors)


def write_npz(subject: Subject, file: BinaryIO) -> None:
    """Writes an archive of tensors by name, for `numpy.load`.

    Raises:
        OptionInvalid: a tensor has an element type that NumPy's files cannot hold.
        ValuesAbsent: the trace holds shapes only.
    """
    heads = {name: _npy_head(name, spec, ".npz") for name, spec in subject.tensors.items()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, head in heads.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # of a fixed date, so that equal tensors give equal files
            with archive.open(entry, "w", force_zip64=True) as part:
                part.write(head)
                _copy(subject, part, name)


def write_npy(subject: Subject, file: BinaryIO) -> None:
    """Writes one tensor, for `numpy.load`.

    Raises:
        OptionInvalid: it is not said which tensor, or it has an element type that NumPy's files cannot hold.
        ValuesAbsent: the trace holds shapes only.
    """
    name, spec = subject.the_tensor
    file.write(_npy_head(name, spec, ".npy"))
    _copy(subject, file, name)


def _copy(subject: Subject, file: Any, *tensors: str) -> None:
    for name in tensors:
        for chunk in subject.chunks(name):
            file.write(chunk)


def _npy_head(name: str, spec: TensorSpec, ending: str) -> bytes:
    """What stands before a tensor's bytes in NumPy's format."""
    import numpy as np

    from fxtrace.dtypes import numpy_dtype

    dtype = numpy_dtype(spec.dtype)
    if dtype.isbuiltin != 1:
        raise OptionInvalid(
            f"a {ending} file cannot hold {spec.dtype}, which tensor '{name}' has; write a .safetensors file",
            field="format",
            tensor=name,
        )
    head = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": spec.shape}
    np.lib.format.write_array_header_1_0(head, described)
    return head.getvalue()
