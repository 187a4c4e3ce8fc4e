"""How fast a tensor of 1 GiB is streamed, and what slow readers of one of 4 GiB cost the server's memory.

    python -m tests.benchmarks.streaming [SECONDS]

The first is held against a bare byte stream of grpc.aio, in turn. For the second, one reader takes 1 MB a second for so
many seconds, one stalls after its first chunk, and one is killed; the memory is the server's own, without files' pages.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from fxtrace.client import Client
from fxtrace.store import Store
from tests.benchmarks.measure import Memory, Row, compare, serve, temporary_folder
from tests.benchmarks.service import bare_server
from tests.store.traces import put

FAST, SLOW = 1, 4  # traces, and GiB of their tensor
ROUNDS = 25
READER = """
import sys, time
from fxtrace.client import Client
with Client(sys.argv[1], timeout=None) as client, client.open_tensor(sys.argv[2], "x") as reader:
    for chunk in reader.chunks():
        print(flush=True)
        time.sleep(float(sys.argv[3]) * len(chunk) / 1e6)
"""


def throughput(client: Client[Any], trace_id: str, bare: Any) -> Row:
    """ReadTensor into an array ÷ a bare stream of as many bytes, in chunks of the same size."""
    size = FAST << 30
    stream = bare.unary_stream("/bare/stream")

    # Memory that is free for two seconds a virtual machine may give back to its host, and taking it again may cost more
    # than the stream. So both write into memory that is there.
    data = np.ones(size, np.uint8).data

    def fill(chunks: Iterable[bytes | memoryview]) -> None:
        at = 0
        for chunk in chunks:
            data[at : at + len(chunk)] = chunk
            at += len(chunk)
        assert at == size

    def read() -> None:
        with client.open_tensor(trace_id, "x") as reader:
            fill(reader.chunks())

    ratio = compare(read, lambda: fill(stream(str(size).encode())), rounds=ROUNDS, warm_up=1)
    return Row(
        f"throughput of ReadTensor, {FAST} GiB into memory, ÷ a raw grpc.aio byte stream", ratio, "≥ 0.9", speed=True
    )


def slow_readers(address: str, pid: int, trace_id: str, seconds: float) -> list[Memory]:
    """The server's memory, before there are readers and then every second."""
    sizes = [Memory.of(pid)]
    readers = [
        subprocess.Popen([sys.executable, "-c", READER, address, trace_id, pause], stdout=subprocess.PIPE)
        for pause in ("1", "3600", "3600")
    ]
    for reader in readers:
        assert reader.stdout is not None
        reader.stdout.readline()
    readers[2].kill()
    for _ in range(round(seconds)):
        time.sleep(1)
        sizes.append(Memory.of(pid))
    for reader in readers:
        reader.kill()
        reader.communicate()
    return sizes


def main(seconds: float) -> None:
    """Prints both."""
    with temporary_folder() as folder:
        store = Store(folder)
        # Zeros take no memory here until they are written to, and the server takes them for any other numbers.
        fast, slow = (put(store, size, {"x": np.zeros(size << 28, np.float32)}).id for size in (FAST, SLOW))
        store.close()
        with serve(Path(folder), workers=1) as (server, address), bare_server() as bare_address:
            options = [("grpc.max_receive_message_length", -1)]
            with (
                Client(address, timeout=None, arrays="numpy") as client,
                grpc.insecure_channel(bare_address, options=options) as bare,
            ):
                print("| what | ratio | aim | medians |\n| --- | --- | --- | --- |")
                print(throughput(client, fast, bare).markdown(), flush=True)
            sizes = slow_readers(address, server.pid, slow, seconds)
    grown = (max(size.front for size in sizes) - sizes[0].front) / 2**20
    print(
        f"\nslow readers of {SLOW} GiB for {seconds:g} s: the server grew by {grown:.1f} MiB at most; "
        f"before {sizes[0]}, in the middle {sizes[len(sizes) // 2]}, at the end {sizes[-1]}"
    )


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60)
