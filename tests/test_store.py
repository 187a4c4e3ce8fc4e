from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from numpy.typing import NDArray
from safetensors import safe_open

from fxtrace.dtypes import DTYPES, dtype_name
from fxtrace.errors import NameInvalid, StoreDamaged, TraceNotFound, Unmet
from fxtrace.graph import Check, Graph, Module, Node, Ref, Role, Snapshot, SnapshotTensor, Source, TensorSpec, Value
from fxtrace.store import Store, default_folder
from fxtrace.trace import Trace, TracedInput

Tensors = dict[str, NDArray[Any]]


def trace_id(number: int) -> str:
    return f"{number:032x}"


def make_tensors(number: int) -> Tensors:
    random = np.random.default_rng(number)
    return {"x": random.standard_normal((number % 5 + 1, 3), np.float32), "mask": random.random(7) < 0.5}


def spec_of(array: NDArray[Any]) -> TensorSpec:
    stride = tuple(step // (array.itemsize or 1) for step in array.strides)
    return TensorSpec(array.shape, dtype_name(array.dtype), stride, "cpu", True, array.nbytes)


def make_graph(tensors: Tensors) -> Graph:
    role = Role("encoder", 0, "self_attention", "scores", "a matmul", (Check("scores", "q·kᵀ", True, "0 ≤ 1e-6"),))
    nodes = [
        Node(name, "placeholder", name, "input", values=(Value("", "Tensor", spec_of(array)),), roles=(role,))
        for name, array in tensors.items()
    ]
    output = Node("output", "output", "output", "output", args=(Ref(nodes[0].name),), source=Source("m.py", 3, "y = x"))
    return Graph("Net", (*nodes, output), (Module("", "Net"),))


SNAPSHOTS = (
    Snapshot(
        1, "Scores", "encoder", ("encoder.0.scores",), ("s",), ("batch",), (SnapshotTensor("s", "x", "x", "r", (1,)),)
    ),
    Snapshot(2, "Mask", "decoder", ("decoder.0.mask",), ("m",), ("1",), reason="no decoder"),
)


def make_trace(number: int, graph: Graph, *, values: bool = True) -> Trace:
    spec = next(spec for _, spec in graph.tensors())
    return Trace(
        id=trace_id(number),
        model="net",
        configuration={"width": 3, "rate": 0.5, "words": ["a", "b"]},
        inputs=(TracedInput("x", spec, "example"),),
        rung="symbolic",
        rung_notes=("a note",),
        values=values,
        training=False,
        seed=-1,
        torch_version="2",
        fxtrace_version="0",
        output_equal=True if values else None,
        node_count=len(graph.nodes),
        tensor_count=len(dict(graph.tensors())),
        labelled_count=0,
        parameter_count=0,
        tensor_bytes=sum(spec.nbytes for _, spec in graph.tensors()),
        created=datetime(2026, 1, 1, tzinfo=UTC),
        seconds=0.25,
    )


def put(store: Store, number: int, tensors: Tensors | None = None) -> Trace:
    tensors = make_tensors(number) if tensors is None else tensors
    graph = make_graph(tensors)
    return store.put(make_trace(number, graph), graph, SNAPSHOTS, tensors)


def check_whole(store: Store, number: int, tensors: Tensors | None = None) -> None:
    """The trace reads back as `put` wrote it."""
    tensors = make_tensors(number) if tensors is None else tensors
    graph = make_graph(tensors)
    assert store.trace(trace_id(number)) == make_trace(number, graph)
    assert store.graph(trace_id(number)) == graph
    assert store.snapshots(trace_id(number)) == SNAPSHOTS
    read = store.read(trace_id(number), dict(graph.tensors()))
    assert list(read) == list(tensors)
    for name, array in tensors.items():
        assert read[name].dtype == array.dtype
        assert read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(tmp_path_factory.mktemp("shared"))
    yield store
    store.close()


def tensor_file(store: Store, number: int) -> Path:
    return store.folder / "tensors" / f"{trace_id(number)}.safetensors"


def test_reads_back_what_was_put_after_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store, 1)
    store.close()
    again = Store(tmp_path)
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


def test_arrays_are_mapped_not_copied(store: Store) -> None:
    put(store, 1)
    array = store.read(trace_id(1), dict(make_graph(make_tensors(1)).tensors()))["x"]
    assert not array.flags.owndata
    assert not array.flags.writeable
    store.delete(trace_id(1))
    assert array.tobytes() == make_tensors(1)["x"].tobytes()  # a reader keeps what it has


def test_the_file_is_a_safetensors_file(store: Store) -> None:
    put(store, 1)
    with safe_open(tensor_file(store, 1), framework="numpy") as file:
        assert file.metadata() == {"trace": trace_id(1)}
        assert np.array_equal(file.get_tensor("x"), make_tensors(1)["x"])


