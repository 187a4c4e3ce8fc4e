"""How each kind of box looks: its DOT attributes, label and tooltip."""

from __future__ import annotations

import graphviz

from fxtrace.graph import show_sizes
from fxtrace.render import labels
from fxtrace.render.labels import font
from fxtrace.render.style import Palette
from fxtrace.render.view import Box, View

_GREEK = {"weight": "γ", "bias": "β"}
_MOVES = frozenset({"view", "select", "cast"})


def attributes(box: Box, view: View, name: str, ink: Palette, *, lit: bool) -> dict[str, str]:
    """DOT attributes of a box.

    Args:
        box: what is drawn.
        view: what it is part of.
        name: the box's own module, as seen from the frame it is drawn in.
        ink: the colours to draw it in.
        lit: whether it is highlighted.
    """
    look = _look(box, view, name, ink)
    if lit and look.keys() == {"label"}:
        # A table has no outline of its own: it is set into a larger one.
        look["label"] = (
            f'<<TABLE BORDER="0" CELLBORDER="0" CELLPADDING="4" CELLSPACING="0" BGCOLOR="{ink.highlight}" '
            f'STYLE="ROUNDED"><TR><TD>{look["label"][1:-1]}</TD></TR></TABLE>>'
        )
    elif lit:
        look |= {"color": ink.highlight, "penwidth": "3"}
    return look | {"tooltip": tooltip(labels.box_details(box, view)), "id": labels.escape(box.key)}


def tooltip(text: str) -> str:
    """Lines of text as a tooltip attribute."""
    lines: str = graphviz.nohtml("\\n".join(labels.escape(line) for line in text.split("\n")))
    return lines


def _look(box: Box, view: View, name: str, ink: Palette) -> dict[str, str]:
    match box.form:
        case "op":
            return _op(box, view, name, ink)
        case "module":
            return _module(box, view, name, ink)
        case "pill":
            return _pill(box, view, ink)
        case "plus":
            return _plus(ink)
        case "port":
            return _port(box, ink)
        case "note":
            return _note(box, ink)


def _op(box: Box, view: View, name: str, ink: Palette) -> dict[str, str]:
    graph, node = view.graph, box.node
    rows = [*labels.parameter_rows(box, graph), *labels.constant_rows(node, graph)]
    words = [font(labels.op_name(node, graph), ink.head_ink, labels.HEAD, bold=True)]
    if name:
        words.append(font(name, ink.head_muted))
    if node.kind == "norm" and rows and {key for key, _ in rows} <= _GREEK.keys():
        words.append(font(" ".join([*(_GREEK[key] for key, _ in rows), rows[0][1]]), ink.head_muted))
        rows = []
    role = labels.role_part(node)
    if role:
        words.append("&nbsp; " + font(role, ink.head_ink))
    return _table(words, rows, box, ink)


def _module(box: Box, view: View, name: str, ink: Palette) -> dict[str, str]:
    module = view.graph.modules_by_path.get(box.module)
    words = [font(module.type if module else box.module, ink.head_ink, labels.HEAD, bold=True)]
    if name:
        words.append(font(name, ink.head_muted))
    repeat = view.repeats.get(box.module, 1)
    if repeat > 1:
        words.append(font(f"×{repeat}", ink.head_ink, labels.HEAD, bold=True))
    total = labels.parameter_total(box, view.graph)
    rows = [("params", labels.short_count(total))] if total else []
    return _table(words, [*rows, ("ops", str(view.calls[box.module]))], box, ink)


def _table(words: list[str], rows: list[tuple[str, str]], box: Box, ink: Palette) -> dict[str, str]:
    """A coloured head, and a body of rows with an outline of the same colour."""
    cells = (
        f'<TR><TD ALIGN="LEFT">{font(key, ink.muted)}</TD><TD ALIGN="LEFT">{font(value, ink.ink)}</TD></TR>'
        for key, value in rows
    )
    body = (
        f'<TR><TD CELLPADDING="1"><TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="3" '
        f'BGCOLOR="{ink.body}">{"".join(cells)}</TABLE></TD></TR>'
    )
    label = (
        f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0" BGCOLOR="{ink.head(box.family)}">'
        f'<TR><TD ALIGN="LEFT" CELLPADDING="5">{"&nbsp;&nbsp; ".join(words)}</TD></TR>{body if rows else ""}</TABLE>>'
    )
    return {"label": label}


def _pill(box: Box, view: View, ink: Palette) -> dict[str, str]:
    words = [font(labels.pill_text(box.node, view.graph), ink.ink, 9.5)]
    role = labels.role_part(box.node)
    if role:
        words.append(font(role, ink.muted))
    rows = [*labels.parameter_rows(box, view.graph), *labels.constant_rows(box.node, view.graph)]
    words += [font(f"{key} {value}", ink.muted) for key, value in rows]
    return {
        "shape": "box",
        "style": "rounded,filled",
        "fillcolor": ink.pill(box.family),
        "color": ink.head(box.family),
        "height": "0.26",
        "margin": "0.1,0.04",
        "label": f"<{'&nbsp; '.join(words)}>",
    }


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


def _port(box: Box, ink: Palette) -> dict[str, str]:
    words = [font(box.text or labels.value_name(box.node), ink.port_ink, 10, bold=True)]
    spec = box.node.spec
    if spec is not None:
        words.append(
            font(
                f"{labels.short_dtype(spec.dtype)} [{','.join(spec.symbolic or map(str, spec.shape))}]", ink.port_muted
            )
        )
    return {
        "shape": "box",
        "style": "rounded,filled",
        "fillcolor": ink.port,
        "color": ink.port,
        "height": "0.3",
        "margin": "0.16,0.08",
        "label": f"<{'&nbsp;&nbsp; '.join(words)}>",
    }


def _note(box: Box, ink: Palette) -> dict[str, str]:
    made = next((node for node in reversed(box.nodes) if node.kind not in _MOVES), box.node)
    words = [font(made.target.rpartition(".")[2] if made.op == "get_attr" else labels.value_name(made), ink.muted)]
    if box.node.spec is not None:
        words.append(font(show_sizes(box.node.spec), ink.muted, 7.5))
    return {
        "shape": "box",
        "style": "rounded,dashed",
        "color": ink.note,
        "height": "0.2",
        "margin": "0.08,0.03",
        "label": f"<{'&nbsp; '.join(words)}>",
    }
