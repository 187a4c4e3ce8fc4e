"""Parquet: a row for every node."""

from __future__ import annotations

from typing import BinaryIO

from fxtrace.export.rows import ATTRIBUTES, row
from fxtrace.export.subject import Subject
from fxtrace.extras import needed_for

_LISTS = {"roles": "string", "shape": "int64", "formula": "string", "parameters": "string"}


def write_parquet(subject: Subject, file: BinaryIO) -> None:
    """Writes a table with the columns of `ATTRIBUTES`, in execution order; the file's metadata names the trace.

    Raises:
        DependencyMissing: pyarrow is not installed.
    """
    with needed_for():
        import pyarrow
        import pyarrow.parquet
    rows = [row(subject.graph, node, subject.formulas) for node in subject.graph.nodes]
    columns = {name: [each[name] for each in rows] for name in ATTRIBUTES}
    types = {name: pyarrow.list_(getattr(pyarrow, of)()) for name, of in _LISTS.items()} | {"nbytes": pyarrow.int64()}
    schema = pyarrow.schema([(name, types.get(name, pyarrow.string())) for name in ATTRIBUTES])
    info = subject.info
    told = {"fxtrace.trace": info.id, "fxtrace.model": info.model, "fxtrace.version": info.fxtrace_version}
    pyarrow.parquet.write_table(pyarrow.table(columns, schema.with_metadata(told)), file)
