"""Comparisons over the wire: the messages, the client, and a server whose models run in workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from numpy.typing import NDArray

from fxtrace import wire
from fxtrace.client import Client
from fxtrace.errors import Cancelled, FxtraceError, NameInvalid, NodeNotFound, OptionInvalid, TraceNotFound
from fxtrace.ir.trace import Progress, RenderOptions, TraceRequest
from fxtrace.v1 import trace_service_pb2 as rpc
from fxtrace.v1.trace_service_pb2_grpc import TraceServiceStub
from tests.conftest import MODELS, Served
from tests.service.processes import server_process

WIDTHS = (4, 6)


@pytest.fixture(scope="module")
def ids(served: Served) -> tuple[str, str]:
    before, after = (served.engine.create_trace(TraceRequest("tiny", {"width": width})).id for width in WIDTHS)
    return before, after


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client[NDArray[Any]]]:
    with Client(served.address, timeout=None, arrays="numpy") as client:
        yield client


def test_progress_comes_first_and_the_comparison_last(served: Served, ids: tuple[str, str]) -> None:
    before, after = map(wire.trace_name, ids)
    with grpc.insecure_channel(served.address) as channel:
        events = list(TraceServiceStub(channel).DiffTraces(rpc.DiffTracesRequest(before=before, after=after)))
    kinds = [str(event.WhichOneof("event")) for event in events]
    assert kinds == sorted(kinds, reverse=True)
    assert "align" in {event.progress.stage for event in events}
    assert wire.decode_diff(event.diff for event in events if event.HasField("diff")).explained == {"width": 8}


def test_the_client_s_comparison_is_the_engine_s(
    client: Client[NDArray[Any]], served: Served, ids: tuple[str, str]
) -> None:
    told: list[Progress] = []
    found = client.diff_traces(*ids, progress=told.append)
    assert found == served.engine.diff_traces(*ids)
    assert "align" in {each.stage for each in told}
    assert client.render_diff(*ids, "dot") == served.engine.render_diff(*ids, "dot")
    assert client.render_diff(*ids, "svg", RenderOptions(theme="dark")).startswith(b"<?xml")


def test_an_error_in_progress_stops_the_work_and_is_raised(client: Client[NDArray[Any]], ids: tuple[str, str]) -> None:
    def stop(_: Progress) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        client.diff_traces(*ids, progress=stop)


@pytest.mark.parametrize(
    ("before", "after", "options", "error", "field"),
    [
        ("x", "", RenderOptions(), NameInvalid, "before"),
        ("", "x", RenderOptions(), NameInvalid, "after"),
        ("0" * 32, "", RenderOptions(), TraceNotFound, "trace"),
        ("", "0" * 32, RenderOptions(), TraceNotFound, "trace"),
        ("", "", RenderOptions(module="nowhere"), NodeNotFound, "module"),
        ("", "", RenderOptions(highlight=("nothing",)), NodeNotFound, "highlight"),
        ("", "", RenderOptions(depth=-1), OptionInvalid, "depth"),
    ],
)
def test_bad_requests(
    client: Client[NDArray[Any]],
    ids: tuple[str, str],
    before: str,
    after: str,
    options: RenderOptions,
    error: type[FxtraceError],
    field: str,
) -> None:
    if options == RenderOptions():
        with pytest.raises(error) as plain:
            client.diff_traces(before or ids[0], after or ids[1])
        assert plain.value.field == field
    with pytest.raises(error) as drawn:
        client.render_diff(before or ids[0], after or ids[1], "dot", options)
    assert drawn.value.field == field


def test_a_server_attributes_in_its_workers(tmp_path: Path, served: Served, ids: tuple[str, str]) -> None:
    server = server_process(tmp_path / "store", MODELS / "tiny.py")
    with server as (_, address), Client(address, timeout=None) as client:
        made = [client.create_trace(TraceRequest("tiny", {"width": width})).id for width in WIDTHS]
        assert tuple(made) == ids
        told: list[Progress] = []
        assert client.diff_traces(*ids, progress=told.append) == served.engine.diff_traces(*ids)
        assert "probe" in {each.stage for each in told}
        assert client.render_diff(*ids, "dot") == served.engine.render_diff(*ids, "dot")


def test_who_gives_up_while_formulas_are_looked_for_is_heard(served: Served) -> None:
    ids = [served.engine.create_trace(TraceRequest("tiny", {"width": width})).id for width in (9, 11)]
    stages: list[str] = []

    def give_up(progress: Progress) -> None:
        stages.append(progress.stage)
        if stages.count("probe") == 1:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        served.engine.diff_traces(*ids, progress=give_up)
    assert stages[-1] == "probe"