def test_scattered_arrays_are_written_in_order(store: Store) -> None:
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    graph = make_graph({"x": whole[:, ::2]})
    store.put(make_trace(1, graph), graph, (), {"x": whole[:, ::2]})
    assert np.array_equal(store.read(trace_id(1), dict(graph.tensors()))["x"], whole[:, ::2])


def test_without_values_there_is_no_file(store: Store) -> None:
    graph = make_graph(make_tensors(1))
    store.put(make_trace(1, graph, values=False), graph, (), {})
    assert store.find(trace_id(1)) == make_trace(1, graph, values=False)
    assert list((store.folder / "tensors").iterdir()) == []


def test_a_second_put_keeps_the_first(store: Store) -> None:
    put(store, 1)
    graph = make_graph(make_tensors(2))
    other = make_trace(1, graph)
    assert store.put(other, graph, (), make_tensors(2)) == make_trace(1, make_graph(make_tensors(1)))
    check_whole(store, 1)
    assert list((store.folder / "tensors").iterdir()) == [tensor_file(store, 1)]


def test_lists_newest_first_and_goes_on_after_a_place(store: Store) -> None:
    for number in (3, 1, 2):
        put(store, number)
    assert [trace.id for _, trace in store.traces(9)] == [trace_id(2), trace_id(1), trace_id(3)]
    [(place, _)] = store.traces(1)
    store.delete(trace_id(2))
    put(store, 4)  # newer than the place: not on a later page
    assert [trace.id for _, trace in store.traces(9, before=place)] == [trace_id(1), trace_id(3)]


def test_delete_removes_row_and_file(store: Store) -> None:
    put(store, 1)
    store.delete(trace_id(1))
    assert not tensor_file(store, 1).exists()
    assert store.find(trace_id(1)) is None


READERS: list[Callable[[Store, str], object]] = [
    Store.trace,
    Store.graph,
    Store.snapshots,
    Store.delete,
    Store.require,
    lambda store, name: store.read(name, {}),
]


@pytest.mark.parametrize("read", READERS)
def test_unknown_id(store: Store, read: Callable[[Store, str], object]) -> None:
    put(store, 1)
    with pytest.raises(TraceNotFound, match=trace_id(2)):
        read(store, trace_id(2))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", ["", "latest", "../../../etc/passwd", trace_id(10).upper(), trace_id(1) + "\n"])
def test_malformed_id(store: Store, read: Callable[[Store, str], object], name: str) -> None:
    with pytest.raises(NameInvalid, match="32 digits"):
        read(store, name)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def give_other(file: Path) -> None:
    file.write_bytes((file.parent / f"{trace_id(2)}.safetensors").read_bytes())


def scramble_header(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[9:12] = b"}}}"
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (Path.unlink, "tensors are missing"),
        (truncate, "the file has"),
        (lambda file: file.write_bytes(b""), "the file has 0 bytes"),
        (lambda file: file.write_bytes(b"\xff" * 64), "expected a header of"),
        (lambda file: file.write_bytes(file.read_bytes() + b"\0"), "the file has"),
        (scramble_header, "expected a safetensors header"),
        (give_other, f"got those of '{trace_id(2)}'"),
    ],
)
def test_a_damaged_file_is_named_and_can_be_made_again(
    store: Store, damage: Callable[[Path], object], problem: str
) -> None:
    put(store, 1)
    put(store, 2)
    specs = dict(store.graph(trace_id(1)).tensors())
    damage(tensor_file(store, 1))
    with pytest.raises(StoreDamaged) as caught:
        store.read(trace_id(1), specs)
    assert trace_id(1) in caught.value.message
    assert problem in caught.value.message
    assert "`fxtrace trace`" in caught.value.message
    assert store.find(trace_id(1)) is None
    put(store, 1)
    check_whole(store, 1)
    check_whole(store, 2)


def test_a_tensor_that_the_file_lacks(store: Store) -> None:
    put(store, 1)
    with pytest.raises(StoreDamaged, match="its tensor 'y' is missing"):
        store.read(trace_id(1), {"y": spec_of(np.zeros(1))})
    with pytest.raises(StoreDamaged, match="not a int64 of shape"):
        store.read(trace_id(1), {"x": spec_of(np.zeros(1, np.int64))})


@pytest.mark.parametrize("column", ["trace", "graph", "snapshots"])
def test_a_damaged_record_is_named_and_can_be_made_again(store: Store, column: str) -> None:
    put(store, 1)
    with sqlite3.connect(store.folder / "index.sqlite3") as connection:
        connection.execute(f"UPDATE traces SET {column} = x'ffff'")
    connection.close()
    with pytest.raises(StoreDamaged, match=f"{trace_id(1)}.*`fxtrace trace`"):
        getattr(store, column)(trace_id(1))
    assert store.find(trace_id(1)) is None
    put(store, 1)
    check_whole(store, 1)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / "index.sqlite3") as connection:
        connection.execute("UPDATE schema_version SET version = 99")
    connection.close()
    with pytest.raises(StoreDamaged, match=r"has schema 99, this fxtrace reads schema 1\. Update fxtrace"):
        Store(tmp_path)


