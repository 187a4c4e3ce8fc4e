"""Traces by id: an index of small rows in an SQL database, and one file per trace in a folder or an object store.

    place.py      what names a store: a folder, or URLs
    index.py      the rows: which traces there are, where, how large, when last used, pinned or not
    tracefile.py  a trace's file: safetensors with everything about the trace and a checksum of every block
    blobs.py      files in a folder: whole or absent, whatever happens
    objects.py    the same in an object store
    files.py      a trace's file, opened by its row
    store.py      the two together: put, read, delete, make room, verify, sweep
    stored.py     what it tells of a trace
    memory.py     the same for traces that nobody keeps: in memory, whole
    single.py     a trace in a file of its own
    migrate.py    what an older fxtrace wrote
    faults.py     what a disk, a database or an object store refuses, as errors

The file is the truth, and the index can be made from the files: a trace is there once its file is. A file gets its name
when it is on the disk as a whole, then one transaction adds the row; whoever finds a file without a row adds the row.
Where formulas are added, a new file takes the old one's place in the row, and then the old one goes.
Deleting marks the row and removes the file; whoever opens the store next removes the row. So whatever is killed at
whatever moment, a trace is whole or absent, and any server over the same store finishes what another began. No torch
here.
"""

from fxtrace.store.memory import MemoryStore, TraceData
from fxtrace.store.place import default_place
from fxtrace.store.store import Store
from fxtrace.store.stored import Collected, StoredTrace
from fxtrace.store.tracefile import StoredTensor, TraceFile

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
