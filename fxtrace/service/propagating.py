"""One configuration of a model, really built and propagated: what formulas are found around and confirmed by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fxtrace.capture import Capture, ValuesNeeded, capture
from fxtrace.dims import Finding, Formulas
from fxtrace.errors import FxtraceError
from fxtrace.extras import needed_for
from fxtrace.graph import Graph, show_shape
from fxtrace.ir.trace import Json, Rung
from fxtrace.models import Model
from fxtrace.sweep import Cost, Costs, How, SweepRow

with needed_for("propagating shapes"):
    import torch
    from torch import nn

_SMALL = 20_000_000
"""Up to so many elements of parameters, a model is run where its roles are wanted, some of which show in values only;
or where its path depends on numbers."""


@dataclass(frozen=True, slots=True)
class Propagated:
    """A configuration's graph, what `Capture` says of it, and how it came to be: see `How`."""

    graph: Graph
    bases: Mapping[str, str]
    rung: Rung
    how: How

    def cost(self, tensors: Mapping[str, str] | None = None) -> Cost:
        """What it comes to; see `Costs`."""
        return Costs(self.graph, self.bases, tensors=tensors).cost()


class Propagator:
    """Propagates configurations of a model.

    Args:
        model: the model.
        configuration: fields that are the same in all of them.
        tensors: whose shapes are wanted, by their names or by their roles'.
    """

    def __init__(self, model: Model, configuration: Mapping[str, Json], tensors: Sequence[str] = ()) -> None:
        self._model, self._configuration, self._asked = model, configuration, tensors

    def row(self, index: int, chosen: Mapping[str, Json], rung: Rung | Literal[""] = "") -> SweepRow:
        """What a configuration comes to, or why the model does not accept it."""
        seen = self.labelled(chosen, rung)
        if isinstance(seen, str):
            return SweepRow(index, chosen, seen)
        cost = seen.cost(self.tensors(seen.graph))
        return SweepRow(
            index,
            chosen,
            "",
            seen.how,
            cost.parameters,
            cost.activation_bytes,
            cost.peak_activation_bytes,
            cost.flops,
            cost.shapes,
        )

    def tensors(self, graph: Graph) -> dict[str, str]:
        """The tensors whose shapes are wanted, as far as a graph has them: by what they were asked for, their names."""
        known = dict(graph.tensors())
        names = {asked: asked for asked in self._asked if asked in known}
        for asked in self._asked:
            if asked not in names and asked in graph.by_role and len(graph.by_role[asked].tensors) == 1:
                names[asked] = graph.by_role[asked].tensors[0][0]
        return names

    def graph(self, chosen: Mapping[str, Json], rung: Rung | Literal[""] = "") -> Propagated | str:
        """A configuration, propagated on fake tensors; or why the model does not accept it.

        Where the path depends on numbers (a loop over the experts that a router chose), or tensors are wanted by their
        roles, a small model is run instead.
        """
        return self._propagated(chosen, rung, labelled=False)

    def labelled(self, chosen: Mapping[str, Json], rung: Rung | Literal[""] = "") -> Propagated | str:
        """As `graph`; where tensors are wanted, with roles."""
        return self._propagated(chosen, rung, labelled=bool(self._asked))

    def _propagated(self, chosen: Mapping[str, Json], rung: Rung | Literal[""], *, labelled: bool) -> Propagated | str:
        try:
            config = self._model.resolve({**self._configuration, **chosen})
            with torch.random.fork_rng(devices=()):
                module = self._model.build(config)
                inputs = self._model.example_inputs(config)
            small = sum(each.numel() for each in module.parameters()) <= _SMALL
            how: How = "propagation"
            try:
                taken = capture(module, inputs, rung=rung, values=False)
            except ValuesNeeded:
                if not small:
                    raise
                how = "run"
            # Every graph in the same way: a model may leave out a mask whose numbers it can look at.
            if how == "run" or (self._asked and small):
                taken = capture(module, inputs, rung=rung)
            graph = _labelled(taken, module) if labelled else taken.graph
            return Propagated(graph, taken.bases, taken.rung, how)
        except FxtraceError as error:
            return error.message
        except MemoryError:
            raise
        except Exception as error:
            if "can't allocate memory" in str(error):  # PyTorch's way to say MemoryError
                raise
            return f"{type(error).__name__}: {error}"


def _labelled(taken: Capture, module: nn.Module) -> Graph:
    from fxtrace.roles import label  # not before roles are asked for: it takes a while to import

    return label(taken.graph, taken.known, module.state_dict())[0]


def difference(graph: Graph, formulas: Formulas, sizes: Mapping[str, int], seen: Graph) -> str:
    """How a propagated graph differs from what the formulas of another one's sizes give; empty if not at all."""
    ours = [(node.name, node.op, node.target, node.inputs) for node in graph.nodes]
    theirs = [(node.name, node.op, node.target, node.inputs) for node in seen.nodes]
    if ours != theirs:
        return f"propagation gives other nodes: {len(theirs)}, by the formulas {len(ours)}"
    specs = dict(seen.tensors())
    if specs.keys() != formulas.tensors.keys() or seen.parameters.keys() != formulas.parameters.keys():
        return "propagation gives other tensors"
    before = dict(graph.tensors())
    for name, spec in specs.items():
        expected = _shape(formulas.tensors[name], sizes)
        if spec.shape != expected or spec.dtype != before[name].dtype:
            return (
                f"'{name}' is {show_shape(spec.shape)} {spec.dtype} by propagation, {show_shape(expected)} "
                f"{before[name].dtype} by formula"
            )
    for name, parameter in seen.parameters.items():
        expected = _shape(formulas.parameters[name], sizes)
        if parameter.shape != expected or parameter.dtype != graph.parameters[name].dtype:
            return f"'{name}' is {show_shape(parameter.shape)} when built, {show_shape(expected)} by formula"
    return ""


def _shape(findings: Sequence[Finding], sizes: Mapping[str, int]) -> tuple[int, ...]:
    values = (each.formula.value(sizes) if each.formula else None for each in findings)
    return tuple(-1 if value is None else value for value in values)
