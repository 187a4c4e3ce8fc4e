"""The graph that a capture would give, in a fraction of its time: no numbers are kept, and nothing is checked."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from fxtrace.capture.attention import StepByStep
from fxtrace.capture.capture import capture, in_turn
from fxtrace.capture.convert import to_graph
from fxtrace.capture.fakes import Fakes, with_fakes
from fxtrace.capture.recorder import Recorder
from fxtrace.capture.run import copies, map_tensors
from fxtrace.capture.symbolic import trace_nodes
from fxtrace.graph import Graph
from fxtrace.ir.trace import Rung
from fxtrace.shapes import ShapeInterpreter


def sketch(
    module: nn.Module,
    inputs: Mapping[str, Any],
    *,
    rung: Rung,
    values: bool = True,
    training: bool = False,
    symbolic: Mapping[str, tuple[str, ...]] | None = None,
    unfused: bool = False,
) -> Graph:
    """The graph of `capture` with the same arguments, for comparing graphs of many configurations.

    Raises:
        Exception: whatever the module or the rung raises.
    """
    if rung == "export":
        return capture(
            module, inputs, rung=rung, values=False, training=training, symbolic=symbolic, unfused=unfused
        ).graph
    inside: AbstractContextManager[object] = StepByStep() if unfused else nullcontext()
    mode: AbstractContextManager[object] = nullcontext()
    given = copies(inputs)
    if not values:
        mode = fake = Fakes()
        given = with_fakes(module, map_tensors(fake.from_tensor, given))  # the module may be without its weights
    with in_turn(module):
        module.train(training)
        if rung == "record":
            recorder = Recorder(module, None, lambda _: None, fake=not values)
            with mode:
                recorder.run(given, inside)
            return to_graph(module, recorder.graph, recorder.values)
        with inside:
            nodes = trace_nodes(module, inputs)
        interpreter = ShapeInterpreter(module, graph=nodes)
        with mode, torch.no_grad():
            interpreter.run(*(given[str(node.target)] for node in nodes.find_nodes(op="placeholder")))
        return to_graph(module, nodes, interpreter.values)
