"""What commands cost: processor seconds (user and system), seconds of waiting, and memory.

    python -m tests.benchmarks.cli [--rounds 5] [--against CHECKOUT] [--only WORD]

Medians of processes of their own, on a store with one trace of the reference model. With `--against`, those of another
checkout are measured in turn: this machine's speed drifts. At the end, what `fxtrace --help` imports, the costliest
first.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.measure import temporary_folder

ROLE = "decoder.0.cross_attention.weights"
HERE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Command:
    """A command line, and what it should cost at most: seconds of processor, or of waiting."""

    words: tuple[str, ...]
    cpu: float | None = None
    wall: float | None = None

    @property
    def aim(self) -> str:
        """In words."""
        aims = [f"{self.cpu:g} s" if self.cpu else "", f"{self.wall:g} s wall" if self.wall else ""]
        return ", ".join(filter(None, aims)) or "–"


COMMANDS = (
    Command(("--version",), cpu=0.25),
    Command(("--help",), cpu=0.25),
    Command(("explain", "34"), cpu=0.45),
    Command(("tensor", ROLE), cpu=0.45),
    Command(("graph",), cpu=0.45),
    Command(("query", "--ancestors", ROLE)),
    Command(("query",), cpu=0.45),
    Command(("traces",)),
    Command(("snapshots",)),
    Command(("trace", "reference")),  # which is there
    Command(("diff", "reference", "reference --set d_model=64"), cpu=3),
    Command(("sweep", "reference", "--grid", "d_model=64,128"), cpu=4),
    Command(("snapshots", "--server", "127.0.0.1:1"), wall=1),  # where nothing listens
    Command(("models",)),
)


@dataclass(frozen=True)
class Cost:
    """What one process took."""

    cpu: float
    wall: float


def run(checkout: Path, words: tuple[str, ...], store: Path) -> Cost:
    """Runs a command of a checkout's fxtrace."""
    environment = {**os.environ, "FXTRACE_STORE": str(store), "PYTHONPATH": str(checkout)}
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "fxtrace", *words],
        env=environment,
        cwd=checkout,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(cpu, time.perf_counter() - begin)


def rows(commands: tuple[Command, ...], checkouts: tuple[Path, ...], rounds: int) -> Iterator[str]:
    """The table's rows."""
    with temporary_folder() as folder:
        stores = [folder / str(number) for number in range(len(checkouts))]
        for checkout, store in zip(checkouts, stores, strict=True):
            run(checkout, ("trace", "reference"), store)
        for command in commands:
            costs: list[list[Cost]] = [[] for _ in checkouts]
            for _ in range(rounds):
                for each, checkout, store in zip(costs, checkouts, stores, strict=True):
                    each.append(run(checkout, command.words, store))
            cells = [
                f"{statistics.median(cost.cpu for cost in each):.2f} ({statistics.median(c.wall for c in each):.2f})"
                for each in costs
            ]
            yield f"| `fxtrace {' '.join(command.words)}` | {' | '.join(cells)} | {command.aim} |"


def imports(top: int = 10) -> Iterator[str]:
    """The modules that `--help` imports, those first that take longest by themselves, in milliseconds."""
    command = [sys.executable, "-X", "importtime", "-m", "fxtrace", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = []
    for line in done.stderr.splitlines():
        own, _, rest = line.removeprefix("import time:").partition("|")
        if own.strip().isdecimal():
            found.append((int(own) / 1000, rest.partition("|")[2].strip()))
    for milliseconds, name in sorted(found, reverse=True)[:top]:
        yield f"{milliseconds:6.1f} ms  {name}"


def main() -> None:
    """Prints the table and the import profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    checkouts = (HERE,) if options.against is None else (options.against.resolve(), HERE)
    heads = ["processor s (wall s)"] if len(checkouts) == 1 else ["before", "after"]
    print(f"| command | {' | '.join(heads)} | aim |")
    print(f"| --- |{' --- |' * len(heads)} --- |")
    chosen = tuple(command for command in COMMANDS if options.only in " ".join(command.words))
    for row in rows(chosen, checkouts, options.rounds):
        print(row, flush=True)
    print("\nWhat `fxtrace --help` imports, by the time that a module itself takes:\n")
    for line in imports():
        print(f"    {line}")


if __name__ == "__main__":
    main()
