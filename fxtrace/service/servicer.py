"""TraceService over an engine: what a request asks is handed to a thread, what comes back is framed and paged.

Nothing that waits runs on the event loop, and of what takes time only this: a chunk that is in memory is read where it
is sent. Reads have threads of their own, so that they wait for nothing else; what models and pictures need has a thread
for each call, which only waits where the engine is an isolated one.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Generic, ParamSpec, Protocol, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from fxtrace import __version__, wire
from fxtrace.api import TraceApi
from fxtrace.errors import Cancelled, FxtraceError, OptionInvalid, TooLarge
from fxtrace.frames import DEFAULT_CHUNK_BYTES, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES, ChunkFrame
from fxtrace.ir.trace import ImageFormat, ModelInfo, Progress, ServerInfo, TraceInfo
from fxtrace.records import enum_codec
from fxtrace.service.access import caller
from fxtrace.service.interceptors import stages
from fxtrace.service.jobs import HEARTBEAT_SECONDS
from fxtrace.service.paging import page_size, page_start, page_token
from fxtrace.service.reading import TensorReader
from fxtrace.service.redact import without_paths, without_paths_in
from fxtrace.service.replies import ReplyCache
from fxtrace.service.settings import Settings
from fxtrace.sweep import SweepBatch
from fxtrace.sweep.messages import SWEEP_BATCH, decode_sweep_request
from fxtrace.v1 import trace_service_pb2 as rpc

SERVICE = rpc.DESCRIPTOR.services_by_name["TraceService"]

_VIEW = enum_codec(rpc.GraphView.DESCRIPTOR, ("basic", "full"), default="full", field="view")
_MEDIA_TYPES: dict[ImageFormat, str] = {
    "dot": "text/vnd.graphviz",
    "svg": "image/svg+xml",
    "png": "image/png",
    "pdf": "application/pdf",
}

_BACKLOG = 16
"""Parts of a result that may wait for a slow reader."""

P = ParamSpec("P")
T = TypeVar("T")
Picture = TypeVar("Picture", rpc.RenderGraphResponse, rpc.RenderDiffResponse)
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class ServedApi(TraceApi[Any], Protocol):
    """What can be served: its tensors can be read into the messages themselves."""

    def open_tensor(self, trace_id: str, tensor: str, slice: str = "") -> TensorReader:
        """A tensor, or a part of it, to be read piece by piece."""


class TraceServicer:
    """The RPCs of TraceService. GetGraph and ReadTensor give messages that are serialised already.

    Args:
        engine: does the work; its methods are called from several threads.
        settings: limits.
    """

    def __init__(self, engine: ServedApi, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._works = ThreadPoolExecutor(settings.concurrent_calls, thread_name_prefix="fxtrace-work")
        self._reads = ThreadPoolExecutor(8, thread_name_prefix="fxtrace-read")
        self._graphs = ReplyCache(settings.reply_cache, lambda name: self._read(engine.get_trace, name))

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """How gRPC is to call each RPC of the service, by the RPC's name."""
        return {
            method.name: _handler(method.server_streaming)(
                getattr(self, method.name),
                request_deserializer=GetMessageClass(method.input_type).FromString,
                response_serializer=_serialized,
            )
            for method in SERVICE.methods
        }

    def close(self) -> None:
        """Takes no more work; what is running ends by itself."""
        for pool in (self._works, self._reads):
            pool.shutdown(wait=False, cancel_futures=True)

    async def GetServer(self, _: rpc.GetServerRequest, __: Context) -> rpc.GetServerResponse:
        key = caller.get()
        info = ServerInfo(__version__, "write" if key is None else key.scope, "" if key is None else key.id)
        return rpc.GetServerResponse(server=wire.SERVER.encode(info))

    async def ListModels(self, request: rpc.ListModelsRequest, _: Context) -> rpc.ListModelsResponse:
        size = self._page_size(request.page_size, 100, self._settings.page_items)
        start = page_start(request.page_token, "models")
        models = await _in(self._works, self._engine.list_models)
        return rpc.ListModelsResponse(
            models=map(_listed, models[start : start + size]),
            next_page_token=page_token(start + size, "models") if start + size < len(models) else "",
        )

    async def GetModel(self, request: rpc.GetModelRequest, _: Context) -> rpc.GetModelResponse:
        name = wire.parse_model_name(request.name, "name")
        return rpc.GetModelResponse(model=wire.MODEL.encode(await _in(self._works, self._engine.get_model, name)))

    async def CreateTrace(self, request: rpc.CreateTraceRequest, _: Context) -> AsyncIterator[rpc.CreateTraceResponse]:
        asked = wire.decode_trace_request(request)
        async with aclosing(self._told(partial(self._engine.create_trace, asked))) as events:
            async for event in events:
                if isinstance(event, Progress):
                    yield rpc.CreateTraceResponse(progress=wire.PROGRESS.encode(event))
                else:
                    yield rpc.CreateTraceResponse(trace=_told_of(event), reused=event.reused)

    async def GetTrace(self, request: rpc.GetTraceRequest, _: Context) -> rpc.GetTraceResponse:
        trace_id = wire.parse_sought_trace(request.name, "name")
        return rpc.GetTraceResponse(trace=_told_of(await self._read(self._engine.get_trace, trace_id)))

    async def ListTraces(self, request: rpc.ListTracesRequest, _: Context) -> rpc.ListTracesResponse:
        size = self._page_size(request.page_size, 50, self._settings.page_items)
        traces, token = await self._read(self._engine.page_traces, size, request.page_token)
        return rpc.ListTracesResponse(traces=map(_told_of, traces), next_page_token=token)

    async def DeleteTrace(self, request: rpc.DeleteTraceRequest, _: Context) -> rpc.DeleteTraceResponse:
        trace_id = wire.parse_trace_name(request.name, "name")
        try:
            await self._read(self._engine.delete_trace, trace_id)
        finally:
            self._graphs.forget(trace_id)
        return rpc.DeleteTraceResponse()

    async def GetGraph(self, request: rpc.GetGraphRequest, _: Context) -> bytes:
        trace_id = wire.parse_trace_name(request.trace, "trace")
        view = _VIEW.decode(request.view)
        size = self._page_size(request.page_size, 2000, self._settings.page_nodes)
        query = (trace_id, view, request.module, request.role)
        start = page_start(request.page_token, *query)

        def make() -> bytes:
            graph = self._engine.get_graph(trace_id, module=request.module, role=request.role)
            stop = start + size
            return rpc.GetGraphResponse(
                graph=wire.encode_graph(graph, start, stop, basic=view == "basic"),
                next_page_token=page_token(stop, *query) if stop < len(graph.nodes) else "",
                total_nodes=len(graph.nodes),
            ).SerializeToString()

        return await self._graphs.get(trace_id, (query, start, size), partial(self._read, make))

    async def QueryNodes(self, request: rpc.QueryNodesRequest, _: Context) -> rpc.QueryNodesResponse:
        trace_id = wire.parse_trace_name(request.trace, "trace")
        view = _VIEW.decode(request.view)
        query = wire.NODE_QUERY.decode(request.query)
        size = self._page_size(request.page_size, 1000, self._settings.page_nodes)
        key = (trace_id, view, request.query.SerializeToString(deterministic=True).hex())
        start = page_start(request.page_token, *key)

        def make() -> rpc.QueryNodesResponse:
            result = self._engine.query_nodes(trace_id, query)
            page = wire.encode_query_result(result, start, start + size, basic=view == "basic")
            if start + size < page.total_size:
                page.next_page_token = page_token(start + size, *key)
            return page

        return await self._read(make)

    async def ListSnapshots(self, request: rpc.ListSnapshotsRequest, _: Context) -> rpc.ListSnapshotsResponse:
        trace_id = wire.parse_trace_name(request.trace, "trace")

        def make() -> rpc.ListSnapshotsResponse:
            snapshots = self._engine.list_snapshots(trace_id, request.numbers)
            return rpc.ListSnapshotsResponse(snapshots=map(wire.SNAPSHOT.encode, snapshots))

        return await self._read(make)

    async def ReadTensor(self, request: rpc.ReadTensorRequest, _: Context) -> AsyncIterator[bytes]:
        trace_id = wire.parse_trace_name(request.trace, "trace")
        chunk_bytes = request.chunk_bytes or DEFAULT_CHUNK_BYTES
        if not MIN_CHUNK_BYTES <= chunk_bytes <= MAX_CHUNK_BYTES:
            raise OptionInvalid(
                f"chunk_bytes: expected {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES}, or 0 for {DEFAULT_CHUNK_BYTES}; "
                f"got {chunk_bytes}",
                field="chunk_bytes",
                chunk_bytes=chunk_bytes,
            )
        opened = partial(self._engine.open_tensor, trace_id, request.tensor, request.slice.expression)
        async with aclosing(_stepped(self._reads, _tensor_frames(opened, chunk_bytes))) as frames:
            async for frame in frames:
                yield frame

    async def BatchReadTensors(self, request: rpc.BatchReadTensorsRequest, _: Context) -> rpc.BatchReadTensorsResponse:
        trace_id = wire.parse_trace_name(request.trace, "trace")
        most = self._settings.batch_reads
        if len(request.reads) > most:
            raise TooLarge(
                f"reads: expected at most {most} tensors; got {len(request.reads)}", field="reads", maximum=most
            )
        return await self._read(_read_batch, self._engine, trace_id, request.reads, self._settings.batch_size)

    async def RenderGraph(self, request: rpc.RenderGraphRequest, _: Context) -> AsyncIterator[rpc.RenderGraphResponse]:
        trace_id = wire.parse_trace_name(request.trace, "trace")
        image_format = wire.IMAGE_FORMAT.decode(request.format)
        options = wire.RENDER_OPTIONS.decode(request.options)
        drawn = partial(self._engine.render_graph, trace_id, image_format, options)
        async with aclosing(self._told(drawn)) as events:
            async for event in events:
                if isinstance(event, Progress):
                    yield rpc.RenderGraphResponse(progress=wire.PROGRESS.encode(event))
                else:
                    for part in _picture_parts(rpc.RenderGraphResponse, event, _MEDIA_TYPES[image_format]):
                        yield part

    async def DiffTraces(self, request: rpc.DiffTracesRequest, _: Context) -> AsyncIterator[rpc.DiffTracesResponse]:
        before, after = _two_traces(request)
        async with aclosing(self._told(partial(self._engine.diff_traces, before, after))) as events:
            async for event in events:
                if isinstance(event, Progress):
                    yield rpc.DiffTracesResponse(progress=wire.PROGRESS.encode(event))
                else:
                    for part in wire.encode_diff(replace(event, notes=without_paths_in(event.notes))):
                        yield rpc.DiffTracesResponse(diff=part)

    async def RenderDiff(self, request: rpc.RenderDiffRequest, _: Context) -> AsyncIterator[rpc.RenderDiffResponse]:
        image_format = wire.IMAGE_FORMAT.decode(request.format)
        options = wire.RENDER_OPTIONS.decode(request.options)
        drawn = partial(self._engine.render_diff, *_two_traces(request), image_format, options)
        async with aclosing(self._told(drawn)) as events:
            async for event in events:
                if isinstance(event, Progress):
                    yield rpc.RenderDiffResponse(progress=wire.PROGRESS.encode(event))
                else:
                    for part in _picture_parts(rpc.RenderDiffResponse, event, _MEDIA_TYPES[image_format]):
                        yield part

    async def Explain(self, request: rpc.ExplainRequest, _: Context) -> rpc.ExplainResponse:
        trace_id = wire.parse_trace_name(request.trace, "trace")
        explained = await self._read(self._engine.explain, trace_id, request.what)
        return rpc.ExplainResponse(explanation=wire.EXPLANATION.encode(explained))

    async def FindFormulas(
        self, request: rpc.FindFormulasRequest, _: Context
    ) -> AsyncIterator[rpc.FindFormulasResponse]:
        trace_id = wire.parse_trace_name(request.trace, "trace")
        async with aclosing(self._told(partial(self._engine.find_formulas, trace_id))) as events:
            async for event in events:
                if isinstance(event, Progress):
                    yield rpc.FindFormulasResponse(progress=wire.PROGRESS.encode(event))
                else:
                    yield rpc.FindFormulasResponse(formulas=wire.encode_formulas(event))

    async def GetFormulas(self, request: rpc.GetFormulasRequest, _: Context) -> rpc.GetFormulasResponse:
        trace_id = wire.parse_trace_name(request.trace, "trace")
        found = await self._read(self._engine.get_formulas, trace_id)
        return rpc.GetFormulasResponse(formulas=wire.encode_formulas(found))

    async def SweepShapes(self, request: rpc.SweepShapesRequest, _: Context) -> AsyncIterator[rpc.SweepShapesResponse]:
        asked = decode_sweep_request(request)
        asked.grid.require_at_most(self._settings.sweep_configurations)

        def sweep(*, progress: Callable[[Progress | SweepBatch], None]) -> None:
            for batch in self._engine.sweep_shapes(asked, progress=progress):
                progress(batch)

        told: AsyncGenerator[Progress | SweepBatch, None] = self._told(sweep)
        async with aclosing(told) as events:
            async for event in events:
                if isinstance(event, Progress):
                    yield rpc.SweepShapesResponse(progress=wire.PROGRESS.encode(event))
                else:
                    yield rpc.SweepShapesResponse(batch=SWEEP_BATCH.encode(_redacted(event)))

    async def _told(self, work: Callable[..., T | None]) -> AsyncGenerator[Progress | T, None]:
        """What some work reports, and at the end its value, if it has one."""
        news: _News[T] = _News()
        done = self._works.submit(work, progress=news.report)
        done.add_done_callback(lambda _: news.end())
        stage, on_stage = "", stages.get()
        try:
            async for event in news:
                if on_stage is not None and isinstance(event, Progress) and event.stage != stage:
                    stage = event.stage
                    on_stage(stage)
                yield event
            if (value := done.result()) is not None:
                yield value
        finally:
            # Also when the caller hung up or its time ran out: the next report stops the work.
            news.stop()
            done.cancel()

    def _page_size(self, asked: int, default: int, maximum: int) -> int:
        return page_size(asked, min(default, maximum), maximum)

    async def _read(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await _in(self._reads, work, *args, **kwargs)


def _listed(model: ModelInfo) -> rpc.Model:
    """The message for a model; one that cannot be used, or does not travel, says so in its summary."""
    if not model.schema:
        return wire.MODEL.encode(replace(model, summary=without_paths(model.summary)))
    try:
        return wire.MODEL.encode(model)
    except FxtraceError as error:
        return wire.MODEL.encode(ModelInfo(model.name, f"cannot be used: {error.message}", (), {}))


def _told_of(trace: TraceInfo) -> rpc.Trace:
    return wire.TRACE.encode(replace(trace, rung_notes=without_paths_in(trace.rung_notes)))


def _redacted(batch: SweepBatch) -> SweepBatch:
    """The rows as a caller may see them: why a model refused one is in the model's own words."""
    return replace(
        batch,
        rows=tuple(replace(row, reason=without_paths(row.reason)) if row.reason else row for row in batch.rows),
        mismatches=without_paths_in(batch.mismatches),
        notes=without_paths_in(batch.notes),
    )


class _News(Generic[T]):
    """What work reports from its thread, for one coroutine to read.

    Of each stage only the latest report is kept, so a slow reader holds no backlog. Parts of the result are all kept;
    work that has made some which are not read yet waits.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._latest: dict[str, Progress] = {}
        self._parts: deque[T] = deque()
        self._room = threading.Semaphore(_BACKLOG)
        self._changed = asyncio.Event()
        self._ended = False
        self._stopped = threading.Event()

    def report(self, event: Progress | T) -> None:
        """In the work's thread: more is done."""
        if not isinstance(event, Progress):
            while not (self._stopped.is_set() or self._room.acquire(timeout=HEARTBEAT_SECONDS)):
                pass
        if self._stopped.is_set():
            raise Cancelled("the caller gave up")
        self._loop.call_soon_threadsafe(self._note, event)

    def end(self) -> None:
        """In any thread: nothing more will be reported."""
        with suppress(RuntimeError):  # the loop is closed: the server stopped, nobody reads
            self._loop.call_soon_threadsafe(self._note, None)

    def stop(self) -> None:
        """Makes the next report raise Cancelled in the work's thread."""
        self._stopped.set()

    async def __aiter__(self) -> AsyncIterator[Progress | T]:
        while self._latest or self._parts or not self._ended:
            await self._changed.wait()
            self._changed.clear()
            while self._latest or self._parts:
                if self._latest:
                    yield self._latest.pop(next(iter(self._latest)))
                if self._parts:
                    yield self._parts.popleft()
                    self._room.release()

    def _note(self, event: Progress | T | None) -> None:
        if event is None:
            self._ended = True
        elif isinstance(event, Progress):
            self._latest[event.stage] = event
        else:
            self._parts.append(event)
        self._changed.set()


async def _in(pool: Executor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await asyncio.wrap_future(pool.submit(work, *args, **kwargs))


async def _stepped(pool: Executor, items: Generator[bytes | None, None, None]) -> AsyncGenerator[bytes, None]:
    """A generator's items. Before a step that may have to wait it gives None: the pool takes it, as it does the first.

    Each is made before the one ahead of it is sent, so that waiting and sending go on at the same time.
    """
    step = pool.submit(next, items, b"")
    try:
        item = await asyncio.wrap_future(step)
        while item:
            following = next(items, b"")
            if following is None:
                step = pool.submit(next, items, b"")
            yield item
            item = await asyncio.wrap_future(step) if following is None else following
    finally:
        step.add_done_callback(lambda _: items.close())  # not while a thread is still in it


def _tensor_frames(opened: Callable[[], TensorReader], chunk_bytes: int) -> Generator[bytes | None, None, None]:
    """The messages of a ReadTensor stream, serialised; None before one that may have to be waited for."""
    with opened() as reader:
        yield rpc.ReadTensorResponse(header=_header(reader)).SerializeToString()
        frame, checksum = ChunkFrame(), 0
        for after in reader.fill(chunk_bytes, frame.room):
            if after is None:
                yield None
            else:
                checksum = after
                yield frame.message()
        yield rpc.ReadTensorResponse(crc32=checksum).SerializeToString()


def _two_traces(request: rpc.DiffTracesRequest | rpc.RenderDiffRequest) -> tuple[str, str]:
    return wire.parse_trace_name(request.before, "before"), wire.parse_trace_name(request.after, "after")


def _picture_parts(message: type[Picture], picture: bytes, media_type: str) -> Iterator[Picture]:
    first = message(media_type=media_type, nbytes=len(picture))
    first.chunk = picture[:DEFAULT_CHUNK_BYTES]
    yield first
    for start in range(DEFAULT_CHUNK_BYTES, len(picture), DEFAULT_CHUNK_BYTES):
        yield message(chunk=picture[start : start + DEFAULT_CHUNK_BYTES])


def _read_batch(
    engine: ServedApi, trace_id: str, reads: Sequence[rpc.TensorRead], most: int
) -> rpc.BatchReadTensorsResponse:
    response = rpc.BatchReadTensorsResponse()
    total = 0
    for read in reads:
        with engine.open_tensor(trace_id, read.tensor, read.slice.expression) as reader:
            total += reader.nbytes
            if total > most:
                raise TooLarge(
                    f"reads: expected at most {most} bytes in all, passed by '{read.tensor}' with "
                    f"{reader.nbytes}; read large tensors one by one with ReadTensor",
                    field="reads",
                    tensor=read.tensor,
                    maximum=most,
                )
            response.results.add(header=_header(reader), data=b"".join(reader.chunks()))
    return response


def _header(reader: TensorReader) -> rpc.TensorHeader:
    return rpc.TensorHeader(
        tensor=reader.tensor, spec=wire.SPEC.encode(reader.spec), shape=reader.shape, nbytes=reader.nbytes
    )


def _handler(streaming: bool) -> Callable[..., grpc.RpcMethodHandler[Any, Any]]:
    return grpc.unary_stream_rpc_method_handler if streaming else grpc.unary_unary_rpc_method_handler


def _serialized(reply: Message | bytes) -> bytes:
    return reply if isinstance(reply, bytes) else reply.SerializeToString()
