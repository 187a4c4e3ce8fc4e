"""The service as any client in any language sees it: messages and statuses."""

from __future__ import annotations

import asyncio
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Value
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from grpc_status import rpc_status

from fxtrace.client import Client
from fxtrace.errors import Cancelled, ConfigurationError
from fxtrace.ir.trace import Progress
from fxtrace.models import Registry
from fxtrace.service.engine import Engine
from fxtrace.service.server import serving
from fxtrace.service.servicer import _News
from fxtrace.v1 import trace_service_pb2 as rpc
from fxtrace.v1.graph_pb2 import Node
from fxtrace.v1.trace_service_pb2_grpc import TraceServiceStub
from tests.conftest import Served

Code = grpc.StatusCode
WEIGHTS = "decoder.0.cross_attention.weights"


@pytest.fixture(scope="module")
def stub(served: Served) -> Iterator[TraceServiceStub]:
    with grpc.insecure_channel(served.address) as channel:
        yield TraceServiceStub(channel)


@pytest.fixture(scope="module")
def trace(served: Served) -> str:
    return f"traces/{served.reference.id}"


def graph_request(trace: str, **fields: Any) -> rpc.GetGraphRequest:
    return rpc.GetGraphRequest(trace=trace, **fields)


def query_request(trace: str, **fields: Any) -> rpc.QueryNodesRequest:
    own = {name: fields.pop(name) for name in ("view", "page_size", "page_token") if name in fields}
    return rpc.QueryNodesRequest(trace=trace, query=rpc.NodeQuery(**fields), **own)


def test_models_are_paged(stub: TraceServiceStub) -> None:
    everything = stub.ListModels(rpc.ListModelsRequest())
    assert [model.name for model in everything.models] == [
        f"models/{m}" for m in ("decoder", "dtypes", "reference", "slow", "tiny")
    ]
    assert everything.models[1].fields[0].name
    names, token = [], ""
    while True:
        page = stub.ListModels(rpc.ListModelsRequest(page_size=3, page_token=token))
        names += [model.name for model in page.models]
        token = page.next_page_token
        if not token:
            break
    assert names == [model.name for model in everything.models]


def test_a_model_that_does_not_travel(tmp_path: Path) -> None:
    file = tmp_path / "vast.py"
    file.write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Config:\n    seed: int = 2**60\n"
        "def build(config): ...\ndef example_inputs(config): ...\n"
    )
    models = Registry()
    models.add_file(file)
    with Engine.open(tmp_path / "store", models) as engine, serving(engine) as address, Client(address) as client:
        (listed,) = client.list_models()
        assert re.fullmatch(r"cannot be used: .* expected an integer within ±2\*\*53, .*", listed.summary)
        with pytest.raises(ConfigurationError, match="expected an integer within"):
            client.get_model("vast")


def test_the_graph_is_paged(stub: TraceServiceStub, trace: str) -> None:
    whole = stub.GetGraph(graph_request(trace))
    assert whole.total_nodes == len(whole.graph.nodes) > 100
    assert not whole.next_page_token
    nodes: list[Node] = []
    token, sizes = "", []
    while True:
        page = stub.GetGraph(graph_request(trace, page_size=50, page_token=token))
        assert page.total_nodes == whole.total_nodes
        assert bool(page.graph.modules) == (not nodes)
        sizes.append(len(page.graph.nodes))
        nodes += page.graph.nodes
        token = page.next_page_token
        if not token:
            break
    assert nodes == list(whole.graph.nodes)
    assert set(sizes[:-1]) == {50}


def test_a_second_ask_gives_the_same_bytes(stub: TraceServiceStub, trace: str) -> None:
    assert stub.GetGraph(graph_request(trace)) == stub.GetGraph(graph_request(trace))


def test_the_basic_view_is_less(stub: TraceServiceStub, trace: str) -> None:
    full = stub.GetGraph(graph_request(trace, view=rpc.GRAPH_VIEW_FULL))
    basic = stub.GetGraph(graph_request(trace, view=rpc.GRAPH_VIEW_BASIC))
    assert basic.ByteSize() < full.ByteSize() / 2
    assert [node.name for node in basic.graph.nodes] == [node.name for node in full.graph.nodes]
    assert not any(n.args or n.kwargs or n.users or n.parameters or n.HasField("source") for n in basic.graph.nodes)
    assert {role.name for n in basic.graph.nodes for role in n.roles} == {
        role.name for n in full.graph.nodes for role in n.roles
    }


