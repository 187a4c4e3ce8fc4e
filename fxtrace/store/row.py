"""What the index says of a trace, and of the requests that led to one. No SQL here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from zlib_ng.zlib_ng import crc32

from fxtrace.ir.text import Readable, facts

SCHEMA_VERSION = 3

State = Literal["live", "damaged", "deleted"]
"""Damaged: a read found it so, and it is to be made again. Deleted: its file is about to go, and then its row."""


@dataclass(frozen=True, slots=True)
class Row:
    """What the index knows of a trace.

    Attributes:
        id: the trace's.
        blob: the name of its file.
        trace: the serialised v1 message of where it came from.
        nbytes: of its file.
        last_used: seconds since 1970; a minute late, at most.
        sequence: its place in the order, once it has one.
        whole: whether the index gives it as it was written.
    """

    id: str
    blob: str
    trace: bytes
    nbytes: int
    state: State = "live"
    pinned: bool = False
    last_used: float = 0.0
    sequence: int | None = None
    whole: bool = True

    def checksum(self) -> int:
        """Of what must come back as it was written."""
        return crc32(repr((self.id, self.blob, self.trace, self.nbytes, self.state, self.pinned)).encode())


@dataclass(frozen=True, slots=True, repr=False)
class Origin(Readable):
    """A request that a trace was made or found for.

    Attributes:
        digest: of everything that the request's answer depends on, so that the same request finds the trace without
            its model; the trace's id where that is not known.
        trace: the trace's id.
        model: where the model is, on the machine of the store: an absolute path of a file, an import path, a name.
        model_digest: the model's own, as it was then.
        at: when, in seconds since 1970.
    """

    digest: str
    trace: str
    model: str
    model_digest: str
    at: float = field(default_factory=time.time)

    def _lines(self) -> Iterator[str]:
        yield f"{self.trace[:8]} from {self.model}"
        yield from facts(("request", self.digest), ("model's digest", self.model_digest))

    @property
    def is_local(self) -> bool:
        """Whether the model is code of this machine, rather than one that is installed under a name."""
        return not self.model.startswith("hf:") and (self.model.endswith(".py") or ":" in self.model)
