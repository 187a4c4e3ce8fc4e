"""How long `fxtrace serve` takes to its first healthy answer, and to its first trace.

    python -m tests.benchmarks.startup

Medians of five starts on an empty store, against a bare start of Python that imports grpc.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from fxtrace.client import Client
from fxtrace.ir.trace import TraceRequest
from tests.benchmarks.measure import temporary_folder

ROUNDS = 5


def start(folder: Path) -> tuple[float, float]:
    """Seconds to the first healthy answer, and to the first trace."""
    command = [sys.executable, "-m", "fxtrace", "serve", "--port", "0", "--store", str(folder), "--json"]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["address"]
        with Client(address, timeout=None) as client:  # which asks for its health
            healthy = time.perf_counter() - begin
            client.create_trace(TraceRequest("reference"))
            traced = time.perf_counter() - begin
        process.terminate()
    return healthy, traced


def bare() -> float:
    """Seconds that Python takes to import grpc."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import grpc.aio"], check=True)
    return time.perf_counter() - begin


def main() -> None:
    """Prints the medians."""
    rounds = []
    for _ in range(ROUNDS):
        with temporary_folder() as folder:
            rounds.append((*start(folder), bare()))
    healthy, traced, floor = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"healthy after {healthy:.2f} s, first trace after {traced:.2f} s; Python with grpc {floor:.2f} s")


if __name__ == "__main__":
    main()
