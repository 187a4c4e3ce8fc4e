"""Two graphs in one picture: what is added, removed, changed and equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from fxtrace.diff import GraphDiff, NodePair
from fxtrace.graph import Arg, Graph, Module, Node, Ref, SliceArg, TensorSpec, show_shape, show_sizes
from fxtrace.ir.trace import RenderOptions
from fxtrace.render import boxes, focus
from fxtrace.render.dot import Drawing
from fxtrace.render.fold import fold_depth, fold_layers
from fxtrace.render.labels import font
from fxtrace.render.links import mark, share
from fxtrace.render.style import Palette
from fxtrace.render.title import heading
from fxtrace.render.view import Box, Link, View, build

Change = Literal["added", "removed", "changed", "equal"]

SIGNS: Mapping[Change, str] = {"added": "+", "removed": "−", "changed": "≠", "equal": "="}
_DEFAULTS = RenderOptions()
_MOST_FIELDS = 6


@dataclass(frozen=True, slots=True)
class Mark:
    """What became of a node, the fields that account for it, and the shape that its tensor had where it has another."""

    change: Change
    causes: tuple[str, ...] = ()
    was: tuple[int, ...] | None = None


_EQUAL = Mark("equal")


def diff_to_dot(
    first: Graph, second: Graph, diff: GraphDiff, options: RenderOptions = _DEFAULTS, *, title: str = ""
) -> str:
    """Two graphs as the DOT text of one picture.

    It is a drawing of the second graph, with what the first one had besides put where it was. Nothing is told by colour
    alone: what is added, removed or changed has a sign and an outline of its own.

    Args:
        first: the graph before.
        second: the graph after.
        diff: what `fxtrace.diff` found of them.
        options: how to draw it; nodes, roles and modules are the second graph's.
        title: the picture's title; the root modules' class names if empty.

    Raises:
        OptionInvalid, NodeNotFound, SnapshotNotFound: as of `to_dot`.
    """
    focus.check(second, options)
    _, keep = focus.highlighted(second, options.highlight, ())  # drawn even where they only move elements
    old = _renamed(first, second, diff)
    marks = dict(_marks(diff, {node.name: twin.name for node, twin in zip(first.nodes, old.nodes, strict=True)}))
    gone = {name for name, each in marks.items() if each.change == "removed"}
    ours, theirs = (mark(build(graph, scope=options.module, views=options.views, keep=keep)) for graph in (old, second))
    view = _merged(ours, theirs, gone)
    if options.fold_layers:
        view = fold_layers(view, marks=marks)
    if options.depth is not None:
        view = fold_depth(view, options.depth)
    names = " → ".join(dict.fromkeys((first.name, second.name)))
    return _DiffDrawing(share(view), options, diff, marks).source(title or names)


class _DiffDrawing(Drawing):
    def __init__(self, view: View, options: RenderOptions, diff: GraphDiff, marks: Mapping[str, Mark]) -> None:
        super().__init__(view, options, frozenset())
        self.diff, self.marks = diff, marks
        self.inks = {change: self.palette.tinted(change) for change in SIGNS}

    def heading(self, title: str) -> str:
        diff = self.diff
        counts = {
            "added": len(diff.added),
            "removed": len(diff.removed),
            "changed": len(diff.changed),
            "equal": len(diff.pairs) - len(diff.changed),
        }
        fields = [f"{each.name} {_shown(each.before)} → {_shown(each.after)}" for each in diff.fields]
        more = [f"and {len(fields) - _MOST_FIELDS} more fields"] if len(fields) > _MOST_FIELDS else []
        legend = [(f"{sign} {counts[name]} {name}", self.palette.changes[name]) for name, sign in SIGNS.items()]
        return heading(self.view, title, self.palette, legend, [*fields[:_MOST_FIELDS], *more])

    def box_look(self, box: Box, name: str) -> dict[str, str]:
        found = self.mark(box)
        ink = self.inks[found.change]
        look = boxes.attributes(box, self.view, name, ink, lit=False)
        if found.change == "equal":
            return look
        colour = self.palette.changes[found.change]
        sign = " ".join((SIGNS[found.change], ", ".join(found.causes))).strip()
        inner = look["label"][1:-1]
        if look.keys() <= {"label", "tooltip", "id"}:  # a table has no outline of its own: it is set into another
            style = ' STYLE="DASHED"' if found.change == "removed" else ""
            look["label"] = (
                f'<<TABLE BORDER="2" CELLBORDER="0" CELLPADDING="1" CELLSPACING="1" COLOR="{colour}"{style}>'
                f'<TR><TD ALIGN="LEFT">{font(sign, colour, 9, bold=True)}</TD></TR><TR><TD>{inner}</TD></TR></TABLE>>'
            )
        else:
            dashed = "dashed" if found.change == "removed" else "solid"
            look |= {"style": f"{look['style'].replace(',dashed', '')},{dashed}", "color": colour, "penwidth": "2"}
            if box.form != "plus":
                plain = self.palette.head_ink if box.form == "port" else colour
                look["label"] = f"<{font(sign, plain, 9, bold=True)}&nbsp;&nbsp; {inner}>"
        return look

    def mark(self, box: Box) -> Mark:
        """What became of what a box stands for; where its nodes differ in that, it is changed."""
        found = [self.marks.get(node.name, _EQUAL) for node in box.nodes]
        if len(set(found)) == 1:
            return found[0]
        changes = Counter(each.change for each in found)
        change: Change = "changed" if len(changes) > 1 else found[0].change
        return Mark(change, tuple(dict.fromkeys(cause for each in found for cause in each.causes)))

    def link_ink(self, link: Link) -> Palette:
        changes = {self.mark(self.view.boxes[end]).change for end in (link.tail, link.head)}
        for change in ("removed", "added"):
            if change in changes:
                return self.inks[change]
        return self.inks["changed"] if self._was(link) else self.inks["equal"]

    def link_text(self, link: Link, spec: TensorSpec) -> str:
        was = self._was(link)
        return f"{show_shape(was)} → {show_sizes(spec)}" if was is not None else show_sizes(spec)

    def _was(self, link: Link) -> tuple[int, ...] | None:
        name = link.via[-1] if link.via else self.view.boxes[link.tail].node.name
        return self.marks.get(name, _EQUAL).was


def _marks(diff: GraphDiff, renamed: Mapping[str, str]) -> Iterator[tuple[str, Mark]]:
    """(node, what became of it), by the names in the picture."""
    for lone in diff.removed:
        yield renamed[lone.node.name], Mark("removed", lone.causes)
    for lone in diff.added:
        yield lone.node.name, Mark("added", lone.causes)
    for pair in diff.changed:
        yield pair.after.name, Mark("changed", pair.because, _shape_before(pair))


def _shape_before(pair: NodePair) -> tuple[int, ...] | None:
    for tensor in pair.tensors:
        if tensor.after.name == pair.after.name and tensor.before.shape != tensor.after.shape:
            return tensor.before.shape
    return None


def _renamed(first: Graph, second: Graph, diff: GraphDiff) -> Graph:
    """The first graph, with the second one's names for nodes that correspond, and names of their own for the others."""
    names = {pair.before.name: pair.after.name for pair in diff.pairs}
    taken = set(second.by_name)
    for node in first.nodes:
        if node.name not in names:
            name = node.name
            while name in taken:
                name += "_before"
            taken.add(name)
            names[node.name] = name

    def rename(arg: Arg) -> Arg:
        match arg:
            case Ref(node):
                return Ref(names.get(node, node))
            case tuple():
                return tuple(map(rename, arg))
            case dict():
                return {key: rename(item) for key, item in arg.items()}
            case SliceArg(start, stop, step):
                return SliceArg(rename(start), rename(stop), rename(step))
            case _:
                return arg

    def again(node: Node) -> Node:
        kwargs = {key: rename(arg) for key, arg in node.kwargs.items()}
        return replace(node, name=names[node.name], args=tuple(map(rename, node.args)), kwargs=kwargs)

    return replace(first, nodes=tuple(map(again, first.nodes)))


