from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fxtrace.api import TraceApi
from fxtrace.client import Client
from fxtrace.errors import (
    Busy,
    Cancelled,
    ConfigurationError,
    DeadlineExceeded,
    FxtraceError,
    ModelNotFound,
    NameInvalid,
    NodeNotFound,
    OptionInvalid,
    PageInvalid,
    QueryInvalid,
    ServerUnavailable,
    SliceInvalid,
    SnapshotNotFound,
    StoreDamaged,
    TensorNotFound,
    TooLarge,
    TraceNotFound,
)
from fxtrace.ir.trace import NodeQuery, Progress, RenderOptions, TraceInfo, TraceRequest
from fxtrace.service.server import serving
from fxtrace.service.settings import Settings
from fxtrace.v1 import graph_pb2 as pb
from fxtrace.v1 import trace_service_pb2 as rpc
from tests.conftest import Served

WEIGHTS = "decoder.0.cross_attention.weights"
Api = TraceApi[Any]


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client[NDArray[Any]]]:
    with Client(served.address, arrays="numpy") as client:
        yield client


def ids(served: Served) -> list[str]:
    return [served.reference.id, served.dtypes.id]


def test_answers_are_the_engine_s(client: Client[NDArray[Any]], served: Served) -> None:
    engine: TraceApi[NDArray[Any]] = served.engine
    remote: TraceApi[NDArray[Any]] = client
    assert remote.list_models() == engine.list_models()
    assert remote.get_model("reference") == engine.get_model("reference")
    assert list(remote.list_traces()) == list(engine.list_traces())
    assert remote.page_traces(1, "") == engine.page_traces(1, "")
    for trace_id in ids(served):
        assert remote.get_trace(trace_id) == engine.get_trace(trace_id)
        assert remote.get_graph(trace_id) == engine.get_graph(trace_id)
        assert remote.list_snapshots(trace_id) == engine.list_snapshots(trace_id)
    trace_id = served.reference.id
    assert remote.get_graph(trace_id, role="encoder") == engine.get_graph(trace_id, role="encoder")
    assert remote.list_snapshots(trace_id, [33, 1]) == engine.list_snapshots(trace_id, [1, 33])
    options = RenderOptions(depth=1, theme="dark", highlight=("#33",), direction="LR")
    assert remote.render_graph(trace_id, "dot", options) == engine.render_graph(trace_id, "dot", options)


QUERIES = [
    NodeQuery(),
    NodeQuery('kind == "matmul" && shape[-1] == src_len'),
    NodeQuery("shape == [batch, n_heads, tgt_len, src_len]"),
    NodeQuery(ancestors_of=WEIGHTS, max_depth=5),
    NodeQuery('kind == "linear"', descendants_of="src_ids", ancestors_of=WEIGHTS),
    NodeQuery(pattern="matmul pointwise* softmax"),
    NodeQuery(path=("src_ids", WEIGHTS)),
    NodeQuery(path=(WEIGHTS, "src_ids")),
    NodeQuery(pattern=". ."),
]


@pytest.mark.parametrize("query", QUERIES)
def test_queries_are_answered_as_the_engine_does(
    client: Client[NDArray[Any]], served: Served, query: NodeQuery
) -> None:
    assert client.query_nodes(served.reference.id, query) == served.engine.query_nodes(served.reference.id, query)


def test_a_query_finds_the_attentions(client: Client[NDArray[Any]], served: Served) -> None:
    graph = client.get_graph(served.reference.id)
    cross = client.query_nodes(served.reference.id, NodeQuery("shape == [batch, n_heads, tgt_len, src_len]"))
    roles = {str(role) for node in cross.nodes for role in node.roles}
    assert {f"decoder.{i}.cross_attention.{part}" for i in (0, 1) for part in ("scores", "weights")} <= roles
    found = client.query_nodes(served.reference.id, NodeQuery(pattern="matmul pointwise* softmax"))
    assert len(found.paths) == 6
    assert {path[-1] for path in found.paths} == {node.name for node in graph.nodes if node.kind == "softmax"}


def test_a_deleted_trace_is_asked_no_more(client: Client[NDArray[Any]], served: Served) -> None:
    trace = client.create_trace(TraceRequest("tiny", seed=9))
    assert client.query_nodes(trace.id, NodeQuery()).nodes
    client.delete_trace(trace.id)
    with pytest.raises(TraceNotFound):
        client.query_nodes(trace.id, NodeQuery())


