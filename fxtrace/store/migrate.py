"""From schema 1, where a row held the messages, and the file only the tensors, without checksums.

Trace by trace: the new file is written, one transaction puts the new row in the place of the old, the old file goes. It
can be stopped and begun again at any moment, and two processes may do it at once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from sqlalchemy import Column, Connection, Integer, LargeBinary, MetaData, RowMapping, String, Table, select

from fxtrace.store.blobs import SUFFIX, Blobs, new_name
from fxtrace.store.faults import reported
from fxtrace.store.index import Index
from fxtrace.store.row import Row
from fxtrace.store.tracefile import GRAPH, SNAPSHOTS, TRACE, Encoded
from fxtrace.tensorfile import TensorFile
from fxtrace.v1.trace_service_pb2 import Trace

_old = Table(
    "traces",
    MetaData(),
    Column("sequence", Integer, primary_key=True),
    Column("id", String(32)),
    Column("trace", LargeBinary),
    Column("snapshots", LargeBinary),
    Column("graph", LargeBinary),
)


def migrate(index: Index, blobs: Blobs, files: Path) -> None:
    """Brings a store of schema 1 up to date.

    Args:
        index: the store's, with the new tables beside the old.
        blobs: where the new files go.
        files: the folder of the old ones.

    Raises:
        Unmet: the disk is full, or cannot be written to.
    """
    while (old := _next(index, files)) is not None:
        file = files / f"{old['id']}{SUFFIX}"
        row = Row(
            id=old["id"],
            blob=new_name(old["id"]),
            trace=old["trace"],
            nbytes=0,
            state="damaged",
            last_used=time.time(),
            sequence=old["sequence"],
        )
        try:
            tensors = _tensors(old, file)
        except (OSError, ValueError, DecodeError):
            tensors = None  # the trace is damaged, and stays so: it can be made again
        if tensors is not None:
            sections = {TRACE: old["trace"], GRAPH: old["graph"], SNAPSHOTS: old["snapshots"]}
            encoded = Encoded(row.id, sections, tensors)
            with reported():
                blobs.write(row.blob, encoded.parts())
            row = Row(row.id, row.blob, row.trace, encoded.nbytes, last_used=row.last_used, sequence=row.sequence)
        with index.locked() as connection:
            mine = index.version(connection) == 1 and _remove(connection, row.id)
            if mine:
                index.insert(connection, row)
        with reported():
            if not mine:  # another process was faster
                blobs.delete(row.blob)
            file.unlink(missing_ok=True)


def _next(index: Index, files: Path) -> RowMapping | None:
    """An old row; where there is none left, the schema is the new one, and of the old files none is left."""
    with index.locked() as connection:
        if index.version(connection) != 1:
            return None
        old = connection.execute(select(_old).order_by(_old.c.sequence).limit(1)).mappings().one_or_none()
        if old is None:
            for file in files.glob(f"{'[0-9a-f]' * 32}{SUFFIX}"):
                file.unlink(missing_ok=True)
            _old.drop(connection)
            index.set_version(connection)
        return old


def _tensors(old: RowMapping, file: Path) -> Mapping[str, NDArray[Any]]:
    if not Trace.FromString(old["trace"]).values:
        return {}
    tensors = TensorFile(file)
    if tensors.metadata.get("trace") != old["id"]:
        raise ValueError("the file is another trace's")
    return {name: tensors.read(name) for name in tensors.names}


def _remove(connection: Connection, trace_id: str) -> bool:
    return connection.execute(_old.delete().where(_old.c.id == trace_id)).rowcount == 1
