"""What changed from one trace to another. A model, and PyTorch, are wanted only where something is to be attributed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from fxtrace.api import TensorReader
from fxtrace.diff import FieldChange, GraphDiff, changed_fields, compare, explain_sizes
from fxtrace.dims import integers
from fxtrace.errors import FormulasAbsent, FxtraceError
from fxtrace.ir.trace import Json, Progress, TraceInfo
from fxtrace.service.numbers import value_changes

if TYPE_CHECKING:
    from fxtrace.service.engine import Engine, Report


def diff_traces(engine: Engine, ids: tuple[str, str], report: Report) -> GraphDiff:
    """What changed from one trace to another; see `Engine.diff_traces`."""
    before, after = (engine.get_trace(each) for each in ids)
    graphs = engine.get_graph(ids[0]), engine.get_graph(ids[1])
    report(Progress("align"))
    found = compare(*graphs, differences(before, after))
    if before.rung != after.rung:
        found = _noted(
            found, f"captured differently ({before.rung}, {after.rung}): other ops need not mean another model"
        )
    if found.fields and (found.changed or found.added or found.removed):
        found = _attributed(found, engine, (before, after), report)
    lacking = dict.fromkeys(trace.id[:8] for trace in (before, after) if not trace.values)
    if lacking:
        have = "have" if len(lacking) > 1 else "has"
        return _noted(found, f"numbers not compared: {' and '.join(lacking)} {have} shapes only")

    def opened(trace_id: str) -> Callable[[str], TensorReader]:
        return lambda tensor: engine.open_tensor(trace_id, tensor)

    values = value_changes(found, graphs, (opened(ids[0]), opened(ids[1])), report)
    return replace(found, values=tuple(values))


def _attributed(found: GraphDiff, engine: Engine, traces: tuple[TraceInfo, TraceInfo], report: Report) -> GraphDiff:
    try:
        sides = engine.traced(traces[0].id), engine.traced(traces[1].id)
    except FxtraceError as error:
        return _by_kept_formulas(found, engine, traces, error.message)
    from fxtrace.service.attributing import attribute

    return attribute(found, *sides, engine.get_formulas, partial(engine.find_formulas, progress=report), report)


def _by_kept_formulas(found: GraphDiff, engine: Engine, traces: tuple[TraceInfo, TraceInfo], problem: str) -> GraphDiff:
    """The comparison where a model cannot be built here: attributed only by formulas that were found before."""
    kept = False
    sizes = dict(integers(traces[0].configuration)), dict(integers(traces[1].configuration))
    for side, trace in enumerate(traces):
        if traces[0].model == traces[1].model and found.unexplained:
            with suppress(FormulasAbsent):
                formulas = engine.get_formulas(trace.id)
                found, kept = explain_sizes(found, sizes, formulas, side), True
    how = "attributed only by formulas kept with the traces" if kept else "not attributed"
    return _noted(found, f"{how}: {problem}")


def _noted(found: GraphDiff, note: str) -> GraphDiff:
    return replace(found, notes=(*found.notes, note))


def differences(before: TraceInfo, after: TraceInfo) -> tuple[FieldChange, ...]:
    """The configuration's fields that are not the same, and the inputs whose shapes were asked for and are not."""
    asked = {each.name for trace in (before, after) for each in trace.inputs if each.fill != "example"}
    ours, theirs = (
        {f"{each.name}.shape": list[Json](each.spec.shape) for each in trace.inputs if each.name in asked}
        for trace in (before, after)
    )
    shapes = (
        FieldChange(name, ours.get(name), theirs.get(name))
        for name in dict.fromkeys((*ours, *theirs))
        if ours.get(name) != theirs.get(name)
    )
    return (*changed_fields(before.configuration, after.configuration), *shapes)
