"""Dataflow over a graph: who feeds whom, which model inputs a value depends on, and walks back and forth.

Size arithmetic is left out: a reshape is fed by the tensor it reshapes, not by the integers that say how.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace

from fxtrace.graph import Arg, Graph, Node, Ref, SliceArg
from fxtrace.roles.composites import find_written_norms

# Ops that keep every element as it is: moved, copied, cut out, cast, or (in evaluation mode) passed through dropout.
MOVES = frozenset({"view", "select", "cast", "dropout"})
# Ops between a projection and the tensor that enters a matrix product: rotations, scalings, norms of query and key.
ADJUSTS = MOVES | {"add", "sub", "mul", "div", "join", "elementwise", "norm"}
# Ops with parameters that mix features: where a projection ends.
PROJECTIONS = frozenset({"linear", "convolution"})
# Ops that take nothing but the shape, the dtype and the device of their input.
_OF_ITS_SHAPE = frozenset(
    {"new_empty", "new_zeros", "new_ones", "empty_like", "zeros_like", "ones_like", "rand_like", "randn_like"}
)
# Ops that take nothing but that of their second.
_AS_ANOTHER = frozenset({"view_as", "reshape_as", "expand_as", "type_as"})


class Flow:
    """A graph's dataflow.

    What is read after an op changed it in place is that op's result, whichever name it is read by.
    A norm that is written out counts as one op: its last node is of kind `norm` here, and reads what is normalised.

    `inputs_of[name]` is the set of model inputs that a node's value depends on, as a bit mask; a constant that a
    residual stream starts from counts as one;
    `written_norms` are those norms by the name of their last node.
    """

    def __init__(self, graph: Graph) -> None:
        graph = _with_changes(graph)
        self.written_norms = {norm.result: norm for norm in find_written_norms(graph)}
        graph = replace(
            graph,
            nodes=tuple(
                replace(node, kind="norm") if node.name in self.written_norms else node for node in graph.nodes
            ),
        )
        self.graph = graph
        self.index = {node.name: i for i, node in enumerate(graph.nodes)}
        self._inputs: dict[str, tuple[Node, ...]] = {}
        self._users: dict[str, list[Node]] = {node.name: [] for node in graph.nodes}
        for node in graph.nodes:
            norm = self.written_norms.get(node.name)
            inputs = (graph.by_name[name] for name in ((norm.source,) if norm else _read(node)))
            self._inputs[node.name] = tuple(each for each in inputs if each.kind != "size")
            for each in self._inputs[node.name]:
                self._users[each.name].append(node)
        self.inputs_of = self._depends(frozenset())
        if starts := self._learned_starts():
            self.inputs_of = self._depends(starts)

    def _depends(self, starts: frozenset[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        bit = 1
        for node in self.graph.nodes:
            depends = 0
            for each in self._inputs[node.name]:
                depends |= found[each.name]
            if node.kind == "input" or node.name in starts:
                depends, bit = bit, bit << 1
            found[node.name] = depends
        return found

    def _learned_starts(self) -> frozenset[str]:
        """Constants that a branch which leaves from them is added back to: there a residual stream starts.

        So it does where a constant is projected to the queries of what is computed. (Carion et al. 2020, "End-to-End
        Object Detection with Transformers", reads learned queries; Zhai et al. 2022, "Scaling Vision Transformers",
        section 2, pools with one.)
        """
        found = set()
        for node in self.graph.nodes:
            inputs = self._inputs[node.name]
            if node.kind in ("matmul", "attention") and [self.computed(each) for each in inputs[:2]] == [False, True]:
                query = self._through(inputs[0], MOVES | {"mul", "div"})
                learned = self._through(self._inputs[query.name][0], MOVES) if query.kind == "linear" else None
                if learned is not None and learned.kind == "constant":
                    found.add(learned.name)
            if node.kind != "add" or len(inputs) != 2 or shape_of(inputs[0]) != shape_of(inputs[1]):
                continue
            first, second = sorted(inputs, key=lambda each: self.index[each.name])
            end = self._through(second, MOVES)
            if end.kind in PROJECTIONS and not self.computed(first) and self.is_ancestor(first, end):
                found.add(first.name)
        return frozenset(found)

    def _through(self, node: Node, kinds: Collection[str]) -> Node:
        """Back by first inputs, computed or not, as long as nodes are of one of the kinds."""
        while node.kind in kinds and self._inputs[node.name]:
            node = self._inputs[node.name][0]
        return node

    def inputs(self, node: Node) -> tuple[Node, ...]:
        """The nodes whose tensors a node reads, in the order of its arguments."""
        return self._inputs[node.name]

    def users(self, node: Node) -> tuple[Node, ...]:
        """The nodes that read a node's tensor, in execution order; size queries are left out."""
        return tuple(user for user in self._users[node.name] if user.kind != "size")

    def computed(self, node: Node) -> bool:
        """Whether a value depends on the model's inputs, rather than on parameters and constants alone."""
        return self.inputs_of[node.name] != 0

    def data_input(self, node: Node) -> Node | None:
        """The first input that depends on the model's inputs."""
        return next((each for each in self.inputs(node) if self.computed(each)), None)

    def back(self, node: Node, through: Collection[str]) -> Iterator[Node]:
        """The node, then its data input, and so on back, as long as the node left behind is of a kind in `through`."""
        here: Node | None = node
        while here is not None:
            yield here
            here = self.data_input(here) if here.kind in through else None

    def origin(self, node: Node) -> Iterator[Node]:
        """The node, and back through what rearranges it: moves, and padding to whole windows."""
        here: Node | None = node
        while here is not None:
            yield here
            here = self.data_input(here) if here.kind in MOVES or pads(here) else None

    def nearest(
        self,
        node: Node,
        stop: Collection[str] | Callable[[Node], bool],
        through: Collection[str],
        aside: Collection[str] = (),
    ) -> tuple[list[Node], bool]:
        """The closest ancestors of a kind in `stop`, or that it accepts, on every path back through kinds in `through`.

        Padding is passed too. Returns them in execution order, and whether every path ended at one. Constants, model
        inputs and integers end a path too: rotations depend on positions. So do the nodes named in `aside`.
        """
        stops = stop if callable(stop) else lambda each: each.kind in stop
        found: dict[str, Node] = {}
        complete = True
        seen: set[str] = set()
        stack = [node]
        while stack:
            here = stack.pop()
            if here.name in seen or here.name in aside or not self.computed(here):
                continue
            seen.add(here.name)
            if stops(here):
                found[here.name] = here
            elif here.kind in through or pads(here):
                stack.extend(self.inputs(here))
            elif here.kind != "input" and not _counts(here):
                complete = False
        return sorted(found.values(), key=lambda each: self.index[each.name]), complete

    def forward(self, node: Node, through: Collection[str], stop: Callable[[Node], bool]) -> list[Node] | None:
        """The shortest path of users from a node to one that `stop` accepts, both ends included, or None.

        Only nodes of a kind in `through` are passed.
        """
        paths = [[node]]
        seen = {node.name}
        while paths:
            path = paths.pop(0)
            for user in self.users(path[-1]):
                if stop(user):
                    return [*path, user]
                if user.kind in through and user.name not in seen:
                    seen.add(user.name)
                    paths.append([*path, user])
        return None

    def path_back(self, node: Node, to: Node) -> list[Node]:
        """A shortest path of inputs from `to` forward to `node`, both included; empty where there is none."""
        first = self.index[to.name]
        paths = [[node]]
        seen = {node.name}
        while paths:
            path = paths.pop(0)
            if path[0].name == to.name:
                return path
            for each in self.inputs(path[0]):
                if each.name not in seen and self.index[each.name] >= first:
                    seen.add(each.name)
                    paths.append([each, *path])
        return []

    def is_ancestor(self, ancestor: Node, node: Node) -> bool:
        """Whether a node's value depends on another's. Every value depends on itself."""
        return bool(self.path_back(node, ancestor))

    def ancestors(self, node: Node, until: Callable[[Node], bool] = lambda _: False) -> Iterator[Node]:
        """Every node that a value depends on, the nearest first; nothing behind those that `until` accepts."""
        seen = {node.name}
        queue = [node]
        while queue:
            here = queue.pop(0)
            for each in self.inputs(here):
                if each.name not in seen:
                    seen.add(each.name)
                    yield each
                    if not until(each):
                        queue.append(each)


