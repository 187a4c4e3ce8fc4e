"""Which named sizes make up each size of a model's tensors: the model is propagated under many configurations.

Every integer of the configuration, and every size of an input that no field decides, is changed alone and together
with others, within what the model accepts; `fxtrace.dims.find_formulas` reads the formulas off what the sizes came to.
Shapes are propagated on fake tensors; a small model is simply run, which is five times as fast.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fxtrace.capture import capture, sketch
from fxtrace.dims import Formulas, Probe, find_formulas
from fxtrace.errors import CaptureFailed, FxtraceError
from fxtrace.graph import Graph
from fxtrace.models import Model
from fxtrace.roles import label
from fxtrace.trace import Json, Progress, Rung

FITTED, HELD_OUT = 10, 6
"""How many configurations with several sizes changed are read for formulas, and how many only confirm them."""
SECONDS = 120.0
"""How long a model is probed, in seconds of computing, where nothing else is said."""
_SMALL = 20_000_000
"""Up to so many elements of parameters, running a model is quicker than propagating its shapes on fake tensors."""
_ALONE_SHARE = 0.7
"""Of the seconds, what trying fields one by one may take; the rest is for trying them together."""
_TRIES = 10
_TINY = (2, 3, 1, 4, 6, 8)
_ALONE = 3
_STRUCTURAL = 2
"""After so many values of a field that give other nodes, and none that gives the same ones, no more are tried; of two
fields together, after half as many."""
_GROUPED = 16
"""Where there are more fields than this, those without effect are first looked for many at a time."""

Shown = Literal["nothing", "other nodes", "no size", "sizes"]
"""What a configuration shows: that the model does not accept it, or what it changes."""


class Prober:
    """Tries configurations of a model around one of its own.

    Args:
        model: the model.
        config: a configuration of it, as `Model.resolve` gives it.
        shapes: shapes of inputs that are not the model's own examples, by name.
        rung: the capture rung whose nodes are to get formulas.
        values: run the model; otherwise shapes are propagated on fake tensors. A large model is never run.
        training: whether in training mode.
        seconds: of computing, after which no more is tried: what is not confirmed by then stays a number.
        report: called as the work goes on; what it raises stops the work.
    """

    def __init__(
        self,
        model: Model,
        config: Any,
        *,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        rung: Rung = "record",
        values: bool = True,
        training: bool = False,
        seconds: float = SECONDS,
        report: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self._model, self._rung, self._training, self._report = model, rung, training, report
        self._fields = model.fields(config)
        self._shapes = dict(shapes or {})
        self._may_run = values and rung != "export"
        self._seconds = seconds

    def formulas(self, graph: Graph | None = None, seed: int = 0) -> Formulas:
        """Probes the model, and finds the formula of each size.

        Args:
            graph: the graph that the configuration itself is to give, where it is known.
            seed: of the choice of configurations.

        Raises:
            CaptureFailed: the model cannot be propagated under the configuration itself, or gives another graph.
        """
        base = dict(integers(self._fields))
        with _one_thread():
            first = self._propagate(base)
        if isinstance(first, str):
            raise CaptureFailed(first)
        if graph is not None and first != _Seen.of(graph):
            raise CaptureFailed(
                f"'{self._model.name}' does not give this graph any more: the model or what it stands on has changed "
                "since; trace it again",
                model=self._model.name,
            )
        tried = _Tried(self._propagate, base, first, self._seconds, self._report)
        with _one_thread():
            tried.each()
            tried.pairs()
            together = tried.together(random.Random(seed))
        self._report(Progress("solve"))
        found = iter(find_formulas(tried.probes, np.array(tried.rows, np.int64), min(HELD_OUT, together)))
        return Formulas(
            base,
            {name: tuple(next(found) for _ in range(rank)) for name, rank in first.tensors},
            {name: tuple(next(found) for _ in range(rank)) for name, rank in first.parameters},
            structural={name: how for name, how in tried.structural.items() if name not in tried.values},
            tied=tried.tied,
            fixed=tuple(tried.fixed),
            untried=tuple(tried.untried),
            probes=len(tried.probes),
        )

    def graph_of(self, configuration: Mapping[str, Json]) -> Graph | None:
        """The labelled graph of another configuration; None where the model does not accept it."""
        made = self._made(configuration, {})
        if isinstance(made, str):
            return None
        module, inputs, values = made
        try:
            captured = capture(module, inputs, rung=self._rung, values=values, training=self._training)
        except FxtraceError:
            return None
        return label(captured.graph, captured.known)[0]

    def _propagate(self, sizes: Mapping[str, int]) -> _Seen | str:
        """What the model's sizes come to; or why it does not accept the configuration."""
        made = self._made(replaced(self._fields, sizes), sizes)
        if isinstance(made, str):
            return made
        module, inputs, values = made
        try:
            return _Seen.of(sketch(module, inputs, rung=self._rung, values=values, training=self._training))
        except Exception as error:  # noqa: BLE001 - whatever a model raises at sizes it does not take
            return _said(error)

    def _made(
        self, configuration: Mapping[str, Json], sizes: Mapping[str, int]
    ) -> tuple[nn.Module, dict[str, Tensor], bool] | str:
        """A module, its inputs and whether to run it, where the model keeps these sizes; or why it does not."""
        self._report(Progress("probe"))
        try:
            config = self._model.resolve(configuration)
            taken = dict(integers(self._model.fields(config)))
            if any(taken.get(name) != value for name, value in sizes.items()):
                return "the model puts another value in its place"
            with torch.random.fork_rng(devices=()):
                module = self._model.build(config)
                inputs: dict[str, Tensor] = dict(self._model.example_inputs(config))
            for name, shape in self._shapes.items():
                inputs[name] = inputs[name].new_ones(shape)
        except Exception as error:  # noqa: BLE001 - likewise
            return _said(error)
        small = sum(each.numel() for each in module.parameters()) <= _SMALL
        return module, inputs, self._may_run and small


