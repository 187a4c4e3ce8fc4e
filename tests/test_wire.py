from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar, get_args

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from fxtrace import wire
from fxtrace.diff import (
    FieldChange,
    GraphDiff,
    How,
    Lone,
    NodePair,
    NodeSide,
    SizeChange,
    TensorChange,
    TensorSide,
    Totals,
    ValueChange,
)
from fxtrace.dims import Finding, Formula, Formulas
from fxtrace.errors import ConfigurationError, FxtraceError, InputError, NameInvalid, OptionInvalid
from fxtrace.explain import Explanation, Sized
from fxtrace.graph import (
    Arg,
    Check,
    Dim,
    Graph,
    Module,
    Node,
    Parameter,
    Ref,
    Refusal,
    Role,
    SliceArg,
    Snapshot,
    SnapshotTensor,
    Source,
    Symbol,
    TensorSpec,
    Value,
)
from fxtrace.ir.trace import (
    DIRECTIONS,
    IMAGE_FORMATS,
    RUNGS,
    THEMES,
    ConfigField,
    ImageFormat,
    Json,
    ModelInfo,
    NodeQuery,
    Progress,
    QueryResult,
    RenderOptions,
    TensorData,
    TracedInput,
    TraceInfo,
    TraceRequest,
)
from fxtrace.v1 import graph_pb2 as pb
from fxtrace.v1 import trace_service_pb2 as rpc

M = TypeVar("M", bound=Message)

INT32, INT64, EXACT = (st.integers(-(2**bits), 2**bits - 1) for bits in (31, 63, 53))
FLOATS = st.floats(allow_nan=False)
NAMES = st.text("abc._0é×", min_size=1, max_size=6)
TEXTS = st.text(max_size=8)


def tuples(items: SearchStrategy[Any]) -> SearchStrategy[Any]:
    return st.lists(items, max_size=3).map(tuple)