def pads(node: Node) -> bool:
    """Whether a node pads a tensor, as windows need it."""
    return node.target.rpartition(".")[2] in ("pad", "constant_pad_nd")


_REORDERS = frozenset(
    {"transpose", "swapaxes", "swapdims", "permute", "movedim", "t", "T", "H", "mT", "mH", "adjoint", "getattr", "flip"}
    | {"roll"}
)


def keeps_rows(node: Node) -> bool:
    """Whether a move leaves the rows and columns of the scores what they are: it neither reorders nor cuts them."""
    return node.kind != "select" and node.target.rpartition(".")[2] not in _REORDERS


def same_rows(flow: Flow, node: Node) -> bool:
    """Whether a node hands on a tensor's rows in their order: cast, dropped out, or laid out anew."""
    before = flow.data_input(node)
    sizes, those_before = shape_of(node), shape_of(before) if before is not None else None
    alike = bool(sizes and those_before) and (sizes or ())[-1:] == (those_before or ())[-1:]
    return node.kind in MOVES and keeps_rows(node) and alike


def _with_changes(graph: Graph) -> Graph:
    """The graph with every read of a tensor after an op changed it in place read from that op.

    By PyTorch's convention such an op's name ends in an underscore, and what it changes is its first input.
    """
    latest: dict[str, str] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        if latest and not latest.keys().isdisjoint(node.inputs):
            args = tuple(_renamed(arg, latest) for arg in node.args)
            node = replace(node, args=args, kwargs={key: _renamed(arg, latest) for key, arg in node.kwargs.items()})
        nodes.append(node)
        if node.inputs and node.target.endswith("_") and not node.target.endswith("__"):
            before = node.inputs[0]
            latest |= {name: node.name for name, last in latest.items() if last == before} | {before: node.name}
    return replace(graph, nodes=tuple(nodes)) if latest else graph


