"""What is written in and beside the boxes, as Graphviz's HTML-like labels, and the tooltips."""

from __future__ import annotations

import html
import re
from math import prod

from fxtrace.graph import Arg, Graph, Node, Ref, TensorSpec, show, show_shape
from fxtrace.render.style import Palette
from fxtrace.render.view import Box, Link, View

_SHORT_DTYPES = {"bool": "bool", "bfloat16": "bf16", "float": "f", "uint": "u", "int": "i", "complex": "c"}
_SYMBOLS = {"add": "+", "sub": "−", "mul": "×", "div": "÷"}
_GREEK = {"weight": "γ", "bias": "β"}
_TITLE, _HEAD, _SMALL = 17, 10.5, 8

# The constants worth a row, by kind: the argument's name and its place among the positional ones.
_CONSTANTS: dict[str, tuple[tuple[str, int], ...]] = {
    "softmax": (("dim", 1),),
    "join": (("dim", 1),),
    "reduce": (("dim", 1),),
    "attention": (("is_causal", 5), ("scale", 6)),
    "convolution": (("stride", 3), ("padding", 4), ("groups", 6)),
}


def clean(text: str) -> str:
    """Text with what no label can hold (control characters, halves of surrogate pairs) shown as a replacement."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", re.sub(r"\s", " ", text))


def font(text: str, colour: str, size: float = _SMALL, *, bold: bool = False) -> str:
    """A run of text in a label."""
    shown = html.escape(clean(text)) or " "
    return f'<FONT COLOR="{colour}" POINT-SIZE="{size:g}">{f"<B>{shown}</B>" if bold else shown}</FONT>'


def short_dtype(dtype: str) -> str:
    """`float32` as `f32`, `int64` as `i64`."""
    for name, short in _SHORT_DTYPES.items():
        if dtype.startswith(name):
            return short + ("" if name in ("bool", "bfloat16") else dtype.removeprefix(name))
    return dtype


def short_count(count: int) -> str:
    """A number of parameters: `512`, `66.0 K`, `1.3 M`."""
    for power, suffix in ((1e9, " B"), (1e6, " M"), (1e3, " K")):
        if count >= power:
            return f"{count / power:.1f}{suffix}"
    return str(count)


def op_name(node: Node, graph: Graph) -> str:
    """What an op is called: `linear` for a call of `nn.Linear` and of `torch.nn.functional.linear`."""
    if node.op == "call_module":
        module = graph.modules_by_path.get(node.target)
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", module.type).lower() if module else node.target
    return node.target.rpartition(".")[2].strip("_") or node.target


def role_part(node: Node) -> str:
    """The part a node plays, in words: `query heads`, `scores`."""
    return node.roles[0].part.replace("_", " ") if node.roles else ""


def parameter_rows(box: Box, graph: Graph) -> list[tuple[str, str]]:
    """(name, shape) of what a box reads."""
    return [(name.rpartition(".")[2], show_shape(graph.parameters[name].shape)) for name in box.parameters]


def constant_rows(node: Node, graph: Graph) -> list[tuple[str, str]]:
    """(name, value) of the constants that matter for what an op does."""
    rows = []
    if node.kind == "attention" and node.inputs:
        query = graph.node(node.inputs[0]).spec
        if query is not None and len(query.shape) == 4:
            rows.append(("heads", str(query.shape[1])))
    for name, place in _CONSTANTS.get(node.kind, ()):
        value = node.kwargs.get(name, node.args[place] if place < len(node.args) else None)
        if value not in (None, False) and not isinstance(value, Ref):
            rows.append((name, f"{value:.4g}" if isinstance(value, float) else show(value)))
    return rows


def pill_text(node: Node, graph: Graph) -> str:
    """A pill's text: the op's name, or its sign with the number it takes (`÷ 5.657`)."""
    sign = _SYMBOLS.get(node.kind)
    if sign and len(node.args) == 2:
        left, right = (_number(arg, graph) for arg in node.args)
        if right:
            return f"{sign} {right}"
        if left:
            return f"{left} {sign}"
        return {"mul": "×"}.get(node.kind, op_name(node, graph))
    return op_name(node, graph)


def _number(arg: Arg, graph: Graph) -> str:
    if isinstance(arg, Ref):
        values = graph.by_name[arg.node].values if arg.node in graph.by_name else ()
        return values[0].text if len(values) == 1 and values[0].type in ("int", "float") else ""
    return f"{arg:.4g}" if isinstance(arg, int | float) and not isinstance(arg, bool) else ""


def box_label(box: Box, view: View, name: str, ink: Palette) -> str:
    """The label of an op or a folded module: a coloured head, and a body of parameters and constants.

    Args:
        name: the box's own name in the module it is drawn in.
        ink: the theme's colours to write in; dimmed ones for what a highlight leaves in the background.
    """
    graph, node = view.graph, box.node
    rows: list[tuple[str, str]]
    if box.form == "module":
        module = graph.modules_by_path.get(box.module)
        title, extra = module.type if module else box.module, ""
        total = parameter_total(box, graph)
        rows = [("params", short_count(total))] if total else []
        rows += [("ops", str(len(box.nodes)))]
    else:
        title, extra, rows = op_name(node, graph), "", [*parameter_rows(box, graph), *constant_rows(node, graph)]
        if node.kind == "norm" and rows and {key for key, _ in rows} <= _GREEK.keys():
            extra, rows = " ".join([*(_GREEK[key] for key, _ in rows), rows[0][1]]), []
    colour = ink.head(box.family)
    words = [font(title, ink.head_ink, _HEAD, bold=True)]
    words += [font(word, ink.head_muted) for word in (name, extra) if word]
    if box.form == "module" and view.repeats.get(box.module, 1) > 1:
        words.append(font(f"×{view.repeats[box.module]}", ink.head_ink, _HEAD, bold=True))
    head = "&nbsp; ".join(words)
    role = role_part(node) if box.form == "op" else ""
    if role:
        head += "&nbsp;&nbsp; " + font(role, ink.head_ink, _SMALL)
    body = "".join(
        f'<TR><TD ALIGN="LEFT">{font(key, ink.muted)}</TD><TD ALIGN="LEFT">{font(value, ink.ink)}</TD></TR>'
        for key, value in rows
    )
    if body:
        body = (
            f'<TR><TD CELLPADDING="1"><TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="3" '
            f'BGCOLOR="{ink.body}">{body}</TABLE></TD></TR>'
        )
    return (
        f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0" BGCOLOR="{colour}">'
        f'<TR><TD ALIGN="LEFT" CELLPADDING="5">{head}</TD></TR>{body}</TABLE>>'
    )


def parameter_total(box: Box, graph: Graph) -> int:
    """Number of elements of the parameters a box reads, shared ones counted once."""
    names = {graph.parameters[name].same_as or name for name in box.parameters}
    return sum(prod(graph.parameters[name].shape) for name in names)


def spec_text(spec: TensorSpec | None) -> str:
    """`f32 [1,5,128]`."""
    return f"{short_dtype(spec.dtype)} [{','.join(map(str, spec.shape))}]" if spec else ""


def tooltip(box: Box, view: View) -> str:
    """A box's details: name, target, module, source line, shape, dtype, roles and their checks."""
    node = box.node
    if box.form == "module":
        module = view.graph.modules_by_path.get(box.module)
        return f"{box.module}\n{module.type if module else ''}\n{len(box.nodes)} ops"
    lines = [f"{node.name}: {node.target}"]
    if node.module:
        lines.append(f"in {node.module}")
    lines += [f"{tensor}  {show_shape(spec.shape)}  {spec.dtype}" for tensor, spec in node.tensors]
    if node.source is not None:
        lines.append(f"{node.source.file}:{node.source.line}  {node.source.code}")
    for role in node.roles:
        lines.append(f"role {role}")
        for check in role.checks:
            mark = {True: "holds", False: "FAILS", None: "not tried"}[check.held]
            lines.append(f"  {check.statement}: {mark}")
    return "\n".join(lines)


def link_tooltip(link: Link, view: View) -> str:
    """Where a link leads, and through what."""
    names = [view.boxes[link.tail].node.name, *link.via, view.boxes[link.head].node.name]
    text = " → ".join(names)
    return f"{text}\n{show_shape(link.spec.shape)}  {link.spec.dtype}" if link.spec else text
