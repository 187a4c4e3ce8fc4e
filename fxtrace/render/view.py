"""A drawing as data: boxes and the links between them, before any colour or text.

Nodes that only move elements are contracted away: a link passes through them and carries the tensor as its reader sees
it. Sizes are never drawn, parameters belong to the box that reads them, and a constant (a mask, a position table) is a
note of its own in each module that uses it, so that it pulls no two layers together.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from fxtrace.graph import Arg, Graph, Node, Ref, TensorSpec
from fxtrace.render.style import FAMILIES, OTHER, PILLS

MOVING = frozenset({"view", "select", "cast", "dropout"})
"""Kinds that leave their one tensor's elements as they are: contracted, unless views are asked for."""

# Modules that only hold others, and are never called.
HOLDERS = frozenset({"ModuleList", "ModuleDict"})

Form = Literal["op", "pill", "plus", "port", "note", "module"]
LinkKind = Literal["flow", "residual", "crossing"]


@dataclass(frozen=True, slots=True)
class Box:
    """Something drawn.

    Attributes:
        key: unique in the view.
        form: how it is drawn: an op with a head, a pill, a residual sum, an input or output, a constant, or a module
            folded into one.
        nodes: what it stands for; the last one's value is the box's.
        module: path of the module it is drawn in, or that it is.
        parameters: qualified names of what it reads, besides its inputs.
        text: what a port is called.
    """

    key: str
    form: Form
    nodes: tuple[Node, ...]
    module: str
    parameters: tuple[str, ...] = ()
    text: str = ""

    @property
    def node(self) -> Node:
        """The node whose value is the box's."""
        return self.nodes[-1]

    @property
    def family(self) -> str:
        """The family of ops it is coloured as."""
        return FAMILIES["module"] if self.form == "module" else FAMILIES.get(self.node.kind, OTHER)


@dataclass(frozen=True, slots=True)
class Link:
    """A tensor's way from box to box: `via` names the contracted nodes on it, `spec` is as its reader sees it."""

    tail: str
    head: str
    spec: TensorSpec | None
    via: tuple[str, ...] = ()
    kind: LinkKind = "flow"


@dataclass(frozen=True)
class View:
    """What is drawn of a graph.

    Attributes:
        scope: path of the module whose inside is drawn; empty for all.
        boxes: by key, in execution order.
        repeats: of each folded layer that is drawn, how many it stands for.
    """

    graph: Graph
    scope: str
    boxes: Mapping[str, Box]
    links: tuple[Link, ...]
    repeats: Mapping[str, int]

    @cached_property
    def calls(self) -> Mapping[str, int]:
        """How many ops that make tensors ran in each module, those inside it included; the root's path is empty."""
        counts: Counter[str] = Counter()
        for node in self.graph.nodes:
            if node.op.startswith("call_") and node.kind != "size":
                counts.update(("", *prefixes(node.module)))
        return counts

    def clusters(self) -> dict[str, str]:
        """Modules drawn as frames, outer ones first, each with the frame it is in.

        A frame holds at least two boxes, and not just the same ones as a frame inside it.
        """
        counts: dict[str, int] = defaultdict(int)
        for box in self.boxes.values():
            if box.form not in ("port", "note"):
                for path in prefixes(box.module, self.scope):
                    counts[path] += 1
        largest: dict[str, int] = defaultdict(lambda: 1)  # of the frames in each module, by boxes held
        kept: list[str] = []
        for path in sorted(counts, key=lambda path: -path.count(".")):
            if counts[path] > largest[path]:
                kept.append(path)
                for outer in prefixes(path, self.scope):
                    largest[outer] = max(largest[outer], counts[path])
        parents: dict[str, str] = {}
        for path in reversed(kept):
            parents[path] = next((p for p in reversed(list(prefixes(path, self.scope))[:-1]) if p in parents), "")
        return parents

    def incoming(self) -> dict[str, list[Link]]:
        """Links by the box they lead to."""
        links: dict[str, list[Link]] = {key: [] for key in self.boxes}
        for link in self.links:
            links[link.head].append(link)
        return links


def prefixes(path: str, scope: str = "") -> Iterator[str]:
    """The modules from `scope` (left out) down to `path`: `a`, `a.b`, `a.b.c`."""
    at = len(scope) if scope else -1
    while at < len(path):
        at = path.find(".", at + 1)
        at = len(path) if at < 0 else at
        if path[:at]:
            yield path[:at]


def within(path: str, module: str) -> bool:
    """Whether a module path is `module` or inside it."""
    return not module or path == module or path.startswith(module + ".")


def calls_deep(path: str, graph: Graph, scope: str = "") -> list[str]:
    """The modules from `scope` down to `path` that are called, not only hold others."""
    types = graph.modules_by_path
    return [p for p in prefixes(path, scope) if p not in types or types[p].type not in HOLDERS]


