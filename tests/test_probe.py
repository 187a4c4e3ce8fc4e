import random
from pathlib import Path
from typing import Any

import pytest

from fxtrace.capture import capture
from fxtrace.dims import Finding, Formula, Formulas, integers, replaced
from fxtrace.errors import Cancelled, CaptureFailed
from fxtrace.graph import Graph, Node, TensorSpec, Value
from fxtrace.ir.trace import Progress, TraceRequest
from fxtrace.models import Registry
from fxtrace.probe import Prober, agreeing
from fxtrace.service.engine import Engine
from fxtrace.trials import candidates


@pytest.fixture(scope="module")
def reference() -> Any:
    return Registry.installed().get("reference")


@pytest.fixture(scope="module")
def formulas(reference: Any) -> Formulas:
    return Prober(reference, reference.resolve({}), rung="symbolic").formulas()


def test_every_size_of_the_reference_has_a_formula(formulas: Formulas) -> None:
    confirmed, total = formulas.confirmed
    assert confirmed == total > 500
    assert all(finding.formula for each in formulas.parameters.values() for finding in each)
    assert set(formulas.structural) == {"encoder_layers", "decoder_layers"}


@pytest.mark.parametrize("seed", range(3))
def test_the_formulas_hold_for_configurations_never_tried(reference: Any, formulas: Formulas, seed: int) -> None:
    chance = random.Random(seed)
    heads = chance.randrange(1, 9)
    fields = {"n_heads": heads, "d_model": heads * chance.randrange(2, 20), "d_ff": chance.randrange(8, 99)}
    fields |= {
        "src_len": chance.randrange(2, 30),
        "tgt_len": chance.randrange(2, 30),
        "tgt_vocab": chance.randrange(5, 40),
    }
    config = reference.resolve(fields)
    sizes = dict(integers(reference.fields(config)))
    captured = capture(reference.build(config), reference.example_inputs(config))
    for name, spec in captured.graph.tensors():
        assert tuple(each.formula.value(sizes) for each in formulas.tensors[name] if each.formula) == spec.shape, name


def test_a_graph_that_the_model_no_longer_gives_is_told(reference: Any) -> None:
    other = reference.resolve({"encoder_layers": 1})
    captured = capture(reference.build(other), reference.example_inputs(other))
    with pytest.raises(CaptureFailed, match="trace it again"):
        Prober(reference, reference.resolve({}), rung="symbolic").formulas(captured.graph)


def test_fields_that_hold_only_together_are_tied() -> None:
    pytest.importorskip("transformers")
    llama = Registry().load("hf:llama")
    found = Prober(llama, llama.resolve({"num_hidden_layers": 1})).formulas()
    assert found.tied == {"num_key_value_heads": "num_attention_heads"}
    assert found.confirmed[0] == found.confirmed[1]


def test_candidates_are_others_and_positive() -> None:
    for value in (1, 2, 7, 16, 128):
        assert value not in candidates(value)
        assert all(each > 0 for each in candidates(value))
        assert len(set(candidates(value))) == len(candidates(value)) >= 4


def test_integers_are_put_back_where_they_were() -> None:
    fields: dict[str, Any] = {
        "a": 3,
        "flag": True,
        "nest": {"b": 4, "list": [5, 6]},
        "text": "x",
        "none": None,
        "zero": 0,
    }
    assert dict(integers(fields)) == {"a": 3, "nest.b": 4, "nest.list[0]": 5, "nest.list[1]": 6}
    assert replaced(fields, {"nest.list[1]": 7, "a": 1}) == {**fields, "a": 1, "nest": {"b": 4, "list": [5, 7]}}


MODEL = """
from dataclasses import dataclass
import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Config:
    width: int = 12
    heads: int = 3

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError("heads must divide width")


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.project = config.heads, nn.Linear(config.width, 3 * config.width)

    def forward(self, x):
        q, k, v = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def build(config):
    return Attention(config)


def example_inputs(config):
    return {"x": torch.ones(4, 7, config.width)}
"""
NAMED = {"x": ("batch", "length", "")}


