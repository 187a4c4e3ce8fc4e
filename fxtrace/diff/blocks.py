"""Which block of one graph is which of another, so that roles can be compared where layers are numbered differently.

Where one block is gone, what came after it may have another number: its layer takes in the next one's. So the rows of
blocks, stack by stack, are aligned as texts are: in order, each with at most one of its own kind, as many as possible.
Among equally good ways those are taken that keep the modules, then those that keep the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fxtrace.graph import Graph, Node, Role

_READ = frozenset({"input", "memory", "residual_a", "mask"})
"""Parts that a block only reads: their values were made before it begins."""


Place = tuple[str, int | None, str]
"""A block's stack, layer and name."""


@dataclass(frozen=True, slots=True)
class Key:
    """What a role comes to. `made`: it says what the value is, rather than what it is taken for."""

    name: tuple[object, ...]
    made: bool


@dataclass(frozen=True, slots=True)
class _Block:
    """A block of a layer: its place in its stack, what kind it is, and the module that its first node ran in."""

    layer: int
    name: str
    module: str

    @property
    def kind(self) -> str:
        """What it is, whatever mask it has and whichever of its kind in the layer it is."""
        return re.sub(r"_\d+$", "", self.name.removeprefix("masked_"))


def matched_roles(first: Graph, second: Graph) -> tuple[Mapping[Key, str], Mapping[Key, str]]:
    """Of either graph, node names by what roles come to; roles that correspond come to the same.

    Where blocks take the norm of what they are added to, a norm belongs to the block that it comes before, and the one
    after the last block to the stack. Where the blocks of a stack do not have the same places in both graphs, what only
    says a layer's number (its input and its output) says nothing.
    """
    stacks = [_stacks(graph) for graph in (first, second)]
    # An encoder alone against a decoder alone: their layers correspond, whatever the stacks are called.
    alone = all(len(each) == 1 for each in stacks)
    twins = [(name, next(iter(stacks[1])) if alone else name) for name in stacks[0]]
    back = {theirs: ours for ours, theirs in twins}
    normed = _normed_before(first) & {back.get(each, each) for each in _normed_before(second)}
    matched: dict[Place, Place] = {}
    moved: set[str] = set()
    for ours, theirs in twins:
        pairs = _matched(stacks[0][ours], stacks[1].get(theirs, []))
        matched |= {(theirs, b.layer, b.name): (ours, a.layer, a.name) for a, b in pairs}
        if any(a.layer != b.layer for a, b in pairs):
            moved.add(ours)

    def key(role: Role, node: Node, *, after: bool) -> Key:
        stack = back.get(role.stack, role.stack) if after else role.stack
        side = "after" if after else "before"
        if role.part == "norm_output" and stack in normed:
            # A norm is of the block that it comes before; after the last one it is the stack's own.
            inner = any(each.stack == role.stack and each.part == "input" and each.block for each in node.roles)
            return Key((*_place(role), side) if inner else (stack, role.part), made=not inner)
        if role.layer is None:
            return Key((stack, role.block, role.part), role.part not in (*_READ, "hidden"))
        if not role.block:
            return Key((stack, role.layer, role.part, side if stack in moved else ""), made=False)
        place = _place(role)
        unmatched = after and place not in matched
        shared = matched[place] if after and not unmatched else place
        made = role.part not in _READ or (role.part == "input" and stack in normed)
        return Key((*shared, role.part, side if unmatched else ""), made)

    def named(graph: Graph, *, after: bool) -> Mapping[Key, str]:
        return {key(role, node, after=after): node.name for node in graph.nodes for role in node.roles}

    return named(first, after=False), named(second, after=True)


def _place(role: Role) -> Place:
    return role.stack, role.layer, role.block


def _normed_before(graph: Graph) -> set[str]:
    """The stacks whose blocks take the norm of what they are added to."""
    read = {(role.part, _place(role)): node for node in graph.nodes for role in node.roles if role.layer is not None}
    return {
        place[0]
        for (part, place), node in read.items()
        if part == "input" and place[2] and read.get(("residual_a", place), node) is not node
    }


def _stacks(graph: Graph) -> dict[str, list[_Block]]:
    """The blocks of each stack's layers, in the order in which they begin."""
    found: dict[str, dict[tuple[int, str], _Block]] = {}
    for node in graph.nodes:
        for role in node.roles:
            if role.layer is not None and role.block and role.part not in _READ:
                blocks = found.setdefault(role.stack, {})
                blocks.setdefault((role.layer, role.block), _Block(role.layer, role.block, node.module))
    return {stack: list(blocks.values()) for stack, blocks in found.items()}


def _matched(first: list[_Block], second: list[_Block]) -> list[tuple[_Block, _Block]]:
    """The blocks that correspond (Needleman and Wunsch, J. Mol. Biol. 48, 1970)."""
    many = len(first) + len(second) + 1
    scores = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, ours in enumerate(first):
        for j, theirs in enumerate(second):
            here = scores[i][j] + _likeness(ours, theirs, many)
            scores[i + 1][j + 1] = max(scores[i][j + 1], scores[i + 1][j], here if ours.kind == theirs.kind else 0)
    pairs = []
    i, j = len(first), len(second)
    while i and j:
        ours, theirs = first[i - 1], second[j - 1]
        if scores[i][j] == scores[i - 1][j]:
            i -= 1
        elif scores[i][j] == scores[i][j - 1]:
            j -= 1
        else:
            pairs.append((ours, theirs))
            i, j = i - 1, j - 1
    return pairs[::-1]


def _likeness(ours: _Block, theirs: _Block, many: int) -> int:
    """More for a pair than all modules together can be worth, and more for a module than all numbers together."""
    same_place = (ours.layer, ours.name) == (theirs.layer, theirs.name)
    return many * many + many * (ours.module == theirs.module) + same_place