def test_pages_of_traces_add_up(client: Client[NDArray[Any]], served: Served) -> None:
    seen: list[TraceInfo] = []
    token = ""
    while True:
        page, token = client.page_traces(1, token)
        seen += page
        if not token:
            break
    assert seen == list(client.list_traces())
    assert len(seen) >= 2


def test_a_trace_is_made_once(client: Client[NDArray[Any]], served: Served) -> None:
    stages: list[Progress] = []
    request = TraceRequest("tiny", {"width": 8}, seed=3)
    trace = client.create_trace(request, progress=stages.append)
    assert [stage.stage for stage in stages][:: len(stages) - 1] == ["build", "store"]
    assert trace.configuration["width"] == 8
    stages.clear()
    assert client.create_trace(request, progress=stages.append) == trace
    assert stages == []
    client.delete_trace(trace.id)
    with pytest.raises(TraceNotFound):
        client.get_trace(trace.id)


def test_every_tensor_arrives_as_it_is(client: Client[NDArray[Any]], served: Served) -> None:
    for trace_id in ids(served):
        for name, spec in client.get_graph(trace_id).tensors():
            local, remote = served.engine.read_tensor(trace_id, name), client.read_tensor(trace_id, name)
            assert remote.dtype == local.dtype
            assert remote.shape == spec.shape
            assert remote.tobytes() == local.tobytes()
            assert remote.flags.writeable


@pytest.mark.parametrize("part", ["", "0", "-1,0,0", "0,:,:,::2", "...,:3", "1,2,3,-1", "0:0", ":,::-1"])
def test_parts_arrive_as_they_are(client: Client[NDArray[Any]], served: Served, part: str) -> None:
    for name in ("x", "transpose", "to_10"):  # in order, not in order, bfloat16
        np.testing.assert_array_equal(
            client.read_tensor(served.dtypes.id, name, part), served.engine.read_tensor(served.dtypes.id, name, part)
        )


def test_a_batch_is_the_single_reads(client: Client[NDArray[Any]], served: Served) -> None:
    names = [name for name, spec in client.get_graph(served.dtypes.id).tensors() if spec.nbytes < 10_000]
    reads = [(name, part) for name in names for part in ("", "0:1")][:64]
    reads = [(name, "" if not client.get_graph(served.dtypes.id).tensor(name).shape else part) for name, part in reads]
    batch = client.read_tensors(served.dtypes.id, reads)
    assert len(batch) == len(reads) > 40
    for (name, part), array in zip(reads, batch, strict=True):
        single = client.read_tensor(served.dtypes.id, name, part)
        assert (array.dtype, array.shape, array.tobytes()) == (single.dtype, single.shape, single.tobytes())
        assert array.flags.writeable
    assert client.read_tensors(served.dtypes.id, []) == []


def test_arrays_are_of_the_kind_asked_for(served: Served) -> None:
    trace_id = served.dtypes.id
    with Client(served.address, arrays="torch") as of_torch, Client(served.address) as auto:
        bfloat: torch.Tensor = of_torch.read_tensor(trace_id, "to_10")
        assert bfloat.dtype == torch.bfloat16
        assert bfloat.shape == (2, 3, 4, 5)
        assert torch.equal(bfloat.float().flatten()[:3], torch.tensor([0.0, 1.0, 2.0]))
        assert isinstance(auto.read_tensor(trace_id, "x"), torch.Tensor)
        assert isinstance(auto.read_tensors(trace_id, [("x", "")])[0], torch.Tensor)
        for name, spec in auto.get_graph(trace_id).tensors():
            tensor = of_torch.read_tensor(trace_id, name)
            assert (tensor.dtype, tuple(tensor.shape)) == (getattr(torch, spec.dtype), spec.shape)
            bits = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else tensor
            assert bits.numpy().tobytes() == served.engine.read_tensor(trace_id, name).tobytes()
    with Client(served.address, arrays="numpy") as of_numpy:
        assert of_numpy.read_tensor(trace_id, "to_10").dtype == ml_dtypes.bfloat16


def test_a_tensor_is_read_piece_by_piece(client: Client[NDArray[Any]], served: Served) -> None:
    whole = served.engine.read_tensor(served.dtypes.id, "add", "5:")
    with client.open_tensor(served.dtypes.id, "add", "5:") as reader:
        assert (reader.tensor, reader.spec.shape, reader.shape) == ("add", (2 << 20,), ((2 << 20) - 5,))
        chunks = [bytes(chunk) for chunk in reader.chunks(100_000)]
    assert max(map(len, chunks)) == 100_000
    assert b"".join(chunks) == whole.tobytes()
    assert reader.nbytes == whole.nbytes


