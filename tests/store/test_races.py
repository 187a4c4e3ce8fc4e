"""Two processes at one trace, each step of the one between two steps of the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from fxtrace.dims import Formulas
from fxtrace.errors import StoreDamaged, TraceNotFound, Unmet
from fxtrace.store import Store
from fxtrace.store.blobs import Blobs, Source
from fxtrace.store.row import Row
from tests.store.traces import check_whole, make_tensors, put, trace_id


@pytest.fixture
def stores(place: str) -> Iterator[tuple[Store, Store]]:
    """Two over one place, of every kind."""
    with closing(Store(place)) as one, closing(Store(place)) as other:
        yield one, other


class Interrupted:
    """Files, of which the next time one is opened or deleted something else happens first."""

    def __init__(self, blobs: Blobs, method: str, first: Callable[[], object]) -> None:
        self._blobs, self._method, self._first = blobs, method, [first]

    def __getattr__(self, name: str) -> object:
        if name == self._method and self._first:
            self._first.pop()()
        return getattr(self._blobs, name)


def interrupt(store: Store, method: str, first: Callable[[], object]) -> None:
    blobs: object = Interrupted(store._blobs, method, first)
    store._blobs = blobs  # type: ignore[assignment]


def copy_of(store: Store, number: int) -> str:
    """Another file of a trace, as a writer leaves it that is killed before it has its row; its name."""
    blob = store._row(trace_id(number)).blob
    name = f"{trace_id(number)}.{'0' * 16}"
    source: Source = store._blobs.open(blob)
    data = memoryview(bytearray(source.nbytes))
    source.readinto(0, data)
    source.close()
    store._blobs.write(name, [data])
    return name


def test_a_deleted_trace_is_not_brought_back_by_what_a_killed_writer_left(
    stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = stores
    put(one, 1)
    left = copy_of(one, 1)
    one.delete(trace_id(1))
    for store in (one, other):
        for _ in range(2):
            store.sweep()
        assert store.traces(9) == []
        assert store.find(trace_id(1)) is None
    assert list(one._blobs.files()) == [left]  # whoever wrote it may still be at it
    monkeypatch.setattr("fxtrace.store.store._SETTLED_AFTER_SECONDS", -1)
    assert other.sweep() > 0
    assert one._blobs.files() == {}
    other.sweep()
    with one._index.reading() as connection:
        assert one._index.blobs(connection) == set()
    put(one, 1)
    check_whole(other, 1)


def test_a_slower_writer_of_a_deleted_trace_makes_it_again(stores: tuple[Store, Store]) -> None:
    one, other = stores
    put(one, 1)

    def delete() -> None:
        other.delete(trace_id(1))
        other.sweep()

    interrupt(one, "write", delete)
    put(one, 1)
    check_whole(other, 1)


def test_a_damaged_trace_that_another_has_made_again_stays(
    stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = stores
    put(one, 1)
    one._blobs.delete(one._row(trace_id(1)).blob)

    def make_again() -> None:
        assert other.find(trace_id(1)) is None
        put(other, 1)

    with pytest.raises(StoreDamaged):
        one.graph(trace_id(1))
    row = one._row

    def slow(name: str) -> Row:
        found = row(name)
        make_again()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(one, "_row", slow)
        one.find(trace_id(1))
    check_whole(other, 1)
    check_whole(one, 1)


def test_a_trace_that_is_pinned_in_the_last_moment_stays(stores: tuple[Store, Store]) -> None:
    one, other = stores
    for number in (5, 10):
        put(one, number)
    interrupt(one, "delete", lambda: other.pin(trace_id(10)))  # while the one before it goes
    assert one.collect(quota_bytes=0).evicted == (trace_id(5),)
    check_whole(other, 10)


def test_formulas_that_could_not_be_kept_leave_no_file(
    stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = stores
    put(one, 1)

    def fail(*_: object) -> None:
        raise Unmet("the disk is full")

    monkeypatch.setattr(one._index, "insert", fail)
    with pytest.raises(Unmet):
        one.put_formulas(trace_id(1), Formulas({}, {}, {}, {}))
    assert len(one._blobs.files()) == 1
    check_whole(other, 1)


def test_what_is_deleted_while_it_is_read_is_not_found(stores: tuple[Store, Store]) -> None:
    one, other = stores
    put(one, 1)
    interrupt(one, "open", lambda: other.delete(trace_id(1)))
    with pytest.raises(TraceNotFound):
        one.graph(trace_id(1))


def test_formulas_are_found_while_the_numbers_are_read(stores: tuple[Store, Store]) -> None:
    one, other = stores
    put(one, 1)
    tensors = make_tensors(1)
    with one.open(trace_id(1)) as file:
        other.put_formulas(trace_id(1), Formulas({}, {}, {}, {}))
        for name, array in tensors.items():
            assert file.tensor(name, array.dtype, array.shape).array().tobytes() == array.tobytes()
        other.delete(trace_id(1))
