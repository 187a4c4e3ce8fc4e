"""The pool of worker processes: whatever a call does to its process, the next one works. No PyTorch here."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fxtrace import wire
from fxtrace.errors import (
    Busy,
    Cancelled,
    FxtraceError,
    MemoryLimit,
    ModelInvalid,
    ServerUnavailable,
    StoreDamaged,
    TimeLimit,
    WorkerCrashed,
)
from fxtrace.ir.trace import Progress
from fxtrace.models import Registry
from fxtrace.service.jobs import Job, WorkerDefect
from fxtrace.service.worker import Plan
from fxtrace.service.workers import Workers
from fxtrace.store import Store
from fxtrace.v1 import trace_service_pb2 as rpc
from tests.service.processes import exists, until

# Models that do harm when they are imported. Their summary is the process's id.
CONTRACT = """
import ctypes, mmap, os, pathlib, signal, sys, tempfile, threading, time
{harm}
from dataclasses import dataclass
__doc__ = str(os.getpid())
@dataclass
class Config:
    size: int = 1
def build(config): ...
def example_inputs(config): ...
"""
HARM = {
    "fine": "",
    "raises": "1 / 0",
    "prints": "print('into the log')",
    "segfault": "ctypes.string_at(0)",
    "exit_0": "os._exit(0)",
    "exit_3": "os._exit(3)",
    "sys_exit": "sys.exit(4)",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "loop": "while True: pass",
    "library": "ctypes.PyDLL(None).pause()",
    "memory": "bytearray(1 << 30)",
    # shared memory is not counted among a process's own data
    "shared": "m = mmap.mmap(-1, 1 << 28)\nfor at in range(0, 1 << 28, 4096): m[at] = 1\ntime.sleep(60)",
    # the child lives on, and holds the pipe open
    "child": "if os.fork() == 0: time.sleep(60)\nos._exit(5)",
    "hangs_up": "os.closerange(3, 256)\ntime.sleep(60)",
    "later": "threading.Timer(0.2, os._exit, [6]).start()",
    "litters": "pathlib.Path(tempfile.mkdtemp(), 'litter').touch()\nos._exit(7)",
    "waits": "time.sleep(600)",
}  # fmt: skip
MEMORY = 128 << 20


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("models")
    registry = Registry()
    for name, harm in HARM.items():
        (folder / f"{name}.py").write_text(CONTRACT.format(harm=harm))
        registry.offer(str(folder / f"{name}.py"))
    return registry


@contextmanager
def workers(
    folder: Path, models: Registry, *, count: int = 1, spare: int = 0, queue: int = 9, calls: int = 99
) -> Iterator[Workers]:
    plan = Plan(str(folder), None, models, captures=False, threads=1, memory_bytes=MEMORY)
    pool = Workers(plan, count=count, spare=spare, queue=queue, calls=calls, memory_hint="ask for less")
    pool.start()
    try:
        yield pool
    finally:
        pool.close()


@pytest.fixture(scope="module")
def pool(models: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    with workers(tmp_path_factory.mktemp("store"), models) as pool:
        yield pool


def job(name: str, *, seconds: float = 60, light: bool = False) -> Job:
    return Job("get_model", (name,), what=f"importing '{name}'", seconds=seconds, light=light)


def pid_of(value: bytes) -> int:
    return int(wire.MODEL.decode(rpc.Model.FromString(value)).summary)


def call(pool: Workers, name: str, *, seconds: float = 60, light: bool = False) -> int:
    """Has a worker import a model; gives the worker's id."""
    asked = job(name, seconds=seconds, light=light)
    pool.submit(asked)
    return pid_of(asked.follow(lambda _: None))


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("raises", ModelInvalid, "ZeroDivisionError"),
        ("segfault", WorkerCrashed, r"importing 'segfault' ended the process .*: signal 11 \(SIGSEGV\); nothing else"),
        ("exit_0", WorkerCrashed, "exit code 0"),
        ("exit_3", WorkerCrashed, "exit code 3"),
        ("sys_exit", WorkerCrashed, "exit code 4"),
        ("killed", WorkerCrashed, r"signal 9 \(SIGKILL\)"),
        ("loop", TimeLimit, r"importing 'loop' took longer than 0\.5 s"),
        ("library", TimeLimit, r"longer than 0\.5 s"),
        ("memory", MemoryLimit, "importing 'memory' took more than 128 MiB of memory.*; ask for less"),
        ("shared", MemoryLimit, "more than 128 MiB"),
        ("child", WorkerCrashed, "exit code 5"),
        ("hangs_up", WorkerCrashed, "it hung up"),
    ],
)  # fmt: skip
def test_harm_costs_its_own_call(pool: Workers, name: str, kind: type[FxtraceError], message: str) -> None:
    with pytest.raises(kind, match=message):
        call(pool, name, seconds=0.5 if kind is TimeLimit else 60)
    assert call(pool, "fine")


def test_a_worker_lives_on_where_it_can(pool: Workers) -> None:
    first = call(pool, "fine")
    for name in ("raises", "memory"):
        with pytest.raises(FxtraceError):
            call(pool, name)
    assert call(pool, "fine") == first


def test_the_stack_of_a_defect_arrives(pool: Workers) -> None:
    asked = Job("get_model", (), what="nothing", seconds=60)
    pool.submit(asked)
    with pytest.raises(WorkerDefect, match=r"TypeError: get_model\(\) missing 1 required positional argument"):
        asked.follow(lambda _: None)