@pytest.mark.parametrize(
    ("request_", "length"),
    [
        (TraceRequest("m"), "x.shape[1]"),
        (TraceRequest("m", values=False), "x.shape[1]"),
        (TraceRequest("m", unfused=True), "x.shape[1]"),
        (TraceRequest("m", weightless=True, symbolic=NAMED), "length"),
        (TraceRequest("m", {"width": 8, "heads": 2}, input_shapes={"x": (3, 5, 8)}), "x.shape[1]"),
    ],
    ids=["first rung", "shapes only", "unfused", "symbols", "shape"],
)
def test_formulas_are_found_on_every_rung(tmp_path: Path, request_: TraceRequest, length: str) -> None:
    file = tmp_path / "m.py"
    symbols = bool(request_.symbolic)  # which take long to follow: one field less
    file.write_text(MODEL.replace("heads: int = 3", "heads = 3") if symbols else MODEL)
    models = Registry()
    models.add_file(file)
    with Engine.open(tmp_path / "store", models) as engine:
        trace = engine.create_trace(request_)
        found = engine.find_formulas(trace.id)
        graph = engine.get_graph(trace.id)
    assert found.confirmed[0] == found.confirmed[1]
    shapes = {found.shape(name) for name in found.tensors}
    heads = "3" if symbols else "heads"
    assert {("batch", length, "width"), ("batch", heads, length, f"width/{heads}")} <= shapes
    assert (("batch", heads, length, length) in shapes) is request_.unfused or symbols
    assert all(found.sizes[name] for name in ("batch", length))
    for name, spec in graph.tensors():
        assert tuple(each.formula.value(found.sizes) for each in found.tensors[name] if each.formula) == spec.shape


def test_a_formula_that_contradicts_the_graph_s_symbols_is_refused() -> None:
    spec = TensorSpec((8, 6), "float32", (6, 1), "cpu", True, 192, symbolic=("2*batch", "Max(1, u0)"))
    graph = Graph("Net", (Node("x", "placeholder", "x", "input", values=(Value("", "Tensor", spec),)),))
    findings = {"x": (Finding(Formula("2*width"), ("width",), 2), Finding(Formula("6"), (), 2))}
    (first, second) = agreeing(findings, graph, {"batch": 4, "width": 4})["x"]
    assert first.formula is None
    assert first.reason == "torch.export has 2*batch, other configurations show 2*width"
    assert second == findings["x"][1]
    agreed = {"x": (Finding(Formula("batch + batch"), ("batch",), 2), findings["x"][1])}
    assert agreeing(agreed, graph, {"batch": 4, "width": 4}) == agreed


@pytest.mark.parametrize(
    ("symbol", "formula", "agrees"),
    [
        ("sequence", "length", True),
        ("sequence", "width", False),  # of the same size here
        ("2*sequence", "length + width", False),
        ("2*sequence", "2*length", True),
        ("6", "width", True),
        ("6", "length", False),
        ("batch*sequence", "batch*length", True),
        ("batch*sequence", "rows*length", False),
        ("unnamed", "length", True),  # of which nothing is known
    ],
)
def test_a_symbol_is_what_decides_its_input_s_size(symbol: str, formula: str, agrees: bool) -> None:
    """`sequence` is named in the request; which field makes it is found: `length`."""
    base = {"batch": 2, "rows": 2, "length": 6, "width": 6}
    ids = TensorSpec((2, 6), "int64", (6, 1), "cpu", True, 96, symbolic=("batch", "sequence"))
    size = Formula(formula).value(base)
    assert size is not None
    made = TensorSpec((size,), "float32", (1,), "cpu", True, 4 * size, symbolic=(symbol,))
    nodes = (
        Node("ids_1", "placeholder", "ids", "input", values=(Value("", "Tensor", ids),)),
        Node("made", "call_function", "f", "other", values=(Value("", "Tensor", made),)),
    )
    found = {
        "ids_1": (Finding(Formula("batch"), ("batch",), 2), Finding(Formula("length"), ("length",), 2)),
        "made": (Finding(Formula(formula), (), 2),),
    }
    (finding,) = agreeing(found, Graph("Net", nodes), base)["made"]
    assert (finding.formula is not None) is agrees
    assert agrees or finding.reason == f"torch.export has {symbol}, other configurations show {formula}"


def test_no_more_is_tried_after_the_seconds_and_it_is_said(reference: Any) -> None:
    found = Prober(reference, reference.resolve({}), rung="symbolic", seconds=1e-9).formulas()
    assert set(found.untried) == set(dict(integers(reference.fields(reference.resolve({})))))
    assert found.confirmed[0] == 0


def test_probing_stops_when_it_is_told_to(reference: Any) -> None:
    told: list[Progress] = []

    def report(progress: Progress) -> None:
        told.append(progress)
        if len(told) > 5:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        Prober(reference, reference.resolve({}), rung="symbolic", report=report).formulas()
    assert len(told) == 6
