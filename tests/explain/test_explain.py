"""What is said of a trace is read off that trace."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
from numpy.typing import NDArray

from fxtrace.dims import Formulas
from fxtrace.errors import NodeNotFound, SnapshotNotFound
from fxtrace.explain import Explanation, explain
from fxtrace.explain.rules import product_rule, rule
from fxtrace.graph import Graph, Module, Node, Parameter, Ref, TensorSpec, Value
from fxtrace.ir.trace import TraceRequest
from fxtrace.service.engine import Engine

SIZES = {"src_len": 5, "tgt_len": 4, "n_heads": 2, "d_model": 24, "d_ff": 40, "tgt_vocab": 7}
"""None of them, nor any of their parts, is the same as in the default configuration."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine.open(tmp_path_factory.mktemp("store")) as opened:
        yield opened


@pytest.fixture(scope="module")
def trace(engine: Engine) -> str:
    trace = engine.create_trace(TraceRequest("reference", SIZES))
    engine.find_formulas(trace.id)
    return trace.id


def said(explanation: Explanation) -> str:
    tensors = (*explanation.tensors, *explanation.inputs)
    rules = (line for each in tensors for line in (str(each), *each.rules))
    return "\n".join((*rules, *explanation.facts, *explanation.numbers))


# The seven questions that a student asks, and what the answer must have in it.
@pytest.mark.parametrize(
    ("what", "facts"),
    [
        (
            "encoder",
            [
                "src_len×d_model = 1×5×24",
                "1×n_heads×src_len×d_model/n_heads = 1×2×5×12",
                "1×src_len×d_ff = 1×5×40",
                "d_ff = 40: in 4 of",
            ],
        ),
        (
            "encoder.0.self_attention",
            [
                "query_heads and encoder.0.self_attention.key_heads are multiplied along d_model/n_heads = 24/2 = 12",
                "weights and encoder.0.self_attention.value_heads are multiplied along src_len = 5",
            ],
        ),
        (
            "decoder.0.cross_attention.scores",
            [
                "(1,2,4,12) @ (1,2,12,5) → (1,2,4,5)",
                "Rows are tgt_len = 4, columns src_len = 5",
                "keys of encoder.1.output, another tensor; so it is rectangular",
                "Square in this graph: the scores of encoder.0.self_attention",
            ],
        ),
        (
            "decoder.0.masked_self_attention.mask",
            [
                "row 1:    0    0 -inf -inf",
                "closes 6 of 16 places",
                "open by row: 1, 2, 3, 4",
                "every closed place is 0",
            ],
        ),
        (
            "encoder.0.self_attention.residual_sum",
            ["(1,5,24) + (1,5,24) → (1,5,24): element by element, of equal shapes", "so every number has its partner"],
        ),
        ("d_model", ["All 10 residual sums end in d_model = 24", "d_model/n_heads in 54"]),
        (
            "output.logits",
            ["(1,4,24) @ (7,24)ᵀ → (1,4,7)", "puts tgt_vocab = 7 in the place of d_model = 24", "1×tgt_len×tgt_vocab"],
        ),
    ],
)
def test_a_question_is_answered_with_this_trace_s_numbers(
    engine: Engine, trace: str, what: str, facts: list[str]
) -> None:
    told = said(engine.explain(trace, what))
    for fact in facts:
        assert fact in told


def test_a_snapshot_is_explained_by_its_number(engine: Engine, trace: str) -> None:
    explanation = engine.explain(trace, "33")
    assert explanation.title == "Snapshot 33: Cross-attention score matrix before softmax"
    assert str(explanation.tensors[0]) == "1×n_heads×tgt_len×src_len = 1×2×4×5"
    assert any(check.name == "scores" and check.held for check in explanation.checks)
    with pytest.raises(SnapshotNotFound):
        engine.explain(trace, "44")


def test_a_trace_without_formulas_says_what_to_do(engine: Engine) -> None:
    trace = engine.create_trace(TraceRequest("reference", {"d_model": 8}))
    explanation = engine.explain(trace.id, "output.logits")
    (note,) = explanation.notes
    assert f"`fxtrace formulas {trace.id[:8]}`" in note
    assert explanation.tensors[0].formula == ("1", "5", "5")


def test_without_values_nothing_is_said_of_numbers(engine: Engine, trace: str) -> None:
    graph, formulas = engine.get_graph(trace), engine.get_formulas(trace)
    explanation = explain(graph, "decoder.0.masked_self_attention.mask", formulas=formulas)
    assert (explanation.facts, explanation.numbers) == ((), ())


