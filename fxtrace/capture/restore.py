"""Leaves a module as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def as_found(module: nn.Module) -> Iterator[Callable[[], None]]:
    """Within, the module may be run and traced; afterwards its attributes, mode, hooks and buffers are as they were.

    Yields a function that puts everything back at once, between two runs. Parameters are not copied: a forward that
    writes to its parameters in place is not undone.
    """
    attributes = {m: _shallow(m.__dict__) for m in module.modules()}
    training = {m: m.training for m in attributes}
    buffers = [(b.detach(), b.detach().clone()) for b in module.buffers() if not b.is_meta]

    def rewind() -> None:
        for m, saved in attributes.items():
            mode = m.training
            m.__dict__.clear()
            m.__dict__.update(_shallow(saved))
            m.training = mode
        for buffer, value in buffers:
            if not torch.equal(buffer, value):  # version counters miss what native kernels write (batch norm)
                buffer.copy_(value)

    try:
        yield rewind
    finally:
        rewind()
        for m, mode in training.items():
            m.training = mode


# The tables of a module that torch changes in place when an attribute is set.
_TABLES = ("_parameters", "_buffers", "_modules")


def _shallow(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: dict(value) if name in _TABLES else value for name, value in attributes.items()}
