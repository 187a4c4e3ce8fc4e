"""Ratios of medians from interleaved runs: this machine's speed drifts, so nothing is timed alone."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from fxtrace.service.worker import memory


@dataclass(frozen=True)
class Ratio:
    """Medians of both in seconds, and the median of the ratios round by round."""

    ours: float
    floor: float
    ratio: float


@dataclass(frozen=True)
class Row:
    """One line of the table. `speed` shows floor ÷ ours: the share of the floor's throughput."""

    what: str
    measured: Ratio
    aim: str
    speed: bool = False

    def markdown(self) -> str:
        """As a row of the README's table."""
        ratio = 1 / self.measured.ratio if self.speed else self.measured.ratio
        return f"| {self.what} | {ratio:.2f} | {self.aim} | {_ms(self.measured.ours)} ÷ {_ms(self.measured.floor)} |"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def compare(ours: Callable[[], object], floor: Callable[[], object], *, rounds: int, warm_up: int = 3) -> Ratio:
    """Runs the two in turn, `rounds` times."""
    for _ in range(warm_up):
        ours(), floor()
    times = [(_time(ours), _time(floor)) for _ in range(rounds)]
    return Ratio(
        statistics.median(a for a, _ in times),
        statistics.median(b for _, b in times),
        statistics.median(a / b for a, b in times),
    )


def _time(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextmanager
def serve(
    store: Path, *models: Path, log: TextIO | None = None, **settings: object
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`fxtrace serve` on a free port, stopped when the block is left; its process and its address."""
    command = [sys.executable, "-m", "fxtrace", "serve", "--port", "0", "--store", str(store)]
    for model in models:
        command += ["--model", str(model)]
    variables = {f"FXTRACE_{name.upper()}": str(value) for name, value in settings.items()}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **variables}
    ) as process:
        try:
            assert process.stdout is not None
            yield process, re.findall(r"127\.0\.0\.1:\d+", process.stdout.readline())[0]
        finally:
            process.terminate()


@dataclass(frozen=True)
class Memory:
    """Bytes that a server holds and that are no file's: its own process, and its workers together."""

    front: int
    workers: int

    @classmethod
    def of(cls, pid: int) -> Memory:
        """Of a server by its process id."""
        return cls(_private(pid), sum(map(_private, children_of(pid))))

    def __str__(self) -> str:
        return f"{self.front / 2**20:.0f} MiB (workers {self.workers / 2**20:.0f} MiB)"


def children_of(pid: int) -> list[int]:
    """The processes that a process started."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _private(pid: int) -> int:
    return memory(pid).get("RssAnon", 0)