def test_filters_count_on_all_pages(stub: TraceServiceStub, trace: str) -> None:
    page = stub.GetGraph(graph_request(trace, role="decoder.0.cross_attention", page_size=2))
    assert page.total_nodes > len(page.graph.nodes) == 2


PATH = rpc.PathEnds(source="src_ids", target=WEIGHTS)


@pytest.mark.parametrize(
    "query", [{}, {"expression": "rank == 4"}, {"pattern": "linear view"}, {"path": PATH}], ids=lambda query: [*query]
)
def test_answers_to_a_query_are_paged(stub: TraceServiceStub, trace: str, query: dict[str, Any]) -> None:
    whole = stub.QueryNodes(query_request(trace, **query))
    paths = "pattern" in query or "path" in query
    assert whole.total_size == len(whole.paths if paths else whole.nodes) > 0
    assert bool(whole.paths) == paths
    assert not whole.next_page_token
    nodes: dict[str, Node] = {}
    found: list[rpc.NodePath] = []
    token, sizes = "", []
    while True:
        page = stub.QueryNodes(query_request(trace, page_size=7, page_token=token, **query))
        assert (page.total_size, page.truncated) == (whole.total_size, whole.truncated)
        assert not paths or {node.name for node in page.nodes} == {name for path in page.paths for name in path.nodes}
        sizes.append(len(page.paths if paths else page.nodes))
        nodes |= {node.name: node for node in page.nodes}
        found += page.paths
        token = page.next_page_token
        if not token:
            break
    assert (list(nodes.values()), found) == (list(whole.nodes), list(whole.paths))
    assert set(sizes[:-1]) <= {7}


def test_an_answer_s_nodes_are_the_graph_s(stub: TraceServiceStub, trace: str) -> None:
    graph = {node.name: node for node in stub.GetGraph(graph_request(trace)).graph.nodes}
    answer = stub.QueryNodes(query_request(trace, expression='role != ""'))
    assert answer.nodes
    for node in answer.nodes:
        assert node.roles[0].name
        node.users.extend(graph[node.name].users)
        assert node == graph[node.name]
    basic = stub.QueryNodes(query_request(trace, expression='role != ""', view=rpc.GRAPH_VIEW_BASIC))
    assert not any(node.args or node.parameters or node.HasField("source") for node in basic.nodes)
    assert [node.roles[0].name for node in basic.nodes] == [node.roles[0].name for node in answer.nodes]


@pytest.mark.parametrize("change", [{"expression": "rank == 3"}, {"view": rpc.GRAPH_VIEW_BASIC}, {"pattern": "add"}])
def test_a_token_of_a_query_belongs_to_it(stub: TraceServiceStub, trace: str, change: dict[str, Any]) -> None:
    token = stub.QueryNodes(query_request(trace, expression="rank == 4", page_size=3)).next_page_token
    assert token
    with pytest.raises(grpc.RpcError) as e:
        stub.QueryNodes(query_request(trace, **{"expression": "rank == 4", "page_token": token, **change}))
    assert reason(e.value)[0] == (Code.INVALID_ARGUMENT, "PAGE_INVALID")


@pytest.mark.parametrize("change", [{"role": "encoder"}, {"view": rpc.GRAPH_VIEW_BASIC}, {"module": "decoder"}])
def test_a_token_belongs_to_its_query(stub: TraceServiceStub, trace: str, change: dict[str, Any]) -> None:
    token = stub.GetGraph(graph_request(trace, page_size=9)).next_page_token
    stub.GetGraph(graph_request(trace, page_size=7, page_token=token))  # another size is no other query
    with pytest.raises(grpc.RpcError) as e:
        stub.GetGraph(graph_request(trace, page_token=token, **change))
    assert reason(e.value)[0] == (Code.INVALID_ARGUMENT, "PAGE_INVALID")