@contextmanager
def _one_thread() -> Iterator[None]:
    """Within, PyTorch computes in one thread: small ops on several wait for each other, on a busy machine for long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _said(error: Exception) -> str:
    return error.message if isinstance(error, FxtraceError) else f"{type(error).__name__}: {error}"


class _Tried:
    """The configurations that were tried around one, and what they showed.

    Attributes:
        probes, rows: those that have the first one's nodes, and what the sizes came to.
        values: for each named size that changes sizes, the values that it was given.
        structural: those that change which nodes there are, each with how.
        fixed: those of which no other value was accepted.
        tied: those that were changed only along with another, by name.
        untried: those that time was too short for.
    """

    def __init__(
        self,
        propagate: Callable[[Mapping[str, int]], _Seen | str],
        base: dict[str, int],
        first: _Seen,
        seconds: float,
        report: Callable[[Progress], None],
    ) -> None:
        self._propagate, self._base, self._first, self._report = propagate, base, first, report
        self.probes, self.rows = [Probe(base)], [first.sizes]
        self.values: dict[str, list[int]] = {}
        self.structural: dict[str, str] = {}
        self.fixed: list[str] = []
        self.tied: dict[str, str] = {}
        self.untried: list[str] = []
        self._start, self._seconds = time.thread_time(), seconds

    def _is_late(self, share: float = 1) -> bool:
        return time.thread_time() - self._start > share * self._seconds

    def each(self) -> None:
        """Tries every named size alone."""
        names = list(self._base)
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

    def together(self, chance: random.Random) -> int:
        """Tries several at once; how many such configurations were accepted."""
        accepted = 0
        for _ in range(_TRIES * (FITTED + HELD_OUT)):
            if accepted == FITTED + HELD_OUT or self._is_late():
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
        for value in candidates(self._base[names[0]]):
            shown = self._try(names, value)
            known = self.values.get(names[0], ())
            accepted |= shown != "nothing"
            structural += shown == "other nodes"
            if shown == "no size" or len(known) > _ALONE or (structural * len(names) == _STRUCTURAL and not known):
                break
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
        if seen.nodes != self._first.nodes:
            self.structural.setdefault(name, _difference(self._first, seen, self._base[name], value))
            return "other nodes"
        if seen.sizes == self._first.sizes:
            return "no size"
        self._keep(Probe(sizes, name), seen)
        self.values.setdefault(name, [self._base[name]]).append(value)
        return "sizes"

    def _keep(self, probe: Probe, seen: _Seen) -> None:
        self.probes.append(probe)
        self.rows.append(seen.sizes)


def _more(value: int) -> int:
    return value + 1


def _less(value: int) -> int:
    return max(1, value - 1)


@dataclass(frozen=True)
class _Seen:
    """A propagated graph, as far as probes compare it."""

    nodes: tuple[object, ...]
    tensors: tuple[tuple[str, int], ...]
    parameters: tuple[tuple[str, int], ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, graph: Graph) -> _Seen:
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
        )


def _difference(first: _Seen, other: _Seen, before: int, after: int) -> str:
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


def integers(fields: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, int]]:
    """(name, value) of each integer in a configuration; inside nests as `text_config.hidden_size`, `kernel[0]`."""
    for key, value in fields.items():
        yield from _integers(f"{prefix}{key}", value)


def _integers(name: str, value: Json) -> Iterator[tuple[str, int]]:
    match value:
        case bool():
            return
        case int() if value > 0:
            yield name, value
        case dict() if all(re.fullmatch(r"[A-Za-z_]\w*", key) for key in value):
            yield from integers(value, f"{name}.")
        case list() if len(value) <= 16:
            for index, each in enumerate(value):
                yield from _integers(f"{name}[{index}]", each)
        case _:
            return


def replaced(fields: Mapping[str, Json], sizes: Mapping[str, int]) -> dict[str, Json]:
    """The configuration with these integers put in their places (see `integers`)."""

    def put(name: str, value: Json) -> Json:
        match value:
            case bool():
                return value
            case int():
                return sizes.get(name, value)
            case dict():
                return {key: put(f"{name}.{key}", each) for key, each in value.items()}
            case list():
                return [put(f"{name}[{index}]", each) for index, each in enumerate(value)]
            case _:
                return value

    return {key: put(key, value) for key, value in fields.items()}
