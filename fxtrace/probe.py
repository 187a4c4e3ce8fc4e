"""Which named sizes make up each size of a model's tensors: the model is propagated under many configurations.

Every integer of the configuration, and every size of an input that no field decides, is changed alone and together
with others, within what the model accepts; `fxtrace.dims.find_formulas` reads the formulas off what the sizes came to.
Shapes are propagated on fake tensors; what is small is simply run, which is five times as fast: see
`fxtrace.probing.budget`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from fxtrace.capture import capture, sketch
from fxtrace.dims import Finding, Formula, Formulas, Probe, find_formulas, integers, replaced
from fxtrace.errors import CaptureFailed, FxtraceError, InvalidRequest
from fxtrace.extras import needed_for
from fxtrace.graph import Graph
from fxtrace.ir.trace import Json, Progress, Rung
from fxtrace.models import Model
from fxtrace.models.weightless import build_weightless
from fxtrace.probing.budget import LARGEST_PARAMETERS, Budget, counted, parameter_count
from fxtrace.roles import label
from fxtrace.transfer import COPY_SHARE, find_copy, transfer
from fxtrace.trials import FITTED, HELD_OUT, Inputs, Seen, Trials

with needed_for("trying a model's variants"):
    import torch
    from torch import Tensor, nn

SECONDS = 120.0
"""How long a model is probed, in seconds of computing, where nothing else is said."""
_CONFIRMATIONS = 2
"""A formula must have been right in so many configurations that had no part in finding it."""


class Prober:
    """Tries configurations of a model around one of its own.

    Attributes:
        fields: the configuration's.

    Args:
        model: the model.
        config: a configuration of it, as `Model.resolve` gives it.
        shapes: shapes of inputs that are not the model's own examples, by name.
        rung: the capture rung whose nodes are to get formulas.
        values: run the model; otherwise shapes are propagated on fake tensors. A large variant is never run.
        training: whether in training mode.
        weightless: whether the model is built without its weights.
        symbolic: names for sizes of inputs that the graph has as symbols, by input; see `fxtrace.capture.capture`.
        names: which integers of the configuration are changed; all of them where nothing is given.
        inputs: whether sizes of inputs that no field decides are changed, too.
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
        weightless: bool = False,
        symbolic: Mapping[str, tuple[str, ...]] | None = None,
        names: Collection[str] | None = None,
        inputs: bool = True,
        seconds: float = SECONDS,
        report: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self._model, self._rung, self._training, self._report = model, rung, training, report
        self._config, self.fields, self._names, self._inputs = config, model.fields(config), names, inputs
        self._shapes = dict(shapes or {})
        self._run, self._unfused = values and rung != "export", False
        self._weightless, self._symbolic, self._seconds = weightless, dict(symbolic or {}), seconds
        self._followed, self._start = self._symbolic, 0.0
        self._examples = (
            {name: tuple(each.shape) for name, each in model.example_inputs(config).items()} if shapes else {}
        )
        self._places: dict[str, tuple[tuple[str, int], ...]] = {}
        self._budget: Budget | None = None

    def formulas(self, graph: Graph | None = None, seed: int = 0) -> Formulas:
        """Probes the model, and finds the formula of each size.

        Args:
            graph: the graph that the configuration itself is to give, where it is known.
            seed: of the choice of configurations.

        Raises:
            CaptureFailed: the model cannot be propagated under the configuration itself, or gives another graph.
        """
        with _one_thread():
            found = self._by_copy(graph, seed) if graph is not None and self._rung == "export" else None
            return found or self._probed(graph, seed)[0]

    def _by_copy(self, graph: Graph, seed: int) -> Formulas | None:
        """The formulas of a small copy that hold on the graph; None where no copy is of use."""
        self._start = time.thread_time()
        copy = find_copy(graph, self._copies())
        if copy is not None:
            found, held_out = copy.prober._probed(copy.graph, seed)
            self._places, self._unfused = copy.prober._places, copy.prober._unfused
            whole = transfer(self, graph, copy, found, held_out)
            if whole is not None:
                return replace(whole, tensors=agreeing(whole.tensors, graph, whole.sizes))
        self._places, self._seconds = {}, self._seconds - (time.thread_time() - self._start)
        return None

    def _copies(self) -> Iterator[Prober]:
        """Probers of smaller configurations, with attention as it is and taken apart: a trace does not say which."""
        for config, unfused in product(self._model.smaller(self._config), (False, True)):
            with suppress(Exception):  # the model may have no inputs for it
                copy = Prober(
                    self._model,
                    config,
                    shapes=self._shapes_of(config),
                    rung=self._rung,
                    training=self._training,
                    weightless=self._weightless,
                    symbolic=self._symbolic,
                    names=self._names,
                    inputs=self._inputs,
                    seconds=self._seconds * COPY_SHARE,
                    report=self._report,
                )
                # Followed as symbols, sizes would take three times as long to propagate, to the same numbers.
                copy._unfused, copy._followed = unfused, {}
                yield copy

    def _shapes_of(self, config: Any) -> dict[str, tuple[int, ...]]:
        """The given inputs' shapes, with another configuration's sizes where they have the example's own."""
        if not self._shapes:
            return {}
        examples = self._model.example_inputs(config)
        return {name: _following(shape, self._examples[name], examples[name]) for name, shape in self._shapes.items()}

    def _probed(self, graph: Graph | None, seed: int) -> tuple[Formulas, list[Probe]]:
        """The formulas of the prober's own sizes, and the configurations that only confirmed them."""
        base = self._integers()
        first = self._first(base, graph)
        trials = Trials(self.propagate, base, first, self._seconds, self._report)
        trials.each(list(base))
        trials.pairs()
        if self._inputs and not trials.untried:  # else a field may decide them
            self._places = input_sizes(trials.inputs, self._symbolic, base)
        given = dict(first.inputs)
        base |= {name: given[places[0][0]][places[0][1]] for name, places in self._places.items()}
        if self._budget is not None:
            self._budget.base |= base
        trials.each(list(self._places))
        together = trials.together(random.Random(seed), FITTED if self._inputs else 2 * len(trials.values))
        self._report(Progress("solve"))
        probes = [Probe({**base, **probe.sizes}, probe.changed) for probe in trials.probes]
        held_out = min(HELD_OUT, together)
        findings = find_formulas(probes, np.array(trials.rows, np.int64), held_out)
        found = iter([_confirmed(each, trials.untried) for each in findings])
        tensors = {name: tuple(next(found) for _ in range(rank)) for name, rank in first.tensors}
        formulas = Formulas(
            base,
            tensors if graph is None else agreeing(tensors, graph, base),
            {name: tuple(next(found) for _ in range(rank)) for name, rank in first.parameters},
            structural={name: how for name, how in trials.structural.items() if name not in trials.values},
            tied=trials.tied,
            fixed=tuple(trials.fixed),
            untried=tuple(trials.untried),
            probes=len(trials.probes),
        )
        return formulas, probes[len(probes) - held_out :]

    def _first(self, base: Mapping[str, int], graph: Graph | None) -> Seen:
        """What the configuration itself gives, propagated in the first way that gives its graph."""
        wanted = None if graph is None else Seen.of(graph)
        # A trace does not say whether it was made without numbers, or with attention taken apart.
        runs = (False,) if self._rung == "export" else (self._run, not self._run)
        problems = []
        for run, unfused in product(runs, (False, True)):
            self._run, self._unfused = run, unfused
            first = self.propagate(base)
            if isinstance(first, str):
                problems.append(first)
            elif wanted in (None, first):
                return first
            if wanted is None:
                break
        if len(problems) == 2 * len(runs) or wanted is None:
            raise CaptureFailed(problems[0], model=self._model.name)
        raise CaptureFailed(
            f"'{self._model.name}' does not give this graph any more: the model or what it stands on has changed "
            "since; trace it again",
            model=self._model.name,
        )

    def _integers(self) -> dict[str, int]:
        return {name: n for name, n in integers(self.fields) if self._names is None or name in self._names}

    def named_sizes(self, graph: Graph) -> dict[str, int]:
        """The configuration's integers, and the named sizes of a graph's inputs where all their places agree."""
        shapes = {node.target: node.spec.shape for node in graph.nodes if node.op == "placeholder" and node.spec}
        found = {
            name: {shapes[given][dim] for given, dim in places if given in shapes}
            for name, places in self._places.items()
        }
        return self._integers() | {name: min(sizes) for name, sizes in found.items() if len(sizes) == 1}

    @property
    def is_late(self) -> bool:
        """Whether the seconds have passed."""
        return time.thread_time() - self._start > self._seconds

    def graph_of(self, configuration: Mapping[str, Json]) -> Graph | None:
        """The labelled graph of another configuration; None where the model does not accept it."""
        made = self._made(configuration, {})
        if isinstance(made, str):
            return None
        module, inputs, values = made
        try:
            captured = capture(
                module, inputs, rung=self._rung, values=values, training=self._training, unfused=self._unfused
            )
        except FxtraceError:
            return None
        return label(captured.graph, captured.known)[0]

    def propagate(self, sizes: Mapping[str, int]) -> Seen | str:
        """What the model's sizes come to with these named sizes; or why it does not accept them."""
        sketched = self._sketched(sizes)
        return sketched if isinstance(sketched, str) else Seen.of(*sketched)

    def sketched(self) -> Graph | None:
        """The graph of the configuration itself, less what only labelling needs; None where it has none."""
        sketched = self._sketched({})
        return None if isinstance(sketched, str) else sketched[0]

    def _sketched(self, sizes: Mapping[str, int]) -> tuple[Graph, Inputs] | str:
        made = self._made(replaced(self.fields, sizes), sizes)
        if isinstance(made, str):
            return made
        module, inputs, values = made
        try:
            with counted() if values else nullcontext() as cost:
                graph = sketch(
                    module,
                    inputs,
                    rung=self._rung,
                    values=values,
                    training=self._training,
                    symbolic=self._followed,
                    unfused=self._unfused,
                )
            if cost is not None and self._budget is not None:
                self._budget.learn(sizes, module, cost())
        except Exception as error:  # noqa: BLE001 - whatever a model raises at sizes it does not take
            return _said(error)
        return graph, tuple((name, tuple(tensor.shape)) for name, tensor in inputs.items())

    def _made(
        self, configuration: Mapping[str, Json], sizes: Mapping[str, int]
    ) -> tuple[nn.Module, dict[str, Tensor], bool] | str:
        """A module, its inputs and whether to run it, where the model keeps these sizes; or why it does not."""
        self._report(Progress("probe"))
        try:
            config = self._model.resolve(configuration)
            taken = dict(integers(self._model.fields(config)))
            if any(taken.get(name) != value for name, value in sizes.items() if name not in self._places):
                return "the model puts another value in its place"
            with torch.random.fork_rng(devices=()):
                module = self._built(config, taken)
                inputs: dict[str, Tensor] = dict(self._model.example_inputs(config))
            for name, shape in self._shapes.items():
                inputs[name] = inputs[name].new_ones(_following(shape, self._examples[name], inputs[name]))
            for name in self._places.keys() & sizes.keys():
                for given, dim in self._places[name]:
                    inputs[given] = resized(inputs[given], dim, sizes[name])
            run = self._run and self._may_run({**taken, **sizes}, module, inputs)
        except Exception as error:  # noqa: BLE001 - likewise
            return _said(error)
        return module, inputs, run

    def _built(self, config: Any, sizes: Mapping[str, int]) -> nn.Module:
        """The model under a configuration; without its weights where there are none, or too many."""
        build = partial(self._model.build, config)
        if self._weightless:
            return build_weightless(build)
        if self._budget is not None and not self._budget.may_build(sizes):
            weightless = build_weightless(build)
            if parameter_count(weightless) > LARGEST_PARAMETERS:
                return weightless
        return build()

    def _may_run(self, sizes: Mapping[str, int], module: nn.Module, inputs: Mapping[str, Any]) -> bool:
        """Whether a variant takes little enough to be run."""
        if parameter_count(module) > LARGEST_PARAMETERS:
            return False
        if self._budget is None:  # the first is the configuration itself
            self._budget = Budget(dict(integers(self.fields)), module, inputs, unfused=self._unfused)
        return self._budget.may_run(sizes, module, inputs)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Within, PyTorch computes in one thread: small ops on several wait for each other, on a busy machine for long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _following(shape: tuple[int, ...], example: tuple[int, ...], now: Tensor) -> tuple[int, ...]:
    """A given shape; a size that is the example's own goes on following the configuration, which makes `now`."""
    if len(shape) != len(example):
        return shape
    return tuple(size if given == own else given for given, own, size in zip(shape, example, now.shape, strict=True))


