"""DOT."""

from __future__ import annotations

from typing import BinaryIO

from fxtrace.export.subject import Subject
from fxtrace.ir.trace import RenderOptions
from fxtrace.render import to_dot


def write_dot(subject: Subject, file: BinaryIO) -> None:
    """Writes the source of the picture that has it all: no layers are folded, and views are drawn, too."""
    file.write(to_dot(subject.graph, RenderOptions(fold_layers=False, views=True), title=subject.info.model).encode())
