"""What traces are made of: modules and callables that differ in kind, each with what it is called with."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxtrace
from fxtrace import Trace, TraceOptions

ODD = 'a "b"\n<ü>&\\ {c}|\x01\r]]>'
"""A name with what the syntax of some format is made of."""


class GraphConvolution(nn.Module):
    """Messages along edges, gathered by index."""

    def __init__(self) -> None:
        super().__init__()
        self.message = nn.Linear(4, 8)
        self.update = nn.GRUCell(8, 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        sources, targets = edges
        messages = F.relu(self.message(x[sources]))
        gathered = torch.zeros(x.size(0), 8).index_add(0, targets, messages)
        return self.update(gathered, x)


class Recurrent(nn.Module):
    """A node that returns a nest of tensors, and readers of each."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, num_layers=2)
        self.out = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, (h, c) = self.lstm(x)
        return self.out(y), h + c


class Named(nn.Module):
    """Odd names: of a module, of a key; a dict with what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("a/b <ü>\n\"'", nn.Linear(2, 2))

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = getattr(self, "a/b <ü>\n\"'")(x)
        return {ODD: y, "none": None, "three": 3, "nested": {"x": [x, y * float("inf")]}}


class InPlace(nn.Module):
    """Ops that write into what they are called on, and a view that shows it."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        first = y[0]
        y.add_(1).mul_(2)
        y[1:] = 0
        return first + y.relu_()


def every_type(x: Tensor) -> tuple[Tensor, ...]:
    """Element types that some format lacks, a scalar, an empty tensor, one used twice."""
    types = (torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128)
    return (*(x.to(each) for each in types), x.sum(), x[:0], x + x)


@cache
def traced(name: str) -> Trace:
    """The trace of that name."""
    return MODELS[name]()


MODELS: dict[str, Callable[[], Trace]] = {
    "reference": lambda: fxtrace.trace("reference"),
    "graph": lambda: fxtrace.trace(GraphConvolution(), torch.randn(3, 4), torch.tensor([[0, 1, 2], [1, 2, 0]])),
    "recurrent": lambda: fxtrace.trace(Recurrent(), torch.randn(5, 1, 4)),
    "odd names": lambda: fxtrace.trace(Named(), torch.ones(3, 2)),
    "in place": lambda: fxtrace.trace(InPlace(), torch.arange(6.0).reshape(3, 2)),
    "every type": lambda: fxtrace.trace(every_type, torch.ones(2, 3)),
    "one op": lambda: fxtrace.trace(torch.relu, torch.ones(2)),
    "recorded": lambda: fxtrace.trace(nn.TransformerEncoderLayer(8, 2), torch.ones(3, 1, 8)),
    "shapes": lambda: fxtrace.trace("reference", options=TraceOptions(values=False)),
    "weightless": lambda: fxtrace.trace("reference", options=TraceOptions(weightless=True)),
}