def build(graph: Graph, *, scope: str = "", views: bool = False, keep: frozenset[str] = frozenset()) -> View:
    """The boxes and links of a graph, or of one module's inside; nodes in `keep` are drawn even if they only move."""
    return _Builder(graph, scope, views, keep).view()


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a node's value comes from, seen through what is contracted.

    `box` is the drawn node it is the value of; without one, it is computed from `constants` or read from `parameters`.
    """

    box: str = ""
    via: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()


class _Builder:
    def __init__(self, graph: Graph, scope: str, views: bool, keep: frozenset[str]) -> None:
        self.graph, self.scope, self.views, self.keep = graph, scope, views, keep
        self.origins: dict[str, _Origin] = {}
        self.boxes: dict[str, Box] = {}
        self.links: list[Link] = []
        self.results = dict(self._results())
        self.leaving = {name for name, _ in self.results.values()}

    def view(self) -> View:
        for node in self.graph.nodes:
            if node.kind not in ("size", "output"):
                self.origins[node.name] = self._origin(node)
        frames = View(self.graph, self.scope, self.boxes, (), {}).clusters()
        drawn, self.boxes = self.boxes, {}
        for box in drawn.values():
            self._place(box, frames)
        for key, (name, text) in self.results.items():
            self._place(Box(f"out:{key}", "port", (self.graph.node(name),), "", text=text), frames)
        return View(self.graph, self.scope, self.boxes, tuple(dict.fromkeys(self.links)), {})

    def _inside(self, node: Node) -> bool:
        return within(node.module, self.scope) and not (self.scope and node.op == "placeholder")

    def _results(self) -> Iterator[tuple[str, tuple[str, str]]]:
        """(key, (node, what to call it)) of each value that leaves what is drawn."""
        if self.scope:
            for node in self.graph.nodes:
                readers = [self.graph.by_name[name] for name in self.graph.users[node.name]]
                if self._inside(node) and any(not self._inside(r) and r.kind != "size" for r in readers):
                    yield node.name, (node.name, "")
            return
        for output in self.graph.nodes:
            if output.op == "output":
                for path, name in (leaf for arg in output.args for leaf in _leaves(arg)):
                    if name in self.graph.by_name:
                        yield path or "output", (name, f"output {path}" if path[:1].isdigit() else path or "output")

    def _origin(self, node: Node) -> _Origin:
        if node.op == "get_attr":
            parameter = self.graph.parameters.get(node.target)
            if parameter is not None and not parameter.buffer:
                return _Origin(parameters=(node.target,))
            return _Origin(constants=(node.name,))
        stored = self.graph.parameters
        own = tuple(name for name in node.parameters if name in stored and not stored[name].buffer)
        inputs = [self.origins[name] for name in node.inputs if name in self.origins]
        data = [origin for origin in inputs if origin.box]
        constants = tuple(dict.fromkeys(n for origin in inputs for n in origin.constants))
        parameters = tuple(dict.fromkeys((*own, *(name for origin in inputs for name in origin.parameters))))
        moves = node.kind in MOVING and not self.views and node.name not in self.keep
        if not data and not parameters and (constants or node.kind == "create"):
            return _Origin(constants=(*constants, node.name))
        if moves and len(data) == 1 and not constants and not parameters:
            return replace(data[0], via=(*data[0].via, node.name))
        if moves and parameters and not data and not constants and node.name not in self.leaving:
            return _Origin(parameters=parameters)
        if self._inside(node):
            form: Form = "port" if node.op == "placeholder" else "pill" if node.kind in PILLS else "op"
            text = node.target if form == "port" else ""
            # A module that is one op is no frame around it, even if it is called twice.
            leaf = node.op == "call_module" and node.module == node.target
            module = "" if form == "port" else node.module.rpartition(".")[0] if leaf else node.module
            self.boxes[node.name] = Box(node.name, form, (node,), module, parameters, text)
        return _Origin(box=node.name)

    def _place(self, box: Box, frames: Mapping[str, str]) -> None:
        """Adds a box, and before it the notes and outside inputs it reads."""
        frame = home(box, frames)
        names = (box.node.name,) if box.key.startswith("out:") else box.node.inputs
        for name in names:
            origin = self.origins.get(name)
            if origin is None:
                continue
            spec = self.graph.by_name[name].spec
            if origin.box in self.boxes:
                self.links.append(Link(origin.box, box.key, spec, origin.via))
            elif origin.box:
                # It comes from outside: drawn as the very tensor that enters, whatever made it there.
                chain = (origin.box, *origin.via)
                last = max(i for i, each in enumerate(chain) if not self._inside(self.graph.by_name[each]))
                tail = f"in:{chain[last]}"
                self.boxes.setdefault(tail, Box(tail, "port", (self.graph.by_name[chain[last]],), ""))
                self.links.append(Link(tail, box.key, spec, chain[last + 1 :]))
            elif origin.constants:
                tail = f"{name}@{frame}"
                self.boxes.setdefault(
                    tail, Box(tail, "note", tuple(self.graph.by_name[each] for each in origin.constants), frame)
                )
                self.links.append(Link(tail, box.key, spec))
        self.boxes[box.key] = box


def home(box: Box, frames: Mapping[str, str]) -> str:
    """The frame a box is drawn in; empty outside all."""
    return "" if box.form == "port" else _deepest(box.module, frames)


def _deepest(path: str, frames: Mapping[str, str]) -> str:
    return next((p for p in reversed(list(prefixes(path))) if p in frames), "")


def _leaves(arg: Arg, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, node) of each node in what a graph returns; the one argument of `output` is the whole."""
    items: Iterable[tuple[object, Arg]] = ()
    match arg:
        case Ref(node):
            yield path, node
        case tuple():
            items = enumerate(arg)
        case dict():
            items = arg.items()
    for key, item in items:
        yield from _leaves(item, f"{path}.{key}" if path else str(key))
