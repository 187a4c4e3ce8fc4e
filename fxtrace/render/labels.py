"""What is written in and beside the boxes, as Graphviz's HTML-like labels, and the tooltips."""

from __future__ import annotations

import html
import re
from math import prod

import graphviz

from fxtrace.graph import Arg, Graph, Node, Ref, Role, show, show_shape, show_sizes
from fxtrace.render.focus import TAKEN_FOR
from fxtrace.render.view import Box, Link, View

_SHORT_DTYPES = {"bool": "bool", "bfloat16": "bf16", "float": "f", "uint": "u", "int": "i", "complex": "c"}
_SYMBOLS = {"add": "+", "sub": "−", "mul": "×", "div": "÷"}
# Where a word starts in `LayerNorm` and `RMSNorm`, but not in `ReLU`.
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z][a-z])|(?<=[A-Z]{2})(?=[A-Z][a-z])")
_MOST_ROWS = 8
HEAD, SMALL = 10.5, 8

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


def escape(text: str) -> str:
    """Text for an attribute that is no label, taken as it is."""
    escaped: str = graphviz.escape(clean(text))
    return escaped


def font(text: str, colour: str, size: float = SMALL, *, bold: bool = False) -> str:
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
        return re.sub(_WORDS, "_", module.type).lower() if module else node.target
    return node.target.rpartition(".")[2].strip("_") or node.target


def main_role(node: Node) -> Role | None:
    """The role that says what a value is, rather than what the next block takes it for."""
    return next((role for role in node.roles if role.part not in TAKEN_FOR), next(iter(node.roles), None))


def value_name(node: Node) -> str:
    """What a value is known by: its role in full, or else its node."""
    return str(main_role(node) or node.name)


def role_part(node: Node) -> str:
    """The part a node plays, in words: `query heads`, `scores`, `layer output`."""
    role = main_role(node)
    if role is None:
        return ""
    words = role.block.split("_") if role.block else ["layer"]
    block = words[-1] if words[-1] == "attention" else "-".join(words)
    return f"{block} output" if role.part == "output" else role.part.replace("_", " ")


def parameter_rows(box: Box, graph: Graph) -> list[tuple[str, str]]:
    """(name, shape) of what a box reads; the name is qualified where it belongs to a module that is not the box's."""
    own = box.node.target if box.node.op == "call_module" else box.module
    shapes = [(name, show_shape(graph.parameters[name].shape)) for name in box.parameters]
    rows = [(name.removeprefix(own + ".") if own else name, shape) for name, shape in shapes]
    return rows if len(rows) <= _MOST_ROWS else [*rows[: _MOST_ROWS - 1], ("…", f"{len(rows) - _MOST_ROWS + 1} more")]


def constant_rows(node: Node, graph: Graph) -> list[tuple[str, str]]:
    """(name, value) of the constants that matter for what an op does."""
    rows = []
    if node.kind == "attention" and node.inputs:
        query = graph.by_name.get(node.inputs[0])
        if query is not None and query.spec is not None and len(query.spec.shape) == 4:
            rows.append(("heads", str(query.spec.shape[1])))
    module = graph.modules_by_path.get(node.target) if node.op == "call_module" else None
    for name, place in _CONSTANTS.get(node.kind, ()):
        if module is not None:
            value = module.settings.get(name)
        else:
            value = node.kwargs.get(name, node.args[place] if place < len(node.args) else None)
        if value is not None and value is not False and not isinstance(value, Ref) and (name, value) != ("groups", 1):
            if isinstance(value, tuple) and len(value) == 1:
                value = value[0]
            rows.append((name, f"{value:.4g}" if isinstance(value, float) else show(value)))
    return rows


def pill_text(node: Node, graph: Graph) -> str:
    """A pill's text: the op's name, or its sign with the number it takes (`÷ 5.657`)."""
    if node.target == "operator.getitem" and len(node.args) == 2:
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        return f"[{', '.join('…' if isinstance(each, Ref) else show(each) for each in index)}]"
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


def parameter_total(box: Box, graph: Graph) -> int:
    """Number of elements of the parameters a box reads, shared ones counted once."""
    names = {graph.parameters[name].same_as or name for name in box.parameters}
    return sum(prod(graph.parameters[name].shape) for name in names)


def box_details(box: Box, view: View) -> str:
    """A box's details: name, target, module, source line, shape, dtype, roles and their checks."""
    node = box.node
    if box.form == "module":
        module = view.graph.modules_by_path.get(box.module)
        return f"{box.module}\n{module.type if module else ''}\n{view.calls[box.module]} ops"
    lines = [f"{node.name}: {node.target}"]
    if node.module:
        lines.append(f"in {node.module}")
    lines += [f"{tensor} {show_sizes(spec)} {spec.dtype}" for tensor, spec in node.tensors]
    if node.source is not None:
        lines.append(f"{node.source.file}:{node.source.line} {node.source.code}")
    for role in node.roles:
        lines.append(f"role {role}")
        for check in role.checks:
            mark = {True: "holds", False: "FAILS", None: "not tried"}[check.held]
            lines.append(f"- {check.statement}: {mark}")
    return "\n".join(lines)


def link_details(link: Link, view: View) -> str:
    """Where a link leads, and through what."""
    names = [view.boxes[link.tail].node.name, *link.via, view.boxes[link.head].node.name]
    text = " → ".join(names)
    return f"{text}\n{show_sizes(link.spec)} {link.spec.dtype}" if link.spec else text
