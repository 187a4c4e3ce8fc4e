"""Tries every architecture of transformers with a model class: `python -m tests.benchmarks.coverage.every [type ...]`.

Each is built small, given example inputs, run and traced. What fails is printed by reason, and the README gets a line
of totals; with types named, these alone are tried and nothing is written.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

from fxtrace.capture import capture
from fxtrace.errors import DependencyMissing
from fxtrace.models import Registry
from tests.benchmarks.coverage.processes import MEMORY, ROOT

SECONDS = 40  # of CPU time, for each
WORKERS = 2
MARKS = ("<!-- every: written by `python -m tests.benchmarks.coverage.every` -->\n", "<!-- end of every -->\n")
TRACED = "traced"


def architectures() -> list[str]:
    """The types of transformers' configurations that an Auto class has a model for."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]

    tables = [t for name, t in vars(modeling_auto).items() if re.fullmatch(r"MODEL_(FOR_.*_)?MAPPING_NAMES", name)]
    return [each for each in CONFIG_MAPPING_NAMES if any(each in table for table in tables)]


def outcome(model_type: str) -> str:
    """`traced`, `needs` and why, or what was said against it."""
    try:
        torch.manual_seed(0)
        model = Registry().load(f"hf:{model_type}")
        config = model.resolve({})
        captured = capture(model.build(config), model.example_inputs(config))
    except DependencyMissing as error:
        return f"needs a package: {error.message}"
    except Exception as error:  # noqa: BLE001 - whatever it says is the outcome
        return f"{type(error).__name__}: {error}"
    return TRACED if captured.output_equal else f"not equal: {captured.rung_notes[-1]}"


def outcomes(types: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Those of several types, in other processes; one that ends its process is told of, and the rest go on."""
    left = list(types)
    while left:
        command = [sys.executable, "-m", __name__, "--here", *left]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        for line in done.stdout.splitlines():
            model_type, said = json.loads(line)
            left.remove(model_type)
            yield model_type, said
        if left:
            yield left.pop(0), f"ended its process with {done.returncode}: {done.stderr.strip()[-200:]}"


def line(found: Mapping[str, str]) -> str:
    """The totals."""
    traced = sum(said == TRACED for said in found.values())
    lacking = sum(said.startswith("needs a package") for said in found.values())
    return (
        f"Of the {len(found)} architectures of transformers that an Auto class has a model for, {traced} are built "
        f"small, run on example inputs and traced; {lacking} need a package that was not installed, and "
        f"{len(found) - traced - lacking} are refused with what stood in the way."
    )


def _here(types: list[str]) -> None:
    def too_long(*_: object) -> None:
        raise TimeoutError(f"took more than {SECONDS} s of CPU time")

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGPROF, too_long)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    out, sys.stdout = sys.stdout, sys.stderr
    for each in types:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        said = outcome(each)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps([each, said]), file=out, flush=True)


def main(wanted: list[str]) -> None:
    """Tries the wanted types, or all."""
    found: dict[str, str] = {}
    with ThreadPoolExecutor(WORKERS) as pool:
        types = wanted or architectures()
        parts = [types[start : start + 25] for start in range(0, len(types), 25)]
        for part in pool.map(lambda part: list(outcomes(part)), parts):
            found |= dict(part)
            print(
                f"{len(found)}: {Counter(said == TRACED for said in found.values())[True]}", file=sys.stderr, flush=True
            )
    reasons: dict[str, list[str]] = defaultdict(list)
    for each, said in found.items():
        if said != TRACED:
            reasons[re.sub(r"'hf:[^']*'", "", said)[:160]].append(each)
    for reason, types in sorted(reasons.items(), key=lambda item: -len(item[1])):
        print(f"{', '.join(types)}: {reason}".replace("\n", " "))
    print(line(found))
    if not wanted:
        readme = ROOT / "README.md"
        before, start, rest = readme.read_text().partition(MARKS[0])
        readme.write_text(before + start + line(found) + "\n" + "".join(rest.partition(MARKS[1])[1:]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        _here(sys.argv[2:])
    else:
        main(sys.argv[1:])