def _renamed(arg: Arg, names: Mapping[str, str]) -> Arg:
    match arg:
        case Ref(node):
            return Ref(names.get(node, node))
        case tuple():
            return tuple(_renamed(each, names) for each in arg)
        case dict():
            return {key: _renamed(each, names) for key, each in arg.items()}
        case SliceArg(start, stop, step):
            return SliceArg(_renamed(start, names), _renamed(stop, names), _renamed(step, names))
        case _:
            return arg


def _read(node: Node) -> tuple[str, ...]:
    """The inputs whose numbers a node's value depends on: not those it takes the shape of, nor those it overwrites."""
    name = node.target.rpartition(".")[2]
    if name in _OF_ITS_SHAPE:
        return ()
    if name in _AS_ANOTHER:
        return node.inputs[:1]
    return node.inputs[1:] if name == "copy_" else node.inputs


def _counts(node: Node) -> bool:
    """Whether a node's numbers are integers or booleans: positions and the like, no features."""
    dtypes = {value.spec.dtype if value.spec is not None else value.type for value in node.values}
    return bool(dtypes) and not any("float" in dtype or "complex" in dtype for dtype in dtypes)


def shape_of(node: Node) -> tuple[int, ...] | None:
    """The shape of a node's tensor; None where it returns no tensor, or several."""
    return node.spec.shape if node.spec is not None else None


def numel(node: Node) -> int | None:
    """The number of elements of a node's tensor; None where it returns no tensor, or several."""
    shape = shape_of(node)
    if shape is None:
        return None
    total = 1
    for size in shape:
        total *= size
    return total