SHAPES = tuples(INT64)
ARGS: SearchStrategy[Arg] = st.recursive(
    st.none() | st.booleans() | INT64 | FLOATS | TEXTS | st.builds(Ref, NAMES) | st.builds(Symbol, TEXTS),
    lambda inner: st.builds(SliceArg, inner, inner, inner) | tuples(inner) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
JSON: SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | EXACT | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(NAMES, JSON, max_size=3)
SPECS = st.builds(TensorSpec, shape=SHAPES, stride=SHAPES, nbytes=INT64)
CHECKS = st.builds(Check, TEXTS, TEXTS, st.none() | st.booleans(), TEXTS)
ROLES = st.builds(Role, NAMES, st.none() | INT32, TEXTS, TEXTS, TEXTS, tuples(CHECKS))
SOURCES = st.builds(Source, TEXTS, INT32, TEXTS, TEXTS)


def nodes(name: str) -> SearchStrategy[Node]:
    return st.builds(
        Node,
        name=st.just(name),
        op=TEXTS,
        target=TEXTS,
        kind=TEXTS,
        args=tuples(ARGS),
        kwargs=st.dictionaries(TEXTS, ARGS, max_size=2),
        values=tuples(st.builds(Value, TEXTS, TEXTS, st.none() | SPECS, TEXTS)),
        module=TEXTS,
        parameters=tuples(TEXTS),
        source=st.none() | SOURCES,
        roles=tuples(ROLES),
    )


GRAPHS = st.builds(
    Graph,
    name=TEXTS,
    nodes=st.lists(NAMES, unique=True, max_size=4).flatmap(lambda names: st.tuples(*map(nodes, names))),
    modules=tuples(
        st.builds(
            Module,
            TEXTS,
            TEXTS,
            tuples(st.builds(Parameter, TEXTS, SHAPES, TEXTS, st.booleans(), st.booleans(), TEXTS)),
            st.dictionaries(TEXTS, ARGS, max_size=3),
        )
    ),
    dims=tuples(st.builds(Dim, TEXTS, INT64)),
    refusals=tuples(st.builds(Refusal, TEXTS, TEXTS)),
)
SNAPSHOTS = st.builds(
    Snapshot,
    number=INT32,
    title=TEXTS,
    section=TEXTS,
    roles=tuples(TEXTS),
    variables=tuples(TEXTS),
    dims=tuples(TEXTS),
    tensors=tuples(st.builds(SnapshotTensor, TEXTS, TEXTS, TEXTS, TEXTS, SHAPES, tuples(TEXTS))),
    explanation=TEXTS,
    checks=tuples(CHECKS),
    reason=TEXTS,
)
MODELS = st.builds(
    ModelInfo,
    name=NAMES,
    summary=TEXTS,
    fields=tuples(st.builds(ConfigField, NAMES, TEXTS, JSON, TEXTS, st.booleans())),
    schema=OBJECTS,
)
TRACES = st.builds(
    TraceInfo,
    id=st.text("0123456789abcdef", min_size=32, max_size=32),
    model=NAMES,
    configuration=OBJECTS,
    inputs=tuples(st.builds(TracedInput, NAMES, SPECS, st.sampled_from(["example", "given", "random"]))),
    rung_notes=tuples(TEXTS),
    seed=INT64,
    output_equal=st.none() | st.booleans(),
    node_count=INT32,
    tensor_count=INT32,
    labelled_count=INT32,
    parameter_count=INT64,
    tensor_bytes=INT64,
    created=st.datetimes(timezones=st.just(UTC)),
    seconds=FLOATS,
    state=TEXTS,
    state_sha256=TEXTS,
)
REQUESTS = st.builds(
    TraceRequest,
    model=st.text("abc-_.0", min_size=1).filter(lambda name: not name.endswith(".py")),
    configuration=OBJECTS,
    inputs=st.dictionaries(NAMES, st.builds(TensorData, TEXTS, SHAPES, st.binary(max_size=8)), max_size=2),
    input_shapes=st.dictionaries(NAMES, SHAPES, max_size=2),
    rung=st.sampled_from(["", *RUNGS]),
    values=st.booleans(),
    training=st.booleans(),
    unfused=st.booleans(),
    seed=INT64,
    weightless=st.booleans(),
    symbolic=st.dictionaries(NAMES, tuples(TEXTS), max_size=2),
    symbolic_timeout=st.floats(0, exclude_min=True, allow_nan=False),
)
OPTIONS = st.builds(
    RenderOptions,
    depth=st.none() | INT32,
    highlight=tuples(TEXTS),
    direction=st.sampled_from(DIRECTIONS),
    theme=st.sampled_from(THEMES),
)
QUERIES = st.builds(
    NodeQuery, TEXTS, TEXTS, TEXTS, max_depth=st.none() | INT32, path=st.none() | st.tuples(TEXTS, TEXTS), pattern=TEXTS
)
SIDES = st.builds(NodeSide, TEXTS, TEXTS, tuples(TEXTS))
TENSOR_SIDES = st.builds(TensorSide, TEXTS, SHAPES, TEXTS)
SIZES = st.builds(SizeChange, INT32, INT64, INT64, TEXTS, tuples(TEXTS))
TOTALS = st.builds(Totals, INT64, INT64, INT64)
LONE = tuples(st.builds(Lone, SIDES, tuples(TEXTS)))
DIFFS = st.builds(
    GraphDiff,
    fields=tuples(st.builds(FieldChange, NAMES, JSON, JSON)),
    pairs=tuples(
        st.builds(
            NodePair,
            SIDES,
            SIDES,
            st.sampled_from(get_args(How)),
            tuples(st.builds(TensorChange, TENSOR_SIDES, TENSOR_SIDES, tuples(SIZES))),
            tuples(TEXTS),
        )
    ),
    removed=LONE,
    added=LONE,
    before=TOTALS,
    after=TOTALS,
    values=tuples(st.builds(ValueChange, TEXTS, TEXTS, TEXTS, FLOATS, FLOATS)),
    notes=tuples(TEXTS),
)
NAMED = st.dictionaries(NAMES, INT64, max_size=3)
FINDINGS = st.builds(
    Finding, st.none() | st.sampled_from(["a", "a*b.c[1]", "min(3, a)//2"]).map(Formula), tuples(NAMES), INT32, TEXTS
)
FOUND = st.dictionaries(NAMES, tuples(FINDINGS), max_size=3)
FORMULAS = st.builds(
    Formulas,
    sizes=NAMED,
    tensors=FOUND,
    parameters=FOUND,
    structural=st.dictionaries(NAMES, TEXTS, max_size=2),
    tied=st.dictionaries(NAMES, NAMES, max_size=2),
    fixed=tuples(NAMES),
    untried=tuples(NAMES),
    probes=INT32,
    copy=TEXTS,
)
SIZED = tuples(st.builds(Sized, NAMES, tuples(TEXTS), SHAPES, tuples(TEXTS), tuples(TEXTS)))
EXPLANATIONS = st.builds(
    Explanation, TEXTS, SIZED, SIZED, SIZED, tuples(CHECKS), tuples(TEXTS), tuples(TEXTS), tuples(TEXTS)
)
PROGRESS = st.builds(Progress, TEXTS, INT64, INT64)


def travel(message: M) -> M:
    """The message as the other side parses it."""
    return type(message).FromString(message.SerializeToString())


@given(GRAPHS)
def test_graph_round_trip(graph: Graph) -> None:
    assert wire.decode_graph([travel(wire.encode_graph(graph))]) == graph


@given(GRAPHS, st.integers(1, 4))
def test_pages_make_up_the_graph(graph: Graph, size: int) -> None:
    starts = range(0, max(len(graph.nodes), 1), size)
    pages = [travel(wire.encode_graph(graph, start, start + size)) for start in starts]
    assert wire.decode_graph(pages) == graph
    assert not any(page.modules or page.dims or page.refusals for page in pages[1:])


@given(GRAPHS, st.booleans(), st.integers(1, 4), st.booleans(), st.data())
def test_pages_make_up_a_query_s_result(
    graph: Graph, truncated: bool, size: int, with_paths: bool, data: st.DataObject
) -> None:
    result = QueryResult(graph.nodes)
    if graph.nodes and with_paths:
        path = st.lists(st.sampled_from(sorted(graph.by_name)), min_size=1, max_size=5).map(tuple)
        paths = tuple(data.draw(st.lists(path, min_size=1, max_size=5)))
        names = dict.fromkeys(name for path in paths for name in path)
        result = QueryResult(tuple(graph.by_name[name] for name in names), paths, truncated)
    total = len(result.paths or result.nodes)
    pages = [travel(wire.encode_query_result(result, i, i + size)) for i in range(0, max(total, 1), size)]
    assert wire.decode_query_result(pages) == result
    assert {page.total_size for page in pages} == {total}


@given(GRAPHS)
def test_basic_view_keeps_what_a_node_is_and_drops_the_rest(graph: Graph) -> None:
    decoded = wire.decode_graph([wire.encode_graph(graph, basic=True)])
    for basic, full in zip(decoded.nodes, graph.nodes, strict=True):
        roles = tuple(replace(role, evidence="", checks=()) for role in full.roles)
        assert basic == replace(full, args=(), kwargs={}, parameters=(), source=None, roles=roles)


@pytest.mark.parametrize(
    ("values", "encode", "decode"),
    [
        (SNAPSHOTS, wire.SNAPSHOT.encode, wire.SNAPSHOT.decode),
        (MODELS, wire.MODEL.encode, wire.MODEL.decode),
        (TRACES, wire.TRACE.encode, wire.TRACE.decode),
        (REQUESTS, wire.encode_trace_request, wire.decode_trace_request),
        (OPTIONS, wire.RENDER_OPTIONS.encode, wire.RENDER_OPTIONS.decode),
        (QUERIES, wire.NODE_QUERY.encode, wire.NODE_QUERY.decode),
        (EXPLANATIONS, wire.EXPLANATION.encode, wire.EXPLANATION.decode),
        (FORMULAS, wire.encode_formulas, wire.decode_formulas),
        (PROGRESS, wire.PROGRESS.encode, wire.PROGRESS.decode),
        (SPECS, wire.SPEC.encode, wire.SPEC.decode),
        (DIFFS, wire.GRAPH_DIFF.encode, wire.GRAPH_DIFF.decode),
    ],
)
def test_round_trip(values: SearchStrategy[Any], encode: Any, decode: Any) -> None:
    @given(values)
    def check(value: object) -> None:
        assert decode(travel(encode(value))) == value

    check()


@given(DIFFS, st.integers(1, 2))
def test_parts_make_up_a_comparison(diff: GraphDiff, size: int) -> None:
    parts = [travel(part) for part in wire.encode_diff(diff, size)]
    assert wire.decode_diff(parts) == diff
    assert all(len(part.pairs) + len(part.added) + len(part.removed) + len(part.values) <= size for part in parts)


def test_the_graph_s_messages_carry_names_and_users_for_other_languages() -> None:
    role = Role("decoder", 0, "cross_attention", "scores")
    graph = Graph("Net", (Node("a", "placeholder", "a", "input", roles=(role,)), Node("b", "f", "f", "x", (Ref("a"),))))
    first, second = wire.encode_graph(graph).nodes
    assert first.roles[0].name == "decoder.0.cross_attention.scores"
    assert list(first.users) == ["b"]
    assert list(second.users) == []


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_floats_that_are_no_numbers_travel(number: float) -> None:
    for back in (
        wire.decode_argument(travel(wire.encode_argument(number))),
        wire.decode_json(travel(wire.encode_json(number, "x"))),
    ):
        assert isinstance(back, float)
        assert str(back) == str(number)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**40])
