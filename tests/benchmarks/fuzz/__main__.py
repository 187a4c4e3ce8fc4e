"""Sends a server what nobody would send, and counts what comes back.

    python -m tests.benchmarks.fuzz [COUNT] [SEED]

Prints what calls ended with, the server's memory over time, and, if there is any, what should not have been: then the
exit code is 1.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from fxtrace.models import Registry
from fxtrace.service.engine import Engine
from tests.benchmarks.fuzz.drive import Slice, Tally, run, vocabulary
from tests.benchmarks.measure import Memory, serve, temporary_folder

MODELS = [Path(__file__).parents[2] / "service" / f"{name}.py" for name in ("tiny", "dtypes")]
SLICE = 4000  # requests that are drawn, and then sent, at a time
CLIENTS = 2  # processes: one draws while the other sends
SETTINGS = {
    "capture_seconds": 4,
    "capture_memory": "512MiB",
    "render_seconds": 2,
    "render_memory": "512MiB",
    "workers": 1,
    "render_workers": 1,
    "queue_length": 2,
    "disk_quota": "256MiB",
    "log_level": "error",
}


def main(count: int, seed: int) -> int:
    """Prints the table; gives the exit code."""
    start, tally, sizes = time.monotonic(), Tally(), list[Memory]()
    with temporary_folder() as folder, Path(folder, "log").open("w") as log:
        models = Registry.installed()
        for model in MODELS:
            models.add_file(model)
        with Engine.open(folder / "store", models) as engine:  # a server would not have the time
            words = vocabulary(engine)
        with serve(folder / "store", *MODELS, log=log, **SETTINGS) as (server, address):
            slices = [
                Slice(address, str(folder), words, min(SLICE, count - done), seed + number)
                for number, done in enumerate(range(0, count, SLICE))
            ]
            run(slices[0]._replace(seed=seed - 1))  # what is made once is made
            sizes.append(Memory.of(server.pid))
            with ProcessPoolExecutor(CLIENTS, mp_context=multiprocessing.get_context("spawn")) as pool:
                for part in pool.map(run, slices):
                    tally.add(part)
                    sizes.append(Memory.of(server.pid))
                    shown = f"{tally.ends.total():,} requests, {len(tally.faults)} faults, {sizes[-1]}"
                    print(f"{time.monotonic() - start:4.0f} s: {shown}", file=sys.stderr, flush=True)
            report(tally, sizes, server, time.monotonic() - start)
        if tally.faults:
            print(*tally.faults[:50], Path(folder, "log").read_text()[-20_000:], sep="\n\n")
    return bool(tally.faults)


def report(tally: Tally, sizes: list[Memory], server: subprocess.Popen[str], seconds: float) -> None:
    """Prints the tables."""
    print("| ended with | reason | requests |\n| --- | --- | --- |")
    ends: Counter[tuple[str, str]] = Counter()
    for (_, code, reason), number in tally.ends.items():
        ends[code, reason] += number
    for (code, reason), number in ends.most_common():
        print(f"| `{code}` | {f'`{reason}`' if reason else ''} | {number:,} |")
    methods = {method for method, _, _ in tally.ends}
    fine = Counter({method: tally.ends[method, "OK", ""] for method in methods})
    print(f"\nof {len(methods)} RPCs, OK:", ", ".join(f"{method} {number:,}" for method, number in fine.most_common()))
    print(
        f"\n{tally.ends.total():,} requests ({tally.distinct:,} distinct) in {seconds:.0f} s; "
        f"faults: {len(tally.faults)}; the server "
        + ("is still up" if server.poll() is None else f"ended with {server.returncode}")
        + f"; memory at the start {sizes[0]}, in the middle {sizes[len(sizes) // 2]}, at the end {sizes[-1]}"
    )


if __name__ == "__main__":
    arguments = [int(each) for each in sys.argv[1:]]
    sys.exit(main(*(arguments + [100_000, 1][len(arguments) :])))
