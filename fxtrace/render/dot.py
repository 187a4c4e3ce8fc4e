"""DOT text of a graph: a pure function of the graph and the options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import graphviz

from fxtrace.graph import Graph, Snapshot, TensorSpec, show_sizes
from fxtrace.ir.trace import RenderOptions
from fxtrace.render import boxes, focus, labels
from fxtrace.render.fold import fold_depth, fold_layers, is_lit
from fxtrace.render.labels import font
from fxtrace.render.links import alone, mark, share
from fxtrace.render.style import FONT, PALETTES, Palette
from fxtrace.render.title import heading, legend
from fxtrace.render.view import HOLDERS, Box, Link, View, build, home, prefixes

_LEFT = '<BR ALIGN="LEFT"/>'
_BIG = 1000  # boxes; beyond it, the layout's iterations are limited
_DEFAULTS = RenderOptions()


def to_dot(
    graph: Graph, options: RenderOptions = _DEFAULTS, *, snapshots: Sequence[Snapshot] = (), title: str = ""
) -> str:
    """A graph as DOT text, ready for `to_image` or any Graphviz.

    Args:
        graph: what to draw.
        options: how to draw it.
        snapshots: the graph's snapshots; needed only to highlight some by number (`#33`).
        title: the picture's title; the root module's class name if empty.

    Raises:
        OptionInvalid: an option has a value outside its set or range.
        NodeNotFound: the options name a node, role or module that the graph has not.
        SnapshotNotFound: the options name a snapshot that is not among `snapshots`, or not in the graph.
    """
    focus.check(graph, options)
    lit, keep = focus.highlighted(graph, options.highlight, snapshots)
    view = mark(build(graph, scope=options.module, views=options.views, keep=keep))
    if options.fold_layers:
        view = fold_layers(view, lit)
    if options.depth is not None:
        view = fold_depth(view, options.depth)
    return Drawing(share(view), options, lit).source(title)


class Drawing:
    """A view written as DOT."""

    def __init__(self, view: View, options: RenderOptions, lit: frozenset[str]) -> None:
        self.view, self.lit = view, lit
        self.down = options.direction == "TB"
        self.direction = options.direction
        self.palette = PALETTES[options.theme]
        self.faded = self.palette.dimmed() if lit else self.palette
        self.frames = view.clusters()
        self.contents = self._contents()
        self.incoming = view.incoming()
        self.place = {key: index for index, key in enumerate(view.boxes)}
        self.ids = _ids(view)
        self.labelled = set(_labelled(view))
        self.alone = alone(view) if self.down else set()

    def source(self, title: str) -> str:
        """The DOT text."""
        palette, view = self.palette, self.view
        layout = {"newrank": "true"}
        if view.repeats:
            layout["ordering"] = "out"
        if len(view.boxes) > _BIG:
            layout |= {"nslimit": "1", "nslimit1": "1"}
        drawing = graphviz.Digraph(
            "fxtrace",
            graph_attr={
                "bgcolor": palette.paper,
                "fontname": FONT,
                "label": self.heading(title),
                "labeljust": "l",
                "labelloc": "t",
                "nodesep": "0.3",
                "pad": "0.35",
                "rankdir": self.direction,
                "ranksep": "0.4" if self.down else "0.25",
                **layout,
            },
            node_attr={"fontname": FONT, "shape": "plain"},
            edge_attr={"arrowhead": "vee", "arrowsize": "0.55", "color": palette.edge, "fontname": FONT},
        )
        self._fill(drawing, "")
        # Links stand side by side in the order they are written: residual ones last, on the far side.
        for link in sorted(view.links, key=lambda link: link.kind == "residual"):
            self._link(drawing, link)
        return str(drawing.source)

    def heading(self, title: str) -> str:
        """The picture's own label."""
        return heading(self.view, title, self.palette, legend(self.view, self.palette, lit=bool(self.lit)))

    def box_look(self, box: Box, name: str) -> dict[str, str]:
        """A box's attributes; `name` is its own module, as seen from the frame it is drawn in."""
        lit = is_lit(box, self.lit)
        return boxes.attributes(box, self.view, name, self.palette if lit else self.faded, lit=lit)

    def link_ink(self, link: Link) -> Palette:
        """The colours of a link."""
        ends = (self.view.boxes[link.tail], self.view.boxes[link.head])
        return self.palette if all(is_lit(box, self.lit) for box in ends) else self.faded

    def link_text(self, _: Link, spec: TensorSpec) -> str:
        """What is written beside a link."""
        return show_sizes(spec)

    def _contents(self) -> dict[str, list[Box | str]]:
        """What is directly in each frame: boxes, and paths of frames where their first box comes."""
        contents: dict[str, list[Box | str]] = {"": []}
        for box in self.view.boxes.values():
            frame = home(box, self.frames)
            for path in prefixes(frame):
                if path in self.frames and path not in contents:
                    contents[path] = []
                    contents[self.frames[path]].append(path)
            contents[frame].append(box)
        return contents

    def _fill(self, into: graphviz.Digraph, frame: str) -> None:
        """Draws what is in a frame."""
        for item in self.contents[frame]:
            if isinstance(item, Box):
                into.node(self.ids[item.key], **self.box_look(item, self._own_name(item, frame)))
            else:
                with into.subgraph(name=f"cluster_{labels.escape(item)}") as cluster:
                    cluster.attr(**self._frame(item, frame))
                    self._fill(cluster, item)
        if frame or self.view.scope:
            self._level(into, self._entries(frame))

    def _level(self, into: graphviz.Digraph, keys: list[str]) -> None:
        if len(keys) > 1:
            with into.subgraph() as level:
                level.attr(rank="same")
                for key in keys:
                    level.node(self.ids[key])

    def _entries(self, frame: str) -> list[str]:
        """Ops directly in a frame that read only what was there before it: query, key and value stand level."""
        own = [item for item in self.contents[frame] if isinstance(item, Box) and item.form in ("op", "module")]
        begins = min((self.place[key] for key in self._all_ops(frame)), default=0)

        def enters(link: Link) -> bool:
            return self.place[link.tail] < begins or self.view.boxes[link.tail].form in ("port", "note")

        return [box.key for box in own if all(map(enters, self.incoming[box.key]))]

    def _all_ops(self, frame: str) -> Iterator[str]:
        for item in self.contents[frame]:
            if not isinstance(item, Box):
                yield from self._all_ops(item)
            elif item.form not in ("port", "note"):
                yield item.key

    def _shown(self, frame: str) -> str:
        """The innermost frame, from this one outwards, that is to be seen: those of mere holders are not."""
        types = self.view.graph.modules_by_path
        while frame and frame in types and types[frame].type in HOLDERS:
            frame = self.frames[frame]
        return frame or self.view.scope

    def _frame(self, path: str, parent: str) -> dict[str, str]:
        """The attributes of a frame. Frames inside inherit them, so all are set each time."""
        if self._shown(path) != path:
            return {"label": "", "margin": "0", "peripheries": "0"}  # only to keep a stack of layers together
        palette = self.palette
        depth, up = 0, self._shown(parent)
        while up in self.frames:
            depth, up = depth + 1, self._shown(self.frames[up])
        title = font(_relative(path, self._shown(parent)), palette.ink, labels.HEAD, bold=True)
        repeat = self.view.repeats.get(path, 1)
        if repeat > 1:
            title += "&nbsp;&nbsp; " + font(f"×{repeat}", palette.residual, 12, bold=True)
        module = self.view.graph.modules_by_path.get(path)
        # The class below the name: a narrow title leaves room for the links that come in beside it.
        lines = [title, font(module.type, palette.muted, 8.5)] if module else [title]
        return {
            "color": palette.cluster_line,
            "fillcolor": palette.clusters[min(depth, len(palette.clusters) - 1)],
            "label": f"<{''.join(f'{line}{_LEFT}' for line in lines)}>",
            "labeljust": "l",
            "labelloc": "t" if self.down else "b",  # on the side that residual links leave free
            "margin": "12",
            "peripheries": "1",
            "style": "rounded,filled",
            "tooltip": labels.escape(path),
        }

    def _own_name(self, box: Box, frame: str) -> str:
        """The box's own module, as seen from the frame it is drawn in."""
        path = box.node.target if box.node.op == "call_module" and box.form == "op" else box.module
        shown = self._shown(frame)
        return _relative(path, shown) if path != shown else ""

    def _link(self, drawing: graphviz.Digraph, link: Link) -> None:
        tail, head = self.ids[link.tail], self.ids[link.head]
        ink = self.link_ink(link)
        look = {"edgetooltip": boxes.tooltip(labels.link_details(link, self.view))}
        match link.kind:
            case "residual":
                # Round the block, out of one side and in at the same.
                side = "e" if self.down else "n"
                tail, head = f"{tail}:{side}", f"{head}:{side}"
                look |= {"arrowhead": "normal", "color": ink.residual, "penwidth": "2"}
            case "crossing":
                look |= {"arrowhead": "normal", "color": ink.crossing, "penwidth": "1.6"}
            case "flow":
                look |= {"color": ink.edge, "weight": "100"}  # straight, before frames are made narrow
        if link in self.labelled and link.spec is not None:
            look["label"] = f"<&nbsp;{font(self.link_text(link, link.spec), ink.muted)}>"
            if link in self.alone:
                # In nested frames Graphviz makes twice the room for a label, and would bend a straight line to find it.
                look["labelfloat"] = "true"
        drawing.edge(tail, head, **look)


def _labelled(view: View) -> Iterator[Link]:
    """The links that say their shape: one of those that take the same tensor to several readers."""
    fans: dict[tuple[str, tuple[int, ...], str], Link] = {}
    for link in view.links:
        if link.spec is not None and link.kind != "residual" and view.boxes[link.tail].form != "note":
            fans[link.tail, link.spec.shape, link.kind] = link
    yield from fans.values()


def _relative(path: str, frame: str) -> str:
    return path.removeprefix(frame + ".") if frame else path


def _ids(view: View) -> dict[str, str]:
    """A DOT id for each box: its key as letters, digits and underscores, so that the text reads well."""
    ids: dict[str, str] = {}
    taken: set[str] = set()
    for key in view.boxes:
        name = "".join(c if c.isascii() and c.isalnum() else "_" for c in key) or "_"
        while name in taken:
            name += "_"
        taken.add(name)
        ids[key] = name
    return ids
