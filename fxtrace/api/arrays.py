"""Numbers as PyTorch's tensors or NumPy's arrays, over the same memory."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from fxtrace.errors import OptionInvalid
from fxtrace.extras import is_installed, require


def wants_torch(arrays: Literal["auto", "numpy", "torch"]) -> bool:
    """Whether tensors are to come back as PyTorch's: if they are asked for, or (`auto`) where it is installed.

    Raises:
        OptionInvalid: it is none of the three.
        DependencyMissing: `torch`, and PyTorch is not installed.
    """
    if arrays not in ("auto", "numpy", "torch"):
        raise OptionInvalid(f"arrays: expected auto, numpy or torch; got '{arrays}'", field="arrays")
    if arrays == "torch":
        require("torch", "arrays='torch'")
    return arrays != "numpy" and is_installed("torch")


def as_chosen(array: Any, dtype: str, arrays: Literal["auto", "numpy", "torch"]) -> Any:
    """An array as it is wanted; `dtype` is PyTorch's name of its element type. A torch tensor stays one."""
    if not (isinstance(array, np.ndarray) and wants_torch(arrays)):
        return array
    return torch_tensor(np.ascontiguousarray(array).reshape(-1).view(np.uint8), dtype, array.shape)


def torch_tensor(data: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    """A PyTorch tensor over bytes, which are an array of `uint8`."""
    import torch

    kind: torch.dtype = getattr(torch, dtype)
    if not data.size:  # PyTorch refuses to view no bytes as another type
        return torch.empty(shape, dtype=kind)
    return torch.from_numpy(data if data.flags.writeable else data.copy()).view(kind).reshape(shape)
