"""Two servers, each with processes of its own, over one store in PostgreSQL and S3."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import pytest
from numpy.typing import NDArray

from fxtrace.client import Client
from fxtrace.errors import FxtraceError, TraceNotFound
from fxtrace.ir.trace import Progress, TraceRequest
from fxtrace.store import Store
from tests.conftest import MODELS
from tests.service.processes import server_process, until
from tests.store.conftest import NewPlace

NumPyClient = Client[NDArray[Any]]
Running = tuple[subprocess.Popen[str], NumPyClient]


@pytest.fixture(scope="module")
def place(new_place: NewPlace) -> str:
    return new_place("postgresql+s3")


@pytest.fixture(scope="module")
def servers(place: str) -> Iterator[list[Running]]:
    with ExitStack() as opened:
        limits = {"workers": 1, "render_workers": 1}
        started = [
            opened.enter_context(server_process(place, MODELS / "tiny.py", MODELS / "slow.py", **limits))
            for _ in range(2)
        ]
        yield [
            (process, opened.enter_context(Client(address, timeout=120, arrays="numpy")))
            for process, address in started
        ]


def is_gone(api: NumPyClient, trace_id: str) -> bool:
    try:
        api.get_graph(trace_id)
    except TraceNotFound:
        return True
    return False


def test_what_one_writes_the_other_reads_and_deletes(servers: list[Running], place: str) -> None:
    (_, first), (_, second) = servers
    made = [api.create_trace(TraceRequest("tiny", seed=seed)) for seed, api in enumerate((first, second, first))]
    for api in (first, second):
        assert [trace.id for trace in api.list_traces()] == [trace.id for trace in reversed(made)]
    for trace in made:
        assert first.get_graph(trace.id) == second.get_graph(trace.id)
        numbers = [api.read_tensor(trace.id, "inner_1").tobytes() for api in (first, second)]
        assert numbers[0] == numbers[1]
    first.delete_trace(made[1].id)
    for api in (second, first):
        for read in (api.get_trace, api.list_snapshots, api.delete_trace):
            with pytest.raises(TraceNotFound):
                read(made[1].id)
        until(partial(is_gone, api, made[1].id))  # a graph that is kept may be given for a second more
        with pytest.raises(TraceNotFound):
            api.render_graph(made[1].id, "dot")
    with closing(Store(place)) as store:
        assert store.verify() == {}
        assert len(store._blobs.files()) == 2


def test_the_same_request_at_both_at_once_gives_one_trace(servers: list[Running], place: str) -> None:
    request = TraceRequest("tiny", seed=100)
    with ThreadPoolExecutor(4) as pool:
        traces = list(pool.map(lambda api: api.create_trace(request), [api for _, api in servers] * 2))
    assert all(trace == traces[0] for trace in traces)
    for _, api in servers:
        assert [trace.seed for trace in api.list_traces()].count(100) == 1
    with closing(Store(place)) as store:
        assert [name for name in store._blobs.files() if name.startswith(traces[0].id)] == [
            store._row(traces[0].id).blob
        ]


def test_one_that_is_killed_as_it_writes_leaves_the_other_at_work(servers: list[Running], place: str) -> None:
    (process, first), (_, second) = servers
    request = TraceRequest("tiny", seed=200)
    storing = threading.Event()

    def kill(progress: Progress) -> None:
        if progress.stage == "store":
            storing.set()
            process.kill()

    before = [trace.id for trace in second.list_traces()]
    with pytest.raises(FxtraceError):
        first.create_trace(request, progress=kill)
    assert storing.is_set()
    process.wait()
    trace = second.create_trace(request)
    assert [each.id for each in second.list_traces()] == [trace.id, *before]
    assert second.read_tensor(trace.id, "inner_1").shape == (3, 4)
    with closing(Store(place)) as store:
        assert store.verify() == {}
        assert {name[:32] for name in store._blobs.files()} == {trace.id, *before}
        store.delete(trace.id)
    with closing(Store(place)) as store:  # nor does what the killed one left bring it back
        assert [each.id for _, each in store.traces(100)] == before
