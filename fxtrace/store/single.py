"""One trace in one file of its own: the same file that a store keeps, without a store around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from numpy.typing import NDArray

from fxtrace.dtypes import numpy_dtype
from fxtrace.errors import FxtraceError, OptionInvalid, StoreDamaged
from fxtrace.graph import TensorSpec
from fxtrace.store.blobs import SUFFIX, Folder, Source
from fxtrace.store.files import (
    formulas_from_bytes,
    formulas_to_bytes,
    graph_from_bytes,
    sections_of,
    snapshots_from_bytes,
    trace_from_bytes,
)
from fxtrace.store.memory import TraceData
from fxtrace.store.tracefile import FORMULAS, GRAPH, SNAPSHOTS, TRACE, Encoded, Head, TraceFile


def write_trace(data: TraceData, path: Path) -> None:
    """Writes a trace to a file, whole or not at all.

    Raises:
        OptionInvalid: the file cannot be written.
    """
    sections = sections_of(data.info, data.graph, data.snapshots)
    if data.formulas is not None:
        sections[FORMULAS] = formulas_to_bytes(data.formulas)
    encoded = Encoded(data.info.id, sections, data.tensors if data.info.values else {})
    try:
        if not path.parent.is_dir():
            raise FileNotFoundError(2, f"there is no folder {path.parent}")
        Folder(path.parent).write(path.name.removesuffix(SUFFIX), encoded.parts())
    except OSError as error:
        raise OptionInvalid(f"cannot write {path}: {error.strerror}", field="place", place=path) from error


def read_trace(path: Path) -> TraceData:
    """Reads a trace from its file; the numbers are read when they are asked for.

    Raises:
        OptionInvalid: the file cannot be read.
        StoreDamaged: it is not a trace's file, or not as it was written.
    """
    with _reading(path):
        source: Source = Folder(path.parent).open(path.name.removesuffix(SUFFIX))
        file = TraceFile(source, Head(source), lambda: _reading(path), lambda: _gone(path))
        info = trace_from_bytes(file.section(TRACE))
        graph = graph_from_bytes(file.section(GRAPH))
        return TraceData(
            info,
            graph,
            snapshots_from_bytes(file.section(SNAPSHOTS)),
            _Tensors(file, dict(graph.tensors()) if info.values else {}),
            formulas_from_bytes(file.section(FORMULAS)) if file.has(FORMULAS) else None,
        )


class _Tensors(Mapping[str, NDArray[Any]]):
    """A file's tensors by name; one is read when it is asked for."""

    def __init__(self, file: TraceFile, specs: Mapping[str, TensorSpec]) -> None:
        self._file, self._specs = file, specs

    def __getitem__(self, name: str) -> NDArray[Any]:
        spec = self._specs[name]
        return self._file.tensor(name, numpy_dtype(spec.dtype), spec.shape).array()

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FxtraceError:
        raise
    except OSError as error:
        raise OptionInvalid(f"cannot read {path}: {error.strerror or error}", field="place", place=path) from error
    except Exception as error:
        raise StoreDamaged(f"{path} is not a trace's file, or not as it was written: {error}") from error


def _gone(path: Path) -> NoReturn:
    raise FileNotFoundError(2, "it was removed", str(path))
