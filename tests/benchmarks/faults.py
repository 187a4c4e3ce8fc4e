"""What a fault costs: each done to a server, with what the client saw and whether the next call worked.

    python -m tests.benchmarks.faults

Prints a table: what models and callers do, then what happens to the store. A case is a function of a `Target`; it gives
what the client saw, and leaves the server to the next one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fxtrace.client import Client
from fxtrace.errors import FxtraceError
from fxtrace.ir.trace import Progress, TraceRequest
from tests.benchmarks import store_faults
from tests.service.processes import exists, pid_in, server_process, until

MODELS = Path(__file__).parent.parent / "service"
MEMORY_MIB = 400
LIMIT_SECONDS = 5


@dataclass(frozen=True)
class Target:
    """A server to harm, and a folder for a case's own files."""

    client: Client[NDArray[Any]]
    process: subprocess.Popen[str]
    folder: Path

    def hostile(self, how: str, size: int = 1) -> TraceRequest:
        """A request for a model that does harm; its process writes its id into `pid_file`."""
        return TraceRequest("hostile", {"how": how, "size": size, "pid": str(self.pid_file)})

    @property
    def pid_file(self) -> Path:
        """Where a hostile model's process writes its id."""
        return self.folder / "pid"

    def seen(self, call: Callable[[], object]) -> str:
        """What a call ended with, and after how long."""
        start = time.monotonic()
        try:
            call()
        except FxtraceError as error:
            return f"`{error.reason}`: {error.message} ({time.monotonic() - start:.1f} s)"
        return "no error"

    def stopped(self, since: float) -> str:
        """Waits for the end of the hostile model's process."""
        pid = pid_in(self.pid_file)
        until(lambda: not exists(pid))
        return f"its worker was gone {time.monotonic() - since:.2f} s later"


def segfault(target: Target) -> str:
    """a model's segfault"""
    return target.seen(lambda: target.client.create_trace(target.hostile("segfault")))


def exits(target: Target) -> str:
    """a model's `os._exit(0)`"""
    return target.seen(lambda: target.client.create_trace(target.hostile("exit", 0)))


def endless_loop(target: Target) -> str:
    """an endless loop, the server's limit being 5 s"""
    return target.seen(lambda: target.client.create_trace(target.hostile("loop")))


def past_the_deadline(target: Target) -> str:
    """an endless call into a library, the client's deadline being 2 s"""
    with Client(target.client.address, timeout=2) as hasty:
        seen = target.seen(lambda: hasty.create_trace(target.hostile("library")))
    return f"{seen}; {target.stopped(time.monotonic())}"


def memory(target: Target) -> str:
    """ten times the memory limit"""
    return target.seen(lambda: target.client.create_trace(target.hostile("memory", 10 * MEMORY_MIB)))


def cancel(target: Target) -> str:
    """a client that cancels a capture"""
    cancelled = []

    def give_up(_: Progress) -> None:
        if target.pid_file.exists():
            cancelled.append(time.monotonic())
            raise KeyboardInterrupt

    try:
        target.client.create_trace(target.hostile("library"), progress=give_up)
    except KeyboardInterrupt:
        return f"its own cancel; {target.stopped(cancelled[0])}"
    return "no cancel"


_VANISHING = """
import sys
from fxtrace.client import Client
from fxtrace.ir.trace import TraceRequest
fields = {"how": "library", "pid": sys.argv[2]}
with Client(sys.argv[1], timeout=None) as client, client.open_tensor(sys.argv[3], "add") as reader:
    next(reader.chunks())
    client.create_trace(TraceRequest("hostile", fields))
"""


def vanish(target: Target) -> str:
    """a client killed amid a capture and a tensor of 64 MiB"""
    trace = target.client.create_trace(TraceRequest("dtypes", {"megabytes": 64}))
    command = [sys.executable, "-c", _VANISHING, target.client.address, str(target.pid_file), trace.id]
    with subprocess.Popen(command) as client:
        pid_in(target.pid_file)
        client.kill()
    return f"nothing; {target.stopped(time.monotonic())}"


def worker_killed(target: Target) -> str:
    """`kill -9` of a worker"""
    kill = f"import os, signal, sys; os.kill(int(open({str(target.pid_file)!r}).read()), signal.SIGKILL)"

    def later() -> None:
        pid_in(target.pid_file)
        subprocess.run([sys.executable, "-c", kill], check=True)

    thread = threading.Thread(target=later)
    thread.start()
    seen = target.seen(lambda: target.client.create_trace(target.hostile("library")))
    thread.join()
    return seen


CASES: tuple[Callable[[Target], str], ...] = (
    segfault,
    exits,
    worker_killed,
    endless_loop,
    past_the_deadline,
    memory,
    cancel,
    vanish,
)


def next_call(target: Target, number: int) -> str:
    """Whether a capture works now, and how long it took with whatever had to be replaced."""
    start = time.monotonic()
    trace = target.client.create_trace(TraceRequest("reference", seed=number))
    whole = target.client.read_tensor(trace.id, "output.logits").size > 0
    return f"{'yes' if whole else 'no'} ({time.monotonic() - start:.1f} s)"


def main() -> None:
    """Prints the table."""
    models = (MODELS / "hostile.py", MODELS / "dtypes.py")
    limits = {"capture_memory": f"{MEMORY_MIB}MiB", "capture_seconds": LIMIT_SECONDS}
    print("| fault | what the client saw | the next call worked |")
    print("| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "store")
        with (
            server_process(store, *models, **limits) as (process, address),
            Client(address, timeout=None, arrays="numpy") as client,
        ):
            for number, case in enumerate(CASES):
                own = Path(folder, case.__name__)
                own.mkdir()
                target = Target(client, process, own)
                seen = case(target)
                print(f"| {case.__doc__} | {seen} | {next_call(target, number + 1)} |", flush=True)
        assert not [each for each in store.rglob("*") if each.suffix == ".tmp"]
    for row in store_faults.rows():
        print(row.markdown(), flush=True)


if __name__ == "__main__":
    main()