def _said(error: Exception) -> str:
    return error.message if isinstance(error, FxtraceError) else f"{type(error).__name__}: {error}"


def input_sizes(
    seen: Sequence[Inputs], symbolic: Mapping[str, tuple[str, ...]], taken: Mapping[str, int]
) -> dict[str, tuple[tuple[str, int], ...]]:
    """Names for the sizes of inputs that no field decides, each with its places: inputs and their dimensions.

    A size has the name of its symbol. Else the first sizes of the inputs are `batch`, where they equal the first
    input's; the rest is named by its first place (`input_ids.shape[1]`), and equal sizes are taken for one.

    Args:
        seen: the inputs of each configuration that was tried, the given one's first.
        symbolic: names by input.
        taken: names that sizes have already.
    """
    places: dict[object, list[tuple[str, int]]] = {}
    names: dict[object, str] = {}
    batch = next((shape[0] for _, shape in seen[0] if len(shape) > 1), None)
    for place, (name, shape) in enumerate(seen[0]):
        for dim, size in enumerate(shape):
            if any(inputs[place][1][dim : dim + 1] != (size,) for inputs in seen):
                continue
            symbol = symbolic.get(name, ())[dim : dim + 1]
            key: object = size
            if symbol and symbol[0]:
                key = names[symbol[0]] = symbol[0]
            elif dim == 0 and size == batch:
                key = names["batch"] = "batch"
            elif size == 1:
                continue
            places.setdefault(key, []).append((name, dim))
            names.setdefault(key, f"{name}.shape[{dim}]")
    return {names[key]: tuple(at) for key, at in places.items() if names[key] not in taken}