def test_a_reader_may_leave_early(client: Client[NDArray[Any]], served: Served) -> None:
    for _ in range(30):
        with client.open_tensor(served.dtypes.id, "add") as reader:
            assert len(next(reader.chunks())) == 1 << 20
    assert client.get_trace(served.dtypes.id) == served.dtypes


def test_a_role_names_its_tensor(client: Client[NDArray[Any]], served: Served) -> None:
    with client.open_tensor(served.reference.id, WEIGHTS) as reader:
        assert reader.tensor == client.get_graph(served.reference.id).by_role[WEIGHTS].name
        assert reader.shape == (1, 4, 5, 6)


BAD: list[tuple[str, Callable[[Api, str], object], type[FxtraceError]]] = [
    ("model", lambda api, _: api.get_model("refrence"), ModelNotFound),
    ("field", lambda api, _: api.create_trace(TraceRequest("reference", {"d_modl": 8})), ConfigurationError),
    ("value", lambda api, _: api.create_trace(TraceRequest("reference", {"d_model": 130})), ConfigurationError),
    ("type", lambda api, _: api.create_trace(TraceRequest("reference", {"d_model": "wide"})), ConfigurationError),
    ("missing trace", lambda api, _: api.get_trace("0" * 32), TraceNotFound),
    ("page size", lambda api, _: api.page_traces(1001, ""), PageInvalid),
    ("page token", lambda api, _: api.page_traces(10, "nonsense"), PageInvalid),
    ("module", lambda api, t: api.get_graph(t, module="nowhere"), NodeNotFound),
    ("role", lambda api, t: api.get_graph(t, role="decoder.0.cros_attention"), NodeNotFound),
    ("snapshot", lambda api, t: api.list_snapshots(t, [99]), SnapshotNotFound),
    ("query's trace", lambda api, _: api.query_nodes("0" * 32, NodeQuery()), TraceNotFound),
    ("query's node", lambda api, t: api.query_nodes(t, NodeQuery(ancestors_of="src_id")), NodeNotFound),
    ("expression", lambda api, t: api.query_nodes(t, NodeQuery("rank == 4 &&\n  shape[-1] == d_modl")), QueryInvalid),
    ("pattern", lambda api, t: api.query_nodes(t, NodeQuery(pattern="matmul soft")), QueryInvalid),
    ("tensor", lambda api, t: api.read_tensor(t, "decoder.0.cross_attention.wieghts"), TensorNotFound),
    ("slice", lambda api, t: api.read_tensor(t, WEIGHTS, "0,9"), SliceInvalid),
    ("slice's form", lambda api, t: api.read_tensor(t, WEIGHTS, "0,,1"), SliceInvalid),
    ("one of a batch", lambda api, t: api.read_tensors(t, [(WEIGHTS, ""), ("x", "")]), TensorNotFound),
    ("highlight", lambda api, t: api.render_graph(t, "dot", RenderOptions(highlight=("nothing",))), NodeNotFound),
]


