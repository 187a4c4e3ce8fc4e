"""What is asked of a sweep, and what it gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from fxtrace.graph import show_shape
from fxtrace.ir.text import Readable, assigned, bytes_text, count_text, facts, table
from fxtrace.ir.trace import Json
from fxtrace.sweep.grid import Grid

How = Literal["none", "formula", "propagation", "run"]
"""How a row came to be: by formulas, by propagating the model on fake tensors, or not at all. Where the model's path
depends on numbers, by one run on its example inputs with random weights; bytes and FLOPs are then that run's."""

SAMPLE = 20
"""How many configurations are propagated to confirm the formulas, where nothing else is asked for."""


@dataclass(frozen=True, slots=True, repr=False)
class SweepRequest(Readable):
    """What is to be swept.

    Attributes:
        model: a model's name, or (in this process only) where it comes from: see `fxtrace.models`.
        grid: the configurations.
        configuration: fields that are the same in all of them; the rest keep the model's defaults.
        tensors: whose shapes are wanted, each by its name or by a role's.
        sample: how many configurations that formulas answer are also propagated; drawn at random.
        seed: of that choice.
    """

    model: str
    grid: Grid
    configuration: Mapping[str, Json] = field(default_factory=dict)
    tensors: tuple[str, ...] = ()
    sample: int = SAMPLE
    seed: int = 0

    def _lines(self) -> Iterator[str]:
        yield f"{self.model}({assigned(self.configuration)}) over {count_text(self.grid.size, 'configuration')}"
        yield from facts(
            ("grid", "\n".join(map(str, self.grid.axes))),
            ("tensors", "\n".join(self.tensors)),
            ("sample", f"{self.sample:,}, seed {self.seed}"),
        )


@dataclass(frozen=True, slots=True, repr=False)
class SweepRow(Readable):
    """What one configuration comes to.

    Attributes:
        index: its place in the grid.
        configuration: the grid's fields, as they are in it.
        reason: why the model does not accept it; empty where it does. The numbers are then 0.
        how: where the numbers come from.
        parameters: elements of all parameters, shared ones once, without buffers.
        activation_bytes: of the tensors that the model computes, all together: neither inputs nor parameters, nor what
            is in the memory of another tensor, as views, parts and what is written in place are.
        peak_activation_bytes: of those of them that are there at once, at most, when the nodes run in the graph's order
            and memory is given back after its last use: see `fxtrace.sweep.memory`.
        flops: of the matrix products: see `fxtrace.sweep.flops`. None where the graph hides some of them.
        shapes: of the tensors that were asked for, by the name that they were asked for by; one that the configuration
            has no tensor for is left out.
    """

    index: int
    configuration: Mapping[str, Json]
    reason: str = ""
    how: How = "none"
    parameters: int = 0
    activation_bytes: int = 0
    peak_activation_bytes: int = 0
    flops: int | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def _lines(self) -> Iterator[str]:
        yield f"#{self.index} {assigned(self.configuration)}: {self.reason or f'{self.parameters:,} parameters'}"
        if not self.reason:
            yield from facts(
                (
                    "activations",
                    f"{bytes_text(self.activation_bytes)}, {bytes_text(self.peak_activation_bytes)} at once",
                ),
                ("FLOPs", "hidden in some ops" if self.flops is None else f"{self.flops:,}"),
                ("by", self.how),
                *((name, show_shape(shape)) for name, shape in self.shapes.items()),
            )


@dataclass(frozen=True, slots=True, repr=False)
class SweepBatch(Readable):
    """Some rows of a sweep, and what they stand on.

    Attributes:
        rows: the rows, in the order of the grid within the batch.
        confirmed: configurations that were propagated and came to just what the formulas give, since the batch before.
        mismatches: those that came to something else, each in a sentence; their like are propagated one by one.
        notes: what is to be known besides: what a formula could not be found for, which products FLOPs leave out.
    """

    rows: tuple[SweepRow, ...] = ()
    confirmed: int = 0
    mismatches: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def _lines(self) -> Iterator[str]:
        confirmed = (
            f"{self.confirmed:,} confirmed, {len(self.mismatches):,} not" if self.confirmed else "none propagated"
        )
        yield f"{count_text(len(self.rows), 'row')}, {confirmed}"
        yield from facts(("not as computed", "\n".join(self.mismatches)), ("notes", "\n".join(self.notes)))
        headings = ("#", "configuration", "parameters", "activations", "at once", "FLOPs")
        accepted = [row for row in self.rows if not row.reason]
        yield from table(headings, map(_cells, accepted))
        refused = ((str(row.index), assigned(row.configuration), row.reason) for row in self.rows if row.reason)
        yield from table(("#", "configuration", "why the model does not accept it"), refused)


def _cells(row: SweepRow) -> tuple[str, ...]:
    sizes = (bytes_text(row.activation_bytes), bytes_text(row.peak_activation_bytes))
    flops = "" if row.flops is None else f"{row.flops:,}"
    return str(row.index), assigned(row.configuration), f"{row.parameters:,}", *sizes, flops
