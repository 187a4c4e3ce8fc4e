"""Formulas of a graph that takes long to propagate: found on a small copy of its model, and confirmed on the graph.

What counts in the end is the whole: a formula of the copy must give the graph's own size, and its size in every other
configuration in which the whole model is propagated, with each named size as the copy has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fxtrace.alike import Findings, alike, transferred, transferred_parameters
from fxtrace.dims import Finding, Formulas, Probe
from fxtrace.graph import Graph
from fxtrace.models.shrink import shrunk_to
from fxtrace.trials import Seen

if TYPE_CHECKING:
    from fxtrace.probe import Prober

COPY_SHARE = 0.7
"""Of the seconds, what probing the copy may take; the rest is for confirming on the whole."""
_WHOLE = 3
"""In how many other configurations the whole model is propagated."""
_LEAST = 2
"""The copy's formulas count only where they can be held against so many configurations of the whole, its own among
them."""


@dataclass(frozen=True)
class Likeness:
    """A small copy of a graph's model, and which of its tensors are made as which of the graph's.

    Attributes:
        prober: tries configurations around the copy's.
        graph: the copy's.
        groups: see `fxtrace.alike.alike`.
    """

    prober: Prober
    graph: Graph
    groups: Mapping[str, Sequence[Sequence[str]]]

    @property
    def share(self) -> float:
        """Of how many of the graph's tensors there is one alike."""
        return sum(map(bool, self.groups.values())) / max(1, len(self.groups))


def find_copy(graph: Graph, probers: Iterator[Prober]) -> Likeness | None:
    """Of small copies the first that has all that the graph has, or else the one that has most of it.

    None where no copy has fewer nodes: trying configurations of it would take no less time.
    """
    best: Likeness | None = None
    for prober in probers:
        copy = prober.sketched()
        if copy is None or len(copy.nodes) >= len(graph.nodes):
            continue
        found = Likeness(prober, copy, alike(copy, graph))
        if best is None or found.share > best.share:
            best = found
        if best.share == 1:
            break
    return best


def transfer(
    whole: Prober, graph: Graph, copy: Likeness, found: Formulas, held_out: Sequence[Probe]
) -> Formulas | None:
    """The copy's formulas, of the graph's sizes; less those that are not the whole's.

    None where no other configuration of the whole gives the graph's nodes.

    Args:
        whole: tries configurations of the whole model.
        graph: the whole's.
        copy: the copy.
        found: its formulas.
        held_out: configurations of it that had no part in finding them.
    """
    base = whole.named_sizes(graph)
    wanted = Seen.of(graph)
    tried = [(base, wanted.sizes)]
    untried = tuple(name for name in base if name not in found.sizes or name in found.untried)
    depth = found.structural.keys() - found.tied.keys()
    # A field of which the copy takes no other value may hang on how deep it is, or on how wide.
    kept = [depth | set(found.fixed), depth]
    for probe in held_out:
        if len(tried) > _WHOLE or whole.is_late:
            break
        for names in kept:
            sizes = {**base, **{name: size for name, size in probe.sizes.items() if name in base.keys() - names}}
            seen = whole.propagate(sizes)
            if not isinstance(seen, str) and seen.nodes == wanted.nodes:
                tried.append((sizes, seen.sizes))
                kept = [names]
                break
    if len(tried) < _LEAST:
        return None
    columns = zip(*(sizes for _, sizes in tried), strict=True)
    named = [sizes for sizes, _ in tried]

    def confirmed(guesses: Mapping[str, Findings]) -> dict[str, Findings]:
        return {
            name: tuple(_confirmed(each, named, next(columns), untried) for each in findings)
            for name, findings in guesses.items()
        }

    return Formulas(
        base,
        confirmed(transferred(found, copy.groups, graph)),
        confirmed(transferred_parameters(found, graph)),
        structural={name: how for name, how in found.structural.items() if name in base},
        tied={name: other for name, other in found.tied.items() if {name, other} <= base.keys()},
        fixed=tuple(name for name in found.fixed if name in base),
        untried=untried,
        probes=found.probes + len(tried) - 1,
        copy=shrunk_to(whole.fields, copy.prober.fields),
    )


def _confirmed(
    finding: Finding, named: Sequence[Mapping[str, int]], sizes: Sequence[int], untried: Sequence[str]
) -> Finding:
    """The finding, less its formula where that is not the size in each of these configurations, the first its own."""

    def refused(reason: str) -> Finding:
        return replace(finding, formula=None, confirmations=0, reason=reason)

    formula = finding.formula
    if formula is None:
        return finding if finding.reason else refused("none was found on the smaller copy")
    if untried and not formula.names:
        return refused("time was too short to try every field")
    if formula.value(named[0]) != sizes[0]:
        return refused(f"{formula} of the smaller copy is not the size here")
    if any(formula.value(each) != size for each, size in zip(named[1:], sizes[1:], strict=True)):
        return refused(f"{formula} of the smaller copy is not the size in another configuration of the whole")
    return replace(finding, confirmations=finding.confirmations + len(sizes))
