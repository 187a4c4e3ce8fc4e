"""The only conversion between fxtrace's plain data and the messages of `fxtrace.v1`, both ways.

What has the same fields on both sides is a `fxtrace.records.Record`: `TRACE.encode(trace)` is its message, and
`TRACE.decode` gives an equal trace back. Absent stays absent (None), empty stays empty. The rest is met here, once:

* `google.protobuf.Struct` holds every number as a double. Integers within ±2**53 come back as integers; greater ones
  are refused rather than changed. Its maps keep no order, so keys come back sorted.
* `Argument.int_value` has 64 bits. A greater integer becomes a symbol with the same digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import cast

from google.protobuf.empty_pb2 import Empty
from google.protobuf.struct_pb2 import ListValue, NullValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from fxtrace.diff import GraphDiff
from fxtrace.dims import Finding, Formula, Formulas
from fxtrace.errors import ConfigurationError, InputError, NameInvalid, OptionInvalid
from fxtrace.explain import Explanation
from fxtrace.graph import Arg, Graph, Node, Ref, SliceArg, Snapshot, Symbol, TensorSpec
from fxtrace.ir.trace import (
    IMAGE_FORMATS,
    RUNGS,
    SYMBOLIC_TIMEOUT,
    Json,
    ModelInfo,
    NodeQuery,
    Progress,
    QueryResult,
    RenderOptions,
    Rung,
    ServerInfo,
    TensorData,
    TraceInfo,
    TraceRequest,
)
from fxtrace.records import Codec, Record, enum_codec
from fxtrace.v1 import graph_pb2 as pb
from fxtrace.v1 import trace_service_pb2 as rpc

_TRACE_NAME = re.compile(r"traces/([0-9a-f]{32})")
_SOUGHT_TRACE = re.compile(r"traces/([0-9a-f]{1,32}|latest)")
_MODEL_NAME = re.compile(r"models/([^/\s]+)(?<!\.py)")  # never a path: a server runs no file that a request names
EXACT = 2**53
"""A double holds every integer up to here."""


def trace_name(trace_id: str) -> str:
    """A trace's resource name: `traces/{id}`."""
    return f"traces/{trace_id}"


def model_name(model: str) -> str:
    """A model's resource name: `models/{name}`."""
    return f"models/{model}"


def parse_trace_name(name: str, field: str) -> str:
    """The id in `traces/{id}`.

    Raises:
        NameInvalid: it has another form; the request's `field` is blamed.
    """
    return _parse_name(_TRACE_NAME, name, field, "'traces/' and 32 lowercase hexadecimal digits")


def parse_sought_trace(name: str, field: str) -> str:
    """What stands for {id} in `traces/{id}`: an id, the beginning of one, or `latest`.

    Raises:
        NameInvalid: it has another form; the request's `field` is blamed.
    """
    return _parse_name(_SOUGHT_TRACE, name, field, "'traces/' and 1 to 32 lowercase hexadecimal digits, or 'latest'")


def parse_model_name(name: str, field: str) -> str:
    """The model's name in `models/{name}`.

    Raises:
        NameInvalid: it has another form, or is a file's; the request's `field` is blamed.
    """
    return _parse_name(_MODEL_NAME, name, field, "'models/' and the name of a model on offer (not a file)")


def _parse_name(form: re.Pattern[str], name: str, field: str, expected: str) -> str:
    match = form.fullmatch(name)
    if match is None:
        raise NameInvalid(f"{field}: expected {expected}; got '{name}'", field=field, name=name)
    return match[1]


