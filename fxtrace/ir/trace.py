"""Provenance and requests as plain data: what was traced, how, and what may be asked of a trace. No torch, no grpc.

The engine (in this process) and the client (over gRPC) take and return these same types.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import datetime
from hashlib import blake2b
from typing import Any, Literal

from fxtrace.graph import Node, TensorSpec, show_shape, show_sizes
from fxtrace.ir.text import MOST_ROWS, Readable, assigned, bytes_text, count_text, cut, facts, listed, table

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
"""A configuration value in JSON's terms."""

Rung = Literal["symbolic", "record", "export"]
"""How a graph was obtained: torch.fx symbolic tracing, one real run written down, or torch.export."""

RUNGS: tuple[Rung, ...] = ("symbolic", "record", "export")

SYMBOLIC_TIMEOUT = 60.0
"""Seconds of computing that following symbolic sizes may take, where nothing else is asked for; most take a few."""

_LONGEST_QUERY = 110
"""Characters of a query that its `repr` shows."""

Fill = Literal["example", "given", "random"]
"""Where an input's numbers came from: the model's own example, the request, or drawn at random for a shape."""

Scope = Literal["read", "write"]
"""What a server's key allows: every call but CreateTrace and DeleteTrace, or every call."""


@dataclass(frozen=True, slots=True, repr=False)
class ConfigField(Readable):
    """One field of a model's configuration; `dimension` says that it is an integer and so names a size."""

    name: str
    type: str
    default: Json
    description: str = ""
    dimension: bool = False

    def _lines(self) -> Iterator[str]:
        yield f"{self.name}: {self.type}, {assigned({'default': self.default})}"
        if self.description:
            yield f"  {self.description}"


@dataclass(frozen=True, slots=True, repr=False)
class ModelInfo(Readable):
    """A model that can be traced: its name, a line about it, and its configuration.

    `schema` is the configuration's JSON schema.
    """

    name: str
    summary: str
    fields: tuple[ConfigField, ...]
    schema: Mapping[str, Json]

    def _lines(self) -> Iterator[str]:
        yield f"{self.name}: {self.summary}" if self.summary else self.name
        rows = ((each.name, each.type, repr(each.default), each.description) for each in self.fields)
        yield from table(("field", "type", "default", ""), rows)


@dataclass(frozen=True, slots=True, repr=False)
class ServerInfo(Readable):
    """A server: the version of fxtrace that it runs, what the caller may do there, and the id of the caller's key.

    `key_id` is empty where the server has no keys.
    """

    version: str
    scope: Scope
    key_id: str = ""

    def _lines(self) -> Iterator[str]:
        yield f"fxtrace {self.version}, this caller may {self.scope}" + (f" with key {self.key_id}" * bool(self.key_id))


APART = {"apart": True}
"""Metadata of a dataclass's field that is said of an object at some moment, and is not part of it."""


