"""Peaks, held against the storages that are there when a graph is really run, each value dropped after its last use."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.multiprocessing.reductions import StorageWeakRef

from fxtrace.capture import capture
from fxtrace.capture.recorder import Recorder
from fxtrace.graph import Graph, Node, Ref, TensorSpec, Value
from fxtrace.models import Registry
from fxtrace.shapes import Interpreter, tensors
from fxtrace.sweep import Costs
from fxtrace.sweep.memory import alive, computed


class Metered(Interpreter):
    """Runs a graph, and looks after each node at the storages that are still there. A tensor has one alone."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, graph)
        self.taken, self.peak = 0, 0
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def run(self, *args: Any, **_: Any) -> Any:
        self.env, self.args_iter = {}, iter(args)
        last = {used: node for node in self.graph.nodes for used in (node, *node.all_input_nodes)}
        for node in self.graph.nodes:
            self.env[node] = self.run_node(node)
            self._look(node)
            for used in [used for used in self.env if last[used] is node and node.op != "output"]:
                del self.env[used]

    def _look(self, node: fx.Node) -> None:
        for _, tensor in tensors(self.env[node]):
            storage = tensor.untyped_storage()
            nbytes = 0 if node.op in ("placeholder", "get_attr") else tensor.numel() * tensor.element_size()
            reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            if reference.cdata not in self._seen:
                self._seen[reference.cdata] = (reference, nbytes)
                self.taken += nbytes
        there = (nbytes for each, nbytes in self._seen.values() if not each.expired())  # type: ignore[no-untyped-call]
        self.peak = max(self.peak, sum(there))


class Shared(nn.Module):
    """Memory that is shared in each of the ways there are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.lstm = nn.LSTM(4, 4)
        self.register_buffer("table", torch.randn(9, 4))

    def forward(self, x: Tensor) -> Any:
        x = x @ self.weight.T  # a view of a parameter
        x = x + self.table[: x.size(0), None]  # type: ignore[index]  # a part of a buffer
        whole = x.mul(2)
        left, right = whole.chunk(2, dim=-1)  # two views: their tensor stays as long as either
        right = right.contiguous()  # a copy
        left += 1  # in place, through a view
        y = torch.cat([left, right], -1)
        y.relu_()
        y[0] = 0
        out, (h, c) = self.lstm(y.transpose(0, 1).contiguous())
        x.exp()  # read by nobody
        return {"out": out.sum(-1), "h": h, "again": y.reshape(-1), "expanded": c.expand(3, -1, -1)}


@pytest.mark.parametrize("values", [True, False])
def test_shared_memory_is_counted_once_and_stays_while_it_is_read(values: bool) -> None:
    check(Shared().eval(), {"x": torch.randn(5, 3, 4)}, values=values)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("reference", False),
        ("hf:llama", False),
        ("hf:t5", True),  # transformers leaves a mask of nothing but ones out, if it can look at it
        ("hf:convnext", False),
        ("hf:mixtral", False),
        ("hf:mamba", False),
    ],
)
def test_the_peak_is_what_a_run_takes(name: str, values: bool) -> None:
    model = Registry.installed().load(name)
    config = model.resolve({})
    check(model.build(config).eval(), model.example_inputs(config), values=values)


@pytest.mark.parametrize(
    ("name", "symbolic"),
    [("reference", {}), ("reference", {"src_ids": ("src",)}), ("hf:llama", {"input_ids": ("batch", "length")})],
)
def test_an_exported_graph_takes_the_same_memory(name: str, symbolic: dict[str, tuple[str, ...]]) -> None:
    model = Registry.installed().load(name)
    config = model.resolve({})
    module, inputs = model.build(config), model.example_inputs(config)
    recorded = capture(module, inputs, rung="record", values=False)
    exported = capture(module, inputs, rung="export", symbolic=symbolic)
    assert Costs(exported.graph, exported.bases).cost() == Costs(recorded.graph, recorded.bases).cost()


def check(module: nn.Module, inputs: dict[str, Tensor], *, values: bool) -> None:
    taken = capture(module, inputs, rung="record", values=values)
    with torch.no_grad():
        recorder = Recorder(module, None, lambda _: None)
        recorder.run(inputs, nullcontext())
        metered = Metered(recorder.root(), recorder.graph)
        metered.run(*(each.clone() for each in inputs.values()))
    cost = Costs(taken.graph, taken.bases).cost()
    assert (cost.activation_bytes, cost.peak_activation_bytes) == (metered.taken, metered.peak)
    assert 0 < metered.peak < metered.taken


def node(name: str, kind: str, *inputs: str) -> Node:
    spec = TensorSpec((2,), "float32", (1,), "cpu", True, 8)
    return Node(name, "call_function", kind, kind, tuple(map(Ref, inputs)), {}, (Value("", "Tensor", spec),))


def test_what_is_there_at_once_is_told_by_name() -> None:
    nodes = (
        node("x", "input"),
        node("a", "add", "x"),
        node("view", "view", "a"),
        node("b", "mul", "a"),
        node("unread", "mul", "b"),
        node("c", "add", "b", "view"),
        Node("output", "output", "output", "output", (Ref("c"), Ref("x"))),
    )
    graph, bases = Graph("M", nodes), {"view": "a"}
    assert computed(graph, bases) == ["a", "b", "unread", "c"]
    assert list(alive(graph, bases)) == [("a", "b", "unread"), ("a", "b", "c")]