def encode_json(value: Json, field: str) -> Value:
    """A JSON value.

    Raises:
        ConfigurationError: it is no JSON, or an integer that a double does not hold exactly.
    """
    match value:
        case None:
            return Value(null_value=NullValue.NULL_VALUE)
        case bool():
            return Value(bool_value=value)
        case int() if abs(value) > EXACT:
            raise ConfigurationError(
                f"{field}: expected an integer within ±2**53, which a JSON number holds exactly; got {value}",
                field=field,
                value=value,
            )
        case int() | float():
            return Value(number_value=value)
        case str():
            return Value(string_value=value)
        case list():
            items = (encode_json(item, f"{field}.{i}") for i, item in enumerate(value))
            return Value(list_value=ListValue(values=items))
        case dict():
            return Value(struct_value=encode_struct(value, field))
    raise ConfigurationError(
        f"{field}: expected a JSON value (null, a bool, a number, text, a list or an object); "
        f"got {type(value).__name__}",
        field=field,
    )


def encode_struct(values: Mapping[str, Json], field: str) -> Struct:
    """A JSON object; see `encode_json`."""
    return Struct(fields={key: encode_json(value, f"{field}.{key}") for key, value in values.items()})


def decode_json(value: Value) -> Json:
    """The JSON value; a whole number that a double holds exactly is an integer."""
    match value.WhichOneof("kind"):
        case "bool_value":
            return value.bool_value
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) <= EXACT else number
        case "string_value":
            return value.string_value
        case "list_value":
            return [decode_json(item) for item in value.list_value.values]
        case "struct_value":
            return decode_struct(value.struct_value)
        case _:
            return None


def decode_struct(values: Struct) -> dict[str, Json]:
    """The JSON object, its keys sorted."""
    return {key: decode_json(values.fields[key]) for key in sorted(values.fields)}


def encode_argument(arg: Arg) -> pb.Argument:
    """An argument of a call."""
    match arg:
        case None:
            return pb.Argument(none=Empty())
        case bool():
            return pb.Argument(bool_value=arg)
        case int() if -(2**63) <= arg < 2**63:
            return pb.Argument(int_value=arg)
        case int():
            return pb.Argument(symbol=str(arg))
        case float():
            return pb.Argument(double_value=arg)
        case str():
            return pb.Argument(string_value=arg)
        case Ref(node):
            return pb.Argument(node=node)
        case Symbol(text):
            return pb.Argument(symbol=text)
        case SliceArg(start, stop, step):
            return pb.Argument(slice=pb.ArgumentList(items=map(encode_argument, (start, stop, step))))
        case tuple():
            return pb.Argument(list=pb.ArgumentList(items=map(encode_argument, arg)))
        case dict():
            return pb.Argument(map=pb.ArgumentMap(entries=_encode_named(arg)))


def decode_argument(arg: pb.Argument) -> Arg:
    """An argument of a call."""
    match kind := arg.WhichOneof("kind"):
        case None:
            return Symbol("?")  # of a kind that only a newer server knows
        case "none":
            return None
        case "node":
            return Ref(arg.node)
        case "symbol":
            return Symbol(arg.symbol)
        case "list":
            return tuple(map(decode_argument, arg.list.items))
        case "map":
            return _decode_named(arg.map.entries)
        case "slice":
            return SliceArg(*map(decode_argument, arg.slice.items))
        case _:
            return cast(bool | int | float | str, getattr(arg, kind))


def _encode_named(args: Mapping[str, Arg]) -> list[pb.NamedArgument]:
    return [pb.NamedArgument(name=name, value=encode_argument(arg)) for name, arg in args.items()]


def _decode_named(entries: Iterable[pb.NamedArgument]) -> dict[str, Arg]:
    return {entry.name: decode_argument(entry.value) for entry in entries}


