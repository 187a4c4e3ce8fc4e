"""What is damaged, full, cut short, killed or in the way: a clear error or a repair, never a wrong tensor."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fxtrace.errors import StoreDamaged, TraceNotFound, Unmet
from fxtrace.store import Store
from fxtrace.store.blobs import Folder
from tests.store.traces import check_whole, file_of, files_of, make_graph, make_tensors, put, spec_of, trace_id


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def give_other(file: Path) -> None:
    file.write_bytes(file_of(file.parent, 2).read_bytes())


def flip(at: int) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[at] ^= 1
        file.write_bytes(data)

    return damage


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (Path.unlink, "its file is missing"),
        (truncate, "the file has"),
        (lambda file: file.write_bytes(b""), "the file has 0 bytes"),
        (lambda file: file.write_bytes(b"\xff" * 64), "expected a header of"),
        (lambda file: file.write_bytes(file.read_bytes() + b"\0"), "the file has"),
        (flip(10), "header"),
        (flip(-1), "the checksums are not as they were written"),
        (flip(900), "of 'x' are not as they were written"),
        (give_other, f"got that of '{trace_id(2)}'"),
    ],
)
def test_a_damaged_file_is_named_and_can_be_made_again(
    folder_store: Store, damage: Callable[[Path], object], problem: str
) -> None:
    store, tensors = folder_store, {"x": np.zeros(1000)}
    put(store, 1, tensors)
    put(store, 2)
    specs = dict(make_graph(tensors).tensors())
    damage(file_of(store.place, 1))
    for _ in range(2):
        with pytest.raises(StoreDamaged, match=r"`fxtrace trace`") as caught:
            store.read(trace_id(1), specs)
        assert trace_id(1) in caught.value.message
        assert problem in caught.value.message
        check_whole(store, 2)
    assert list(store.verify()) == [trace_id(1)]
    assert store.stored()[1].damaged
    assert store.find(trace_id(1)) is None
    put(store, 1, tensors)
    check_whole(store, 1, tensors)
    check_whole(store, 2)
    assert store.verify() == {}


def test_a_tensor_that_the_file_lacks(folder_store: Store) -> None:
    put(folder_store, 1)
    with pytest.raises(StoreDamaged, match="its tensor 'y' is missing"):
        folder_store.read(trace_id(1), {"y": spec_of(np.zeros(1))})
    with pytest.raises(StoreDamaged, match="not a int64 of shape"):
        folder_store.read(trace_id(1), {"x": spec_of(np.zeros(1, np.int64))})


@pytest.mark.parametrize("change", ["trace = x'ffff'", "blob = 'x'", "nbytes = 1", "pinned = 1", "last_used = 'x'"])
def test_a_damaged_row_is_named_and_can_be_made_again(folder_store: Store, change: str) -> None:
    store = folder_store
    put(store, 1)
    with sqlite3.connect(Path(store.place) / "index.sqlite3") as connection:
        connection.execute(f"UPDATE stored_traces SET {change}")
    connection.close()
    for read in (store.trace, store.graph, store.pin):
        with pytest.raises(StoreDamaged, match=f"{trace_id(1)}.*`fxtrace trace`"):
            read(trace_id(1))
    assert list(store.verify()) == [trace_id(1)]
    assert store.find(trace_id(1)) is None
    put(store, 1)
    check_whole(store, 1)


def test_a_damaged_row_is_left_out_of_lists(folder_store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store = folder_store
    for number in range(1, 8):
        put(store, number)
    with sqlite3.connect(Path(store.place) / "index.sqlite3") as connection:
        connection.execute("UPDATE stored_traces SET trace = x'ffff' WHERE sequence IN (3, 4, 5, 7)")
    connection.close()
    whole = [trace_id(number) for number in (6, 2, 1)]
    assert [trace.id for _, trace in store.traces(10)] == whole
    assert [stored.trace.id for stored in store.stored()] == whole
    for limit in (1, 2, 3):  # what is left out makes no page shorter
        pages, before = [], None
        while page := store.traces(limit, before):
            pages.append([trace.id for _, trace in page])
            before = page[-1][0]
        assert pages == [whole[start : start + limit] for start in range(0, 3, limit)]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 4
    assert all("its row in the index is not as it was written" in each for each in told)
    assert set(store.verify()) == {trace_id(number) for number in (3, 4, 5, 7)}
    store.delete(trace_id(3))
    put(store, 4)
    assert set(store.verify()) == {trace_id(number) for number in (5, 7)}


# One byte of any file of a store is changed: what is then read is what was written, or there is an error.
@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    store = Store(folder)
    for number in (1, 2, 3):
        put(store, number)
    store.delete(trace_id(3))
    store.pin(trace_id(2))
    store.close()
    return folder


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_flipped_byte_is_found_or_harmless(pristine: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(pristine, folder)
    file = data.draw(st.sampled_from(sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())))
    content = bytearray((folder / file).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / file).write_bytes(content)
    try:
        store = Store(folder)
    except (StoreDamaged, Unmet) as error:
        assert "index" in error.message or "schema" in error.message or "cannot be used" in error.message  # noqa: PT017
        assert file.name == "index.sqlite3"
        return
    try:
        assert len(files_of(folder)) == 2
        for number in (1, 2):
            try:
                check_whole(store, number)
            except StoreDamaged as error:
                assert trace_id(number) in error.message or "index" in error.message  # noqa: PT017
        put(store, 4)
        check_whole(store, 4)
    except StoreDamaged as error:
        assert file.name == "index.sqlite3"
        assert "index" in error.message  # noqa: PT017
    finally:
        store.close()


# ---------------------------------------------------------------------------------------------------- the index


def test_a_missing_index_is_made_again(folder_store: Store) -> None:
    store = folder_store
    for number in (3, 1, 2):
        put(store, number)
    store.close()
    for file in Path(store.place).glob("index.sqlite3*"):
        file.unlink()
    again = Store(store.place)
    assert sorted(trace.id for _, trace in again.traces(9)) == [trace_id(1), trace_id(2), trace_id(3)]
    for number in (1, 2, 3):
        check_whole(again, number)
    again.close()


def test_an_index_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "index.sqlite3").write_bytes(b"not a database, but long enough to be read as one" * 100)
    with pytest.raises(StoreDamaged, match=r"move the index \(index.sqlite3\) away"):
        Store(tmp_path)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / "index.sqlite3") as connection:
        connection.execute("UPDATE schema_version SET version = 99")
    connection.close()
    with pytest.raises(StoreDamaged, match=r"has schema 99, this fxtrace reads schema 3\. Update fxtrace"):
        Store(tmp_path)


# ---------------------------------------------------------------------------------------------------- the disk


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unmet, match=r"cannot be used: Not a directory.*FXTRACE_STORE"):
        Store(tmp_path / "file" / "store")


def test_a_folder_that_is_gone_leaves_nothing(folder_store: Store) -> None:
    (Path(folder_store.place) / "tensors").rmdir()
    with pytest.raises(Unmet, match="cannot be used") as caught:
        put(folder_store, 1)
    assert folder_store.place not in caught.value.message
    assert folder_store.find(trace_id(1)) is None


# Run in a namespace of its own, where a small file system can be mounted; prints what the callers saw.
ON_A_SMALL_DISK = """
import subprocess, sys
import numpy as np
from fxtrace.errors import FxtraceError
from fxtrace.store import Store
from tests.store.traces import check_whole, put, trace_id