def resized(tensor: Tensor, dim: int, size: int) -> Tensor:
    """The tensor repeated, or cut off, along a dimension until that has this size."""
    times = -(-size // max(1, tensor.shape[dim]))
    return torch.cat([tensor] * times, dim).narrow(dim, 0, size).contiguous()


def agreeing(
    tensors: Mapping[str, tuple[Finding, ...]], graph: Graph, base: Mapping[str, int]
) -> dict[str, tuple[Finding, ...]]:
    """The findings, less the formulas that say otherwise than a graph's own symbols, where it has such.

    A symbol is what the formula of its input's size says; one that is a named size itself is that.
    """
    found = dict(tensors)
    symbols = {
        size: finding.formula
        for node in graph.nodes
        if node.op == "placeholder" and node.spec and node.spec.symbolic
        for size, finding in zip(node.spec.symbolic, tensors[node.name], strict=True)
        if size.isidentifier() and finding.formula
    }
    for name, spec in graph.tensors():
        if spec.symbolic:
            found[name] = tuple(
                _agreeing(each, symbol, base, symbols) for each, symbol in zip(found[name], spec.symbolic, strict=True)
            )
    return found


def _confirmed(finding: Finding, untried: Sequence[str]) -> Finding:
    """A finding, less its formula where too little was tried."""
    if finding.formula is None:
        return finding
    if finding.depends_on and finding.confirmations < _CONFIRMATIONS:
        return replace(finding, formula=None, reason=f"{finding.formula} was not confirmed on other configurations")
    if untried and not finding.depends_on:
        return replace(finding, formula=None, reason="time was too short to try every field")
    return finding


def _agreeing(finding: Finding, symbol: str, base: Mapping[str, int], symbols: Mapping[str, Formula]) -> Finding:
    try:
        other = Formula(symbol)
    except InvalidRequest:  # a form of expression that formulas do not have
        return finding
    meaning = {name: Formula(name) for name in other.names & base.keys()} | dict(symbols)
    if finding.formula is None or not other.names <= meaning.keys():
        return finding
    changing = {name for formula in meaning.values() for name in formula.names}
    for times in (1, 2, 3):
        sizes = {**base, **{name: base[name] * times for name in changing}}
        meant = {name: value for name in other.names if (value := meaning[name].value(sizes)) is not None}
        if other.value(meant) != finding.formula.value(sizes):
            reason = f"torch.export has {symbol}, other configurations show {finding.formula}"
            return replace(finding, formula=None, reason=reason)
    return finding
