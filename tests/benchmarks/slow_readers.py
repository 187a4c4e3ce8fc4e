"""What slow readers of a huge tensor cost a server: its own memory, without the pages of the mapped file.

    python -m tests.benchmarks.slow_readers [MiB]

One reader takes 1 MB a second, one stalls after its first chunk, and one is killed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from fxtrace.client import Client
from fxtrace.service.worker import memory
from fxtrace.trace import TraceRequest
from tests.benchmarks.measure import temporary_folder
from tests.service.processes import server_process

MODEL = Path(__file__).parent.parent / "service" / "dtypes.py"
SECONDS = 20
READER = """
import sys, time
from fxtrace.client import Client
with Client(sys.argv[1], timeout=None) as client, client.open_tensor(sys.argv[2], "add") as reader:
    for chunk in reader.chunks():
        print(flush=True)
        time.sleep(float(sys.argv[3]))
"""


def main(mebibytes: int) -> None:
    """Prints how much the server grew."""
    with (
        temporary_folder() as folder,
        server_process(folder, MODEL, capture_memory=f"{16 * mebibytes}MiB") as (server, address),
        Client(address, timeout=None, arrays="numpy") as client,
    ):
        trace = client.create_trace(TraceRequest("dtypes", {"megabytes": mebibytes}))
        client.read_tensor(trace.id, "add", ":1000")
        before = memory(server.pid)["RssAnon"]
        readers = [
            subprocess.Popen([sys.executable, "-c", READER, address, trace.id, pause], stdout=subprocess.PIPE)
            for pause in ("1", "3600", "3600")
        ]
        for reader in readers:
            assert reader.stdout is not None
            reader.stdout.readline()
        readers[2].kill()
        sizes = []
        for _ in range(10 * SECONDS):
            sizes.append(memory(server.pid)["RssAnon"])
            time.sleep(0.1)
        for reader in readers:
            reader.kill()
            reader.communicate()
    print(f"a tensor of {mebibytes} MiB, {SECONDS} s: the server grew by {(max(sizes) - before) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1024)
