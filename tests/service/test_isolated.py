"""A server whose models run in workers, as a client sees it, on real captures."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from fxtrace.client import Client
from fxtrace.errors import (
    DeadlineExceeded,
    FormulasAbsent,
    FxtraceError,
    MemoryLimit,
    ModelNotFound,
    TimeLimit,
    TooLarge,
    WorkerCrashed,
)
from fxtrace.ir.trace import Progress, TraceInfo, TraceRequest
from fxtrace.models import Registry
from fxtrace.service.engine import Engine
from fxtrace.service.isolated import IsolatedEngine
from fxtrace.service.settings import Settings
from fxtrace.service.worker import memory
from fxtrace.sweep import SweepRequest, parse_grid
from fxtrace.v1 import trace_service_pb2 as rpc
from fxtrace.v1.trace_service_pb2_grpc import TraceServiceStub
from tests.conftest import MODELS, Served
from tests.service.processes import exists, pid_in, server_process, until

NumPyClient = Client[NDArray[Any]]
BROKEN = "import ctypes\nctypes.string_at(0)\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], str]]:
    folder = tmp_path_factory.mktemp("isolated")
    (folder / "broken.py").write_text(BROKEN)
    models = (*(MODELS / f"{name}.py" for name in ("hostile", "slow", "dtypes")), folder / "broken.py")
    with server_process(folder / "store", *models, workers=2, capture_memory="400MiB") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: tuple[subprocess.Popen[str], str]) -> Iterator[NumPyClient]:
    with Client(server[1], timeout=None, arrays="numpy") as client:
        yield client


def hostile(how: str, *, size: int = 1, pid: Path | str = "", seed: int = 0) -> TraceRequest:
    return TraceRequest("hostile", {"how": how, "size": size, "pid": str(pid)}, seed=seed)


def test_a_sweep_streams_its_rows(client: NumPyClient, tmp_path: Path) -> None:
    stages: set[str] = set()
    request = SweepRequest("slow", parse_grid(["steps=1..3"]), {"log": str(tmp_path / "log")})
    batches = client.sweep_shapes(request, progress=lambda progress: stages.add(progress.stage))
    rows = [row for batch in batches for row in batch.rows]
    assert [(row.index, row.configuration, row.how) for row in rows] == [
        (index, {"steps": index + 1}, "propagation") for index in range(3)
    ]
    assert {"wait", "resolve", "propagate"} <= stages


def test_a_sweep_that_is_given_up_ends_its_worker(client: NumPyClient, tmp_path: Path) -> None:
    def give_up(progress: Progress) -> None:
        if (tmp_path / "pid").exists():
            raise KeyError

    asked = {"how": "library", "pid": str(tmp_path / "pid")}
    with pytest.raises(KeyError):
        list(client.sweep_shapes(SweepRequest("hostile", parse_grid(["size=1,2"]), asked), progress=give_up))
    pid = pid_in(tmp_path / "pid")
    until(lambda: not exists(pid))


def test_a_sweep_beyond_the_limit_is_refused(client: NumPyClient) -> None:
    with pytest.raises(TooLarge, match=r"1,000,000,000 configurations .* expected at most 100,000"):
        list(client.sweep_shapes(SweepRequest("slow", parse_grid(["steps=1..1000000000"]))))


def test_the_process_that_answers_imports_no_torch(client: NumPyClient) -> None:
    names = {model.name: model.summary for model in client.list_models()}
    assert (
        names.pop("broken") == "cannot be used: importing model 'broken' ended the process that did it: signal 11 "
        "(SIGSEGV); nothing else was harmed"
    )
    assert list(names) == ["dtypes", "hostile", "reference", "slow"]
    told: list[Progress] = []
    trace = client.create_trace(TraceRequest("reference"), progress=told.append)
    assert {"build", "run", "label", "store"} <= {progress.stage for progress in told}
    assert client.get_trace(trace.id) == trace
    assert client.read_tensor(trace.id, "src_ids").tolist() == [3, 2, 0, 1, 5, 4]
    told.clear()
    assert client.render_graph(trace.id, "svg", progress=told.append).startswith(b"<?xml")
    assert {progress.stage for progress in told} >= {"draw", "layout"}
    assert client.create_trace(TraceRequest("reference")) == trace


def test_traces_are_those_of_an_engine_in_one_process(client: NumPyClient, served: Served) -> None:
    trace = client.create_trace(TraceRequest("reference"))
    assert trace.id == served.reference.id
    graph = client.get_graph(trace.id)
    assert graph == served.engine.get_graph(trace.id)
    for name, _ in graph.tensors():
        # Not bit by bit: how many threads PyTorch has changes the order in which it adds.
        mine, theirs = served.engine.read_tensor(trace.id, name), client.read_tensor(trace.id, name)
        np.testing.assert_allclose(theirs.astype(float), mine.astype(float), atol=1e-5)


def test_an_unknown_model_needs_no_worker(client: NumPyClient) -> None:
    for call in (lambda: client.get_model("slwo"), lambda: client.create_trace(TraceRequest("slwo"))):
        with pytest.raises(ModelNotFound, match="did you mean 'slow'"):
            call()


@pytest.mark.parametrize(
    ("how", "size", "kind", "message"),
    [
        ("segfault", 1, WorkerCrashed, r"tracing model 'hostile' ended the process that did it: signal 11 \(SIGSEGV\)"),
        ("daemon", 3, WorkerCrashed, "exit code 3"),
        ("noise", 1, WorkerCrashed, "it hung up"),
        ("memory", 4000, MemoryLimit, "more than 400 MiB of memory.*; trace a smaller configuration"),
    ],
)
def test_a_hostile_model_costs_its_own_call(
    client: NumPyClient, tmp_path: Path, how: str, size: int, kind: type[FxtraceError], message: str
) -> None:
    with ThreadPoolExecutor() as pool:
        other = pool.submit(client.create_trace, TraceRequest("slow", {"steps": 5, "log": str(tmp_path / "log")}))
        with pytest.raises(kind, match=message):
            client.create_trace(hostile(how, size=size))
        assert other.result().node_count == 7
    assert client.create_trace(hostile("", seed=hash(how) % 1000)).node_count == 3


def test_a_deadline_stops_the_work(client: NumPyClient, tmp_path: Path) -> None:
    client.create_trace(hostile(""))  # a worker is ready
    with Client(client.address, timeout=2) as hasty, pytest.raises(DeadlineExceeded, match="within 2 s"):
        hasty.create_trace(hostile("loop", pid=tmp_path / "pid"))
    pid = pid_in(tmp_path / "pid")
    until(lambda: not exists(pid))


def test_a_cancel_stops_the_work(client: NumPyClient, tmp_path: Path) -> None:
    def give_up(progress: Progress) -> None:
        if (tmp_path / "pid").exists():
            raise KeyError

    with pytest.raises(KeyError):
        client.create_trace(hostile("library", pid=tmp_path / "pid"), progress=give_up)
    pid = pid_in(tmp_path / "pid")
    until(lambda: not exists(pid))


VANISHING = """
import sys
from fxtrace.client import Client
from fxtrace.ir.trace import TraceRequest
Client(sys.argv[1]).create_trace(TraceRequest("hostile", {"how": "library", "pid": sys.argv[2]}))
"""


def test_a_client_that_vanishes_stops_its_work(client: NumPyClient, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", VANISHING, client.address, str(tmp_path / "pid")]) as vanishing:
        pid = pid_in(tmp_path / "pid")
        vanishing.kill()
    until(lambda: not exists(pid))


Api = NumPyClient | IsolatedEngine


def started(pool: ThreadPoolExecutor, api: Api, request: TraceRequest) -> tuple[Future[TraceInfo], threading.Event]:
    """A call that is under way, and whose progress says that the model runs; the event makes it give up."""
    running, stop = threading.Event(), threading.Event()

    def report(progress: Progress) -> None:
        if progress.stage not in ("wait", "build"):
            running.set()
        if stop.is_set():
            raise KeyError

    call = pool.submit(api.create_trace, request, progress=report)
    until(lambda: running.is_set() or call.done())
    return call, stop


def check_joined(api: Api, requests: Sequence[TraceRequest], leave: Sequence[int], log: Path) -> None:
    with ThreadPoolExecutor() as pool:
        calls = [started(pool, api, each) for each in requests]
        for place in leave:
            calls[place][1].set()
        for place, (call, _) in enumerate(calls):
            if place in leave:
                with pytest.raises(KeyError):
                    call.result()
            else:
                assert call.result().node_count == 62
    ran = len(log.read_text())
    assert ran < 120 if len(leave) == len(calls) else ran == 120  # each step once eagerly, once node by node


@pytest.mark.parametrize("leave", [(), (0,), (1,), (0, 1)])
def test_a_repeat_joins_what_runs(client: NumPyClient, tmp_path: Path, leave: tuple[int, ...]) -> None:
    request = TraceRequest("slow", {"log": str(tmp_path / "log"), "steps": 60})
    check_joined(client, [request, request], leave, tmp_path / "log")


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IsolatedEngine]:
    models = Registry()
    models.offer(str(MODELS / "slow.py"))
    with (
        Engine.open(tmp_path_factory.mktemp("two"), models) as engine,
        IsolatedEngine(engine, Settings(workers=2)) as isolated,
    ):
        yield isolated


@pytest.mark.parametrize("leave", [(), (0,), (0, 1, 2)])
def test_what_turns_out_to_be_the_same_joins(
    two_workers: IsolatedEngine, tmp_path: Path, leave: tuple[int, ...]
) -> None:
    until(lambda: two_workers._captures._up == 3)
    plain = TraceRequest("slow", {"log": str(tmp_path / "log"), "steps": 60})
    spelt_otherwise = TraceRequest("slow", {"log": str(tmp_path / "log"), "steps": "60"})
    check_joined(two_workers, [plain, spelt_otherwise, spelt_otherwise], leave, tmp_path / "log")
    until(lambda: not two_workers._running)
    assert not two_workers._making


def test_the_operator_is_told_of_models_that_cannot_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "wrong.py").write_text("1 / 0")
    models = Registry()
    models.offer(str(tmp_path / "wrong.py"))
    with Engine.open(tmp_path / "store", models) as engine:
        isolated = IsolatedEngine(engine, Settings(workers=1))
        with isolated:
            until(lambda: any("model wrong cannot be used: model file wrong.py cannot" in x for x in caplog.messages))


def test_a_picture_that_takes_too_long_is_stopped(served: Served) -> None:
    engine = IsolatedEngine(served.engine, Settings(render_workers=1, render_seconds=0.01))
    engine._pictures.start()
    with pytest.raises(TimeLimit, match=r"drawing the graph took longer than 0\.01 s"):
        engine.render_graph(served.reference.id)
    engine.close()


def test_a_stalled_reader_costs_no_memory(server: tuple[subprocess.Popen[str], str], client: NumPyClient) -> None:
    trace = client.create_trace(TraceRequest("dtypes", {"megabytes": 64}))
    client.read_tensor(trace.id, "add", ":1000")
    before = memory(server[0].pid)["RssAnon"]
    with grpc.insecure_channel(client.address) as channel:
        request = rpc.ReadTensorRequest(trace=f"traces/{trace.id}", tensor="add")
        calls = [TraceServiceStub(channel).ReadTensor(request) for _ in range(4)]
        for call in calls:
            next(call)
        client.list_models()
        sizes = []
        for _ in range(20):
            client.get_trace(trace.id)
            sizes.append(memory(server[0].pid)["RssAnon"])
        for call in calls:
            call.cancel()
    assert max(sizes) - before < 32 << 20


def test_formulas_are_found_in_a_worker_and_kept(client: NumPyClient) -> None:
    trace = client.create_trace(TraceRequest("reference", {"encoder_layers": 1, "decoder_layers": 1}))
    with pytest.raises(FormulasAbsent, match=f"fxtrace formulas {trace.id[:8]}"):
        client.get_formulas(trace.id)
    told: list[Progress] = []
    found = client.find_formulas(trace.id, progress=told.append)
    assert {"probe", "solve"} <= {each.stage for each in told}
    scores = client.get_graph(trace.id).by_role["decoder.0.cross_attention.scores"]
    assert found.shape(scores.name) == ("1", "n_heads", "tgt_len", "src_len")
    assert client.get_formulas(trace.id) == found
    told.clear()
    assert client.find_formulas(trace.id, progress=told.append) == found
    assert not told
