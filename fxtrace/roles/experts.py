"""Finds mixtures of experts: a router shares each token out among feed-forwards.

    input ─▶ logits ─▶ probabilities ─▶ top-k = chosen ─▶ weights ─┐
    input ─▶ rows of the chosen tokens ─▶ expert e ─▶ its output ──×─▶ Σ = routed ─▶ + ─▶ output
    input ─▶ shared expert (× its own weight) ───────────────────────────────────────┘

(Shazeer et al. 2017, "Outrageously Large Neural Networks"; Dai et al. 2024, DeepSeekMoE, has the shared expert.) The
experts may be calls of their own, one after the other, or one product over stacked weights. What tells a mixture from
other selections is that the router reads the tensor that the experts read, and multiplies what they give.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from fxtrace.graph import Node, SliceArg, Symbol
from fxtrace.roles.feed_forward import (
    INNER,
    FeedForward,
    Unknown,
    data_of,
    feed_forward,
    has_activation,
    is_projection,
    nodes_between,
)
from fxtrace.roles.flow import MOVES, Flow, numel, shape_of
from fxtrace.roles.router import ROUTING, SELECTIONS, STILL, Router, name_of
from fxtrace.roles.scores import scaling

_ALL, _REST = SliceArg(None, None, None), Symbol("Ellipsis")
_MERGES = frozenset(
    {"index_add", "scatter_add", "index_put", "index_copy", "scatter_reduce", "scatter", "setitem", "sum"}
)
_REORDERS = frozenset({"flip", "roll"})
# Between an expert's last projection and where it is weighted: a bias of its own, the experts side by side.
_GIVEN_OUT = MOVES | {"join", "add"}


@dataclass(frozen=True)
class Projection:
    """A product with an expert's weights, and the result, with the biases that are added to it."""

    product: Node
    result: Node
    biases: tuple[Node, ...] = ()


@dataclass
class Mixture:
    """One mixture of experts, as far as its dataflow shows it. What is not there is in `refused`, by part, with why."""

    source: Node
    """What router and experts read."""
    router: Router
    weights: Node
    experts: list[FeedForward]
    results: list[Node]
    """What each expert gives: its last projection, with its bias."""
    numbers: list[int | None]
    """Each expert's number, where a constant in the graph tells it; of no meaning where they are stacked."""
    stacked: bool
    """Whether the experts are one feed-forward over stacked weights."""
    products: list[Node]
    """The products of weights and outputs, for each expert; or of weights and input."""
    before: bool
    """Whether the weights are applied to what the experts read."""
    routed: Node
    output: Node
    chosen: Node | None = None
    selection: Node | None = None
    """What the largest are chosen of."""
    probabilities: Node | None = None
    scale: float = 1.0
    """The numbers that the routed output is multiplied by before anything is added."""
    added: Node | None = None
    """What is added to the routed experts: the shared one's output, weighted; or a bias."""
    shared: FeedForward | None = None
    shared_weight: Node | None = None
    projections: dict[str, Projection] = field(default_factory=dict)
    """The experts' projections, by the name of their result."""
    lookups: dict[str, Node] = field(default_factory=dict)
    """The indices by which a product looks up each row's weights, by the product's name."""
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def logits(self) -> Node:
        """The router's."""
        return self.router.logits

    @property
    def count(self) -> int:
        """Number of experts."""
        return self.router.count

    @property
    def dense(self) -> bool:
        """Whether the weights are those of all experts, rather than of the chosen."""
        return self.chosen is None or numel(self.weights) != numel(self.chosen)


def find_mixtures(flow: Flow) -> tuple[list[Mixture], dict[str, str]]:
    """Every mixture of experts in execution order; and of what only looks like a router, the names and why."""
    found: list[Mixture] = []
    refused: dict[str, str] = {}
    seen: set[str] = set()
    for node in flow.graph.nodes:
        entry = flow.data_input(node)
        if entry is None or not (name_of(node) in SELECTIONS or node.kind == "softmax"):
            continue
        logits, complete = flow.nearest(entry, is_projection, ROUTING)
        if len(logits) != 1 or not complete or logits[0].name in seen or (shape_of(logits[0]) or (0,))[-1] < 2:
            continue
        seen.add(logits[0].name)
        source = flow.data_input(logits[0])
        result = _Finder(flow, logits[0], source).find() if source is not None else ""
        if isinstance(result, Mixture):
            found.append(result)
        elif result:
            refused[node.name] = result
    return found, refused


