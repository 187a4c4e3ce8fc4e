"""Prints the README's tables of comparisons: `python -m tests.benchmarks.diff`.

Takes the number of random changes of the reference (100), of families (10), and of changes of each (5); a part of it
with `--only alignment`, `reference` or `families`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile

import torch

from fxtrace.errors import FxtraceError
from fxtrace.models import Registry
from fxtrace.service.engine import Engine
from tests.benchmarks.diff import alignment, attribution
from tests.benchmarks.diff.attribution import Subject, score

FAMILIES = ("bert", "gpt2", "llama", "distilbert", "opt", "qwen2", "t5", "vit", "roberta", "mistral")

parser = argparse.ArgumentParser()
parser.add_argument("--random", type=int, default=100)
parser.add_argument("--families", type=int, default=10)
parser.add_argument("--changes", type=int, default=5)
parser.add_argument("--only", choices=("alignment", "reference", "families"))
options = parser.parse_args()
torch.set_num_threads(1)
examples: list[str] = []


def attributed(engine: Engine, model: str, count: int) -> None:
    subject = Subject(engine, model)
    for what, changes in (("one field", list(subject.single())), ("two or three fields", list(subject.several(count)))):
        found = score(subject, changes)
        examples.extend(found.examples)
        print(found.row(f"{model}: {what}"), flush=True)


if options.only in (None, "alignment"):
    print(alignment.HEAD)
    for case in alignment.cases():
        print(case.row(), flush=True)
    print()
with tempfile.TemporaryDirectory() as folder, Engine.open(folder, Registry.installed()) as engine:
    if options.only != "alignment":
        print(attribution.HEAD)
    if options.only in (None, "reference"):
        attributed(engine, "reference", options.random)
    if options.only in (None, "families"):
        for family in FAMILIES[: options.families]:
            try:
                attributed(engine, f"hf:{family}", options.changes)
            except FxtraceError as error:
                print(f"| hf:{family} | {error.message} |", flush=True)
for example in examples[:20]:
    print(example, file=sys.stderr)