def test_integer_arguments_beyond_64_bits_become_symbols(number: int) -> None:
    assert wire.decode_argument(wire.encode_argument(number)) == Symbol(str(number))


def test_an_argument_of_a_newer_kind_is_shown_as_unknown() -> None:
    assert wire.decode_argument(pb.Argument()) == Symbol("?")


@given(EXACT)
def test_json_integers_come_back_as_integers(number: int) -> None:
    back = wire.decode_json(travel(wire.encode_json([number, {"n": number}, number > 0], "x")))
    assert repr(back) == repr([number, {"n": number}, number > 0])


@pytest.mark.parametrize("number", [2**53 + 1, -(2**53) - 1, 2**64])
def test_json_integers_that_a_double_would_change_are_refused(number: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"configuration\.sizes\.1: expected an integer .* got {number}") as e:
        wire.encode_trace_request(TraceRequest("m", {"sizes": [0, number]}))
    assert e.value.field == "configuration.sizes.1"


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"configuration\.x: expected a JSON value .* got complex"):
        wire.encode_trace_request(TraceRequest("m", {"x": 1j}))  # type: ignore[dict-item]


def test_absent_and_empty_stay_apart() -> None:
    trace_id = "0" * 32
    never = datetime(2024, 1, 1, tzinfo=UTC)
    trace = TraceInfo(
        trace_id, "m", {"a": None, "b": "", "c": [], "d": {}, "e": 0, "f": False}, (), "symbolic", (), False, False, 0,
        "2", "1", None, 0, 0, 0, 0, 0, never, 0.0,
    )  # fmt: skip
    back = wire.TRACE.decode(travel(wire.TRACE.encode(trace)))
    assert repr(back.configuration) == repr(trace.configuration)
    assert back.output_equal is None
    assert wire.TRACE.decode(travel(wire.TRACE.encode(replace(trace, output_equal=False)))).output_equal is False


