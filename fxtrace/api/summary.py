"""What a person sees of a trace at first: facts about the run, and its modules in the order they ran."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import prod
from typing import TYPE_CHECKING, Any

from fxtrace.api.selection import shape_text
from fxtrace.api.text import html_table
from fxtrace.graph import Graph, Node
from fxtrace.ir.text import aligned, bytes_text, count_text, listed
from fxtrace.ir.text import facts as fact_lines
from fxtrace.ir.trace import TraceInfo

if TYPE_CHECKING:
    from fxtrace.api.trace import Trace

__all__ = [
    "HEADINGS",
    "ModuleRow",
    "facts",
    "labelled",
    "module_rows",
    "summary_html",
    "summary_table",
    "summary_text",
    "title",
]

_MOST_ROWS = 32
HEADINGS = ("module", "type", "output", "parameters", "role")


@dataclass(frozen=True, slots=True)
class ModuleRow:
    """A module that ran: what it returned last, its parameters with those inside it, and the role of what it computes.

    `repeated` counts the siblings of one structure that the row stands for.
    """

    path: str
    type: str
    output: str
    parameters: int
    role: str
    depth: int
    repeated: int = 1

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        times = f" ×{self.repeated}" if self.repeated > 1 else ""
        name = "  " * (self.depth - 1) + self.path.rpartition(".")[2]
        return f"{name}{times}", self.type, self.output, f"{self.parameters:,}" if self.parameters else "", self.role


def summary_text(trace: Trace) -> str:
    """The summary as plain text."""
    lines = [title(trace.info, trace.graph), *fact_lines(*facts(trace.info, trace.graph))]
    rows = module_rows(trace.graph)
    return "\n".join((*lines, "", aligned(HEADINGS, (row.cells() for row in rows))) if rows else lines)


def summary_table(trace: Trace) -> Any:
    """The summary for a terminal, by rich."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(padding=(0, 2))
    for name, text in facts(trace.info, trace.graph):
        head.add_row(Text(f"  {name}", style="dim"), Text(text))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading == "parameters" else "left", overflow="fold")
    rows = module_rows(trace.graph)
    for row in rows:
        table.add_row(*map(Text, row.cells()))
    return Group(Text(title(trace.info, trace.graph), style="bold"), head, *((Text(), table) if rows else ()))


def summary_html(trace: Trace, *, picture: str = "", note: str = "") -> str:
    """The summary for a notebook: the facts, the modules, and the picture where there is one.

    Args:
        trace: what to show.
        picture: SVG text.
        note: why there is no picture.
    """
    head = "".join(
        f"<tr><td style='text-align:left;opacity:.7'>{escape(name)}</td>"
        f"<td style='text-align:left'>{escape(text)}</td></tr>"
        for name, text in facts(trace.info, trace.graph)
    )
    rows = module_rows(trace.graph)
    table = html_table(HEADINGS, (row.cells() for row in rows)) if rows else ""
    drawn = f"<div style='max-height:640px;overflow:auto'>{picture[picture.find('<svg') :]}</div>" if picture else ""
    told = f"<p style='opacity:.7'>No picture: {escape(note)}</p>" if note else ""
    return f"<div><b>{escape(title(trace.info, trace.graph))}</b><table>{head}</table>{table}{drawn}{told}</div>"


def title(info: TraceInfo, graph: Graph) -> str:
    """The first line: model, class, parameters, id."""
    of = f" ({graph.name})" if graph.name != info.model else ""
    return f"{info.model}{of} · {info.parameter_count:,} parameters · trace {info.id[:8]}"


def facts(info: TraceInfo, graph: Graph) -> Iterator[tuple[str, str]]:
    """What else is known of the run, as (name, text)."""
    inputs = (node for node in graph.nodes if node.op == "placeholder" and node.tensors)
    yield "inputs", listed(map(_tensor, inputs)) or "none"
    yield "outputs", listed(map(_tensor, graph.returned)) or "none"
    mode = ", in training mode" if info.training else ""
    equal = {True: ", output bit-equal to the model's", False: ", OUTPUT DIFFERS from the model's", None: ""}
    yield "captured", f"{info.rung}{equal[info.output_equal]}{'' if info.values else ', shapes only'}{mode}"
    yield "tensors", f"{info.tensor_count:,} of {bytes_text(info.tensor_bytes)} in {info.node_count:,} nodes"
    yield "labelled", labelled(graph)
    if graph.refusals and graph.by_role:  # where no role is known at all, that is said above
        yield "refused", f"{count_text(len(graph.refusals), 'role')}, with reasons: .graph.refusals"


