"""Formulas of a model's sizes, and what changed from one trace to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fxtrace.diff import GraphDiff, align, changed_fields, compare
from fxtrace.dims import Formulas
from fxtrace.errors import FxtraceError
from fxtrace.graph import Graph, TensorSpec
from fxtrace.models import Model
from fxtrace.probe import Prober, integers, replaced
from fxtrace.trace import Json, Progress, Trace

Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Traced:
    """A trace, its graph, and the model it was made of."""

    trace: Trace
    graph: Graph
    model: Model

    def prober(self, report: Report, configuration: Mapping[str, Json] | None = None) -> Prober:
        """Tries configurations around the trace's own, or around another one."""
        trace = self.trace
        return Prober(
            self.model,
            self.model.resolve(trace.configuration if configuration is None else configuration),
            shapes={each.name: each.spec.shape for each in trace.inputs if each.fill != "example"},
            rung=trace.rung,
            values=trace.values,
            training=trace.training,
            weightless=trace.weightless,
            symbolic={each.name: _symbols(each.spec) for each in trace.inputs if each.spec.symbolic},
            report=report,
        )


def _symbols(spec: TensorSpec) -> tuple[str, ...]:
    """The names of an input's sizes, empty for those that are numbers."""
    return tuple(size if size.isidentifier() else "" for size in spec.symbolic)


def find_formulas(traced: Traced, report: Report = lambda _: None) -> Formulas:
    """The formula of each size of a trace's graph.

    Raises:
        CaptureFailed: the model does not give that graph any more.
    """
    return traced.prober(report).formulas(traced.graph)


def diff(before: Traced, after: Traced, report: Report = lambda _: None) -> GraphDiff:
    """What changed from one trace to another, and which configuration fields explain it.

    Sizes are explained where both traces are of one model; traces of two models are compared by role and structure.
    """
    fields = changed_fields(before.trace.configuration, after.trace.configuration)
    same_model = before.model.name == after.model.name and before.model.digest == after.model.digest
    if not (same_model and fields):
        return compare(before.graph, after.graph, fields)
    formulas = tuple(_formulas_or_none(each, report) for each in (before, after))
    return compare(
        before.graph,
        after.graph,
        fields,
        (formulas[0], formulas[1]),
        removed=_causes(before, after, report),
        added=_causes(after, before, report),
    )


def _formulas_or_none(traced: Traced, report: Report) -> Formulas | None:
    try:
        return find_formulas(traced, report)
    except FxtraceError:  # the model cannot be run here any more: its sizes stay unexplained
        return None


def _causes(having: Traced, lacking: Traced, report: Report) -> dict[str, tuple[str, ...]]:
    """For the nodes that only one of two graphs has: the fields with which alone the model loses them, too.

    Each changed field is put to the other trace's value, the rest left as they are.
    """
    paired = {pair.before for pair in align(having.graph, lacking.graph)}
    alone = [node.name for node in having.graph.nodes if node.name not in paired]
    if not alone:
        return {}
    ours, theirs = (dict(integers(each.trace.configuration)) for each in (having, lacking))
    causes: dict[str, list[str]] = {name: [] for name in alone}
    for field in (name for name in ours if ours[name] != theirs.get(name, ours[name])):
        changed = replaced(having.trace.configuration, {field: theirs[field]})
        graph = having.prober(report).graph_of(changed)
        if graph is not None:
            kept = {pair.before for pair in align(having.graph, graph)}
            for name in alone:
                if name not in kept:
                    causes[name].append(field)
    return {name: tuple(fields) for name, fields in causes.items()}