@pytest.mark.parametrize("chunk_bytes", [0, 4096, 5000, 2 << 20])
def test_a_tensor_arrives_as_header_chunks_and_checksum(
    stub: TraceServiceStub, served: Served, chunk_bytes: int
) -> None:
    request = rpc.ReadTensorRequest(trace=f"traces/{served.dtypes.id}", tensor="add", chunk_bytes=chunk_bytes)
    first, *chunks, last = stub.ReadTensor(request)
    data = b"".join(event.chunk for event in chunks)
    assert (first.header.tensor, first.header.spec.dtype, first.header.nbytes) == ("add", "float32", 8 << 20)
    assert list(first.header.shape) == list(first.header.spec.shape) == [2 << 20]
    assert {len(event.chunk) for event in chunks[:-1]} == {chunk_bytes or 1 << 20}
    assert last.WhichOneof("event") == "crc32"
    assert last.crc32 == zlib.crc32(data)
    assert data == served.engine.read_tensor(served.dtypes.id, "add").tobytes()


def test_a_tensor_of_no_elements_has_no_chunks(stub: TraceServiceStub, served: Served) -> None:
    request = rpc.ReadTensorRequest(
        trace=f"traces/{served.dtypes.id}", tensor="add", slice=rpc.TensorSlice(expression="3:3")
    )
    header, checksum = stub.ReadTensor(request)
    assert (list(header.header.shape), header.header.nbytes, checksum.crc32) == ([0], 0, 0)


def test_batches_come_in_the_order_asked_for(stub: TraceServiceStub, trace: str) -> None:
    parts = ["-1", "0,0,0,0", ""]
    reads = [rpc.TensorRead(tensor=WEIGHTS, slice=rpc.TensorSlice(expression=part)) for part in parts]
    reply = stub.BatchReadTensors(rpc.BatchReadTensorsRequest(trace=trace, reads=reads))
    assert [list(result.header.shape) for result in reply.results] == [[4, 5, 6], [], [1, 4, 5, 6]]
    assert [len(result.data) for result in reply.results] == [480, 4, 480]
    assert len({result.header.tensor for result in reply.results}) == 1


def test_pictures_come_in_parts(stub: TraceServiceStub, trace: str) -> None:
    messages = list(stub.RenderGraph(rpc.RenderGraphRequest(trace=trace, format=rpc.IMAGE_FORMAT_DOT)))
    parts = [message for message in messages if not message.HasField("progress")]
    assert [message.progress.stage for message in messages[: -len(parts)]] == ["draw"]
    assert parts[0].media_type == "text/vnd.graphviz"
    assert parts[0].nbytes == sum(len(part.chunk) for part in parts) > 1000
    assert parts[0].chunk.startswith(b"digraph")


def test_progress_comes_first_and_the_trace_last(stub: TraceServiceStub) -> None:
    *progress, last = stub.CreateTrace(rpc.CreateTraceRequest(model="models/tiny", seed=11))
    assert {event.WhichOneof("event") for event in progress} == {"progress"}
    assert progress[0].progress.stage == "build"
    assert progress[-1].progress.stage == "store"
    assert last.trace.name.startswith("traces/")
    again = list(stub.CreateTrace(rpc.CreateTraceRequest(model="models/tiny", seed=11)))
    assert [event.trace for event in again] == [last.trace]


def test_a_deleted_trace_is_gone_from_every_answer(stub: TraceServiceStub) -> None:
    *_, last = stub.CreateTrace(rpc.CreateTraceRequest(model="models/tiny", seed=12))
    name = last.trace.name
    stub.GetGraph(graph_request(name))
    assert name in {trace.name for trace in stub.ListTraces(rpc.ListTracesRequest()).traces}
    stub.DeleteTrace(rpc.DeleteTraceRequest(name=name))
    for call in (
        lambda: stub.GetGraph(graph_request(name)),
        lambda: stub.GetTrace(rpc.GetTraceRequest(name=name)),
        lambda: stub.DeleteTrace(rpc.DeleteTraceRequest(name=name)),
        lambda: list(stub.ReadTensor(rpc.ReadTensorRequest(trace=name, tensor="x"))),
    ):
        with pytest.raises(grpc.RpcError) as e:
            call()
        assert reason(e.value)[0] == (Code.NOT_FOUND, "TRACE_NOT_FOUND")


def test_stalled_readers_hold_no_thread(stub: TraceServiceStub, served: Served, trace: str) -> None:
    request = rpc.ReadTensorRequest(trace=f"traces/{served.dtypes.id}", tensor="add")
    stalled = [stub.ReadTensor(request) for _ in range(24)]  # more than the server has threads
    for call in stalled:
        next(call)
    assert stub.GetTrace(rpc.GetTraceRequest(name=trace)).trace.name == trace
    assert len(list(stub.ReadTensor(request))) == 10
    for call in stalled:
        call.cancel()


