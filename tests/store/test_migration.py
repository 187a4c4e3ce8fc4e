"""A store of schema 1, as fxtrace 0.1 wrote it, is brought up to date."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import safetensors.numpy

from fxtrace import wire
from fxtrace.errors import StoreDamaged
from fxtrace.store import Store
from fxtrace.store.quick import QuickStore
from fxtrace.store.row import Origin
from fxtrace.v1 import trace_service_pb2
from tests.store.traces import SNAPSHOTS, check_whole, files_of, make_graph, make_tensors, make_trace, put, trace_id


def write_schema_1(folder: Path, numbers: range) -> None:
    """What `Store.put` of schema 1 did; the last trace is without values."""
    (folder / "tensors").mkdir(parents=True)
    connection = sqlite3.connect(folder / "index.sqlite3", isolation_level=None)
    connection.executescript("""
        PRAGMA journal_mode = WAL;
        CREATE TABLE schema_version (version INTEGER NOT NULL, PRIMARY KEY (version));
        INSERT INTO schema_version VALUES (1);
        CREATE TABLE traces (
            sequence INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, id VARCHAR(32) NOT NULL,
            trace BLOB NOT NULL, snapshots BLOB NOT NULL, graph BLOB NOT NULL, UNIQUE (id)
        );
    """)
    for number in numbers:
        tensors = make_tensors(number)
        graph = make_graph(tensors)
        trace = make_trace(number, graph, values=number != numbers[-1])
        if trace.values:
            file = folder / "tensors" / f"{trace.id}.safetensors"
            safetensors.numpy.save_file(tensors, file, {"trace": trace.id})
        snapshots = trace_service_pb2.ListSnapshotsResponse(snapshots=map(wire.SNAPSHOT.encode, SNAPSHOTS))
        messages = (wire.TRACE.encode(trace), snapshots, wire.encode_graph(graph))
        connection.execute(
            "INSERT INTO traces (id, trace, snapshots, graph) VALUES (?, ?, ?, ?)",
            (trace.id, *(message.SerializeToString() for message in messages)),
        )
    connection.close()


def check_migrated(store: Store, numbers: range) -> None:
    assert [trace.id for _, trace in store.traces(1000)] == [trace_id(number) for number in reversed(numbers)]
    for number in numbers[:-1]:
        check_whole(store, number)
    graph = make_graph(make_tensors(numbers[-1]))
    assert store.find(trace_id(numbers[-1])) == make_trace(numbers[-1], graph, values=False)
    assert store.verify() == {}
    # A file that was written, but whose row was not, goes when it is an hour old: another process may be at it.
    assert {file.name[:32] for file in files_of(store.place)} == set(map(trace_id, numbers))
    assert all(len(file.stem) == 49 for file in files_of(store.place))


def test_reads_back_bit_equal(tmp_path: Path) -> None:
    write_schema_1(tmp_path, range(1, 6))
    for _ in range(2):
        store = Store(tmp_path)
        check_migrated(store, range(1, 6))
        store.close()


def test_a_damaged_trace_stays_damaged_and_can_be_made_again(tmp_path: Path) -> None:
    write_schema_1(tmp_path, range(1, 4))
    os.truncate(tmp_path / "tensors" / f"{trace_id(1)}.safetensors", 100)
    (tmp_path / "tensors" / f"{trace_id(2)}.safetensors").unlink()
    store = Store(tmp_path)
    for number in (1, 2):
        with pytest.raises(StoreDamaged, match=trace_id(number)):
            store.graph(trace_id(number))
        assert store.find(trace_id(number)) is None
    assert store.find(trace_id(3)) is not None
    store.close()


def test_two_at_once(tmp_path: Path) -> None:
    write_schema_1(tmp_path, range(1, 20))
    stores: list[Store] = []
    threads = [threading.Thread(target=lambda: stores.append(Store(tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 3
    for store in stores:
        check_migrated(store, range(1, 20))
        store.close()


KILLED_AT = """
import os, signal, sys
from fxtrace.store import Store, migrate

left = int(sys.argv[2])
for name in ("_next", "_tensors", "_remove"):
    def step(*args, work=getattr(migrate, name)):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*args)
    setattr(migrate, name, step)
Store(sys.argv[1]).close()
"""


@pytest.mark.parametrize("step", [2, 4, 9, 10])
def test_killed_on_the_way(tmp_path: Path, step: int) -> None:
    write_schema_1(tmp_path, range(1, 5))
    done = subprocess.run([sys.executable, "-c", KILLED_AT, tmp_path, str(step)], check=False)
    assert done.returncode < 0
    store = Store(tmp_path)
    check_migrated(store, range(1, 5))
    store.close()


def test_schema_2_is_given_what_it_lacks_and_keeps_the_rest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store, 1)
    store.close()
    with sqlite3.connect(tmp_path / "index.sqlite3") as connection:
        connection.executescript("DROP TABLE origins; UPDATE schema_version SET version = 2;")
    for kind in (QuickStore, Store):
        again = kind(tmp_path)
        check_whole(again, 1)
        assert again.latest() == trace_id(1)
        assert again.origin(trace_id=trace_id(1)) is None
        again.close()
    again = Store(tmp_path)
    origin = Origin("d" * 64, trace_id(1), "/models/mine.py", "m", 1.0)
    again.note_origin(origin)
    assert again.origin(digest="d" * 64) == again.origin(trace_id=trace_id(1)) == origin
    again.close()