def test_an_index_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "index.sqlite3").write_bytes(b"not a database, but long enough to be read as one" * 100)
    with pytest.raises(StoreDamaged, match=r"move index.sqlite3 away"):
        Store(tmp_path)


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unmet, match=r"cannot be used: Not a directory.*FXTRACE_STORE"):
        Store(tmp_path / "file" / "store")


def test_a_disk_that_refuses_leaves_nothing(store: Store) -> None:
    (store.folder / "tensors").rmdir()
    with pytest.raises(Unmet, match="cannot be used"):
        put(store, 1)
    assert store.find(trace_id(1)) is None


def test_opening_sweeps_what_no_row_names(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store, 1)
    files = tmp_path / "tensors"
    orphan, fresh, old, older = (files / name for name in (f"{trace_id(7)}.safetensors", "a.tmp", "b.tmp", ".tmpA1b2"))
    foreign = files / "notes.txt"
    for file in (orphan, fresh, old, older, foreign):
        file.write_bytes(b"x")
    for file in (old, older, foreign):
        os.utime(file, (time.time() - 3700,) * 2)
    store.close()
    store = Store(tmp_path)
    assert {file.name for file in files.iterdir()} == {tensor_file(store, 1).name, fresh.name, foreign.name}
    check_whole(store, 1)
    store.close()


def test_threads_and_stores_share_a_folder(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            store = Store(tmp_path)  # each opens, and so creates and sweeps, while others write
            for number in range(first, first + 8):
                put(store, number)
                put(store, 1000 + number % 8)
                check_whole(store, number)
                if number % 2:
                    store.delete(trace_id(number))
            store.close()
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    store = Store(tmp_path)
    kept = [100 * i + j for i in range(1, 5) for j in range(8) if (100 * i + j) % 2 == 0] + list(range(1000, 1008))
    assert sorted(trace.id for _, trace in store.traces(1000)) == sorted(map(trace_id, kept))
    for number in kept:
        check_whole(store, number)
    assert len(list((tmp_path / "tensors").iterdir())) == len(kept)
    store.close()


def test_the_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FXTRACE_STORE", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv("FXTRACE_STORE")
    assert default_folder().name == "fxtrace"


# Forks writers that kill themselves with SIGKILL just before the n-th call into the system, the database or the
# safetensors library during a `put`, for every n there is: they die at every step of it.
KILLED_BEFORE_EVERY_STEP = """
import os, signal, sys
from pathlib import Path
from tests.test_store import put
from fxtrace.store import Store

OUTSIDE = ("posix", "_io", "sqlite3", "safetensors._safetensors_rust", "builtins.TensorSpec")

def write(folder, step):
    store, left = Store(folder), step
    put(store, 1)
    def count(frame, event, called):
        nonlocal left
        if event == "c_call" and (called.__module__ or type(called.__self__).__module__) in OUTSIDE:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(count)
    put(store, 2)
    sys.setprofile(None)

for step in range(1, 1000):
    pid = os.fork()
    if not pid:
        write(Path(sys.argv[1]) / str(step), step)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != -signal.SIGKILL:
        sys.exit(code)
"""


def test_killed_before_every_step_of_a_put(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED_BEFORE_EVERY_STEP, tmp_path], check=True)
    folders = sorted(tmp_path.iterdir(), key=lambda folder: int(folder.name))
    whole = []
    for folder in folders:
        store = Store(folder)
        check_whole(store, 1)
        whole.append(store.find(trace_id(2)) is not None)
        named = {tensor_file(store, number).name for number in ([1, 2] if whole[-1] else [1])}
        assert {file.name for file in (folder / "tensors").glob("*.safetensors")} == named  # orphans are swept
        put(store, 2)
        check_whole(store, 2)
        store.close()
    # First it was not there, from some step on it was: never anything between.
    assert whole == sorted(whole)
    assert whole.count(False) > 10
    assert whole.count(True) > 1


WRITES_UNTIL_KILLED = """
import sys
from itertools import count
from pathlib import Path
from tests.test_store import put
from fxtrace.store import Store

store = Store(Path(sys.argv[1]))
for number in count(1):
    put(store, number)
    print(number, flush=True)
"""


def test_killed_from_outside_while_it_writes(tmp_path: Path) -> None:
    done = 0
    for more in (1, 2, 5):
        with subprocess.Popen([sys.executable, "-c", WRITES_UNTIL_KILLED, tmp_path], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(done + more):
                done = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            done = max([done, *map(int, writer.stdout.read().split())])
        store = Store(tmp_path)
        there = [trace.id for _, trace in store.traces(1000)]
        assert there[::-1] in ([*map(trace_id, range(1, done + 1))], [*map(trace_id, range(1, done + 2))])
        for number in range(1, len(there) + 1):
            check_whole(store, number)
        store.close()
