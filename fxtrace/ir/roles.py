"""What labelling finds, as plain data: roles with the identities that show them, refusals, and numbered snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fxtrace.ir.arguments import show_shape, show_sizes
from fxtrace.ir.text import Readable, facts, table


@dataclass(frozen=True, slots=True, repr=False)
class Check(Readable):
    """An identity tried on the captured values.

    `statement` is the identity as a formula; `held` is None where it could not be tried, with `detail` saying why;
    otherwise `detail` gives the largest difference found and what was allowed.
    """

    name: str
    statement: str
    held: bool | None
    detail: str = ""

    @property
    def outcome(self) -> str:
        """Whether it held, in words: `held`, `FAILED` or `not tried`."""
        return "not tried" if self.held is None else "held" if self.held else "FAILED"

    def _lines(self) -> Iterator[str]:
        yield f"{self.name} {self.outcome}: {self.statement}"
        if self.detail:
            yield f"  {self.detail}"


@dataclass(frozen=True, slots=True, repr=False)
class Role(Readable):
    """What a node's value is: a place in the transformer (stack, layer, block) and a part there.

    `layer` is None where a block belongs to no layer (the embedding, the output). `evidence` says in one sentence which
    dataflow showed it. `str(role)` is the role's name: `decoder.0.cross_attention.scores`, `encoder.embedding.tokens`.
    """

    stack: str
    layer: int | None
    block: str
    part: str
    evidence: str = ""
    checks: tuple[Check, ...] = ()

    def __str__(self) -> str:
        return ".".join(
            str(piece) for piece in (self.stack, self.layer, self.block, self.part) if piece not in ("", None)
        )


@dataclass(frozen=True, slots=True, repr=False)
class Refusal(Readable):
    """A role that was looked for and not given, and why."""

    role: str
    reason: str

    def _lines(self) -> Iterator[str]:
        yield f"{self.role}: {self.reason}"


@dataclass(frozen=True, slots=True, repr=False)
class SnapshotTensor(Readable):
    """One tensor of a snapshot: the name it goes by, where it is in the graph, and the role that puts it there.

    `shape` and `symbolic` are its spec's.
    """

    variable: str
    tensor: str
    node: str
    role: str
    shape: tuple[int, ...]
    symbolic: tuple[str, ...] = ()

    def _lines(self) -> Iterator[str]:
        yield f"{self.variable} {show_sizes(self)}: tensor {self.tensor}, {self.role}"


@dataclass(frozen=True, slots=True, repr=False)
class Snapshot(Readable):
    """One numbered view of an encoder–decoder transformer.

    `dims` is its shape in named dimensions, one expression each (`n_heads`, `min(10,tgt_vocab)`, `1`). `tensors` is
    empty exactly when the snapshot is not in this graph; `reason` then says why. `explanation` says what the tensor is
    and why it has that shape, with this graph's sizes put in. `roles` are the role names it is defined by.
    """

    number: int
    title: str
    section: str
    roles: tuple[str, ...]
    variables: tuple[str, ...]
    dims: tuple[str, ...]
    tensors: tuple[SnapshotTensor, ...] = ()
    explanation: str = ""
    checks: tuple[Check, ...] = ()
    reason: str = ""

    @property
    def found(self) -> bool:
        """Whether every tensor of the snapshot was found."""
        return bool(self.tensors)

    def _lines(self) -> Iterator[str]:
        sizes = f", {show_sizes(self.tensors[0])}" if self.tensors else ", not in this graph"
        yield f"#{self.number} {self.title}{sizes}"
        yield from facts(
            ("made of", show_shape(self.dims)),
            ("roles", "\n".join(self.roles)),
            ("reason", self.reason),
            ("why", self.explanation),
            ("checks", "\n".join(f"{check.name} {check.outcome}: {check.statement}" for check in self.checks)),
        )
        rows = ((each.variable, each.tensor, show_sizes(each)) for each in self.tensors)
        yield from table(("variable", "tensor", "shape"), rows)
