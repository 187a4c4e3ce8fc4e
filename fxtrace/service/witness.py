"""A small copy of a model whose values are absent, to try its roles on: shrunk, with random weights, really run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

from fxtrace.capture import capture, model_errors
from fxtrace.errors import InvalidRequest, TooLarge, Unmet
from fxtrace.graph import Graph
from fxtrace.ir.trace import Progress, TraceRequest
from fxtrace.models import Model
from fxtrace.models.shrink import shrunk_to
from fxtrace.models.weightless import build_weightless
from fxtrace.roles import label
from fxtrace.roles.witness import Witness
from fxtrace.service.inputs import seeded

_SMALL = 5_000_000
"""Parameters, and numbers in the inputs, of a model that is run as it is."""

_LARGEST = 50_000_000
"""Parameters of the largest copy: 200 MB."""

_SHOWN = 3
"""Fields that a role's evidence names; the note has them all."""


def find_witness(
    model: Model, config: Any, graph: Graph, request: TraceRequest, report: Callable[[Progress], None]
) -> tuple[Witness | None, str]:
    """A copy of the model that was run, with its roles; and a note that says what it is, or why there is none.

    Args:
        model: what was captured without values.
        config: its configuration.
        graph: its graph.
        request: for the seed, the mode, and whether attention is unfused.
        report: called as the work goes on; what it raises stops the work.
    """
    reason = "its configuration has no sizes that can be shrunk"
    for copy in _copies(model, config, graph):
        try:
            found = _run(model, copy, request, report)
        except (InvalidRequest, TooLarge, Unmet) as error:
            reason = error.message
            continue
        whole, small = model.fields(config), model.fields(copy)
        told = f"Roles were tried on {shrunk_to(whole, small)}, with random weights."
        return Witness(found, shrunk_to(whole, small, _SHOWN)), told
    return None, f"Roles were not tried on values; no small copy could be run: {reason}."


def _copies(model: Model, config: Any, graph: Graph) -> Iterator[Any]:
    numbers = sum(prod(spec.shape) for node in graph.nodes if node.kind == "input" for _, spec in node.tensors)
    if max(graph.parameter_count, numbers) <= _SMALL:
        yield config
    yield from model.smaller(config)


def _run(model: Model, config: Any, request: TraceRequest, report: Callable[[Progress], None]) -> Graph:
    """The labelled graph of one run.

    Raises:
        InvalidRequest, TooLarge, Unmet: the model cannot be built or captured.
    """
    report(Progress("check"))
    with seeded(request.seed), model_errors("building the copy raised"):
        size = sum(parameter.numel() for parameter in build_weightless(lambda: model.build(config)).parameters())
        if size > _LARGEST:
            raise TooLarge(f"it would have {size:,} parameters, at most {_LARGEST:,} are made")
        module = model.build(config)
        inputs = model.example_inputs(config)
    with seeded(request.seed):
        captured = capture(
            module,
            inputs,
            training=request.training,
            unfused=request.unfused,
            progress=lambda _: report(Progress("check")),
        )
    return label(captured.graph, captured.known, module.state_dict())[0]
