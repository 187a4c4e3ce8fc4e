"""One row of the coverage table: a model, traced, labelled, held against the truth, and timed."""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from zlib_ng.zlib_ng import crc32

from fxtrace.capture import capture
from fxtrace.errors import ConfigurationError
from fxtrace.models import Registry
from fxtrace.roles import label
from tests.benchmarks.coverage import zoo
from tests.benchmarks.coverage.expected import configured_attentions
from tests.benchmarks.coverage.parts import true_parts
from tests.benchmarks.coverage.score import Score, Subject, score_attentions, score_mixtures, score_parts
from tests.benchmarks.coverage.truth import KINDS, passed_tensors, same_state, true_attentions


@dataclass
class Row:
    """What was measured of one model; times in seconds of the processor, or in words why there is none."""

    case: str
    attention: str = ""
    rung: str = ""
    nodes: int = 0
    with_shape: float = 0.0
    output_equal: bool | None = None
    notes: tuple[str, ...] = ()
    scores: dict[str, Score] = field(default_factory=dict)
    refusals: tuple[tuple[str, str], ...] = ()
    differs: str = ""
    """Where the configuration's layers × kinds are not the attentions that the model tells of; or none that is told."""
    eager: float = 0.0
    capture: float = 0.0
    torchlens: float | str = ""
    torchlens_full: float | str = ""
    torchview: float | str = ""
    skipped: str = ""
    error: str = ""


def subject(case: str, attention: str) -> Subject:
    """What `hf:<type>` (with attention `eager` or `sdpa`) or `zoo:<name>` stands for."""
    torch.manual_seed(0)
    source, _, name = case.partition(":")
    if source == "zoo":
        factory, expected = next((f, n) for f, n in zoo.MODELS.items() if f.__name__ == name)
        module, inputs = factory()
        module.eval()
        return Subject(module, inputs, (), true_parts(module, inputs), passed_tensors(module, inputs), expected)
    model = Registry().load(case)
    config = model.resolve({"attn_implementation": attention})
    module, inputs = model.build(config), model.example_inputs(config)
    twin = module
    if attention != "eager":  # a fused op tells no weights; the same model computed eagerly does
        twin = model.build(model.resolve({"attn_implementation": "eager"}))
        twin.load_state_dict(module.state_dict())
        if not _agree(module, twin, inputs):  # each attends in its own way: nothing says how this one does
            return Subject(
                module, inputs, (), true_parts(module, inputs), passed_tensors(module, inputs), {}, differs=_APART
            )
    truth = true_attentions(twin, inputs)
    told = {kind: sum(each.kind == kind for each in truth) for kind in KINDS} if truth else {}
    configured = configured_attentions(type(module), module.config)
    differs = told and configured != told
    return Subject(
        module,
        inputs,
        truth,
        true_parts(module, inputs),
        passed_tensors(module, inputs),
        told or configured,
        differs=_differs(configured, told) if differs else "",
    )


_APART = "fused, its output is not what it is eagerly: what it attends to is told by nothing, and not expected"


def _agree(module: torch.nn.Module, twin: torch.nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether two modules give nearly the same first tensor for the same inputs."""

    def output(of: torch.nn.Module) -> torch.Tensor:
        with same_state():
            return next(leaf for leaf in tree_leaves(of(**inputs)) if isinstance(leaf, torch.Tensor))

    first, second = output(module), output(twin)
    return first.shape == second.shape and torch.allclose(first, second, rtol=1e-3, atol=1e-3, equal_nan=True)


def _differs(configured: Mapping[str, int], told: Mapping[str, int]) -> str:
    return ", ".join(
        f"{kind}: {configured[kind]} by the configuration, {told[kind]} told"
        for kind in KINDS
        if configured[kind] != told[kind]
    )


def measure(case: str, attention: str, *, timed: bool = True) -> Row:
    """The row of a case; untimed, it says what was found alone."""
    it = subject(case, attention)
    with same_state():
        captured = capture(it.module, it.inputs)
    graph, _ = label(captured.graph, captured.known, it.module.state_dict())
    values = [v for node in graph.nodes for v in node.values if v.spec or v.type in ("Tensor", "Parameter")]
    row = Row(
        case,
        attention,
        captured.rung,
        len(graph.nodes),
        sum(value.spec is not None for value in values) / len(values),
        captured.output_equal,
        captured.rung_notes,
        score_attentions(graph, captured.values, it)
        | score_mixtures(graph, captured.values, it)
        | score_parts(graph, captured.values, it),
        tuple((refusal.role, refusal.reason) for refusal in graph.refusals),
        it.differs,
    )
    if timed:
        row.eager = _median(lambda: it.module(**it.inputs), rounds=9)
        row.capture = _median(lambda: capture(it.module, it.inputs), rounds=3)
        if attention != "sdpa":  # the same model but for an op or two
            row.torchview = _rival(lambda: _torchview(it))
            row.torchlens = _rival(lambda: _torchlens(it))  # last: it leaves torch's functions wrapped
            if crc32(case.encode()) % ONE_IN == 0:
                row.torchlens_full = _rival(lambda: _torchlens(it, FULL))
    return row


def _median(run: Callable[[], object], *, rounds: int) -> float:
    times = []
    with torch.no_grad():
        run()
        for _ in range(rounds):
            start = time.process_time()  # what else the machine does must not count
            run()
            times.append(time.process_time() - start)
    return statistics.median(times)


def _rival(run: Callable[[], object]) -> float | str:
    """The median time another tool takes for the same; or what it says."""
    try:
        return _median(run, rounds=1)
    except Exception as error:  # noqa: BLE001 - whatever it raises is its part of the row
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


ONE_IN = 4
"""TorchLens's full trace takes so long that one model in so many is traced by it, chosen by a checksum of its name."""

FULL: dict[str, Any] = {"save_arg_values": True, "save_code_context": True, "intervention_ready": True}
"""What TorchLens must be told to keep what a capture keeps: each call's arguments, the line of the source, and a graph
that can be run again (its `replay` refuses other traces). By default it keeps every tensor."""


def _torchlens(it: Subject, options: Mapping[str, Any] | None = None) -> object:
    import torchlens

    first = list(inspect.signature(it.module.forward).parameters)[: len(it.inputs)]
    in_order = [it.inputs[name] for name in first] if set(first) == set(it.inputs) else None
    # With keywords alone it would make up positional inputs of its own.
    named = None if in_order else dict(it.inputs)
    chosen = torchlens.options.CaptureOptions(**options) if options else None
    return torchlens.trace(it.module, in_order or [], named, capture=chosen)


def _torchview(it: Subject) -> object:
    import torchview

    return torchview.draw_graph(it.module, input_data=dict(it.inputs), depth=100, device="cpu", save_graph=False)


def attempt(case: str, attention: str) -> Row:
    """The row of a case, whatever becomes of it."""
    try:
        return measure(case, attention)
    except ConfigurationError as error:  # the architecture has no such attention
        return Row(case, attention, skipped=error.message)
    except Exception as error:  # noqa: BLE001 - a model that failed has a row, too
        return Row(case, attention, error=f"{type(error).__name__}: {error}")
