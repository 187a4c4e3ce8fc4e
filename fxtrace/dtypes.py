"""Element types: PyTorch's names, and the NumPy types that read the same bytes. No torch here.

The names are PyTorch's without the prefix (`float32`, `bfloat16`, `float8_e4m3fn`). NumPy's own types and those of
`ml_dtypes` go by the same names; two of PyTorch's have no such type and are read as what their bytes are.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from fxtrace.errors import InputError, unknown

_NUMPY = (
    "bool",
    *("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
_ML_DTYPES = (
    "bfloat16",
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)

DTYPES: dict[str, np.dtype] = {
    **{name: np.dtype(name) for name in _NUMPY},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in _ML_DTYPES},
    "complex32": np.dtype([("real", np.float16), ("imag", np.float16)]),
    "float4_e2m1fn_x2": np.dtype("V1"),
}
"""The NumPy type of each PyTorch element type, by PyTorch's name."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def numpy_dtype(name: str) -> np.dtype:
    """The NumPy type of PyTorch's element type of that name.

    Raises:
        InputError: there is no such element type; the nearest is suggested.
    """
    try:
        return DTYPES[name]
    except KeyError:
        raise InputError(unknown("dtype", name, DTYPES, limit=len(DTYPES)), dtype=name) from None


def dtype_name(dtype: np.dtype) -> str:
    """PyTorch's name of a NumPy type, whatever its byte order.

    Raises:
        InputError: PyTorch has no such element type.
    """
    try:
        return _NAMES[dtype.newbyteorder("=")]
    except KeyError:
        raise InputError(unknown("dtype", str(dtype), DTYPES, limit=len(DTYPES)), dtype=dtype) from None
