"""What a model is traced with: its own example inputs, those of the request, or numbers drawn for a shape."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxtrace.dtypes import numpy_dtype
from fxtrace.errors import InputError, TooLarge, unknown
from fxtrace.extras import needed_for
from fxtrace.graph import show_shape
from fxtrace.ir.trace import Fill, TensorData, TraceRequest
from fxtrace.shapes import tensor_spec

with needed_for("capturing models"):
    import torch
    from torch import Tensor

MAX_DRAWN_BYTES = 1 << 30
"""The largest input that is drawn for a shape: a slip of a zero must not fill the memory."""


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor to call the model with, and where it came from."""

    tensor: Tensor
    fill: Fill


def make_inputs(examples: Mapping[str, Tensor], request: TraceRequest) -> dict[str, Input]:
    """The examples, those the request overrides put in their place.

    A shape is filled from a random state of its own, seeded by the request: floats from a standard normal, truth
    values fair, integers from among the example's own numbers (so that ids stay inside the vocabulary).

    Raises:
        InputError: an override names no input, or its dtype, shape or bytes do not fit.
        TooLarge: a shape asks for more than `MAX_DRAWN_BYTES`.
    """
    for name in (*request.inputs, *request.input_shapes):
        if name not in examples:
            raise InputError(unknown("input", name, examples), field=f"inputs.{name}", input=name)
        if name in request.inputs and name in request.input_shapes:
            raise _invalid(name, "expected numbers or a shape, got both")
    generator = torch.Generator().manual_seed(request.seed)
    inputs = {}
    for name, example in examples.items():
        if name in request.inputs:
            inputs[name] = Input(_given(name, request.inputs[name], example), "given")
        elif name in request.input_shapes:
            inputs[name] = Input(_drawn(name, request.input_shapes[name], example, generator), "random")
        else:
            inputs[name] = Input(example, "example")
    return inputs


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """A contiguous tensor's numbers as an array, over the same memory where the tensor is on the CPU."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    dtype = numpy_dtype(tensor_spec(tensor).dtype)
    data: NDArray[Any] = plain.reshape(-1).view(torch.uint8).numpy()  # NumPy has no bfloat16 of its own
    return data.view(dtype).reshape(tensor.shape)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and PyTorch's random states set from a seed, and put back as they were found."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _given(name: str, given: TensorData, example: Tensor) -> Tensor:
    spec = tensor_spec(example)
    _check_shape(name, given.shape)
    if given.dtype != spec.dtype:
        raise _invalid(name, f"expected dtype {spec.dtype}, got {given.dtype}", expected=spec.dtype, got=given.dtype)
    expected = math.prod(given.shape) * example.element_size()
    if len(given.data) != expected:
        raise _invalid(
            name,
            f"expected {expected} bytes for {spec.dtype} of shape {show_shape(given.shape)}, got {len(given.data)}",
            expected=expected,
            got=len(given.data),
        )
    raw = torch.from_numpy(np.frombuffer(bytearray(given.data), np.uint8))
    return raw.view(example.dtype).reshape(given.shape).to(example.device)


def _drawn(name: str, shape: tuple[int, ...], example: Tensor, generator: torch.Generator) -> Tensor:
    _check_shape(name, shape)
    nbytes = math.prod(shape) * example.element_size()
    if nbytes > MAX_DRAWN_BYTES:
        raise TooLarge(
            f"input '{name}': shape {show_shape(shape)} takes {nbytes} bytes, at most {MAX_DRAWN_BYTES} are drawn",
            field=f"inputs.{name}",
            input=name,
            nbytes=nbytes,
        )
    if example.is_floating_point() or example.is_complex():
        kind = torch.complex64 if example.is_complex() else torch.float32
        return torch.randn(shape, dtype=kind, generator=generator).to(example)
    if example.dtype == torch.bool:
        return torch.randint(2, shape, generator=generator).to(example)
    if not example.numel():
        raise _invalid(name, "the example input has no numbers to draw from; give the numbers themselves")
    chosen = torch.randint(example.numel(), shape, generator=generator)
    return example.reshape(-1)[chosen.to(example.device)]


def _check_shape(name: str, shape: tuple[int, ...]) -> None:
    if any(size < 0 for size in shape):
        raise _invalid(name, f"expected sizes of 0 or more, got {', '.join(map(str, shape))}")


def _invalid(name: str, problem: str, **metadata: object) -> InputError:
    return InputError(f"input '{name}': {problem}", field=f"inputs.{name}", input=name, **metadata)