def slow(log: Path, **fields: Any) -> rpc.CreateTraceRequest:
    request = rpc.CreateTraceRequest(model="models/slow", **fields)
    request.configuration["log"] = str(log)
    return request


def test_reads_do_not_wait_for_captures(stub: TraceServiceStub, trace: str, tmp_path: Path) -> None:
    call = stub.CreateTrace(slow(tmp_path / "log"))
    next(call)
    assert stub.GetTrace(rpc.GetTraceRequest(name=trace)).trace.name == trace
    seen = (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""
    list(call)
    assert len(seen) < len((tmp_path / "log").read_text()) == 80  # once eagerly, once node by node


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_caller_that_gives_up_stops_the_work(stub: TraceServiceStub, tmp_path: Path, how: str) -> None:
    log = tmp_path / "log"
    call = stub.CreateTrace(slow(log), timeout=0.3 if how == "deadline" else None)
    next(call)
    if how == "cancel":
        call.cancel()
    with pytest.raises(grpc.RpcError) as e:
        list(call)
    assert e.value.code() is (Code.CANCELLED if how == "cancel" else Code.DEADLINE_EXCEEDED)
    # Captures run one at a time: when this one is done, the other has stopped.
    list(stub.CreateTrace(rpc.CreateTraceRequest(model="models/tiny", seed=hash(how) % 1000)))
    assert len(log.read_text() if log.exists() else "") < 80


def test_a_slow_reader_gets_the_latest_of_each_stage() -> None:
    async def run() -> list[Progress]:
        news: _News[Progress] = _News()

        def work() -> None:
            for stage in ("build", "propagate"):
                for done in range(1000):
                    news.report(Progress(stage, done))
            news.end()

        thread = threading.Thread(target=work)
        thread.start()
        await asyncio.to_thread(thread.join)
        return [progress async for progress in news]

    assert asyncio.run(run()) == [Progress("build", 999), Progress("propagate", 999)]


def test_a_report_after_the_caller_left_raises() -> None:
    async def run() -> None:
        news: _News[Progress] = _News()
        news.report(Progress("build"))
        news.stop()
        with pytest.raises(Cancelled):
            news.report(Progress("build"))

    asyncio.run(run())


def reason(error: grpc.RpcError) -> tuple[tuple[grpc.StatusCode, str], str]:
    """((code, reason), field) of an RPC's error."""
    info, bad = ErrorInfo(), BadRequest()
    status = rpc_status.from_call(error)
    assert status is not None, error
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    assert info.domain == "fxtrace"
    return (error.code(), info.reason), bad.field_violations[0].field if bad.field_violations else ""


NAME, PAGE, OPTION = ((Code.INVALID_ARGUMENT, f"{word}_INVALID") for word in ("NAME", "PAGE", "OPTION"))
QUERY, QUERY_FIELD = (Code.INVALID_ARGUMENT, "QUERY_INVALID"), "query.expression"
MISSING = "traces/" + "0" * 32
Bad = Callable[[TraceServiceStub, str], Any]

BAD: list[tuple[str, Bad, tuple[grpc.StatusCode, str], str]] = [
    ("unknown model", lambda s, _: s.GetModel(rpc.GetModelRequest(name="models/refrence")),
     (Code.NOT_FOUND, "MODEL_NOT_FOUND"), "model"),
    ("model without its prefix", lambda s, _: s.GetModel(rpc.GetModelRequest(name="reference")), NAME, "name"),
    ("a file as model", lambda s, _: list(s.CreateTrace(rpc.CreateTraceRequest(model="models/tiny.py"))),
     NAME, "model"),
    ("a path as model", lambda s, _: list(s.CreateTrace(rpc.CreateTraceRequest(model="models/../tiny.py"))),
     NAME, "model"),
    ("no model", lambda s, _: list(s.CreateTrace(rpc.CreateTraceRequest())), NAME, "model"),
    ("models page too large", lambda s, _: s.ListModels(rpc.ListModelsRequest(page_size=1001)), PAGE, "page_size"),
    ("models page negative", lambda s, _: s.ListModels(rpc.ListModelsRequest(page_size=-1)), PAGE, "page_size"),
    ("models token", lambda s, _: s.ListModels(rpc.ListModelsRequest(page_token="x")), PAGE, "page_token"),
    ("traces page too large", lambda s, _: s.ListTraces(rpc.ListTracesRequest(page_size=1001)), PAGE, "page_size"),
    ("traces token", lambda s, _: s.ListTraces(rpc.ListTracesRequest(page_token="x")), PAGE, "page_token"),
    ("malformed trace", lambda s, _: s.GetTrace(rpc.GetTraceRequest(name="traces/x")), NAME, "name"),
    ("missing trace", lambda s, _: s.GetTrace(rpc.GetTraceRequest(name=MISSING)),
     (Code.NOT_FOUND, "TRACE_NOT_FOUND"), "trace"),
    ("delete of a malformed trace", lambda s, _: s.DeleteTrace(rpc.DeleteTraceRequest(name="x")), NAME, "name"),
    ("graph of a malformed trace", lambda s, _: s.GetGraph(graph_request("x")), NAME, "trace"),
    ("graph of a missing trace", lambda s, _: s.GetGraph(graph_request(MISSING)),
     (Code.NOT_FOUND, "TRACE_NOT_FOUND"), "trace"),
    ("graph page too large", lambda s, t: s.GetGraph(graph_request(t, page_size=5001)), PAGE, "page_size"),
    ("graph token", lambda s, t: s.GetGraph(graph_request(t, page_token="AAAA")), PAGE, "page_token"),
    ("unknown view", lambda s, t: s.GetGraph(graph_request(t, view=77)), OPTION, "view"),
    ("unknown module", lambda s, t: s.GetGraph(graph_request(t, module="nowhere")),
     (Code.NOT_FOUND, "NODE_NOT_FOUND"), "module"),
    ("unknown role", lambda s, t: s.GetGraph(graph_request(t, role="decoder.9")),
     (Code.NOT_FOUND, "NODE_NOT_FOUND"), "role"),
    ("query's page too large", lambda s, t: s.QueryNodes(query_request(t, page_size=5001)), PAGE, "page_size"),
    ("query's token", lambda s, t: s.QueryNodes(query_request(t, page_token="AAAA")), PAGE, "page_token"),
    ("query's view", lambda s, t: s.QueryNodes(query_request(t, view=77)), OPTION, "view"),
    ("query's expression", lambda s, t: s.QueryNodes(query_request(t, expression="kidn == 1")), QUERY, QUERY_FIELD),
    ("query's unknown node", lambda s, t: s.QueryNodes(query_request(t, ancestors_of="nothing")),
     (Code.NOT_FOUND, "NODE_NOT_FOUND"), "query.ancestors_of"),
    ("unknown snapshot", lambda s, t: s.ListSnapshots(rpc.ListSnapshotsRequest(trace=t, numbers=[1, 99])),
     (Code.NOT_FOUND, "SNAPSHOT_NOT_FOUND"), "numbers"),
    ("unknown tensor", lambda s, t: list(s.ReadTensor(rpc.ReadTensorRequest(trace=t, tensor="decoder.0.weights"))),
     (Code.NOT_FOUND, "TENSOR_NOT_FOUND"), "tensor"),
    ("chunks too small", lambda s, t: list(s.ReadTensor(rpc.ReadTensorRequest(trace=t, tensor=WEIGHTS, chunk_bytes=9))),
     OPTION, "chunk_bytes"),
    ("chunks too large", lambda s, t: list(s.ReadTensor(
        rpc.ReadTensorRequest(trace=t, tensor=WEIGHTS, chunk_bytes=2**30))), OPTION, "chunk_bytes"),
    ("slice out of range", lambda s, t: list(s.ReadTensor(
        rpc.ReadTensorRequest(trace=t, tensor=WEIGHTS, slice=rpc.TensorSlice(expression="0,9")))),
     (Code.INVALID_ARGUMENT, "SLICE_INVALID"), "slice"),
    ("65 reads", lambda s, t: s.BatchReadTensors(
        rpc.BatchReadTensorsRequest(trace=t, reads=[rpc.TensorRead(tensor=WEIGHTS)] * 65)),
     (Code.RESOURCE_EXHAUSTED, "TOO_LARGE"), "reads"),
    ("unknown picture format", lambda s, t: list(s.RenderGraph(rpc.RenderGraphRequest(trace=t, format=9))),  # type: ignore[arg-type]
     OPTION, "format"),
    ("unknown theme", lambda s, t: list(s.RenderGraph(
        rpc.RenderGraphRequest(trace=t, options=rpc.RenderOptions(theme=9)))),  # type: ignore[arg-type]
     OPTION, "options.theme"),
    ("unknown rung", lambda s, _: list(s.CreateTrace(rpc.CreateTraceRequest(model="models/tiny", rung=9))),  # type: ignore[arg-type]
     OPTION, "rung"),
    ("input without numbers", lambda s, _: list(s.CreateTrace(
        rpc.CreateTraceRequest(model="models/tiny", inputs=[rpc.InputOverride(name="x")]))),
     (Code.INVALID_ARGUMENT, "INPUT_INVALID"), "inputs.0"),
    ("sweep of an unknown model", lambda s, _: swept(s, axis("width", 1, 3), model="models/tny"),
     (Code.NOT_FOUND, "MODEL_NOT_FOUND"), "model"),
    ("sweep of an unknown field", lambda s, _: swept(s, axis("widht", 1, 3)),
     (Code.INVALID_ARGUMENT, "CONFIGURATION_INVALID"), "configuration.widht"),
    ("sweep of nothing", lambda s, _: swept(s), OPTION, "grid"),
    ("sweep of an axis without values", lambda s, _: swept(s, rpc.GridAxis(field="width")), OPTION, "grid.width"),
    ("sweep of an axis twice", lambda s, _: swept(s, axis("width", 1, 3), axis("width", 3, 5)), OPTION, "grid.width"),
    ("sweep backwards", lambda s, _: swept(s, axis("width", 9, 1)), OPTION, "grid.width"),
    ("sweep by a step back", lambda s, _: swept(s, axis("width", 1, 9, -1)), OPTION, "grid.width"),
    ("sweep of 10**9", lambda s, _: swept(s, axis("width", 0, 10**9)), (Code.RESOURCE_EXHAUSTED, "TOO_LARGE"), "grid"),
    ("sweep of an unknown tensor", lambda s, _: swept(s, axis("width", 1, 3), tensors=["lienar"]),
     (Code.NOT_FOUND, "TENSOR_NOT_FOUND"), "tensors"),
]  # fmt: skip


def axis(field: str, start: int, stop: int, step: int = 1) -> rpc.GridAxis:
    return rpc.GridAxis(field=field, range=rpc.IntegerRange(start=start, stop=stop, step=step))


def swept(stub: TraceServiceStub, *axes: rpc.GridAxis, model: str = "models/tiny", **more: Any) -> list[rpc.SweepRow]:
    events = stub.SweepShapes(rpc.SweepShapesRequest(model=model, grid=axes, **more))
    return [row for event in events for row in event.batch.rows]


def test_values_that_a_model_does_not_accept_are_rows_with_the_reason(stub: TraceServiceStub) -> None:
    values = rpc.ListedValues(values=[Value(string_value="wide"), Value(number_value=2.5), Value(number_value=4)])
    refused, half, taken = swept(stub, rpc.GridAxis(field="width", listed=values))
    assert "field 'width'" in refused.reason
    assert "'wide'" in refused.reason
    assert "2.5" in half.reason
    assert {refused.how, half.how} == {rpc.SWEEP_HOW_NONE}
    assert (taken.reason, taken.how) == ("", rpc.SWEEP_HOW_PROPAGATION)
    assert 0 < taken.peak_activation_bytes < taken.activation_bytes


@pytest.mark.parametrize(("call", "expected", "field"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_requests(
    stub: TraceServiceStub, trace: str, call: Bad, expected: tuple[grpc.StatusCode, str], field: str
) -> None:
    with pytest.raises(grpc.RpcError) as e:
        call(stub, trace)
    assert reason(e.value) == (expected, field)


def test_a_batch_of_too_many_bytes_is_refused(stub: TraceServiceStub, served: Served) -> None:
    request = rpc.BatchReadTensorsRequest(trace=f"traces/{served.dtypes.id}", reads=[rpc.TensorRead(tensor="add")])
    with pytest.raises(grpc.RpcError, match=r"at most 3145728 bytes in all, passed by 'add' with 8388608") as e:
        stub.BatchReadTensors(request)
    assert reason(e.value) == ((Code.RESOURCE_EXHAUSTED, "TOO_LARGE"), "reads")
