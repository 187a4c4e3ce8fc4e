"""Alignment, held against which modules a node ran in, by a map that the test knows."""

import pytest
import torch
from torch import Tensor, nn

from fxtrace.capture import capture
from fxtrace.diff import align, compare
from fxtrace.graph import Graph
from fxtrace.models import Registry
from fxtrace.roles import label
from tests.roles.variants import Variant, make


def graph_of(module: nn.Module, inputs: dict[str, Tensor]) -> Graph:
    captured = capture(module.eval(), inputs)
    return label(captured.graph, captured.known, module.state_dict())[0]


def traced(model: str, **fields: int) -> Graph:
    it = Registry.installed().load(model)
    config = it.resolve(fields)
    torch.manual_seed(0)
    return graph_of(it.build(config), it.example_inputs(config))


def roles(graph: Graph, node: str) -> set[str]:
    return {str(role) for role in graph.node(node).roles}


@pytest.fixture(scope="module")
def plain() -> Graph:
    return graph_of(*make(Variant()))


@pytest.mark.parametrize(
    "variant",
    [
        Variant(projections="chunked"),
        Variant(norm="pre"),
        Variant(kernel="fused"),
        Variant(softmax="functional", product="einsum"),
        Variant(layers=(3, 2)),
    ],
    ids=["fused QKV", "pre-norm", "fused kernel", "other ops", "an added layer"],
)
def test_ways_of_writing_are_aligned_by_role(plain: Graph, variant: Variant) -> None:
    other = graph_of(*make(variant))
    pairs = align(plain, other)
    assert len({pair.after for pair in pairs}) == len({pair.before for pair in pairs}) == len(pairs)
    by_before = {pair.before: pair.after for pair in pairs}
    shared = plain.by_role.keys() & other.by_role.keys()
    assert len(shared) > 60
    for pair in pairs:
        ours, theirs = roles(plain, pair.before), roles(other, pair.after)
        assert not (ours and theirs) or ours & theirs, pair
    aligned = sum(other.by_role[role].name == by_before.get(plain.by_role[role].name) for role in shared)
    assert aligned / len(shared) > 0.85  # a node of two roles may be two nodes there


class Net(nn.Module):
    def __init__(self, names: tuple[str, ...], width: int = 8) -> None:
        super().__init__()
        self.names = names
        for name in names:
            self.add_module(name, nn.Linear(8, 8) if "act" not in name else nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = getattr(self, name)(x)
        return x.sum()


def test_renamed_modules_without_roles_are_aligned_by_dataflow() -> None:
    x = torch.ones(2, 8)
    before, after = (graph_of(Net(names), {"x": x}) for names in (("a", "act", "b"), ("first", "act", "second")))
    pairs = {pair.before: pair.after for pair in align(before, after)}
    assert pairs["a"] == "first"
    assert pairs["b"] == "second"
    assert len(pairs) == len(before.nodes)
    assert not compare(before, after).changed


def test_a_removed_module_leaves_the_rest_paired() -> None:
    x = torch.ones(2, 8)
    before, after = (graph_of(Net(names), {"x": x}) for names in (("a", "act", "b"), ("a", "b")))
    found = compare(before, after)
    assert [each.node.name for each in found.removed] == ["act"]
    assert not found.added
    assert {pair.before.name: pair.after.name for pair in found.pairs}["b"] == "b"


class Layer(nn.Module):
    def __init__(self, feed_forward: bool, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.norm, self.last = nn.LayerNorm(16), nn.LayerNorm(16)
        self.inner = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)) if feed_forward else None

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).view(2, 5, 4, 4).transpose(1, 2) for each in (self.query, self.key, self.value))
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v
        return self.out(mixed.transpose(1, 2).reshape(2, 5, 16))

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            x = x + self.attend(self.norm(x))
            return x if self.inner is None else x + self.inner(self.last(x))
        x = self.norm(x + self.attend(x))
        return x if self.inner is None else self.last(x + self.inner(x))


def layers(*feed_forward: bool, norm_first: bool) -> Graph:
    net = nn.Sequential(*(Layer(each, norm_first) for each in feed_forward))
    if norm_first:
        net.add_module("final", nn.LayerNorm(16))
    return graph_of(net, {"input": torch.rand(2, 5, 16)})


@pytest.mark.parametrize("norm_first", [False, True], ids=["norms last", "norms first"])
@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_block_that_is_gone_shifts_no_other(gone: int, norm_first: bool) -> None:
    """Without it, the next layer's blocks have other numbers; the modules say which is which."""
    before = layers(True, True, True, norm_first=norm_first)
    after = layers(*(layer != gone for layer in range(3)), norm_first=norm_first)
    pairs = align(before, after)
    for pair in pairs:
        ours, theirs = before.node(pair.before), after.node(pair.after)
        assert ours.module == theirs.module, pair
    assert len(pairs) == len(after.nodes)
    backwards = {pair.after: pair.before for pair in align(after, before)}
    assert backwards == {pair.before: pair.after for pair in pairs}


@pytest.mark.parametrize("norm_first", [False, True], ids=["norms last", "norms first"])
def test_an_added_layer_leaves_the_rest_paired(norm_first: bool) -> None:
    before, after = (layers(*[True] * count, norm_first=norm_first) for count in (2, 3))
    pairs = align(before, after)
    assert all(before.node(pair.before).module == after.node(pair.after).module for pair in pairs)
    assert len(pairs) == len(before.nodes)


def test_roles_that_have_nothing_in_common_are_never_paired(plain: Graph) -> None:
    gated = graph_of(*make(Variant(feed_forward="gated")))
    for pair in align(plain, gated):
        ours, theirs = roles(plain, pair.before), roles(gated, pair.after)
        assert not (ours and theirs) or ours & theirs, pair


def test_an_encoder_alone_is_aligned_with_a_decoder_alone() -> None:
    pytest.importorskip("transformers")
    before, after = traced("hf:bert"), traced("hf:gpt2")
    pairs = {pair.before: pair.after for pair in align(before, after)}
    weights = before.by_role["encoder.1.self_attention.weights"].name
    assert pairs[weights] == after.by_role["decoder.1.masked_self_attention.weights"].name
