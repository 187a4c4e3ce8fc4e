"""Builds a model without its weights: shapes of any size, and no memory for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fxtrace.extras import needed_for

with needed_for("models without weights"):
    import torch
    from torch import Tensor, nn
    from torch.overrides import TorchFunctionMode


_OPEN = {torch.empty, torch.empty_strided, torch.rand, torch.randn}
_WRITTEN = {torch.zeros, torch.ones, torch.full, torch.eye}

_DRAWN = {Tensor.bernoulli_, Tensor.exponential_, Tensor.normal_, Tensor.random_, Tensor.uniform_}
"""Done on a meta tensor, some of these have PyTorch import its compiler, for seconds."""

_LARGEST = 16 << 20
"""Bytes of the largest mask or table that is made for real: one of 2048 × 2048 float32 numbers."""


class _Weightless(TorchFunctionMode):
    """Makes tensors that wait for their numbers on the meta device, where they have a shape and no memory.

    What is computed from numbers, such as the masks and tables in a module's buffers, is made as it is, unless it is
    large: what a mask hides says what kind of attention it is.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if function in _DRAWN or getattr(function, "__module__", "") == "torch.nn.init":
            drawn = next(iter((*args, *given.values())), None)
            if isinstance(drawn, Tensor) and drawn.is_meta:
                return drawn
        if function in _OPEN or function in _WRITTEN:
            made = function(*args, **{**given, "device": "meta"})
            if made.nbytes > _LARGEST if function in _WRITTEN else made.is_floating_point():
                return made
        return function(*args, **given)


def build_weightless(build: Callable[[], nn.Module]) -> nn.Module:
    """The module that `build` makes, its weights on the meta device.

    Small constants are real, so that what is computed from them is known; where a model mixes these with its weights
    while it is built, all of it is on the meta device.
    """
    try:
        with _Weightless():
            return build()
    except (RuntimeError, NotImplementedError):  # tensors on two devices, or numbers read where there are none
        with torch.device("meta"):
            return build()
