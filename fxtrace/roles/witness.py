"""A graph without values, held against a labelled copy with values: a small model of the same structure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from fxtrace.graph import Check, Graph, Refusal, Role


@dataclass(frozen=True)
class Witness:
    """A labelled graph of a small copy, whose identities were tried on values.

    The copy may have fewer layers: a layer is held against all layers of the copy that are made of the same blocks.

    Attributes:
        graph: the copy's, labelled.
        what: what the copy is, to be put after "on": `a copy shrunk to num_hidden_layers=2`.
    """

    graph: Graph
    what: str

    def __call__(self, graph: Graph) -> Graph:
        """The graph with the roles that the copy bears out, which say so, and those that it says nothing of.

        A role that the copy's values refuse, or whose block the copy does not have, becomes a refusal.
        """
        layers = _layers(graph)
        refused: list[Refusal] = []

        def kept(roles: Iterable[Role]) -> Iterator[Role]:
            for role in roles:
                found = self._try(role, layers)
                if isinstance(found, Role):
                    yield found
                else:
                    refused.append(Refusal(str(role), f"on {self.what}, {found}"))

        nodes = tuple(replace(node, roles=tuple(kept(node.roles))) if node.roles else node for node in graph.nodes)
        return replace(graph, nodes=nodes, refusals=(*graph.refusals, *refused))

    def _try(self, role: Role, layers: dict[tuple[str, int | None], frozenset[str]]) -> Role | str:
        """The role with what the copy adds, or why it is refused."""
        peers = self._peers(role, layers)
        if not peers:
            return self._missing(role)
        names = [str(replace(role, layer=layer)) for layer in peers]
        if reason := next((self._refusals[name] for name in names if name in self._refusals), ""):
            return reason
        there = [self._roles[name] for name in names if name in self._roles]
        tried = {check.name: check for other in there for check in other.checks if check.held}
        checks = tuple(self._confirmed(check, tried.get(check.name)) for check in role.checks)
        if checks == role.checks:
            return role
        return replace(role, checks=checks, evidence=f"{role.evidence}; held on {self.what}")

    def _confirmed(self, check: Check, tried: Check | None) -> Check:
        if check.held is not None or tried is None:
            return check
        return replace(check, held=True, detail=f"on {self.what}: {tried.detail}")

    def _peers(self, role: Role, layers: dict[tuple[str, int | None], frozenset[str]]) -> list[int | None]:
        """The copy's layers that a role's layer is held against: of the same blocks, or else with the role's block."""
        own = layers[role.stack, role.layer]
        there = {layer: blocks for (stack, layer), blocks in self._layers.items() if stack == role.stack}
        if role.layer is None:
            return [None] if role.block in there.get(None, ()) else []
        numbered = {layer: blocks for layer, blocks in there.items() if layer is not None}
        alike = [layer for layer, blocks in numbered.items() if blocks == own]
        return [*(alike or [layer for layer, blocks in numbered.items() if not role.block or role.block in blocks])]

    def _missing(self, role: Role) -> str:
        general = "; ".join(f"{each.role}: {each.reason}" for each in self.graph.refusals if " at " in each.role)
        place = ".".join(filter(None, (role.stack, role.block)))
        return f"there is no {place or 'such layer'}" + (f" ({general})" if general else "")

    @cached_property
    def _layers(self) -> dict[tuple[str, int | None], frozenset[str]]:
        layers = _layers(self.graph)
        for refusal in self.graph.refusals:  # a place of which everything is refused is there all the same
            match refusal.role.split("."):
                case [stack, layer, block, _] if layer.isdecimal():
                    layers[stack, int(layer)] = layers.get((stack, int(layer)), frozenset()) | {block}
                case [*stack, block, _] if " " not in refusal.role:
                    layers[".".join(stack), None] = layers.get((".".join(stack), None), frozenset()) | {block}
        return layers

    @cached_property
    def _roles(self) -> dict[str, Role]:
        return {str(role): role for node in self.graph.nodes for role in node.roles}

    @cached_property
    def _refusals(self) -> dict[str, str]:
        return {refusal.role: refusal.reason for refusal in self.graph.refusals}


def _layers(graph: Graph) -> dict[tuple[str, int | None], frozenset[str]]:
    """The blocks of each layer of each stack; of what is in no layer, those of None."""
    layers: dict[tuple[str, int | None], set[str]] = defaultdict(set)
    for node in graph.nodes:
        for role in node.roles:
            layers[role.stack, role.layer] |= {role.block} - {""}
    return {place: frozenset(blocks) for place, blocks in layers.items()}
