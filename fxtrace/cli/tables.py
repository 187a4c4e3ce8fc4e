"""What people see: fxtrace's data as rich tables and texts."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxtrace.graph import Check, Graph, Node, Snapshot, TensorSpec, show, show_shape, show_sizes
from fxtrace.ir.trace import ModelInfo, QueryResult, TraceInfo

if TYPE_CHECKING:
    from fxtrace.store import StoredTrace

_UNBOUNDED = 10_000  # columns; a table is only as wide as it needs to be


def show_on_stdout(*renderables: RenderableType) -> None:
    """Prints on stdout, folded to the terminal's width; nothing is folded where stdout is no terminal."""
    width = None if sys.stdout.isatty() else _UNBOUNDED
    Console(width=width, highlight=False).print(*renderables, sep="\n")


def table(title: str, *headings: str) -> Table:
    """An empty table."""
    grid = Table(title=Text(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        grid.add_column(heading, overflow="fold")
    return grid


def add(grid: Table, *cells: str | Text) -> None:
    """Adds a row; text is shown as it is, brackets and all."""
    grid.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def facts(title: str, *rows: tuple[str, str | Text]) -> Group:
    """A heading, and below it names with their values; those without a value are left out."""
    grid = Table.grid(padding=(0, 2))
    for _ in range(2):
        grid.add_column(overflow="fold")
    for name, value in rows:
        if value:
            add(grid, Text(f"  {name}", style="dim"), value)
    return Group(Text(title, style="bold"), grid)


def model_table(models: Iterable[ModelInfo]) -> Table:
    """Models, a row each."""
    grid = table("Models", "name", "fields", "summary")
    for model in models:
        add(grid, model.name, str(len(model.fields)) if model.fields else "", model.summary)
    return grid


def model_facts(model: ModelInfo) -> Group:
    """A model's configuration, a row for each field."""
    grid = table("", "field", "type", "default", "what it is")
    for field in model.fields:
        add(grid, field.name, field.type, repr(field.default), field.description)
    return Group(Text(model.name, style="bold"), Text(model.summary), grid)


def trace_table(traces: Iterable[TraceInfo]) -> Table:
    """Traces, a row each."""
    grid = table("Traces, newest first", "id", "model", "created", "nodes", "labelled", "tensors", "bytes", "seed")
    for trace in traces:
        created = trace.created.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        stored = f"{trace.tensor_bytes:,}" if trace.values else "shapes only"
        counts = map(str, (trace.node_count, trace.labelled_count, trace.tensor_count))
        add(grid, trace.id, trace.model, created, *counts, stored, str(trace.seed))
    return grid


def stored_table(stored: Iterable[StoredTrace]) -> Table:
    """How traces are kept, a row each."""
    grid = table("Stored traces, newest first", "id", "model", "bytes", "last used", "")
    for each in stored:
        last_used = each.last_used.astimezone().strftime("%Y-%m-%d %H:%M")
        marks = ("pinned" if each.pinned else "", "damaged: trace it again" if each.damaged else "")
        add(grid, each.trace.id, each.trace.model, f"{each.nbytes:,}", last_used, " ".join(filter(None, marks)))
    return grid


def trace_facts(trace: TraceInfo) -> Group:
    """Where a trace came from, and how much there is of it."""
    equal = {None: "not compared: shapes only", True: "bit-equal to the eager model's", False: "NOT the eager model's"}
    inputs = "\n".join(
        f"{each.name}  {show_sizes(each.spec)}  {each.spec.dtype}  ({each.fill})" for each in trace.inputs
    )
    mode = f"{'training' if trace.training else 'evaluation'}, seed {trace.seed}"
    mode += ", built without weights" if trace.weightless else ""
    return facts(
        f"Trace {trace.id}",
        ("model", trace.model),
        ("configuration", "\n".join(f"{name} = {value!r}" for name, value in trace.configuration.items())),
        ("inputs", inputs),
        ("mode", mode),
        ("weights", f"{trace.state}, sha256 {trace.state_sha256}" if trace.state else ""),
        ("capture", f"{trace.rung}, {trace.seconds:.2f} s, PyTorch {trace.torch_version}"),
        ("", "\n".join(trace.rung_notes)),
        ("nodes", f"{trace.node_count}, of which {trace.labelled_count} have a role"),
        ("tensors", f"{trace.tensor_count}, {trace.tensor_bytes:,} bytes" + ("" if trace.values else ", not kept")),
        ("parameters", f"{trace.parameter_count:,}"),
        ("output", equal[trace.output_equal]),
    )


def snapshot_table(snapshots: Iterable[Snapshot], *, checked: Sequence[Text] | None = None) -> Table:
    """Snapshots, a row each; with `checked`, also the variables' names and what a comparison said of each."""
    extra = ("variable", "value check") if checked is not None else ()
    headings = ("#", "title", "role", *extra[:1], "formula", "shape", "node", "identities held", *extra[1:])
    grid = table("Snapshots", *headings)
    for row, snapshot in enumerate(snapshots):
        cells: list[str | Text] = [str(snapshot.number), snapshot.title, "\n".join(snapshot.roles)]
        if checked is not None:
            cells.append("\n".join(snapshot.variables))
        cells += [show_shape(snapshot.dims), show_sizes(snapshot.tensors[0]) if snapshot.found else ""]
        cells.append("\n".join(tensor.node for tensor in snapshot.tensors))
        cells.append(checks_text(snapshot.checks) if snapshot.found else Text(f"not here: {snapshot.reason}", "yellow"))
        if checked is not None:
            cells.append(checked[row])
        add(grid, *cells)
    return grid


def checks_text(checks: Iterable[Check]) -> Text:
    """Checks in short: `✓ softmax  ✗ mask  ? scores`, equal ones counted."""
    marks = {True: ("✓", "green"), False: ("✗", "bold red"), None: ("?", "yellow")}
    text = Text()
    for (name, held), times in Counter((check.name, check.held) for check in checks).items():
        mark, style = marks[held]
        text.append("  " if text else "").append(f"{mark} {name}" + (f" ×{times}" if times > 1 else ""), style)
    return text


def check_table(checks: Iterable[Check]) -> Table:
    """Checks, a row each."""
    grid = table("Identities", "", "statement", "detail")
    for check in checks:
        add(grid, checks_text([check]), check.statement, check.detail)
    return grid


def graph_table(graph: Graph) -> Table:
    """Nodes, a row each."""
    return node_table(f"{graph.name}: {len(graph.nodes)} nodes", graph.nodes)


def node_table(title: str, nodes: Iterable[Node]) -> Table:
    """Nodes, a row each."""
    grid = table(title, "node", "kind", "target", "module", "shape", "dtype", "role")
    for node in nodes:
        roles = "\n".join(map(str, node.roles))
        add(grid, node.name, node.kind, node.target, node.module, shapes(node), dtypes(node), roles)
    return grid


def path_table(result: QueryResult) -> Table:
    """Paths along the dataflow, a row each."""
    title = f"paths: {len(result.paths)}" + (", and there are more" if result.truncated else "")
    grid = table(title, "nodes", "path")
    texts = {node.name: f"{node.name} {shapes(node)}".strip() for node in result.nodes}
    for path in result.paths:
        add(grid, str(len(path)), " → ".join(texts[name] for name in path))
    return grid


def shapes(node: Node) -> str:
    """The shapes of the tensors a node returns; of other values, the values."""
    return ", ".join(value.text if value.spec is None else show_sizes(value.spec) for value in node.values)


def dtypes(node: Node) -> str:
    """The dtypes of the tensors a node returns, each once."""
    return ", ".join(dict.fromkeys(spec.dtype for _, spec in node.tensors))


def node_facts(graph: Graph, node: Node, snapshots: Iterable[Snapshot]) -> Group:
    """A node: what it does, where it is, what it reads and who reads it, and the roles it was shown to have."""
    shown_in = [s for s in snapshots if any(tensor.node == node.name for tensor in s.tensors)]
    call = ", ".join([*map(show, node.args), *(f"{name}={show(arg)}" for name, arg in node.kwargs.items())])
    source = node.source
    parts: list[RenderableType] = [
        facts(
            f"Node {node.name}",
            ("op", f"{node.op} · {node.kind}"),
            ("call", f"{node.target}({call})"),
            ("module", _module_text(graph, node)),
            ("source", f"{source.file}:{source.line} in {source.function}\n{source.code}" if source else ""),
            ("returns", "\n".join(spec_text(name, spec) for name, spec in node.tensors) or shapes(node)),
            ("parameters", "\n".join(node.parameters)),
            ("inputs", "\n".join(_with_shape(graph, name) for name in node.inputs)),
            ("users", "\n".join(_with_shape(graph, name) for name in graph.users[node.name])),
            ("snapshots", "\n".join(f"{each.number}  {each.title}" for each in shown_in)),
        )
    ]
    for role in node.roles:
        parts += [Text(f"\nRole {role}", style="bold"), Text(f"  {role.evidence}")]
        if role.checks:
            parts.append(check_table(role.checks))
    return Group(*parts)


def snapshot_facts(snapshot: Snapshot) -> Group:
    """A snapshot: what it is and why it has its shape, its tensors, and the identities tried on them."""
    heading = f"Snapshot {snapshot.number}: {snapshot.title}"
    if not snapshot.found:
        return facts(heading, ("roles", "\n".join(snapshot.roles)), ("not here", snapshot.reason))
    grid = table("Tensors", "variable", "shape", "node", "role")
    for tensor in snapshot.tensors:
        add(grid, tensor.variable, show_sizes(tensor), tensor.node, tensor.role)
    shape = f"{show_shape(snapshot.dims)} = {show_sizes(snapshot.tensors[0])}"
    return Group(
        facts(heading, ("section", snapshot.section), ("shape", shape)),
        Text(f"\n{snapshot.explanation}\n"),
        grid,
        check_table(snapshot.checks),
    )


def spec_text(name: str, spec: TensorSpec) -> str:
    """A tensor in a line."""
    layout = "" if spec.contiguous else f", stride {spec.stride}"
    return f"{name}  {show_sizes(spec)}  {spec.dtype}  {spec.device}, {spec.nbytes:,} bytes{layout}"


def _with_shape(graph: Graph, name: str) -> str:
    return f"{name}  {shapes(graph.node(name))}"


def _module_text(graph: Graph, node: Node) -> str:
    module = graph.modules_by_path.get(node.module)
    return f"{node.module or '(top)'}  {module.type}" if module else node.module
