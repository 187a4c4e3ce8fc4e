"""What fxtrace does, without gRPC: trace a model, keep the trace, answer questions about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from copy import copy
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxtrace.errors import (
    FormulasAbsent,
    FxtraceError,
    InputError,
    ModelInvalid,
    ModelNotFound,
    NodeNotFound,
    OptionInvalid,
    SnapshotNotFound,
    Unmet,
    ValuesAbsent,
    unknown,
)
from fxtrace.graph import Graph, Snapshot
from fxtrace.ir.trace import (
    IMAGE_FORMATS,
    ImageFormat,
    ModelInfo,
    NodeQuery,
    Progress,
    QueryResult,
    RenderOptions,
    TraceInfo,
    TraceRequest,
)
from fxtrace.models import Model, Registry
from fxtrace.models.references import is_of
from fxtrace.service import paging
from fxtrace.service.reading import TensorReader, stored_part
from fxtrace.service.requests import request_digest
from fxtrace.store.memory import MemoryFile, MemoryStore, TraceData
from fxtrace.store.place import default_place
from fxtrace.store.row import Origin
from fxtrace.store.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fxtrace.api import Trace
    from fxtrace.diff import GraphDiff
    from fxtrace.dims import Formulas
    from fxtrace.explain import Explanation
    from fxtrace.service.comparing import Traced
    from fxtrace.store.tracefile import TraceFile
    from fxtrace.sweep import SweepBatch, SweepRequest

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

Report = Callable[[Progress], None]

_GRAPHS_KEPT = 32
_RESULTS_KEPT = 8  # of queries: a result is read page by page


class Engine:
    """Traces models and answers questions about the traces. Safe to use from several threads.

    Args:
        store: where the traces are kept; closed with the engine.
        models: the models on offer.
        render_seconds: how long the layout of a picture may take; None for as long as it takes.

    Example:
        with Engine.open() as engine:
            trace = engine.create_trace(TraceRequest("reference"))
            weights = engine.read_tensor(trace.id, "decoder.0.cross_attention.weights", "0,0")
    """

    def __init__(self, store: Store | MemoryStore, models: Registry, *, render_seconds: float | None = 120) -> None:
        self._store = store
        self._models = models
        self._render_seconds = render_seconds
        self._model: Callable[[str], Model] = models.load
        self._restricted = False
        self._recent_graph = lru_cache(maxsize=_GRAPHS_KEPT)(store.graph)
        self._recent_result = lru_cache(maxsize=_RESULTS_KEPT)(self._find)

    def __repr__(self) -> str:
        return f"<Engine over {self._store!r}>"

    @classmethod
    def open(
        cls, place: str | Path | None = None, models: Registry | None = None, *, quota_bytes: int | None = None
    ) -> Engine:
        """An engine over a store (by default at `fxtrace.store.default_place()`) and the installed models.

        Args:
            place: a folder, or an index and a place for the files: see `fxtrace.store.place`.
            models: the models on offer.
            quota_bytes: of all traces' files together; see `fxtrace.store.Store`.

        Raises:
            OptionInvalid, Unmet, StoreDamaged, DependencyMissing: the store cannot be opened.
        """
        store = Store(place or default_place(), quota_bytes=quota_bytes)
        return cls(store, Registry.installed() if models is None else models)

    @property
    def store(self) -> Store:
        """Where the traces are kept.

        Raises:
            Unmet: this engine has them in memory only.
        """
        if isinstance(self._store, MemoryStore):
            raise Unmet("expected an engine over a store; this one keeps its traces in memory only: Engine.open(place)")
        return self._store

    @property
    def models(self) -> Registry:
        """The models on offer."""
        return self._models

    def close(self) -> None:
        """Closes the store."""
        self._store.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def restricted(self) -> Engine:
        """The same engine for callers who may name only models that are on offer: nothing else is imported or run."""
        engine = copy(self)
        engine._model, engine._restricted = self._models.get, True
        return engine

    # ---------------------------------------------------------------------------------------------------- objects

    def trace(self, model: Any, /, *args: Any, **kwargs: Any) -> Trace:
        """Traces a model, keeps the trace, and returns it as an object.

        Arguments and errors are those of `fxtrace.trace`.

        Example:
            >>> with Engine.open("runs") as engine:
            ...     print(engine.trace("reference", d_model=64))
        """
        from fxtrace.api.options import split_options

        options = split_options(kwargs)
        if isinstance(model, str | Path):
            if args:
                raise InputError(
                    f"expected fields of the configuration of model '{model}', by their names, such as d_model=64; got "
                    f"{len(args)} positional arguments. Inputs are given by options=TraceOptions(inputs={{...}})",
                    field="inputs",
                )
            return self._object(self.create_trace(options.request(str(model), kwargs), progress=options.progress))
        from fxtrace.engine.modules import trace_module

        return self.adopt(trace_module(model, args, kwargs, options))

    def load(self, trace_id: str) -> Trace:
        """Returns a trace as an object.

        Args:
            trace_id: its id, the beginning of one, or `latest`.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
        """
        return self._object(self.get_trace(trace_id))

    def adopt(self, data: TraceData) -> Trace:
        """Keeps a whole trace, and returns it as an object. Raises TooLarge, Unmet: the store does not take it."""
        return self._object(self._keep(data))

    @classmethod
    def over(cls, *traces: Trace) -> Engine:
        """An engine over copies of traces from anywhere: their numbers are read where they are, when asked for."""
        from fxtrace.engine.copies import data_of, models_of

        return cls(MemoryStore(*map(data_of, traces)), models_of(traces))

    @staticmethod
    def keep(trace: Trace, place: str | Path) -> Path | str:
        """Keeps a trace from anywhere; see `Trace.save`."""
        from fxtrace.engine.copies import save

        return save(trace, place)

    def _keep(self, data: TraceData) -> TraceInfo:
        if isinstance(self._store, MemoryStore):
            return self._store.add(data).info
        info = self._store.put(data.info, data.graph, data.snapshots, data.tensors)
        if data.formulas is not None and self._store.formulas(info.id) is None:
            self._store.put_formulas(info.id, data.formulas)
        return info

    def _object(self, info: TraceInfo) -> Trace:
        from fxtrace.api import Trace

        hold = self._store.hold(info.id) if isinstance(self._store, MemoryStore) else None
        return Trace(self, info, data=hold)

    # ---------------------------------------------------------------------------------------------------- models

    def list_models(self) -> tuple[ModelInfo, ...]:
        """The models on offer, sorted by name. One that cannot be imported says so in its summary."""
        return tuple(self._model_or_reason(name) for name in self._models.names())

    def get_model(self, name: str) -> ModelInfo:
        """A model's configuration.

        Raises:
            ModelNotFound, ModelInvalid
        """
        return self._model(name).info()

    def _model_or_reason(self, name: str) -> ModelInfo:
        try:
            return self.get_model(name)
        except FxtraceError as error:
            return ModelInfo(name, f"cannot be used: {error.message}", (), {})

    # ---------------------------------------------------------------------------------------------------- traces

    def create_trace(
        self, request: TraceRequest, *, progress: Report | None = None, begin: Callable[[str], None] | None = None
    ) -> TraceInfo:
        """Traces a model, or finds the trace that a request like this one made before.

        Args:
            request: what is to be traced. Where `model` leads to a file or an import path, that code is run.
            progress: called as the work goes on; raise `Cancelled` from it to stop. Nothing half-done is kept.
            begin: called with the id of a trace that is not there yet, before it is made; what it raises stops it.

        Raises:
            ModelNotFound, ModelInvalid, ConfigurationError, InputError, OptionInvalid, TooLarge: the request.
            CaptureFailed: the model raised, or cannot be captured.
            Unmet: the store cannot be written to.
        """
        if self._restricted:
            self._models.require(request.model)
        digest, model_digest = request_digest(self._models, request)
        if digest and (reused := self._asked_before(digest, request)) is not None:
            return reused
        model = self._model(request.model)
        from fxtrace.service.tracing import Tracing  # not before the model: reading a store needs no PyTorch

        tracing = Tracing(model, request, progress or (lambda _: None))
        found = self._store.find(tracing.trace_id)
        reused = found
        if found is None:
            if begin is not None:
                begin(tracing.trace_id)
            with tracing.alone():
                # Another thread may have made it while this one waited.
                reused = self._store.find(tracing.trace_id)
                found = reused or self._keep(tracing.run())
        known = digest if is_of(model_digest, model.digest) else ""
        self._note(Origin(known or found.id, found.id, self._models.whereabouts(request.model), model.digest), request)
        return replace(found, reused=reused is not None)

    def _asked_before(self, digest: str, request: TraceRequest) -> TraceInfo | None:
        """The trace that the same request led to before, where it is there as a whole."""
        origin = self._store.origin(digest=digest)
        found = None if origin is None else self._store.find(origin.trace)
        if origin is None or found is None:
            return None
        if not self._restricted:
            self._models.note(request.model)  # as loading it would
        self._note(replace(origin, model=self._models.whereabouts(request.model), at=time.time()), request)
        return replace(found, reused=True)

    def _note(self, origin: Origin, request: TraceRequest) -> None:
        """Keeps what led to a trace. Where it cannot be kept, the trace is there all the same."""
        if not request.by_product:
            with suppress(FxtraceError):
                self._store.note_origin(origin)

    def find_formulas(self, trace_id: str, *, progress: Report | None = None) -> Formulas:
        """Which configuration fields each size of a trace's graph is made of, found by trying other configurations.

        They are kept with the trace, and given at once where they were found before.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
            ModelNotFound: the trace's model is not here.
            CaptureFailed: the model does not give that graph any more.
            TooLarge, Unmet: they cannot be kept.
        """
        found = self._store.formulas(trace_id)
        if found is None:
            from fxtrace.service.comparing import find_formulas

            report = progress or (lambda _: None)
            found = find_formulas(self.traced(trace_id), report)
            report(Progress("store"))
            self._store.put_formulas(trace_id, found)
        return found

    def get_formulas(self, trace_id: str) -> Formulas:
        """The formulas that `find_formulas` found.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
            FormulasAbsent: it was not called for this trace.
        """
        found = self._store.formulas(trace_id)
        if found is None:
            raise FormulasAbsent(
                f"trace {trace_id} has no formulas of its sizes yet; `fxtrace formulas {trace_id[:8]}` (FindFormulas, "
                "find_formulas) finds and keeps them",
                trace=trace_id,
            )
        return found

    def diff_traces(self, before: str, after: str, *, progress: Report | None = None) -> GraphDiff:
        """What changed from one trace to another, and which configuration fields explain it.

        What cannot be attributed, for want of a trace's model or of formulas, is told all the same; the notes say why.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
        """
        from fxtrace.service.diffing import diff_traces

        return diff_traces(self, (before, after), progress or (lambda _: None))

    def sweep_shapes(self, request: SweepRequest, *, progress: Report | None = None) -> Iterator[SweepBatch]:
        """What a model's shapes, parameters, bytes and FLOPs come to over a grid, in batches of rows as they come.

        Args:
            request: what is to be swept. Where `model` leads to a file or an import path, that code is run.
            progress: called as the work goes on; what it raises stops the work. Leaving the iterator stops it, too.

        Raises:
            ModelNotFound, ModelInvalid, ConfigurationError, OptionInvalid: the request.
            TooLarge: the grid has more than `fxtrace.sweep.MAX_CONFIGURATIONS` configurations.
            TensorNotFound: while rows come: no configuration has a tensor that was asked for.
        """
        model = self._model(request.model)
        from fxtrace.service.sweeping import Sweeping

        return Sweeping(model, request, progress or (lambda _: None)).batches()

    def traced(self, trace_id: str) -> Traced:
        """A trace with its graph and its model.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
            ModelNotFound, ModelInvalid: the trace's model is not here, or has changed.
        """
        trace = self._store.trace(trace_id)
        model = self._model_of(trace)
        from fxtrace.service.comparing import Traced  # not before the model: it needs PyTorch

        return Traced(trace, self._graph(trace_id), model)

    def _model_of(self, trace: TraceInfo) -> Model:
        origin = None if self._restricted else self._store.origin(trace_id=trace.id)
        if origin is not None and origin.is_local:
            return self._remembered(origin)
        try:
            return self._model(trace.model)
        except ModelNotFound as error:
            raise ModelNotFound(
                f"trace {trace.id[:8]} is of '{trace.model}', which cannot be built here: {error.message} To have it "
                "built under other configurations, trace a model by its name, its file (mine.py) or its import path "
                "(package.module:factory).",
                **error.metadata,
            ) from error

    def whereabouts(self, trace_id: str) -> str:
        """Where the model of a trace is: a path, an import path or a name, by which `create_trace` finds it.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
        """
        origin = None if self._restricted else self._store.origin(trace_id=trace_id)
        return self._store.trace(trace_id).model if origin is None else origin.model

    def _remembered(self, origin: Origin) -> Model:
        """The model that a trace was made of, from where it was.

        Raises:
            ModelNotFound: it is not there any more.
            ModelInvalid: it is another one now, or cannot be loaded.
        """
        name, again = f"trace {origin.trace[:8]} was made of {origin.model}", f"`fxtrace trace {origin.model}`"
        if origin.model.endswith(".py") and not Path(origin.model).is_file():
            raise ModelNotFound(f"{name}, which is not there any more", field="model", model=origin.model)
        model = self._models.load(origin.model)
        if model.digest != origin.model_digest:
            raise ModelInvalid(f"{name}, which has changed since; trace it again with {again}", model=origin.model)
        return model

    def get_trace(self, trace_id: str) -> TraceInfo:
        """Where a trace came from.

        Args:
            trace_id: its id, the beginning of one, or `latest`: the trace that `create_trace` last gave.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
        """
        return self._store.trace(self._store.resolve(trace_id))

    def list_traces(self) -> Iterator[TraceInfo]:
        """Every trace, newest first."""
        token = ""
        while True:
            traces, token = self.page_traces(0, token)
            yield from traces
            if not token:
                return

    def page_traces(self, page_size: int, page_token: str) -> tuple[tuple[TraceInfo, ...], str]:
        """A page of traces, newest first, and the token of the next page (empty on the last).

        Args:
            page_size: at most this many; 0 for the default.
            page_token: as the page before gave it; empty for the first.

        Raises:
            PageInvalid
        """
        size = paging.page_size(page_size, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        start = paging.page_start(page_token, "traces")
        rows = self._store.traces(size + 1, before=start or None)
        token = paging.page_token(rows[size - 1][0], "traces") if len(rows) > size else ""
        return tuple(trace for _, trace in rows[:size]), token

    def delete_trace(self, trace_id: str) -> None:
        """Removes a trace and its tensors.

        Raises:
            NameInvalid, TraceNotFound
        """
        self._store.delete(trace_id)
        self._recent_graph.cache_clear()
        self._recent_result.cache_clear()

    # ---------------------------------------------------------------------------------------------------- graph

    def get_graph(self, trace_id: str, *, module: str = "", role: str = "") -> Graph:
        """A trace's labelled graph.

        Args:
            trace_id: the trace.
            module: keep only nodes that ran in this module, or in one inside it.
            role: keep only nodes with a role of this name, or one whose name goes on after it with a dot.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
            NodeNotFound: no such module or role; the nearest is suggested.
        """
        return self._graph(trace_id).within(module, role)

    def explain(self, trace_id: str, what: str) -> Explanation:
        """Why a tensor, a block of them, or a named size is as it is; see `fxtrace.explain`.

        Args:
            trace_id: the trace.
            what: a role, node or tensor, a snapshot's number, the beginning of roles' names, or a named size.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
            NodeNotFound, SnapshotNotFound: there is no such thing; the nearest is suggested.
        """
        from fxtrace.explain import explain

        number = what.removeprefix("#")
        numbered = number.isdecimal() and len(number) <= 18  # Python turns no text of thousands of digits into an int
        snapshot = self.list_snapshots(trace_id, [int(number)])[0] if numbered else None
        trace, formulas = self._store.trace(trace_id), self._store.formulas(trace_id)
        try:
            return explain(
                self._graph(trace_id),
                what,
                snapshot=snapshot,
                formulas=formulas,
                read=partial(self.read_tensor, trace_id) if trace.values else None,
                trace_id=trace_id,
            )
        except NodeNotFound:
            if formulas is not None or what not in trace.configuration:
                raise
            raise NodeNotFound(
                f"'{what}' is a field of the configuration; what it makes is known once formulas are found: "
                f"`Trace.formulas()` or `fxtrace formulas {trace_id[:8]}`",
                field="what",
                node=what,
            ) from None

    def query_nodes(self, trace_id: str, query: NodeQuery) -> QueryResult:
        """The nodes of a trace's graph that a query means, and the paths that it asks for.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
            NodeNotFound: the query names a node or a role that is not there; the nearest is suggested.
            QueryInvalid: its expression or its pattern cannot be understood, with the place; or its parts do not fit.
            TooLarge: the expression or the pattern takes too long on this graph.
            DependencyMissing: there is an expression, and CEL is not installed.
        """
        self._store.require(trace_id)  # another process may have deleted it
        return self._recent_result(trace_id, query)

    def list_snapshots(self, trace_id: str, numbers: Iterable[int] = ()) -> tuple[Snapshot, ...]:
        """The numbered snapshots of a trace, or these of them, in the order of their numbers.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
            SnapshotNotFound: there is none of such a number.
        """
        snapshots = self._store.snapshots(trace_id)
        wanted, known = set(numbers), {snapshot.number for snapshot in snapshots}
        if missing := sorted(wanted - known):
            raise SnapshotNotFound(
                f"no snapshot {missing[0]}; "
                + (f"there are {min(known)} to {max(known)}" if known else "there is none"),
                field="numbers",
                number=missing[0],
            )
        return tuple(snapshot for snapshot in snapshots if not wanted or snapshot.number in wanted)

    def render_graph(
        self,
        trace_id: str,
        format: ImageFormat = "svg",
        options: RenderOptions | None = None,
        *,
        progress: Report | None = None,
    ) -> bytes:
        """A trace's graph as a picture, or as DOT text.

        Args:
            trace_id: the trace.
            format: dot, svg, png or pdf.
            options: how to draw it.
            progress: called as the work goes on; an error from it stops the work.

        Raises:
            NameInvalid, TraceNotFound, StoreDamaged
            OptionInvalid, NodeNotFound, SnapshotNotFound: of the options.
            DependencyMissing: Graphviz is not installed.
            TimeLimit, MemoryLimit: the layout takes too long, or too much memory.
        """
        from fxtrace.render import to_dot

        trace, graph = self._store.trace(trace_id), self._graph(trace_id)
        snapshots = self._store.snapshots(trace_id)
        if format not in IMAGE_FORMATS:
            raise OptionInvalid(unknown("image format", format, IMAGE_FORMATS), field="format", format=format)
        return self._drawn(
            lambda: to_dot(graph, options or RenderOptions(), snapshots=snapshots, title=trace.model), format, progress
        )

    def render_diff(
        self,
        before: str,
        after: str,
        format: ImageFormat = "svg",
        options: RenderOptions | None = None,
        *,
        progress: Report | None = None,
    ) -> bytes:
        """Two traces in one picture, or as DOT text: what is added, removed, changed and equal.

        Arguments and errors are those of `diff_traces` and `render_graph`. Options name nodes of the trace after.
        """
        self.check_picture(after, format, options)
        diff = self.diff_traces(before, after, progress=progress)
        return self.draw_diff(before, after, format, options, diff=diff, progress=progress)

    def check_picture(
        self,
        trace_id: str,
        format: ImageFormat,
        options: RenderOptions | None,
    ) -> None:
        """Raises what drawing a trace so would raise of the format and the options, before anything takes time."""
        from fxtrace.render import check_options

        if format not in IMAGE_FORMATS:
            raise OptionInvalid(unknown("image format", format, IMAGE_FORMATS), field="format", format=format)
        check_options(self._graph(trace_id), options or RenderOptions(), self._store.snapshots(trace_id))

    def draw_diff(
        self,
        before: str,
        after: str,
        format: ImageFormat = "svg",
        options: RenderOptions | None = None,
        *,
        diff: GraphDiff,
        progress: Report | None = None,
    ) -> bytes:
        """The picture of a comparison that was made of these two traces before; see `render_diff`."""
        from fxtrace.render import diff_to_dot

        graphs = self._graph(before), self._graph(after)
        return self._drawn(lambda: diff_to_dot(*graphs, diff, options or RenderOptions()), format, progress)

    def _drawn(self, dot: Callable[[], str], format: ImageFormat, progress: Report | None) -> bytes:
        from fxtrace.render import find_graphviz, to_image

        if format != "dot":
            find_graphviz()  # before the work
        report = progress or (lambda _: None)
        report(Progress("draw"))
        text = dot()
        if format == "dot":
            return text.encode()
        report(Progress("layout"))
        return to_image(text, format, self._render_seconds)

    def _graph(self, trace_id: str) -> Graph:
        self._store.require(trace_id)  # another process may have deleted it
        return self._recent_graph(trace_id)

    def _find(self, trace_id: str, query: NodeQuery) -> QueryResult:
        from fxtrace.query import find

        return find(self._graph(trace_id), query)

    # ---------------------------------------------------------------------------------------------------- tensors

    def read_tensor(self, trace_id: str, tensor: str, slice: str = "") -> NDArray[Any]:
        """A tensor's numbers, or a part of them, as an array of its own.

        Args:
            trace_id: the trace.
            tensor: the tensor's name, or a role's.
            slice: NumPy's basic slicing without the brackets; see `fxtrace.slices`.

        Raises:
            NameInvalid, TraceNotFound, TensorNotFound, SliceInvalid, StoreDamaged
            ValuesAbsent: the trace holds shapes only.
        """
        return self.read_tensors(trace_id, [(tensor, slice)])[0]

    def read_tensors(self, trace_id: str, reads: Iterable[tuple[str, str]]) -> list[NDArray[Any]]:
        """The numbers of several (tensor, slice), as `read_tensor` gives them, in the order asked for."""
        graph = self._graph(trace_id)
        named = [(graph.resolve_tensor(tensor), expression) for tensor, expression in reads]
        with self._open(trace_id) as file:
            return [stored_part(file, name, graph.tensor(name), expression).array() for name, expression in named]

    def open_tensor(self, trace_id: str, tensor: str, slice: str = "") -> TensorReader:
        """A tensor, or a part of it, to be read piece by piece; arguments and errors are those of `read_tensor`."""
        graph = self._graph(trace_id)
        name = graph.resolve_tensor(tensor)
        with ExitStack() as opened:
            file = self._open(trace_id)
            opened.callback(file.close)
            spec = graph.tensor(name)
            reader = TensorReader(name, spec, stored_part(file, name, spec, slice), file)
            opened.pop_all()  # the reader closes it
            return reader

    def _open(self, trace_id: str) -> TraceFile | MemoryFile:
        """The file of a trace with values."""
        if not self._store.trace(trace_id).values:
            raise ValuesAbsent(
                f"trace {trace_id} holds shapes only; trace it again with values to read its tensors", trace=trace_id
            )
        return self._store.open(trace_id)