@pytest.mark.parametrize(("what", "near"), [("d_modl", "d_model"), ("encoder.0.self_atention", "self_attention")])
def test_what_is_not_there_has_the_nearest_name(engine: Engine, trace: str, what: str, near: str) -> None:
    with pytest.raises(NodeNotFound, match=f"did you mean '.*{near}'"):
        engine.explain(trace, what)


def tensor(name: str, kind: str, shape: tuple[int, ...], *inputs: str, target: str = "", **kwargs: Any) -> Node:
    spec = TensorSpec(shape, "float32", (), "cpu", True, 0)
    parameters = ("weight",) if kind in ("linear", "embedding") else ()
    args = tuple(map(Ref, inputs))
    return Node(
        name,
        "call_function",
        target or kind,
        kind,
        args,
        dict(kwargs),
        (Value("", "Tensor", spec),),
        parameters=parameters,
    )


@pytest.mark.parametrize(
    ("kind", "inputs", "result", "line"),
    [
        ("linear", [(2, 3)], (2, 5), "(2,3) @ (5,3)ᵀ → (2,5): 3 summed away, 5 in its place"),
        ("linear", [(2, 7)], (2, 9), "(2,7) → (2,9)"),
        ("embedding", [(2,)], (2, 3), "each of the 2 ids of (2) is a row of (5,3) → (2,3)"),
        (
            "softmax",
            [(2, 3)],
            (2, 3),
            "softmax of (2,3) along dimension -1, of 3: each row sums to 1, and the shape stays",
        ),
        ("view", [(2, 6)], (2, 2, 3), "(2,6) → (2,2,3): the same 12 numbers, 6 = 2·3"),
        ("view", [(2, 2, 3)], (2, 6), "(2,2,3) → (2,6): the same 12 numbers, 2·3 = 6"),
        ("view", [(2, 3)], (3, 2), "(2,3) → (3,2): the same 6 numbers"),
        ("view", [(2, 1)], (2, 3), "(2,1) → (2,3): repeated"),
        (
            "add",
            [(2, 3), (3,)],
            (2, 3),
            "(2,3) + (3) → (2,3): element by element, (3) repeated along what it lacks or has once",
        ),
        ("mul", [(2, 3), (2, 3)], (2, 3), "(2,3) · (2,3) → (2,3): element by element, of equal shapes"),
        ("join", [(2, 3), (2, 4)], (2, 7), "(2,3), (2,4) side by side → (2,7)"),
        ("other", [(2, 3)], (9,), "(2,3) → (9)"),
    ],
)
def test_a_rule_is_said_where_the_shapes_bear_it_out(
    kind: str, inputs: list[tuple[int, ...]], result: tuple[int, ...], line: str
) -> None:
    given = [tensor(f"x{i}", "input", shape) for i, shape in enumerate(inputs)]
    kwargs: dict[str, Any] = {"dim": -1} if kind == "softmax" else {}
    node = tensor("y", kind, result, *(each.name for each in given), **kwargs)
    graph = Graph("Net", (*given, node), (Module("", "Net", (Parameter("weight", (5, 3), "float32", True),)),))
    assert rule(graph, node) == line


@pytest.mark.parametrize("target", ["transpose", "torch.permute", "aten.t"])
def test_dimensions_change_places_where_the_call_says_so(target: str) -> None:
    given = tensor("x", "input", (3, 3))
    node = tensor("y", "view", (3, 3), "x", target=target)
    assert rule(Graph("Net", (given, node)), node) == "(3,3) → (3,3): dimensions change places"


def test_a_product_that_is_none_is_not_called_one() -> None:
    assert product_rule((2, 3), (3, 4), (2, 4)).startswith("(2,3) @ (3,4) → (2,4): rows of 3 times columns of 3")
    assert product_rule((3,), (3, 4), (4,)) == "(3) @ (3,4) → (4)"


def test_an_empty_set_of_formulas_leaves_the_numbers(engine: Engine, trace: str) -> None:
    empty = Formulas({}, {}, {})
    assert explain(engine.get_graph(trace), "output.logits", formulas=empty).tensors[0].formula == ("1", "4", "7")


def test_numbers_that_are_too_many_are_not_read(engine: Engine, trace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("fxtrace.explain.explain")  # the package has a function of that name
    monkeypatch.setattr(module, "_HELD_BYTES", 4 * 4 * 4)  # of a mask, not of two heads' weights
    read: list[str] = []

    def reading(tensor: str) -> NDArray[Any]:
        read.append(tensor)
        return engine.read_tensor(trace, tensor)

    graph = engine.get_graph(trace)
    role = "decoder.0.masked_self_attention.mask"
    explanation = explain(graph, role, read=reading)
    assert set(read) == {graph.by_role[role].name}
    assert not any("It closes" in fact for fact in explanation.facts)
    assert explanation.numbers