class _Finder:
    """The search from one router's logits."""

    def __init__(self, flow: Flow, logits: Node, source: Node) -> None:
        self.flow, self.source = flow, source
        self.router = Router(flow, logits)
        self.root = self._root(source)

    def find(self) -> Mixture | str:
        """The mixture; why it is none; or an empty text where nothing looks like one."""
        outputs, products, before = self._weighted()
        if not outputs:
            return ""
        given, experts = self.router.given, self._side_by_side(outputs)
        for output in outputs if not experts else ():
            expert = feed_forward(self.flow, output, self._projects, given)
            if isinstance(expert, Unknown):
                return expert.reason
            experts.append(expert)
        for expert in experts:
            if not self._reads_source(expert.source):
                return f"'{expert.source.name}' does not come from '{self.root.name}', which the router reads"
        stacked = len(experts) == 1 and self._is_stacked(experts[0].output)
        if before and not stacked:
            return "the weights are applied to the input of a single feed-forward"
        chosen, count = self.router.chosen(), self.router.count
        if chosen is None and self.router.selects():
            return "the router selects, but no one tensor says which experts"
        if not stacked and (len(experts) > count or (chosen is None and len(experts) < count)):
            return f"{len(experts)} weighted feed-forwards are not the {count} experts that the router knows"
        weights = self.router.weights(products, chosen)
        if weights is None:
            return "no one tensor holds the weights of all experts"
        routed = self._routed(outputs if before else products)
        if routed is None:
            return "the experts' outputs are not added up to one tensor of the input's size"
        results = [self._biased(expert.output).result for expert in experts]
        numbers = [self._number(*each) for each in zip(experts, results, products, strict=True)]
        mixture = Mixture(
            self.source, self.router, weights, experts, results, numbers, stacked, products, before, routed, routed
        )
        self._scores(mixture, chosen)
        self._projections(mixture)
        self._output(mixture)
        return mixture

    def _scores(self, mixture: Mixture, chosen: Node | None) -> None:
        probabilities = self.router.probabilities()
        if isinstance(probabilities, str):
            mixture.refused["probabilities"] = probabilities
        else:
            mixture.probabilities = probabilities
        mixture.chosen = chosen
        if chosen is None:
            mixture.refused["chosen"] = "no one selection among all experts is in the graph"
        else:
            mixture.selection = self.router.selection(chosen)

    def _projections(self, mixture: Mixture) -> None:
        """Each projection of the experts with its bias, and the indices of the weights that it looks up."""
        for expert in mixture.experts:
            for part in ("hidden", "gate", "up", "output"):
                node = getattr(expert, part)
                if node is None:
                    continue
                projection = self._biased(node)
                mixture.projections[projection.result.name] = projection
                if part != "output":
                    setattr(expert, part, projection.result)
                for each in self.flow.inputs(node):
                    if each.name in self.router.rows:
                        row = list(self.flow.back(each, MOVES))[-1]
                        index = next(i for i in self.flow.inputs(row) if i.name in self.router.routing)
                        mixture.lookups[node.name] = index

    def _projects(self, node: Node) -> bool:
        """Whether an op is a projection, by parameters that the routing may have looked up."""
        return is_projection(node) or (
            node.kind == "matmul" and any(each.name in self.router.rows for each in self.flow.inputs(node))
        )

    def _root(self, node: Node) -> Node:
        """What a tensor was before it was reshaped, its tokens in the same order."""
        while node.kind in STILL and name_of(node) not in _REORDERS and (before := self.flow.data_input(node)):
            node = before
        return node

    def _reads_source(self, node: Node) -> bool:
        """Whether rows of tokens are the router's own: chosen, copied, or weighted."""
        here: Node | None = node
        while here is not None and here.name != self.root.name:
            if name_of(here) in _REORDERS or (here.kind not in MOVES and here not in self.router.meeting):
                return False
            here = data_of(self.flow, here, self.router.given)
        return here is not None

    def _weighted(self) -> tuple[list[Node], list[Node], bool]:
        """(the experts' last projections, where each is weighted, whether that is before the experts)."""
        outputs: dict[str, tuple[Node, Node]] = {}
        into: list[Node] = []
        for node in self.router.meeting:
            share = self.router.share(node) if node.kind in ("mul", "matmul") else None
            if share is None or (node.kind == "mul" and (shape_of(share) or (0,))[-1] != 1):
                continue  # weights of one expert are one number a token; others gate features
            other = next(each for each in self.flow.inputs(node) if self.flow.computed(each) and each is not share)
            found, complete = self.flow.nearest(other, self._projects, _GIVEN_OUT, self.router.given)
            if found and complete:
                outputs |= {each.name: (each, node) for each in found}
            elif self._root(other).name == self.root.name:
                into.append(node)
        if outputs or len(into) != 1:
            pairs = list(outputs.values())
            return [output for output, _ in pairs], [node for _, node in pairs], False
        path = self.flow.forward(into[0], MOVES, is_projection)
        path = path and self.flow.forward(path[-1], INNER, is_projection)
        return ([path[-1]] if path else []), into, True

    def _side_by_side(self, outputs: list[Node]) -> list[FeedForward]:
        """Experts that are joined after each projection, so that one activation does for all; empty if they are not."""
        activated = [data_of(self.flow, each, self.router.given) for each in outputs]
        if len(outputs) < 2 or activated[0] is None:
            return []
        firsts, complete = self.flow.nearest(activated[0], self._projects, INNER | {"join"}, self.router.given)
        inner = nodes_between(self.flow, activated[0], {each.name for each in firsts} | self.router.given)
        if not complete or len(firsts) != len(outputs) or not has_activation(inner):
            return []
        why = "the first projections of all experts are joined before the activation"
        return [
            FeedForward(source, entry, output, refused={"hidden": why})
            for output, entry, first in zip(outputs, activated, firsts, strict=True)
            if entry is not None and (source := data_of(self.flow, first, self.router.given)) is not None
        ]

    def _biased(self, node: Node) -> Projection:
        """A projection with the bias that is added to it, where it is no part of the op."""
        result, biases = node, []
        here = node
        while len(users := self.flow.users(here)) == 1 and (users[0].kind in STILL or users[0].kind == "add"):
            before, here = here, users[0]
            others = [each for each in self.flow.inputs(here) if each.name != before.name]
            if any(self.flow.computed(each) and each.name not in self.router.rows for each in others):
                break
            if here.kind == "add":
                result = here
                biases += others
        return Projection(node, result, tuple(biases))

    def _is_stacked(self, output: Node) -> bool:
        """Whether a projection is by the weights of all experts, or by each row's own."""
        inputs = [each for each in self.flow.inputs(output) if len(shape_of(each) or ()) >= 3]
        constant = any(not self.flow.computed(each) and self.router.count in (shape_of(each) or ()) for each in inputs)
        return constant or any(each.name in self.router.rows for each in inputs)

    def _number(self, expert: FeedForward, result: Node, product: Node) -> int | None:
        """An expert's number, where the graph has it as a constant, or as a place among all experts joined."""
        for node in self._selectors(expert, product):
            dim, index = _cut(node)
            shape = shape_of(self.flow.inputs(node)[0]) or () if index is not None else ()
            if len(shape) > 1 and shape[dim] == self.router.count:
                return index
            if name_of(node) == "eq" and _is_number(node.args[-1]):
                return int(str(node.args[-1]))
        path = self.flow.forward(result, MOVES, lambda user: user.kind == "join")
        joined = [each.name for each in self.flow.inputs(path[-1])] if path else []
        if path and len(joined) == self.router.count and self.router.share(product) is not None:
            return joined.index(path[-2].name) if self.flow.is_ancestor(path[-1], product) else None
        return None

    def _selectors(self, expert: FeedForward, product: Node) -> Iterator[Node]:
        """Nodes that may hold an expert's number: the cut out of stacked weights, of the weights, of a mask."""
        flow = self.flow
        for each in flow.inputs(expert.output):
            while not flow.computed(each) and each.kind in MOVES and flow.inputs(each):
                yield each
                each = flow.inputs(each)[0]
        yield from self.router.cuts(product)
        for each in flow.back(expert.source, MOVES):
            for index in flow.inputs(each):
                if index.name in self.router.routing:
                    yield from flow.back(index, ROUTING)

    def _routed(self, parts: list[Node]) -> Node | None:
        """Where all the weighted outputs have been added up."""
        flow, size = self.flow, numel(self.root)
        merged = {each.name for each in parts}
        result = max(parts, key=lambda each: flow.index[each.name])
        heap = [flow.index[user.name] for each in parts for user in flow.users(each)]
        heapq.heapify(heap)
        last = -1
        while heap:
            index = heapq.heappop(heap)
            if index == last:
                continue
            last, node = index, flow.graph.nodes[index]
            if not self._merges(node, merged):
                continue
            merged.add(node.name)
            if node.kind not in STILL and numel(node) == size:
                result = node
            for user in flow.users(node):
                heapq.heappush(heap, flow.index[user.name])
        return result if numel(result) == size and all(flow.is_ancestor(each, result) for each in parts) else None

    def _merges(self, node: Node, merged: set[str]) -> bool:
        inputs = [each for each in self.flow.inputs(node) if self.flow.computed(each)]
        if not all(each.name in merged | self.router.routing or self._is_blank(each) for each in inputs):
            return False
        if node.kind == "add":  # a bias is no part of the sum
            return all(self.flow.computed(each) or self._is_blank(each) for each in self.flow.inputs(node))
        return node.kind in MOVES | {"join"} or name_of(node) in _MERGES

    def _is_blank(self, node: Node) -> bool:
        """Whether a tensor is a fresh one that only took its size from another, or a part of it."""
        while node.kind in MOVES and self.flow.inputs(node):
            node = self.flow.inputs(node)[0]
        return node.kind == "create"

    def _output(self, mixture: Mixture) -> None:
        """Past the routed experts: the shared one, or a bias, that is added."""
        flow, here = self.flow, mixture.routed
        while len(users := [user for user in flow.users(here) if user.kind != "output"]) == 1:
            before, here = here, users[0]
            scaled = scaling(flow, here)
            if here.kind == "add":
                others = [each for each in flow.inputs(here) if each.name != before.name]
                if len(others) == 1 and (not flow.computed(others[0]) or self._shared(mixture, others[0])):
                    mixture.output, mixture.added = here, others[0]
                return
            if scaled is not None and not isinstance(scaled[1][1], str):
                mixture.scale = mixture.scale * scaled[1][1] if scaled[1][0] == "mul" else mixture.scale / scaled[1][1]
            elif here.kind not in STILL:
                return

    def _shared(self, mixture: Mixture, branch: Node) -> bool:
        """Whether what is added is a feed-forward of all tokens."""
        flow, here = self.flow, branch
        weight: Node | None = None
        while not is_projection(here):
            operands = [each for each in flow.inputs(here) if flow.computed(each)]
            if here.kind == "mul" and len(operands) == 2 and weight is None:
                ones = [each for each in operands if (shape_of(each) or (0,))[-1] == 1]
                if len(ones) != 1:
                    return False
                weight = ones[0]
                here = next(each for each in operands if each.name != weight.name)
            elif here.kind in STILL and operands:
                here = operands[0]
            else:
                return False
        expert = feed_forward(flow, here)
        if isinstance(expert, Unknown) or self._root(expert.source).name != self.root.name:
            return False
        mixture.shared, mixture.shared_weight = expert, weight
        return True


def _cut(node: Node) -> tuple[int, int | None]:
    """(the dimension, the place) at which a node is cut out of a tensor; no place where it is none, or several."""
    name, args = name_of(node), node.args[1:]
    if name == "select" and len(args) == 2 and _is_number(args[0]) and _is_number(args[1]):
        return int(str(args[0])), int(str(args[1]))
    if name != "getitem" or len(args) != 1:
        return 0, None
    if _is_number(args[0]):
        return 0, int(str(args[0]))
    places = args[0] if isinstance(args[0], tuple) else ()
    while places and places[-1] is None:
        places = places[:-1]
    if places and isinstance(last := places[-1], SliceArg) and _is_number(last.start) and _is_number(last.stop):
        start, stop = int(str(last.start)), int(str(last.stop))
        places = (*places[:-1], start) if stop == start + 1 else places
    alone = len(places) > 1 and _is_number(places[-1]) and all(each in (_ALL, _REST) for each in places[:-1])
    return -1, int(str(places[-1])) if alone else None


def _is_number(arg: object) -> bool:
    return isinstance(arg, int) and not isinstance(arg, bool)
