"""What people see of models, traces, snapshots and nodes: tables and facts (see `fxtrace.cli.layout`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from fxtrace.api.summary import facts as run_facts
from fxtrace.api.summary import labelled
from fxtrace.api.summary import title as run_title
from fxtrace.cli.layout import (
    NO_BREAK,
    Block,
    Cell,
    Column,
    Facts,
    Paragraph,
    Stack,
    Table,
    facts,
    show_on_stdout,
    table,
)
from fxtrace.cli.steps import short_ids
from fxtrace.graph import Check, Graph, Node, Refusal, Snapshot, TensorSpec, show, show_shape, show_sizes
from fxtrace.ir.text import count_text
from fxtrace.ir.trace import Json, ModelInfo, QueryResult, TracedInput, TraceInfo

if TYPE_CHECKING:
    from datetime import datetime

    from fxtrace.store import StoredTrace

__all__ = ["Block", "Cell", "Column", "Table", "facts", "show_on_stdout", "table"]

_MOST_FIELDS = 12
_LONGEST_FIELD = 48
_LONGEST_NOTE = 140


def model_table(models: Iterable[ModelInfo]) -> Table:
    """Models, a row each."""
    grid = table("Models", "name", Column("fields", rank=1, right=True), Column("summary", prose=True))
    for model in models:
        grid.add(model.name, str(len(model.fields)) if model.fields else "", model.summary)
    return grid


def model_facts(model: ModelInfo) -> Stack:
    """A model's configuration, a row for each field."""
    grid = table("", "field", Column("type", rank=1), Column("default", prose=True), Column("what it is", prose=True))
    for field in model.fields:
        grid.add(field.name, field.type, repr(field.default), field.description)
    return Stack((Paragraph(Text(model.name, "bold")), Paragraph(model.summary), Paragraph(""), grid))


def trace_table(traces: Iterable[TraceInfo]) -> Table:
    """Traces, a row each."""
    grid = table(
        "Traces, newest first",
        "id",
        "model",
        Column("created", rank=1),
        Column("nodes", rank=2, right=True),
        Column("labelled", rank=3, right=True),
        Column("tensors", rank=5, right=True),
        Column("bytes", rank=4, right=True),
        Column("seed", rank=6, right=True),
    )
    listed = list(traces)
    ids = short_ids(trace.id for trace in listed)
    for trace in listed:
        stored = f"{trace.tensor_bytes:,}" if trace.values else "shapes only"
        counts = map(str, (trace.node_count, trace.labelled_count, trace.tensor_count))
        grid.add(ids[trace.id], trace.model, _moment(trace.created), *counts, stored, str(trace.seed))
    return grid


def stored_table(stored: Iterable[StoredTrace]) -> Table:
    """How traces are kept, a row each."""
    grid = table(
        "Stored traces, newest first",
        "id",
        "model",
        Column("bytes", rank=2, right=True),
        Column("last used", rank=1),
        "",
    )
    listed = list(stored)
    ids = short_ids(each.trace.id for each in listed)
    for each in listed:
        marks = ("pinned" if each.pinned else "", "damaged: trace it again" if each.damaged else "")
        grid.add(
            ids[each.trace.id],
            each.trace.model,
            f"{each.nbytes:,}",
            _moment(each.last_used),
            " ".join(filter(None, marks)),
        )
    return grid


def trace_facts(trace: TraceInfo, graph: Graph) -> Facts:
    """What a trace is of, what was shown in its graph, and how it was made."""
    mode = f"{'training' if trace.training else 'evaluation'}, seed {trace.seed}"
    mode += ", built without weights" if trace.weightless else ""
    run: dict[str, Cell] = {
        **dict(run_facts(trace, graph)),
        "captured": _captured(trace),
        "refused": refused_text(graph),
    }
    if not trace.labelled_count:
        run["labelled"] = Text(labelled(graph), "yellow")
    return facts(
        run_title(trace, graph),
        *{**run, "inputs": "\n".join(map(_input, trace.inputs))}.items(),
        ("configuration", _configuration(trace.configuration)),
        ("mode", mode),
        ("reused", f"traced before ({_moment(trace.created)}): the same request is the same trace" * trace.reused),
        ("weights", f"{trace.state}, sha256 {trace.state_sha256}" if trace.state else ""),
        ("notes", "\n".join(_cut(note, _LONGEST_NOTE) for note in trace.rung_notes)),
        ("id", trace.id),
    )


