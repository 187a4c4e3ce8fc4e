from __future__ import annotations

import time

import pytest

from fxtrace.errors import TooLarge
from fxtrace.store import Store
from tests.store.conftest import NewPlace
from tests.store.traces import check_whole, put, trace_id


def ids(store: Store) -> list[str]:
    return [trace.id for _, trace in store.traces(1000)][::-1]


@pytest.fixture(params=["folder", "postgresql+s3"])
def place(request: pytest.FixtureRequest, new_place: NewPlace) -> str:
    return new_place(request.param)


def size_of_one(new_place: NewPlace) -> int:
    store = Store(new_place("folder"))
    put(store, 5)
    store.close()
    return store_size(store)


def store_size(store: Store) -> int:
    return sum(written.nbytes for written in store._blobs.files().values())


def test_the_least_recently_used_unpinned_traces_go(place: str, new_place: NewPlace) -> None:
    quota = 4 * size_of_one(new_place) + 200
    store = Store(place, quota_bytes=quota)
    for number in (5, 10, 15, 20):  # all of one size
        put(store, number)
    assert store_size(store) > 0.9 * quota
    store.pin(trace_id(10))
    time.sleep(0.01)
    check_whole(store, 5)  # used: the oldest is now 15
    put(store, 25)
    assert ids(store) == [trace_id(number) for number in (5, 10, 20, 25)]
    put(store, 30)
    put(store, 35)
    assert ids(store) == [trace_id(number) for number in (10, 25, 30, 35)]
    store.pin(trace_id(10), pinned=False)
    put(store, 40)  # pinning counts as use
    assert ids(store) == [trace_id(number) for number in (10, 30, 35, 40)]
    assert store_size(store) <= quota
    assert store.verify() == {}
    store.close()


def test_when_traces_were_used_survives_a_restart(place: str, new_place: NewPlace) -> None:
    quota = 3 * size_of_one(new_place) + 200
    store = Store(place, quota_bytes=quota)
    for number in (5, 10, 15):
        put(store, number)
    time.sleep(0.01)
    check_whole(store, 5)
    store.close()
    store = Store(place, quota_bytes=quota)
    put(store, 20)
    assert ids(store) == [trace_id(number) for number in (5, 15, 20)]
    store.close()


def test_a_trace_that_can_never_fit_is_refused_before_anything_is_kept(place: str, new_place: NewPlace) -> None:
    one = size_of_one(new_place)
    store = Store(place, quota_bytes=2 * one)
    put(store, 5)
    store.pin(trace_id(5))
    put(store, 10)
    store.pin(trace_id(10))
    with pytest.raises(TooLarge, match=r"pinned traces take [\d,]+, and the store's quota is"):
        put(store, 15)
    assert ids(store) == [trace_id(5), trace_id(10)]
    assert len(store._blobs.files()) == 2
    small = Store(new_place("folder"), quota_bytes=one - 1)
    with pytest.raises(TooLarge, match=f"the trace takes {one:,} bytes"):
        put(small, 5)
    assert ids(small) == []
    assert small._blobs.files() == {}
    small.close()
    store.close()


def test_collecting_makes_room(place: str, new_place: NewPlace) -> None:
    one = size_of_one(new_place)
    store = Store(place)
    for number in (5, 10, 15):
        put(store, number)
    store.pin(trace_id(5))
    assert store.collect().evicted == ()
    collected = store.collect(quota_bytes=2 * one + 100)
    assert collected.evicted == (trace_id(10),)
    assert abs(collected.nbytes - one) < 100
    assert store.collect(quota_bytes=0).evicted == (trace_id(15),)
    assert ids(store) == [trace_id(5)]
    [kept] = store.stored()
    assert (kept.trace.id, kept.pinned, kept.damaged) == (trace_id(5), True, False)
    assert kept.nbytes == store_size(store)
    assert abs(kept.last_used.timestamp() - time.time()) < 60
    store.close()