@pytest.mark.parametrize(
    "name",
    [
        "",
        "traces/",
        "0" * 32,
        "traces/" + "0" * 31,
        "traces/" + "g" * 32,
        "traces/" + "A" * 32,
        "traces/" + "0" * 32 + "\n",
    ],
)
def test_malformed_trace_names_are_refused(name: str) -> None:
    with pytest.raises(NameInvalid, match="trace: expected 'traces/' and 32 lowercase hexadecimal digits") as e:
        wire.parse_trace_name(name, "trace")
    assert (e.value.field, e.value.metadata["name"]) == ("trace", name)


@pytest.mark.parametrize(
    "name", ["", "models/", "reference", "models/a/b", "models/../x", "models/mine.py", "models/a b"]
)
def test_malformed_model_names_and_files_are_refused(name: str) -> None:
    with pytest.raises(NameInvalid, match="model: expected 'models/' and the name of a model"):
        wire.parse_model_name(name, "model")


def test_names_round_trip() -> None:
    assert wire.parse_model_name(wire.model_name("my.model"), "model") == "my.model"
    assert wire.parse_trace_name(wire.trace_name("0a" * 16), "trace") == "0a" * 16


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_image_formats_round_trip(image_format: ImageFormat) -> None:
    assert wire.IMAGE_FORMAT.decode(wire.IMAGE_FORMAT.encode(image_format)) == image_format


