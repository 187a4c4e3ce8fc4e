"""What every kind of store does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from safetensors import safe_open

from fxtrace.dims import Finding, Formula, Formulas
from fxtrace.dtypes import DTYPES
from fxtrace.errors import NameInvalid, OptionInvalid, TooLarge, TraceNotFound
from fxtrace.store import Store, default_place
from fxtrace.store.tracefile import TRACE
from tests.store.conftest import NewPlace
from tests.store.traces import (
    Tensors,
    check_whole,
    file_of,
    files_of,
    make_graph,
    make_tensors,
    make_trace,
    put,
    trace_id,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(tmp_path_factory.mktemp("shared"))
    yield store
    store.close()


def test_reads_back_what_was_put_after_a_restart(place: str) -> None:
    store = Store(place)
    put(store, 1)
    check_whole(store, 1)
    store.close()
    again = Store(place)
    check_whole(again, 1)
    again.close()


arrays = st.builds(
    lambda dtype, shape, seed: (
        np.random.default_rng(seed).integers(0, 2, (*shape, dtype.itemsize), np.uint8).view(dtype).reshape(shape)
    ),
    st.sampled_from(sorted(DTYPES.values(), key=str)),
    array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
    st.integers(0, 2**32),
)


@given(st.dictionaries(st.text(min_size=1, max_size=8), arrays, min_size=1, max_size=5))
def test_every_dtype_and_shape_reads_back_equal(shared: Store, tensors: Tensors) -> None:
    number = len(shared.traces(1000)) + 1
    put(shared, number, tensors)
    check_whole(shared, number, tensors)


def test_the_file_is_a_safetensors_file(folder_store: Store) -> None:
    put(folder_store, 1)
    with safe_open(file_of(folder_store.place, 1), framework="numpy") as file:
        assert file.metadata() == {"trace": trace_id(1)}
        assert np.array_equal(file.get_tensor("x"), make_tensors(1)["x"])


def test_scattered_arrays_are_written_in_order(folder_store: Store) -> None:
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    graph = make_graph({"x": whole[:, ::2]})
    folder_store.put(make_trace(1, graph), graph, (), {"x": whole[:, ::2]})
    assert np.array_equal(folder_store.read(trace_id(1), dict(graph.tensors()))["x"], whole[:, ::2])


def test_without_values_the_tensors_are_not_kept(store: Store) -> None:
    graph = make_graph(make_tensors(1))
    store.put(make_trace(1, graph, values=False), graph, (), make_tensors(1))
    assert store.find(trace_id(1)) == make_trace(1, graph, values=False)
    assert store.graph(trace_id(1)) == graph
    assert store.verify() == {}


def test_a_second_put_keeps_the_first(store: Store) -> None:
    put(store, 1)
    graph = make_graph(make_tensors(2))
    other = make_trace(1, graph)
    assert store.put(other, graph, (), make_tensors(2)) == make_trace(1, make_graph(make_tensors(1)))
    check_whole(store, 1)
    assert len(store._blobs.files()) == 1


def test_lists_newest_first_and_goes_on_after_a_place(store: Store) -> None:
    for number in (3, 1, 2):
        put(store, number)
    assert [trace.id for _, trace in store.traces(9)] == [trace_id(2), trace_id(1), trace_id(3)]
    [(at, _)] = store.traces(1)
    store.delete(trace_id(2))
    put(store, 4)  # newer than the place: not on a later page
    assert [trace.id for _, trace in store.traces(9, before=at)] == [trace_id(1), trace_id(3)]


FORMULAS = Formulas(
    {"rows": 2}, {"x": (Finding(Formula("rows + 1"), ("rows",), 2), Finding(None))}, {}, {"layers": "2 → 3"}, probes=7
)


def test_formulas_are_kept_with_their_trace(place: str) -> None:
    store = Store(place)
    for number in (1, 2):
        put(store, number)
    store.pin(trace_id(1))
    before = store.nbytes
    assert store.formulas(trace_id(1)) is None
    with store.open(trace_id(2)) as file:
        for _ in range(2):
            store.put_formulas(trace_id(1), FORMULAS)
        assert file.section(TRACE)
    assert store.nbytes > before
    store.close()
    again = Store(place)
    assert again.formulas(trace_id(1)) == FORMULAS
    assert again.formulas(trace_id(2)) is None
    check_whole(again, 1)
    assert again.verify() == {}
    assert [(each.trace.id, each.pinned) for each in again.stored()] == [(trace_id(2), False), (trace_id(1), True)]
    assert len(again._blobs.files()) == 2
    again.delete(trace_id(1))
    assert len(again._blobs.files()) == 1
    with pytest.raises(TraceNotFound):
        again.formulas(trace_id(1))
    with pytest.raises(TraceNotFound):
        again.put_formulas(trace_id(1), FORMULAS)
    again.close()


def test_formulas_that_do_not_fit_the_quota_are_refused(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        put(store, 1)
        nbytes = store.nbytes
    with closing(Store(tmp_path, quota_bytes=nbytes)) as store:
        with pytest.raises(TooLarge):
            store.put_formulas(trace_id(1), FORMULAS)
        check_whole(store, 1)
        assert store.formulas(trace_id(1)) is None
        assert store.nbytes == nbytes


def test_delete_removes_row_and_file(store: Store) -> None:
    put(store, 1)
    with store.open(trace_id(1)):
        pass
    store.delete(trace_id(1))
    assert store._blobs.files() == {}
    assert store.find(trace_id(1)) is None
    with pytest.raises(TraceNotFound):
        store.delete(trace_id(1))
    put(store, 1)
    check_whole(store, 1)


def test_a_file_in_a_folder_that_is_open_stays_readable(folder_store: Store) -> None:
    tensors = make_tensors(1)
    put(folder_store, 1)
    with folder_store.open(trace_id(1)) as file:
        folder_store.delete(trace_id(1))
        assert file.tensor("x", tensors["x"].dtype, tensors["x"].shape).array().tobytes() == tensors["x"].tobytes()


READERS: list[Callable[[Store, str], object]] = [
    Store.trace,
    Store.graph,
    Store.snapshots,
    Store.delete,
    Store.require,
    Store.pin,
    Store.open,
    lambda store, name: store.read(name, {}),
    lambda store, name: store.verify([name]),
]


@pytest.mark.parametrize("read", READERS)
def test_unknown_id(shared: Store, read: Callable[[Store, str], object]) -> None:
    with pytest.raises(TraceNotFound, match="f" * 32):
        read(shared, "f" * 32)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", ["", "latest", "../../../etc/passwd", trace_id(10).upper(), trace_id(1) + "\n"])
def test_malformed_id(shared: Store, read: Callable[[Store, str], object], name: str) -> None:
    with pytest.raises(NameInvalid, match="32 digits"):
        read(shared, name)


def test_several_stores_share_a_place(place: str) -> None:
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            store = Store(place)  # each opens, and so creates and sweeps, while others write
            for number in range(first, first + 4):
                put(store, number)
                put(store, 1000 + number % 4)
                check_whole(store, number)
                if number % 2:
                    store.delete(trace_id(number))
            store.close()
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    store = Store(place)
    kept = [100 * i + j for i in range(1, 4) for j in range(4) if (100 * i + j) % 2 == 0] + list(range(1000, 1004))
    assert sorted(trace.id for _, trace in store.traces(1000)) == sorted(map(trace_id, kept))
    for number in kept:
        check_whole(store, number)
    assert len(store._blobs.files()) == len(kept)
    assert store.verify() == {}
    store.close()


# ---------------------------------------------------------------------------------------------------- where it is


def test_the_place_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FXTRACE_STORE", str(tmp_path))
    assert default_place() == str(tmp_path)
    monkeypatch.delenv("FXTRACE_STORE")
    assert Path(default_place()).name == "fxtrace"


def test_a_folder_and_its_urls_are_the_same_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store, 1)
    store.close()
    same = Store(f"sqlite:///{tmp_path}/index.sqlite3#{tmp_path}/tensors")
    check_whole(same, 1)
    same.close()
    assert len(files_of(tmp_path / "tensors")) == 1


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("s3://bucket/prefix", "no place of the files"),
        ("postgresql://me:secret@host/db", "no place of the files"),
        ("mysql://me:secret@host/db#/files", "an index of the kind 'mysql'"),
        ("postgresql://me:secret@host:port/db#/files", "no URL of a database"),
        ("sqlite://#nope://files", "s3://bucket/prefix"),
    ],
)
def test_a_place_that_is_none(place: str, problem: str) -> None:
    with pytest.raises(OptionInvalid, match=problem) as caught:
        Store(place)
    assert caught.value.field == "store"
    assert "secret" not in caught.value.message


def test_a_password_is_not_shown(new_place: NewPlace, tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    with pytest.raises(Exception, match=r"cannot be used: .*\*\*\*") as caught:
        Store(f"postgresql://me:secret@127.0.0.1:1/db#{tmp_path}")
    assert "secret" not in str(caught.value)
