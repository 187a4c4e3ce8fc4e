"""Folding: what is the same is drawn once, what is not is drawn; depth makes one box of a module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxtrace.graph import Graph, Node, Ref
from fxtrace.render.fold import fold_depth, fold_layers
from fxtrace.render.links import mark
from fxtrace.render.view import View, build
from tests.render.graphs import Emitter, spec, transformer


def folded(graph: Graph) -> View:
    return fold_layers(mark(build(graph)))


def edit(graph: Graph, name: str, change: Callable[[Node], Node]) -> Graph:
    assert name in graph.by_name
    return replace(graph, nodes=tuple(change(node) if node.name == name else node for node in graph.nodes))


@given(st.integers(2, 9))
def test_as_many_layers_as_there_are_look_like_one(layers: int) -> None:
    view = folded(transformer(layers=layers))
    assert view.repeats == {"encoder.layers.0": layers, "decoder.layers.0": layers}
    assert drawing(view) == drawing(mark(build(transformer(layers=1))))


def drawing(view: View) -> Counter[object]:
    """What a view shows, whatever its nodes are called."""
    what = {key: (box.form, box.module, box.node.target) for key, box in view.boxes.items()}
    return Counter([*what.values(), *((what[link.tail], what[link.head], link.kind) for link in view.links)])


ATTENTION = "decoder_layers_1_self_attn"


def other_constant(graph: Graph) -> Graph:
    softmax = next(n.name for n in graph.nodes if n.kind == "softmax" and n.module == "decoder.layers.1.self_attn")
    return edit(graph, softmax, lambda node: replace(node, args=(node.args[0], -2)))


def other_shape(graph: Graph) -> Graph:
    change = replace(graph.node(f"{ATTENTION}_q_proj").values[0], spec=spec((1, 5, 64)))
    return edit(graph, f"{ATTENTION}_q_proj", lambda node: replace(node, values=(change,)))


def other_op(graph: Graph) -> Graph:
    relu = next(n.name for n in graph.nodes if n.kind == "activation" and n.module == "decoder.layers.1.mlp")
    return edit(graph, relu, lambda node: replace(node, target="torch.tanh"))


def other_parameters(graph: Graph) -> Graph:
    def widen(path: str) -> bool:
        return path == "decoder.layers.1.self_attn.q_proj"

    modules = tuple(
        replace(m, parameters=tuple(replace(p, shape=(64, 64)) for p in m.parameters)) if widen(m.path) else m
        for m in graph.modules
    )
    return replace(graph, modules=modules)


def other_wiring(graph: Graph) -> Graph:
    """The values are made of the keys."""
    split = next(n.name for n in graph.nodes if f"{ATTENTION}_v_proj" in n.inputs)
    return edit(graph, split, lambda node: replace(node, args=(Ref(f"{ATTENTION}_k_proj"), *node.args[1:])))


def other_outside_input(graph: Graph) -> Graph:
    """Layer 1's cross-attention reads the encoder's first layer."""
    key = "decoder_layers_1_cross_attn_k_proj"
    return edit(graph, key, lambda node: replace(node, args=(Ref("encoder_layers_0_norm2"),)))


def other_reader(graph: Graph) -> Graph:
    """The first layer's output is also returned."""
    return edit(graph, "output", lambda node: replace(node, args=(*node.args, Ref("decoder_layers_0_norm3"))))


@pytest.mark.parametrize(
    "change",
    [other_constant, other_shape, other_op, other_parameters, other_wiring, other_outside_input, other_reader],
)
def test_layers_that_differ_are_all_drawn(change: Callable[[Graph], Graph]) -> None:
    view = folded(change(transformer()))
    assert "decoder.layers.0" not in view.repeats
    assert {"decoder_layers_0_norm1", "decoder_layers_1_norm1"} <= view.boxes.keys()


def test_a_layer_that_differs_splits_the_run() -> None:
    graph = transformer(layers=6)
    relu = next(n.name for n in graph.nodes if n.kind == "activation" and n.module == "encoder.layers.3.mlp")
    view = folded(edit(graph, relu, lambda node: replace(node, target="torch.tanh")))
    assert view.repeats["encoder.layers.0"] == 3
    assert view.repeats["encoder.layers.4"] == 2
    assert "encoder.layers.3" not in view.repeats


def test_a_highlighted_layer_is_not_folded_away() -> None:
    graph = transformer(layers=6)
    view = fold_layers(mark(build(graph)), frozenset({"decoder_layers_3_norm1"}))
    assert "decoder_layers_3_norm1" in view.boxes
    assert view.repeats == {"encoder.layers.0": 6, "decoder.layers.0": 3, "decoder.layers.3": 3}


def test_layers_side_by_side_are_no_stack() -> None:
    e = Emitter()
    x = e.input("x", (2, 4))
    for i in range(3):
        with e.module(f"experts.{i}", "Expert"):
            e.linear("b", e.linear("a", x, 4), 4)
    assert not folded(e.graph()).repeats


def test_folds_nest() -> None:
    e = Emitter()
    x = e.input("x", (2, 4))
    for i in range(2):
        for j in range(3):
            with e.module(f"stages.{i}.blocks.{j}", "Block"):
                x = e.linear("b", e.linear("a", x, 4), 4)
        with e.module(f"stages.{i}", "Stage"):
            x = e.linear("down", x, 4)
    e.output(y=x)
    view = folded(e.graph())
    assert view.repeats == {"stages.0": 2, "stages.0.blocks.0": 3}
    assert [box.key for box in view.boxes.values() if box.form == "op"] == [
        "stages_0_blocks_0_a",
        "stages_0_blocks_0_b",
        "stages_0_down",
    ]


@pytest.mark.parametrize(
    ("depth", "modules"),
    [
        (0, ["encoder", "decoder"]),
        (1, [f"{stack}.layers.{i}" for stack in ("encoder", "decoder") for i in (0, 1)]),
        (
            2,
            [
                f"{stack}.layers.{i}.{block}"
                for stack, blocks in (
                    ("encoder", ("self_attn", "mlp")),
                    ("decoder", ("self_attn", "cross_attn", "mlp")),
                )
                for i in (0, 1)
                for block in blocks
            ],
        ),
        (3, []),
    ],
)
def test_depth(depth: int, modules: list[str]) -> None:
    view = fold_depth(mark(build(transformer())), depth)
    assert [box.module for box in view.boxes.values() if box.form == "module"] == modules
    heads = {link.head for link in view.links}
    assert all(link.tail in view.boxes and link.head in view.boxes for link in view.links)
    assert {"out:logits", "out:first"} <= heads
    assert all(view.boxes[link.head].form == "plus" for link in view.links if link.kind == "residual")