@pytest.mark.parametrize(("ask", "kind"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_errors_are_the_engine_s(
    client: Client[NDArray[Any]], served: Served, ask: Callable[[Api, str], object], kind: type[FxtraceError]
) -> None:
    with pytest.raises(kind) as local:
        ask(served.engine, served.reference.id)
    with pytest.raises(kind) as remote:
        ask(client, served.reference.id)
    assert type(remote.value) is type(local.value) is kind
    assert (remote.value.message, remote.value.field) == (local.value.message, local.value.field)
    assert remote.value.metadata == local.value.metadata


def test_a_malformed_id_is_named_so(client: Client[NDArray[Any]]) -> None:
    with pytest.raises(NameInvalid, match="1 to 32 lowercase hexadecimal digits, or 'latest'; got 'traces/newest'"):
        client.get_trace("newest")
    with pytest.raises(NameInvalid, match="32 lowercase hexadecimal digits; got 'traces/latest'"):
        client.get_graph("latest")


def test_a_trace_is_found_by_its_beginning_or_as_the_latest(client: Client[NDArray[Any]], served: Served) -> None:
    for request, reused in ((TraceRequest("tiny", seed=501), False), (TraceRequest("tiny", seed=502), False)):
        made = client.create_trace(request)
        assert made.reused is reused
        assert client.get_trace("latest") == made
    again = client.create_trace(TraceRequest("tiny", seed=501))
    assert again.reused
    assert client.get_trace("latest") == again != made
    by_product = client.create_trace(TraceRequest("tiny", seed=503, by_product=True))
    assert not by_product.reused
    assert client.get_trace("latest") == again
    for api in (client, served.engine):
        digits = next(n for n in range(1, 33) if sum(t.id[:n] == made.id[:n] for t in api.list_traces()) == 1)
        assert api.get_trace(made.id[:digits]) == made
        assert not api.get_trace(made.id[:digits]).reused
        with pytest.raises(TraceNotFound, match="no trace's id starts with 'ffffffffff'"):
            api.get_trace("ffffffffff")


def test_an_error_with_a_long_text_still_arrives(client: Client[NDArray[Any]], served: Served) -> None:
    with pytest.raises(TensorNotFound, match="no tensor or role named '×××"):
        client.read_tensor(served.reference.id, "×" * 100_000)


@pytest.mark.parametrize("model", ["mine.py", "path/to/mine", "/abs/mine.py"])
def test_a_file_is_not_sent_to_a_server(client: Client[NDArray[Any]], model: str) -> None:
    with pytest.raises(NameInvalid, match=r"a file\. A file is traced in the process that reads it"):
        client.create_trace(TraceRequest(model))


@pytest.mark.parametrize(
    "ask",
    [
        lambda c, t: c.page_traces(2**40, ""),
        lambda c, t: c.list_snapshots(t, [2**40]),
        lambda c, t: c.render_graph(t, "jpeg"),
        lambda c, t: c.render_graph(t, "dot", RenderOptions(theme="neon")),  # type: ignore[arg-type]
        lambda c, t: c.create_trace(TraceRequest("tiny", seed=2**64)),
        lambda c, t: list(c.open_tensor(t, WEIGHTS).chunks(0)),
    ],
)
def test_what_no_message_can_say_is_refused(
    client: Client[NDArray[Any]], served: Served, ask: Callable[[Any, str], object]
) -> None:
    with pytest.raises(OptionInvalid):
        ask(client, served.reference.id)


def test_too_much_for_a_batch_is_refused(client: Client[NDArray[Any]], served: Served) -> None:
    with pytest.raises(TooLarge, match="at most 64 tensors; got 65"):
        client.read_tensors(served.reference.id, [(WEIGHTS, "")] * 65)
    with pytest.raises(TooLarge, match="read large tensors one by one"):
        client.read_tensors(served.dtypes.id, [("add", "")])


def test_an_error_in_progress_stops_the_work_and_is_raised(
    client: Client[NDArray[Any]], served: Served, tmp_path: Path
) -> None:
    log = tmp_path / "log"

    def give_up(progress: Progress) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        client.create_trace(TraceRequest("slow", {"log": str(log)}), progress=give_up)
    client.create_trace(TraceRequest("tiny", seed=21))  # captures run one at a time: the other is over
    assert len(log.read_text() if log.exists() else "") < 80


def test_time_runs_out(served: Served, tmp_path: Path) -> None:
    with (
        Client(served.address, timeout=0.05) as client,
        pytest.raises(DeadlineExceeded, match=f"no whole answer from {served.address} within 0.05 s"),
    ):
        client.create_trace(TraceRequest("slow", {"log": str(tmp_path / "log")}))


def test_no_server() -> None:
    with pytest.raises(
        ServerUnavailable, match=r"no fxtrace server answers at 127\.0\.0\.1:1 within 0\.1 s; .*fxtrace serve"
    ):
        Client("127.0.0.1:1", connect_timeout=0.1)


def test_no_server_is_an_error_at_once_where_none_is_starting() -> None:
    with pytest.raises(ServerUnavailable, match=r"no fxtrace server answers at 127\.0\.0\.1:1; check the address"):
        Client("127.0.0.1:1", connect_timeout=1e6, wait_for_start=False)


def test_an_answer_is_waited_for_where_something_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServerUnavailable, match=f"no fxtrace server answers at {address} within 0.3 s"):
            Client(address, connect_timeout=0.3, wait_for_start=False)


def test_a_server_with_too_many_calls_says_so(served: Served) -> None:
    with (
        serving(served.engine, settings=Settings(concurrent_calls=1)) as address,
        Client(address) as client,
        client.open_tensor(served.dtypes.id, "add"),
        pytest.raises(Busy, match="has as many calls as it takes; try again") as refused,
    ):
        client.get_trace(served.dtypes.id)
    assert refused.value.retry_after == 1


def test_kinds_of_arrays_are_few(served: Served) -> None:
    with pytest.raises(OptionInvalid, match="expected auto, numpy or torch; got 'jax'"):
        Client(served.address, arrays="jax")  # type: ignore[call-overload]


def test_a_client_can_be_used_by_many_threads(client: Client[NDArray[Any]], served: Served) -> None:
    expected = served.engine.read_tensor(served.reference.id, WEIGHTS)
    with futures.ThreadPoolExecutor(8) as pool:
        for array in pool.map(lambda _: client.read_tensor(served.reference.id, WEIGHTS), range(64)):
            np.testing.assert_array_equal(array, expected)


def test_without_torch_numpy_comes_and_nothing_heavy_is_imported(served: Served) -> None:
    program = """
import sys
sys.modules["torch"] = None  # as if it were not installed
from fxtrace.client import Client
from fxtrace.errors import DependencyMissing
with Client(sys.argv[1]) as client:
    array = client.read_tensor(sys.argv[2], "to_10")
    print(type(array).__module__, array.dtype, array.shape)
try:
    Client(sys.argv[1], arrays="torch")
except DependencyMissing as error:
    print(error)
print([name for name in ("sqlalchemy", "networkx", "graphviz") if name in sys.modules])
"""
    arguments = [sys.executable, "-W", "error", "-c", program, served.address, served.dtypes.id]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    first, second, third = run.stdout.splitlines()
    assert first == "numpy bfloat16 (2, 3, 4, 5)"
    assert second.startswith("PyTorch is needed for arrays='torch' and is not installed")
    assert third == "[]"


@contextmanager
def serving_only(method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> Iterator[str]:
    """A server with one method of TraceService."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("fxtrace.v1.TraceService", {method: handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@contextmanager
def liar(*events: rpc.ReadTensorResponse) -> Iterator[str]:
    """A server whose ReadTensor sends these, and which offers nothing else."""
    handler: grpc.RpcMethodHandler[bytes, rpc.ReadTensorResponse] = grpc.unary_stream_rpc_method_handler(
        lambda request, context: iter(events), response_serializer=rpc.ReadTensorResponse.SerializeToString
    )
    with serving_only("ReadTensor", handler) as address:
        yield address


HEADER = rpc.ReadTensorResponse(
    header=rpc.TensorHeader(tensor="x", spec=pb.TensorSpec(shape=[6], dtype="uint8", nbytes=6), shape=[6], nbytes=6)
)
ABC, DEF = (rpc.ReadTensorResponse(chunk=part) for part in (b"abc", b"def"))
RIGHT, WRONG = (rpc.ReadTensorResponse(crc32=crc) for crc in (0x4B8E39EF, 0x4B8E39EE))  # of b"abcdef", one bit off


def test_a_stream_that_fits_is_taken() -> None:
    with liar(HEADER, ABC, DEF, RIGHT) as address, Client(address, arrays="numpy") as client:
        assert client.read_tensor("t", "x").tobytes() == b"abcdef"


@pytest.mark.parametrize(
    "events",
    [
        (HEADER, ABC, DEF, WRONG),
        (HEADER, ABC, DEF),
        (HEADER, ABC, RIGHT),
        (HEADER, DEF, ABC, RIGHT),
        (HEADER, ABC, DEF, ABC, RIGHT),
        (HEADER,),
        (),
    ],
    ids=["checksum", "no checksum", "too short", "order", "too long", "nothing", "no header"],
)
def test_a_stream_that_does_not_fit_is_refused(events: tuple[rpc.ReadTensorResponse, ...]) -> None:
    with (
        liar(*events) as address,
        Client(address, arrays="numpy") as client,
        pytest.raises(StoreDamaged, match="arrived damaged: expected"),
    ):
        client.read_tensor("t", "x")


def test_another_kind_of_server_is_told_so() -> None:
    with (
        liar() as address,
        Client(address) as client,
        pytest.raises(ServerUnavailable, match="is none of fxtrace's, or of another version"),
    ):
        client.list_models()


def test_a_call_that_the_server_gives_up_is_not_taken_for_one_s_own_cancel() -> None:
    def give_up(_: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.cancel()
        yield b""

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(give_up)
    with (
        serving_only("ReadTensor", handler) as address,
        Client(address) as client,
        pytest.raises(ServerUnavailable, match="gave up the call, as one does that stops"),
    ):
        client.read_tensor("t", "x")


def test_one_s_own_cancel_is_told_as_such(client: Client[NDArray[Any]], served: Served) -> None:
    with client.open_tensor(served.dtypes.id, "add") as reader:
        reader.close()
        with pytest.raises(Cancelled, match="Locally cancelled"):
            list(reader.chunks())
