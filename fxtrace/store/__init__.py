"""Traces by id: an index of small rows in an SQL database, and one file per trace in a folder or an object store.

    place.py      what names a store: a folder, or URLs
    row.py        what the index says of a trace, and of the requests that led to it
    index.py      the rows, in SQLite or PostgreSQL
    tracefile.py  a trace's file: safetensors with everything about the trace and a checksum of every block
    blobs.py      files in a folder: whole or absent, whatever happens
    objects.py    the same in an object store
    files.py      a trace's file, opened by its row
    store.py      the two together: put, read, delete, make room, verify, sweep
    quick.py      a store that is opened only as far as a command needs it
    naming.py     which trace an id, the beginning of one, or `latest` means
    stored.py     what the store tells of a trace
    memory.py     the same for traces that nobody keeps: in memory, whole
    single.py     a trace in a file of its own
    migrate.py    what an older fxtrace wrote
    faults.py     what a disk or an object store refuses, and damage, as errors
    refusals.py   what a database refuses

The file is the truth, and the index can be made from the files: a trace is there once its file is. A file gets its name
when it is on the disk as a whole, then one transaction adds the row; whoever finds a file without a row adds the row.
Where formulas are added, a new file takes the old one's place in the row, and then the old one goes.
Deleting marks the row and removes the file; whoever opens the store next removes the row. So whatever is killed at
whatever moment, a trace is whole or absent, and any server over the same store finishes what another began. No torch
here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxtrace.store.memory import MemoryStore, TraceData
    from fxtrace.store.place import default_place
    from fxtrace.store.store import Store
    from fxtrace.store.stored import Collected, StoredTrace
    from fxtrace.store.tracefile import StoredTensor, TraceFile

_HOME = {
    "Collected": "stored",
    "MemoryStore": "memory",
    "Store": "store",
    "StoredTensor": "tracefile",
    "StoredTrace": "stored",
    "TraceData": "memory",
    "TraceFile": "tracefile",
    "default_place": "place",
}

__all__ = [
    "Collected",
    "MemoryStore",
    "Store",
    "StoredTensor",
    "StoredTrace",
    "TraceData",
    "TraceFile",
    "default_place",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fxtrace.store' has no attribute '{name}'")
    return getattr(import_module(f"fxtrace.store.{_HOME[name]}"), name)
