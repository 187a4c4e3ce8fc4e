"""What it costs to keep every value: the reference's graph run with specs and values, and without."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxtrace.capture.symbolic import trace_symbolically
from fxtrace.ir.trace import TraceRequest
from fxtrace.models import Registry
from fxtrace.service.engine import Engine
from fxtrace.shapes import ShapeInterpreter
from tests.benchmarks.measure import Row, compare, temporary_folder


def rows() -> list[Row]:
    """Capture ÷ a plain `Interpreter` run of the same graph."""
    reference = Registry.installed().get("reference")
    config = reference.resolve({})
    inputs = reference.example_inputs(config)
    graph = trace_symbolically(reference.build(config).eval(), inputs)
    given = tuple(inputs.values())

    def plain() -> None:
        fx.Interpreter(graph).run(*given)

    def capture() -> None:
        kept: dict[str, Tensor] = {}
        ShapeInterpreter(graph, lambda name, tensor: kept.__setitem__(name, tensor.clone())).run(*given)

    with torch.no_grad():
        run = compare(capture, plain, rounds=200)
    with temporary_folder() as folder, Engine.open(folder) as engine:
        seeds = iter(range(10**6))
        whole = compare(lambda: engine.create_trace(TraceRequest("reference", seed=next(seeds))), plain, rounds=30)
    return [
        Row("specs and every value of the reference ÷ plain `Interpreter` run", run, "≤ 2"),
        Row("a whole CreateTrace (build, run, trace, label, check, store, fsync) ÷ the same", whole, "—"),
    ]
