"""What of a small copy is made as what of a large graph, so that the formulas of the one's sizes may be the other's.

Two nodes are alike where the same is called with alike inputs and read by alike users, some steps far. Numbers in the
names of modules do not count at first, so every layer is held against all of the copy's layers; where these differ in
their sizes (the stages of a pyramid), numbers count, too. What this gives is a guess, to be confirmed on the large
graph.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

from fxtrace.dims import Finding, Formulas
from fxtrace.graph import Graph, Node

_STEPS = 8
"""How far around two nodes all must be alike, at best; less far where a copy of fewer layers ends before."""

Findings = tuple[Finding, ...]


def alike(copy: Graph, graph: Graph) -> dict[str, list[list[str]]]:
    """For each tensor of a graph, groups of the copy's tensors that are made alike; the group to be asked first, first.

    Args:
        copy: a small graph.
        graph: a larger one of the same model.
    """
    found: dict[str, list[list[str]]] = {name: [] for name, _ in graph.tensors()}
    for named in (_unnumbered, str):
        for name, group in _furthest(copy, graph, named):
            found[name] += [group] if group else []
    return found


def transferred(found: Formulas, groups: Mapping[str, Sequence[Sequence[str]]], graph: Graph) -> dict[str, Findings]:
    """For each tensor of a graph, the findings of the copy's tensors that are made alike; where these differ, none.

    Args:
        found: the copy's formulas.
        groups: see `alike`.
        graph: the larger graph.
    """
    return {
        name: _common([[found.tensors[each] for each in group] for group in groups[name]], len(spec.shape))
        for name, spec in graph.tensors()
    }


def transferred_parameters(found: Formulas, graph: Graph) -> dict[str, Findings]:
    """The same of each parameter and buffer, which are alike by their names."""
    groups: dict[Hashable, list[Findings]] = defaultdict(list)
    for name, findings in found.parameters.items():
        for key in {name, _unnumbered(name)}:
            groups[key, len(findings)].append(findings)
    ranks = {name: len(each.shape) for name, each in graph.parameters.items()}
    return {
        name: _common([groups[key, rank] for key in (_unnumbered(name), name)], rank) for name, rank in ranks.items()
    }


def _common(groups: Sequence[Sequence[Findings]], rank: int) -> Findings:
    """Of each dimension, the finding of the first group whose members say the same."""
    return tuple(_agreed([[each[dim] for each in group] for group in groups if group]) for dim in range(rank))


def _agreed(groups: Sequence[Sequence[Finding]]) -> Finding:
    if not groups:
        return Finding(None, reason="nothing in the smaller copy is made alike")
    for group in groups:
        if len({each.formula for each in group}) == 1:
            return group[0]
    said = sorted({str(each.formula or "none") for each in groups[0]})
    return Finding(None, reason=f"what is made alike in the smaller copy differs: {', '.join(said)}")


def _unnumbered(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _furthest(copy: Graph, graph: Graph, named: Callable[[str], str]) -> Iterator[tuple[str, list[str]]]:
    """For each tensor of the graph, the copy's that are alike furthest around them; none where none is at all."""
    small, large = _Side(copy), _Side(graph)
    looks = [{name: _look(node, named) for name, node in side.nodes.items()} for side in (small, large)]
    steps = []
    for _ in range(_STEPS + 1):
        numbers: dict[Hashable, int] = {}
        colours = [{name: numbers.setdefault(look, len(numbers)) for name, look in each.items()} for each in looks]
        groups: dict[int, list[str]] = defaultdict(list)
        for name, colour in colours[0].items():
            groups[colour].append(name)
        steps.append((groups, colours[1]))
        looks = [side.around(each) for side, each in zip((small, large), colours, strict=True)]
    for node in large.nodes.values():
        group = next((groups[of[node.name]] for groups, of in reversed(steps) if of[node.name] in groups), [])
        for place, (name, _) in enumerate(node.tensors):
            yield name, [small.nodes[each].tensors[place][0] for each in group]


class _Side:
    """The nodes of a graph that have tensors, and which of these each reads and is read by."""

    def __init__(self, graph: Graph) -> None:
        self.nodes: Mapping[str, Node] = {node.name: node for node in graph.nodes if node.tensors}
        self._inputs = {name: [each for each in node.inputs if each in self.nodes] for name, node in self.nodes.items()}
        self._users: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for name, inputs in self._inputs.items():
            for place, each in enumerate(inputs):
                self._users[each].append((name, place))

    def around(self, colours: Mapping[str, int]) -> dict[str, Hashable]:
        """What each node looks like with what is a step around it. How many users are alike does not count."""
        return {
            name: (
                colour,
                tuple(colours[each] for each in self._inputs[name]),
                frozenset((colours[user], place) for user, place in self._users[name]),
            )
            for name, colour in colours.items()
        }


def _look(node: Node, named: Callable[[str], str]) -> Hashable:
    """What a node does, with nothing of its sizes."""
    return (
        node.op,
        named(node.target) if node.op in ("get_attr", "call_module") else node.target,
        node.kind,
        named(node.module),
        tuple(map(named, node.parameters)),
        tuple((value.path, value.spec and (value.spec.dtype, len(value.spec.shape))) for value in node.values),
    )
