"""Whether two runs gave the same."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fxtrace.shapes import leaves


def bit_equal(a: object, b: object) -> bool:
    """Whether two nests of tensors have the same structure and the same numbers, NaN equal to NaN."""
    left, right = list(leaves(a)), list(leaves(b))
    return len(left) == len(right) and all(
        path == other_path and _same_leaf(x, y) for (path, x), (other_path, y) in zip(left, right, strict=True)
    )


def _same_leaf(x: object, y: object) -> bool:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return same_tensor(x, y)
    if not (isinstance(x, type(y)) or isinstance(y, type(x))):  # torch.fx keeps lists and dicts as classes of its own
        return False
    # Two runs make two objects; where a class does not say what makes them equal, their type must do.
    return type(x).__eq__ is object.__eq__ or bool(np.all(np.asarray(x == y)))


def same_tensor(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and numbers, NaN equal to NaN."""
    if x.dtype != y.dtype or x.shape != y.shape:
        return False
    if torch.equal(x, y):
        return True
    if not (x.is_floating_point() or x.is_complex()):
        return False
    nan = x.isnan()
    return torch.equal(nan, y.isnan()) and torch.equal(x[~nan], y[~nan])


def largest_difference(a: object, b: object) -> float:
    """The largest difference between two numbers at the same place of two nests of tensors; 0 where none is shared."""
    pairs = zip((x for _, x in leaves(a)), (y for _, y in leaves(b)), strict=False)
    differences = (
        float((x.double() - y.double()).abs().nan_to_num(0).max())  # in 8 bits there is no difference to be had
        for x, y in pairs
        if isinstance(x, Tensor)
        and isinstance(y, Tensor)
        and x.is_floating_point()
        and x.shape == y.shape
        and x.numel()
    )
    return max(differences, default=0.0)