folder = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", folder], check=True)

def told(work, *args):
    try:
        work(*args)
    except FxtraceError as error:
        print(error.reason, error.message)

store = Store(folder)
put(store, 1)
told(put, store, 2, {"x": np.zeros(1 << 20)})
check_whole(store, 1)
assert store.find(trace_id(2)) is None and len(store._blobs.files()) == 1
many = {"x": np.arange(4000.0)}
number = 10
try:
    while True:  # until it is the index that finds no room, or the file
        put(store, number, many)
        number += 1
except FxtraceError as error:
    print(error.reason, error.message)
for each in range(10, number):
    check_whole(store, each, many)
assert store.find(trace_id(number)) is None
assert len(store._blobs.files()) == number - 9
store.delete(trace_id(10))  # the way out of a full disk
assert store.collect(quota_bytes=100_000).evicted
put(store, 3)
check_whole(store, 3)
store.close()
subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
told(Store, folder)
subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
store = Store(folder)
check_whole(store, 3)
store.close()
print("done")
"""


def test_a_full_and_a_read_only_disk(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no namespace can be made here to mount a small disk in")
    script = ["unshare", "-rm", sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    full, again, read_only, last = done.stdout.splitlines()
    refused = "PRECONDITION_UNMET the store cannot be used: "
    assert full.startswith(f"{refused}No space left on device. Make room with `fxtrace store gc")
    assert again.startswith(refused)
    assert "full" in again or "No space" in again
    assert read_only.startswith(refused)
    assert last == "done"


WITH_A_LIMIT = """
import resource, sys
import numpy as np
from fxtrace.errors import Unmet
from fxtrace.store import Store
from tests.store.traces import check_whole, put, trace_id

