"""Dataflow through what PyTorch hides in names: ops that change a tensor in place."""

import torch
from torch import Tensor, nn

from fxtrace.capture import capture
from fxtrace.roles.flow import Flow


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        first = y * 1
        y.add_(x)
        y.mul_(2)
        return torch.cat((first, y), 0) + y[0]


def test_what_is_read_after_a_change_is_the_change() -> None:
    graph = capture(InPlace(), {"x": torch.ones(2, 3)}, rung="symbolic").graph
    assert [node.inputs for node in graph.nodes if node.name == "cat"] == [("mul", "zeros_like")]
    flow = Flow(graph)
    by_name = flow.graph.by_name
    assert [node.name for node in flow.inputs(by_name["cat"])] == ["mul", "mul_"]
    assert [node.name for node in flow.inputs(by_name["mul_"])] == ["add_"]
    assert [node.name for node in flow.inputs(by_name["getitem"])] == ["mul_"]
    assert [node.name for node in flow.users(by_name["zeros_like"])] == ["mul", "add_"]
    assert not flow.computed(by_name["mul"])
    assert flow.computed(by_name["mul_"])
