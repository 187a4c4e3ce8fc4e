"""A drawn graph, as the terminal, a notebook and a file want it."""

from __future__ import annotations

from pathlib import Path

from fxtrace.ir.trace import ImageFormat


class Picture:
    """A picture of a graph: shown by a notebook as it is, written to a file by `save`.

    Attributes:
        format: svg, png, pdf or dot.
        data: the file's bytes.

    Example:
        >>> trace.draw().save("model.svg")
    """

    def __init__(self, format: ImageFormat, data: bytes) -> None:
        self.format: ImageFormat = format
        self.data = data

    def save(self, path: str | Path) -> Path:
        """Writes the picture to a file and returns its path."""
        path = Path(path)
        path.write_bytes(self.data)
        return path

    def __repr__(self) -> str:
        return f"<Picture {self.format} {len(self.data):,} bytes>"

    def __str__(self) -> str:
        return self.data.decode() if self.format in ("svg", "dot") else repr(self)

    def _repr_svg_(self) -> str | None:
        return self.data.decode() if self.format == "svg" else None

    def _repr_png_(self) -> bytes | None:
        return self.data if self.format == "png" else None