def test_unspecified_enums_are_the_defaults() -> None:
    assert wire.IMAGE_FORMAT.decode(rpc.IMAGE_FORMAT_UNSPECIFIED) == "svg"
    assert wire.RENDER_OPTIONS.decode(rpc.RenderOptions()) == RenderOptions()
    assert wire.decode_trace_request(rpc.CreateTraceRequest(model="models/m")) == TraceRequest("m")


SHAPE = rpc.InputShape(sizes=[2])


@pytest.mark.parametrize(
    ("message", "error", "field", "words"),
    [
        (rpc.CreateTraceRequest(model="m"), NameInvalid, "model", "got 'm'"),
        (rpc.CreateTraceRequest(model="models/m", rung=9), OptionInvalid, "rung", "expected one of symbolic"),  # type: ignore[arg-type]
        (
            rpc.CreateTraceRequest(model="models/m", inputs=[rpc.InputOverride(name="x")]),
            InputError,
            "inputs.0",
            "neither tensor nor shape",
        ),
        (
            rpc.CreateTraceRequest(model="models/m", inputs=[rpc.InputOverride(name="x", shape=SHAPE)] * 2),
            InputError,
            "inputs.1",
            "'x' is given twice",
        ),
        (
            rpc.CreateTraceRequest(model="models/m", symbolic=[rpc.SymbolicSizes(input="x", names=["n"])] * 2),
            InputError,
            "symbolic.1",
            "'x' is given twice",
        ),
    ],
)
def test_bad_requests_are_refused(
    message: rpc.CreateTraceRequest, error: type[FxtraceError], field: str, words: str
) -> None:
    with pytest.raises(error, match=words) as e:
        wire.decode_trace_request(message)
    assert e.value.field == field


@pytest.mark.parametrize(
    ("encode", "value", "field", "words"),
    [
        (wire.RENDER_OPTIONS.encode, RenderOptions(depth=2**31), "options.depth", "out of range"),
        (wire.RENDER_OPTIONS.encode, RenderOptions(theme="drak"), "options.theme", "did you mean 'dark'"),  # type: ignore[arg-type]
        (wire.RENDER_OPTIONS.encode, RenderOptions(direction="UP"), "options.direction", "Known: TB, LR"),  # type: ignore[arg-type]
        (wire.IMAGE_FORMAT.encode, "jpeg", "format", "Known: dot, svg, png, pdf"),
        (wire.encode_trace_request, TraceRequest("m", seed=2**63), "seed", "at most 64 bits"),
        (wire.encode_trace_request, TraceRequest("m", input_shapes={"x": (2**63,)}), "input_shapes.x", "64 bits"),
        (wire.encode_trace_request, TraceRequest("m", rung="magic"), "rung", "Known: symbolic"),  # type: ignore[arg-type]
    ],
)
def test_options_that_do_not_fit_are_refused(encode: Any, value: object, field: str, words: str) -> None:
    with pytest.raises(OptionInvalid, match=words) as e:
        encode(value)
    assert e.value.field == field
