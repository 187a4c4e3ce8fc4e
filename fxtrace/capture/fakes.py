"""Runs on fake tensors, and modules whose weights are absent: on the meta device, or fake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fxtrace.capture.quiet import unlogged
from fxtrace.capture.run import map_tensors
from fxtrace.shapes import tensors


class Fakes(FakeTensorMode):  # type: ignore[no-untyped-call]
    """The mode of a run without compute. Tensors that are not fake are taken for ones that are.

    PyTorch's rule for the shape of a grouped product is its CUDA kernel's, which takes nothing but bfloat16; here it is
    the CPU kernel's.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._unlogged: list[AbstractContextManager[None]] = []

    def __enter__(self) -> Self:
        """Starts it. PyTorch does so, too, for each op on its tensors elsewhere."""
        self._unlogged.append(unlogged())
        self._unlogged[-1].__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Ends it."""
        super().__exit__(*error)
        self._unlogged.pop().__exit__(None, None, None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] = MappingProxyType({})
    ) -> Any:
        """Runs one op. PyTorch calls this."""
        if func is torch.ops.aten._grouped_mm.default and args[0].dtype != torch.bfloat16:
            with self:
                return _grouped_mm(*args, **kwargs)
        return super().__torch_dispatch__(func, types, args, kwargs)


def _grouped_mm(a: Tensor, b: Tensor, offs: Tensor | None = None, *_: object, **__: object) -> Tensor:
    """A tensor of the shape and strides of a grouped product; it refuses what the CPU kernel refuses of the factors."""
    if a.shape[-1] != b.shape[-2]:
        raise RuntimeError("contraction dimension of mat_a and mat_b must match")
    if any(max(each.stride()[-2:]) * each.element_size() % _ALIGNMENT for each in (a, b)):
        raise RuntimeError(f"strides should be multiple of {_ALIGNMENT} bytes")
    rows, columns, aligned = a.shape[-2], b.shape[-1], _ALIGNMENT // a.element_size()
    padded = -(-columns // aligned) * aligned
    if a.dim() != b.dim() or (offs is None and a.dim() == 2):
        return a.new_empty_strided((rows, columns), (padded, 1))
    groups = a.shape[0] if offs is None else offs.shape[0]
    return a.new_empty_strided((groups, rows, columns), (rows * padded, padded, 1))


_ALIGNMENT = 16
"""Bytes of which the strides of a grouped product's factors are multiples."""


def without_weights(module: nn.Module) -> bool:
    """Whether a module has parameters or buffers that have shapes and no numbers."""
    tables = (table for each in module.modules() for table in (each._parameters, each._buffers))
    held = (tensor for table in tables for tensor in table.values() if tensor is not None)
    return any(tensor.is_meta or isinstance(tensor, FakeTensor) for tensor in held)


def with_fakes(module: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Puts fake tensors on the CPU in the place of a module's meta tensors, and returns the inputs as fake ones too.

    A tensor that is shared stays shared. Where nothing is on the meta device or fake already, nothing changes.
    """
    everything = (*module.parameters(), *module.buffers(), *(tensor for _, tensor in tensors(inputs)))
    modes = [tensor.fake_mode for tensor in everything if isinstance(tensor, FakeTensor)]
    if not modes and not any(tensor.is_meta for tensor in everything):
        return dict(inputs)
    mode = modes[0] if modes else Fakes()
    made: dict[int, Tensor] = {}
    for each in module.modules():
        tables: tuple[dict[str, Any], ...] = (each._parameters, each._buffers, vars(each))
        for table in tables:
            for name, tensor in table.items():
                if isinstance(tensor, Tensor) and tensor.is_meta:
                    if id(tensor) not in made:
                        made[id(tensor)] = _fake(tensor, mode)
                    table[name] = made[id(tensor)]
    return {name: map_tensors(lambda tensor: _fake(tensor, mode), value) for name, value in inputs.items()}


def _fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    if isinstance(tensor, FakeTensor) and tensor.fake_mode is mode:
        return tensor
    if not (tensor.is_meta or isinstance(tensor, FakeTensor)):
        return mode.from_tensor(tensor)
    with mode:
        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(fake, requires_grad=tensor.requires_grad) if is_parameter else fake
