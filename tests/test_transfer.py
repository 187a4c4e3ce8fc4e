"""Formulas of models too large to be probed: found on a small copy, and confirmed on the whole."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fxtrace.capture import capture
from fxtrace.dims import Formulas
from fxtrace.errors import CaptureFailed
from fxtrace.graph import Graph
from fxtrace.ir.trace import TraceRequest
from fxtrace.models import Model, Registry
from fxtrace.models.weightless import build_weightless
from fxtrace.probe import Prober
from fxtrace.service.engine import Engine

SOURCE = """
from dataclasses import dataclass
import torch
from torch import nn


@dataclass(frozen=True)
class Config:
    d_model: int = 8192
    d_ff: int = 32768
    n_layers: int = 5
    seq_len: int = 40
    uneven: bool = False


class Layer(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


def build(config):
    uneven = {3: 2 * config.d_ff, 4: 32768} if config.uneven else {}
    hidden = (uneven.get(layer, config.d_ff) for layer in range(config.n_layers))
    return nn.Sequential(*(Layer(config.d_model, each) for each in hidden))


def example_inputs(config):
    return {"input": torch.ones(3, config.seq_len, config.d_model)}
"""
SYMBOLIC = {"input": ("batch", "sequence", "")}
OTHER = {"d_model": 48, "d_ff": 1000, "seq_len": 11}


def graph_of(model: Model, fields: Mapping[str, Any], **how: Any) -> Graph:
    config = model.resolve(fields)
    module = build_weightless(lambda: model.build(config))
    return capture(module, model.example_inputs(config), rung="export", **how).graph


def wrong(found: Formulas, graph: Graph, sizes: Mapping[str, int]) -> list[str]:
    """The tensors of which a formula says another size than the graph has."""
    said = {
        name: [each.formula and each.formula.value({**found.sizes, **sizes}) for each in findings]
        for name, findings in found.tensors.items()
    }
    specs = dict(graph.tensors())
    assert said.keys() == specs.keys()
    return [
        name
        for name, sizes_said in said.items()
        if any(size not in (None, real) for size, real in zip(sizes_said, specs[name].shape, strict=True))
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    file = tmp_path_factory.mktemp("model") / "stacked.py"
    file.write_text(SOURCE)
    models = Registry()
    models.add_file(file)
    return models


@pytest.fixture(scope="module")
def model(models: Registry) -> Model:
    return models.get("stacked")


@pytest.fixture(scope="module")
def uneven(model: Model) -> tuple[Formulas, Graph]:
    graph = graph_of(model, {"uneven": True})
    return Prober(model, model.resolve({"uneven": True}), rung="export", weightless=True).formulas(graph), graph


def test_sizes_of_the_whole_have_the_formulas_of_a_copy(tmp_path: Path, models: Registry, model: Model) -> None:
    request = TraceRequest("stacked", weightless=True, symbolic=SYMBOLIC, values=False)
    with Engine.open(tmp_path, models) as engine:
        trace = engine.create_trace(request)
        found, graph = engine.find_formulas(trace.id), engine.get_graph(trace.id)
        assert engine.get_formulas(trace.id) == found
    assert trace.parameter_count > 2e9
    assert found.copy == "a copy shrunk to d_model=64, d_ff=96, n_layers=2, seq_len=16"
    assert found.confirmed == (len(shapes := [size for _, spec in graph.tensors() for size in spec.shape]),) * 2
    assert len(shapes) > 60
    assert {found.shape(name) for name in found.tensors} >= {
        ("batch", "seq_len", "d_model"),
        ("batch", "seq_len", "d_ff"),
    }
    assert all(each.confirmations > 6 for findings in found.tensors.values() for each in findings)
    assert all(finding.formula for findings in found.parameters.values() for finding in findings)
    assert wrong(found, graph, {}) == []
    assert wrong(found, graph_of(model, OTHER, symbolic=SYMBOLIC), OTHER) == []


def test_what_is_not_so_on_the_whole_stays_a_number(uneven: tuple[Formulas, Graph], model: Model) -> None:
    found, graph = uneven
    for name, findings in {**found.tensors, **found.parameters}.items():
        reasons = {finding.reason for finding in findings if finding.formula is None}
        node = graph.by_name.get(name)
        layer = node.module.partition(".")[0] if node and node.module else name.partition(".")[0]
        if layer == "3":
            assert reasons <= {"d_ff of the smaller copy is not the size here"}, name
        elif layer == "4":
            assert reasons <= {"d_ff of the smaller copy is not the size in another configuration of the whole"}, name
        elif node is None or node.op != "get_attr":
            assert not reasons, name
    confirmed, total = found.confirmed
    assert len(found.refused) == 2
    assert sum(found.refused.values()) == total - confirmed > 0
    assert wrong(found, graph_of(model, {**OTHER, "uneven": True}), OTHER) == []


def test_a_model_that_gives_another_graph_is_told(model: Model) -> None:
    graph = graph_of(model, {"n_layers": 4})
    with pytest.raises(CaptureFailed, match="trace it again"):
        Prober(model, model.resolve({}), rung="export", weightless=True).formulas(graph)


def test_without_time_nothing_is_confirmed(model: Model) -> None:
    graph = graph_of(model, {})
    found = Prober(model, model.resolve({}), rung="export", weightless=True, seconds=1e-9).formulas(graph)
    assert found.confirmed[0] == 0
    assert set(found.untried) == {"d_model", "d_ff", "n_layers", "seq_len"}
