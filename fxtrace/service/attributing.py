"""Which configuration fields a comparison of two traces comes down to: by formulas, else by trying."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

from fxtrace.diff import FieldChange, GraphDiff, common_formulas, explain_by_trial, explain_sizes, put_field
from fxtrace.dims import Formulas, integers
from fxtrace.errors import Cancelled, FxtraceError
from fxtrace.graph import Graph
from fxtrace.service.comparing import Report, Traced


def attribute(
    found: GraphDiff, before: Traced, after: Traced, find_formulas: Callable[[str], Formulas], report: Report
) -> GraphDiff:
    """The comparison of two traces, with what changed attributed to the fields that changed.

    A size is attributed by its formula. What has none, and what is there on one side only, is attributed by trial: the
    model is captured with one changed field at a time as the other trace has it. Of two models, a size is attributed
    where both have the same formula for it, and nothing else is.

    Args:
        found: the comparison.
        before: the first trace.
        after: the second one.
        find_formulas: gives a trace's formulas, or raises an FxtraceError.
        report: called as the work goes on.
    """
    return _Attribution(found, (before, after), find_formulas, report).made()


class _Attribution:
    def __init__(
        self,
        found: GraphDiff,
        sides: tuple[Traced, Traced],
        find_formulas: Callable[[str], Formulas],
        report: Report,
    ) -> None:
        self._found, self._sides, self._find_formulas, self._report = found, sides, find_formulas, report
        self._formulas = cache(self._formulas_of)  # where there are none, looking for them takes as long again
        self._notes: dict[str, None] = dict.fromkeys(found.notes)

    def made(self) -> GraphDiff:
        first, second = (side.model for side in self._sides)
        if (first.name, first.digest) == (second.name, second.digest):
            self._by_formulas(tied=False)
            self._found = explain_by_trial(self._found, self._trials())
            self._by_formulas(tied=True)
        elif self._found.sizes:
            self._by_common_formulas()
            if self._found.unexplained:
                self._notes["of two models, a size is attributed only where both have the same formula for it"] = None
        return replace(self._found, notes=tuple(self._notes))

    @property
    def _sizes(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        before, after = (dict(integers(side.trace.configuration)) for side in self._sides)
        return before, after

    def _by_formulas(self, *, tied: bool) -> None:
        """By the formulas of one graph; by those of the other one where they leave something open.

        Which of two fields that must be equal a size is made of no formula tells: that is tried first.
        """
        for side in range(2):
            if self._found.unexplained and (formulas := self._formulas(side)):
                self._found = explain_sizes(self._found, self._sizes, formulas, side, tied=tied)

    def _by_common_formulas(self) -> None:
        first = self._formulas(0)
        second = self._formulas(1) if first else None
        if first and second:
            common = common_formulas(first, second, self._found)
            self._found = explain_sizes(self._found, self._sizes, common, 0)

    def _formulas_of(self, side: int) -> Formulas | None:
        traced = self._sides[side]
        try:
            return self._find_formulas(traced.trace.id)
        except Cancelled:
            raise
        except FxtraceError as error:  # the model cannot be run here any more
            self._notes[f"no formulas of trace {traced.trace.id[:8]}: {error.message}"] = None
            return None

    def _trials(self) -> Iterator[tuple[str, Graph, Graph, int]]:
        found = self._found
        open_pairs = found.unexplained or any(pair.restructured for pair in found.pairs)
        if open_pairs or found.removed:
            yield from self._trials_of(0)
        if found.unexplained or found.added:
            yield from self._trials_of(1)

    def _trials_of(self, side: int) -> Iterator[tuple[str, Graph, Graph, int]]:
        """One side's graph with one changed field at a time as the other side has it.

        Fields that the model does not accept alone are tried together, and so are the inputs' shapes.
        """
        ours, theirs = self._sides[side], self._sides[1 - side]
        base = ours.prober(self._report).graph_of(ours.trace.configuration)
        if base is None or [node.name for node in base.nodes] != [node.name for node in ours.graph.nodes]:
            self._notes[f"not tried: '{ours.model.name}' does not give trace {ours.trace.id[:8]} any more"] = None
            return
        fields = [each for each in self._found.fields if not each.name.endswith(".shape")]
        refused: list[FieldChange] = []
        for each in fields:
            graph = self._tried(side, [each])
            if graph is None:
                refused.append(each)
            else:
                yield each.name, base, graph, side
        shapes = [each for each in self._found.fields if each.name.endswith(".shape")]
        if shapes:
            graph = ours.prober(self._report, theirs.shapes).graph_of(ours.trace.configuration)
            if graph is not None:
                yield from ((each.name, base, graph, side) for each in shapes)
        if len(refused) > 1 and (graph := self._tried(side, refused)) is not None:
            yield from ((each.name, base, graph, side) for each in refused)

    def _tried(self, side: int, fields: Sequence[FieldChange]) -> Graph | None:
        traced = self._sides[side]
        configuration = dict(traced.trace.configuration)
        for each in fields:
            configuration = put_field(configuration, each.name, (each.after, each.before)[side])
        if configuration == traced.trace.configuration:
            return None
        return traced.prober(self._report).graph_of(configuration)
