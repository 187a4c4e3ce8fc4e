"""What is written in the boxes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fxtrace.graph import Arg, Graph, Module, Node, Ref, Role, Symbol, Value
from fxtrace.render import labels
from fxtrace.render.view import build
from tests.render.graphs import Emitter, spec


@pytest.mark.parametrize(
    ("type_", "name"),
    [
        ("Linear", "linear"),
        ("LayerNorm", "layer_norm"),
        ("RMSNorm", "rms_norm"),
        ("ReLU", "relu"),
        ("LSTM", "lstm"),
        ("MaxPool2d", "max_pool2d"),
        ("MultiheadAttention", "multihead_attention"),
    ],
)
def test_a_module_is_called_as_its_function(type_: str, name: str) -> None:
    graph = Graph("M", (), (Module("a.b", type_),))
    assert labels.op_name(Node("n", "call_module", "a.b", "other"), graph) == name


@pytest.mark.parametrize(
    ("kind", "target", "args", "text"),
    [
        ("div", "operator.truediv", (Ref("x"), 5.656854), "÷ 5.657"),
        ("mul", "torch.mul", (2, Ref("x")), "2 ×"),
        ("mul", "operator.mul", (Ref("x"), Ref("size")), "× 6"),
        ("mul", "operator.mul", (Ref("x"), Ref("x")), "×"),
        ("add", "operator.iadd", (Ref("x"), Ref("x")), "iadd"),
        ("add", "operator.add", (Ref("x"), True), "add"),
        ("select", "operator.getitem", (Ref("x"), (0, Symbol("..."))), "[0, ...]"),
        ("select", "operator.getitem", (Ref("x"), (Ref("rows"), 0)), "[…, 0]"),
        ("activation", "torch.nn.functional.gelu", (Ref("x"),), "gelu"),
    ],
)
def test_a_pill_says_what_it_does(kind: str, target: str, args: tuple[Arg, ...], text: str) -> None:
    nodes = (
        Node("x", "placeholder", "x", "input", values=(Value("", "Tensor", spec((2, 4))),)),
        Node("size", "call_method", "size", "size", values=(Value("", "int", text="6"),)),
        Node("n", "call_function", target, kind, args),
    )
    assert labels.pill_text(nodes[-1], Graph("M", nodes)) == text


@pytest.mark.parametrize(
    ("node", "rows"),
    [
        (Node("n", "call_method", "softmax", "softmax", (Ref("q"), 0)), [("dim", "0")]),
        (Node("n", "call_method", "softmax", "softmax", (Ref("q"),), {"dim": -1}), [("dim", "-1")]),
        (Node("n", "call_module", "act", "softmax", (Ref("q"),)), [("dim", "1")]),
        (
            Node("n", "call_function", "sdpa", "attention", (Ref("q"),), {"scale": 0.125, "is_causal": True}),
            [("heads", "8"), ("is_causal", "True"), ("scale", "0.125")],
        ),
        (
            Node("n", "call_function", "conv2d", "convolution", (Ref("q"), Ref("w"), None, (2, 2), 1, 1, 1)),
            [("stride", "(2, 2)"), ("padding", "1")],
        ),
    ],
)
def test_constants_that_matter(node: Node, rows: list[tuple[str, str]]) -> None:
    query = Node("q", "placeholder", "q", "input", values=(Value("", "Tensor", spec((2, 8, 5, 4))),))
    graph = Graph("M", (query, node), (Module("act", "Softmax", settings={"dim": 1}),))
    assert labels.constant_rows(node, graph) == rows


def test_many_parameters_are_cut_short_and_foreign_ones_named_in_full() -> None:
    e = Emitter()
    x = e.input("x", (2, 4))
    shapes = {f"w{i}": (i + 1, 4) for i in range(12)}
    e.call("recurrent", "cells", "LSTM", x, (2, 4), "", **shapes)
    box = build(e.graph()).boxes["cells"]
    rows = labels.parameter_rows(box, e.graph())
    assert rows[:2] == [("w0", "1×4"), ("w1", "2×4")]
    assert rows[-1] == ("…", "5 more")
    elsewhere = replace(box, nodes=(replace(box.node, op="call_function"),), parameters=("cells.w3",))
    assert labels.parameter_rows(elsewhere, e.graph()) == [("cells.w3", "4×4")]


@pytest.mark.parametrize(
    ("roles", "part"),
    [
        ((), ""),
        ((Role("decoder", 0, "cross_attention", "query_heads"),), "query heads"),
        ((Role("encoder", 0, "", "output"), Role("encoder", 1, "", "input")), "layer output"),
        (
            (Role("encoder", 0, "feed_forward", "residual_b"), Role("encoder", 0, "feed_forward", "output")),
            "feed-forward output",
        ),
        ((Role("decoder", 0, "masked_self_attention", "output"),), "attention output"),
        ((Role("encoder", 1, "feed_forward", "input"),), "input"),
    ],
)
def test_the_role_shown_is_what_the_value_is(roles: tuple[Role, ...], part: str) -> None:
    assert labels.role_part(Node("n", "call_function", "f", "other", roles=roles)) == part


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0 K"), (664_581, "664.6 K"), (61_300_000, "61.3 M"), (7e9, "7.0 B")],
)
def test_counts(count: int, text: str) -> None:
    assert labels.short_count(count) == text


@pytest.mark.parametrize(
    ("dtype", "short"),
    [
        ("float32", "f32"),
        ("bfloat16", "bf16"),
        ("int64", "i64"),
        ("uint8", "u8"),
        ("bool", "bool"),
        ("complex64", "c64"),
    ],
)
def test_dtypes(dtype: str, short: str) -> None:
    assert labels.short_dtype(dtype) == short