@dataclass(frozen=True, slots=True, repr=False)
class TensorData(Readable):
    """A tensor as it travels: its dtype's name, shape, and its raw bytes (little-endian, row-major)."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def _lines(self) -> Iterator[str]:
        yield f"{show_shape(self.shape)} {self.dtype}, {bytes_text(len(self.data))}"


@dataclass(frozen=True, slots=True, repr=False)
class TraceRequest(Readable):
    """What is to be traced.

    Attributes:
        model: a model's name, or (in this process only) where it comes from: see `fxtrace.models`.
        configuration: fields to override; the rest keep the model's defaults.
        inputs: tensors to use in place of the example inputs, by the input's name.
        input_shapes: shapes to draw inputs of, by the input's name; the dtype is the example input's.
        rung: the capture rung asked for; empty lets fxtrace choose.
        values: keep every tensor's numbers; False propagates shapes only, with no compute.
        training: trace in training mode; False is evaluation mode.
        unfused: compute fused attention step by step, so that its scores and weights are tensors of the graph; a note
            says how far the output is from the fused kernels'.
        seed: of the random state the model is built and run under.
        state: path of a safetensors file with the model's weights (in this process only); empty for those it is built
            with.
        weightless: build the model without allocating its weights, and capture it by `export`: a model of any size gets
            its shapes and roles, without values.
        symbolic: names for sizes of inputs that stay symbols, by the input's name: one for each of its sizes, empty for
            a size that is to be a number. Sizes of one name are equal. Captured by `export`; see `TensorSpec.symbolic`.
        symbolic_timeout: seconds of computing that following the symbols may take; after that the sizes are numbers,
            and one of the trace's `rung_notes` says so.
        by_product: whether the trace is a means to something else: then it does not become `latest`.
    """

    model: str
    configuration: Mapping[str, Json] = field(default_factory=dict)
    inputs: Mapping[str, TensorData] = field(default_factory=dict)
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    rung: Rung | Literal[""] = ""
    values: bool = True
    training: bool = False
    unfused: bool = False
    seed: int = 0
    state: str = ""
    weightless: bool = False
    symbolic: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    symbolic_timeout: float = SYMBOLIC_TIMEOUT
    by_product: bool = False

    def _lines(self) -> Iterator[str]:
        yield f"{self.model}({assigned(self.configuration)})"
        yield from facts(*_given(self, "model", "configuration"))


@dataclass(frozen=True, slots=True, repr=False)
class TracedInput(Readable):
    """An input the model was traced with."""

    name: str
    spec: TensorSpec
    fill: Fill

    def _lines(self) -> Iterator[str]:
        yield f"{self.name} {show_sizes(self.spec)} {self.spec.dtype}, {self.fill}"


@dataclass(frozen=True, slots=True, repr=False)
class TraceInfo(Readable):
    """One captured run: where its graph came from, and how much there is of it.

    Attributes:
        id: digest of everything that determines the result; the same request gives the same id.
        model: the model's name.
        configuration: every field, resolved.
        inputs: what the model was called with, in the order of its parameters.
        rung: the capture rung that ran; `rung_notes` say what this rung cannot show.
        output_equal: whether the graph's output is bit-equal to the eager model's; None where values are absent.
        node_count, tensor_count, labelled_count: nodes, tensors, and nodes with at least one role.
        tensor_bytes: bytes of all tensors together; they are stored only if `values`.
        seconds: how long building and capturing took.
        weightless: whether the model was built without its weights.
        state: name of the file whose weights the model was given, without its folder; empty for those it is built with.
        state_sha256: SHA-256 of that file, in hexadecimal.
        reused: whether `create_trace`, which gave it, had made it before. It is not part of the trace.
    """

    id: str
    model: str
    configuration: Mapping[str, Json]
    inputs: tuple[TracedInput, ...]
    rung: Rung
    rung_notes: tuple[str, ...]
    values: bool
    training: bool
    seed: int
    torch_version: str
    fxtrace_version: str
    output_equal: bool | None
    node_count: int
    tensor_count: int
    labelled_count: int
    parameter_count: int
    tensor_bytes: int
    created: datetime
    seconds: float
    weightless: bool = False
    state: str = ""
    state_sha256: str = ""
    reused: bool = field(default=False, compare=False, metadata=APART)

    def _lines(self) -> Iterator[str]:
        yield f"{self.model} {self.id[:8]}: {count_text(self.node_count, 'node')}, {self.labelled_count:,} with a role"
        equal = {True: "output bit-equal to the model's", False: "OUTPUT DIFFERS from the model's", None: "shapes only"}
        mode = f"{'training' if self.training else 'evaluation'}, seed {self.seed}"
        yield from facts(
            ("inputs", "\n".join(map(str, self.inputs))),
            ("configuration", assigned(self.configuration, 16)),
            ("captured", f"{self.rung}, {equal[self.output_equal]}"),
            ("tensors", f"{self.tensor_count:,} of {bytes_text(self.tensor_bytes)}{', not kept' * (not self.values)}"),
            ("parameters", f"{self.parameter_count:,}{', built without weights' if self.weightless else ''}"),
            ("weights", f"{self.state}, sha256 {self.state_sha256}" if self.state else ""),
            ("mode", mode),
            ("made", f"{self.created:%Y-%m-%d %H:%M %Z} in {self.seconds:.2f} s{', reused' if self.reused else ''}"),
            ("versions", f"fxtrace {self.fxtrace_version}, PyTorch {self.torch_version}"),
            ("notes", "\n".join(self.rung_notes)),
            ("id", self.id),
        )


@dataclass(frozen=True, slots=True, repr=False)
class Progress(Readable):
    """How far a long piece of work is: `done` of `total` in `stage`; `total` is 0 where it is not known."""

    stage: str
    done: int = 0
    total: int = 0

    def _lines(self) -> Iterator[str]:
        count = f": {self.done:,} of {self.total:,}" if self.total else f": {self.done:,}" if self.done else ""
        yield f"{self.stage}{count}"


@dataclass(frozen=True, slots=True, repr=False)
class NodeQuery(Readable):
    """Which nodes of a graph are meant. Everything that is given must hold; an empty query means every node.

    `path` and `pattern` ask for paths along the dataflow, and exclude each other; their paths run through nodes that
    the rest of the query chooses. A node is named by its name or by a role's.

    Attributes:
        expression: a condition in CEL over what is known of a node; see `fxtrace.query.expressions`.
        ancestors_of: only nodes whose value flows into this node's.
        descendants_of: only nodes into whose value this node's flows.
        max_depth: for these two, at most this many edges away; None for any number.
        path: the shortest paths from the first of two nodes to the second.
        pattern: the paths whose nodes are of these kinds, one after another; see `fxtrace.query.patterns`.

    Example:
        >>> NodeQuery('kind == "matmul" && shape[-1] == src_len')
        >>> NodeQuery(pattern="matmul pointwise* softmax")
    """

    expression: str = ""
    ancestors_of: str = ""
    descendants_of: str = ""
    max_depth: int | None = None
    path: tuple[str, str] | None = None
    pattern: str = ""

    def __repr__(self) -> str:
        whole = ", ".join(f"{name}={value!r}" for name, value in _given(self))
        if len(whole) <= _LONGEST_QUERY:
            return f"NodeQuery({whole})"
        # No two queries have the same repr: tokens of pages are made of it.
        return f"NodeQuery({cut(whole, _LONGEST_QUERY)} #{blake2b(whole.encode(), digest_size=8).hexdigest()})"

    def _lines(self) -> Iterator[str]:
        given = list(_given(self))
        yield "nodes that meet every condition" if given else "every node"
        yield from facts(*given)


@dataclass(frozen=True, slots=True, repr=False)
class QueryResult(Readable):
    """The nodes that a query means.

    Attributes:
        nodes: in execution order; where paths were asked for, the nodes on them, each once, as the paths come to them.
        paths: the names of the nodes on each path; empty where none were asked for.
        truncated: whether there are more paths than were looked for.
    """

    nodes: tuple[Node, ...]
    paths: tuple[tuple[str, ...], ...] = ()
    truncated: bool = False

    def _lines(self) -> Iterator[str]:
        names = ", ".join(node.name for node in self.nodes[:4]) + (", …" if len(self.nodes) > 4 else "")
        found = f"{count_text(len(self.nodes), 'node')}: {names}" if names else "no nodes"
        more = ", and there are more paths" if self.truncated else ""
        yield f"{count_text(len(self.paths), 'path')} through {found}{more}" if self.paths else found
        if self.paths:
            yield ""
            yield from facts(*((str(len(path)), " → ".join(path)) for path in self.paths[:MOST_ROWS]))
            yield from (f"  … and {more:,} more" for more in [len(self.paths) - MOST_ROWS] if more > 0)
        else:
            rows = ((each.name, each.kind, each.returns, listed(each.roles, 1)) for each in self.nodes)
            yield from table(("node", "kind", "returns", "role"), rows)


Theme = Literal["light", "dark"]
Direction = Literal["TB", "LR"]
ImageFormat = Literal["dot", "svg", "png", "pdf"]

THEMES: tuple[Theme, ...] = ("light", "dark")
DIRECTIONS: tuple[Direction, ...] = ("TB", "LR")
IMAGE_FORMATS: tuple[ImageFormat, ...] = ("dot", "svg", "png", "pdf")


@dataclass(frozen=True, slots=True, repr=False)
class RenderOptions(Readable):
    """How a graph is to be drawn.

    Attributes:
        depth: modules nested deeper than this are drawn as one box each; None unfolds everything.
        fold_layers: draw one of a run of identical layers, marked ×N.
        highlight: role names, role prefixes (`decoder.0.cross_attention`), node names, or snapshots as `#33`.
        module: draw only this module's inside; empty draws the whole model.
        direction: TB (top to bottom) or LR (left to right).
        theme: light or dark.
        views: draw reshapes, transposes and other ops that only move elements; without them the picture is calmer.
    """

    depth: int | None = None
    fold_layers: bool = True
    highlight: tuple[str, ...] = ()
    module: str = ""
    direction: Direction = "TB"
    theme: Theme = "light"
    views: bool = False

    def _lines(self) -> Iterator[str]:
        yield assigned(_given(self)) or "as by default"
        yield from facts(*((each.name, getattr(self, each.name)) for each in fields(self)))


def _given(record: Any, *but: str) -> Iterator[tuple[str, Any]]:
    """(name, value) of a dataclass's fields that do not have their defaults."""
    for each in fields(record):
        value = getattr(record, each.name)
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if each.name not in but and value != default:
            yield each.name, value
