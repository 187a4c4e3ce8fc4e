"""Making a trace: the model built, captured and labelled, with everything that determines the result in its id."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import PurePath

import fxtrace
from fxtrace import wire
from fxtrace.capture import Capture, capture, model_errors
from fxtrace.errors import OptionInvalid
from fxtrace.extras import needed_for
from fxtrace.graph import Graph, Snapshot, TensorSpec
from fxtrace.ir.trace import Progress, TracedInput, TraceInfo, TraceRequest
from fxtrace.models import Model
from fxtrace.models.weightless import build_weightless
from fxtrace.models.weights import load_weights, weights_digest
from fxtrace.roles import label
from fxtrace.service.inputs import Input, make_inputs, seeded, to_numpy
from fxtrace.service.requests import options_of
from fxtrace.service.witness import find_witness
from fxtrace.shapes import tensor_spec
from fxtrace.store.memory import TraceData

with needed_for("capturing models"):
    import torch
    from torch import Tensor, nn

_capture_lock = threading.Lock()
"""One capture at a time: the random state and torch.fx's patches belong to the whole process."""


class Tracing:
    """One request for a trace, with the model's configuration resolved.

    Args:
        model: the model that the request names.
        request: what is to be traced.
        report: called as the work goes on; what it raises stops the work.

    Attributes:
        trace_id: digest of everything that determines the result.

    Raises:
        ConfigurationError: the request's configuration does not fit the model.
        OptionInvalid: a model without weights is to be captured by another rung than `export`, or given weights.
        InputError: the file of the weights cannot be read.
    """

    def __init__(self, model: Model, request: TraceRequest, report: Callable[[Progress], None]) -> None:
        self._model, self._request, self._report = model, request, report
        if request.weightless:
            _check_weightless(request)
        self._config = model.resolve(request.configuration)
        self._fields = dict(sorted(model.fields(self._config).items()))  # in the order that the store gives them back
        wire.encode_struct(self._fields, "configuration")  # what cannot travel is refused before the work, not after it
        self._state_sha256 = weights_digest(request.state) if request.state else ""
        self.trace_id = self._digest()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Waits until no other capture runs in this process, and keeps others waiting."""
        while not _capture_lock.acquire(timeout=0.2):
            self._report(Progress("wait"))  # so that the caller can give up
        try:
            yield
        finally:
            _capture_lock.release()

    def run(self) -> TraceData:
        """Builds, captures and labels the model.

        Raises:
            InputError, TooLarge, OptionInvalid: the request does not fit the model.
            CaptureFailed: the model raised, or cannot be captured.
        """
        request = self._request
        start = time.perf_counter()
        with seeded(request.seed):
            self._report(Progress("build"))
            with model_errors("building the model raised"):
                module = build_weightless(self._build) if request.weightless else self._build()
                if request.state:
                    load_weights(module, request.state)
                examples = self._model.example_inputs(self._config)
            inputs = make_inputs(examples, request)
            captured = capture(
                module,
                {name: each.tensor for name, each in inputs.items()},
                rung="export" if request.weightless else request.rung,
                values=request.values,
                training=request.training,
                symbolic=request.symbolic,
                symbolic_timeout=request.symbolic_timeout,
                unfused=request.unfused,
                progress=self._report,
            )
        seconds = time.perf_counter() - start
        graph, snapshots, notes = self._label(captured, module)
        captured = replace(captured, rung_notes=(*captured.rung_notes, *notes))
        trace = self._describe(captured, graph, inputs, seconds)
        self._report(Progress("store"))
        tensors = {name: to_numpy(tensor) for name, tensor in captured.values.items()}
        return TraceData(trace, graph, snapshots, tensors, make_graph_module=captured.make_graph_module)

    def _build(self) -> nn.Module:
        return self._model.build(self._config)

    def _label(self, captured: Capture, module: nn.Module) -> tuple[Graph, tuple[Snapshot, ...], tuple[str, ...]]:
        """The labelled graph, its snapshots, and a note where the roles were tried on a copy."""
        state = {name: tensor for name, tensor in module.state_dict().items() if not tensor.is_meta}
        witness, note = None, ""
        if captured.rung == "export" and self._request.values:
            witness, note = find_witness(self._model, self._config, captured.graph, self._request, self._report)
        self._report(Progress("label"))
        return *label(captured.graph, captured.known, state, witness), (note,) if note else ()

    def _describe(self, captured: Capture, graph: Graph, inputs: dict[str, Input], seconds: float) -> TraceInfo:
        request = self._request
        specs = [spec for _, spec in graph.tensors()]
        return TraceInfo(
            id=self.trace_id,
            model=self._model.name,
            configuration=self._fields,
            inputs=tuple(
                TracedInput(name, _traced_spec(graph, name, each.tensor), each.fill) for name, each in inputs.items()
            ),
            rung=captured.rung,
            rung_notes=captured.rung_notes,
            values=request.values and captured.rung != "export",
            training=request.training,
            seed=request.seed,
            torch_version=torch.__version__,
            fxtrace_version=fxtrace.__version__,
            output_equal=captured.output_equal,
            node_count=len(graph.nodes),
            tensor_count=len(specs),
            labelled_count=sum(bool(node.roles) for node in graph.nodes),
            parameter_count=graph.parameter_count,
            tensor_bytes=sum(spec.nbytes for spec in specs),
            created=datetime.now(UTC),
            seconds=seconds,
            weightless=request.weightless,
            state=PurePath(request.state).name,
            state_sha256=self._state_sha256,
        )

    def _digest(self) -> str:
        parts = {
            **options_of(self._request),
            "model": [self._model.name, self._model.digest],
            "configuration": self._fields,
            "state": self._state_sha256,
            "torch": torch.__version__,
        }
        return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _check_weightless(request: TraceRequest) -> None:
    if request.rung not in ("", "export"):
        raise OptionInvalid(
            f"a model without weights is captured by the rung 'export', not '{request.rung}'; leave the rung out",
            field="rung",
            rung=request.rung,
        )
    if request.state:
        raise OptionInvalid(
            f"expected weights or none: a weightless model takes none from '{request.state}'", field="state"
        )


def _traced_spec(graph: Graph, name: str, tensor: Tensor) -> TensorSpec:
    """An input's spec, with the symbols that were found for its sizes."""
    node = next((node for node in graph.nodes if node.op == "placeholder" and node.target == name), None)
    return replace(tensor_spec(tensor), symbolic=node.spec.symbolic if node and node.spec else ())
