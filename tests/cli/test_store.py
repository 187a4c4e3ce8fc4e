from __future__ import annotations

import json
from pathlib import Path

import pytest

from fxtrace.store import Store
from tests.cli.conftest import Run
from tests.store.traces import file_of, files_of, put, trace_id


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store of three traces of one size."""
    store = Store(tmp_path / "store")
    for number in (5, 10, 15):
        put(store, number)
    store.close()
    return tmp_path / "store"


def test_ls(run: Run, folder: Path) -> None:
    assert run("store", "pin", "0000000000000000000000000000000a").exit_code == 0
    listed = json.loads(run("store", "ls", "--json").stdout)
    assert [each["trace"]["id"] for each in listed] == [trace_id(number) for number in (15, 10, 5)]
    assert [each["pinned"] for each in listed] == [False, True, False]
    assert sum(each["nbytes"] for each in listed) == sum(file.stat().st_size for file in files_of(folder))
    table = run("store", "ls").stdout
    assert trace_id(10) in table
    assert table.count("pinned") == 1


def test_verify(run: Run, folder: Path) -> None:
    assert run("store", "verify").stdout == "every byte is as it was written\n"
    file = file_of(folder, 10)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    result = run("store", "verify")
    assert result.exit_code == 1
    assert result.stdout == "1 damaged\n"
    assert f"trace {trace_id(10)} is damaged" in result.stderr
    assert "`fxtrace trace` makes it again" in result.stderr
    as_json = run("store", "verify", "--json")
    assert as_json.exit_code == 1
    assert list(json.loads(as_json.stdout)["damaged"]) == [trace_id(10)]
    assert run("store", "verify", "latest", trace_id(5)).exit_code == 0
    assert "damaged: trace it again" in run("store", "ls").stdout
    assert "no trace's id starts with 'abc'" in run("store", "verify", "abc").stderr


def test_gc_and_pins(run: Run, folder: Path) -> None:
    one = files_of(folder)[0].stat().st_size
    (folder / "tensors" / "left.tmp").write_bytes(b"x" * 100)
    assert run("store", "pin", trace_id(5), "latest").stdout == f"pinned {trace_id(5)}\npinned {trace_id(15)}\n"
    assert json.loads(run("store", "unpin", "latest", "--json").stdout) == {"unpinned": [trace_id(15)]}
    assert run("store", "gc").stdout == "removed 0 traces, 0 bytes in all\n"  # opening had swept
    assert not (folder / "tensors" / "left.tmp").exists()
    collected = json.loads(run("store", "gc", "--quota", f"{2 * one + 100}B", "--json").stdout)
    assert collected["evicted"] == [trace_id(10)]
    assert run("store", "gc", "--quota", "1KB").stdout.startswith("removed 1 trace,")
    assert [each["trace"]["id"] for each in json.loads(run("store", "ls", "--json").stdout)] == [trace_id(5)]


def test_a_size_that_is_none(run: Run) -> None:
    result = run("store", "gc", "--quota", "plenty")
    assert result.exit_code == 2
    assert "500MB or 20GiB" in result.stderr