def _encode_time(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


_BY_TYPE = {
    "fxtrace.v1.Argument": Codec(encode_argument, decode_argument),
    "fxtrace.v1.NamedArgument": Codec(_encode_named, _decode_named, whole=True),
    "fxtrace.v1.PathEnds": Codec(
        lambda ends: rpc.PathEnds(source=ends[0], target=ends[1]), lambda ends: (ends.source, ends.target)
    ),
    "google.protobuf.Struct": Codec(lambda values: encode_struct(values, "configuration"), decode_struct),
    "google.protobuf.Value": Codec(lambda value: encode_json(value, "default"), decode_json, whole=True),
    "google.protobuf.Timestamp": Codec(_encode_time, lambda stamp: stamp.ToDatetime(UTC)),
}
_MODEL_NAME_CODEC = Codec(model_name, lambda name: name.removeprefix("models/"))

_GRAPH = Record(Graph, pb.Graph, _BY_TYPE)
EXPLANATION = Record(Explanation, pb.Explanation, _BY_TYPE)
MODEL = Record(
    ModelInfo,
    rpc.Model,
    _BY_TYPE,
    name=("name", _MODEL_NAME_CODEC),
    schema=("schema", Codec(lambda values: encode_struct(values, "schema"), decode_struct)),
)
_NODE = Record(Node, pb.Node, _BY_TYPE)
NODE_QUERY = Record(NodeQuery, rpc.NodeQuery, _BY_TYPE, path="query.")
PROGRESS = Record(Progress, rpc.Progress, _BY_TYPE)
RENDER_OPTIONS = Record(
    RenderOptions,
    rpc.RenderOptions,
    _BY_TYPE,
    path="options.",
    fold_layers=("unfold_layers", Codec(lambda fold: not fold, lambda unfold: not unfold)),
)
SERVER = Record(ServerInfo, rpc.Server, _BY_TYPE)
SNAPSHOT = Record(Snapshot, pb.Snapshot, _BY_TYPE)
SPEC = Record(TensorSpec, pb.TensorSpec, _BY_TYPE)
TENSOR = Record(TensorData, rpc.TensorData, _BY_TYPE)
TRACE = Record(
    TraceInfo,
    rpc.Trace,
    _BY_TYPE,
    id=("name", Codec(trace_name, lambda name: name.removeprefix("traces/"))),
    model=("model", _MODEL_NAME_CODEC),
    created=("create_time", _BY_TYPE["google.protobuf.Timestamp"]),
)
IMAGE_FORMAT = enum_codec(rpc.ImageFormat.DESCRIPTOR, IMAGE_FORMATS, default="svg", field="format")
RUNG = enum_codec(rpc.Rung.DESCRIPTOR, RUNGS, default="", field="rung")


GRAPH_DIFF = Record(GraphDiff, rpc.GraphDiff, _BY_TYPE, path="diff.")


def encode_diff(diff: GraphDiff, size: int = 2000) -> Iterator[rpc.GraphDiff]:
    """The comparison in parts of at most so many nodes or values, which merged in order are the whole."""
    empty = replace(diff, fields=(), pairs=(), removed=(), added=(), values=(), notes=())
    yield GRAPH_DIFF.encode(replace(empty, fields=diff.fields, notes=diff.notes))
    for name in ("pairs", "removed", "added", "values"):
        items = getattr(diff, name)
        for start in range(0, len(items), size):
            yield GRAPH_DIFF.encode(replace(empty, **{name: items[start : start + size]}))


def decode_diff(parts: Iterable[rpc.GraphDiff]) -> GraphDiff:
    """The comparison whose parts these are, in order."""
    whole = rpc.GraphDiff()
    for part in parts:
        whole.MergeFrom(part)
    return GRAPH_DIFF.decode(whole)


def encode_graph(graph: Graph, start: int = 0, stop: int | None = None, *, basic: bool = False) -> pb.Graph:
    """The graph's nodes from `start` to `stop`; modules, dims and refusals go with the first.

    `basic` leaves out arguments, users, parameters, source lines, and what showed the roles.
    """
    nodes = graph.nodes[start:stop]
    page = replace(graph, nodes=tuple(map(_basic, nodes)) if basic else nodes)
    message = _GRAPH.encode(page if start == 0 else replace(page, modules=(), dims=(), refusals=()))
    for node, encoded in zip(nodes, message.nodes, strict=True):
        _name_roles(encoded, node)
        if not basic:
            encoded.users.extend(graph.users[node.name])
    return message


def _name_roles(encoded: pb.Node, node: Node) -> None:
    for role, encoded_role in zip(node.roles, encoded.roles, strict=True):
        encoded_role.name = str(role)


def _basic(node: Node) -> Node:
    roles = tuple(replace(role, evidence="", checks=()) for role in node.roles)
    return replace(node, args=(), kwargs={}, parameters=(), source=None, roles=roles)


def decode_graph(pages: Iterable[pb.Graph]) -> Graph:
    """The graph whose pages these are, in order; at least one."""
    first, *others = map(_GRAPH.decode, pages)
    return (
        replace(first, nodes=first.nodes + tuple(node for page in others for node in page.nodes)) if others else first
    )


def encode_formulas(formulas: Formulas) -> pb.Formulas:
    """The formulas of a graph's sizes, each different finding once."""
    found: dict[Finding, int] = {}

    def shapes(of: Mapping[str, tuple[Finding, ...]]) -> list[pb.ShapeFormulas]:
        return [
            pb.ShapeFormulas(name=name, sizes=[found.setdefault(each, len(found)) for each in findings])
            for name, findings in of.items()
        ]

    message = pb.Formulas(
        sizes=formulas.sizes,
        tensors=shapes(formulas.tensors),
        parameters=shapes(formulas.parameters),
        structural=formulas.structural,
        tied=formulas.tied,
        fixed=formulas.fixed,
        untried=formulas.untried,
        probes=formulas.probes,
        copy=formulas.copy,
    )
    message.found.extend(
        pb.SizeFormula(
            formula=str(each.formula or ""),
            depends_on=each.depends_on,
            confirmations=each.confirmations,
            reason=each.reason,
        )
        for each in found
    )
    return message


def decode_formulas(message: pb.Formulas) -> Formulas:
    """The formulas of a graph's sizes.

    Raises:
        InvalidRequest: one cannot be read.
        IndexError: a size's place is that of none.
    """
    found = [
        Finding(
            Formula(each.formula) if each.formula else None, tuple(each.depends_on), each.confirmations, each.reason
        )
        for each in message.found
    ]

    def shapes(of: Iterable[pb.ShapeFormulas]) -> dict[str, tuple[Finding, ...]]:
        return {each.name: tuple(found[place] for place in each.sizes) for each in of}

    return Formulas(
        sizes=dict(sorted(message.sizes.items())),
        tensors=shapes(message.tensors),
        parameters=shapes(message.parameters),
        structural=dict(sorted(message.structural.items())),
        tied=dict(sorted(message.tied.items())),
        fixed=tuple(message.fixed),
        untried=tuple(message.untried),
        probes=message.probes,
        copy=message.copy,
    )


def encode_query_result(
    result: QueryResult, start: int = 0, stop: int | None = None, *, basic: bool = False
) -> rpc.QueryNodesResponse:
    """A query's paths from `start` to `stop` with the nodes on them; where there are no paths, its nodes.

    `basic` leaves out what it does in `encode_graph`.
    """
    paths, nodes = result.paths[start:stop], result.nodes[start:stop]
    if result.paths:
        by_name = {node.name: node for node in result.nodes}
        nodes = tuple(by_name[name] for name in dict.fromkeys(name for path in paths for name in path))
    message = rpc.QueryNodesResponse(
        nodes=map(_NODE.encode, map(_basic, nodes) if basic else nodes),
        paths=[rpc.NodePath(nodes=path) for path in paths],
        truncated=result.truncated,
        total_size=len(result.paths or result.nodes),
    )
    for node, encoded in zip(nodes, message.nodes, strict=True):
        _name_roles(encoded, node)
    return message


def decode_query_result(pages: Iterable[rpc.QueryNodesResponse]) -> QueryResult:
    """The result whose pages these are, in order."""
    nodes: dict[str, Node] = {}
    paths: list[tuple[str, ...]] = []
    truncated = False
    for page in pages:
        for node in page.nodes:
            if node.name not in nodes:
                nodes[node.name] = _NODE.decode(node)
        paths += (tuple(path.nodes) for path in page.paths)
        truncated = page.truncated
    return QueryResult(tuple(nodes.values()), tuple(paths), truncated)


def fit(value: int, bits: int, field: str) -> int:
    """`value`, where a signed integer of so many bits holds it.

    Raises:
        OptionInvalid: it does not.
    """
    if not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
        raise OptionInvalid(f"{field}: expected an integer of at most {bits} bits; got {value}", field=field)
    return value


def encode_trace_request(request: TraceRequest) -> rpc.CreateTraceRequest:
    """What is to be traced.

    Raises:
        ConfigurationError: a configuration value is no JSON, or an integer beyond ±2**53.
        OptionInvalid: an unknown rung, a seed or size beyond 64 bits, or a file of weights.
    """
    if request.state:
        raise OptionInvalid(
            f"weights are read from a file in this process only, not by a server; got '{request.state}'", field="state"
        )
    given = [rpc.InputOverride(name=name, tensor=TENSOR.encode(tensor)) for name, tensor in request.inputs.items()]
    drawn = [
        rpc.InputOverride(name=name, shape=rpc.InputShape(sizes=[fit(n, 64, f"input_shapes.{name}") for n in shape]))
        for name, shape in request.input_shapes.items()
    ]
    return rpc.CreateTraceRequest(
        model=model_name(request.model),
        configuration=encode_struct(request.configuration, "configuration"),
        inputs=given + drawn,
        rung=RUNG.encode(request.rung),
        shapes_only=not request.values,
        training=request.training,
        unfused=request.unfused,
        by_product=request.by_product,
        seed=fit(request.seed, 64, "seed"),
        symbolic=[rpc.SymbolicSizes(input=name, names=names) for name, names in request.symbolic.items()],
        symbolic_timeout=request.symbolic_timeout,
        weightless=request.weightless,
    )


def decode_trace_request(request: rpc.CreateTraceRequest) -> TraceRequest:
    """What is to be traced.

    Raises:
        NameInvalid: the model's name is not `models/{name}`.
        InputError: an override has neither tensor nor shape, or an input has two of one kind, or names twice.
        OptionInvalid: an unknown rung.
    """
    inputs: dict[str, TensorData] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for i, override in enumerate(request.inputs):
        kind, name, field = override.WhichOneof("source"), override.name, f"inputs.{i}"
        if kind is None:
            raise InputError(f"{field}: input '{name}' has neither tensor nor shape", field=field, input=name)
        if name in (inputs if kind == "tensor" else shapes):
            raise InputError(f"{field}: input '{name}' is given twice", field=field, input=name)
        if kind == "tensor":
            inputs[name] = TENSOR.decode(override.tensor)
        else:
            shapes[name] = tuple(override.shape.sizes)
    symbolic: dict[str, tuple[str, ...]] = {}
    for i, sizes in enumerate(request.symbolic):
        if sizes.input in symbolic:
            field = f"symbolic.{i}"
            raise InputError(f"{field}: input '{sizes.input}' is given twice", field=field, input=sizes.input)
        symbolic[sizes.input] = tuple(sizes.names)
    return TraceRequest(
        model=parse_model_name(request.model, "model"),
        configuration=decode_struct(request.configuration),
        inputs=inputs,
        input_shapes=shapes,
        rung=cast(Rung, RUNG.decode(request.rung)),
        values=not request.shapes_only,
        training=request.training,
        unfused=request.unfused,
        seed=request.seed,
        weightless=request.weightless,
        symbolic=symbolic,
        symbolic_timeout=request.symbolic_timeout or SYMBOLIC_TIMEOUT,
        by_product=request.by_product,
    )
