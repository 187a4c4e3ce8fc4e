"""Which named sizes make up each size of a model's tensors: the model is propagated under many configurations.

Every integer of the configuration, and every size of an input that no field decides, is changed alone and together
with others, within what the model accepts; `fxtrace.dims.find_formulas` reads the formulas off what the sizes came to.
Shapes are propagated on fake tensors; a small model is simply run, which is five times as fast.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxtrace.capture import Capture, capture
from fxtrace.dims import Formulas, Probe, find_formulas
from fxtrace.errors import CaptureFailed, FxtraceError
from fxtrace.graph import Graph
from fxtrace.models import Model
from fxtrace.roles import label
from fxtrace.trace import Json, Progress, Rung

FITTED, HELD_OUT = 10, 6
"""How many configurations with several sizes changed are read for formulas, and how many only confirm them."""
_SMALL = 20_000_000
"""Up to so many elements of parameters, running a model is quicker than propagating its shapes on fake tensors."""
_TRIES = 10
_TINY = (2, 3, 1, 4, 6, 8)
_ALONE = 3


class Prober:
    """Tries configurations of a model around one of its own.

    Args:
        model: the model.
        config: a configuration of it, as `Model.resolve` gives it.
        shapes: shapes of inputs that are not the model's own examples, by name.
        rung: the capture rung whose nodes are to get formulas.
        values: run the model; otherwise shapes are propagated on fake tensors. A large model is never run.
        training: whether in training mode.
        names: which integers of the configuration are changed; all of them where nothing is given.
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
        names: Collection[str] | None = None,
        report: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self._model, self._rung, self._training, self._report = model, rung, training, report
        self._fields = model.fields(config)
        self._shapes = dict(shapes or {})
        self._may_run = values and rung != "export"
        self._names = names

    def formulas(self, graph: Graph | None = None, seed: int = 0) -> Formulas:
        """Probes the model, and finds the formula of each size.

        Args:
            graph: the graph that the configuration itself is to give, where it is known.
            seed: of the choice of configurations.

        Raises:
            CaptureFailed: the model cannot be propagated under the configuration itself, or gives another graph.
        """
        base = {name: n for name, n in integers(self._fields) if self._names is None or name in self._names}
        first = self._propagate(base)
        if isinstance(first, str):
            raise CaptureFailed(first)
        if graph is not None and first != _Seen.of(graph):
            raise CaptureFailed(
                f"'{self._model.name}' does not give this graph any more: the model or what it stands on has changed "
                "since; trace it again",
                model=self._model.name,
            )
        probes, rows = [Probe(base)], [first.sizes]
        values: dict[str, list[int]] = {}
        structural: dict[str, str] = {}
        fixed: list[str] = []
        tied: dict[str, str] = {}

        def took(names: tuple[str, ...], value: int) -> str:
            """Tries one value for some fields; keeps what it shows: `nothing`, `other nodes`, `no size`, `sizes`."""
            sizes = {**base, **dict.fromkeys(names, value)}
            seen = self._propagate(sizes)
            if isinstance(seen, str):
                return "nothing"
            if seen.nodes != first.nodes:
                structural.setdefault(names[0], _difference(first, seen, base[names[0]], value))
                return "other nodes"
            if seen.sizes == first.sizes:
                return "no size"
            probes.append(Probe(sizes, names[0]))
            rows.append(seen.sizes)
            values.setdefault(names[0], [base[names[0]]]).append(value)
            return "sizes"

        def alone(*names: str) -> bool:
            """Tries values of one field, or one value for several; whether the model accepted any."""
            accepted = False
            for value in candidates(base[names[0]]):
                shown = took(names, value)
                accepted |= shown != "nothing"
                if shown == "no size" or len(values.get(names[0], ())) > _ALONE:
                    break
            for value in _TINY if names[0] in values else ():  # a size may be cut off at a small number
                if value < min(values[names[0]]) and took(names, value) == "sizes":
                    break
            return accepted

        for number, name in enumerate(base):
            self._report(Progress("probe", number, len(base) + 1))
            if not alone(name):
                fixed.append(name)
        # Some hold only together: as many key heads as query heads.
        stuck = [name for name in base if name not in values and (name in structural or name in fixed)]
        for name, other in combinations(stuck, 2):
            if base[name] == base[other] and not {name, other} & {*tied, *values}:
                alone(name, other)
                if name in values:
                    tied[other] = name
        self._report(Progress("probe", len(base), len(base) + 1))
        together = list(islice(self._together(base, values, tied, first, random.Random(seed)), FITTED + HELD_OUT))
        probes += [Probe(sizes) for sizes, _ in together]
        rows += [seen.sizes for _, seen in together]
        found = iter(find_formulas(probes, np.array(rows, np.int64), min(HELD_OUT, len(together))))
        return Formulas(
            base,
            {name: tuple(next(found) for _ in range(rank)) for name, rank in first.tensors},
            {name: tuple(next(found) for _ in range(rank)) for name, rank in first.parameters},
            structural={name: how for name, how in structural.items() if name not in values},
            tied=tied,
            fixed=tuple(fixed),
            probes=len(probes),
        )

    def _together(
        self,
        base: Mapping[str, int],
        values: Mapping[str, Sequence[int]],
        tied: Mapping[str, str],
        first: _Seen,
        chance: random.Random,
    ) -> Iterator[tuple[dict[str, int], _Seen]]:
        """Configurations with several fields changed that the model accepts, and what came of them."""
        for _ in range(_TRIES * (FITTED + HELD_OUT)):
            chosen = {name: chance.choice(each) for name, each in values.items()}
            for _ in range(4):
                sizes = {**base, **chosen, **{name: chosen[other] for name, other in tied.items() if other in chosen}}
                seen = self._propagate(sizes)
                if not isinstance(seen, str) and seen.nodes == first.nodes:
                    yield sizes, seen
                    break
                # Fewer at once: some fields hang together.
                kept = chance.sample(sorted(chosen), k=len(chosen) // 2)
                chosen = {name: chosen[name] for name in kept}
                if len(chosen) < 2:
                    break

    def graph_of(self, configuration: Mapping[str, Json]) -> Graph | None:
        """The labelled graph of another configuration; None where the model does not accept it."""
        captured = self._capture(configuration, {})
        return None if isinstance(captured, str) else label(captured.graph, captured.known)[0]

    def _propagate(self, sizes: Mapping[str, int]) -> _Seen | str:
        """What the model's sizes come to; or why it does not accept the configuration."""
        captured = self._capture(replaced(self._fields, sizes), sizes)
        return captured if isinstance(captured, str) else _Seen.of(captured.graph)

    def _capture(self, configuration: Mapping[str, Json], sizes: Mapping[str, int]) -> Capture | str:
        """A configuration's capture, where the model keeps these sizes in it; or why it does not accept it."""
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
            small = sum(each.numel() for each in module.parameters()) <= _SMALL
            return capture(module, inputs, rung=self._rung, values=self._may_run and small, training=self._training)
        except FxtraceError as error:
            return error.message
        except Exception as error:  # noqa: BLE001 - whatever a model raises at sizes it does not take
            return f"{type(error).__name__}: {error}"


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
