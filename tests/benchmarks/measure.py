"""Ratios of medians from interleaved runs: this machine's speed drifts, so nothing is timed alone."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


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
