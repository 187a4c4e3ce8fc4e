"""Whether the fields that a comparison names for a changed size are those that change it, held against real runs.

A changed size that is attributed to some fields is wrong where, on a graph that the model really gives,

* the base configuration with just these fields changed does not have the size after, or
* the changed configuration with just these fields put back does not have the size before, or
* one of several named fields has no effect: neither changing it alone in the one configuration nor putting it back
  alone in the other changes the size.

What a model does not accept as a configuration cannot be tried; a size of which nothing can be counts as untested.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from fxtrace.diff import GraphDiff, SizeChange, TensorChange, align
from fxtrace.dims import integers
from fxtrace.errors import FxtraceError
from fxtrace.graph import Graph
from fxtrace.ir.trace import Json, TraceRequest
from fxtrace.service.engine import Engine
from fxtrace.trials import candidates

Changes = Mapping[str, Json]


@dataclass
class Score:
    """How many changes were compared, and what came of their sizes and lone nodes."""

    changes: int = 0
    explained: int = 0
    unexplained: int = 0
    wrong: int = 0
    untested: int = 0
    alone: int = 0
    alone_explained: int = 0
    examples: list[str] = field(default_factory=list)

    def row(self, name: str) -> str:
        return (
            f"| {name} | {self.changes} | {self.explained + self.unexplained} | {self.explained} | "
            f"{self.unexplained} | "
            f"{self.wrong} | {self.untested} | {self.alone_explained} of {self.alone} |"
        )


HEAD = (
    "| changes | compared | sizes changed | explained | unexplained | wrong | of them untested | "
    "added or removed nodes explained |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
)


class Subject:
    """A model with a base configuration, and its graphs under others."""

    def __init__(self, engine: Engine, model: str) -> None:
        self.engine, self.model = engine, model
        self.trace = engine.create_trace(TraceRequest(model))
        self.base = dict(integers(self.trace.configuration))
        self._ids: dict[tuple[tuple[str, Json], ...], str | None] = {}

    def id(self, changes: Changes) -> str | None:
        """The trace under a configuration; None where the model does not take it."""
        key = tuple(sorted(changes.items(), key=lambda item: item[0]))
        if key not in self._ids:
            self._ids[key] = None
            try:
                made = self.engine.create_trace(TraceRequest(self.model, changes))
            except FxtraceError:
                return None
            if all(made.configuration.get(name) == value for name, value in changes.items()):
                self._ids[key] = made.id
        return self._ids[key]

    def graph(self, changes: Changes) -> Graph | None:
        found = self.id(changes)
        return self.engine.get_graph(found) if found else None

    def resolved(self, changes: Changes) -> Changes:
        """These changes, and those of fields that follow them."""
        found = self.id(changes)
        now = dict(integers(self.engine.get_trace(found).configuration)) if found else {}
        return {
            name: now[name]
            for name in now.keys() & self.base.keys()
            if name.isidentifier() and now[name] != self.base[name]
        } or changes

    def diff(self, changes: Changes) -> GraphDiff | None:
        found = self.id(changes)
        return self.engine.diff_traces(self.trace.id, found) if found else None

    @cached_property
    def fields(self) -> list[str]:
        """The integer fields at the top of the configuration that have an effect on the graph."""
        found = self.engine.find_formulas(self.trace.id)
        used = {name for each in found.tensors.values() for one in each for name in one.depends_on}
        return [name for name in self.base if name.isidentifier() and (name in used or name in found.structural)]

    def single(self) -> Iterator[Changes]:
        """One change of each field that the model takes alone."""
        for name in self.fields:
            values = ({name: value} for value in candidates(self.base[name])[:8])
            yield from [change for change in values if self.id(change)][:1]

    def several(self, count: int, seed: int = 0) -> Iterator[Changes]:
        """Random changes of two or three fields that the model takes."""
        chance = random.Random(seed)
        seen: set[tuple[tuple[str, int], ...]] = set()
        for _ in range(20 * count):
            if len(seen) == count or len(self.fields) < 2:
                return
            names = chance.sample(self.fields, k=min(len(self.fields), chance.choice((2, 3))))
            change = {name: chance.choice(candidates(self.base[name])[:8]) for name in names}
            key = tuple(sorted(change.items()))
            if key not in seen and self.id(change):
                seen.add(key)
                yield change


def score(subject: Subject, changes: Sequence[Changes]) -> Score:
    """What the comparisons of the base with these configurations say, held against real runs."""
    total = Score()
    for change in changes:
        found = subject.diff(change)
        if found is None:
            continue
        total.changes += 1
        alone = (*found.added, *found.removed)
        total.alone += len(alone)
        total.alone_explained += sum(bool(each.causes) for each in alone)
        total.unexplained += found.unexplained
        total.explained += len(found.sizes) - found.unexplained
        truth = _Truth(subject, subject.resolved(change))
        for tensor in (tensor for pair in found.pairs for tensor in pair.tensors):
            for size in tensor.sizes:
                if size.causes:
                    verdict = truth.verdict(tensor, size)
                    total.wrong += verdict is False
                    total.untested += verdict is None
                else:
                    verdict = False
                if verdict is False:
                    total.examples.append(f"{subject.model} {dict(change)} {tensor.before.name} {size}")
    return total


class _Truth:
    def __init__(self, subject: Subject, change: Changes) -> None:
        self._subject, self._change = subject, change
        self._twins: dict[tuple[bool, frozenset[str]], tuple[Graph, Mapping[str, str]] | None] = {}

    def verdict(self, tensor: TensorChange, size: SizeChange) -> bool | None:
        """Whether the named fields are the reason; None where no mixture could be run."""
        named = frozenset(size.causes)
        together = [
            None if seen is None else seen == wanted
            for seen, wanted in (
                (self._seen(False, named, tensor, size), size.after),
                (self._seen(True, named, tensor, size), size.before),
            )
        ]
        alone = [self._matters(name, tensor, size) for name in named] if len(named) > 1 else []
        verdicts = [each for each in (*together, *alone) if each is not None]
        return all(verdicts) if verdicts else None

    def _matters(self, name: str, tensor: TensorChange, size: SizeChange) -> bool | None:
        forth = self._seen(False, frozenset({name}), tensor, size)
        back = self._seen(True, frozenset({name}), tensor, size)
        if forth not in (None, size.before) or back not in (None, size.after):
            return True
        return None if forth is None or back is None else False

    def _seen(self, back: bool, names: frozenset[str], tensor: TensorChange, size: SizeChange) -> int | None:
        """The size where these fields alone are changed in the base, or put back in the changed configuration."""
        if (back, names) not in self._twins:
            self._twins[back, names] = self._run(back, names)
        run = self._twins[back, names]
        if run is None:
            return None
        graph, twins = run
        node, _, leaf = (tensor.after if back else tensor.before).name.partition(":")
        if node not in twins:
            return None
        specs = dict(graph.node(twins[node]).tensors)
        spec = specs.get(f"{twins[node]}:{leaf}" if leaf else twins[node])
        return spec.shape[size.dimension] if spec and size.dimension < len(spec.shape) else None

    def _run(self, back: bool, names: frozenset[str]) -> tuple[Graph, Mapping[str, str]] | None:
        # What is not changed is said, too: else it may follow what is.
        mixed = {
            name: value if (name in names) != back else self._subject.base[name] for name, value in self._change.items()
        }
        start = self._subject.graph(self._change if back else {})
        graph = self._subject.graph(mixed)
        if start is None or graph is None:
            return None
        return graph, {pair.before: pair.after for pair in align(start, graph)}