def test_an_idle_worker_that_dies_is_replaced(pool: Workers) -> None:
    first = call(pool, "fine")
    os.kill(first, signal.SIGKILL)
    assert call(pool, "fine") != first
    second = call(pool, "later")
    until(lambda: not exists(second))
    assert call(pool, "fine") != second


def test_temporary_files_go_with_their_worker(pool: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    os.kill(call(pool, "fine"), signal.SIGKILL)
    until(lambda: list(tmp_path.iterdir()))  # the next worker's
    with pytest.raises(WorkerCrashed, match="exit code 7"):
        call(pool, "litters")
    assert not list(tmp_path.rglob("litter"))


def test_what_models_print_stays_out_of_stdout(pool: Workers, capfd: pytest.CaptureFixture[str]) -> None:
    os.kill(call(pool, "fine"), signal.SIGKILL)  # so that the next one has the descriptors of this test
    call(pool, "prints")
    assert capfd.readouterr().out == ""


def test_a_waiting_call_reports_that_and_can_be_given_up(pool: Workers) -> None:
    running, waiting = job("waits"), job("fine")
    pool.submit(running)
    pool.submit(waiting)
    told: list[Progress] = []

    def give_up(progress: Progress) -> None:
        told.append(progress)
        if len(told) == 2:  # nothing is new, and yet it is asked
            raise KeyError

    with pytest.raises(KeyError):
        waiting.follow(give_up)
    assert told == [Progress("wait")] * 2
    for each in (waiting, running):
        pool.cancel(each)
        with pytest.raises(Cancelled):
            each.follow(lambda _: None)
    assert call(pool, "fine")


def test_a_full_queue_says_when_to_come_again(models: Registry, tmp_path: Path) -> None:
    with workers(tmp_path, models, spare=1, queue=1) as pool:
        running, waiting = job("waits"), job("fine")
        pool.submit(running)
        until(lambda: running in [each.run.job for each in pool._busy if each.run])
        pool.submit(waiting)
        with pytest.raises(
            Busy, match=r"2 such calls run or wait, as many as may; try again in about \d+ s"
        ) as refused:
            pool.submit(job("fine"))
        assert refused.value.retry_after >= 1
        assert call(pool, "fine", light=True)  # the spare worker's
        pool.cancel(running)
        assert pid_of(waiting.follow(lambda _: None))


def test_after_a_cancel_the_next_call_waits_for_no_new_worker(models: Registry, tmp_path: Path) -> None:
    with workers(tmp_path, models, spare=1) as pool:
        running = job("waits")
        pool.submit(running)
        until(lambda: running in [each.run.job for each in pool._busy if each.run])
        spare = call(pool, "fine", light=True)
        pool.cancel(running)
        assert call(pool, "fine") == spare


def test_workers_are_replaced_after_so_many_calls(models: Registry, tmp_path: Path) -> None:
    with workers(tmp_path, models, calls=2) as pool:
        a, b, c = (call(pool, "fine") for _ in range(3))
    assert a == b != c
    assert not exists(c)


def test_closing_tells_those_who_wait(models: Registry, tmp_path: Path) -> None:
    jobs = [job("waits"), job("fine")]
    ends = []

    def follow(each: Job) -> None:
        with pytest.raises(ServerUnavailable, match="the server is stopping"):
            each.follow(lambda _: None)
        ends.append(each)

    with workers(tmp_path, models) as pool:
        for each in jobs:
            pool.submit(each)
        threads = [threading.Thread(target=follow, args=(each,)) for each in jobs]
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    assert len(ends) == 2
    with pytest.raises(ServerUnavailable):
        pool.submit(job("fine"))


def test_workers_that_cannot_start_say_why(models: Registry, tmp_path: Path) -> None:
    Store(tmp_path / "broken").close()
    with sqlite3.connect(tmp_path / "broken" / "index.sqlite3") as connection:
        connection.execute("UPDATE schema_version SET version = 99")
    connection.close()
    plan = Plan(str(tmp_path / "broken"), None, models, captures=False, threads=1, memory_bytes=MEMORY)
    pool = Workers(plan, count=1, spare=0, queue=1, calls=1, memory_hint="")
    asked = job("fine")
    pool.submit(asked)
    pool.start()
    with pytest.raises(StoreDamaged, match="has schema 99"):
        asked.follow(lambda _: None)
    pool.close()


FRONT = """
import sys
from pathlib import Path
from tests.service.test_workers import Registry, job, workers
models = Registry()
models.offer(sys.argv[2])
with workers(Path(sys.argv[1]), models) as pool:
    asked = job("pid")
    pool.submit(asked)
    asked.follow(lambda _: None)
"""


def test_workers_end_with_a_front_that_is_killed(tmp_path: Path) -> None:
    told = tmp_path / "told"
    harm = f"pathlib.Path({str(told)!r}).write_text(str(os.getpid()))\nwhile True: pass"
    (tmp_path / "pid.py").write_text(CONTRACT.format(harm=harm))
    with subprocess.Popen([sys.executable, "-c", FRONT, str(tmp_path / "store"), str(tmp_path / "pid.py")]) as front:
        until(lambda: told.exists() and told.read_text())
        front.kill()
    until(lambda: not exists(int(told.read_text())))
