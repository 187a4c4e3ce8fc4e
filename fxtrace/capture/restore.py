"""Leaves a module, and the random states, as they were found."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor


@contextmanager
def as_found(module: nn.Module) -> Iterator[Callable[[], None]]:
    """Within, the module may be run and traced; afterwards its attributes, mode, hooks and buffers are as they were.

    So are the random states of PyTorch, NumPy and Python. Yields a function that puts everything back at once, between
    two runs; it leaves the mode alone. Parameters are not copied: a forward that writes to its parameters in place is
    not undone.
    """
    modules = list(module.modules())
    attributes = [(vars(m), vars(m).copy()) for m in modules]
    values = [value for _, saved in attributes for value in saved.values()]
    contents = [(value, value.copy() if value else ()) for value in values if type(value) in _TABLES]
    plain = (value for value in values if isinstance(value, Tensor))
    tensors = [
        (t.detach(), t.detach().clone())
        for t in (*module.buffers(), *plain)
        if not (t.is_meta or isinstance(t, FakeTensor))
    ]
    random_states = _random_states()
    training = [m.training for m in modules]

    def rewind() -> None:
        for attribute, saved in attributes:
            mode = attribute.get("training")
            attribute.clear()
            attribute.update(saved)
            if mode is not None:  # in a scripted module it is no attribute
                attribute["training"] = mode
        for table, content in contents:
            if table or content:
                table.clear()
                table.extend(content) if isinstance(table, list) else table.update(content)
        for tensor, value in tensors:
            if not torch.equal(tensor, value):  # version counters miss what native kernels write (batch norm)
                tensor.copy_(value)
        random_states()

    try:
        yield rewind
    finally:
        rewind()
        for m, mode in zip(modules, training, strict=True):
            if m.training is not mode:
                m.training = mode


# Containers among a module's attributes that a forward changes in place: its tables of hooks and buffers, caches, logs.
_TABLES = (dict, OrderedDict, list, set)


def _random_states() -> Callable[[], None]:
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda._initialized else []

    def put_back() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if devices:
            torch.cuda.set_rng_state_all(devices)

    return put_back