def _merged(old: View, new: View, gone: set[str]) -> View:
    """The new view, with the boxes of the old one that stand for nodes that are gone put where they were."""
    removed = {key for key, box in old.boxes.items() if all(node.name in gone for node in box.nodes)} - set(new.boxes)
    order = list(_in_order(list(old.boxes), list(new.boxes), removed))
    known = {**old.boxes, **new.boxes}
    links = (
        link
        for link in old.links
        if (link.tail in removed or link.head in removed) and {link.tail, link.head} <= removed | new.boxes.keys()
    )
    graph = replace(
        new.graph,
        nodes=(*new.graph.nodes, *(node for node in old.graph.nodes if node.name in gone)),
        modules=tuple(_modules(new.graph, old.graph)),
    )
    return replace(new, graph=graph, boxes={key: known[key] for key in order}, links=(*new.links, *links))


def _in_order(old: Iterable[str], new: list[str], removed: set[str]) -> Iterator[str]:
    """All keys, those that are removed right after what came before them."""
    after: dict[str, list[str]] = {}
    last, kept = "", set(new)
    for key in old:
        if key in removed:
            after.setdefault(last, []).append(key)
        elif key in kept:
            last = key
    yield from after.get("", ())
    for key in new:
        yield key
        yield from after.get(key, ())


def _modules(new: Graph, old: Graph) -> Iterator[Module]:
    """The modules of both graphs, with the parameters that either one has."""
    for module in new.modules:
        twin = old.modules_by_path.get(module.path)
        more = (each for each in twin.parameters if each.name not in new.parameters) if twin else ()
        yield replace(module, parameters=(*module.parameters, *more))
    yield from (module for module in old.modules if module.path not in new.modules_by_path)


def _shown(value: object) -> str:
    text = "—" if value is None else str(value)
    return text if len(text) <= 24 else text[:23] + "…"
