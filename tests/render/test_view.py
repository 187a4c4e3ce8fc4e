"""What is drawn, before any text: nothing is lost, links are the dataflow, residuals and crossings are told right."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxtrace.graph import Graph, Ref, Role
from fxtrace.render.links import alone, mark, share
from fxtrace.render.view import MOVING, View, build
from tests.render.graphs import Emitter, transformer

MODEL = transformer()


def bare(graph: Graph) -> Graph:
    """The graph with no role on any node."""
    return replace(graph, nodes=tuple(replace(node, roles=()) for node in graph.nodes))


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Small graphs of a few ops in nested modules, in any wiring."""
    e = Emitter()
    values = [e.input("x", (2, 4))]
    for step in range(draw(st.integers(1, 14))):
        a, b = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        path = draw(st.sampled_from(["", "left", "left.0", "left.1", "right"]))
        with e.module(path, "Part") if path else e.module("root", "Root"):
            match draw(st.sampled_from(["linear", "view", "cast", "add", "buffer", "create", "relu"])):
                case "linear":
                    values.append(e.linear(f"lin{step}", a, 4))
                case "view":
                    values.append(e.node("view", "view", (a, 4, 2), (2, 4)))
                case "cast":
                    values.append(e.node("cast", "float", (a,), (2, 4)))
                case "add":
                    values.append(e.node("add", "operator.add", (a, b), (2, 4)))
                case "buffer":
                    values.append(e.node("add", "operator.add", (a, e.buffer("table", (4,))), (2, 4)))
                case "create":
                    values.append(e.node("create", "torch.ones", (2, 4), (2, 4)))
                case "relu":
                    values.append(e.node("activation", "torch.relu", (a,), (2, 4)))
    e.output(y=values[-1], z=draw(st.sampled_from(values)))
    return e.graph()


def read_through(graph: Graph, view: View, name: str) -> set[str]:
    """The drawn boxes that a node's value comes from, found by walking the graph itself."""
    if name in view.boxes:
        return {name}
    return set().union(*(read_through(graph, view, each) for each in graph.by_name[name].inputs))


@given(graphs())
def test_links_are_the_dataflow(graph: Graph) -> None:
    view = build(graph)
    for key, box in view.boxes.items():
        if box.form in ("op", "pill"):
            tails = {link.tail for link in view.links if link.head == key and view.boxes[link.tail].form != "note"}
            assert tails == set().union(*(read_through(graph, view, name) for name in box.node.inputs))


@given(graphs(), st.booleans())
def test_nothing_is_lost(graph: Graph, views: bool) -> None:
    view = build(graph, views=views)
    drawn = {node.name for box in view.boxes.values() for node in box.nodes}
    accounted = drawn.union(*(link.via for link in view.links))
    from_input: set[str] = set()
    for node in graph.nodes:
        if node.kind == "input" or from_input.intersection(node.inputs):
            from_input.add(node.name)
            assert node.name in drawn or node.kind == "output" or (node.kind in MOVING and not views)
    # Whatever a drawn box or the output is made of is to be seen, or passed through.
    todo = ["output", *(key for key, box in view.boxes.items() if box.form in ("op", "pill"))]
    made_of = {name for each in todo for name in graph.by_name[each].inputs}
    for node in reversed(graph.nodes):
        if node.name in made_of:
            made_of.update(node.inputs)
    assert made_of <= accounted


@pytest.mark.parametrize("graph", [MODEL, bare(MODEL)], ids=["roles", "no roles"])
def test_residuals_and_crossings(graph: Graph) -> None:
    view = mark(build(graph))
    plus = [box for box in view.boxes.values() if box.form == "plus"]
    skips = {(link.tail, link.head) for link in view.links if link.kind == "residual"}
    crossings = {(link.tail, link.head) for link in view.links if link.kind == "crossing"}
    assert len(plus) == 2 * 2 + 2 * 3
    assert {head for _, head in skips} == {box.key for box in plus}
    assert {view.boxes[tail].node.kind for tail, _ in skips} == {"add", "norm"}  # where each block begins
    memory = "encoder_layers_1_norm2"
    assert crossings == {(memory, f"decoder_layers_{i}_cross_attn_{p}_proj") for i in (0, 1) for p in "kv"}


def test_a_sum_with_itself_or_of_two_branches_is_no_residual() -> None:
    e = Emitter()
    x = e.input("x", (2, 4))
    left, right = e.linear("left", x, 4), e.linear("right", x, 4)
    e.node("add", "operator.add", (left, right), (2, 4))
    twice = e.node("add", "operator.add", (x, x), (2, 4))
    cube = e.node("elementwise", "torch.pow", (twice, 3), (2, 4))
    e.output(y=e.node("add", "operator.add", (twice, cube), (2, 4)))
    assert not any(box.form == "plus" for box in mark(build(e.graph())).boxes.values())


def test_a_chain_of_modules_crosses_nothing() -> None:
    e = Emitter()
    x = e.input("x", (2, 4))
    for stage in ("stem", "body.0", "body.1", "head"):
        with e.module(stage, "Stage"):
            x = e.linear("b", e.linear("a", x, 4), 4)
    e.output(y=x)
    assert {link.kind for link in mark(build(e.graph())).links} == {"flow"}


