"""Traces a module, or a plain callable, that is there already, with the inputs that it is given."""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fxtrace
from fxtrace import wire
from fxtrace.api.options import TraceOptions
from fxtrace.capture import Capture, capture
from fxtrace.errors import OptionInvalid
from fxtrace.extras import needed_for
from fxtrace.graph import Graph
from fxtrace.ir.trace import TracedInput, TraceInfo
from fxtrace.roles import label
from fxtrace.service.inputs import seeded, to_numpy
from fxtrace.store.memory import TraceData

with needed_for("capturing models"):
    import torch
    from torch import Tensor, nn


def trace_module(
    module: nn.Module | Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], options: TraceOptions
) -> TraceData:
    """Captures and labels one call `module(*args, **kwargs)`.

    The module, its mode, its buffers and the random state are left as they were.

    Args:
        module: any `nn.Module`, or a callable.
        args: positional arguments: tensors, nests of them, None, flags.
        kwargs: keyword arguments.
        options: how to capture. Weights and inputs are the module's own and the call's.

    Raises:
        OptionInvalid: an option needs a model that fxtrace builds itself.
        InputError: the arguments do not fit the module.
        CaptureFailed: the module raised, or cannot be captured.
    """
    options = options.for_module()
    _check_keywords(module, kwargs)
    report = options.progress or (lambda _: None)
    start = time.perf_counter()
    with seeded(options.seed):
        captured = capture(
            module,
            kwargs,
            args=args,
            rung=options.rung,
            values=options.values,
            training=options.training,
            symbolic=options.symbolic,
            symbolic_timeout=options.symbolic_timeout,
            unfused=options.unfused,
            progress=report,
        )
    seconds = time.perf_counter() - start
    graph, snapshots = label(captured.graph, captured.known, _state(module))
    tensors = {name: to_numpy(tensor) for name, tensor in captured.values.items()}
    info = _describe(_name(module), captured, graph, options, seconds)
    info = replace(info, id=_digest(info, graph, tensors))
    return TraceData(info, graph, snapshots, tensors, make_graph_module=captured.make_graph_module)


def _check_keywords(module: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
    """Refuses an option of fxtrace's that was given as if it were an input, which a forward's `**kwargs` would take."""
    given = [each.name for each in fields(TraceOptions) if each.name in kwargs]
    if not given:
        return
    try:
        called = module.forward if isinstance(module, nn.Module) else module
        parameters = inspect.signature(called).parameters
    except (TypeError, ValueError):
        return
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    for name in given:
        if name not in parameters and not (takes_any and name in _MAY_BE_THE_MODELS):
            raise OptionInvalid(
                f"{_name(module)} has no parameter '{name}', which is an option of fxtrace's: give it as "
                f"options=fxtrace.TraceOptions({name}=...)",
                field=f"options.{name}",
            )


_MAY_BE_THE_MODELS = {"inputs", "values", "training", "seed", "state", "progress"}
"""Options whose names a forward that takes any keyword may well know itself."""


def _name(module: object) -> str:
    return (
        type(module).__name__ if isinstance(module, nn.Module) else getattr(module, "__name__", type(module).__name__)
    )


def _state(module: object) -> dict[str, Tensor]:
    state = module.state_dict() if isinstance(module, nn.Module) else {}
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor) and not tensor.is_meta}


def _describe(name: str, captured: Capture, graph: Graph, options: TraceOptions, seconds: float) -> TraceInfo:
    specs = [spec for _, spec in graph.tensors()]
    return TraceInfo(
        id="",
        model=name,
        configuration={},
        inputs=tuple(
            TracedInput(tensor, spec, "given")
            for node in graph.nodes
            if node.op == "placeholder"
            for tensor, spec in node.tensors
        ),
        rung=captured.rung,
        rung_notes=captured.rung_notes,
        values=options.values and captured.rung != "export",
        training=options.training,
        seed=options.seed,
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


def _digest(info: TraceInfo, graph: Graph, tensors: Mapping[str, NDArray[Any]]) -> str:
    """Of everything that the trace shows. Nothing says what determines a module that somebody else built."""
    digest = hashlib.blake2b(digest_size=16)
    # When and how fast are not of the result.
    same = replace(info, id="0" * 32, seconds=0.0, created=datetime.fromtimestamp(0, UTC))
    digest.update(wire.TRACE.encode(same).SerializeToString(deterministic=True))
    digest.update(wire.encode_graph(graph).SerializeToString(deterministic=True))
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
