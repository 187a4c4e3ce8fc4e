"""The formulas of a whole graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fxtrace.dims.infer import Finding
from fxtrace.graph import show_shape
from fxtrace.ir.text import Readable, assigned, facts, table


@dataclass(frozen=True, repr=False)
class Formulas(Readable):
    """What each size of a graph is made of.

    Attributes:
        sizes: the named sizes (a configuration's integers), as the graph was made with.
        tensors: for each tensor of the graph by name, a finding for each of its dimensions.
        parameters: likewise for each parameter and buffer, by qualified name.
        structural: the named sizes that change which nodes there are, each with how.
        tied: named sizes that the graph holds only as long as they equal another, by name.
        fixed: those of which the model accepts no other value.
        untried: those that time was too short for; the formulas hold while these are as they were.
        probes: how many configurations were propagated.
        copy: where the formulas were found on a smaller copy, and then held against this graph: what the copy is.
    """

    sizes: Mapping[str, int]
    tensors: Mapping[str, tuple[Finding, ...]]
    parameters: Mapping[str, tuple[Finding, ...]]
    structural: Mapping[str, str] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    untried: tuple[str, ...] = ()
    probes: int = 0
    copy: str = ""

    def shape(self, tensor: str) -> tuple[str, ...]:
        """A tensor's dimensions, each as its formula's text; empty where no formula was confirmed.

        Raises:
            KeyError: there is no such tensor.
        """
        return tuple(str(finding.formula or "") for finding in self.tensors[tensor])

    @property
    def confirmed(self) -> tuple[int, int]:
        """How many of the tensors' dimensions have a confirmed formula, and how many there are."""
        findings = [finding for each in self.tensors.values() for finding in each]
        return sum(finding.formula is not None for finding in findings), len(findings)

    @property
    def refused(self) -> Counter[str]:
        """Why tensors' dimensions have no formula, each reason with how many; the most frequent first."""
        findings = [finding for each in self.tensors.values() for finding in each if finding.formula is None]
        return Counter(dict(Counter(finding.reason or "none was found" for finding in findings).most_common()))

    def _lines(self) -> Iterator[str]:
        confirmed, total = self.confirmed
        yield f"{confirmed:,} of {total:,} sizes have a formula, {self.probes:,} configurations tried"
        yield from facts(
            ("sizes", assigned(self.sizes, 24)),
            ("tried on", self.copy),
            ("no formula", "\n".join(f"{count:,}: {reason}" for reason, count in self.refused.items())),
            ("change the graph", "\n".join(f"{name}: {how}" for name, how in self.structural.items())),
            ("must equal", "\n".join(f"{name} = {other}" for name, other in self.tied.items())),
            ("cannot change", ", ".join(self.fixed)),
            ("not tried", ", ".join(self.untried)),
        )
        yield from table(("tensor", "made of"), ((name, self._made_of(found)) for name, found in self.tensors.items()))

    @staticmethod
    def _made_of(findings: tuple[Finding, ...]) -> str:
        return show_shape(tuple(str(finding.formula or "?") for finding in findings))
