"""Which node of one graph is which of another: by role, by place, and by what the nodes around it are.

Roles come first: they say what a value is whatever it is called. From the nodes that are paired so, pairs spread along
the dataflow to nodes that do the same with paired values. Names only help where a graph has no roles, and never against
what is paired already.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from fxtrace.diff.blocks import matched_roles
from fxtrace.graph import Graph, Node
from fxtrace.ir.text import Readable

How = Literal["role", "place", "dataflow", "order"]
"""How two nodes were found to be one another: by a common role, by their place among the modules, by doing the same
with paired values, or by standing between paired nodes in the same order."""


@dataclass(frozen=True, slots=True, repr=False)
class Pair(Readable):
    """A node of the first graph and the one of the second that it corresponds to."""

    before: str
    after: str
    how: How

    def _lines(self) -> Iterator[str]:
        yield f"{self.before} ~ {self.after}, by {self.how}"


def align(first: Graph, second: Graph) -> tuple[Pair, ...]:
    """The pairs of corresponding nodes, in the first graph's order; no node is in two."""
    pairs = _Pairs(_Side(first), _Side(second))
    pairs.by_role()
    pairs.by_place()
    pairs.along_dataflow()
    pairs.in_order()
    order = {node.name: place for place, node in enumerate(first.nodes)}
    return tuple(sorted(pairs.found.values(), key=lambda pair: order[pair.before]))


@dataclass
class _Side:
    """A graph as aligning sees it."""

    graph: Graph
    nodes: Mapping[str, Node] = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = self.graph.by_name


class _Pairs:
    def __init__(self, first: _Side, second: _Side) -> None:
        self.first, self.second = first, second
        self.found: dict[str, Pair] = {}
        self._taken: dict[str, str] = {}

    def pair(self, before: str, after: str, how: How) -> bool:
        if before in self.found or after in self._taken:
            return False
        self.found[before] = Pair(before, after, how)
        self._taken[after] = before
        return True

    def by_role(self) -> None:
        """Nodes that share roles; those that share most first, what a value is before what it is taken for."""
        ours, theirs = matched_roles(self.first.graph, self.second.graph)
        votes: Counter[tuple[str, str]] = Counter()
        for role in (role for role in ours if role in theirs):
            votes[ours[role], theirs[role]] += _MADE if role.made else 1
        for (before, after), _ in votes.most_common():
            self.pair(before, after, "role")

    def by_place(self) -> None:
        """Nodes of one kind that stand at the same place of the same module, where neither has a role."""
        places = [self._places(side) for side in (self.first, self.second)]
        for place, nodes in places[0].items():
            others = places[1].get(place, [])
            if len(nodes) == len(others):
                for before, after in zip(nodes, others, strict=True):
                    self.pair(before, after, "place")

    def _places(self, side: _Side) -> Mapping[Hashable, list[str]]:
        places: dict[Hashable, list[str]] = defaultdict(list)
        for node in side.graph.nodes:
            if not node.roles:
                places[node.module, node.kind, _rank(node), node.parameters, node.op in _ENDS and node.name].append(
                    node.name
                )
        return places

    def along_dataflow(self) -> None:
        """Spreads pairs to what paired nodes read, and to what reads them."""
        queue = deque(self.found.values())
        while queue:
            pair = queue.popleft()
            for before, after in (*self._inputs(pair), *self._users(pair)):
                if self.pair(before, after, "dataflow"):
                    queue.append(self.found[before])

    def _inputs(self, pair: Pair) -> Iterator[tuple[str, str]]:
        read = [self.first.nodes[pair.before].inputs, self.second.nodes[pair.after].inputs]
        if len(read[0]) == len(read[1]):
            yield from (each for each in zip(*read, strict=True) if self._alike(*each))
            return
        yield from self._only(*read)

    def _users(self, pair: Pair) -> Iterator[tuple[str, str]]:
        yield from self._only(self.first.graph.users[pair.before], self.second.graph.users[pair.after])

    def _only(self, befores: Iterable[str], afters: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Of nodes around a pair, those that are the only free ones of their kind on either side."""
        groups: dict[Hashable, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for name in befores:
            if name not in self.found:
                groups[self._look(self.first, name)][0].append(name)
        for name in afters:
            if name not in self._taken:
                groups[self._look(self.second, name)][1].append(name)
        for ours, theirs in groups.values():
            if len(ours) == len(theirs) == 1 and self._alike(ours[0], theirs[0]):
                yield ours[0], theirs[0]

    def _look(self, side: _Side, name: str) -> Hashable:
        node = side.nodes[name]
        return node.kind, _rank(node), bool(node.roles)

    def _alike(self, before: str, after: str) -> bool:
        ours, theirs = self.first.nodes[before], self.second.nodes[after]
        if ours.roles and theirs.roles:
            return False  # each is something else, or they would be paired
        return ours.kind == theirs.kind and _rank(ours) == _rank(theirs)

    def in_order(self) -> None:
        """What stands between two neighbouring pairs, where it is the same row of kinds in both graphs."""
        ours, theirs = _gaps(self.first.graph, self.found), _gaps(self.second.graph, self._taken)
        for (before, after), mine in ours.items():
            other = theirs.get((before and self.found[before].after, after and self.found[after].after), [])
            if [_key(node) for node in mine] == [_key(node) for node in other]:
                for node, twin in zip(mine, other, strict=True):
                    self.pair(node.name, twin.name, "order")


_ENDS = ("placeholder", "output")
_MADE = 1000  # times as much as a role that only says what reads the value


def _key(node: Node) -> Hashable:
    return node.kind, _rank(node)


def _rank(node: Node) -> Hashable:
    return tuple(len(value.spec.shape) if value.spec else value.type for value in node.values)


def _gaps(graph: Graph, paired: Container[str]) -> Mapping[tuple[str, str], list[Node]]:
    """The nodes without a pair, in rows between the paired ones that run before and after them (empty at an end)."""
    gaps: dict[tuple[str, str], list[Node]] = {}
    row: list[Node] = []
    last = ""
    for node in graph.nodes:
        if node.name not in paired:
            row.append(node)
            continue
        if row:
            gaps[last, node.name] = row
        row, last = [], node.name
    return {**gaps, (last, ""): row} if row else gaps
