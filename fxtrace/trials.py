"""Trying configurations around one, a named size at a time and many together, and what that shows."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

from fxtrace.dims import Probe
from fxtrace.graph import Graph
from fxtrace.ir.trace import Progress

FITTED, HELD_OUT = 10, 6
"""How many configurations with several sizes changed are read for formulas, and how many only confirm them."""
_ALONE_SHARE = 0.7
"""Of the seconds, what trying fields one by one may take; the rest is for trying them together."""
_TRIES = 10
_TINY = (2, 3, 1, 4, 6, 8)
_ALONE = 3
_STRUCTURAL = 2
"""After so many values of a field that give other nodes, and none that gives the same ones, only the nearest are tried;
of two fields together, after half as many."""
_GROUPED = 16
"""Where there are more fields than this, those without effect are first looked for many at a time."""

Inputs = tuple[tuple[str, tuple[int, ...]], ...]
"""The shapes of a model's inputs, by name."""
Shown = Literal["nothing", "other nodes", "no size", "sizes"]
"""What a configuration shows: that the model does not accept it, or what it changes."""


class Trials:
    """The configurations that were tried around one, and what they showed.

    Attributes:
        probes, rows: those that have the first one's nodes, and what the sizes came to.
        inputs: the shapes of all configurations' inputs, those with other nodes, too.
        values: for each named size that changes sizes, the values that it was given.
        structural: those that change which nodes there are, each with how.
        fixed: those of which no other value was accepted.
        tied: those that were changed only along with another, by name.
        untried: those that time was too short for.
    """

    def __init__(
        self,
        propagate: Callable[[Mapping[str, int]], Seen | str],
        base: dict[str, int],
        first: Seen,
        seconds: float,
        report: Callable[[Progress], None],
    ) -> None:
        self._propagate, self._base, self._first, self._report = propagate, base, first, report
        self.probes, self.rows, self.inputs = [Probe(base)], [first.sizes], [first.inputs]
        self.values: dict[str, list[int]] = {}
        self.structural: dict[str, str] = {}
        self.fixed: list[str] = []
        self.tied: dict[str, str] = {}
        self.untried: list[str] = []
        self._start, self._seconds = time.thread_time(), seconds

    def _is_late(self, share: float = 1) -> bool:
        return time.thread_time() - self._start > share * self._seconds

    def each(self, names: Sequence[str]) -> None:
        """Tries each of these named sizes alone."""
        left = names if len(names) <= _GROUPED else list(self._with_effect(names))
        for number, name in enumerate(left):
            self._report(Progress("probe", number, len(left) + 1))
            if self._is_late(_ALONE_SHARE):
                self.untried += left[number:]
                break
            if not self._alone(name):
                self.fixed.append(name)

    def pairs(self) -> None:
        """Tries two equal sizes together that hold only together: as many key heads as query heads."""
        stuck = [name for name in self._base if name not in self.values and name in {*self.structural, *self.fixed}]
        for name, other in combinations(stuck, 2):
            if self._is_late(_ALONE_SHARE):
                return
            if self._base[name] == self._base[other] and not {name, other} & {*self.tied, *self.values}:
                self._alone(name, other)
                if name in self.values:
                    self.tied[other] = name

    def together(self, chance: random.Random, fitted: int = FITTED) -> int:
        """Tries several at once; how many such configurations were accepted.

        Args:
            chance: chooses their values.
            fitted: how many are wanted for formulas to be read off, besides those that only confirm them.
        """
        accepted = 0
        for _ in range(_TRIES * (fitted + HELD_OUT)):
            if accepted == fitted + HELD_OUT or self._is_late():
                break
            chosen = {name: chance.choice(each) for name, each in self.values.items()}
            for _ in range(4):
                tied = {name: chosen[other] for name, other in self.tied.items() if other in chosen}
                sizes = {**self._base, **chosen, **tied}
                seen = self._propagate(sizes)
                if not isinstance(seen, str) and seen.nodes == self._first.nodes:
                    self._keep(Probe(sizes), seen)
                    accepted += 1
                    break
                # Fewer at once: some fields hang together.
                kept = chance.sample(sorted(chosen), k=len(chosen) // 2)
                chosen = {name: chosen[name] for name in kept}
                if len(chosen) < 2:
                    break
        return accepted

    def _with_effect(self, names: Sequence[str]) -> Iterator[str]:
        """Those without which the model gives the same: many can be changed at once and nothing happens."""
        if self._is_late(_ALONE_SHARE):
            yield from names
        elif len(names) == 1:
            yield names[0]
        elif not all(self._is_inert(names, value) for value in (_more, _less)):
            middle = len(names) // 2
            yield from self._with_effect(names[:middle])
            yield from self._with_effect(names[middle:])

    def _is_inert(self, names: Sequence[str], change: Callable[[int], int]) -> bool:
        self._report(Progress("probe"))
        seen = self._propagate({**self._base, **{name: change(self._base[name]) for name in names}})
        return seen == self._first

    def _alone(self, *names: str) -> bool:
        """Tries values of one named size, or one value for several; whether the model accepted any."""
        accepted, known, structural = False, self.values.get(names[0], ()), 0
        values = list(candidates(self._base[names[0]]))
        while values:
            shown = self._try(names, values.pop(0))
            known = self.values.get(names[0], ())
            accepted |= shown != "nothing"
            structural += shown == "other nodes"
            if shown == "no size" or len(known) > _ALONE:
                break
            if structural * len(names) >= _STRUCTURAL and not known:
                # Where a slice begins to cut, nodes change: what is near may have the same ones.
                near = {self._base[names[0]] + 1, self._base[names[0]] - 1}
                values = [value for value in values if value in near]
        for value in _TINY if known else ():  # a size may be cut off at a small number
            if value < min(known) and self._try(names, value) == "sizes":
                break
        return accepted

    def _try(self, names: tuple[str, ...], value: int) -> Shown:
        """Tries one value for some named sizes, and keeps what it shows."""
        sizes = {**self._base, **dict.fromkeys(names, value)}
        name, seen = names[0], self._propagate(sizes)
        if isinstance(seen, str):
            return "nothing"
        self.inputs.append(seen.inputs)
        if seen.nodes != self._first.nodes:
            self.structural.setdefault(name, _difference(self._first, seen, self._base[name], value))
            return "other nodes"
        if seen.sizes == self._first.sizes:
            return "no size"
        self._keep(Probe(sizes, name), seen)
        self.values.setdefault(name, [self._base[name]]).append(value)
        return "sizes"

    def _keep(self, probe: Probe, seen: Seen) -> None:
        self.probes.append(probe)
        self.rows.append(seen.sizes)


def _more(value: int) -> int:
    return value + 1


def _less(value: int) -> int:
    return max(1, value - 1)


@dataclass(frozen=True)
class Seen:
    """A propagated graph, as far as probes compare it."""

    nodes: tuple[object, ...]
    tensors: tuple[tuple[str, int], ...]
    parameters: tuple[tuple[str, int], ...]
    sizes: tuple[int, ...]
    inputs: Inputs = field(default=(), compare=False)

    @classmethod
    def of(cls, graph: Graph, inputs: Inputs = ()) -> Seen:
        """Of a graph, made of inputs of these shapes."""
        tensors = list(graph.tensors())
        parameters = list(graph.parameters.values())
        return cls(
            tuple((node.name, node.op, node.target, node.inputs) for node in graph.nodes)
            + tuple((name, len(spec.shape)) for name, spec in tensors)
            + tuple((each.name, len(each.shape)) for each in parameters),
            tuple((name, len(spec.shape)) for name, spec in tensors),
            tuple((each.name, len(each.shape)) for each in parameters),
            tuple(size for _, spec in tensors for size in spec.shape)
            + tuple(size for each in parameters for size in each.shape),
            inputs,
        )


def _difference(first: Seen, other: Seen, before: int, after: int) -> str:
    return f"{before} → {after}: {len(first.tensors)} → {len(other.tensors)} tensors"


def candidates(value: int) -> tuple[int, ...]:
    """Other values for an integer, those first that tell most: primes, then multiples and parts of its own."""
    more, most, less = _prime_above(2 * value), _prime_above(5 * value), _prime_above(value // 2)
    multiples = (3 * value, 5 * value, 2 * value, 7 * value, value // 2, value // 4)
    near = (value + 1, value - 1, value + 2)
    # A large size mostly has to be a multiple of something, a small one mostly need not be.
    order = (more, most, less, *multiples, *near) if value < 16 else (more, *multiples, most, less, *near)
    return tuple(dict.fromkeys(each for each in order if each > 0 and each != value))


def _prime_above(number: int) -> int:
    number = max(2, number + 1)
    while any(number % divisor == 0 for divisor in range(2, int(number**0.5) + 1)):
        number += 1
    return number
