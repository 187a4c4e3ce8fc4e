"""A store that is opened only as far as it is needed answers as one that was opened as a whole."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from fxtrace.errors import FxtraceError, NameInvalid, StoreDamaged, TraceNotFound
from fxtrace.store import Store
from fxtrace.store.quick import QuickStore
from fxtrace.store.row import Origin
from tests.store.traces import check_whole, file_of, put, trace_id

READ = """
import sys
from fxtrace.store.quick import QuickStore
store = QuickStore(sys.argv[1])
one = store.resolve("latest")
assert store.beginning(one[:31], 2) and store.origin(digest="d" * 64).trace == one
assert store.trace(one).id == one and store.graph(one).nodes and store.find(one) and store.find("f" * 32) is None
assert [trace.id for _, trace in store.traces(10)][:1] == [one]
store.close()
print(*[name for name in ("sqlalchemy", "networkx", "torch", "pydantic") if name in sys.modules])
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A store with three traces; the second was asked for last."""
    store = Store(tmp_path)
    for number in (1, 2, 3):
        put(store, number)
    store.note_origin(Origin("d" * 64, trace_id(2), "/models/mine.py", "m"))
    store.close()
    return tmp_path


def test_reading_needs_no_sqlalchemy(place: Path) -> None:
    store = Store(place)
    store.delete(trace_id(2))
    store.note_origin(Origin("d" * 64, trace_id(3), "/models/mine.py", "m"))
    store.close()
    with sqlite3.connect(place / "index.sqlite3") as connection:
        connection.execute("DELETE FROM stored_traces WHERE state = 'deleted'")
    done = subprocess.run([sys.executable, "-c", READ, place], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("\n", "")


def answers(store: Store) -> list[object]:
    """What a store says to many questions."""

    def ask(question: Callable[[], object]) -> object:
        try:
            return question()
        except FxtraceError as error:
            return type(error), error.message

    ids = (*map(trace_id, range(5)), "f" * 32, "no id")
    return [
        *(ask(partial(store.trace, trace)) for trace in ids),
        *(ask(partial(store.graph, trace)) for trace in ids),
        *(ask(partial(store.snapshots, trace)) for trace in ids),
        *(ask(partial(store.formulas, trace)) for trace in ids),
        *(ask(partial(store.require, trace)) for trace in ids),
        *(ask(partial(store.resolve, text)) for text in ("latest", "0", trace_id(3)[:32], "0" * 31, "9", "x")),
        [(trace_id, trace.id) for trace_id, trace in store.traces(2)],
        [trace.id for _, trace in store.traces(10, before=3)],
        store.latest(),
        [store.origin(trace_id=trace) for trace in ids],
        store.origin(digest="d" * 64),
    ]


def nothing(_: Path) -> None: ...


def sql(statement: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        with sqlite3.connect(place / "index.sqlite3") as connection:
            connection.executescript(statement)

    return change


def delete(place: Path) -> None:
    store = Store(place)
    store.delete(trace_id(2))
    store._index.close()  # as if it were killed: its row is still there


def lose_the_index(place: Path) -> None:
    for file in place.glob("index.sqlite3*"):
        file.unlink()


@pytest.mark.parametrize(
    "change",
    [
        nothing,
        delete,
        lose_the_index,
        sql("UPDATE stored_traces SET nbytes = 1 WHERE sequence = 2"),
        sql("UPDATE stored_traces SET trace = x'00' WHERE sequence = 2"),
        sql("UPDATE stored_traces SET last_used = 'yesterday' WHERE sequence = 2"),
        sql("DELETE FROM stored_traces WHERE sequence = 2"),  # its file is there: it gets a row again
        sql("UPDATE schema_version SET version = 2; DROP TABLE origins"),
        sql("DELETE FROM origins"),
        lambda place: file_of(place, 2).unlink(),
        lambda place: file_of(place, 2).write_bytes(b"x" * 100),
        lambda place: file_of(place, 2).rename(place / "tensors" / f"{trace_id(2)}.{'e' * 16}.safetensors"),
    ],
)
def test_it_answers_as_a_whole_store(place: Path, tmp_path_factory: pytest.TempPathFactory, change: object) -> None:
    assert callable(change)
    change(place)
    copy = tmp_path_factory.mktemp("copy")
    subprocess.run(["cp", "-a", f"{place}/.", copy], check=True)
    whole, quick = Store(place), QuickStore(copy)
    expected = answers(whole)
    assert answers(quick) == expected
    whole.close()
    quick.close()


def test_what_it_cannot_open_is_told_as_by_a_whole_store(place: Path) -> None:
    sql("UPDATE schema_version SET version = 99")(place)
    quick = QuickStore(place)
    with pytest.raises(StoreDamaged, match="this fxtrace reads schema"):
        quick.trace(trace_id(1))
    quick.close()
    (place / "index.sqlite3").write_bytes(b"no database" * 1000)
    quick = QuickStore(place)
    with pytest.raises(StoreDamaged, match="the store's index is damaged"):
        quick.trace(trace_id(1))
    quick.close()


def test_a_trace_can_be_put_deleted_and_made_again(place: Path) -> None:
    quick = QuickStore(place)
    check_whole(quick, 1)
    put(quick, 4)
    quick.delete(trace_id(1))
    with pytest.raises(TraceNotFound):
        quick.trace(trace_id(1))
    assert quick.find(trace_id(1)) is None
    quick.close()
    again = Store(place)
    assert [trace.id for _, trace in again.traces(9)] == [trace_id(number) for number in (4, 3, 2)]
    again.close()


def test_it_notes_when_a_trace_was_used(place: Path) -> None:
    sql("UPDATE stored_traces SET last_used = 1.0")(place)
    before = time.time()
    quick = QuickStore(place)
    quick.graph(trace_id(2))
    quick.close()
    store = Store(place)
    used = {stored.trace.id: stored.last_used.timestamp() for stored in store.stored()}
    store.close()
    assert used[trace_id(2)] >= before
    assert used[trace_id(1)] == used[trace_id(3)] == 1.0


def test_reading_goes_on_while_another_writes(place: Path) -> None:
    other = sqlite3.connect(place / "index.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    quick = QuickStore(place)
    assert quick.trace(quick.resolve("latest")).id == trace_id(2)
    quick.close()  # what it noted is lost
    other.execute("ROLLBACK")
    other.close()


def test_a_deleted_trace_is_never_the_latest(place: Path) -> None:
    for kind in (Store, QuickStore):
        store = kind(place)
        assert store.latest() == trace_id(2)
        store.close()
    store = Store(place)
    store.delete(trace_id(2))
    assert store.latest() == trace_id(3)
    assert store.origin(digest="d" * 64) is None
    store.note_origin(Origin("e" * 64, trace_id(1), "reference", "m"))
    assert store.latest() == trace_id(1)
    store.close()


def test_the_beginning_of_several_ids(place: Path) -> None:
    other = 0xA5 << 120  # its id begins as no other does
    whole = Store(place)
    put(whole, other)
    whole.close()
    store = QuickStore(place)
    with pytest.raises(NameInvalid, match=f"such as {trace_id(3)} and {trace_id(2)}; give more digits"):
        store.resolve("0")
    assert store.resolve(trace_id(3)[:32]) == trace_id(3)
    for digits in (1, 2, 5, 31):
        assert store.resolve(trace_id(other)[:digits]) == trace_id(other)
    with pytest.raises(TraceNotFound, match="no trace's id starts with 'a6'"):
        store.resolve("a6")
    store.close()
