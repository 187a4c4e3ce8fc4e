"""The formats, and writing a file in one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import BinaryIO, cast

from fxtrace.errors import OptionInvalid, nearest
from fxtrace.export.subject import Subject, Traced
from fxtrace.export.whole import whole

Write = Callable[[Subject, BinaryIO], None]


@dataclass(frozen=True, slots=True)
class Format:
    """A format of files.

    Attributes:
        name: what it is called: `graphml`.
        holds: what is in such a file.
        place: `module:function` of what writes it, in this package; imported when it is needed.
        tensors: whether it holds tensors' numbers, rather than the graph.
    """

    name: str
    holds: str
    place: str
    tensors: bool = False

    @property
    def write(self) -> Write:
        """The function that writes it."""
        module, _, function = self.place.partition(":")
        return cast(Write, getattr(import_module(f"fxtrace.export.{module}"), function))


FORMATS: Mapping[str, Format] = {
    ".json": Format("json", "the annotated graph", "document:write_json"),
    ".graphml": Format("graphml", "nodes and edges with attributes", "networks:write_graphml"),
    ".dot": Format("dot", "the picture's source", "pictures:write_dot"),
    ".model-explorer.json": Format(
        "model-explorer", "the graph for Model Explorer", "model_explorer:write_model_explorer"
    ),
    ".parquet": Format("parquet", "a row for every node", "tables:write_parquet"),
    ".safetensors": Format("safetensors", "tensors by name", "tensors:write_safetensors", tensors=True),
    ".npz": Format("npz", "tensors by name", "tensors:write_npz", tensors=True),
    ".npy": Format("npy", "one tensor", "tensors:write_npy", tensors=True),
}
"""The formats, by the ending of their files. The longest ending that fits counts."""


def export(trace: Traced, path: str | Path, format: str = "", *, tensor: str = "") -> Path:
    """Writes a trace for another tool. The file appears when it is whole, or not at all.

    Args:
        trace: a `fxtrace.Trace`.
        path: the file; what was there is replaced.
        format: the name of one of `FORMATS`, where the file's ending does not say it.
        tensor: for formats of tensors: the name of one, of its role or node, or the beginning of roles' names. By
            default all of them; in a `.npy` file, the model's output.

    Returns:
        The file.

    Raises:
        OptionInvalid: no format has this ending or name, it cannot hold what there is, or the file cannot be written.
        ValuesAbsent: the format holds numbers, and the trace shapes only.
        TensorNotFound: nothing has the tensor's name; the nearest is suggested.
        DependencyMissing: the format's package is not installed.

    Example:
        >>> export(trace, "model.graphml")
        >>> export(trace, "weights.npy", tensor="decoder.0.cross_attention.weights")
    """
    path = Path(path)
    chosen = format_of(path, format)
    if tensor and not chosen.tensors:
        raise OptionInvalid(
            f"the format {chosen.name} holds the whole graph, not a tensor; write a .npy, .npz or .safetensors file",
            field="tensor",
            tensor=tensor,
        )
    subject = Subject(trace, tensor)
    try:
        with whole(path) as file:
            chosen.write(subject, file)
    except OSError as error:
        raise OptionInvalid(f"cannot write {path}: {error.strerror or error}", field="path", path=path) from error
    return path


def format_of(path: Path, format: str = "") -> Format:
    """The format of that name, or else of a file's ending.

    Raises:
        OptionInvalid: there is none; the nearest is suggested.
    """
    by_name = {each.name: each for each in FORMATS.values()}
    if format:
        if format not in by_name:
            raise OptionInvalid(
                _message("format", ", ".join(by_name), format, nearest(format, by_name)), field="format"
            )
        return by_name[format]
    name = path.name.lower()
    for ending in sorted(FORMATS, key=len, reverse=True):
        if name.endswith(ending):
            return FORMATS[ending]
    near = nearest(path.suffix.lower(), FORMATS)
    raise OptionInvalid(_message("path", f"a file that ends in {', '.join(FORMATS)}", path.name, near), field="path")


def _message(field: str, expected: str, got: str, near: str) -> str:
    hint = f"; did you mean '{near}'?" if near else " (or name the format)" if field == "path" else ""
    return f"{field}: expected {expected}; got '{got}'{hint}"