store = Store(sys.argv[1])
put(store, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    put(store, 2, {"x": np.zeros(1 << 20)})
except Unmet as error:
    print(error.message)
put(store, 3)
check_whole(store, 1)
check_whole(store, 3)
assert len(store._blobs.files()) == 2 and store.sweep() == 0
"""


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WITH_A_LIMIT, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("the store cannot be used: File too large.")


# ---------------------------------------------------------------------------------------------------- killed writers


def test_opening_puts_in_order_what_was_left(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in (1, 2, 3):
        put(store, number)
    files = tmp_path / "tensors"
    foreign = files / "notes.txt"
    foreign.write_text("mine")
    (files / f"{trace_id(7)}.0123456789abcdef.tmp").write_bytes(b"x" * 10)  # its writer is gone
    shutil.copy(file_of(tmp_path, 1), files / f"{trace_id(1)}.0123456789abcdef.safetensors")
    older = files / f"{trace_id(1)}.fedcba9876543210.safetensors"
    shutil.copy(file_of_row(store, 1), older)
    os.utime(older, (0, 0))
    with sqlite3.connect(tmp_path / "index.sqlite3") as connection:
        connection.execute(f"DELETE FROM stored_traces WHERE id = '{trace_id(2)}'")  # its row was not committed
    connection.close()
    with store._index.locked() as connection_:
        store._index.mark_deleted(connection_, trace_id(3))  # its file was not removed
    store.close()
    store = Store(tmp_path)
    assert foreign.exists()
    names = {file.name for file in files.iterdir()} - {foreign.name, f"{trace_id(1)}.0123456789abcdef.safetensors"}
    assert {name[:32] for name in names} == {trace_id(1), trace_id(2)}
    assert len(names) == 2
    for number in (1, 2):
        check_whole(store, number)
    with pytest.raises(TraceNotFound):
        store.trace(trace_id(3))
    assert store.verify() == {}
    store.close()


def file_of_row(store: Store, number: int) -> Path:
    return Path(store.place) / "tensors" / f"{store._row(trace_id(number)).blob}.safetensors"


def test_what_is_being_written_stays(tmp_path: Path) -> None:
    store, blobs, name = Store(tmp_path), Folder(tmp_path / "tensors"), f"{trace_id(7)}.0123456789abcdef"

    def parts() -> object:
        yield memoryview(b"half")
        assert store.sweep() == 0
        assert (tmp_path / "tensors" / f"{name}.tmp").exists()
        yield memoryview(b"whole")

    blobs.write(name, parts())  # type: ignore[arg-type]
    assert (tmp_path / "tensors" / f"{name}.safetensors").read_bytes() == b"halfwhole"
    assert list(store.verify()) == [name]  # it is no trace's file
    assert store.collect().nbytes == 9
    assert store.verify() == {}
    store.close()


# Forks writers that kill themselves with SIGKILL just before the n-th call into the system, the database or the
# arrays' memory during a `put` and a `delete`, for every n there is: they die at every step of it.
KILLED_BEFORE_EVERY_STEP = """
import os, shutil, signal, sys
from pathlib import Path
from tests.store.traces import put, trace_id
from fxtrace.store import Store

OUTSIDE = ("posix", "_io", "sqlite3", "fcntl")
folders = Path(sys.argv[1])
store = Store(folders / "0")
put(store, 1)
put(store, 3)
store.close()

def write(folder, step):
    shutil.copytree(folders / "0", folder)
    store, left = Store(folder), step
    def count(frame, event, called):
        nonlocal left
        if event == "c_call" and (called.__module__ or type(called.__self__).__module__) in OUTSIDE:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(count)
    put(store, 2)
    store.delete(trace_id(3))
    sys.setprofile(None)

for step in range(1, 1000):
    pid = os.fork()
    if not pid:
        write(folders / str(step), step)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != -signal.SIGKILL:
        sys.exit(code)
"""


def test_killed_before_every_step_of_a_put_and_a_delete(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED_BEFORE_EVERY_STEP, tmp_path], check=True)
    states = []
    for folder in sorted(tmp_path.iterdir(), key=lambda folder: int(folder.name)):
        store = Store(folder)
        check_whole(store, 1)
        there = [store.find(trace_id(number)) is not None for number in (2, 3)]
        for number in (number for number, is_there in zip((2, 3), there, strict=True) if is_there):
            check_whole(store, number)
        assert len(list((folder / "tensors").iterdir())) == 1 + sum(there)  # nothing is left over
        assert store.verify() == {}
        put(store, 2)
        check_whole(store, 2)
        store.close()
        states.append((there[0], not there[1]))
    # First neither was done, from some step on the first was, from some on both: never anything between.
    assert states == sorted(states)
    assert min(states.count(state) for state in ((False, False), (True, False), (True, True))) > 1


WRITES_UNTIL_KILLED = """
import sys
from itertools import count
from tests.store.traces import put
from fxtrace.store import Store

store = Store(sys.argv[1])
for number in count(1):
    put(store, number)
    print(number, flush=True)
"""


def test_killed_from_outside_while_it_writes(place: str) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITES_UNTIL_KILLED, place], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        answered = [int(writer.stdout.readline()) for _ in range(3)]
        writer.send_signal(signal.SIGKILL)
        answered += map(int, writer.stdout.read().split())
    store = Store(place)
    there = [trace.id for _, trace in store.traces(1000)][::-1]
    assert there[: len(answered)] == [trace_id(number) for number in answered]
    assert len(there) - len(answered) in (0, 1)
    for number in range(1, len(there) + 1):
        check_whole(store, number)
    assert len(store._blobs.files()) == len(there)
    store.close()


def test_the_index_is_at_fault_where_reads_fail_so(folder_store: Store) -> None:
    put(folder_store, 1)
    with sqlite3.connect(Path(folder_store.place) / "index.sqlite3") as connection:
        connection.execute("ALTER TABLE stored_traces RENAME COLUMN pinned TO pinnee")
    connection.close()
    with pytest.raises(StoreDamaged, match="index is damaged: no such column"):
        folder_store.trace(trace_id(1))


def test_make_tensors_differ() -> None:
    assert make_tensors(1)["x"].tobytes() != make_tensors(6)["x"].tobytes()  # else a mixed-up trace would not show
