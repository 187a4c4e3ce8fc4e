"""An engine whose models run in worker processes. What is kept is read in this process, which imports no PyTorch."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from fxtrace import wire
from fxtrace.diff import GraphDiff
from fxtrace.dims import Formulas
from fxtrace.errors import FxtraceError
from fxtrace.explain import Explanation
from fxtrace.graph import Graph, Snapshot
from fxtrace.ir.trace import (
    ImageFormat,
    ModelInfo,
    NodeQuery,
    Progress,
    QueryResult,
    RenderOptions,
    TraceInfo,
    TraceRequest,
)
from fxtrace.service.engine import Engine, Report
from fxtrace.service.jobs import Job
from fxtrace.service.reading import TensorReader
from fxtrace.service.settings import Settings
from fxtrace.service.temporary import remove_abandoned
from fxtrace.service.worker import Plan
from fxtrace.service.workers import Workers
from fxtrace.sweep import SweepBatch, SweepRequest
from fxtrace.sweep.messages import SWEEP_BATCH
from fxtrace.v1 import graph_pb2
from fxtrace.v1 import trace_service_pb2 as rpc

_log = logging.getLogger("fxtrace.service")
_REASON_SECONDS = 60.0  # that a list gives the reason why a model cannot be used, before it is tried again


@dataclass(eq=False)
class _Shared:
    """A job that several callers may follow.

    `instead` is the one that makes the same trace already, where there turned out to be one.
    """

    key: Hashable
    job: Job
    pool: Workers
    callers: int = 0
    trace_id: str = ""
    instead: _Shared | None = None

    def last(self) -> _Shared:
        return self if self.instead is None else self.instead.last()


class IsolatedEngine:
    """An engine for a server: models are imported, built, run and labelled in worker processes, pictures in others.

    A call that crashes its process, takes too long or too much memory ends with WorkerCrashed, TimeLimit or
    MemoryLimit, and harms no other. The same request twice at a time is one piece of work; it is stopped when nobody
    waits for it any more.

    Args:
        engine: over the store, with the models on offer, none of which it needs to import. It stays open.
        settings: limits.

    Example:
        with Engine.open(folder) as engine, IsolatedEngine(engine, Settings.load()) as isolated:
            isolated.create_trace(TraceRequest("reference"))
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        place, quota, models = engine.store.place, settings.disk_quota, engine.models
        threads = max(1, (os.cpu_count() or 1) // settings.workers)
        self._captures = Workers(
            Plan(place, quota, models, True, threads, settings.capture_memory),
            count=settings.workers,
            spare=1,
            queue=settings.queue_length,
            calls=settings.worker_calls,
            memory_hint="trace a smaller configuration, or trace it with shapes only",
        )
        self._pictures = Workers(
            Plan(place, quota, models, False, 1, settings.render_memory),
            count=settings.render_workers,
            spare=0,
            queue=settings.queue_length,
            calls=settings.worker_calls,
            memory_hint="draw less: fold layers, set a depth, or draw one module",
        )
        self._closed = False
        self._lock = threading.Lock()
        self._running: dict[Hashable, _Shared] = {}
        self._making: dict[str, _Shared] = {}
        self._infos: dict[str, ModelInfo] = {}
        self._reasons: dict[str, tuple[str, float]] = {}

    def start(self) -> None:
        """Starts the worker processes, in the background; a call before that waits."""
        remove_abandoned()
        self._pictures.start()
        self._captures.start()
        threading.Thread(target=self._look_at_models, name="fxtrace-models", daemon=True).start()

    def close(self) -> None:
        """Stops the worker processes and what they do."""
        self._closed = True
        self._captures.close()
        self._pictures.close()

    def gauges(self) -> dict[str, tuple[str, Callable[[], float]]]:
        """What to watch: name, description and what gives the number."""
        return {
            "fxtrace_captures_waiting": ("Captures that wait for a worker.", lambda: self._captures.waiting),
            "fxtrace_pictures_waiting": ("Pictures that wait for a worker.", lambda: self._pictures.waiting),
            "fxtrace_capture_workers": (
                "Workers for captures that are ready, or at work.",
                lambda: self._captures.alive,
            ),
            "fxtrace_picture_workers": (
                "Workers for pictures that are ready, or at work.",
                lambda: self._pictures.alive,
            ),
            "fxtrace_store_bytes": ("Bytes of the traces' files.", lambda: self._engine.store.nbytes),
        }

    def __enter__(self) -> IsolatedEngine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------ in workers

    def list_models(self) -> tuple[ModelInfo, ...]:
        """The models on offer, sorted by name. One that cannot be used says so in its summary."""
        return tuple(map(self._model_or_reason, self._engine.models.names()))

    def get_model(self, name: str) -> ModelInfo:
        """A model and its configuration's fields.

        Raises:
            ModelNotFound, ModelInvalid, WorkerCrashed, TimeLimit, MemoryLimit
        """
        info = self._infos.get(name)
        if info is None:
            self._engine.models.require(name)
            job = Job(
                "get_model",
                (name,),
                what=f"importing model '{name}'",
                seconds=self._settings.model_seconds,
                light=True,
            )
            model = self._follow(_Shared(("model", name), job, self._captures), lambda _: None)
            info = wire.MODEL.decode(rpc.Model.FromString(model))
            self._infos[name] = info
        return info

    def _look_at_models(self) -> None:
        """Tells the operator which models cannot be used; after this, a list waits for nothing."""
        for info in self.list_models():
            if not info.schema and not self._closed:
                _log.warning("model %(model)s %(problem)s", {"model": info.name, "problem": info.summary})

    def _model_or_reason(self, name: str) -> ModelInfo:
        reason, until = self._reasons.get(name, ("", 0.0))
        if time.monotonic() >= until:
            try:
                return self.get_model(name)
            except FxtraceError as error:
                reason = f"cannot be used: {error.message}"
                self._reasons[name] = reason, time.monotonic() + _REASON_SECONDS
        return ModelInfo(name, reason, (), {})

    def create_trace(self, request: TraceRequest, *, progress: Report | None = None) -> TraceInfo:
        """Traces a model that is on offer, or finds the trace that such a request made before.

        Args:
            request: what is to be traced.
            progress: called as the work goes on, and while it waits; an error from it means that this caller gives up.

        Raises:
            Busy: too many wait already.
            WorkerCrashed, TimeLimit, MemoryLimit: the model ended the process, or is too much for one call.
            FxtraceError: as `Engine.create_trace`.
        """
        self._engine.models.require(request.model)  # so that the ordinary mistake needs no worker
        asked = wire.encode_trace_request(request).SerializeToString(deterministic=True)
        job = Job(
            "create_trace",
            (request,),
            what=f"tracing model '{request.model}'",
            seconds=self._settings.capture_seconds,
            claim=lambda trace_id: self._claim(shared, trace_id),
        )
        shared = _Shared(("trace", request.state, hashlib.blake2b(asked).digest()), job, self._captures)
        answer = rpc.CreateTraceResponse.FromString(self._follow(shared, progress or (lambda _: None)))
        return replace(wire.TRACE.decode(answer.trace), reused=answer.reused)

    def find_formulas(self, trace_id: str, *, progress: Report | None = None) -> Formulas:
        """Which configuration fields each size of a trace's graph is made of; kept with the trace.

        Raises:
            Busy: too many wait already.
            WorkerCrashed, TimeLimit, MemoryLimit: the model ended the process, or is too much for one call.
            FxtraceError: as `Engine.find_formulas`.
        """
        self._engine.models.require(self._engine.get_trace(trace_id).model)  # as above
        found = self._engine.store.formulas(trace_id)
        if found is not None:
            return found
        what, seconds = "trying other configurations", self._settings.capture_seconds
        job = Job("find_formulas", (trace_id,), what=what, seconds=seconds)
        shared = _Shared(("formulas", trace_id), job, self._captures)
        return wire.decode_formulas(graph_pb2.Formulas.FromString(self._follow(shared, progress or (lambda _: None))))

    def render_graph(
        self,
        trace_id: str,
        format: ImageFormat = "svg",
        options: RenderOptions | None = None,
        *,
        progress: Report | None = None,
    ) -> bytes:
        """A trace's graph as a picture, or as DOT text.

        Raises:
            Busy: too many wait already.
            WorkerCrashed, TimeLimit, MemoryLimit: the picture is too much for one call.
            FxtraceError: as `Engine.render_graph`.
        """
        self._engine.store.require(trace_id)  # so that the ordinary mistake needs no worker
        args = (trace_id, format, options)
        job = Job("render_graph", args, what="drawing the graph", seconds=self._settings.render_seconds)
        return self._follow(_Shared(("picture", *args), job, self._pictures), progress or (lambda _: None))

    def diff_traces(self, before: str, after: str, *, progress: Report | None = None) -> GraphDiff:
        """What changed from one trace to another, and which configuration fields explain it.

        Raises:
            Busy: too many wait already.
            WorkerCrashed, TimeLimit, MemoryLimit: attributing is too much for one call.
            FxtraceError: as `Engine.diff_traces`.
        """
        for trace_id in (before, after):
            self._engine.store.require(trace_id)  # so that the ordinary mistake needs no worker
        args = (before, after)
        job = Job("diff_traces", args, what="comparing the traces", seconds=self._settings.capture_seconds)
        told = self._follow(_Shared(("diff", *args), job, self._captures), progress or (lambda _: None))
        return wire.GRAPH_DIFF.decode(rpc.GraphDiff.FromString(told))

    def render_diff(
        self,
        before: str,
        after: str,
        format: ImageFormat = "svg",
        options: RenderOptions | None = None,
        *,
        progress: Report | None = None,
    ) -> bytes:
        """Two traces in one picture, or as DOT text.

        Raises:
            FxtraceError: as `diff_traces` and `render_graph`.
        """
        self._engine.check_picture(after, format, options)
        diff = self.diff_traces(before, after, progress=progress)
        args = (before, after, format, options)
        job = Job("draw_diff", (*args, diff), what="drawing the graph", seconds=self._settings.render_seconds)
        return self._follow(_Shared(("diff picture", *args), job, self._pictures), progress or (lambda _: None))

    def sweep_shapes(self, request: SweepRequest, *, progress: Report | None = None) -> Iterator[SweepBatch]:
        """What a model's shapes, parameters, bytes and FLOPs come to over a grid, in batches of rows as they come.

        Leaving the iterator ends the work at once.

        Raises:
            Busy: too many wait already.
            WorkerCrashed, TimeLimit, MemoryLimit: the model ended the process, or is too much for one call.
            FxtraceError: as `Engine.sweep_shapes`.
        """
        self._engine.models.require(request.model)  # so that the ordinary mistake needs no worker
        job = Job(
            "sweep_shapes",
            (request,),
            what=f"sweeping model '{request.model}'",
            seconds=self._settings.sweep_seconds,
        )
        return self._parts(_Shared(object(), job, self._captures), progress or (lambda _: None))

    def _parts(self, shared: _Shared, report: Report) -> Iterator[SweepBatch]:
        """The parts of a job that nobody else follows."""
        with self._lock:
            shared.pool.submit(shared.job)
            shared.callers += 1
        try:
            for event in shared.job.events():
                if isinstance(event, Progress):
                    report(event)
                else:
                    yield SWEEP_BATCH.decode(rpc.SweepBatch.FromString(event))
        finally:
            self._leave(shared)

    def _follow(self, shared: _Shared, report: Report) -> bytes:
        """The value of a job; of the one that is under way, where the same was asked for before."""
        with self._lock:
            under_way = self._running.get(shared.key)
            if under_way is None:
                shared.pool.submit(shared.job)
                under_way = self._running[shared.key] = shared
            shared = under_way
            shared.callers += 1
        try:
            while True:
                value = shared.job.follow(report)
                if shared.instead is None:
                    return value
                shared = shared.instead
        finally:
            self._leave(shared)

    def _leave(self, shared: _Shared) -> None:
        """A caller has what it wants, or gives up."""
        with self._lock:
            shared = shared.last()
            shared.callers -= 1
            if not shared.callers:
                self._forget(shared)
                shared.pool.cancel(shared.job)

    def _claim(self, shared: _Shared, trace_id: str) -> bool:
        """Whether this job is to make this trace; else its callers go over to the one that does."""
        with self._lock:
            if not shared.callers:
                return False  # it is being stopped
            maker = self._making.setdefault(trace_id, shared)
            if maker is shared:
                shared.trace_id = trace_id
                return True
            shared.instead = maker
            maker.callers += shared.callers
            self._running[shared.key] = maker  # who asks for the same goes there, too
            return False

    def _forget(self, shared: _Shared) -> None:
        """Nobody can go over to this job any more; with the lock held."""
        for key in [key for key, each in self._running.items() if each is shared]:
            del self._running[key]
        if self._making.get(shared.trace_id) is shared:
            del self._making[shared.trace_id]

    # --------------------------------------------------------------------------------------------- in this process

    def get_trace(self, trace_id: str) -> TraceInfo:
        """Where a trace came from and how much there is of it."""
        return self._engine.get_trace(trace_id)

    def list_traces(self) -> Iterator[TraceInfo]:
        """Every trace, newest first."""
        return self._engine.list_traces()

    def page_traces(self, page_size: int, page_token: str) -> tuple[tuple[TraceInfo, ...], str]:
        """A page of traces, newest first, and the next page's token."""
        return self._engine.page_traces(page_size, page_token)

    def delete_trace(self, trace_id: str) -> None:
        """Removes a trace and its tensors."""
        self._engine.delete_trace(trace_id)

    def get_graph(self, trace_id: str, *, module: str = "", role: str = "") -> Graph:
        """A trace's graph, or only its nodes of a module or of a role."""
        return self._engine.get_graph(trace_id, module=module, role=role)

    def get_formulas(self, trace_id: str) -> Formulas:
        """The formulas that were found of a trace's sizes."""
        return self._engine.get_formulas(trace_id)

    def explain(self, trace_id: str, what: str) -> Explanation:
        """Why a tensor, a block of them, or a named size is as it is."""
        return self._engine.explain(trace_id, what)

    def query_nodes(self, trace_id: str, query: NodeQuery) -> QueryResult:
        """The nodes of a trace's graph that a query means, and the paths that it asks for."""
        return self._engine.query_nodes(trace_id, query)

    def list_snapshots(self, trace_id: str, numbers: Iterable[int] = ()) -> tuple[Snapshot, ...]:
        """A trace's numbered snapshots, or these of them."""
        return self._engine.list_snapshots(trace_id, numbers)

    def read_tensor(self, trace_id: str, tensor: str, slice: str = "") -> NDArray[Any]:
        """A tensor, or the part of it that a slice says."""
        return self._engine.read_tensor(trace_id, tensor, slice)

    def read_tensors(self, trace_id: str, reads: Iterable[tuple[str, str]]) -> list[NDArray[Any]]:
        """Several (tensor, slice), in the order asked for."""
        return self._engine.read_tensors(trace_id, reads)

    def open_tensor(self, trace_id: str, tensor: str, slice: str = "") -> TensorReader:
        """A tensor, or a part of it, to be read piece by piece."""
        return self._engine.open_tensor(trace_id, tensor, slice)
