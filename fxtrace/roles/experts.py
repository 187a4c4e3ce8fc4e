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

from fxtrace.graph import Node, Ref
from fxtrace.ops import KINDS
from fxtrace.roles.attention import scaling
from fxtrace.roles.feed_forward import INNER, FeedForward, Unknown, data_of, feed_forward, is_projection
from fxtrace.roles.flow import MOVES, PROJECTIONS, Flow, numel, shape_of

_SELECTIONS = frozenset({"topk", "argmax", "max", "sort", "argsort"})
# From a selection back to the logits: anything that neither mixes features nor starts afresh.
_ROUTING = frozenset(KINDS) - PROJECTIONS - {"matmul", "attention", "norm", "embedding", "recurrent", "module"}
_STILL = MOVES - {"select"}
_MERGES = frozenset(
    {"index_add", "scatter_add", "index_put", "index_copy", "scatter_reduce", "scatter", "setitem", "sum"}
)
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
    logits: Node
    routing: frozenset[str]
    """Names of all nodes that come from the logits alone."""
    count: int
    """Number of experts."""
    experts: list[FeedForward]
    results: list[Node]
    """What each expert gives: its last projection, with its bias."""
    numbers: list[int | None]
    """Each expert's number, where a constant in the graph tells it; of no meaning where they are stacked."""
    stacked: bool
    """Whether the experts are one feed-forward over stacked weights."""
    weighting: list[Node]
    """The products of weights and outputs, for each expert; or of weights and input."""
    weights: Node
    dense: bool
    """Whether the weights are those of all experts, rather than of the chosen."""
    before: bool
    """Whether the weights are applied to what the experts read."""
    routed: Node
    output: Node
    projections: dict[str, Projection] = field(default_factory=dict)
    """The experts' projections, by the name of their result."""
    scale: float = 1.0
    """The numbers that the routed output is multiplied by before anything is added."""
    lookups: dict[str, Node] = field(default_factory=dict)
    """The indices by which a product looks up each row's weights, by the product's name."""
    probabilities: Node | None = None
    selection: Node | None = None
    """What the largest are chosen of."""
    chosen: Node | None = None
    shared: FeedForward | None = None
    shared_weight: Node | None = None
    added: Node | None = None
    """What is added to the routed experts: the shared one's output, weighted; or a bias."""
    refused: dict[str, str] = field(default_factory=dict)


def name_of(node: Node) -> str:
    """The op's name, in place or not."""
    return node.target.rpartition(".")[2].strip("_")


def find_mixtures(flow: Flow) -> tuple[list[Mixture], dict[str, str]]:
    """Every mixture of experts in execution order, and for each router-like selection that is none, its name and why."""
    found: list[Mixture] = []
    refused: dict[str, str] = {}
    seen: set[str] = set()
    for node in flow.graph.nodes:
        selects = name_of(node) in _SELECTIONS
        entry = flow.data_input(node)
        if entry is None or not (selects or node.kind == "softmax"):
            continue
        logits, complete = flow.nearest(entry, is_projection, _ROUTING)
        if len(logits) != 1 or not complete or logits[0].name in seen or (shape_of(logits[0]) or (0,))[-1] < 2:
            continue
        seen.add(logits[0].name)
        result = _Finder(flow, logits[0]).find()
        if isinstance(result, Mixture):
            found.append(result)
        elif result:
            refused[node.name] = result
    return found, refused


