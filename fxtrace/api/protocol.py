"""What can be asked of fxtrace, in this process or of a server: `Engine` and `Client` both keep this protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from fxtrace.diff import GraphDiff
    from fxtrace.dims import Formulas
    from fxtrace.explain import Explanation
    from fxtrace.graph import Graph, Snapshot, TensorSpec
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
    from fxtrace.sweep import SweepBatch, SweepRequest

Array_co = TypeVar("Array_co", covariant=True)


class TensorReader(Protocol):
    """A tensor, or a part of one, that is read piece by piece; close it, or use it in a `with` statement."""

    @property
    def tensor(self) -> str:
        """The tensor's own name, also where it was asked for by its role."""

    @property
    def spec(self) -> TensorSpec:
        """Of the whole tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the part."""

    @property
    def nbytes(self) -> int:
        """Of the part."""

    def chunks(self, chunk_bytes: int = ...) -> Iterator[memoryview]:
        """The part's bytes, little-endian and row-major, at most `chunk_bytes` at a time (but a whole element)."""

    def close(self) -> None:
        """Stops reading."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class TraceApi(Protocol[Array_co]):
    """Traces models and answers questions about the traces.

    Every method raises `fxtrace.errors.FxtraceError`s, and the same ones wherever the work is done. A trace that does
    not exist is a TraceNotFound, a malformed id a NameInvalid. `Array_co` is the type of the arrays it gives.
    """

    def list_models(self) -> tuple[ModelInfo, ...]:
        """The models on offer, sorted by name."""

    def get_model(self, name: str) -> ModelInfo:
        """A model and its configuration's fields; ModelNotFound where there is none of that name."""

    def create_trace(self, request: TraceRequest, *, progress: Callable[[Progress], None] | None = None) -> TraceInfo:
        """Traces a model, or finds the trace that such a request made before; an error from `progress` stops it."""

    def get_trace(self, trace_id: str) -> TraceInfo:
        """Where a trace came from and how much there is of it: by its id, the beginning of one, or `latest`."""

    def list_traces(self) -> Iterator[TraceInfo]:
        """Every trace, newest first."""

    def page_traces(self, page_size: int, page_token: str) -> tuple[tuple[TraceInfo, ...], str]:
        """A page of traces, newest first, and the next page's token (empty on the last)."""

    def delete_trace(self, trace_id: str) -> None:
        """Removes a trace and its tensors."""

    def get_graph(self, trace_id: str, *, module: str = "", role: str = "") -> Graph:
        """A trace's graph, or only its nodes of a module or of a role."""

    def find_formulas(self, trace_id: str, *, progress: Callable[[Progress], None] | None = None) -> Formulas:
        """What each size of a trace's graph is made of, found by trying other configurations, and kept with it."""

    def get_formulas(self, trace_id: str) -> Formulas:
        """The formulas that `find_formulas` found; FormulasAbsent where it was not called."""

    def explain(self, trace_id: str, what: str) -> Explanation:
        """Why a tensor, a block of them, or a named size is as it is; NodeNotFound where there is no such thing."""

    def query_nodes(self, trace_id: str, query: NodeQuery) -> QueryResult:
        """The nodes of a trace's graph that a query means, and the paths that it asks for."""

    def list_snapshots(self, trace_id: str, numbers: Iterable[int] = ()) -> tuple[Snapshot, ...]:
        """A trace's numbered snapshots, or these of them; SnapshotNotFound where there is none of a number."""

    def read_tensor(self, trace_id: str, tensor: str, slice: str = "") -> Array_co:
        """A tensor, by its name or its role's, or the part of it that NumPy's basic slicing says."""

    def read_tensors(self, trace_id: str, reads: Iterable[tuple[str, str]]) -> Sequence[Array_co]:
        """Several (tensor, slice), in the order asked for."""

    def open_tensor(self, trace_id: str, tensor: str, slice: str = "") -> TensorReader:
        """A tensor, or a part of it, to be read piece by piece."""

    def render_graph(
        self,
        trace_id: str,
        format: ImageFormat = "svg",
        options: RenderOptions | None = None,
        *,
        progress: Callable[[Progress], None] | None = None,
    ) -> bytes:
        """The graph as a picture, or as DOT text; an error from `progress` stops the work."""

    def diff_traces(self, before: str, after: str, *, progress: Callable[[Progress], None] | None = None) -> GraphDiff:
        """What changed from one trace to another, and which configuration fields explain it."""

    def render_diff(
        self,
        before: str,
        after: str,
        format: ImageFormat = "svg",
        options: RenderOptions | None = None,
        *,
        progress: Callable[[Progress], None] | None = None,
    ) -> bytes:
        """Two traces in one picture, or as DOT text: what is added, removed, changed and equal."""

    def sweep_shapes(
        self, request: SweepRequest, *, progress: Callable[[Progress], None] | None = None
    ) -> Iterator[SweepBatch]:
        """What shapes, parameters, bytes and FLOPs come to over a grid; an error from `progress` stops the work."""

    def close(self) -> None:
        """Lets go of what is held open."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