def _input(traced: TracedInput) -> str:
    how = "" if traced.fill == "example" else f" ({traced.fill})"
    return f"{traced.name} {show_sizes(traced.spec)} {traced.spec.dtype}{how}"


def _captured(trace: TraceInfo) -> Text:
    equal = {
        None: ("not compared with the model's: shapes only", ""),
        True: ("output bit-equal to the model's", ""),
        False: ("OUTPUT DIFFERS from the model's", "bold red"),
    }
    said, style = equal[trace.output_equal]
    how = f"{trace.rung}, {trace.seconds:.2f} s, PyTorch {trace.torch_version}; "
    return Text.assemble(how, (said, style))


def refused_text(graph: Graph) -> str:
    """How many roles were looked for and not given, and how to see them."""
    if not graph.refusals:
        return ""
    return f"{count_text(len(graph.refusals), 'role')} looked for and not given: `fxtrace graph --refused` says why"


def refusal_table(refusals: Iterable[Refusal]) -> Table:
    """The roles that were looked for and not given, a row each."""
    grid = table("Looked for and not given", Column("role"), Column("why not", prose=True))
    for refusal in refusals:
        grid.add(refusal.role, refusal.reason)
    return grid


def _configuration(configuration: Mapping[str, Json]) -> str:
    """The fields in short: sizes first, as they are what dimensions are made of."""
    fields = sorted(configuration.items(), key=lambda item: type(item[1]) is not int)
    shown = [_cut(f"{name}={value!r}", _LONGEST_FIELD) for name, value in fields[:_MOST_FIELDS]]
    more = len(fields) - len(shown)
    return ", ".join([*shown, *([f"and {more} more (--json has all)"] if more else ())])


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest].rsplit(' ', 1)[0]} …"


def _moment(time: datetime) -> str:
    return time.astimezone().strftime("%Y-%m-%d %H:%M")


def snapshot_table(snapshots: Iterable[Snapshot], *, checked: Sequence[Text] | None = None) -> Table:
    """Snapshots, a row each; with `checked`, also the variables' names and what a comparison said of every one."""
    extra = (Column("variable", rank=5), Column("value check", prose=True)) if checked is not None else ()
    grid = table(
        "Snapshots",
        Column("#", right=True),
        Column("title", prose=True),
        Column("formula", rank=3),
        "shape",
        Column("node", rank=4),
        *extra,
        Column("role", below=True),
        Column("identities held", rank=2, below=True),
    )
    for row, snapshot in enumerate(snapshots):
        shape = show_sizes(snapshot.tensors[0]) if snapshot.found else ""
        cells: list[Cell] = [str(snapshot.number), snapshot.title, show_shape(snapshot.dims), shape]
        cells.append("\n".join(tensor.node for tensor in snapshot.tensors))
        if checked is not None:
            cells += ["\n".join(snapshot.variables), checked[row]]
        cells.append(Text("\n".join(snapshot.roles), "cyan"))
        cells.append(checks_text(snapshot.checks) if snapshot.found else Text(f"not here: {snapshot.reason}", "yellow"))
        grid.add(*cells)
    return grid


def snapshots_missing(snapshots: Sequence[Snapshot], graph: Graph) -> Facts:
    """How many of the snapshots a graph has, and what is labelled in it."""
    here = sum(snapshot.found for snapshot in snapshots)
    text = (
        f"{here or 'none'} of {len(snapshots)} snapshots of an encoder-decoder transformer; --all says why not the rest"
    )
    return facts("", ("here", Text(text, "yellow")), ("labelled", labelled(graph)))


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
    grid = table("Identities", "", Column("statement", prose=True), Column("detail", prose=True))
    for check in checks:
        grid.add(checks_text([check]), check.statement, check.detail)
    return grid