class _Finder:
    """The search from one router's logits."""

    def __init__(self, flow: Flow, logits: Node) -> None:
        self.flow, self.logits = flow, logits
        self.count = (shape_of(logits) or (0,))[-1]
        self.tokens = (numel(logits) or 0) // self.count
        self.routing: set[str] = {logits.name}
        self.rows: set[str] = set()
        """Rows of parameters that the routing looks up: weights and biases, one for each row of tokens."""
        self.meeting: list[Node] = []
        """Where the routing meets other tensors, in execution order."""
        self._spread()

    @property
    def given(self) -> set[str]:
        return self.routing | self.rows

    def find(self) -> Mixture | str:
        """The mixture; why it is none; or an empty text where nothing looks like one."""
        flow = self.flow
        source = flow.data_input(self.logits)
        if source is None:
            return ""
        self.source = source
        self.root = self._root(source)
        outputs, weighting, before = self._weighted()
        if not outputs:
            return ""
        experts = [feed_forward(flow, each, self._projects, self.given, INNER | {"join"}) for each in outputs]
        for expert in experts:
            if isinstance(expert, Unknown):
                return expert.reason
            if not self._reads_source(expert.source):
                return f"'{expert.source.name}' does not come from '{self.root.name}', which the router reads"
        known = [expert for expert in experts if isinstance(expert, FeedForward)]
        stacked = len(known) == 1 and self._is_stacked(known[0].output)
        if before and not stacked:
            return "the weights are applied to the input of a single feed-forward"
        chosen = self._chosen()
        if not stacked and (len(known) > self.count or (chosen is None and len(known) < self.count)):
            return f"{len(known)} weighted feed-forwards are not the {self.count} experts that the router knows"
        weights = self._weights(weighting, chosen)
        if weights is None:
            return "no one tensor holds the weights of all experts"
        routed = self._routed(weighting if not before else outputs)
        if routed is None:
            return "the experts' outputs are not added up to one tensor of the input's size"
        numbers = [self._number(expert, node) for expert, node in zip(known, weighting, strict=False)]
        mixture = Mixture(
            source,
            self.logits,
            frozenset(self.routing),
            self.count,
            known,
            [self._biased(expert.output).result for expert in known],
            numbers,
            stacked,
            weighting,
            weights,
            numel(weights) != numel(chosen) if chosen is not None else True,
            before,
            routed,
            routed,
            lookups=self._lookups(),
            chosen=chosen,
        )
        for expert in known:
            for part in ("hidden", "gate", "up", "output"):
                if (node := getattr(expert, part)) is not None:
                    projection = self._biased(node)
                    mixture.projections[projection.result.name] = projection
                    if part != "output":
                        setattr(expert, part, projection.result)
        self._scores(mixture)
        self._output(mixture)
        return mixture

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
            if node.kind == "embedding" and inside:
                self.rows.add(node.name)
            elif node.kind in MOVES and inputs and inputs[0].name in self.rows:
                self.rows.add(node.name)
            elif inside and node.kind not in PROJECTIONS | {"output"}:
                self.routing.add(node.name)
            else:
                self.meeting.append(node)
                continue
            for user in flow.users(node):
                heapq.heappush(heap, flow.index[user.name])

    def _projects(self, node: Node) -> bool:
        """Whether an op is a projection, by parameters that the routing may have looked up."""
        return is_projection(node) or (
            node.kind == "matmul" and any(each.name in self.rows for each in self.flow.inputs(node))
        )

    def _root(self, node: Node) -> Node:
        """What a tensor was before it was moved."""
        return list(self.flow.back(node, MOVES))[-1]

    def _reads_source(self, node: Node) -> bool:
        """Whether rows of tokens are the router's own: chosen, copied, or weighted."""
        here: Node | None = node
        while here is not None and here.name != self.root.name:
            if here.kind not in MOVES and here not in self.meeting:
                return False
            here = data_of(self.flow, here, self.given)
        return here is not None

    def _weighted(self) -> tuple[list[Node], list[Node], bool]:
        """(the experts' last projections, where each is weighted, whether that is before the experts)."""
        outputs: dict[str, tuple[Node, Node]] = {}
        into: list[Node] = []
        for node in self.meeting:
            operands = [each for each in self.flow.inputs(node) if self.flow.computed(each)]
            weights = [each for each in operands if each.name in self.routing and _is_float(each)]
            others = [each for each in operands if each.name not in self.given]
            if node.kind not in ("mul", "matmul") or len(weights) != 1 or len(others) != 1:
                continue
            if node.kind == "mul" and (shape_of(weights[0]) or (0,))[-1] != 1:
                continue  # a gate over features
            found, complete = self.flow.nearest(others[0], self._projects, _GIVEN_OUT, self.given)
            if found and complete:
                outputs |= {each.name: (each, node) for each in found}
            elif self._root(others[0]).name == self.root.name:
                into.append(node)
        if outputs or len(into) != 1:
            pairs = list(outputs.values())
            return [output for output, _ in pairs], [node for _, node in pairs], False
        path = self.flow.forward(into[0], MOVES, is_projection)
        path = path and self.flow.forward(path[-1], INNER, is_projection)
        return ([path[-1]] if path else []), into, True

    def _biased(self, node: Node) -> Projection:
        """A projection with the bias that is added to it, where it is no part of the op."""
        result, biases = node, []
        here = node
        while len(users := self.flow.users(here)) == 1 and (users[0].kind in _STILL or users[0].kind == "add"):
            before, here = here, users[0]
            others = [each for each in self.flow.inputs(here) if each.name != before.name]
            if any(self.flow.computed(each) and each.name not in self.rows for each in others):
                break
            if here.kind == "add":
                result = here
                biases += others
        return Projection(node, result, tuple(biases))

    def _lookups(self) -> dict[str, Node]:
        """The indices of the weights that each product looks up."""
        found: dict[str, Node] = {}
        for node in self.meeting:
            for each in self.flow.inputs(node):
                if each.name in self.rows and self._projects(node):
                    row = list(self.flow.back(each, MOVES))[-1]
                    found |= {node.name: index for index in self.flow.inputs(row) if index.name in self.routing}
        return found

    def _is_stacked(self, output: Node) -> bool:
        """Whether a projection is by weights of all experts, or by each row's own."""
        constants = [each for each in self.flow.inputs(output) if not self.flow.computed(each)]
        ranked = any(len(shape_of(each) or ()) >= 3 and self.count in (shape_of(each) or ()) for each in constants)
        rows = [each for each in self.flow.inputs(output) if each.name in self.rows]
        return ranked or any(len(shape_of(each) or ()) >= 3 for each in rows)

    def _chosen(self) -> Node | None:
        """The indices of the experts chosen for each token: of a selection among all of them."""
        found = [node for node in self.flow.graph.nodes if node.name in self.routing and self._selects(node)]
        joined = [
            node
            for node in self.flow.graph.nodes
            if node.kind == "join" and found and [each.name for each in self.flow.inputs(node)] == [n.name for n in found]
        ]
        found = joined if len(joined) == 1 else found
        return found[0] if len(found) == 1 else None

    def _selects(self, node: Node) -> bool:
        if name_of(node) in ("argmax", "argsort"):
            call = node
        else:
            inputs = self.flow.inputs(node)
            call = inputs[0] if inputs else node
            if name_of(call) not in _SELECTIONS or name_of(node) != "getitem" or node.args[1:] != (1,):
                return False
        of = self.flow.data_input(call)
        size = numel(node) or 0
        last = (shape_of(of) or (0,))[-1] if of is not None else 0
        return last == self.count and size % max(1, self.tokens) == 0 and 0 < size and call.name in self.routing

    def _weights(self, weighting: list[Node], chosen: Node | None) -> Node | None:
        """The tensor with the weights of all: what every product's weights are cut out of."""
        chains = [self._chain(node) for node in weighting]
        common = [each for each in chains[0] if all(each.name in {n.name for n in chain} for chain in chains[1:])]
        for size in (numel(chosen) if chosen is not None else None, self.tokens * self.count):
            whole = [each for each in common if size and numel(each) == size]
            if whole:
                return whole[-1]
        return None

    def _chain(self, node: Node) -> list[Node]:
        weights = next(each for each in self.flow.inputs(node) if each.name in self.routing and _is_float(each))
        return [each for each in self.flow.back(weights, MOVES) if each.name in self.routing]

    def _number(self, expert: FeedForward, weighting: Node) -> int | None:
        """An expert's number, where the graph has it as a constant."""
        for node in self._selectors(expert, weighting):
            if node.kind == "select" and name_of(node) in ("getitem", "select"):
                base = self.flow.inputs(node)[0]
                shape = shape_of(base) or ()
                index = node.args[1:]
                first = index[0] if len(index) == 1 else (index[1] if name_of(node) == "select" and index[0] == 0 else None)
                if _is_number(first) and shape[:1] == (self.count,) and len(shape) > 1:
                    return int(str(first))
                if isinstance(first, tuple) and first and _is_number(first[-1]) and shape[-1:] == (self.count,):
                    return int(str(first[-1]))
                if name_of(node) == "select" and index[0] in (-1, len(shape) - 1) and shape[-1:] == (self.count,):
                    return int(str(index[1])) if _is_number(index[1]) else None
            if node.kind == "elementwise" and name_of(node) == "eq" and _is_number(node.args[-1]):
                return int(str(node.args[-1]))
        return None

    def _selectors(self, expert: FeedForward, weighting: Node) -> Iterator[Node]:
        """Nodes that may hold an expert's number: the cut out of stacked weights, of the mask, of the weights."""
        flow = self.flow
        for each in flow.inputs(expert.output):
            yield from () if flow.computed(each) else self._constant_chain(each)
        yield from self._chain(weighting)
        for each in flow.back(expert.source, MOVES):
            for index in flow.inputs(each):
                if index.name in self.routing:
                    yield from flow.back(index, _ROUTING)

    def _constant_chain(self, node: Node) -> Iterator[Node]:
        while node.kind in MOVES and self.flow.inputs(node):
            yield node
            node = self.flow.inputs(node)[0]

    def _routed(self, parts: list[Node]) -> Node | None:
        """Where all the weighted outputs have been added up."""
        flow, size = self.flow, numel(self.root)
        merged = {each.name for each in parts}
        order = sorted({flow.index[each.name] for each in parts})
        heap = list(order)
        last, result = -1, None
        pending = [user for each in parts for user in flow.users(each)]
        heap = [flow.index[user.name] for user in pending]
        heapq.heapify(heap)
        result = max(parts, key=lambda each: flow.index[each.name])
        while heap:
            index = heapq.heappop(heap)
            if index == last:
                continue
            last, node = index, flow.graph.nodes[index]
            if not self._merges(node, merged):
                continue
            merged.add(node.name)
            if node.kind not in _STILL and numel(node) == size:
                result = node
            for user in flow.users(node):
                heapq.heappush(heap, flow.index[user.name])
        return result if numel(result) == size and all(flow.is_ancestor(each, result) for each in parts) else None

    def _merges(self, node: Node, merged: set[str]) -> bool:
        inputs = [each for each in self.flow.inputs(node) if self.flow.computed(each)]
        if not all(each.name in merged | self.routing or self._is_blank(each) for each in inputs):
            return False
        return node.kind in MOVES | {"join", "add"} or name_of(node) in _MERGES

    def _is_blank(self, node: Node) -> bool:
        """Whether a tensor is a fresh one that only took its size from another, or a part of it."""
        return list(self.flow.back(node, MOVES))[-1].kind == "create"

    def _scores(self, mixture: Mixture) -> None:
        """The probabilities, and what the experts are chosen by."""
        flow, nodes = self.flow, self.flow.graph.nodes
        squashed = [
            node
            for node in nodes
            if node.name in self.routing and (node.kind == "softmax" or name_of(node) == "sigmoid")
        ]
        of_all = [
            node
            for node in squashed
            if shape_of(node) == shape_of(self.logits)
            and all(each.kind in _STILL for each in flow.path_back(node, self.logits)[1:-1])
        ]
        if len(of_all) == 1:
            mixture.probabilities = of_all[0]
        elif len(squashed) == 1:
            why = f"'{squashed[0].name}' is taken of the chosen experts' logits alone"
            mixture.refused["probabilities"] = why
        else:
            mixture.refused["probabilities"] = "no one softmax or sigmoid is taken of the logits of all experts"
        if mixture.chosen is None:
            mixture.refused["chosen"] = "no one selection among all experts is in the graph"
            return
        call = mixture.chosen
        while name_of(call) not in _SELECTIONS and call.kind in MOVES and flow.inputs(call):
            call = flow.inputs(call)[0]
        mixture.selection = flow.data_input(call) if name_of(call) in _SELECTIONS else None

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
            elif here.kind not in _STILL:
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
            elif here.kind in _STILL and operands:
                here = operands[0]
            else:
                return False
        expert = feed_forward(flow, here)
        if isinstance(expert, Unknown) or self._root(expert.source).name != self.root.name:
            return False
        mixture.shared, mixture.shared_weight = expert, weight
        return True


def _is_float(node: Node) -> bool:
    return node.spec is not None and "float" in node.spec.dtype


def _is_number(arg: object) -> bool:
    return isinstance(arg, int) and not isinstance(arg, bool)
