"""Files in an object store: divided into objects, and what can be wrong with them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fxtrace.errors import StoreDamaged, TraceNotFound, Unmet
from fxtrace.store import Store
from fxtrace.store.blobs import Written
from tests.store.conftest import NewPlace
from tests.store.traces import check_whole, make_graph, make_tensors, put, trace_id

obstore = pytest.importorskip("obstore", reason="the extra 's3' is not installed")
objects = pytest.importorskip("fxtrace.store.objects")


@pytest.fixture(autouse=True)
def small_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects of 100 bytes, so that every file has several."""
    monkeypatch.setattr(objects, "PART_BYTES", 100)


@pytest.fixture
def store(new_place: NewPlace) -> Iterator[Store]:
    store = Store(new_place("sqlite+s3"))
    yield store
    store.close()


def keys(store: Store) -> list[str]:
    return sorted(each["path"] for batch in obstore.list(store._blobs._store) for each in batch)  # type: ignore[attr-defined]


def bucket_of(store: Store) -> object:
    return store._blobs._store  # type: ignore[attr-defined]


@pytest.mark.parametrize("nbytes", [0, 1, 99, 100, 101, 200, 250])
def test_a_file_is_divided_and_read_across(store: Store, nbytes: int) -> None:
    data = bytes(i % 251 for i in range(nbytes))
    store._blobs.write("a", [memoryview(data)[:7], memoryview(data)[7:]])
    assert len(keys(store)) == max(1, -(-nbytes // 100))
    [(name, written)] = store._blobs.files().items()
    assert (name, written) == ("a", Written(written.at, nbytes))
    source = store._blobs.open("a")
    assert source.nbytes == nbytes
    for start in range(0, nbytes, 33):
        for length in (1, 50, 250):
            room = memoryview(bytearray(length))
            got = source.readinto(start, room)
            assert bytes(room[:got]) == data[start : start + length]
    store._blobs.delete("a")
    assert keys(store) == []
    with pytest.raises(FileNotFoundError):
        store._blobs.open("a")


def test_what_a_killed_writer_left_goes_when_it_is_old(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, 1)
    whole = keys(store)

    def killed() -> Iterator[memoryview]:
        yield memoryview(bytes(250))
        obstore.put(bucket_of(store), "b.more/000001", b"left")  # as if the process had ended after this upload
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store._blobs.write("b", killed())
    obstore.put(bucket_of(store), "b.more/000001", b"left")
    assert store.sweep() == 0  # it may still be at it
    assert keys(store) == sorted([*whole, "b.more/000001"])
    monkeypatch.setattr(objects, "_ABANDONED_AFTER_SECONDS", -1)
    assert store.sweep() == 4
    assert keys(store) == whole
    check_whole(store, 1)


@pytest.mark.parametrize("damage", ["flip", "cut", "lose the first", "lose another"])
def test_a_damaged_object_is_found(store: Store, damage: str) -> None:
    put(store, 1)
    put(store, 2)
    mine = [key for key in keys(store) if key.startswith(trace_id(1))]
    first, another = next(key for key in mine if ".more/" not in key), next(key for key in mine if ".more/" in key)
    if damage.startswith("lose"):
        obstore.delete(bucket_of(store), first if damage == "lose the first" else another)
    else:
        data = bytearray(obstore.get(bucket_of(store), another).bytes())
        data[50] ^= 1
        obstore.put(bucket_of(store), another, bytes(data if damage == "flip" else data[:-1]))
    specs = dict(make_graph(make_tensors(1)).tensors())
    with pytest.raises(StoreDamaged, match=trace_id(1)):
        store.read(trace_id(1), specs), store.graph(trace_id(1)), store.snapshots(trace_id(1))
    assert list(store.verify()) == [trace_id(1)]
    check_whole(store, 2)
    assert store.find(trace_id(1)) is None
    put(store, 1)
    check_whole(store, 1)
    assert store.verify() == {}


def test_a_trace_that_another_server_deletes_is_gone(store: Store) -> None:
    put(store, 1)
    other = Store(store.place)
    tensors = make_tensors(1)
    with store.open(trace_id(1)) as file:
        tensor = file.tensor("x", tensors["x"].dtype, tensors["x"].shape)
        other.delete(trace_id(1))
        with pytest.raises(TraceNotFound):
            tensor.array()
    other.close()


def test_an_endpoint_that_does_not_answer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(objects, "_RETRIES", 0)
    with pytest.raises(Unmet, match="cannot be used: the object store: "):
        Store(store.place)
