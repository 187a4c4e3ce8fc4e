"""Which configuration fields a comparison of two traces comes down to: by formulas, else by trying."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from functools import cache, cached_property

from fxtrace.diff import FieldChange, GraphDiff, common_formulas, explain_by_trial, explain_sizes, put_field
from fxtrace.dims import Formulas, integers
from fxtrace.errors import Cancelled, CaptureFailed, FormulasAbsent, FxtraceError
from fxtrace.graph import Graph
from fxtrace.service.comparing import Report, Traced, find_formulas_of


def attribute(
    found: GraphDiff,
    before: Traced,
    after: Traced,
    get_formulas: Callable[[str], Formulas],
    find_formulas: Callable[[str], Formulas],
    report: Report,
) -> GraphDiff:
    """The comparison of two traces, with what changed attributed to the fields that changed.

    A size is attributed by its formula: in the fields that changed, or where that leaves something open, in all of
    them, which takes longer to find. What has none, and what is there on one side only, is attributed by trial: the
    model is captured with one changed field at a time as the other trace has it. Of two models, a size is attributed
    where both have the same formula for it, and nothing else is.

    Args:
        found: the comparison.
        before: the first trace.
        after: the second one.
        get_formulas: gives the formulas that are kept with a trace, or raises FormulasAbsent.
        find_formulas: gives a trace's formulas, or raises an FxtraceError.
        report: called as the work goes on.
    """
    return _Attribution(found, (before, after), get_formulas, find_formulas, report).made()


class _Attribution:
    def __init__(
        self,
        found: GraphDiff,
        sides: tuple[Traced, Traced],
        get_formulas: Callable[[str], Formulas],
        find_formulas: Callable[[str], Formulas],
        report: Report,
    ) -> None:
        self._found, self._sides, self._report = found, sides, report
        self._get_formulas, self._find_formulas = get_formulas, find_formulas
        self._formulas_of_changed = cache(self._formulas_of_changed_fields)
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
        """By the formulas of one graph in what changed; by all, or those of the other one, where that is not enough.

        Which of two fields that must be equal a size is made of no formula tells: that is tried first.
        """
        for side, find in ((0, self._formulas_of_changed), (0, self._formulas), (1, self._formulas)):
            if self._found.unexplained and (formulas := find(side)):
                self._found = explain_sizes(self._found, self._sizes, formulas, side, tied=tied)

    @cached_property
    def _changed(self) -> set[str]:
        """The integers that changed, and those that sizes were multiplied or divided by; none where inputs changed.

        Of a head's size, which changed by d_model, the rest is n_heads: its value is d_model divided by the size.
        """
        before, after = self._sizes
        changed = {name for name in before.keys() & after.keys() if before[name] != after[name]}
        if not changed or any(each.name.endswith(".shape") for each in self._found.fields):
            return set()
        ratios = {
            Fraction(before[name], each.before)
            for name in changed
            for each in self._found.sizes
            if each.before and each.after and before[name] * each.after == after[name] * each.before
        }
        factors = {
            whole for ratio in ratios for whole in (ratio.numerator, ratio.denominator) if 1 in ratio.as_integer_ratio()
        }
        return changed | {name for name, size in before.items() if size in factors - {1}}

    def _formulas_of_changed_fields(self, side: int) -> Formulas | None:
        """A side's formulas in the fields that changed: those kept with its trace, where there are any."""
        if not self._changed:
            return None
        traced = self._sides[side]
        with suppress(FormulasAbsent):
            return self._get_formulas(traced.trace.id)
        with suppress(CaptureFailed):  # `_formulas` says why
            return find_formulas_of(traced, self._changed, self._report)
        return None

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
