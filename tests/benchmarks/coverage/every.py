"""Tries every architecture of transformers with a model class: `python -m tests.benchmarks.coverage.every [type ...]`.

Each is built small, given example inputs, run and traced, in a process of its own that is forked from one which has
imported everything. What was found is kept in a file: a run that is cut short (or by `--seconds`) goes on where it
stood, and one that ends with every architecture tried writes the README's part and every.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
import signal
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path

import torch

from fxtrace.capture import capture
from fxtrace.errors import DependencyMissing, FxtraceError
from fxtrace.models import Registry
from fxtrace.models.hf_classes import NO_FORWARD
from fxtrace.models.hf_fit import BROKEN, OBJECTS
from tests.benchmarks.coverage.processes import MEMORY, ROOT

SECONDS = 60  # of CPU time, for each
MARKS = ("<!-- every: written by `python -m tests.benchmarks.coverage.every` -->\n", "<!-- end of every -->\n")
RESULTS = ROOT / "out" / "every.jsonl"
PAGE = Path(__file__).with_name("every.md")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an architecture: `traced`, `needs` a package, `refused` with an error of ours, or `failed`."""

    type: str
    kind: str
    said: str = ""
    seconds: float = 0.0


def architectures() -> list[str]:
    """The types of transformers' configurations that an Auto class has a model for."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]

    tables = [t for name, t in vars(modeling_auto).items() if re.fullmatch(r"MODEL_(FOR_.*_)?MAPPING_NAMES", name)]
    return [each for each in CONFIG_MAPPING_NAMES if any(each in table for table in tables)]


def outcome(model_type: str) -> Outcome:
    """What becomes of an architecture in this process."""
    start = time.process_time()
    try:
        torch.manual_seed(0)
        model = Registry().load(f"hf:{model_type}")
        config = model.resolve({})
        inputs = model.example_inputs(config)
        captured = capture(model.build(config), inputs)
        kind, said = "traced", ""
        if not captured.output_equal:
            kind, said = "failed", f"not equal: {captured.rung_notes[-1]}"
    except DependencyMissing as error:
        kind, said = "needs", error.message
    except FxtraceError as error:
        kind, said = "refused", error.message
    except Exception as error:  # noqa: BLE001 - whatever it says is the outcome
        kind, said = "failed", f"{type(error).__name__}: {error}"
    return Outcome(model_type, kind, said, round(time.process_time() - start, 1))


def _attempt(model_type: str, end: Connection) -> None:
    def too_long(*_: object) -> None:
        raise TimeoutError(f"took more than {SECONDS} s of CPU time")

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (2 * SECONDS, 2 * SECONDS))  # for what catches the TimeoutError
    signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    end.send(outcome(model_type))


def outcomes(types: list[str], workers: int, stop: float) -> Iterator[Outcome]:
    """Those of several types, each in a process of its own; one that ends its process is told of.

    None is begun after `stop`, by the monotonic clock.
    """
    fork = multiprocessing.get_context("fork")
    running: dict[Connection, tuple[str, ForkProcess]] = {}
    left = list(reversed(types))
    while left or running:
        if time.monotonic() > stop:
            left.clear()
        while left and len(running) < workers:
            here, there = fork.Pipe(duplex=False)
            process = fork.Process(target=_attempt, args=(left[-1], there))
            process.start()
            there.close()
            running[here] = left.pop(), process
        for end in wait(list(running)):
            assert isinstance(end, Connection)
            model_type, process = running.pop(end)
            try:
                yield end.recv()
            except EOFError:
                process.join()
                yield Outcome(model_type, "failed", f"ended its process with {process.exitcode}")
            process.join()


def totals(found: Mapping[str, Outcome]) -> str:
    """How many are traced, as the README has it."""
    traced = sum(each.kind == "traced" for each in found.values())
    apart = sum(bool(outside(each)) for each in found.values())
    return (
        f"Of the {len(found)} architectures of transformers that an Auto class has a model for, **{traced}** "
        f"({traced / len(found):.1%}) are built small, run on example inputs and traced with equal output; {apart} "
        f"more are stopped by something outside, and {len(found) - traced - apart} refused.\n"
    )


def page(found: Mapping[str, Outcome]) -> str:
    """The totals, and what is not traced by its reason."""
    apart = {each.type: why for each in found.values() if (why := outside(each))}
    refused = {each.type: plain(each.said) for each in found.values() if each.kind != "traced" and not outside(each)}
    lines = [
        "# Every architecture of transformers",
        "",
        "Written by `python -m tests.benchmarks.coverage.every`.",
        "",
        totals(found),
        f"| {len(apart)} stopped by something outside | |",
        "| --- | --- |",
        *_rows(apart),
        "",
        f"| {len(refused)} refused | |",
        "| --- | --- |",
        *_rows(refused),
    ]
    return "\n".join(lines) + "\n"


def outside(found: Outcome) -> str:
    """What stands in the way that neither fxtrace nor its user has in hand; empty where nothing does."""
    if found.kind == "needs":
        package = re.search(r"requires the (\w+) library|named '(\w+)'", found.said)
        return f"needs {next(filter(None, package.groups()))}, which is not installed" if package else found.said
    return next((each for each in (BROKEN, OBJECTS, NO_FORWARD) if each in found.said), "")


def plain(said: str) -> str:
    """An error's words without the names in them, as a table's cell has room for."""
    said = re.sub(r"^model 'hf:[^']*': ", "", said.partition("; give a factory")[0])
    said = re.sub(r"no example inputs are known that \w+\.forward takes: ", "", said)
    return " ".join(said.split()).replace("|", "\\|")[:160]


def _rows(reasons: Mapping[str, str]) -> Iterator[str]:
    groups: dict[str, list[str]] = defaultdict(list)
    for model_type, each in reasons.items():
        groups[each].append(model_type)
    for each, types in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        yield f"| {each} | {', '.join(sorted(types))} |"


def _read(path: Path) -> dict[str, Outcome]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {each.type: each for each in (Outcome(**json.loads(line)) for line in lines)}


def main() -> None:
    """Tries what is wanted and not yet tried."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="architectures to try; all where none is named")
    parser.add_argument("--only", type=Path, help="a file that names them, one on a line")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where what is found is kept, and gone on from")
    parser.add_argument("--again", action="store_true", help="try anew what is not traced")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start none after so many")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    options = parser.parse_args()
    every = architectures()
    wanted = [*options.types, *(options.only.read_text().split() if options.only else [])] or every
    found = _read(options.results)
    done = {each.type for each in found.values() if each.kind == "traced" or not options.again}
    options.results.parent.mkdir(parents=True, exist_ok=True)
    stop = time.monotonic() + options.seconds
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    left = [each for each in wanted if each not in done]
    outcome("bert")  # what all need is imported here, once
    with options.results.open("a") as file:
        for each in outcomes(list(left), options.workers, stop):
            left.remove(each.type)
            found[each.type] = each
            print(json.dumps(asdict(each)), file=file, flush=True)
            if each.kind != "traced":
                print(f"{each.type}: {each.said}", file=sys.stderr, flush=True)
    found = {each: found[each] for each in wanted if each in found}
    print(page(found) if found else "nothing tried yet", f"{len(left)} left to try")
    if found.keys() == set(every):
        PAGE.write_text(page(found))
        readme = ROOT / "README.md"
        before, start, rest = readme.read_text().partition(MARKS[0])
        readme.write_text(before + start + totals(found) + "".join(rest.partition(MARKS[1])[1:]))


if __name__ == "__main__":
    main()
