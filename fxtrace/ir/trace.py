"""Provenance and requests as plain data: what was traced, how, and what may be asked of a trace. No torch, no grpc.

The engine (in this process) and the client (over gRPC) take and return these same types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from fxtrace.graph import Node, TensorSpec

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
"""A configuration value in JSON's terms."""

Rung = Literal["symbolic", "record", "export"]
"""How a graph was obtained: torch.fx symbolic tracing, one real run written down, or torch.export."""

RUNGS: tuple[Rung, ...] = ("symbolic", "record", "export")

SYMBOLIC_TIMEOUT = 60.0
"""Seconds of computing that following symbolic sizes may take, where nothing else is asked for; most take a few."""

Fill = Literal["example", "given", "random"]
"""Where an input's numbers came from: the model's own example, the request, or drawn at random for a shape."""

Scope = Literal["read", "write"]
"""What a server's key allows: every call but CreateTrace and DeleteTrace, or every call."""


@dataclass(frozen=True, slots=True)
class ConfigField:
    """One field of a model's configuration; `dimension` says that it is an integer and so names a size."""

    name: str
    type: str
    default: Json
    description: str = ""
    dimension: bool = False


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that can be traced: its name, a line about it, and its configuration.

    `schema` is the configuration's JSON schema.
    """

    name: str
    summary: str
    fields: tuple[ConfigField, ...]
    schema: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server: the version of fxtrace that it runs, what the caller may do there, and the id of the caller's key.

    `key_id` is empty where the server has no keys.
    """

    version: str
    scope: Scope
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class TensorData:
    """A tensor as it travels: its dtype's name, shape, and its raw bytes (little-endian, row-major)."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class TraceRequest:
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


@dataclass(frozen=True, slots=True)
class TracedInput:
    """An input the model was traced with."""

    name: str
    spec: TensorSpec
    fill: Fill


@dataclass(frozen=True, slots=True)
class TraceInfo:
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


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long piece of work is: `done` of `total` in `stage`; `total` is 0 where it is not known."""

    stage: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class NodeQuery:
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


@dataclass(frozen=True, slots=True)
class QueryResult:
    """The nodes that a query means.

    Attributes:
        nodes: in execution order; where paths were asked for, the nodes on them, each once, as the paths come to them.
        paths: the names of the nodes on each path; empty where none were asked for.
        truncated: whether there are more paths than were looked for.
    """

    nodes: tuple[Node, ...]
    paths: tuple[tuple[str, ...], ...] = ()
    truncated: bool = False


Theme = Literal["light", "dark"]
Direction = Literal["TB", "LR"]
ImageFormat = Literal["dot", "svg", "png", "pdf"]

THEMES: tuple[Theme, ...] = ("light", "dark")
DIRECTIONS: tuple[Direction, ...] = ("TB", "LR")
IMAGE_FORMATS: tuple[ImageFormat, ...] = ("dot", "svg", "png", "pdf")


@dataclass(frozen=True, slots=True)
class RenderOptions:
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
