"""Making a trace: the model built, captured and labelled, with everything that determines the result in its id."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import torch
from numpy.typing import NDArray

import fxtrace
from fxtrace import wire
from fxtrace.capture import Capture, capture, model_errors
from fxtrace.graph import Graph, Snapshot
from fxtrace.models import Model
from fxtrace.models.weights import load_weights, weights_digest
from fxtrace.roles import label
from fxtrace.service.inputs import Input, make_inputs, seeded, to_numpy
from fxtrace.shapes import tensor_spec
from fxtrace.trace import Progress, Trace, TracedInput, TraceRequest

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
        InputError: the file of the weights cannot be read.
    """

    def __init__(self, model: Model, request: TraceRequest, report: Callable[[Progress], None]) -> None:
        self._model, self._request, self._report = model, request, report
        self._config = model.resolve(request.configuration)
        self._fields = dict(sorted(model.fields(self._config).items()))  # in the order that the store gives them back
        wire.encode_struct(self._fields, "configuration")  # what cannot travel is refused before the work, not after it
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

    def run(self) -> tuple[Trace, Graph, tuple[Snapshot, ...], dict[str, NDArray[Any]]]:
        """Builds, captures and labels the model.

        Returns:
            The trace, its labelled graph, its snapshots, and the numbers of its tensors by name.

        Raises:
            InputError, TooLarge, OptionInvalid: the request does not fit the model.
            CaptureFailed: the model raised, or cannot be captured.
        """
        request = self._request
        start = time.perf_counter()
        with seeded(request.seed):
            self._report(Progress("build"))
            with model_errors("building the model raised"):
                module = self._model.build(self._config)
                if request.state:
                    load_weights(module, request.state)
                examples = self._model.example_inputs(self._config)
            inputs = make_inputs(examples, request)
            captured = capture(
                module,
                {name: each.tensor for name, each in inputs.items()},
                rung=request.rung,
                values=request.values,
                training=request.training,
                unfused=request.unfused,
                progress=self._report,
            )
        seconds = time.perf_counter() - start
        self._report(Progress("label"))
        graph, snapshots = label(captured.graph, captured.known, module.state_dict())
        trace = self._describe(captured, graph, inputs, seconds)
        self._report(Progress("store"))
        return trace, graph, snapshots, {name: to_numpy(tensor) for name, tensor in captured.values.items()}

    def _describe(self, captured: Capture, graph: Graph, inputs: dict[str, Input], seconds: float) -> Trace:
        request = self._request
        specs = [spec for _, spec in graph.tensors()]
        return Trace(
            id=self.trace_id,
            model=self._model.name,
            configuration=self._fields,
            inputs=tuple(TracedInput(name, tensor_spec(each.tensor), each.fill) for name, each in inputs.items()),
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
        )

    def _digest(self) -> str:
        request = self._request
        parts = {
            "model": [self._model.name, self._model.digest],
            "configuration": self._fields,
            "inputs": {
                name: [given.dtype, given.shape, hashlib.sha256(given.data).hexdigest()]
                for name, given in request.inputs.items()
            },
            "input_shapes": dict(request.input_shapes),
            "rung": request.rung,
            "values": request.values,
            "training": request.training,
            "unfused": request.unfused,
            "seed": request.seed,
            "state": weights_digest(request.state) if request.state else "",
            "torch": torch.__version__,
            "fxtrace": fxtrace.__version__,
        }
        return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()