def graph_blocks(graph: Graph, *, whole: bool) -> list[Block]:
    """Nodes, a row each; of a whole graph, also what is labelled in it."""
    grid = node_table(f"{graph.name}: {count_text(len(graph.nodes), 'node')}", graph.nodes)
    return [grid, facts("", ("labelled", labelled(graph)), ("refused", refused_text(graph)))] if whole else [grid]


def node_table(title: str, nodes: Iterable[Node]) -> Table:
    """Nodes, a row each."""
    grid = table(
        title,
        "node",
        Column("kind", rank=1),
        Column("shape", prose=True),
        Column("dtype", rank=3),
        Column("module", rank=2),
        Column("target", rank=4),
        Column("role", below=True),
    )
    for node in nodes:
        roles = Text("\n".join(map(str, node.roles)), "cyan")
        grid.add(node.name, node.kind, shapes(node), dtypes(node), node.module, node.target, roles)
    return grid


def path_table(result: QueryResult) -> Table:
    """Paths along the dataflow, a row each."""
    title = count_text(len(result.paths), "path") + (", and there are more" if result.truncated else "")
    grid = table(title, Column("nodes", rank=1, right=True), Column("path", prose=True))
    texts = {node.name: f"{node.name} {shapes(node)}".strip().replace(" ", NO_BREAK) for node in result.nodes}
    for path in result.paths:
        grid.add(str(len(path)), f" →{NO_BREAK}".join(texts[name] for name in path))
    return grid


def shapes(node: Node) -> str:
    """The shapes of the tensors a node returns; of other values, the values."""
    return ", ".join(
        value.text if value.spec is None else show_sizes(value.spec).replace(" ", NO_BREAK) for value in node.values
    )


def dtypes(node: Node) -> str:
    """The dtypes of the tensors a node returns, each once."""
    return ", ".join(dict.fromkeys(spec.dtype for _, spec in node.tensors))


def node_facts(graph: Graph, node: Node, snapshots: Iterable[Snapshot]) -> list[Block]:
    """A node: what it does, where it is, what it reads and who reads it, and the roles it was shown to have."""
    shown_in = [s for s in snapshots if any(tensor.node == node.name for tensor in s.tensors)]
    call = ", ".join([*map(show, node.args), *(f"{name}={show(arg)}" for name, arg in node.kwargs.items())])
    source = node.source
    parts: list[Block] = [
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
        parts.append(Stack((Paragraph(Text(f"Role {role}", "bold")), Paragraph(role.evidence))))
        if role.checks:
            parts.append(check_table(role.checks))
    return parts


def snapshot_facts(snapshot: Snapshot) -> list[Block]:
    """A snapshot: what it is and why it has its shape, its tensors, and the identities tried on them."""
    heading = f"Snapshot {snapshot.number}: {snapshot.title}"
    if not snapshot.found:
        return [facts(heading, ("roles", "\n".join(snapshot.roles)), ("not here", snapshot.reason))]
    grid = table("Tensors", "variable", "shape", Column("node", rank=1), Column("role", below=True))
    for tensor in snapshot.tensors:
        grid.add(tensor.variable, show_sizes(tensor), tensor.node, tensor.role)
    shape = f"{show_shape(snapshot.dims)} = {show_sizes(snapshot.tensors[0])}"
    return [
        facts(heading, ("section", snapshot.section), ("shape", shape)),
        Paragraph(snapshot.explanation),
        grid,
        check_table(snapshot.checks),
    ]


def spec_text(name: str, spec: TensorSpec) -> str:
    """A tensor in a line."""
    layout = "" if spec.contiguous else f", stride {spec.stride}"
    return f"{name}  {show_sizes(spec)}  {spec.dtype}  {spec.device}, {spec.nbytes:,} bytes{layout}"


def _with_shape(graph: Graph, name: str) -> str:
    return f"{name}  {shapes(graph.node(name))}"


def _module_text(graph: Graph, node: Node) -> str:
    module = graph.modules_by_path.get(node.module)
    return f"{node.module or '(top)'}  {module.type}" if module else node.module
