"""DOT text of a graph: a pure function of the graph and the options."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from math import prod

import graphviz

from fxtrace.graph import Graph, Snapshot, show_shape
from fxtrace.render import focus, labels
from fxtrace.render.fold import fold_depth, fold_layers, is_lit
from fxtrace.render.labels import font
from fxtrace.render.links import mark
from fxtrace.render.style import FAMILIES, FONT, OTHER, PALETTES, Palette
from fxtrace.render.view import Box, Link, View, build, within
from fxtrace.trace import RenderOptions

_BIG = 1000  # boxes; beyond it, the layout's iterations are limited


def to_dot(
    graph: Graph, options: RenderOptions = RenderOptions(), *, snapshots: Sequence[Snapshot] = (), title: str = ""
) -> str:
    """A graph as DOT text, ready for `to_image` or any Graphviz.

    Args:
        graph: what to draw.
        options: how to draw it.
        snapshots: the graph's snapshots; needed only to highlight some by number (`#33`).
        title: the picture's title; the root module's class name if empty.

    Raises:
        OptionInvalid: an option has a value outside its range.
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
    return _Drawing(view, options, lit, title).source()


class _Drawing:
    def __init__(self, view: View, options: RenderOptions, lit: frozenset[str], title: str) -> None:
        self.view, self.options, self.lit, self.title = view, options, lit, title
        self.palette = PALETTES[options.theme]
        self.faded = self.palette.dimmed() if lit else self.palette
        self.frames = view.clusters()
        self.incoming = view.incoming()
        self.ids = _ids(view)
        self.labelled = set(_labelled(view))

    def source(self) -> str:
        palette, view = self.palette, self.view
        layout = {"newrank": "true", "ordering": "out"} if view.repeats else {"newrank": "true"}
        if len(view.boxes) > _BIG:
            layout |= {"nslimit": "1", "nslimit1": "1"}
        drawing = graphviz.Digraph(
            "fxtrace",
            graph_attr={
                "bgcolor": palette.paper,
                "fontname": FONT,
                "label": self._title(),
                "labeljust": "l",
                "labelloc": "t",
                "nodesep": "0.3",
                "pad": "0.35",
                "rankdir": self.options.direction,
                "ranksep": "0.34",
                **layout,
            },
            node_attr={"fontname": FONT, "shape": "plain"},
            edge_attr={"arrowhead": "vee", "arrowsize": "0.55", "color": palette.edge, "fontname": FONT},
        )
        self._fill(drawing, "")
        for link in view.links:
            self._link(drawing, link)
        return str(drawing.source)

    def _fill(self, into: graphviz.Digraph, frame: str) -> None:
        """Draws what is directly in a frame: boxes, and frames where their first box comes."""
        inner = [path for path, parent in self.frames.items() if parent == frame]
        done: set[str] = set()
        for box in self.view.boxes.values():
            path = next((path for path in inner if box.form != "port" and within(box.module, path)), "")
            if path and path not in done:
                done.add(path)
                with into.subgraph(name=f"cluster_{path}") as cluster:
                    cluster.attr(**self._frame(path, frame))
                    self._fill(cluster, path)
            elif not path and self._home(box) == frame:
                into.node(self.ids[box.key], **self._box(box, frame))
        entries = self._entries(frame)
        if len(entries) > 1:
            with into.subgraph() as level:
                level.attr(rank="same")
                for key in entries:
                    level.node(self.ids[key])

    def _entries(self, frame: str) -> list[str]:
        """Boxes directly in a frame that read only what comes from outside it: query, key and value stand level."""
        if not frame:
            return []
        own = [box for box in self.view.boxes.values() if box.form == "op" and self._home(box) == frame]
        return [
            box.key
            for box in own
            if not any(within(self.view.boxes[link.tail].module, frame) for link in self.incoming[box.key])
        ]

    def _home(self, box: Box) -> str:
        inside = [path for path in self.frames if box.form != "port" and within(box.module, path)]
        return max(inside, key=len, default="")

    def _frame(self, path: str, parent: str) -> dict[str, str]:
        palette = self.palette
        depth, up = 0, parent
        while up:
            depth, up = depth + 1, self.frames[up]
        module = self.view.graph.modules_by_path.get(path)
        words = [font(_relative(path, parent or self.view.scope), palette.ink, 10.5, bold=True)]
        if module:
            words.append(font(module.type, palette.muted, 8.5))
        repeat = self.view.repeats.get(path, 1)
        if repeat > 1:
            words.append(font(f"×{repeat}", palette.residual, 12, bold=True))
        return {
            "label": f"<{'&nbsp;&nbsp; '.join(words)}>",
            "labeljust": "l",
            "style": "rounded,filled",
            "fillcolor": palette.clusters[min(depth, len(palette.clusters) - 1)],
            "color": palette.cluster_line,
            "margin": "12",
            "tooltip": graphviz.escape(labels.clean(path)),
        }

    def _box(self, box: Box, frame: str) -> dict[str, str]:
        lit = is_lit(box, self.lit)
        ink = self.palette if lit else self.faded
        outline = {"color": ink.highlight, "penwidth": "3"} if lit else {}
        common = {"tooltip": _tip(labels.tooltip(box, self.view)), "id": graphviz.escape(labels.clean(box.key))}
        match box.form:
            case "port":
                return common | self._port(box, ink) | outline
            case "note":
                return common | self._note(box, ink) | outline
            case "plus":
                return common | _plus(ink) | outline
            case "pill":
                return common | self._pill(box, ink) | outline
            case _:
                label = labels.box_label(box, self.view, self._own_name(box, frame), ink)
                if lit:
                    label = (
                        f'<<TABLE BORDER="0" CELLBORDER="0" CELLPADDING="4" CELLSPACING="0" '
                        f'BGCOLOR="{ink.highlight}" STYLE="ROUNDED"><TR><TD>{label[1:-1]}</TD></TR></TABLE>>'
                    )
                return common | {"label": label}

    def _own_name(self, box: Box, frame: str) -> str:
        """The box's own module, as seen from the frame it is drawn in."""
        path = box.node.target if box.node.op == "call_module" and box.form == "op" else box.module
        return _relative(path, frame or self.view.scope) if path != (frame or self.view.scope) else ""

    def _port(self, box: Box, ink: Palette) -> dict[str, str]:
        node = box.node
        spec = node.spec
        name = box.text or labels.role_part(node) or node.name
        words = [font(name, ink.port_ink, 10, bold=True)]
        if spec is not None:
            words.append(font(labels.spec_text(spec), ink.port_muted))
        return {
            "shape": "box",
            "style": "rounded,filled",
            "fillcolor": ink.port,
            "color": ink.port,
            "margin": "0.16,0.08",
            "height": "0.3",
            "label": f"<{'&nbsp;&nbsp; '.join(words)}>",
        }

    def _note(self, box: Box, ink: Palette) -> dict[str, str]:
        named = next((node for node in reversed(box.nodes) if node.kind not in ("view", "select", "cast")), box.node)
        words = [font(named.target.rpartition(".")[2], ink.muted)]
        if box.node.spec is not None:
            words.append(font(show_shape(box.node.spec.shape), ink.muted, 7.5))
        return {
            "shape": "box",
            "style": "rounded,dashed",
            "color": ink.note,
            "height": "0.2",
            "margin": "0.08,0.03",
            "label": f"<{'&nbsp; '.join(words)}>",
        }

    def _pill(self, box: Box, ink: Palette) -> dict[str, str]:
        words = [font(labels.pill_text(box.node, self.view.graph), ink.ink, 9.5)]
        role = labels.role_part(box.node)
        if role:
            words.append(font(role, ink.muted))
        words += [font(f"{name} {shape}", ink.muted) for name, shape in labels.parameter_rows(box, self.view.graph)]
        return {
            "shape": "box",
            "style": "rounded,filled",
            "fillcolor": ink.pill(box.family),
            "color": ink.head(box.family),
            "height": "0.26",
            "margin": "0.1,0.04",
            "label": f"<{'&nbsp; '.join(words)}>",
        }

    def _link(self, drawing: graphviz.Digraph, link: Link) -> None:
        tail, head = self.view.boxes[link.tail], self.view.boxes[link.head]
        lit = is_lit(tail, self.lit) and is_lit(head, self.lit)
        ink = self.palette if lit else self.faded
        attributes = {"edgetooltip": _tip(labels.link_tooltip(link, self.view))}
        side = "e" if self.options.direction == "TB" else "s"
        tail_id, head_id = self.ids[link.tail], self.ids[link.head]
        if link.kind == "residual":
            attributes |= {
                "color": ink.residual,
                "penwidth": "2",
                "weight": "1",
                "arrowhead": "normal",
            }
            tail_id, head_id = f"{tail_id}:{side}", f"{head_id}:{side}"
        elif link.kind == "crossing":
            attributes |= {"color": ink.crossing, "penwidth": "1.6", "arrowhead": "normal"}
        else:
            attributes |= {"color": ink.edge, "weight": "4"}
        if link in self.labelled and link.spec is not None:
            attributes["label"] = f"<&nbsp;{font(show_shape(link.spec.shape), ink.muted)}>"
        drawing.edge(tail_id, head_id, **attributes)

    def _title(self) -> str:
        view, palette = self.view, self.palette
        graph = view.graph
        module = graph.modules_by_path.get(view.scope)
        root = self.title or graph.name
        name = f"{root} · {view.scope}" if view.scope else root
        ops = [n for n in graph.nodes if n.op.startswith("call_") and n.kind != "size" and within(n.module, view.scope)]
        shown = sum(
            len(box.nodes) if box.form == "op" else 1 for box in view.boxes.values() if box.form not in ("port", "note")
        )
        count = sum(
            prod(p.shape)
            for m in graph.modules
            if within(m.path, view.scope)
            for p in m.parameters
            if not p.buffer and not p.same_as
        )
        facts = [f"{labels.short_count(count)} params", f"{len(ops)} ops ({shown} shown)"]
        if view.repeats:
            facts.append("identical layers folded " + ", ".join(f"×{n}" for n in dict.fromkeys(view.repeats.values())))
        dtypes = Counter(spec.dtype for node in ops for _, spec in node.tensors)
        if dtypes:
            facts.append(labels.short_dtype(dtypes.most_common(1)[0][0]))
        subtitle = (module.type + " · " if view.scope and module else "") + " · ".join(facts)
        head = f"{font(name, palette.ink, 17, bold=True)}&nbsp;&nbsp;&nbsp; {font(subtitle, palette.muted, 9.5)}"
        swatches = "".join(
            f'<TD>{font("■", colour, 13)}</TD><TD ALIGN="LEFT">{font(label, palette.muted, 8.5)}&nbsp;&nbsp; </TD>'
            for label, colour in self._legend()
        )
        return (
            '<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="3">'
            f'<TR><TD ALIGN="LEFT" CELLPADDING="4">{head}</TD></TR>'
            f'<TR><TD ALIGN="LEFT"><TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="2"><TR>{swatches}</TR>'
            "</TABLE></TD></TR></TABLE>>"
        )

    def _legend(self) -> list[tuple[str, str]]:
        palette, boxes = self.palette, self.view.boxes.values()
        present = {box.family for box in boxes if box.form in ("op", "pill", "module")}
        entries = [(f, palette.head(f)) for f in dict.fromkeys((*FAMILIES.values(), OTHER)) if f in present]
        kinds = {link.kind for link in self.view.links}
        entries += [("residual", palette.residual)] if "residual" in kinds else []
        entries += [("crosses stacks", palette.crossing)] if "crossing" in kinds else []
        entries += [("highlight", palette.highlight)] if self.lit else []
        return entries


