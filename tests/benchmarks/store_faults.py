"""What a client of a server sees of the store's faults, and that its next call works; printed by `faults`."""

from __future__ import annotations

import random
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxtrace.client import Client
from fxtrace.errors import FxtraceError
from fxtrace.ir.trace import TraceRequest
from fxtrace.models import Registry
from fxtrace.service.engine import Engine
from fxtrace.store import Store
from tests.benchmarks.measure import children_of, serve, temporary_folder

MODEL = Path(__file__).parent.parent / "service" / "tiny.py"
KILLS = 50
SEEDS = 40  # that each client makes traces of


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    fault: str
    seen: str
    after: str

    def markdown(self) -> str:
        """As a row of the README's table."""
        return f"| {self.fault} | {self.seen} | yes: {self.after} |"


def rows() -> Iterator[Row]:
    """Every fault, one after another."""
    yield killed()
    yield full_disk()
    yield flipped_byte()


def killed() -> Row:
    """A server is killed at random moments, while clients make, find and delete traces."""
    acknowledged: set[int] = set()
    deleted: set[int] = set()  # and acknowledged so
    seen: set[str] = set()
    checked = gone = 0
    with temporary_folder() as folder, temporary_folder() as own, Engine.open(own, _models()) as reference:
        for _ in range(KILLS):
            with _server(folder) as (address, process):
                warm = threading.Event()  # a trace was made: what is heavy is imported
                clients = [
                    threading.Thread(target=_mixed_writes, args=(address, client, acknowledged, deleted, warm, seen))
                    for client in range(3)
                ]
                for thread in clients:
                    thread.start()
                warm.wait()
                time.sleep(random.uniform(0.0, 0.5))
                workers = children_of(process.pid)
                process.kill()
                for thread in clients:
                    thread.join()
                while any(
                    Path(f"/proc/{pid}").exists() for pid in workers
                ):  # they end when they see that they are alone
                    time.sleep(0.01)
            store = Store(folder)
            there = {trace.seed: trace.id for _, trace in store.traces(10**6)}
            assert acknowledged <= there.keys(), "an acknowledged trace is lost"
            assert not deleted & there.keys(), "a trace that was deleted is back"
            for seed, trace_id in there.items():
                reference.create_trace(_request(seed))
                specs = dict(store.graph(trace_id).tensors())
                expected = reference.store.read(trace_id, specs)
                read = store.read(trace_id, specs)
                assert all(read[name].tobytes() == expected[name].tobytes() for name in specs)
            assert store.verify() == {}
            assert len(list((folder / "tensors").iterdir())) == len(there), "something is left over"
            store.close()
            checked += len(acknowledged)
            gone += len(deleted)
            acknowledged = set(there)
        with _server(folder) as (address, _), Client(address, arrays="numpy") as client:
            client.create_trace(_request(10**6))
    return Row(
        f"server killed (SIGKILL) at {KILLS} random moments of mixed writes",
        ", ".join(f"`{reason}`" for reason in sorted(seen)),
        f"of {checked:,} acknowledged traces looked for after a restart all there and bit-equal, of {gone:,} deleted "
        "ones none; no file left over",
    )


def _mixed_writes(
    address: str, client: int, acknowledged: set[int], deleted: set[int], warm: threading.Event, seen: set[str]
) -> None:
    try:
        with Client(address, arrays="numpy", timeout=60) as api:
            while True:
                seed = client * SEEDS + random.randrange(SEEDS)
                deleted.discard(seed)
                trace = api.create_trace(_request(seed))
                acknowledged.add(seed)
                warm.set()
                if random.random() < 0.4:
                    acknowledged.discard(seed)
                    api.delete_trace(trace.id)
                    deleted.add(seed)
    except FxtraceError as error:
        seen.add(error.reason)
    finally:
        warm.set()


def full_disk() -> Row:
    """The server may not write files of more than 256 KiB any more, then may again."""
    with temporary_folder() as folder, _server(folder) as (address, process), Client(address, arrays="numpy") as client:
        kept = client.create_trace(_request(1))
        _limit_server(process.pid, 256 << 10)  # and its workers, which write the files
        shape = (40_000, 4)
        large = TraceRequest("tiny", input_shapes={"x": shape, "ids": shape[:1], "keep": shape[:1]})
        seen = _seen(lambda: client.create_trace(large))
        client.read_tensor(kept.id, "x")
        client.create_trace(_request(2))
        _limit_server(process.pid, -1)
        client.create_trace(large)
        store = Store(folder)
        assert store.verify() == {}
        assert len(list((folder / "tensors").iterdir())) == 3
        store.close()
    return Row("no room for the trace's file", seen, "reads and smaller traces served; nothing kept of the failed one")


def flipped_byte() -> Row:
    """A byte of a tensor changes on the disk while the server runs."""
    with temporary_folder() as folder, _server(folder) as (address, _), Client(address, arrays="numpy") as client:
        trace, other = (client.create_trace(_request(seed)) for seed in (1, 2))
        wanted: NDArray[Any] = client.read_tensor(trace.id, "embed")
        [file] = (folder / "tensors").glob(f"{trace.id}.*")
        data = bytearray(file.read_bytes())
        at = data.find(wanted.tobytes())
        data[at + 1] ^= 1
        file.write_bytes(data)
        seen = _seen(lambda: client.read_tensor(trace.id, "embed"))
        client.read_tensor(other.id, "embed")
        client.create_trace(_request(1))
        assert np.array_equal(client.read_tensor(trace.id, "embed"), wanted)
    return Row("a flipped byte in a tensor", seen, "other traces served; the same CreateTrace made it again, bit-equal")


def _models() -> Registry:
    models = Registry.installed()
    models.add_file(MODEL)
    return models


def _request(seed: int) -> TraceRequest:
    return TraceRequest("tiny", seed=seed)


def _seen(call: Callable[[], object]) -> str:
    try:
        call()
    except FxtraceError as error:
        return f"`{error.reason}`: {re.sub('[0-9a-f]{32}', '…', error.message)}"
    raise AssertionError("there was no error")


def _limit_server(pid: int, nbytes: int) -> None:
    for each in (pid, *children_of(pid)):
        _limit_files(each, nbytes)


def _limit_files(pid: int, nbytes: int) -> None:
    import resource

    resource.prlimit(pid, resource.RLIMIT_FSIZE, (nbytes, -1))


@contextmanager
def _server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with serve(folder, MODEL) as (process, address):
        try:
            yield address, process
        finally:
            process.kill()
