"""A trace with the model that it was made of, and the formulas of the model's sizes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from fxtrace.dims import Formulas
from fxtrace.graph import Graph, TensorSpec
from fxtrace.ir.trace import Progress, TraceInfo
from fxtrace.models import Model
from fxtrace.probe import Prober

Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Traced:
    """A trace, its graph, and the model it was made of."""

    trace: TraceInfo
    graph: Graph
    model: Model

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs that are not the model's own examples, by name."""
        return {each.name: each.spec.shape for each in self.trace.inputs if each.fill != "example"}

    def prober(
        self,
        report: Report,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        names: Collection[str] | None = None,
    ) -> Prober:
        """Tries configurations around the trace's own, perhaps with inputs of other shapes, or only of these fields."""
        trace = self.trace
        return Prober(
            self.model,
            self.model.resolve(trace.configuration),
            shapes=self.shapes if shapes is None else shapes,
            rung=trace.rung,
            values=trace.values,
            training=trace.training,
            weightless=trace.weightless,
            symbolic={each.name: _symbols(each.spec) for each in trace.inputs if each.spec.symbolic},
            names=names,
            inputs=names is None,
            report=report,
        )


def _symbols(spec: TensorSpec) -> tuple[str, ...]:
    """The names of an input's sizes, empty for those that are numbers."""
    return tuple(size if size.isidentifier() else "" for size in spec.symbolic)


def find_formulas_of(traced: Traced, fields: Collection[str], report: Report = lambda _: None) -> Formulas:
    """The formulas of a trace's sizes in these configuration fields, the others staying as they are.

    That takes a fraction of the configurations that all formulas take.

    Raises:
        CaptureFailed: the model does not give that graph any more.
    """
    return traced.prober(report, names=fields).formulas(traced.graph)


def find_formulas(traced: Traced, report: Report = lambda _: None) -> Formulas:
    """The formula of each size of a trace's graph.

    Raises:
        CaptureFailed: the model does not give that graph any more.
    """
    return traced.prober(report).formulas(traced.graph)