def _labelled(view: View) -> Iterator[Link]:
    """The links that say their shape: of those that take the same tensor to several readers, the middle one."""
    fans: dict[tuple[str, tuple[int, ...], str], list[Link]] = defaultdict(list)
    for link in view.links:
        if link.spec is not None and link.kind != "residual" and view.boxes[link.tail].form != "note":
            fans[link.tail, link.spec.shape, link.kind].append(link)
    for fan in fans.values():
        yield fan[len(fan) // 2]


def _plus(ink: Palette) -> dict[str, str]:
    return {
        "shape": "circle",
        "style": "filled",
        "fillcolor": ink.residual,
        "color": ink.residual,
        "fixedsize": "true",
        "width": "0.24",
        "label": f"<{font('+', ink.head_ink, 12, bold=True)}>",
    }


def _tip(text: str) -> str:
    lines = (graphviz.escape(labels.clean(line)) for line in text.split("\n"))
    return graphviz.nohtml("\\n".join(lines))


def _relative(path: str, frame: str) -> str:
    return path.removeprefix(frame + ".") if frame else path


def _ids(view: View) -> dict[str, str]:
    """A DOT id for each box: its key where that can stand bare, so that the text reads well."""
    ids: dict[str, str] = {}
    taken: set[str] = set()
    for key in view.boxes:
        name = "".join(c if c.isascii() and c.isalnum() else "_" for c in key) or "_"
        while name in taken:
            name += "_"
        taken.add(name)
        ids[key] = name
    return ids
