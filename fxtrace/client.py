"""A client of an fxtrace server: the same methods, values and errors as the engine in this process, without PyTorch.

from fxtrace.client import Client
from fxtrace.ir.trace import TraceRequest

with Client("127.0.0.1:50051") as client:
    trace = client.create_trace(TraceRequest("reference", {"d_model": 64}))
    weights = client.read_tensor(trace.id, "decoder.0.cross_attention.weights")
    print(weights.shape)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar, cast, overload

import grpc
import numpy as np
from numpy.typing import NDArray

from fxtrace import wire
from fxtrace.api import Trace
from fxtrace.api.arrays import torch_tensor, wants_torch
from fxtrace.api.options import split_options
from fxtrace.connection import Connection
from fxtrace.diff import GraphDiff
from fxtrace.dims import Formulas
from fxtrace.dtypes import numpy_dtype
from fxtrace.errors import (
    NameInvalid,
    ServerUnavailable,
)
from fxtrace.explain import Explanation
from fxtrace.graph import Graph, Snapshot
from fxtrace.ir.trace import (
    ImageFormat,
    ModelInfo,
    NodeQuery,
    Progress,
    QueryResult,
    RenderOptions,
    ServerInfo,
    TraceInfo,
    TraceRequest,
)
from fxtrace.remote import RemoteTensor
from fxtrace.sweep import SweepBatch, SweepRequest
from fxtrace.sweep.messages import SWEEP_BATCH, encode_sweep_request
from fxtrace.tls import Tls
from fxtrace.v1 import trace_service_pb2 as rpc
from fxtrace.v1.trace_service_pb2_grpc import TraceServiceStub

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array")


class Client(Generic[Array]):
    """A connection to an fxtrace server.

    Every method raises the `fxtrace.errors.FxtraceError` that the server's engine raised, with the same message;
    besides, ServerUnavailable when no server answers, DeadlineExceeded after `timeout`, and Unauthenticated or
    PermissionDenied where the key does not do. The error's `request_id` is that of the call in the server's log. Safe
    to use from several threads. Close it, or use it in a `with` statement.

    Args:
        address: the server's `host:port`.
        timeout: seconds that one call may take as a whole; None waits as long as it takes.
        connect_timeout: seconds to wait for the server to answer at first.
        wait_for_start: whether this holds where nothing listens at the address, too, as a server may be starting;
            otherwise that is an error at once.
        tls: whether, or how, calls are encrypted. True trusts the authorities that gRPC brings along.
        token: the key that is shown to the server, as `fxtrace keys new` printed it.
        insecure: whether to send the key unencrypted, also to another machine.
        arrays: what tensors come back as. `numpy` gives NumPy arrays, of `ml_dtypes` types for what NumPy lacks
            (bfloat16, the float8s). `torch` gives PyTorch tensors. `auto` gives PyTorch tensors where PyTorch is
            installed, else NumPy arrays.

    Raises:
        ServerUnavailable: no server answers at the address.
        TlsFailed: one side does not trust the other's certificate, or does not encrypt.
        OptionInvalid: a certificate's file cannot be used, or the key would be sent unencrypted to another machine.
        DependencyMissing: `arrays="torch"`, and PyTorch is not installed.

    Example:
        with Client("127.0.0.1:50051", arrays="numpy") as client:
            for snapshot in client.list_snapshots(trace_id):
                print(snapshot.number, snapshot.title, snapshot.dims)
    """

    @overload
    def __init__(
        self: Client[Any],
        address: str,
        *,
        timeout: float | None = 60,
        connect_timeout: float = 5,
        wait_for_start: bool = True,
        tls: Tls | bool = False,
        token: str = "",
        insecure: bool = False,
        arrays: Literal["auto"] = "auto",
    ) -> None: ...

    @overload
    def __init__(
        self: Client[NDArray[Any]],
        address: str,
        *,
        timeout: float | None = 60,
        connect_timeout: float = 5,
        wait_for_start: bool = True,
        tls: Tls | bool = False,
        token: str = "",
        insecure: bool = False,
        arrays: Literal["numpy"],
    ) -> None: ...

    @overload
    def __init__(
        self: Client[Tensor],
        address: str,
        *,
        timeout: float | None = 60,
        connect_timeout: float = 5,
        wait_for_start: bool = True,
        tls: Tls | bool = False,
        token: str = "",
        insecure: bool = False,
        arrays: Literal["torch"],
    ) -> None: ...

    def __init__(
        self,
        address: str,
        *,
        timeout: float | None = 60,
        connect_timeout: float = 5,
        wait_for_start: bool = True,
        tls: Tls | bool = False,
        token: str = "",
        insecure: bool = False,
        arrays: Literal["auto", "numpy", "torch"] = "auto",
    ) -> None:
        self.address = address
        self._as_torch = wants_torch(arrays)
        self._connection = Connection(
            address,
            timeout=timeout,
            connect_timeout=connect_timeout,
            wait_for_start=wait_for_start,
            tls=tls,
            token=token,
            insecure=insecure,
        )
        self._stub = TraceServiceStub(self._connection.channel)
        # The stream of a tensor's bytes is parsed by hand, see `fxtrace.frames`.
        self._read_tensor: grpc.UnaryStreamMultiCallable[rpc.ReadTensorRequest, bytes]
        self._read_tensor = self._connection.channel.unary_stream(
            "/fxtrace.v1.TraceService/ReadTensor", request_serializer=rpc.ReadTensorRequest.SerializeToString
        )

    def close(self) -> None:
        """Closes the connection; calls under way are cancelled."""
        self._connection.close()

    def __repr__(self) -> str:
        return f"<Client of {self.address}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def is_serving(self) -> bool:
        """Whether the server says that it is healthy; it says so to anybody. While it stops, it is not."""
        return self._connection.is_serving()

    def get_server(self) -> ServerInfo:
        """What the server is, and what may be done there with this client's key.

        Example:
            >>> client.get_server().scope
            'write'
        """
        return wire.SERVER.decode(self._connection.call(self._stub.GetServer, rpc.GetServerRequest()).server)

    def trace(self, model: str, /, *args: Any, **kwargs: Any) -> Trace:
        """Traces a model that the server offers, and returns the trace as an object.

        Args:
            model: the model's name.
            args: none: a module is traced in the process that has it, by `fxtrace.trace`.
            kwargs: fields of the model's configuration; `options` where it is a `TraceOptions`.

        Raises:
            NameInvalid: a module was given, or a file.
            ModelNotFound, ConfigurationError, CaptureFailed and others: as `create_trace`.

        Example:
            >>> client.trace("reference", d_model=64)["decoder.0.cross_attention.weights"].shape
            torch.Size([1, 4, 5, 6])
        """
        options = split_options(kwargs)
        if args or not isinstance(model, str):
            raise NameInvalid(
                "model: expected the name of a model that the server offers, and fields of its configuration by their "
                f"names; got {type(model).__name__}{' and positional arguments' if args else ''}. A module is traced "
                "in the process that has it: fxtrace.trace(module, ...)",
                field="model",
            )
        return self._object(self.create_trace(options.request(model, kwargs), progress=options.progress))

    def load(self, trace_id: str) -> Trace:
        """Returns a trace of the server's as an object.

        Args:
            trace_id: its id, the beginning of one, or `latest`.

        Raises:
            TraceNotFound, NameInvalid
        """
        return self._object(self.get_trace(trace_id))

    def _object(self, info: TraceInfo) -> Trace:
        return Trace(self, info, arrays="torch" if self._as_torch else "numpy")

    def list_models(self) -> tuple[ModelInfo, ...]:
        """The models that the server offers, sorted by name.

        Example:
            >>> [model.name for model in client.list_models()]
            ['reference']
        """
        models: list[ModelInfo] = []
        token = ""
        while True:
            page = self._connection.call(self._stub.ListModels, rpc.ListModelsRequest(page_token=token))
            models += map(wire.MODEL.decode, page.models)
            token = page.next_page_token
            if not token:
                return tuple(models)

    def get_model(self, name: str) -> ModelInfo:
        """A model, with its configuration's fields and their defaults.

        Raises:
            ModelNotFound: the server offers no such model; the nearest name is suggested.
            NameInvalid: it is no name, or a file's.

        Example:
            >>> {field.name: field.default for field in client.get_model("reference").fields}["n_heads"]
            4
        """
        reply = self._connection.call(self._stub.GetModel, rpc.GetModelRequest(name=wire.model_name(name)))
        return wire.MODEL.decode(reply.model)

    def create_trace(self, request: TraceRequest, *, progress: Callable[[Progress], None] | None = None) -> TraceInfo:
        """Traces a model, or finds the trace that such a request made before.

        Args:
            request: what is to be traced. The model is one that the server offers; a file is traced by an Engine.
            progress: called as the work goes on. An exception that it raises cancels the work and is raised here.

        Raises:
            ModelNotFound, NameInvalid, ConfigurationError, InputError, OptionInvalid: the request does not fit.
            CaptureFailed: the model raised, or cannot be captured.
            WorkerCrashed, TimeLimit, MemoryLimit: the model ended the process that ran it, or takes more than a call
                may.
            Busy: too many wait already; `retry_after` says for how many seconds to wait.

        Example:
            >>> trace = client.create_trace(TraceRequest("reference", {"d_model": 64}))
            >>> trace.configuration["d_model"], trace.node_count > 0
            (64, True)
        """
        if "/" in request.model or request.model.endswith(".py"):
            raise NameInvalid(
                f"model: expected the name of a model that the server offers; got '{request.model}', a file. A file "
                "is traced in the process that reads it, without a server",
                field="model",
                name=request.model,
            )
        with self._connection.stream(self._stub.CreateTrace, wire.encode_trace_request(request)) as events:
            for event in events:
                if event.WhichOneof("event") == "trace":
                    return replace(wire.TRACE.decode(event.trace), reused=event.reused)
                if progress is not None:
                    progress(wire.PROGRESS.decode(event.progress))
        raise ServerUnavailable(f"the server at {self.address} ended the call without a trace", address=self.address)

    def get_trace(self, trace_id: str) -> TraceInfo:
        """Where a trace came from and how much there is of it.

        Args:
            trace_id: its id, the beginning of one, or `latest`: the trace that `create_trace` last gave.

        Raises:
            TraceNotFound, NameInvalid
        """
        reply = self._connection.call(self._stub.GetTrace, rpc.GetTraceRequest(name=wire.trace_name(trace_id)))
        return wire.TRACE.decode(reply.trace)

    def list_traces(self) -> Iterator[TraceInfo]:
        """Every trace, newest first; fetched page by page as they are asked for."""
        token = ""
        while True:
            traces, token = self.page_traces(0, token)
            yield from traces
            if not token:
                return

    def page_traces(self, page_size: int, page_token: str) -> tuple[tuple[TraceInfo, ...], str]:
        """A page of traces, newest first, and the next page's token (empty on the last).

        Raises:
            PageInvalid: the size is negative or above 1000, or the token is none that a page gave.
        """
        request = rpc.ListTracesRequest(page_size=wire.fit(page_size, 32, "page_size"), page_token=page_token)
        page = self._connection.call(self._stub.ListTraces, request)
        return tuple(map(wire.TRACE.decode, page.traces)), page.next_page_token

    def delete_trace(self, trace_id: str) -> None:
        """Removes a trace and its tensors.

        Raises:
            TraceNotFound, NameInvalid
        """
        self._connection.call(self._stub.DeleteTrace, rpc.DeleteTraceRequest(name=wire.trace_name(trace_id)))

    def get_graph(self, trace_id: str, *, module: str = "", role: str = "") -> Graph:
        """A trace's labelled graph, whole or filtered.

        Args:
            trace_id: the trace.
            module: keep only nodes that ran in this module, or in one inside it.
            role: keep only nodes with a role of this name, or one whose name goes on after it with a dot.

        Raises:
            TraceNotFound, NameInvalid
            NodeNotFound: no such module or role; the nearest is suggested.

        Example:
            >>> graph = client.get_graph(trace.id, role="decoder.0.cross_attention")
            >>> graph.by_role["decoder.0.cross_attention.scores"].spec.shape
            (1, 4, 5, 6)
        """
        request = rpc.GetGraphRequest(trace=wire.trace_name(trace_id), module=module, role=role)
        pages = []
        while True:
            page = self._connection.call(self._stub.GetGraph, request)
            pages.append(page.graph)
            request.page_token = page.next_page_token
            if not request.page_token:
                return wire.decode_graph(pages)

    def find_formulas(self, trace_id: str, *, progress: Callable[[Progress], None] | None = None) -> Formulas:
        """What each size of a trace's graph is made of, found by trying other configurations of its model.

        They are kept with the trace, and given at once where they were found before.

        Raises:
            TraceNotFound, NameInvalid, ModelNotFound
            CaptureFailed: the model does not give that graph any more.
            WorkerCrashed, TimeLimit, MemoryLimit, Busy: as in `create_trace`.
        """
        request = rpc.FindFormulasRequest(trace=wire.trace_name(trace_id))
        with self._connection.stream(self._stub.FindFormulas, request) as events:
            for event in events:
                if event.WhichOneof("event") == "formulas":
                    return wire.decode_formulas(event.formulas)
                if progress is not None:
                    progress(wire.PROGRESS.decode(event.progress))
        raise ServerUnavailable(f"the server at {self.address} ended the call without formulas", address=self.address)

    def get_formulas(self, trace_id: str) -> Formulas:
        """The formulas that `find_formulas` found.

        Raises:
            TraceNotFound, NameInvalid
            FormulasAbsent: it was not called for this trace.
        """
        reply = self._connection.call(self._stub.GetFormulas, rpc.GetFormulasRequest(trace=wire.trace_name(trace_id)))
        return wire.decode_formulas(reply.formulas)

    def explain(self, trace_id: str, what: str) -> Explanation:
        """Why a tensor, a block of them, or a named size is as it is.

        `what` is a role, node or tensor, a snapshot's number, the beginning of roles' names, or a named size.

        Raises:
            TraceNotFound, NameInvalid, NodeNotFound, SnapshotNotFound: the nearest name is suggested.
        """
        request = rpc.ExplainRequest(trace=wire.trace_name(trace_id), what=what)
        return wire.EXPLANATION.decode(self._connection.call(self._stub.Explain, request).explanation)

    def query_nodes(self, trace_id: str, query: NodeQuery) -> QueryResult:
        """The nodes of a trace's graph that a query means, and the paths that it asks for.

        Raises:
            TraceNotFound, NameInvalid
            NodeNotFound: the query names a node or a role that is not there; the nearest is suggested.
            QueryInvalid: its expression or its pattern cannot be understood, with the place; or its parts do not fit.
            TooLarge: the expression or the pattern takes too long on this graph.
            DependencyMissing: there is an expression, and the server has no CEL.

        Example:
            >>> scores = client.query_nodes(trace.id, NodeQuery('kind == "matmul" && shape[-1] == src_len'))
            >>> [node.name for node in scores.nodes]
            >>> client.query_nodes(trace.id, NodeQuery(pattern="matmul pointwise* softmax")).paths
        """
        request = rpc.QueryNodesRequest(trace=wire.trace_name(trace_id), query=wire.NODE_QUERY.encode(query))
        pages = []
        while True:
            page = self._connection.call(self._stub.QueryNodes, request)
            pages.append(page)
            request.page_token = page.next_page_token
            if not request.page_token:
                return wire.decode_query_result(pages)

    def list_snapshots(self, trace_id: str, numbers: Iterable[int] = ()) -> tuple[Snapshot, ...]:
        """A trace's numbered snapshots, or these of them, in the order of their numbers.

        Raises:
            TraceNotFound, NameInvalid
            SnapshotNotFound: there is none of such a number.

        Example:
            >>> (scores,) = client.list_snapshots(trace.id, [33])
            >>> scores.title, scores.dims, scores.tensors[0].shape
        """
        request = rpc.ListSnapshotsRequest(
            trace=wire.trace_name(trace_id), numbers=[wire.fit(number, 32, "numbers") for number in numbers]
        )
        return tuple(map(wire.SNAPSHOT.decode, self._connection.call(self._stub.ListSnapshots, request).snapshots))

    def read_tensor(self, trace_id: str, tensor: str, slice: str = "") -> Array:
        """A tensor, or a part of one, as an array of its own.

        Args:
            trace_id: the trace.
            tensor: the tensor's name, or a role's.
            slice: NumPy's basic slicing without the brackets: `0,0,:5`, `-1`, `::2`, `...,:3`.

        Raises:
            TraceNotFound, TensorNotFound, NameInvalid, SliceInvalid
            ValuesAbsent: the trace holds shapes only.
            StoreDamaged: the bytes that arrived are not the ones that were sent.

        Example:
            >>> client.read_tensor(trace.id, "decoder.0.cross_attention.weights", "0,0").shape
            (5, 6)
        """
        with self.open_tensor(trace_id, tensor, slice) as reader:
            data = np.empty(reader.nbytes, np.uint8)
            view, position = data.data, 0
            for chunk in reader.chunks():
                view[position : position + len(chunk)] = chunk
                position += len(chunk)
        return self._array(data, reader.spec.dtype, reader.shape)

    def read_tensors(self, trace_id: str, reads: Iterable[tuple[str, str]]) -> list[Array]:
        """Several small tensors in one call: (tensor, slice) each, in the order asked for.

        Raises:
            TooLarge: there are more than 64 of them, or more than 3 MiB in all.
            TraceNotFound, TensorNotFound, NameInvalid, SliceInvalid, ValuesAbsent: as `read_tensor`.

        Example:
            >>> first, last = client.read_tensors(trace.id, [("src", "0"), ("src", "-1")])
        """
        request = rpc.BatchReadTensorsRequest(
            trace=wire.trace_name(trace_id),
            reads=[rpc.TensorRead(tensor=name, slice=rpc.TensorSlice(expression=part)) for name, part in reads],
        )
        reply = self._connection.call(self._stub.BatchReadTensors, request)
        return [
            self._array(
                np.frombuffer(bytearray(result.data), np.uint8), result.header.spec.dtype, tuple(result.header.shape)
            )
            for result in reply.results
        ]

    def open_tensor(self, trace_id: str, tensor: str, slice: str = "") -> RemoteTensor:
        """A tensor, or a part of one, to be read piece by piece as it arrives; for what is too large to hold.

        Arguments and errors are those of `read_tensor`.

        Example:
            with client.open_tensor(trace.id, "encoder.0.feed_forward.hidden") as reader, open("hidden.raw", "wb") as f:
                for chunk in reader.chunks():
                    f.write(chunk)
        """
        request = rpc.ReadTensorRequest(
            trace=wire.trace_name(trace_id), tensor=tensor, slice=rpc.TensorSlice(expression=slice)
        )
        return RemoteTensor(*self._connection.begin(self._read_tensor, request))

    def render_graph(
        self,
        trace_id: str,
        format: ImageFormat = "svg",
        options: RenderOptions | None = None,
        *,
        progress: Callable[[Progress], None] | None = None,
    ) -> bytes:
        """A trace's graph as a picture, or as DOT text.

        Args:
            trace_id: the trace.
            format: dot, svg, png or pdf.
            options: how to draw it.
            progress: called as the work goes on. An exception that it raises cancels the work and is raised here.

        Raises:
            TraceNotFound, NameInvalid
            OptionInvalid, NodeNotFound, SnapshotNotFound: of the options.
            DependencyMissing: the server has no Graphviz.
            WorkerCrashed, TimeLimit, MemoryLimit, Busy: as `create_trace`.

        Example:
            Path("model.svg").write_bytes(client.render_graph(trace.id, "svg", RenderOptions(depth=2)))
        """
        request = rpc.RenderGraphRequest(
            trace=wire.trace_name(trace_id),
            format=wire.IMAGE_FORMAT.encode(format),
            options=wire.RENDER_OPTIONS.encode(options or RenderOptions()),
        )
        with self._connection.stream(self._stub.RenderGraph, request) as parts:
            return _picture(parts, progress)

    def diff_traces(self, before: str, after: str, *, progress: Callable[[Progress], None] | None = None) -> GraphDiff:
        """What changed from one trace to another, and which configuration fields explain it.

        Args:
            before: the first trace.
            after: the second one.
            progress: called as the work goes on. An exception that it raises cancels the work and is raised here.

        Raises:
            TraceNotFound, NameInvalid
            WorkerCrashed, TimeLimit, MemoryLimit, Busy: as `create_trace`.

        Example:
            >>> wider = client.create_trace(TraceRequest("reference", {"d_ff": 512}))
            >>> diff = client.diff_traces(trace.id, wider.id)
            >>> diff.explained, diff.unexplained
            ({'d_ff': 8}, 0)
        """
        request = rpc.DiffTracesRequest(before=wire.trace_name(before), after=wire.trace_name(after))
        parts = []
        with self._connection.stream(self._stub.DiffTraces, request) as events:
            for event in events:
                if event.WhichOneof("event") == "diff":
                    parts.append(event.diff)
                elif progress is not None:
                    progress(wire.PROGRESS.decode(event.progress))
        return wire.decode_diff(parts)

    def render_diff(
        self,
        before: str,
        after: str,
        format: ImageFormat = "svg",
        options: RenderOptions | None = None,
        *,
        progress: Callable[[Progress], None] | None = None,
    ) -> bytes:
        """Two traces in one picture, or as DOT text: what is added, removed, changed and equal.

        Arguments and errors are those of `diff_traces` and `render_graph`; options name nodes of the trace after.

        Example:
            Path("diff.svg").write_bytes(client.render_diff(trace.id, wider.id))
        """
        request = rpc.RenderDiffRequest(
            before=wire.trace_name(before),
            after=wire.trace_name(after),
            format=wire.IMAGE_FORMAT.encode(format),
            options=wire.RENDER_OPTIONS.encode(options or RenderOptions()),
        )
        with self._connection.stream(self._stub.RenderDiff, request) as parts:
            return _picture(parts, progress)

    def sweep_shapes(
        self, request: SweepRequest, *, progress: Callable[[Progress], None] | None = None
    ) -> Iterator[SweepBatch]:
        """What a model's shapes, parameters, bytes and FLOPs come to over a grid, in batches of rows as they come.

        Leaving the iterator, or closing it, cancels the work.

        Args:
            request: what is to be swept. The model is one that the server offers.
            progress: called as the work goes on. An exception that it raises cancels the work and is raised here.

        Raises:
            ModelNotFound, NameInvalid, ConfigurationError, OptionInvalid: the request does not fit.
            TooLarge: the grid has more configurations than the server sweeps at once.
            TensorNotFound: no configuration has a tensor that was asked for.
            WorkerCrashed, TimeLimit, MemoryLimit, Busy: as `create_trace`.

        Example:
            >>> grid = parse_grid(["d_model=64,128,256", "n_heads=1..16"])
            >>> rows = [row for batch in client.sweep_shapes(SweepRequest("reference", grid)) for row in batch.rows]
            >>> len(rows)
            48
        """
        with self._connection.stream(self._stub.SweepShapes, encode_sweep_request(request)) as events:
            for event in events:
                if event.WhichOneof("event") == "batch":
                    yield SWEEP_BATCH.decode(event.batch)
                elif progress is not None:
                    progress(wire.PROGRESS.decode(event.progress))

    def _array(self, data: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> Array:
        if not self._as_torch:
            return cast(Array, data.view(numpy_dtype(dtype)).reshape(shape))
        return cast(Array, torch_tensor(data, dtype, shape))


def _picture(
    parts: Iterable[rpc.RenderGraphResponse | rpc.RenderDiffResponse], progress: Callable[[Progress], None] | None
) -> bytes:
    picture = bytearray()
    for part in parts:
        if progress is not None and part.HasField("progress"):
            progress(wire.PROGRESS.decode(part.progress))
        picture += part.chunk
    return bytes(picture)