def test_widely_shared_values_are_noted_in_each_module() -> None:
    few, many = (share(mark(build(transformer(layers=n)))) for n in (3, 5))
    memory = {key for key in many.boxes if key.startswith("encoder_layers_4_norm2@")}
    assert len(memory) == 4  # all but the first decoder layer
    assert not any(key.startswith("encoder_layers_2_norm2@") for key in few.boxes)
    masks = [key for key, box in many.boxes.items() if box.form == "note" and key.startswith("causal_mask")]
    assert len(masks) == 5


@pytest.mark.parametrize("moves", [True, False])
def test_views(moves: bool) -> None:
    view = build(MODEL, views=moves)
    kinds = {box.node.kind for box in view.boxes.values() if box.form not in ("port", "note")}
    assert ("view" in kinds) == moves
    assert "size" not in kinds
    assert "constant" not in kinds


def test_one_module_has_its_outside_as_ports() -> None:
    view = mark(build(MODEL, scope="decoder.layers.0.cross_attn"))
    ports = [key for key, box in view.boxes.items() if box.form == "port"]
    assert ports == [
        "in:decoder_layers_0_norm1",
        "in:encoder_layers_1_norm2",
        "out:decoder_layers_0_cross_attn_out_proj",
    ]
    assert {link.head for link in view.links if link.kind == "crossing"} == {
        f"decoder_layers_0_cross_attn_{part}_proj" for part in "kv"
    }


def test_parameters_belong_to_their_reader_however_they_are_read() -> None:
    e = Emitter()
    x = e.input("x", (2, 4))
    with e.module("map", "Map", weight=(8, 4)):
        weight = e.node("constant", "map.weight", (), (8, 4), op="get_attr", parameters=("map.weight",))
        turned = e.node("view", "transpose", (weight, 0, 1), (4, 8))
        y = e.node("linear", "torch.matmul", (x, turned), (2, 8))
    piece = e.node("select", "operator.getitem", (weight, 0), (4,))
    e.output(y=y, piece=piece)
    view = build(e.graph())
    assert view.boxes["matmul"].parameters == ("map.weight",)
    assert view.boxes["getitem"].parameters == ("map.weight",)  # it leaves the model, so it is drawn
    assert not {"map_weight", "transpose"} & view.boxes.keys()


def test_a_role_may_call_a_sum_residual() -> None:
    e = Emitter()
    x = e.input("x", (2, 4))
    active = e.node("activation", "torch.relu", (x,), (2, 4))
    e.output(y=e.node("add", "operator.add", (x, active), (2, 4)))
    graph = e.graph()
    roles = (Role("encoder", 0, "feed_forward", "residual_sum"),)
    named = replace(graph, nodes=tuple(replace(n, roles=roles) if n.kind == "add" else n for n in graph.nodes))
    assert mark(build(graph)).boxes["add"].form == "pill"
    assert mark(build(named)).boxes["add"].form == "plus"
    assert [link.tail for link in mark(build(named)).links if link.kind == "residual"] == [Ref("x").node]


@pytest.mark.parametrize("part", ["", "masked_scores"])
def test_a_mask_is_no_residual_though_it_leads_to_the_scores(part: str) -> None:
    e = Emitter()
    x, mask = e.input("x", (2, 3, 4)), e.input("mask", (1, 3, 4) if not part else (2, 3, 4))
    first = e.node("add", "operator.add", (e.linear("first", x, 4), mask), (2, 3, 4))
    scores = e.linear("second", first, 4)
    e.output(y=e.node("add", "operator.add", (scores, mask), (2, 3, 4), part and f"encoder.1.self_attention.{part}"))
    assert not any(link.kind == "residual" for link in mark(build(e.graph())).links)


def test_a_one_op_module_called_twice_is_no_frame() -> None:
    e = Emitter()
    x = e.input("x", (2, 4))
    with e.module("block", "Block"):
        for _ in range(2):
            x = e.call("activation", "act", "ReLU", e.linear("lin", x, 4), (2, 4))
    e.linear("head", x, 4)
    assert build(e.graph()).clusters() == {"block": ""}


def test_frames_nest_and_hold_at_least_two_boxes() -> None:
    assert build(transformer(layers=1)).clusters() == {
        "encoder": "",
        "encoder.layers.0": "encoder",
        "encoder.layers.0.self_attn": "encoder.layers.0",
        "encoder.layers.0.mlp": "encoder.layers.0",
        "decoder": "",
        "decoder.layers.0": "decoder",
        "decoder.layers.0.self_attn": "decoder.layers.0",
        "decoder.layers.0.cross_attn": "decoder.layers.0",
        "decoder.layers.0.mlp": "decoder.layers.0",
    }


def test_links_that_nothing_runs_beside() -> None:
    view = mark(build(MODEL))
    within = {(view.boxes[link.tail].node.kind, view.boxes[link.head].node.kind) for link in alone(view)}
    assert {("linear", "activation"), ("activation", "linear"), ("matmul", "linear")} <= within
    # The values pass beside all of these.
    assert not within & {("linear", "matmul"), ("matmul", "div"), ("div", "softmax"), ("softmax", "matmul")}
