"""How much of two graphs is aligned by role, and which pairs are wrong by a correspondence known beforehand."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fxtrace.capture import capture
from fxtrace.diff import align
from fxtrace.graph import Arg, Graph, Node, Ref, SliceArg
from fxtrace.models import Registry
from fxtrace.roles import label
from tests.roles.variants import Variant, make

Truth = Mapping[str, frozenset[Any]]
"""By node name, what a node is by construction; two nodes correspond where they have something in common."""

Place = tuple[str, str]


@dataclass(frozen=True)
class Case:
    """Two graphs, and what their nodes are by construction."""

    name: str
    first: Graph
    second: Graph
    truths: tuple[Truth, Truth]

    def row(self) -> str:
        pairs = align(self.first, self.second)
        by_before = {pair.before: pair.after for pair in pairs}
        ours, theirs = self.first.by_role, self.second.by_role
        shared = ours.keys() & theirs.keys()
        aligned = sum(by_before.get(ours[role].name) == theirs[role].name for role in shared)
        known = [
            (self.truths[0][pair.before], self.truths[1][pair.after])
            for pair in pairs
            if pair.before in self.truths[0] and pair.after in self.truths[1]
        ]
        wrong = sum(not a & b for a, b in known)
        how = Counter(pair.how for pair in pairs)
        nodes = min(len(self.first.nodes), len(self.second.nodes))
        return (
            f"| {self.name} | {len(pairs)} of {nodes} | {aligned} of {len(shared)} | {len(known)} | {wrong} | "
            f"{', '.join(f'{kind} {count}' for kind, count in how.most_common())} |"
        )


HEAD = (
    "| two graphs | nodes paired | shared roles paired | pairs checked | wrong | how |\n"
    "| --- | --- | --- | --- | --- | --- |"
)


def cases() -> Iterator[Case]:
    """Every case."""
    reference = _graph("reference")
    yield _renamed("renamed nodes and modules", reference)
    bare = replace(reference, nodes=tuple(replace(node, roles=()) for node in reference.nodes))
    yield _renamed("the same without roles", bare)
    yield _by_place("an added layer", reference, _graph("reference", encoder_layers=3, decoder_layers=3))
    t5 = _graph("hf:t5"), _graph("hf:t5", num_layers=3, num_decoder_layers=3)
    yield _by_place("an added layer, norms first", *t5)
    yield _by_place("a removed block", _net(feed_forward=True), _net(feed_forward=False))
    for name, variant in (
        ("fused QKV", Variant(projections="chunked")),
        ("post- and pre-norm", Variant(norm="pre")),
        ("explicit and fused kernel", Variant(kernel="fused")),
        ("separate and shared heads, gated", Variant(shared=2, feed_forward="gated", rotary=True)),
    ):
        yield _by_value(name, Variant(), variant)
    yield _by_place(
        "BERT and RoBERTa", _graph("hf:bert"), _graph("hf:roberta"), lambda path: path.replace("roberta", "bert")
    )
    yield _by_place("Llama and Qwen2", _graph("hf:llama"), _graph("hf:qwen2"))


def _graph(model: str, **fields: int) -> Graph:
    it = Registry.installed().load(model)
    config = it.resolve(fields)
    torch.manual_seed(0)
    return _labelled(it.build(config), it.example_inputs(config))


def _labelled(module: nn.Module, inputs: dict[str, Tensor]) -> Graph:
    captured = capture(module.eval(), inputs)
    return label(captured.graph, captured.known, module.state_dict())[0]


def _renamed(name: str, graph: Graph) -> Case:
    """Every node, module and parameter gets another name; the order says which is which."""
    chance = random.Random(0)
    names = {node.name: f"n{chance.randrange(10**9)}" for node in graph.nodes}
    paths: dict[str, str] = {}

    def path(old: str) -> str:
        return ".".join(paths.setdefault(piece, f"m{len(paths)}") for piece in old.split(".")) if old else ""

    def rename(arg: Arg) -> Arg:
        match arg:
            case Ref(node):
                return Ref(names[node])
            case tuple():
                return tuple(map(rename, arg))
            case dict():
                return {key: rename(each) for key, each in arg.items()}
            case SliceArg(start, stop, step):
                return SliceArg(rename(start), rename(stop), rename(step))
            case _:
                return arg

    def again(node: Node) -> Node:
        return replace(
            node,
            name=names[node.name],
            module=path(node.module),
            target=path(node.target) if node.op in ("call_module", "get_attr", "placeholder") else node.target,
            parameters=tuple(map(path, node.parameters)),
            args=tuple(map(rename, node.args)),
            kwargs={key: rename(arg) for key, arg in node.kwargs.items()},
        )

    modules = []
    for module in graph.modules:
        own = tuple(replace(each, name=path(each.name)) for each in module.parameters)
        modules.append(replace(module, path=path(module.path), parameters=own))
    other = replace(graph, nodes=tuple(map(again, graph.nodes)), modules=tuple(modules))
    truths = tuple({node.name: frozenset({place}) for place, node in enumerate(each.nodes)} for each in (graph, other))
    return Case(name, graph, other, (truths[0], truths[1]))


def _by_place(name: str, first: Graph, second: Graph, map_path: Callable[[str], str] = str) -> Case:
    """Models of the same modules: the n-th node of a kind in a module is the n-th one in the other model's module.

    Where one has more of a kind in a module than the other, that says nothing.
    """

    def truth(graph: Graph) -> dict[str, frozenset[tuple[Place, int]]]:
        seen: Counter[Place] = Counter()
        found = {}
        for node in graph.nodes:
            place = (map_path(node.module), node.kind)
            found[node.name] = frozenset({(place, seen[place])})
            seen[place] += 1
        return found

    truths = truth(first), truth(second)
    ours, theirs = (Counter(place for each in side.values() for place, _ in each) for side in truths)
    unclear = {place for place in ours.keys() & theirs.keys() if ours[place] != theirs[place]}

    def clear(side: dict[str, frozenset[tuple[Place, int]]]) -> Truth:
        return {node: each for node, each in side.items() if not any(place in unclear for place, _ in each)}

    return Case(name, first, second, (clear(truths[0]), clear(truths[1])))


def _by_value(name: str, first: Variant, second: Variant) -> Case:
    """The transformer written in two ways, each of which says which tensor is which."""
    graphs, truths = [], []
    for variant in (first, second):
        torch.manual_seed(0)
        module, inputs = make(variant)
        captured = capture(module.eval(), inputs)
        graphs.append(label(captured.graph, captured.known, module.state_dict())[0])
        told = module.learn_truth(*inputs.values())
        truths.append(
            {
                node.name: frozenset(roles)
                for node in graphs[-1].nodes
                if node.name in captured.values
                and (roles := {role for role, tensor in told.items() if _same(tensor, captured.values[node.name])})
            }
        )
    return Case(name, graphs[0], graphs[1], (truths[0], truths[1]))


def _same(a: Tensor, b: object) -> bool:
    return isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


class _Layer(nn.Module):
    def __init__(self, feed_forward: bool) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.norm, self.last = nn.LayerNorm(16), nn.LayerNorm(16)
        self.inner = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)) if feed_forward else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).view(2, 5, 4, 4).transpose(1, 2) for each in (self.query, self.key, self.value))
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v
        x = self.norm(x + self.out(mixed.transpose(1, 2).reshape(2, 5, 16)))
        return x if self.inner is None else self.last(x + self.inner(x))


def _net(feed_forward: bool) -> Graph:
    """Three layers, the second one with or without its feed-forward block."""
    torch.manual_seed(0)
    module = nn.Sequential(_Layer(True), _Layer(feed_forward), _Layer(True))
    return _labelled(module, {"input": torch.rand(2, 5, 16)})
