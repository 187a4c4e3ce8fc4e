"""Finds what a mixture's router does with its logits: probabilities, the experts chosen, their weights.

Everything that comes from the logits alone is routing. Where it meets other tensors, tokens are sent to experts, their
outputs are weighted, or rows of their parameters are looked up.
"""

from __future__ import annotations

import heapq

from fxtrace.graph import Node
from fxtrace.ops import KINDS
from fxtrace.roles.flow import MOVES, PROJECTIONS, Flow, numel, shape_of

SELECTIONS = frozenset({"topk", "argmax", "max", "sort", "argsort"})
_GATHERS = frozenset({"gather", "take_along_dim"})
ROUTING = frozenset(KINDS) - PROJECTIONS - {"matmul", "attention", "norm", "embedding", "recurrent", "module"}
"""From a selection back to the logits: anything that neither mixes features nor starts afresh."""
STILL = MOVES - {"select"}
"""Moves that keep every element."""


def name_of(node: Node) -> str:
    """The op's name, in place or not."""
    return node.target.rpartition(".")[2].strip("_")


class Router:
    """What comes from one tensor of logits, tokens × n_experts.

    Attributes:
        count: number of experts.
        tokens: number of tokens.
        routing: names of the nodes that come from the logits alone, the logits too.
        rows: names of rows of parameters that the routing looks up: weights and biases, one for each row of tokens.
        meeting: where the routing meets other tensors, in execution order.
    """

    def __init__(self, flow: Flow, logits: Node) -> None:
        self.flow, self.logits = flow, logits
        self.count = (shape_of(logits) or (0,))[-1]
        self.tokens = (numel(logits) or 0) // max(1, self.count)
        self.routing: set[str] = {logits.name}
        self.rows: set[str] = set()
        self.meeting: list[Node] = []
        self._spread()

    def _spread(self) -> None:
        """Goes forward from the logits as long as nothing else that is computed comes in."""
        flow, nodes = self.flow, self.flow.graph.nodes
        heap = [flow.index[user.name] for user in flow.users(self.logits)]
        heapq.heapify(heap)
        last = -1
        while heap:
            index = heapq.heappop(heap)
            if index == last:
                continue
            last, node = index, nodes[index]
            inputs = [each for each in flow.inputs(node) if flow.computed(each) and each.kind != "create"]
            inside = all(each.name in self.routing for each in inputs)
            looked_up = node.kind == "embedding" and inside
            if looked_up or (node.kind in MOVES and inputs and inputs[0].name in self.rows):
                self.rows.add(node.name)
            elif inside and node.kind not in PROJECTIONS | {"output"}:
                self.routing.add(node.name)
            else:
                self.meeting.append(node)
                continue
            for user in flow.users(node):
                heapq.heappush(heap, flow.index[user.name])

    @property
    def given(self) -> set[str]:
        """Names of all that comes from the logits and parameters alone."""
        return self.routing | self.rows

    def nodes(self) -> list[Node]:
        """The routing in execution order."""
        return sorted((self.flow.graph.by_name[name] for name in self.routing), key=lambda n: self.flow.index[n.name])

    def share(self, node: Node) -> Node | None:
        """The one operand of a product that is weights from the routing; None where there is no such."""
        operands = [each for each in self.flow.inputs(node) if self.flow.computed(each)]
        shares = [each for each in operands if each.name in self.routing and _is_float(each)]
        return shares[0] if len(shares) == 1 and len(operands) == 2 else None

    def cuts(self, node: Node) -> list[Node]:
        """What a product's weights are cut out of, the nearest first."""
        share, found = self.share(node), list[Node]()
        for each in self.flow.back(share, MOVES) if share is not None else ():
            if each.name not in self.routing or name_of(each) in SELECTIONS:
                break
            found.append(each)
            if name_of(each) in _GATHERS:
                break
        return found

    def weights(self, products: list[Node], chosen: Node | None) -> Node | None:
        """The tensor that the weights of all products are cut out of: those of the chosen experts, or of all."""
        chains = [self.cuts(node) for node in products]
        common = set.intersection(*({each.name for each in chain} for chain in chains))
        for size in (numel(chosen) if chosen is not None else None, self.tokens * self.count):
            whole = [each for each in chains[0] if each.name in common and size and numel(each) == size]
            if whole:
                return whole[-1]
        return None

    def chosen(self) -> Node | None:
        """The indices of the experts chosen for each token, by a selection among all of them."""
        nodes = self.nodes()
        found = [node for node in nodes if self._selects(node)]
        names = [each.name for each in found]
        joined = [node for node in nodes if node.kind == "join" and [n.name for n in self.flow.inputs(node)] == names]
        found = joined if len(joined) == 1 else found
        return found[0] if len(found) == 1 else None

    def selects(self) -> bool:
        """Whether anything is selected by the logits."""
        return any(name_of(node) in SELECTIONS for node in self.nodes())

    def _selects(self, node: Node) -> bool:
        call = self._call(node)
        of = self.flow.data_input(call) if call is not None and call.name in self.routing else None
        size = numel(node) or 0
        return of is not None and (shape_of(of) or (0,))[-1] == self.count and size > 0 and size % self.tokens == 0

    def selection(self, chosen: Node) -> Node | None:
        """What the largest are chosen of; None where they are chosen in several steps."""
        call = self._call(chosen)
        return self.flow.data_input(call) if call is not None else None

    def _call(self, indices: Node) -> Node | None:
        """The selection that some indices are the result of."""
        if name_of(indices) in ("argmax", "argsort"):
            return indices
        call = self.flow.data_input(indices)
        part = (name_of(indices), *indices.args[1:])
        given = part in (("getitem", 1), ("getattr", "indices"))
        return call if given and call is not None and name_of(call) in SELECTIONS else None

    def probabilities(self) -> Node | str:
        """The softmax or sigmoid of the logits of all experts, or why there is none."""
        squashed = [node for node in self.nodes() if node.kind == "softmax" or name_of(node) == "sigmoid"]
        of_all = [
            node
            for node in squashed
            if shape_of(node) == shape_of(self.logits)
            and all(each.kind in STILL for each in self.flow.path_back(node, self.logits)[1:-1])
        ]
        if len(of_all) == 1:
            return of_all[0]
        if len(squashed) == 1:
            return f"'{squashed[0].name}' is taken of the chosen experts' logits alone"
        return "no one softmax or sigmoid is taken of the logits of all experts"


def _is_float(node: Node) -> bool:
    return node.spec is not None and "float" in node.spec.dtype
