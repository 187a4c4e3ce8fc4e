"""Traces for other tools: files in formats that they read, and networkx graphs.

| ending                 | format           | holds                                                                    |
| ---------------------- | ---------------- | ------------------------------------------------------------------------ |
| `.json`                | `json`           | the whole annotated graph; see `fxtrace.export.document`                 |
| `.graphml`             | `graphml`        | nodes and edges with their attributes, for Gephi, yEd, networkx          |
| `.dot`                 | `dot`            | the source of the picture, nothing folded, for Graphviz                  |
| `.model-explorer.json` | `model-explorer` | the graph nested by module, for Google's Model Explorer                  |
| `.parquet`             | `parquet`        | a table with a row for every node, for pandas, DuckDB, Spark             |
| `.safetensors`         | `safetensors`    | tensors by name, for safetensors' own readers                            |
| `.npz`                 | `npz`            | tensors by name, for `numpy.load`                                        |
| `.npy`                 | `npy`            | one tensor, for `numpy.load`                                             |

A file appears when it is whole, or not at all. Formulas of sizes are in it where they were found before
(`Trace.formulas`). `Trace.save` writes fxtrace's own file, which `fxtrace.load` reads; an export is not read back.

Example:
    >>> trace = fxtrace.trace("reference")
    >>> trace.export("reference.graphml")
    >>> trace.export("reference.model-explorer.json")
    >>> trace.to_networkx().nodes["softmax"]["shape"]
    (1, 4, 6, 6)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxtrace.export.formats import FORMATS, Format, export, format_of

if TYPE_CHECKING:
    from fxtrace.export.networks import to_networkx

__all__ = ["FORMATS", "Format", "export", "format_of", "to_networkx"]


def __getattr__(name: str) -> object:
    if name == "to_networkx":  # networkx takes longer to import than most exports
        from fxtrace.export.networks import to_networkx

        return to_networkx
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