def module_rows(graph: Graph) -> list[ModuleRow]:
    """The modules that ran, in the order in which they ran first, as deep as about thirty rows allow."""
    last: dict[str, Node] = {}
    within: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        called = node.target if node.op == "call_module" else node.module
        for path in _prefixes(called):
            within.setdefault(path, []).append(node)
            if node.tensors:
                last[path] = node
    tree = _Tree(graph, within, last)
    rows: list[ModuleRow] = []
    depth = 1
    while True:
        deeper = list(tree.rows("", depth))
        if depth > 1 and (len(deeper) > _MOST_ROWS or len(deeper) == len(rows)):
            return rows
        rows, depth = deeper, depth + 1


class _Tree:
    """The modules that ran: the nodes in every one, and the last of them that gave a tensor, by the module's path."""

    def __init__(self, graph: Graph, within: dict[str, list[Node]], last: dict[str, Node]) -> None:
        self._graph, self._within, self._last = graph, within, last
        self._parameters = _parameter_counts(graph)
        self._children: dict[str, list[str]] = {}
        for path in within:  # in the order in which they ran first
            self._children.setdefault(path.rpartition(".")[0], []).append(path)

    def rows(self, parent: str, depth: int) -> Iterator[ModuleRow]:
        """The rows of what is in a module, down to a depth; of siblings of one structure, the first stands for all."""
        for paths in self._runs(parent):
            path, module = paths[0], self._graph.modules_by_path.get(paths[0])
            yield ModuleRow(
                path=path,
                type=module.type if module else "",
                output=shape_text(self._last[path]) if path in self._last else "",
                parameters=sum(self._parameters.get(each, 0) for each in paths),
                role=_common_role([node for each in paths for node in self._within[each]]),
                depth=path.count(".") + 1,
                repeated=len(paths),
            )
            if path.count(".") + 1 < depth:
                yield from self.rows(path, depth)

    def _runs(self, parent: str) -> list[list[str]]:
        """The modules in a module; numbered ones of one structure that follow one another are together."""
        runs: list[list[str]] = []
        before: object = None
        for path in self._children.get(parent, []):
            structure = _structure(self._graph, path) if path.rpartition(".")[2].isdecimal() else None
            if runs and structure is not None and structure == before:
                runs[-1].append(path)
            else:
                runs.append([path])
            before = structure
        return runs


def _structure(graph: Graph, path: str) -> tuple[object, ...]:
    """What makes two modules alike: the classes and the parameters' shapes of all that is inside."""
    found = []
    for module in graph.modules:
        if module.path == path or module.path.startswith(f"{path}."):
            shapes = tuple((each.name.rpartition(".")[2], each.shape) for each in module.parameters)
            found.append((module.path[len(path) :], module.type, shapes))
    return tuple(found)


def _parameter_counts(graph: Graph) -> dict[str, int]:
    """Parameters of every module with those inside it, by its path; a shared one counts at its first owner."""
    counts: dict[str, int] = {}
    for module in graph.modules:
        own = sum(prod(each.shape) for each in module.parameters if not (each.buffer or each.same_as))
        for path in _prefixes(module.path):
            counts[path] = counts.get(path, 0) + own
    return counts


def _prefixes(path: str) -> list[str]:
    parts = path.split(".") if path else []
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def _common_role(nodes: Sequence[Node]) -> str:
    """What all roles in a module begin with; layers that differ are a `*`."""
    # A node's first role is the one of the block that made it; the others are of those that read it.
    roles = [(role.stack, role.layer, role.block, role.part) for node in nodes for role in node.roles[:1]]
    if not roles:
        return ""
    pieces = []
    for column in zip(*roles, strict=True):
        values = {each for each in column if each not in ("", None)}
        if len(values) > 1:
            if not all(isinstance(each, int) for each in values):
                break
            pieces.append("*")
        elif values:
            pieces.append(str(values.pop()))
    return ".".join(pieces).removesuffix(".*")


def labelled(graph: Graph) -> str:
    """Which stacks, layers and blocks were shown, in one line; and that no attention was, where none was."""
    with_role = sum(bool(node.roles) for node in graph.nodes)
    stacks: dict[str, tuple[set[int], dict[str, None]]] = {}
    for node in graph.nodes:
        for role in node.roles:
            layers, blocks = stacks.setdefault(role.stack, (set(), {}))
            if role.layer is not None:
                layers.add(role.layer)
            blocks.setdefault(role.block)
    if not stacks:
        return f"none of {len(graph.nodes):,} nodes: no attention, feed-forward or other known block was shown"
    shown = []
    for stack, (layers, blocks) in stacks.items():
        named = ", ".join(filter(None, blocks))
        times = f" ×{len(layers)}" if layers else ""
        shown.append(f"{stack}{times} ({named})" if stack and named else f"{stack or named}{times}")
    attention = any("attention" in block for _, blocks in stacks.values() for block in blocks)
    without = "" if attention else "; no attention was shown"
    return f"{with_role:,} of {len(graph.nodes):,} nodes: {', '.join(shown)}{without}"


def _tensor(node: Node) -> str:
    dtypes = dict.fromkeys(spec.dtype for _, spec in node.tensors)
    return f"{node.name} {shape_text(node)} {', '.join(dtypes)}"
