"""What is exported: a trace as the formats see it, and which of its tensors are meant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from fxtrace.errors import FormulasAbsent, OptionInvalid, TensorNotFound
from fxtrace.graph import Graph, TensorSpec
from fxtrace.ir.trace import TraceInfo

if TYPE_CHECKING:
    from fxtrace.dims import Formulas


class Traced(Protocol):
    """What an export needs of a trace: a `fxtrace.Trace` has it."""

    @property
    def graph(self) -> Graph:
        """The labelled graph."""

    @property
    def api(self) -> Any:
        """The engine or the client that has the trace."""

    info: TraceInfo


@dataclass(frozen=True)
class Subject:
    """A trace that is exported, and the name of the tensor, node or block of roles that is chosen; empty for all."""

    trace: Traced
    chosen: str = ""

    @property
    def info(self) -> TraceInfo:
        """Where the trace came from."""
        return self.trace.info

    @property
    def graph(self) -> Graph:
        """The labelled graph."""
        return self.trace.graph

    @cached_property
    def formulas(self) -> Formulas | None:
        """What its sizes are made of; None where that was not looked for."""
        with suppress(FormulasAbsent):
            found: Formulas = self.trace.api.get_formulas(self.info.id)
            return found
        return None

    @cached_property
    def tensors(self) -> dict[str, TensorSpec]:
        """The specs of the tensors that are meant, by name.

        Raises:
            TensorNotFound: nothing has the chosen name; the nearest is suggested.
        """
        graph, chosen = self.graph, self.chosen
        if not chosen:
            return dict(graph.tensors())
        try:
            return {graph.resolve_tensor(chosen): graph.tensor(chosen)}
        except TensorNotFound:
            within = [node for role, node in graph.by_role.items() if role.startswith(f"{chosen}.")]
            named = [node for node in (graph.by_name.get(chosen), graph.by_role.get(chosen)) if node]
            if not (found := dict(tensor for node in named or within for tensor in node.tensors)):
                raise
            return found

    @property
    def the_tensor(self) -> tuple[str, TensorSpec]:
        """The one tensor that is meant: the chosen one, or the model's output where it returns just one.

        Raises:
            OptionInvalid: it is not one.
            TensorNotFound: nothing has the chosen name.
        """
        found = self.tensors if self.chosen else self._outputs
        if len(found) != 1:
            names = ", ".join(list(found)[:4]) + (", …" if len(found) > 4 else "")
            what = f"'{self.chosen}' has" if self.chosen else "the model returns"
            raise OptionInvalid(
                f"expected one tensor; {what} {len(found)}{f' ({names})' if names else ''}. Name one of them with "
                "`tensor`, or write a .npz or .safetensors file, which holds several",
                field="tensor",
                tensor=self.chosen,
            )
        return next(iter(found.items()))

    def chunks(self, tensor: str) -> Iterator[memoryview]:
        """A tensor's bytes, little-endian and row-major, piece by piece.

        Raises:
            ValuesAbsent: the trace holds shapes only.
        """
        with self.trace.api.open_tensor(self.info.id, tensor) as reader:
            yield from reader.chunks()

    @property
    def _outputs(self) -> dict[str, TensorSpec]:
        return dict(tensor for node in self.graph.returned for tensor in node.tensors)
