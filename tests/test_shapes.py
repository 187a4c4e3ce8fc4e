"""Specs say what PyTorch says; the interpreter computes what torch.fx's own does."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from fxtrace.shapes import Interpreter, ShapeInterpreter, tensor_spec

TENSORS: dict[str, Callable[[], Tensor]] = {
    "plain": lambda: torch.empty(2, 3, 4),
    "scalar": lambda: torch.empty((), dtype=torch.bfloat16),
    "transposed": lambda: torch.empty(2, 3).T,
    "transposed with a size of one": lambda: torch.empty(1, 3, dtype=torch.int64).T,
    "expanded": lambda: torch.empty(1, 3).expand(5, 3),
    "strided": lambda: torch.empty(4, 6, dtype=torch.bool)[:, ::2],
    "empty": lambda: torch.empty(0, 3).T,
    "channels last": lambda: torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "complex": lambda: torch.empty(3, dtype=torch.complex64).conj(),
    "meta": lambda: torch.empty(2, 3, device="meta"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_spec_is_what_pytorch_says(name: str) -> None:
    tensor = TENSORS[name]()
    for spec in (tensor_spec(tensor), tensor_spec(tensor)):  # made, and found again
        assert spec.shape == tuple(tensor.shape)
        assert type(spec.shape) is tuple
        assert (spec.stride, spec.contiguous) == (tensor.stride(), tensor.is_contiguous())
        assert (spec.device, f"torch.{spec.dtype}") == (str(tensor.device), str(tensor.dtype))
        assert spec.nbytes == tensor.numel() * tensor.element_size()


class Shared(nn.Module):
    """One module held twice, a parameter used by itself, and an output that is a nest."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, 3))
        self.second = nn.Sequential(self.first[0])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"sum": self.second(self.first(x)) + self.second[0].bias, "input": x}


def test_an_interpreter_computes_what_torch_fx_s_does() -> None:
    module = Shared()
    traced = fx.symbolic_trace(module)
    x = torch.randn(2, 3)
    expected = fx.Interpreter(traced).run(x)
    shapes = ShapeInterpreter(traced)
    for found in (Interpreter(traced).run(x), shapes.run(x)):
        assert all(torch.equal(found[name], expected[name]) for name in ("sum", "input"))
    assert not shapes.env.keys() - {list(traced.graph.nodes)[-1]}  # nothing is kept longer than it is needed
    renamed = fx.Graph()
    renamed.output(renamed.get_attr("second.0.bias"))
    assert Interpreter(module, renamed).run() is module.get_parameter("first.0.bias")
